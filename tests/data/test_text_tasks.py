"""Labelled sentences, pairs and parallel text: what is read, how it is cut, and what a user is told."""

import gzip
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_jax.data.sources.text_columns import read_table
from ssl_jax.data.text.encoding import encode_sentences
from ssl_jax.data.text.supervised import labelled_text, parallel_text
from ssl_jax.data.text.tokenizers import ByteTokenizer
from ssl_jax.errors import UserError

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[BOS]", "[EOS]")
BYTES = dict(name="bytes", special_tokens=SPECIAL)
TOKENIZER = ByteTokenizer(SPECIAL)
PAD, CLS, SEP, BOS, EOS = range(256, 261)


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(tmp_path / name)

    return write


def dataset(train, test=None, split="train", **section):
    section = dict(train=train, test=test or train, tokenizer=BYTES, max_length=16) | section
    return labelled_text(section, split=split, train=split == "train")


# Tables -------------------------------------------------------------------------------------------------------------


def test_columns_are_found_by_name_and_by_number(write):
    expected = {"text": ("a b", "c"), "label": ("1", "0")}
    named = read_table("tsv:" + write("n.tsv", "label\tsentence\n1\ta b\n0\tc\n"), {"text": "sentence", "label": "label"})
    assert named.columns == expected
    numbered = read_table("tsv:" + write("b.tsv.gz", "x\t1\t\ta b\r\nx\t0\t*\tc\r\n"), {"text": 3, "label": 1})
    assert numbered.columns == expected
    skipped = read_table("tsv:" + write("h.tsv", "text\tlabel\na b\t1\nc\t0"), {"text": 0, "label": 1}, header=True)
    assert skipped.columns == expected
    lines = write("n.jsonl", json.dumps({"text": "a b", "label": 1}) + "\n\n" + json.dumps({"label": 0, "text": "c"}))
    assert read_table("jsonl:" + lines, {"text": "text", "label": "label"}).columns == expected


def test_quotes_mean_something_in_a_csv_only(write):
    content = 'text{0}label\n"a{0}""b""\nc"{0}1\n'
    table = read_table("csv:" + write("q.csv", content.format(",")), {"text": "text", "label": "label"})
    assert table.columns == {"text": ('a,"b"\nc',), "label": ("1",)}
    table = read_table("tsv:" + write("q.tsv", 'text\tlabel\n"quoted" word\u2028\t1\n'), {"text": "text", "label": "label"})
    assert table.columns["text"] == ('"quoted" word\u2028',)


def test_trec_questions(write):
    path = write(
        "t", "DESC:manner How did serfdom develop ?\nHUM:ind Who wrote \u00abL\xe9onore\u00bb : a study ?\n".encode("latin-1")
    )
    table = read_table("trec:" + path, {"text": "text", "label": "label"})
    assert table.columns["label"] == ("DESC", "HUM")
    assert table.columns["text"][1] == "Who wrote «Léonore» : a study ?"
    fine = read_table("trec:" + path, {"text": "text", "label": "fine_label"})
    assert fine.columns["label"] == ("manner", "ind")


def test_a_table_error_names_the_file_the_place_and_the_mend(write):
    columns = {"text": "sentence", "label": "label"}
    cases = {
        "there is no column 'sentence', only 'text', 'label'; set data.columns": ("a.tsv", "text\tlabel\nx\t1\n", columns),
        "is empty": ("b.tsv", "", columns),
        "is empty; expected rows": ("c.tsv", "sentence\tlabel\n", columns),
        "line 3 has 1 columns, expected 2 as in line 1": ("d.tsv", "sentence\tlabel\na\t1\nb\n", columns),
        "line 2 is not UTF-8 \\(byte 15 of the file\\)": ("e.tsv", b"sentence\tlabel\n\xff\t1\n", columns),
        "line 2 is not JSON": ("f.jsonl", '{"sentence": "a", "label": 1}\n{"sentence": \n', columns),
        "line 1: there is no column 'label'": ("g.jsonl", '{"sentence": "a", "lable": 1}\n', columns),
        "line 2: text is null, expected text": ("i.jsonl", '{"sentence": "a", "label": 1}\n{"label": 2}\n', columns),
        "line 1 is 'no colon here'": ("h.trec", "no colon here\n", {"text": "text", "label": "label"}),
    }
    for message, (name, content, wanted) in cases.items():
        path = write(name, content)
        with pytest.raises(UserError, match=message) as error:
            read_table(f"{name.split('.')[1]}:{path}", wanted)
        assert path in str(error.value) and "\n" not in str(error.value)


