"""Evaluators of text on sources with defects: the number that the sound rows alone give, or one line before training."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.metrics import f1_score

from ssl_jax import data as kinds
from ssl_jax.data.text import corpus
from ssl_jax.downstream.evaluator import EvaluationData
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.evaluators.knn import KNN
from ssl_jax.downstream.evaluators.language_modelling import Lambada, MaskedTokenLoss, NextTokenLoss, Perplexity
from ssl_jax.downstream.evaluators.translation import TranslationMetrics, score
from ssl_jax.downstream.supervised.text_classification import TextClassificationMetrics
from ssl_jax.errors import UserError
from ssl_jax.pretext.masked_token import MaskedToken
from ssl_jax.pretext.next_token import NextToken
from ssl_jax.reports.records import flat
from ssl_jax.task import Task
from tests.downstream import text_toys as toys
from tests.keys import toy_key

TABLES = ("tsv", "csv", "jsonl", "parquet")
NULL, BROKEN = object(), object()  # a text that is null; a line that is not UTF-8


def write(path, kind, rows):
    """A table of (text, label) in this order; returns its URI."""
    path = path.with_suffix(f".{kind}")
    if kind == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        texts, labels = ([None if cell is NULL else cell for cell in column] for column in zip(*rows, strict=True))
        parquet.write_table(pyarrow.table({"text": texts, "label": [label or None for label in labels]}), path)
        return f"parquet:{path}"
    if kind == "jsonl":
        objects = [{"text": None if text is NULL else text, "label": label or None} for text, label in rows]
        lines = [b'"\xff' if row["text"] is BROKEN else json.dumps(row).encode() for row in objects]
    else:
        separator = {"tsv": "\t", "csv": ","}[kind]
        pairs = [("text", "label"), *rows]
        lines = [b"\xff" if text is BROKEN else f"{text}{separator}{label}".encode() for text, label in pairs]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return f"{kind}:{path}"


def error_of(call):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Labelled sentences -----------------------------------------------------------------------------------------------------

TRAIN = [(f"{letter}{i % 7} {letter}", letter) for i in range(8) for letter in "xyz"]


class Counted(Task):
    """The logit of a class is how often its letter comes in the text; "mean" counts every byte."""

    name, data = "counted", "labelled_text"

    def __init__(self, info):
        self.ids = [info.tokenizer.encode(letter)[0] for letter in "xyz"]

    def features(self, params, batch):
        counts = jnp.sum(jax.nn.one_hot(batch["tokens"], 300) * batch["segments"][..., None], axis=1)
        return {"mean": counts, "logits": counts[:, jnp.array(self.ids)]}


def measured(train, test, **keys):
    """Accuracy and F1 of the letters, the accuracy of one neighbour, and the data sets."""
    section = toys.section(train, test, **keys)
    splits = [kinds.build("labelled_text", section, split=split, train=False) for split in ("train", "test")]
    data, encoder = EvaluationData(*splits), Encoder(Counted(splits[0].info), {})
    evaluator = TextClassificationMetrics(bag_of_tokens=False)
    evaluator.check(data)
    found = flat(evaluator(encoder, data)) | {"knn": flat(KNN(k=1, baselines=False)(encoder, data))["accuracy"]}
    return found, splits


def expected(rows):
    """Accuracy and macro F1 of saying the first letter of "xyz" that comes most often."""
    said = [max("xyz", key=text.count) for text, _ in rows]
    labels = [label for _, label in rows]
    return np.mean([a == b for a, b in zip(said, labels, strict=True)]), f1_score(labels, said, average="macro")


@pytest.mark.parametrize("kind", TABLES)
def test_a_class_that_the_test_split_lacks(kind, tmp_path):
    rows = [("z z x", "z"), ("y y", "z"), ("y x y", "y"), ("z", "z")]
    found, _ = measured(write(tmp_path / "train", kind, TRAIN), write(tmp_path / "test", kind, rows))
    assert (found["accuracy"], found["f1_macro"]) == pytest.approx(expected(rows))


@pytest.mark.parametrize("kind", TABLES)
def test_a_class_that_training_lacks_is_named_or_left_out_and_counted(kind, tmp_path):
    rows = [("z z x", "z"), ("w", "w"), ("y x y", "x"), ("w w", "w"), ("x", "x")]
    train, test = write(tmp_path / "train", kind, TRAIN), write(tmp_path / "test", kind, rows)
    assert "label 'w' does not occur in training" in error_of(lambda: measured(train, test))
    found, (_, dataset) = measured(train, test, unknown_classes="skip")
    kept = [row for row in rows if row[1] != "w"]
    assert (found["accuracy"], found["f1_macro"]) == pytest.approx(expected(kept)) and dataset.skipped() == 2


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [(kind, ("x y y", ""), "has no label (1 of 5 have none)") for kind in TABLES]
    + [(kind, (NULL, "x"), "text is null, expected text") for kind in ("jsonl", "parquet")]
    + [("jsonl", (BROKEN, "x"), "line 2 is not UTF-8")],
)
def test_a_row_that_cannot_be_used_is_named_or_left_out_and_counted(kind, bad, message, tmp_path):
    """In the training and in the test split: the numbers are those of the rows that are left."""
    sound = [("z z x", "z"), ("y y", "x"), ("y x y", "y"), ("x", "x")]
    train, test = (write(tmp_path / name, kind, rows) for name, rows in (("train", TRAIN), ("test", sound)))
    clean, _ = measured(train, test)
    damaged = write(tmp_path / "damaged", kind, [sound[0], bad, *sound[1:]])
    assert message in error_of(lambda: measured(train, damaged))
    found, (_, dataset) = measured(train, damaged, on_bad_example="skip")
    assert found == clean and dataset.skipped() == 1 and dataset.size == 4
    assert any("skipped: 1 examples" in note for note in dataset.notes())
    damaged = write(tmp_path / "damaged_train", kind, [*TRAIN[:3], bad, *TRAIN[3:]])
    found, (dataset, _) = measured(damaged, test, on_bad_example="skip")
    assert found == clean and dataset.skipped() == 1 and dataset.size == len(TRAIN)


@pytest.mark.parametrize("kind", ["tsv", "csv"])
def test_a_table_that_is_not_utf8_is_refused_with_its_line(kind, tmp_path):
    train = write(tmp_path / "train", kind, TRAIN)
    damaged = write(tmp_path / "damaged", kind, [("x", "x"), (BROKEN, "x"), ("y", "y")])
    for keys in ({}, {"on_bad_example": "skip"}):
        assert "line 3 is not UTF-8" in error_of(lambda keys=keys: measured(train, damaged, **keys))


def test_half_a_surrogate_pair_is_the_replacement_character(tmp_path):
    train = write(tmp_path / "train", "jsonl", TRAIN)
    whole, half = (
        write(tmp_path / name, "jsonl", [(f"x {c}", "x"), ("y", "y")]) for name, c in (("a", "\ufffd"), ("b", "\ud83d"))
    )
    (found, (_, one)), (again, (_, other)) = measured(train, whole), measured(train, half)
    assert found == again and np.array_equal(one.arrays["tokens"], other.arrays["tokens"])


# Parallel text ----------------------------------------------------------------------------------------------------------


class Echo(Task):
    """Translates every sentence by itself."""

    name, data = "echo", "parallel_text"

    def __init__(self, info):
        self.info = info

    def search(self, params, batch, search):
        return batch["source"], jnp.zeros(len(batch["source"]))


SENTENCES = [
    ("a dog met a fox", "a dog met a fox"),
    ("the brown dog sleeps", "the brown fox sleeps"),
    ("1 2 3 4 5", "1 2 3 4 6"),
]


def write_parallel(path, kind, rows):
    if kind != "parallel":  # the same tables, with columns of other names
        return write(path, kind, rows)
    for side in (0, 1):
        path.with_suffix(f".{side}").write_text("".join(f"{row[side]}\n" for row in rows))
    return f"parallel:{path}.0,{path}.1"


def translated(train, test, kind, **keys):
    """What the evaluator of translation yields of `Echo`, and the data sets."""
    columns = {} if kind == "parallel" else dict(columns=dict(source="text", target="label"))
    section = dict(train=train, test=test, tokenizer=toys.BYTES, max_source_length=40, max_target_length=40, **columns, **keys)
    splits = [kinds.build("parallel_text", section, split=split, train=False) for split in ("train", "test")]
    evaluator, data = TranslationMetrics(), EvaluationData(*splits)
    evaluator.check(data)
    return flat(evaluator(Encoder(Echo(splits[0].info), {}), data)), splits


@pytest.mark.parametrize("bad", [("x y", ""), ("", "x y"), ("x y", " ")])
@pytest.mark.parametrize("kind", ["parallel", *TABLES])
def test_an_empty_side_of_parallel_text_is_named_or_left_out_and_counted(kind, bad, tmp_path):
    """BLEU is sacreBLEU's of the pairs that are left; an empty reference would lower it."""
    clean = write_parallel(tmp_path / "clean", kind, SENTENCES)
    damaged = write_parallel(tmp_path / "damaged", kind, [SENTENCES[0], bad, *SENTENCES[1:]])
    assert error_of(lambda: translated(clean, damaged, kind)).startswith(f"{damaged}: ")
    found, (_, dataset) = translated(clean, damaged, kind, on_bad_example="skip")
    sources, references = zip(*SENTENCES, strict=True)
    assert found["bleu"] == pytest.approx(score(sources, references)[0]["bleu"]) and dataset.skipped() == 1
    assert found == translated(clean, clean, kind)[0]


