"""Predictions of supervised models: class probabilities, answers, translations, one row per example."""

import csv
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ssl_jax.data.text.squad import Question, SquadSource, cut, read_squad, windows_dataset
from ssl_jax.data.text.supervised import sentence_ends
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.metrics.classification import check_finite
from ssl_jax.downstream.supervised.decoding import NEVER, Search
from ssl_jax.downstream.supervised.spans import answers
from ssl_jax.downstream.supervised.translation import detokenized
from ssl_jax.errors import UserError
from ssl_jax.inference import dataset_features, restore_task, text_features
from ssl_jax.task import DataInfo, Params, Task

Rows = list[dict[str, Any]]
SUFFIXES = (".csv", ".jsonl", ".npz")
TASKS = ("classification", "text_classification", "question_answering", "translation")


def predict_source(workdir: str, *, data: str, to: str) -> None:
    """Write the predictions for a source to a .csv, .jsonl or .npz file: "index", "name", and the task's columns.

    Classifiers give "prediction", "probability" and the probability of each class (if an example may have several classes,
    "prediction" names those above 0.5, separated by "; ", without "probability"); question answering gives "question",
    "prediction" ("" for no answer) and "probability"; translation gives "source" and "prediction".
    """
    path = pathlib.Path(to)
    if path.suffix not in SUFFIXES or not path.absolute().parent.is_dir():
        raise UserError(f"--to={to}: name a {', '.join(SUFFIXES[:2])} or {SUFFIXES[2]} file in a directory that exists")
    task, params, info = restore_task(workdir, TASKS, "predict")
    rows = BY_TASK[task.name](workdir, task, params, info, data)
    write(path, rows, info.classes if "classification" in task.name else ())
    print(f"{path}: {len(rows):,} rows of {', '.join(list(rows[0])[:4])}{' ...' if len(rows[0]) > 4 else ''}")


def predict(task: Task, params: Params, info: DataInfo, batch: Any, logits: Callable[[Any], np.ndarray]) -> Rows:
    """Return the predictions for a batch (classifiers), questions or texts.

    logits: batch -> f32[examples, classes]. Questions are pairs (question, context) or mappings with these keys.
    """
    if task.name in ("classification", "text_classification"):
        return class_rows(logits(batch), task)
    if task.name == "question_answering":
        return answer_rows(task, params, info, questions_of(batch))
    if task.name == "translation":
        texts = [batch] if isinstance(batch, str) else list(batch)
        return translation_rows(task, params, info, texts)
    raise UserError(f"predict: a model of the task {task.name} predicts no labels; use one of {', '.join(TASKS)}")


def class_rows(logits: np.ndarray, task: Task) -> Rows:
    """Return "prediction", its "probability" and "probabilities" by class; for several classes, see `predict_source`."""
    check_finite(logits, "logits")
    classes = task.info.classes
    if getattr(task, "several_classes", False):
        probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
        named = lambda row: "; ".join(name for name, value in zip(classes, row, strict=True) if value > 0.5)
        return [
            {"prediction": named(row), "probabilities": dict(zip(classes, row.tolist(), strict=True))} for row in probabilities
        ]
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    best = probabilities.argmax(axis=1)
    return [
        {
            "prediction": classes[i],
            "probability": float(row[i]),
            "probabilities": dict(zip(classes, row.tolist(), strict=True)),
        }
        for i, row in zip(best, probabilities, strict=True)
    ]


# Questions ------------------------------------------------------------------------------------------------------------


def questions_of(asked: Any) -> tuple[Question, ...]:
    """Return questions from one or several pairs (question, context), or mappings with these keys."""
    pair = lambda x: isinstance(x, tuple | list) and len(x) == 2 and all(isinstance(text, str) for text in x)
    asked = [asked] if pair(asked) or isinstance(asked, Mapping) else list(asked)
    found = []
    for i, one in enumerate(asked):
        texts = (one.get("question"), one.get("context")) if isinstance(one, Mapping) else tuple(one) if pair(one) else (one,)
        if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
            raise UserError(f"questions: number {i} is {one!r:.60}, expected (question, context)")
        found.append(Question(str(i), *texts, ()))
    return tuple(found)