def test_parallel_files_must_be_aligned(write):
    a, b = write("a.en", "one\ntwo\n"), write("b.de", "eins\n")
    with pytest.raises(UserError, match="2 and 1 lines"):
        read_table(f"parallel:{a},{b}", {"source": "source", "target": "target"})
    with pytest.raises(UserError, match="expected two files"):
        read_table(f"parallel:{a}", {"source": "source", "target": "target"})


# Labelled text ------------------------------------------------------------------------------------------------------


def test_sentences_become_arrays_of_one_shape(write):
    data = dataset("tsv:" + write("a.tsv", "text\tlabel\nab\tyes\n\tno\nlong enough to be cut\tyes\n"))
    assert data.info.classes == ("no", "yes") and list(data.labels()) == [1, 0, 1]
    assert data.info.extra["truncated"] == 1
    raw = data.rows(np.arange(3))
    batch = jax.jit(lambda raw: data.on_device(raw, None))(raw)
    assert list(batch["tokens"][0][:5]) == [CLS, ord("a"), ord("b"), SEP, PAD]
    assert list(batch["segments"].sum(axis=1)) == [4, 2, 16]
    assert batch["tokens"][2][-1] == SEP and int(batch["token_types"].sum()) == 0
    for name, shape in data.info.shapes.items():
        assert batch[name].shape[1:] == shape.shape and batch[name].dtype == shape.dtype


def test_whole_numbers_keep_their_order_and_classes_can_be_given(write):
    path = "tsv:" + write("a.tsv", "text\tlabel\na\t10\nb\t9\nc\t-1\n")
    assert dataset(path).info.classes == ("-1", "9", "10")
    assert dataset(path, classes=("9", "10", "-1")).info.classes == ("9", "10", "-1")


def test_the_test_split_uses_the_training_splits_classes(write):
    train = "tsv:" + write("a.tsv", "text\tlabel\na\tx\nb\ty\nc\tz\n")
    test = "tsv:" + write("b.tsv", "content\tlabel\na\tz\n")
    data = dataset(train, test, split="test", test_columns=dict(text="content"))
    assert list(data.labels()) == [2] and data.info.classes == ("x", "y", "z")
    with pytest.raises(UserError, match="line 2: label 'w' does not occur in training .* has x, y, z"):
        dataset(train, "tsv:" + write("c.tsv", "text\tlabel\na\tw\n"), split="test")
    with pytest.raises(UserError, match="holds one label only"):
        dataset("tsv:" + write("d.tsv", "text\tlabel\na\tw\n"))


def test_a_fraction_of_the_labels_is_balanced_and_nested(write):
    rows = "".join(f"sentence {i}\t{'rare' if i % 10 == 0 else 'often'}\n" for i in range(100))
    path = "tsv:" + write("a.tsv", "text\tlabel\n" + rows)
    some = dataset(path, fraction=0.1)
    assert some.size == 10 and list(np.bincount(some.labels())) == [5, 5]
    more = dataset(path, fraction=0.2)
    texts = lambda d: {d.source[i]["text"] for i in range(d.size)}
    assert texts(some) <= texts(more)
    assert texts(dataset(path, fraction=0.1, fraction_seed=1)) != texts(some)
    assert dataset(path, fraction=0.1, split="test").size == 100


def test_a_held_out_part_of_the_training_split_stands_in_for_the_test_split(write):
    path = "tsv:" + write("a.tsv", "text\tlabel\n" + "".join(f"sentence {i}\t{i % 2}\n" for i in range(50)))
    options = dict(held_out=0.1, fraction=0.8, test="tsv:not_read.tsv")
    train, held = (dataset(path, split=split, **options) for split in ("train", "test"))
    texts = lambda d: {d.source[i]["text"] for i in range(d.size)}
    assert train.size + held.size == 40 and 2 <= held.size <= 12 and not texts(train) & texts(held)
    assert texts(train) | texts(held) == texts(dataset(path, fraction=0.8))