# Corpora ----------------------------------------------------------------------------------------------------------------

LINES = ["the quick brown fox jumps", "over the lazy dog", "a dog and a fox met", "the end of the text"]
MODEL = dict(width=16, depth=1, heads=2, init_std=0.3)
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[EOS]")


def corpus_of(path, kind, lines):
    path = path.with_suffix(f".{kind}")
    encoded = []
    for line in lines:
        if kind == "text":
            encoded.append(b"broken \xff line" if line is BROKEN else line.encode())
        else:
            broken = b"{no object"
            encoded.append(broken if line is BROKEN else json.dumps({"text": None if line is NULL else line}).encode())
    path.write_bytes(b"\n".join(encoded) + b"\n")
    return f"{kind}:{path}"


@functools.cache
def model(name):
    """A task with random parameters; the vocabulary is of bytes, so that it does not depend on the text."""
    info = kinds.build("tokens" if name == "next_token" else "sequences", _section("text:" + __file__)).info
    task = {"next_token": NextToken, "masked_token": MaskedToken}[name].from_config(
        ConfigDict(dict(task=dict(name=name), model=MODEL, training={})), info
    )
    length = 16 + (name == "next_token")
    return task, jax.jit(task.init)(toy_key(0), {"tokens": jnp.zeros((1, length), jnp.int32)})


