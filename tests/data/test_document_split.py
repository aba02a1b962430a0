"""The held-out documents of a corpus depend on each document alone; one continuous text keeps its end as test text."""

import functools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_jax.data.text import corpus, corpus_files, document_split
from ssl_jax.data.text.document_split import split_documents
from ssl_jax.errors import UserError

TEXTS = [f"document {i} " + "word " * (i % 5) for i in range(60)]


def open_kind(kind, folder, texts):
    """A corpus of these documents, in this order."""
    if kind == "files":
        for i, text in enumerate(texts):
            (folder / f"{i:03d}.txt").write_text(text)
        return corpus_files.open_documents(f"text:{folder}/*.txt")
    if kind == "jsonl":
        (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return corpus_files.open_documents(f"jsonl:{folder}/a.jsonl")
    separator = {"line": "\n", "blank_line": "\n\n"}[kind]
    (folder / "a.txt").write_text(separator.join(texts) + separator)
    return corpus_files.open_documents(f"text:{folder}/a.txt", documents=kind)


def documents(corpus):
    return [text.strip() for text in corpus_files.whole_documents(corpus)]


KINDS = ("files", "jsonl", "line", "blank_line")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_document_stays_on_its_side(kind, large, tmp_path, monkeypatch):
    """When others are added in front, behind and between, removed, or put in another order; in a large corpus too."""
    monkeypatch.setattr(document_split, "HASHED", 0 if large else 1 << 26)
    sides = []
    for name, texts in (("few", TEXTS[10:40]), ("more", TEXTS), ("turned", TEXTS[::-1])):
        (tmp_path / name).mkdir()
        opened = functools.partial(open_kind, kind, tmp_path / name, texts)
        train, test = (documents(split_documents(opened, 0.3, test=test)) for test in (False, True))
        assert sorted(train + test) == sorted(text.strip() for text in texts) and len(test) > 0
        sides.append(set(test))
    few, more, turned = sides
    assert more == turned and few == {text for text in more if text in {t.strip() for t in TEXTS[10:40]}}


def test_equal_documents_lie_on_one_side(tmp_path):
    texts = TEXTS[:20] * 3
    train, test = (documents(split_documents(lambda: open_kind("jsonl", tmp_path, texts), 0.4, test=t)) for t in (False, True))
    assert not set(train) & set(test) and len(train) + len(test) == 60


@given(count=st.integers(2, 6), share=st.floats(0.01, 0.99))
@settings(max_examples=20, deadline=None)
def test_a_small_corpus_has_a_document_on_either_side(count, share):
    rows = lambda: corpus_files.Rows("memory", tuple(TEXTS[:count]))
    assert all(documents(split_documents(rows, share, test=test)) for test in (False, True))


@pytest.mark.parametrize("kind", KINDS)
def test_reading_goes_on_between_documents(kind, tmp_path, monkeypatch):
    """From any place where a piece ends, the rest is the same; a document of several pieces is kept whole."""
    monkeypatch.setattr(corpus_files, "PIECE", 16)
    monkeypatch.setattr(corpus_files, "BLOCK", 64)
    monkeypatch.setattr(document_split, "KEY", 11)  # shorter than a piece, as in earnest
    texts = [text * 4 for text in TEXTS[:20]]
    part = split_documents(lambda: open_kind(kind, tmp_path, texts), 0.5, test=True)
    pieces = list(part.pieces(0, part.size))
    text = lambda pieces: "".join("|" * piece.first + piece.text for piece in pieces)
    places = [i for i, piece in enumerate(pieces) if piece.end >= 0]
    assert len(places) > 2
    for i in places:
        assert text(part.pieces(pieces[i].end, part.size)) == text(pieces[i + 1 :])


def test_the_split_of_a_run(tmp_path):
    """The tokens are those of the documents; one continuous text keeps its end as test text (nanoGPT's split)."""
    keys = dict(block=4, batch_size=2, holdout=0.3, tokenizer=dict(name="bytes"), cache=str(tmp_path / "cache"))
    build = lambda uri, split, **more: corpus.build(dict(train=uri) | keys | more, split=split, train=False)
    open_kind("line", tmp_path, TEXTS)
    uri = f"text:{tmp_path}/a.txt"
    test = build(uri, "test", documents="line")
    wanted = documents(split_documents(lambda: open_kind("line", tmp_path, TEXTS), 0.3, test=True))
    assert test.info.tokenizer.decode(np.asarray(test.example.tokens)).split("document")[1:] == [
        text.removeprefix("document") for text in map(lambda t: next(x for x in TEXTS if x.strip() == t), wanted)
    ]
    assert test.source.name == f"{uri} (the 30 % of its documents that are held out)"
    whole = "".join(TEXTS)
    (tmp_path / "one.txt").write_text(whole)
    for split, name, text in (
        ("train", "without its", whole[: int(0.7 * len(whole))]),
        ("test", "its", whole[int(0.7 * len(whole)) :]),
    ):
        dataset = build(f"text:{tmp_path}/one.txt", split)
        assert bytes(np.asarray(dataset.example.tokens).astype(np.uint8)).decode() == text
        assert dataset.fingerprint()["source"] == f"text:{tmp_path}/one.txt ({name} last 30 %)"


def test_equal_documents_alone_cannot_be_split(tmp_path):
    section = dict(train="", block=4, batch_size=2, holdout=0.3, tokenizer=dict(name="bytes"), cache=str(tmp_path / "cache"))
    open_kind("jsonl", tmp_path, ["the same"] * 8)
    with pytest.raises(UserError, match="held out.*holds 0 tokens"):
        corpus.build(section | dict(train=f"jsonl:{tmp_path}/a.jsonl"), split="test")