def answer_rows(
    task: Task, params: Params, info: DataInfo, questions: tuple[Question, ...], section: Mapping[str, Any] | None = None
) -> Rows:
    """Return "question", "prediction" and "probability" of each; the answer may be "" if training had unanswerable questions.

    section: the `data` section of the model's run, for the lengths of windows and questions.
    """
    length, section = info.shapes["tokens"].shape[0], dict(section or {})
    query = min(section.get("max_query_length", 64), length // 2)
    stride = min(section.get("doc_stride", 128), max((length - query - 4) // 2, 1))
    windows = cut(questions, info.tokenizer, length, stride, query)
    dataset = windows_dataset(SquadSource("questions", questions, windows), info)
    scores = Encoder(task, params).extract(dataset, ("start_logits", "end_logits"), 64)
    with_null, rows = info.extra.get("version") == "2.0", []
    for question, answer in zip(questions, answers(questions, windows, *map(scores.get, NAMES)), strict=True):
        text, probability = answer.probabilities(with_null)[0]
        rows.append({"question": question.question, "prediction": text, "probability": probability})
    return rows


NAMES = ("start_logits", "end_logits")


# Translation ----------------------------------------------------------------------------------------------------------


def translation_rows(task: Task, params: Params, info: DataInfo, texts: Sequence[str], batch_size: int = 64) -> Rows:
    """Return "source" and "prediction" of each text; long texts are truncated."""
    tokenizer, width = info.tokenizer, info.shapes["source"].shape[0]
    last = sentence_ends(tokenizer)[1]
    tokens = np.full((len(texts), width), tokenizer.pad_id or 0, np.int32)
    segments = np.zeros((len(texts), width), np.int32)
    for i, ids in enumerate(tokenizer.encode_batch(texts)):
        row = [*ids[: width - 1], last]
        tokens[i, : len(row)], segments[i, : len(row)] = row, 1
    run, rows, size = jax.jit(lambda p, batch: task.search(p, batch, Search())), [], min(batch_size, len(texts))
    for start in range(0, len(texts), size or 1):
        index = np.minimum(np.arange(start, start + size), len(texts) - 1)  # the last batch repeats its last text
        found, scores = map(np.asarray, run(params, {"source": tokens[index], "source_segments": segments[index]}))
        if not np.all(np.isfinite(scores) & (scores > NEVER / 2)):
            raise UserError("translations: the probabilities are NaN because training diverged; lower optimizer.lr")
        pieces = zip(texts[start : start + size], found, strict=False)
        rows += [{"source": text, "prediction": detokenized(tokenizer, ids)} for text, ids in pieces]
    return rows


# Sources --------------------------------------------------------------------------------------------------------------


def numbered(rows: Rows, index: Any, names: Sequence[str]) -> Rows:
    return [{"index": int(i), "name": name, **row} for i, name, row in zip(index, names, rows, strict=True)]


def of_images(workdir: str, task: Task, params: Params, info: DataInfo, uri: str) -> Rows:
    return of_features(dataset_features(workdir, task, params, info, uri, ("logits",)), task)


def of_texts(workdir: str, task: Task, params: Params, info: DataInfo, uri: str) -> Rows:
    return of_features(text_features(workdir, task, params, info, uri, ("logits",)), task)


def of_features(found: tuple[Any, np.ndarray, Mapping[str, np.ndarray]], task: Task) -> Rows:
    source, index, arrays = found
    names = [source.describe(i).removeprefix(f"{source.name}: ") for i in index.tolist()]
    return numbered(class_rows(arrays["logits"], task), index, names)


def of_questions(workdir: str, task: Task, params: Params, info: DataInfo, uri: str) -> Rows:
    questions = read_squad(uri, check=False)[0]
    rows = answer_rows(task, params, info, questions, section_of(workdir))
    return numbered(rows, range(len(rows)), [question.id for question in questions])


def of_sentences(workdir: str, task: Task, params: Params, info: DataInfo, uri: str) -> Rows:
    from ssl_jax.data.sources.text_columns import read_table
    from ssl_jax.data.text.lines import text_rows

    section = section_of(workdir)
    if uri.startswith("text:"):
        table, column = text_rows(uri, section)[0], "text"
    else:
        wanted = dict(section.get("columns") or {}).get("source", "source")
        table = read_table(uri, {"source": wanted}, header=section.get("header"), remedy="call it as in training")
        column = "source"
    rows = translation_rows(task, params, info, table.columns[column])
    return numbered(rows, range(len(rows)), table.places)


def section_of(workdir: str) -> dict[str, Any]:
    """Return the run's `data` section; {} for imported weights."""
    from ssl_jax.workdir import Workdir

    return {} if workdir.startswith("hf:") else Workdir.existing(workdir).config().data.to_dict()


BY_TASK = dict(zip(TASKS, (of_images, of_texts, of_questions, of_sentences), strict=True))


def write(path: str | os.PathLike[str], rows: Rows, classes: Sequence[str] = ()) -> None:
    """Write rows as .csv (a column for each class), .jsonl or .npz (arrays by name, and "classes")."""
    path = pathlib.Path(path)
    if not rows:
        raise UserError(f"{path}: is empty; expected at least one example to predict")
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return
    plain = [{name: value for name, value in row.items() if name != "probabilities"} for row in rows]
    if path.suffix == ".npz":
        arrays = {name: np.array([row[name] for row in plain]) for name in plain[0]}
        if classes:
            arrays["classes"] = np.array(classes)
            arrays["probabilities"] = np.array([list(row["probabilities"].values()) for row in rows], np.float32)
        np.savez(path, **arrays)
        return
    of_class = lambda row: [f"{value:.6g}" for value in row.get("probabilities", {}).values()]
    shown = lambda value: f"{value:.6g}" if isinstance(value, float) else value
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*plain[0], *classes])
        table.writerows([*map(shown, row.values()), *of_class(whole)] for row, whole in zip(plain, rows, strict=True))
