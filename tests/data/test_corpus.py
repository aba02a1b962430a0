"""Corpora: tokenised once, never stale, resumable, and cut into windows and sequences as the papers say."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.data.pipeline import Stream, eval_batches
from ssl_jax.data.text import corpus, token_array, tokenizer_training, tokenizers, vocabularies
from ssl_jax.data.text import corpus_files as documents
from ssl_jax.data.text.corpus_files import open_documents
from ssl_jax.data.text.sequence_packing import gather_spans
from ssl_jax.errors import UserError
from tests import tokenizer_toys as toys

SPECIAL = tokenizers.BERT_SPECIAL
WORDS = "the cat sat on a mat; naïve café 日本語, don't — 🤗 stop.\n".split(" ")


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def random_text(size, seed=0):
    rng = np.random.default_rng(seed)
    words = rng.choice(np.array([*WORDS, "\n", "\n\n", "  "], dtype=object), size)
    return " ".join(words)


@pytest.fixture
def small_blocks(monkeypatch):
    """Files are read 64 bytes at a time, pieces and commits are as small."""
    monkeypatch.setattr(documents, "BLOCK", 64)
    monkeypatch.setattr(documents, "PIECE", 40)
    monkeypatch.setattr(token_array, "COMMIT", 200)
    monkeypatch.setattr(token_array, "BATCH", 3)


def section(path, **options):
    return dict(train=f"text:{path}", block=8, batch_size=4, cache=str(path.parent / "cache"), **options)


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [random_text(300), "日本語" * 60, "x" * 500, "\n" * 200 + "a"], ids=["mixed", "cjk", "word", "blank"]
)
def test_pieces_put_together_are_the_text(content, small_blocks, tmp_path):
    """Whatever the size of the blocks, and from whatever place reading goes on."""
    source = open_documents(f"text:{write(tmp_path / 'a.txt', content)}")
    pieces = list(source.pieces(0, source.size))
    assert "".join(p.text for p in pieces) == content
    assert [p.first for p in pieces] == [True] + [False] * (len(pieces) - 1)
    for i, piece in enumerate(pieces[:-1]):
        assert "".join(p.text for p in source.pieces(piece.end, source.size)) == "".join(p.text for p in pieces[i + 1 :])


def test_any_cut_of_the_bytes_gives_each_character_to_one_side(tmp_path):
    """A holdout that falls inside a character neither loses nor repeats it."""
    content = "aé日🤗b"
    source = open_documents(f"text:{write(tmp_path / 'a.txt', content)}")
    for middle in range(source.size + 1):
        parts = [p.text for lo, hi in ((0, middle), (middle, source.size)) for p in source.pieces(lo, hi)]
        assert "".join(parts) == content


def test_tokens_of_pieces_are_the_tokens_of_the_whole(small_blocks, tmp_path):
    """Reading in blocks changes no token of BPE or WordPiece."""
    content = random_text(400)
    source = open_documents(f"text:{write(tmp_path / 'a.txt', content)}")
    for name, size in (("bpe", 400), ("wordpiece", 150), ("characters", 2)):
        tokenizer = tokenizer_training.train(tokenizers.TokenizerSettings(name=name, size=size), [content])
        array = token_array.token_array(source, tokenizer, cache=tmp_path / "cache")
        assert array.tokens.tolist() == tokenizer.encode(content)
        assert (array.characters, array.bytes) == (len(content), len(content.encode()))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("file", ["a b\n\nc\nd", "e"]), ("line", ["a b", "c", "d", "e"]), ("blank_line", ["a b", "c\nd", "e"])],
)
def test_documents_of_text_files(kind, expected, tmp_path):
    write(tmp_path / "1.txt", "a b\n\nc\nd")
    write(tmp_path / "2.txt", "e")
    source = open_documents(f"text:{tmp_path}/*.txt", documents=kind)
    found = []
    for piece in source.pieces(0, source.size):
        if piece.first:
            found.append(piece.text)
        elif piece.text:
            found[-1] += piece.text
    assert found == expected


def test_jsonl_larger_than_memory_reads_like_a_small_one(tmp_path, monkeypatch):
    lines = [json.dumps({"text": t}) for t in ("first one", "zweites é", "third")]
    uri = f"jsonl:{write(tmp_path / 'a.jsonl', chr(10).join(lines) + chr(10))}"
    small = open_documents(uri)
    monkeypatch.setattr(documents, "HASHED", 1)
    large = open_documents(uri)
    assert isinstance(large, documents.JsonLines)
    texts = lambda source: [(p.text, p.first) for p in source.pieces(0, source.size)]
    assert texts(large) == texts(small)


# The token array --------------------------------------------------------------------------------------------------------


def test_an_interrupted_pass_goes_on_where_it_stopped(small_blocks, tmp_path):
    """Killed anywhere, the array is in the end that of an undisturbed pass, and committed text is not tokenised again."""
    content = random_text(400)
    source = open_documents(f"text:{write(tmp_path / 'a.txt', content)}", documents="blank_line")
    tokenizer = tokenizers.ByteTokenizer(("<|endoftext|>",))
    whole = token_array.token_array(source, tokenizer, cache=tmp_path / "whole")
    assert len(whole.documents) > 5

    class Killed(Exception):
        pass

    class Failing(tokenizers.ByteTokenizer):
        calls = 0

        def encode_batch(self, texts, special=False):
            Failing.calls += 1
            if Failing.calls % 4 == 0:
                raise Killed
            return super().encode_batch(texts, special)

    attempts = 0
    while True:
        attempts += 1
        try:
            array = token_array.token_array(source, Failing(("<|endoftext|>",)), cache=tmp_path / "killed")
            break
        except Killed:
            assert attempts < 200
    assert attempts > 3
    for name in ("tokens", "documents", "characters", "words", "bytes"):
        np.testing.assert_array_equal(getattr(array, name), getattr(whole, name))


def test_nothing_stale_is_reused(tmp_path):
    """Another text of the same size, another tokenizer, another range: another array. The same again: no tokenising."""
    path = write(tmp_path / "a.txt", "abab")
    calls = []

    class Counting(tokenizers.CharacterTokenizer):
        def encode_batch(self, texts, special=False):
            calls.append(texts)
            return super().encode_batch(texts, special)

    def tokens(tokenizer, stop=None):
        source = open_documents(f"text:{path}")
        return token_array.token_array(source, tokenizer, stop=stop, cache=tmp_path / "cache").tokens.tolist()

    assert tokens(Counting("ab")) == [0, 1, 0, 1]
    assert tokens(Counting("ab")) == [0, 1, 0, 1] and len(calls) == 1
    assert tokens(Counting("ba")) == [1, 0, 1, 0]
    assert tokens(Counting("ab"), stop=3) == [0, 1, 0]
    write(path, "bbaa")
    assert tokens(Counting("ab")) == [1, 1, 0, 0]


def test_separators_stand_between_documents_only(tmp_path):
    write(tmp_path / "1.txt", "ab")
    write(tmp_path / "2.txt", "b")
    source = open_documents(f"text:{tmp_path}/*.txt")
    array = token_array.token_array(source, tokenizers.CharacterTokenizer("ab", ("<|endoftext|>",)), cache=tmp_path / "cache")
    assert array.tokens.tolist() == [0, 1, 2, 1]
    assert array.documents.tolist() == [0, 3]


def test_a_tokenizer_of_another_corpus_is_not_reused(tmp_path):
    """A work directory keeps its tokenizer; once a run was started there, another corpus is refused."""
    path = write(tmp_path / "a.txt", "abcabc" * 20)
    workdir = tmp_path / "run"
    first = corpus.build(section(path), workdir=str(workdir)).info.tokenizer
    assert corpus.build(section(path), workdir=str(workdir)).info.tokenizer.key == first.key
    write(path, "abdabd" * 20)
    assert corpus.build(section(path), workdir=str(workdir)).info.tokenizer.token(2) == "d"
    write(path, "xyz" * 40)
    write(workdir / "config.json", "{}")
    with pytest.raises(UserError, match="this tokenizer was trained on another corpus"):
        corpus.build(section(path), workdir=str(workdir))


# Windows --------------------------------------------------------------------------------------------------------------


def test_training_windows_are_every_stretch_of_the_training_text(tmp_path):
    """Window i is tokens i ... i + block; the last tenth of the text is in none of them."""
    content = random_text(100)
    path = write(tmp_path / "a.txt", content.encode("ascii", "ignore").decode())
    dataset = corpus.build(section(path))
    whole = dataset.info.tokenizer.encode(path.read_text())
    train = whole[: int(len(whole) * 0.9)]
    assert dataset.size == len(train) - 8
    for i in (0, 1, dataset.size - 1):
        assert dataset.example(i, None)["tokens"].tolist() == train[i : i + 9]
    stream = Stream(dataset, batch_size=4, seed=0)
    on_device = stream.on_device(stream.resident, stream.host_batch(3), None)
    on_host = Stream(dataset, batch_size=4, seed=0, placement="host").host_batch(3)
    np.testing.assert_array_equal(on_device["tokens"], on_host["tokens"])


@pytest.mark.parametrize("size", [91, 97, 99, 100, 107])
def test_evaluation_predicts_every_token_once(size, tmp_path):
    """Label weights leave out what an earlier window has predicted; only the first token is never a label."""
    path = write(tmp_path / "a.txt", "".join(chr(97 + i % 26) for i in range(size)))
    write(tmp_path / "train.txt", "".join(chr(97 + i % 26) for i in range(size)))
    settings = section(tmp_path / "train.txt") | dict(test=f"text:{path}")
    dataset = corpus.build(settings, split="test", train=False)
    seen = np.zeros(size)
    for raw, mask in eval_batches(dataset, 4):
        for row in np.flatnonzero(mask):
            start = min(int(raw["index"][row]) * 8, size - 9)
            assert raw["tokens"][row].tolist() == [(start + j) % 26 for j in range(9)]
            seen[start + 1 : start + 9] += raw["label_weights"][row]
    assert seen.tolist() == [0] + [1] * (size - 1)
    everything = dataset.gather(dataset.resident, jnp.arange(dataset.size))
    np.testing.assert_array_equal(everything["label_weights"][-1], dataset.example(dataset.size - 1, None)["label_weights"])


def test_packed_documents_have_segments_and_positions(tmp_path):
    """The separator belongs to the document it ends; positions begin anew behind it."""
    path = write(tmp_path / "a.txt", "abc\nde\nf\nghij\nk\n")
    options = dict(packing="documents", documents="line", restart_positions=True, holdout=0.0)
    dataset = corpus.build(section(path, tokenizer=dict(special_tokens=("<|endoftext|>",)), **options))
    batch = dataset.on_device(dataset.gather(dataset.resident, jnp.array([0])), None)
    # a b c <> d e <> f <>
    assert batch["segments"][0].tolist() == [1, 1, 1, 1, 2, 2, 2, 3, 3]
    assert batch["positions"][0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1]


# Sequences --------------------------------------------------------------------------------------------------------------


def masked_section(path, **options):
    tokenizer = dict(name="wordpiece", size=200)
    return section(path, tokenizer=tokenizer, holdout=0.0, **(dict(documents="blank_line") | options)) | dict(block=16)


def story(documents=12, seed=0):
    rng = np.random.default_rng(seed)
    sentence = lambda: " ".join(rng.choice(["red", "green", "blue", "fish", "bird"], rng.integers(2, 9)))
    return "\n\n".join("\n".join(sentence() for _ in range(rng.integers(1, 9))) for _ in range(documents))


def test_sequences_cover_the_text_between_cls_and_sep(tmp_path):
    path = write(tmp_path / "a.txt", story())
    dataset = corpus.build_sequences(masked_section(path))
    tokenizer, tokens = dataset.info.tokenizer, np.asarray(dataset.example.tokens)
    rows = np.stack([dataset.example(i, None)["tokens"] for i in range(dataset.size)])
    assert (rows[:, 0] == tokenizer.cls_id).all() and (rows[:, -1] == tokenizer.sep_id).all()
    body = rows[:-1, 1:-1].ravel()
    np.testing.assert_array_equal(body, tokens[: len(body)])
    np.testing.assert_array_equal(rows[-1, 1:-1], tokens[-14:])


@pytest.mark.parametrize("short", [0.0, 0.5])
def test_no_sequence_crosses_a_document(short, tmp_path):
    """With packing="documents" the sequences are the documents, cut, and padded with segment 0."""
    path = write(tmp_path / "a.txt", story())
    settings = masked_section(path, packing="documents", short_sequences=short)
    dataset = corpus.build_sequences(settings)
    tokenizer = dataset.info.tokenizer
    found = []
    for i in range(dataset.size):
        example = dataset.example(i, None)
        body = example["tokens"][example["segments"] > 0]
        assert body[0] == tokenizer.cls_id and body[-1] == tokenizer.sep_id
        assert (example["tokens"][example["segments"] == 0] == tokenizer.pad_id).all()
        found += body[1:-1].tolist()
    expected = [t for part in story().split("\n\n") for t in tokenizer.encode(part)]
    assert found == expected


def test_sentence_pairs_follow_or_are_random(tmp_path):
    """B follows A in the text when is_random is 0, comes from another document when it is 1; both happen about equally."""
    path = write(tmp_path / "a.txt", story(60))
    dataset = corpus.build_sequences(masked_section(path, packing="pairs", duplicates=4))
    array, _ = corpus.load_tokens(
        corpus.read(corpus.TokensSettings, masked_section(path, packing="pairs"), "data"), dataset.info.tokenizer, "train"
    )
    document = lambda place: np.searchsorted(array.documents, place, side="right")
    table = dataset.example.table
    several = 0
    for a, a_length, b, b_length, is_random in table.tolist():
        assert a_length >= 1 and b_length >= 1 and a_length + b_length <= 13
        assert document(a) == document(a + a_length - 1)
        assert document(b) == document(b + b_length - 1)
        if is_random:
            assert document(a) != document(b)
        else:
            assert document(a) == document(b) and b >= a + a_length
            several += 1
        separator = dataset.info.tokenizer.sep_id
        assert separator not in array.tokens[a : a + a_length] and separator not in array.tokens[b : b + b_length]
    assert 0.3 < table[:, 4].mean() < 0.75
    assert several > 30
    example = dataset.example(0, None)
    first_sep = int(np.argmax(example["tokens"] == dataset.info.tokenizer.sep_id))
    assert example["token_types"].tolist()[: first_sep + 2] == [0] * (first_sep + 1) + [1]


def test_sequences_on_device_equal_those_of_the_host(tmp_path):
    path = write(tmp_path / "a.txt", story(30))
    for packing in corpus.PACKING:
        dataset = corpus.build_sequences(masked_section(path, packing=packing))
        index = jnp.arange(min(8, dataset.size))
        device = jax.jit(dataset.gather)(dataset.resident, index)
        for i in range(len(index)):
            host = dataset.example(i, None)
            assert set(host) == set(device) == set(dataset.info.shapes)
            for name, value in host.items():
                np.testing.assert_array_equal(device[name][i], value)


def test_spans_written_out():
    """[CLS] A [SEP] B [SEP] by hand."""
    tokens, rows = np.arange(100, 120), np.array([[2, 3, 10, 2, 1], [0, 2, 0, 0, 0]])
    out = gather_spans(np, tokens, rows, 9, (1, 2, 0))
    assert out["tokens"].tolist() == [[1, 102, 103, 104, 2, 110, 111, 2, 0], [1, 100, 101, 2, 0, 0, 0, 0, 0]]
    assert out["segments"].tolist() == [[1] * 8 + [0], [1] * 4 + [0] * 5]
    assert out["token_types"].tolist() == [[0] * 5 + [1] * 3 + [0], [0] * 9]
    assert out["is_random"].tolist() == [1, 0]


# Mistakes -------------------------------------------------------------------------------------------------------------


def test_bad_text_is_named_with_its_place(tmp_path):
    good = "abc " * 30
    cases = [
        (b"", {}, r"a.txt is empty"),
        (b"a", dict(holdout=0.0), r"holds 1 tokens, but data.block=8 needs at least 9; lower it"),
        (b"abc \xff\xfe def" * 9, {}, r"a.txt is not UTF-8 at byte 4; convert it, or set data.on_bad_example=\"skip\""),
        (good.encode(), dict(packing="documents"), "the tokenizer has no token that ends a document"),
        (good.encode(), dict(packing="pairs"), 'data.packing="pairs": is for masked-token tasks only'),
        (good.encode(), dict(holdout=1.5), r"data.holdout=1.5: must lie in \[0, 1\)"),
        (good.encode(), dict(packing="sentences"), "data.packing='sentences': must be one of windows"),
        (good.encode(), dict(stride=0), "data.stride=0: must be at least 1"),
    ]
    for content, options, says in cases:
        with pytest.raises(UserError, match=says):
            corpus.build(section(write(tmp_path / "a.txt", content), **options))
    with pytest.raises(UserError, match="none.txt: no file matches"):
        corpus.build(section(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="is a folder; write text:"):
        corpus.build(section(tmp_path))
    with pytest.raises(UserError, match=r"the vocabulary \(4 tokens\) lacks \[CLS\]"):
        corpus.build_sequences(section(write(tmp_path / "a.txt", good)))
    vocabulary = dict(name="bert", path=str(write(tmp_path / "vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\nabc\n")))
    with pytest.raises(UserError, match=r"path=.*vocab.txt: the vocabulary \(5 tokens\) lacks \[MASK\]; add it to the file"):
        corpus.build_sequences(section(tmp_path / "a.txt", tokenizer=vocabulary))
    write(tmp_path / "a.tsv", "text\tlabel\nabc\t1\n")
    with pytest.raises(UserError, match="there is no column 'body', only 'text', 'label'"):
        corpus.build(section(tmp_path / "a.tsv") | dict(train=f"tsv:{tmp_path}/a.tsv", column="body"))


def test_bad_lines_can_be_skipped_and_are_counted(tmp_path):
    path = write(tmp_path / "a.txt", b"abc abc abc\nbad \xff line\nabc abc abc\n")
    dataset = corpus.build(section(path, on_bad_example="skip", holdout=0.0))
    assert dataset.info.tokenizer.decode(dataset.example.tokens) == "abc abc abc\nabc abc abc\n"
    assert dataset.info.extra["skipped"] == 1


def test_columns_of_tables_are_documents(tmp_path):
    write(tmp_path / "a.tsv", "body\tlabel\nabc abc\t1\nde de de\t0\nxx\t1\n")
    settings = section(tmp_path / "a.tsv", column="body", holdout=0.0) | dict(train=f"tsv:{tmp_path}/a.tsv")
    dataset = corpus.build(settings)
    assert dataset.info.tokenizer.decode(dataset.example.tokens) == "abc abcde de dexx"
    assert dataset.info.extra["documents"] == 3


def test_gzipped_sources_are_read(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "hello there all"}\n'))
    dataset = corpus.build(section(tmp_path / "a", holdout=0.0) | dict(train=f"jsonl:{tmp_path}/a.jsonl.gz"))
    assert dataset.info.tokenizer.decode(dataset.example.tokens) == "hello there all"


def test_a_vocabulary_is_trained_once_for_all_work_directories(tmp_path, monkeypatch):
    """Another process, and another run, find it by the corpus and the settings; a damaged one is trained again."""
    settings = section(write(tmp_path / "a.txt", random_text(300)), tokenizer=dict(name="bpe", size=300))
    trained, train = [], tokenizer_training.train
    monkeypatch.setattr(tokenizer_training, "train", lambda *arguments: trained.append(1) or train(*arguments))

    def tokenizer(workdir, **changes):
        vocabularies._LAST.clear()  # as in a new process
        build = corpus.build(settings | changes, workdir=str(tmp_path / workdir))
        assert (tmp_path / workdir / "tokenizer" / "tokenizer.json").exists()
        return build.info.tokenizer.key

    first = tokenizer("one")
    assert tokenizer("two") == first and len(trained) == 1
    assert tokenizer("three", tokenizer=dict(name="bpe", size=310)) != first and len(trained) == 2
    for folder in (tmp_path / "cache").glob("tokenizer-*"):
        write(folder / "tokenizer.json", "{")
    assert tokenizer("four") == first and len(trained) == 3
    write(tmp_path / "a.txt", random_text(300, seed=1))
    assert tokenizer("five") != first and len(trained) == 4


# Gzip, other beginnings, and what a model's own tokenizer puts before a document -------------------------------------


def test_gzipped_text_is_the_text(small_blocks, tmp_path):
    """Two members, a byte order mark, and a holdout in the middle: the same tokens as of the plain file."""
    content = "\ufeff" + random_text(200)
    data = content.encode()
    plain = write(tmp_path / "plain.txt", content.removeprefix("\ufeff"))
    zipped = write(tmp_path / "a.txt.gz", gzip.compress(data[:100]) + gzip.compress(data[100:]))
    source = open_documents(f"text:{zipped}")
    assert source.size == len(data)
    assert "".join(p.text for p in source.pieces(0, source.size)) == plain.read_text()
    middle = source.size // 2
    halves = ["".join(p.text for p in source.pieces(*ends)) for ends in ((0, middle), (middle, source.size))]
    assert "".join(halves) == plain.read_text() and min(map(len, halves)) > 100
    dataset = corpus.build(section(zipped))
    assert dataset.info.tokenizer.decode(dataset.example.tokens) == data[3 : int(len(data) * 0.9)].decode()


def test_large_gzipped_lines_are_read_in_a_stream(monkeypatch, tmp_path):
    """From any place on, as those of the plain file."""
    monkeypatch.setattr(documents, "HASHED", 50)
    rows = [json.dumps({"text": f"row {i} " + "x" * i, "n": i}) for i in range(40)] + ['{"text": "half \\ud83d", "n": 1}', ""]
    zipped = write(tmp_path / "a.jsonl.gz", gzip.compress("\n".join(rows).encode()))
    plain = write(tmp_path / "a.jsonl", "\n".join(rows))
    sources = [open_documents(f"jsonl:{path}") for path in (plain, zipped)]
    assert all(isinstance(source, documents.JsonLines) for source in sources) and sources[0].size == sources[1].size
    for start in (0, 300, 900):
        texts = [[p.text for p in source.pieces(start, source.size)] for source in sources]
        assert texts[0] == texts[1] and texts[0][-1] == "half \ufffd"
    numbers = open_documents(f"jsonl:{zipped}", column="n")
    assert next(numbers.pieces(0, numbers.size)).text == "0"
    absent = open_documents(f"jsonl:{zipped}", column="other")
    with pytest.raises(UserError, match="the line at byte 0: other is missing or null"):
        list(absent.pieces(0, absent.size))


def test_damaged_gzip_files_are_named(tmp_path):
    data = gzip.compress(random_text(500).encode())
    with pytest.raises(UserError, match=r"a.txt.gz is a damaged gzip file \(.*\); download it again"):
        open_documents(f"text:{write(tmp_path / 'a.txt.gz', data[: len(data) // 2])}")


@pytest.mark.parametrize(
    ("kind", "causal"), [("metaspace", True), ("llama3", True), ("gpt2", True), ("roberta", False), ("bert", False)]
)
def test_documents_begin_as_the_tokenizer_has_it(kind, causal, tmp_path):
    """Of a causal model's corpus: begin-of-text, text, end-of-text; of another, and of GPT-2, the end-of-text only."""
    tokenizer = toys.KINDS[kind]()
    texts = ["", *toys.SENTENCES[:3], "", ""]
    tokenizer.save(tmp_path / "tokenizer")
    write(tmp_path / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = section(tmp_path / "a", holdout=0.0, tokenizer=dict(name="file", path=str(tmp_path / "tokenizer")))
    build = corpus.build if causal else corpus.build_sequences
    dataset = build(settings | dict(train=f"jsonl:{tmp_path}/a.jsonl", packing="documents"))
    first, last = tokenizer.document_prefix if causal else (), (tokenizer.separator_id,)
    expected = sum([[*first, *tokenizer.encode(text), *last] for text in toys.SENTENCES[:3]], [])[:-1]
    assert dataset.example.tokens.tolist() == expected
    assert dataset.info.extra["largest_token"] == max(expected)


def test_a_document_in_pieces_has_no_spaces_that_its_text_has_not(small_blocks, tmp_path):
    """A tokenizer that puts "▁" before every text gets the pieces of one document as one text."""
    content = " ".join(toys.SENTENCES * 4)
    tokenizer = toys.metaspace()
    array = token_array.token_array(open_documents(f"text:{write(tmp_path / 'a.txt', content)}"), tokenizer, cache=tmp_path)
    assert array.tokens.tolist() == tokenizer.encode(content)