def _section(uri, **keys):
    tokenizer = dict(name="bytes", special_tokens=SPECIAL)
    return dict(train=uri, test=uri, block=16, batch_size=4, documents="line", tokenizer=tokenizer) | keys


def scores(evaluator, name, uri, **keys):
    """What an evaluator yields of a corpus as the test split, after its check."""
    build = corpus.build if name == "next_token" else corpus.build_sequences
    section = _section(uri, **keys)
    splits = [build(section, split=split, train=False) for split in ("train", "test")]
    data = EvaluationData(*splits, config=ConfigDict(dict(data=section, task=dict(name=name))))
    evaluator.check(data)
    return flat(evaluator(Encoder(*model(name)), data)), splits[1]


@pytest.mark.parametrize(("kind", "bad"), [("text", BROKEN), ("jsonl", BROKEN), ("jsonl", NULL)])
@pytest.mark.parametrize(("name", "evaluator"), [("next_token", NextTokenLoss()), ("masked_token", MaskedTokenLoss())])
def test_losses_over_a_corpus_with_a_bad_line(kind, bad, name, evaluator, tmp_path):
    keys = dict(cache=str(tmp_path / "cache"))
    clean, _ = scores(evaluator, name, corpus_of(tmp_path / "clean", kind, LINES), **keys)
    damaged = corpus_of(tmp_path / "damaged", kind, [*LINES[:2], bad, *LINES[2:]])
    assert damaged in error_of(lambda: scores(evaluator, name, damaged, **keys))
    found, dataset = scores(evaluator, name, damaged, on_bad_example="skip", **keys)
    assert found == pytest.approx(clean, rel=1e-6) and dataset.skipped() == 1


@pytest.mark.parametrize(("kind", "bad"), [("text", BROKEN), ("jsonl", BROKEN), ("jsonl", NULL)])
@pytest.mark.parametrize("evaluator", [Perplexity, Lambada])
def test_scored_texts_with_a_bad_line(kind, bad, evaluator, tmp_path):
    keys = dict(cache=str(tmp_path / "cache"))
    own = corpus_of(tmp_path / "own", "text", LINES)
    clean, _ = scores(evaluator(text=corpus_of(tmp_path / "clean", kind, LINES)), "next_token", own, **keys)
    damaged = evaluator(text=corpus_of(tmp_path / "damaged", kind, [*LINES[:2], bad, *LINES[2:]]))
    assert damaged.text in error_of(lambda: scores(damaged, "next_token", own, **keys))
    found, _ = scores(damaged, "next_token", own, on_bad_example="skip", **keys)
    assert found.pop("skipped") == 1 and found == pytest.approx(clean, rel=1e-6)


def test_what_evaluators_of_text_cannot_do_is_said_before_training(tmp_path):
    own = corpus_of(tmp_path / "own", "text", LINES)
    empty = corpus_of(tmp_path / "empty", "jsonl", ["", " "])
    keys = dict(cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="stride=17: must not exceed the model's context of 16"):
        scores(Perplexity(stride=17), "next_token", own, **keys)
    with pytest.raises(UserError, match="holds no text"):
        scores(Perplexity(text=empty), "next_token", own, **keys)
    with pytest.raises(UserError, match="holds no passage of two words"):
        scores(Lambada(text=corpus_of(tmp_path / "words", "jsonl", ["one", "two"])), "next_token", own, **keys)
    for evaluator in (NextTokenLoss(), Perplexity(), Lambada(text=own)):
        with pytest.raises(UserError, match="this evaluator needs task.name='next_token', not 'masked_token'"):
            scores(evaluator, "masked_token", own, **keys)
