"""Tokenizers: what they encode they decode, they survive saving, and they agree with transformers id for id."""

import json

import pytest

from ssl_jax.data.text.tokenizer_files import from_settings, load
from ssl_jax.data.text.tokenizer_training import train
from ssl_jax.data.text.tokenizers import BERT_SPECIAL, ByteTokenizer, CharacterTokenizer, TokenizerSettings
from ssl_jax.errors import UserError

TRICKY = [
    "", " ", "hello world", "  leading and trailing  ", "naïve café Ångström É e\u0301 ß İ ﬁ", "日本語と中文 text 한국어",
    "🤗🙂👩‍👩‍👧 emoji", "don't I'll we've they'd", "a\n\nb\t c   d  \r\n", "<|endoftext|>x", "the [MASK] sat [CLS]",
    "x" * 150, "\u200b\u00a0\x00\ufffd", "1234 $5.00 (foo)-bar_baz", "עברית العربية हिन्दी", "UPPER Lower MiXeD",
]  # fmt: skip
CORPUS = ["the cat sat on the mat and the dog sat on the log", "don't naïve café 日本語 hello world 1234", " leading"] * 3


def trained(name, **options):
    return train(TokenizerSettings(name=name, **options), CORPUS)


@pytest.mark.parametrize("text", TRICKY)
def test_lossless_tokenizers_decode_what_they_encode(text):
    """Bytes, byte-level BPE and, on its own text, characters give back exactly the text."""
    for tokenizer in (ByteTokenizer(), trained("bpe", size=300), train(TokenizerSettings(), [text])):
        if "<|endoftext|>" not in text:
            assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "tokenizer",
    [
        CharacterTokenizer("abc ", BERT_SPECIAL),
        ByteTokenizer(("[MASK]",)),
        trained("bpe", size=300),
        trained("wordpiece", size=120),
    ],
    ids=["characters", "bytes", "bpe", "wordpiece"],
)
def test_saving_keeps_ids_key_and_special_tokens(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = load(tmp_path)
    for text in ("abc cab", "a", ""):
        assert again.encode(text, special=True) == tokenizer.encode(text, special=True)
    assert again.key == tokenizer.key
    assert again.size == tokenizer.size
    for role in ("pad_id", "mask_id", "cls_id", "sep_id", "unk_id", "bos_id", "eos_id"):
        assert getattr(again, role) == getattr(tokenizer, role)


def test_different_tokenizers_have_different_keys():
    keys = {t.key for t in (trained("bpe", size=300), trained("bpe", size=301), trained("wordpiece", size=120))}
    keys |= {CharacterTokenizer("ab").key, CharacterTokenizer("ba").key, ByteTokenizer().key, ByteTokenizer(("[MASK]",)).key}
    assert len(keys) == 7


def test_characters_are_numbered_by_code_point_and_specials_follow():
    """nanoGPT's numbering: sorted characters first."""
    tokenizer = train(TokenizerSettings(special_tokens=("[MASK]",)), ["cab\n", "d"])
    assert [tokenizer.token(i) for i in range(tokenizer.size)] == ["\n", "a", "b", "c", "d", "[MASK]"]
    assert tokenizer.mask_id == 5
    assert tokenizer.pad_id is None


def test_offsets_point_at_the_text():
    """Each token of plain words spells its own range of characters."""
    text = "hello café 日本 x"
    for tokenizer in (ByteTokenizer(), train(TokenizerSettings(), [text]), trained("bpe", size=300)):
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text)
        assert all(0 <= a <= b <= len(text) for a, b in offsets)
        assert {i for a, b in offsets for i in range(a, b)} == set(range(len(text)))
    ids, offsets = trained("wordpiece", size=120).encode_with_offsets("the cat")
    assert "".join("the cat"[a:b] for a, b in offsets) == "thecat"


def test_pairs_have_segment_ids():
    tokenizer = CharacterTokenizer("ab", BERT_SPECIAL)
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    assert tokenizer.encode_pair("ab", "b") == ([cls, 0, 1, sep, 1, sep], [0, 0, 0, 0, 1, 1])
    assert CharacterTokenizer("ab").encode_pair("ab", "b") == ([0, 1, 1], [0, 0, 1])


def test_words_begin_where_they_should():
    """`continues` is what whole-word masking goes by."""
    pieces = trained("wordpiece", size=120)
    continuing = [pieces.token(i).startswith("##") for i in range(pieces.size)]
    assert any(continuing) and pieces.continues.tolist() == continuing
    letters = CharacterTokenizer("a b", ("[MASK]",))
    assert letters.continues.tolist() == [True, False, True, False]
    bpe = trained("bpe", size=300)
    assert not bpe.continues[bpe.encode(" the")[0]]
    assert bpe.continues[bpe.encode("cat")[0]]


@pytest.mark.parametrize(("name", "size"), [("bpe", 300), ("wordpiece", 120)])
def test_training_gives_the_same_vocabulary_every_time(name, size, child):
    """In another process too: the library's WordPiece trainer does not."""
    code = f"""
from tests.data.test_text import trained
print(trained({name!r}, size={size}).key)
"""
    assert child(code).strip() == trained(name, size=size).key


