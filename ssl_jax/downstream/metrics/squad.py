"""Exact match and F1 of extractive answers, as the official SQuAD scripts define them (Rajpurkar et al. 2016, section 6.1).

Answers are compared as strings after normalisation; scores are means over questions, in percent.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ssl_jax.reports.records import Record, over_examples

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no English articles, single spaces; in this order."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 when both are the same after normalisation, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def f1(prediction: str, answer: str, *, version: str = "1.1") -> float:
    """Harmonic mean of precision and recall over the bag of words.

    Where one side normalises to nothing, version "2.0" asks whether both do; version "1.1" gives 0.
    """
    predicted, correct = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if version == "2.0" and not (predicted and correct):
        return float(predicted == correct)
    common = sum((Counter(predicted) & Counter(correct)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(correct)
    return 2 * precision * recall / (precision + recall)


def gold_answers(answers: Sequence[str], version: str) -> list[str]:
    """The answers that count: version "2.0" drops those that normalise to nothing, and no answer is the empty string."""
    if version == "2.0":
        return [a for a in answers if normalize_answer(a)] or [""]
    return list(answers)


def score(predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]], *, version: str = "1.1") -> dict[str, float]:
    """Return `records` as name -> value."""
    return {record.name: record.value for record in records(predictions, answers, version=version)}


def records(predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]], *, version: str = "1.1") -> list[Record]:
    """Return exact match and F1 in percent over all questions, best answer each; a question without a prediction counts 0.

    predictions: question id -> text, "" for no answer. answers: question id -> correct texts, () where there is none.
    Version "2.0" adds both scores over questions with an answer ("has_answer") and without ("no_answer").
    """
    single = single_scores(predictions, answers, version=version)
    parts = {"": list(single)}
    if version == "2.0":
        gold = {q: gold_answers(answers[q], version) for q in single}
        parts["has_answer"] = [q for q in single if gold[q] != [""]]
        parts["no_answer"] = [q for q in single if gold[q] == [""]]
    found = []
    for setting, questions in parts.items():
        for i, metric in enumerate(("exact_match", "f1")):
            if questions:
                values = 100 * np.array([single[q][i] for q in questions])
                found.append(over_examples(metric, values, setting=setting, headline=metric == "f1" and not setting))
    return found


def single_scores(
    predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]], *, version: str = "1.1"
) -> dict[str, tuple[float, float]]:
    """(exact match, F1) of each question, in [0, 1]."""
    scores = {}
    for question, correct in answers.items():
        prediction = predictions.get(question)
        gold = [] if prediction is None else gold_answers(correct, version)
        scores[question] = (
            max((exact_match(prediction, a) for a in gold), default=0.0),
            max((f1(prediction, a, version=version) for a in gold), default=0.0),
        )
    return scores


def best_threshold(
    predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]], no_answer: Mapping[str, float], *, metric: str = "f1"
) -> tuple[float, float]:
    """The best score in percent, and the threshold of `no_answer` above which a question is left unanswered to reach it.

    predictions: the best text of each question, never left empty for doubt. The sweep of the SQuAD 2.0 script: from
    answering nothing on, one question more at a time in the order of confidence.
    """
    column = ("exact_match", "f1").index(metric)
    single = single_scores(predictions, answers, version="2.0")
    has_answer = {q: gold_answers(answers[q], "2.0") != [""] for q in answers}
    current = float(sum(not has for has in has_answer.values()))
    best, threshold = current, 0.0
    for question in sorted(no_answer, key=no_answer.__getitem__):
        if has_answer[question]:
            current += single[question][column]
        elif predictions[question]:
            current -= 1
        if current > best:
            best, threshold = current, no_answer[question]
    return 100 * best / max(len(answers), 1), threshold