def test_without_a_test_file_a_tenth_is_held_out_by_its_text(write):
    lines = [f"sentence {i}\t{i % 2}\n" for i in range(60)]
    texts = lambda d: {d.source[i]["text"] for i in range(d.size)}

    def parts(name, lines):
        keys = dict(train="tsv:" + write(name, "".join(["text\tlabel\n", *lines])), tokenizer=BYTES, max_length=16)
        return [texts(labelled_text(keys, split=split, train=False)) for split in ("train", "test")]

    train, test = parts("a.tsv", lines)
    assert train | test == {f"sentence {i}" for i in range(60)} and not train & test and test
    longer = parts("b.tsv", ["new\t0\n", *lines, *(f"more {i}\t1\n" for i in range(60))])
    assert not train & longer[1] and test <= longer[1]


@settings(max_examples=50, deadline=None)
@given(st.text("abcdefgh", max_size=20), st.text("ABCDEFGH", max_size=20), st.integers(4, 40))
def test_a_pair_that_is_too_long_loses_the_end_of_its_longer_sentence(a, b, limit):
    tokens, kinds, length, truncated = encode_sentences(TOKENIZER, [a], [b], limit)
    ids, n = tokens[0], int(length[0])
    first, second = (ids[:n][kinds[0][:n] == kind] for kind in (0, 1))
    assert first[0] == CLS and first[-1] == SEP and second[-1] == SEP  # special tokens stay
    assert np.all(ids[n:] == PAD)
    kept_a, kept_b = (bytes(list(part)).decode() for part in (first[1:-1].tolist(), second[:-1].tolist()))
    assert a.startswith(kept_a) and b.startswith(kept_b)
    assert truncated == (len(a) + len(b) + 3 > limit)
    if truncated:
        assert n == limit
        # cut from the longer one first: either only it was cut, or both have the same length but for one token
        assert kept_a == a or kept_b == b or abs(len(kept_a) - len(kept_b)) <= 1
        assert kept_a == a or len(kept_a) >= len(kept_b) - 1
        assert kept_b == b or len(kept_b) >= len(kept_a) - 1
    else:
        assert (kept_a, kept_b) == (a, b)


def test_settings_are_checked(write):
    path = "tsv:" + write("a.tsv", "text\tlabel\na\tx\nb\ty\n")
    with pytest.raises(UserError, match="data.fraction=2.0: must lie in"):
        dataset(path, fraction=2.0)
    with pytest.raises(UserError, match="unknown key data.maxlength; did you mean data.max_length"):
        dataset(path, maxlength=3)
    with pytest.raises(UserError, match="no such file; did you mean .*a.tsv"):
        dataset(path.replace("a.tsv", "aa.tsv"))


def test_a_trained_vocabulary_is_kept_in_the_work_directory(write, tmp_path):
    path = "tsv:" + write("a.tsv", "text\tlabel\nthe cat sat\tx\nthe dog ran\ty\n")
    section = dict(train=path, test=path, tokenizer=dict(name="wordpiece", size=60, min_frequency=1))
    first = labelled_text(section, split="train", train=True, workdir=str(tmp_path / "run"))
    again = labelled_text(section, split="test", train=False, workdir=str(tmp_path / "run"))
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").is_file()
    assert again.info.tokenizer.key == first.info.tokenizer.key


# Parallel text ------------------------------------------------------------------------------------------------------


def test_parallel_text(write):
    a, b = write("a.en", "ab\nabcdefghij\n"), write("b.de", "c\nd\n")
    section = dict(
        train=f"parallel:{a},{b}", test=f"parallel:{a},{b}", tokenizer=BYTES, max_source_length=6, max_target_length=4
    )
    data = parallel_text(section, split="train", train=True)
    batch = data.on_device(data.rows(np.arange(2)), None)
    assert list(batch["source"][0]) == [ord("a"), ord("b"), EOS, PAD, PAD, PAD]
    assert list(batch["target"][0]) == [BOS, ord("c"), EOS, PAD, PAD]
    assert list(batch["source_segments"].sum(axis=1)) == [3, 6] and list(batch["target_segments"].sum(axis=1)) == [3, 3]
    assert data.info.extra["truncated"] == 1
    for name, shape in data.info.shapes.items():
        assert batch[name].shape[1:] == shape.shape
    assert data.source[0] == {"source": "ab", "target": "c"}
    with pytest.raises(UserError, match=r"add \[BOS\] and \[EOS\]"):
        parallel_text(section | dict(tokenizer=dict(name="bytes")), split="train", train=True)