def test_a_published_tokenizer_json_is_neither_cut_nor_padded(tmp_path):
    """MiniLM's file asks for 128 tokens, padded; here a text keeps its own length."""
    inner = trained("wordpiece", size=120).inner
    inner.enable_truncation(4)
    inner.enable_padding(length=64)
    inner.save(str(tmp_path / "tokenizer.json"))
    text = "the cat sat on the mat and the dog"
    assert load(tmp_path).encode(text) == trained("wordpiece", size=120).encode(text)


def test_unknown_characters():
    with pytest.raises(UserError, match=r"character 'x' \(number 1 of this piece of text\) is not among the tokenizer's 2"):
        CharacterTokenizer("ab").encode("axb")
    assert CharacterTokenizer("ab", ("[UNK]",)).encode("axb") == [0, 2, 1]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(name="sentencepiece"), "name='sentencepiece': must be one of characters"),
        (dict(name="gpt2"), "path is missing"),
        (dict(name="bpe", size=1), "size=1: must be at least 2"),
    ],
)
def test_wrong_settings_are_named(settings, says):
    with pytest.raises(UserError, match=says):
        TokenizerSettings(**settings)


def test_wrong_files_are_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{]")
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    (tmp_path / "encoder.json").write_text("{}")
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nh e l\n")
    for settings, says in (
        (dict(name="file", path=str(tmp_path)), "tokenizer.json: is not JSON"),
        (dict(name="bert", path=str(tmp_path)), r"vocab.txt: lacks \[UNK\]"),
        (dict(name="bert", path=str(tmp_path / "none.txt")), "none.txt: there is no such file"),
        (dict(name="gpt2", path=str(tmp_path)), "vocab.bpe: line 2: expected two tokens, found 'h e l'"),
    ):
        with pytest.raises(UserError, match=says):
            from_settings(TokenizerSettings(**settings))
    with pytest.raises(UserError, match=r"the vocabulary \(2 tokens\) lacks \[MASK\]; add it to data.tokenizer.special_tokens"):
        CharacterTokenizer("ab").require("mask")
    with pytest.raises(UserError, match="must be at least 257 for byte-level BPE"):
        trained("bpe", size=100)


@pytest.mark.parity
def test_gpt2_ids_equal_transformers(tmp_path):
    """A small vocabulary in GPT-2's file format, read by both."""
    from transformers import GPT2Tokenizer

    inner = json.loads(train(TokenizerSettings(name="bpe", size=340), CORPUS)._spec())["model"]
    vocabulary = {token: i for i, token in enumerate(sorted(inner["vocab"], key=inner["vocab"].get))}
    (tmp_path / "encoder.json").write_text(json.dumps(vocabulary))
    merges = "\n".join(" ".join(merge) for merge in inner["merges"])
    (tmp_path / "vocab.bpe").write_text(f"#version: 0.2\n{merges}\n")
    ours = from_settings(TokenizerSettings(name="gpt2", path=str(tmp_path)))
    theirs = GPT2Tokenizer(vocab=str(tmp_path / "encoder.json"), merges=str(tmp_path / "vocab.bpe"))
    assert len(inner["merges"]) > 50
    for text in TRICKY + CORPUS:
        assert ours.encode(text) == theirs(text)["input_ids"], text


@pytest.mark.parity
@pytest.mark.parametrize("lowercase", [True, False])
def test_bert_ids_equal_transformers(tmp_path, lowercase):
    """A small vocabulary in BERT's file format, read by both; single texts, pairs and segment ids."""
    from transformers import BertTokenizer

    pieces = trained("wordpiece", size=150)
    words = [pieces.token(i) for i in range(pieces.size)]
    extra = [c for c in "éÉ日中語🤗$().-_'naive" if c not in words]
    (tmp_path / "vocab.txt").write_text("\n".join([*words, *dict.fromkeys(extra)]) + "\n")
    ours = from_settings(TokenizerSettings(name="bert", path=str(tmp_path / "vocab.txt"), lowercase=lowercase))
    theirs = BertTokenizer(vocab=str(tmp_path / "vocab.txt"), do_lower_case=lowercase)
    for text in TRICKY + CORPUS:
        assert ours.encode(text, special=True) == theirs(text)["input_ids"], text
    for a, b in zip(TRICKY, TRICKY[1:], strict=False):
        expected = theirs(a, b)
        assert ours.encode_pair(a, b) == (expected["input_ids"], expected["token_type_ids"])


@pytest.mark.parity
def test_clip_ids_equal_transformers(tmp_path):
    """A small merge list in CLIP's file format against CLIPTokenizer on the same vocabulary."""
    from transformers import CLIPTokenizer

    merges = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>"), ("h", "e"), ("l", "o</w>"), ("1", "2</w>")]
    (tmp_path / "merges.txt").write_text('"bpe_simple_vocab"#version: 0.2\n' + "\n".join(" ".join(m) for m in merges) + "\n")
    ours = from_settings(TokenizerSettings(name="clip", path=str(tmp_path / "merges.txt")))
    theirs = CLIPTokenizer(vocab={ours.token(i): i for i in range(ours.size)}, merges=merges)
    for text in TRICKY + CORPUS:
        assert ours.encode(text, special=True) == theirs(text)["input_ids"], text
