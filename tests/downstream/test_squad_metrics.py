"""The official SQuAD scores, on cases worked out by hand from the scripts' definitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_jax.downstream.metrics.squad import best_threshold, exact_match, f1, normalize_answer, score

words = st.text(alphabet="aAnthe .,!x-", max_size=20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Denver Broncos.", "denver broncos"),
        ("  an  apple a\tday ", "apple day"),
        ("theatre another", "theatre another"),  # articles are whole words
        ("well-known", "wellknown"),  # punctuation goes without leaving a space
        ("a.n. the-end", "theend"),  # punctuation goes first, so "a.n." turns into the article "an"
        ("“quoted” 6½", "“quoted” 6½"),  # only ASCII punctuation
        ("The", ""),
    ],
)
def test_normalisation(text, expected):
    assert normalize_answer(text) == expected


@given(words)
def test_normalisation_is_idempotent_on_words(text):
    once = normalize_answer(text)
    assert normalize_answer(once) == once


def test_f1_counts_repeated_words_as_a_bag():
    # predicted {x, x, y}, correct {x, y, y}: common 2, precision 2/3, recall 2/3
    assert f1("x x y", "x y y") == pytest.approx(2 / 3)
    # predicted 3 words, correct 1, common 1: P 1/3, R 1
    assert f1("Kawann Short Jr", "Short") == pytest.approx(0.5)
    assert f1("left", "right") == 0


@given(words, words)
def test_f1_is_symmetric_and_one_only_for_equal_bags(a, b):
    assert f1(a, b) == f1(b, a)
    assert (f1(a, b) == 1) == (sorted(normalize_answer(a).split()) == sorted(normalize_answer(b).split()) != [])


def test_empty_sides_differ_between_the_versions():
    assert f1("the", "a", version="1.1") == 0
    assert f1("the", "a", version="2.0") == 1
    assert f1("", "word", version="2.0") == 0
    assert exact_match("The!", "") == 1


def test_scores_take_the_best_answer_and_count_a_missing_prediction():
    answers = {"q1": ["Short", "Kawann Short"], "q2": ["two"], "q3": ["four"]}
    result = score({"q1": "the Kawann short", "q2": "two three"}, answers)
    assert result == {"exact_match": pytest.approx(100 / 3), "f1": pytest.approx(100 * (1 + 2 / 3) / 3)}


def test_no_answer_in_version_2():
    answers = {"a": ["two"], "b": [], "c": ["the"], "d": []}  # c's only answer normalises to nothing: no answer
    result = score({"a": "two", "b": "", "c": "", "d": "guess"}, answers, version="2.0")
    assert result["exact_match"] == 75
    assert result["has_answer/f1"] == 100
    assert result["no_answer/f1"] == pytest.approx(200 / 3)


def test_best_threshold_finds_the_sweep_optimum():
    """Against every threshold tried one at a time."""
    answers = {"a": ["x"], "b": [], "c": ["y z"], "d": [], "e": ["w"]}
    predictions = {"a": "x", "b": "q", "c": "y", "d": "r", "e": "no"}
    doubt = {"a": -3.0, "b": 2.0, "c": -1.0, "d": -2.0, "e": 1.0}
    tried = {}
    for limit in (-10.0, *doubt.values()):
        kept = {q: text if doubt[q] <= limit else "" for q, text in predictions.items()}
        tried[limit] = score(kept, answers, version="2.0")["f1"]
    best, threshold = best_threshold(predictions, answers, doubt)
    assert best == pytest.approx(max(tried.values()))
    assert tried[threshold] == pytest.approx(best)
