"""What begins, ends and pads a text is what the model's own files say; what stands around a text is what its tokenizer adds."""

import json

import numpy as np
import pytest
import tokenizers as t
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_jax.data.text.encoding import cut_pair, encode_sentences, encode_texts
from ssl_jax.data.text.tokenizer_files import from_settings, load
from ssl_jax.data.text.tokenizer_training import train
from ssl_jax.data.text.tokenizers import ByteTokenizer, CharacterTokenizer, FastTokenizer, TokenizerSettings
from ssl_jax.errors import UserError
from tests.tokenizer_toys import KINDS, LETTERS, SENTENCES, bert, bert_vocabulary, byte_level, llama3, metaspace, roberta


def written(folder, tokenizer, **files):
    tokenizer.save(folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return load(folder)


# Special tokens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "prefix", "begin", "stop", "document"),
    [
        ("metaspace", ["<s>"], ["<s>"], ["</s>"], ["<s>"]),
        ("llama3", ["<|begin_of_text|>"], ["<|begin_of_text|>"], ["<|end_of_text|>"], ["<|begin_of_text|>"]),
        ("gpt2", [], ["<|endoftext|>"], ["<|endoftext|>"], []),
        ("roberta", ["<s>"], ["<s>"], ["</s>"], ["<s>"]),
        ("bert", [], ["[SEP]"], [], []),
    ],
)
def test_what_begins_and_ends_a_text_by_its_kind(kind, prefix, begin, stop, document):
    """Begin-of-text and end-of-text are two tokens where the vocabulary has two."""
    tokenizer = KINDS[kind]()
    spelled = lambda ids: [tokenizer.token(i) for i in ids]
    assert spelled(tokenizer.prefix_ids) == prefix
    assert spelled(tokenizer.begin_ids) == begin
    assert spelled(tokenizer.stop_ids) == stop
    assert spelled(tokenizer.document_prefix) == document


BEGIN, END, TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"


@pytest.mark.parametrize(
    ("files", "bos", "eos", "stop"),
    [
        ({}, BEGIN, END, [END]),
        (dict(config=dict(bos_token_id=0, eos_token_id=[1, 2])), BEGIN, END, [END, TURN]),
        (dict(generation_config=dict(eos_token_id=[2]), config=dict(eos_token_id=1)), BEGIN, TURN, [TURN]),
        (dict(tokenizer_config=dict(eos_token=TURN)), BEGIN, TURN, [TURN]),
        (dict(tokenizer_config=dict(bos_token=dict(content=TURN)), special_tokens_map=dict(bos_token=END)), TURN, END, [END]),
        (dict(special_tokens_map=dict(bos_token=None)), None, END, [END]),
        (dict(tokenizer_config=dict(bos_token="<absent>")), BEGIN, END, [END]),
    ],
)
def test_the_directorys_files_decide_and_are_saved_with_the_tokenizer(tmp_path, files, bos, eos, stop):
    tokenizer = written(tmp_path / "a", llama3(), **files)
    tokenizer.save(tmp_path / "b")
    ids = tokenizer.vocabulary
    for found in (tokenizer, load(tmp_path / "b")):
        assert (found.bos_id, found.eos_id) == (ids.get(bos), ids[eos])
        assert found.stop_ids == tuple(ids[name] for name in stop)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()


def test_a_tokenizers_setting_adds_the_begin_of_text_or_leaves_it_out(tmp_path):
    without = written(tmp_path / "a", metaspace(), tokenizer_config=dict(add_bos_token=False))
    assert without.prefix_ids == () and without.begin_ids == (1,)
    added = written(tmp_path / "b", metaspace(post_processor=False), tokenizer_config=dict(add_bos_token=True))
    assert added.prefix_ids == (1,)


def test_damaged_files_are_named(tmp_path):
    llama3().save(tmp_path)
    (tmp_path / "generation_config.json").write_text("{]")
    with pytest.raises(UserError, match="generation_config.json: is not JSON"):
        load(tmp_path)


# Sizes ----------------------------------------------------------------------------------------------------------------


def test_a_token_that_comes_twice_keeps_the_numbers_of_the_lines(tmp_path):
    """An id is a line of vocab.txt, and the size the number of lines, so that every id lies below it."""
    vocabulary = [*bert_vocabulary(), "cat", "happy"]  # the last is a frequent word
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = from_settings(TokenizerSettings(name="bert", path=str(tmp_path / "vocab.txt")))
    assert tokenizer.size == len(vocabulary)
    assert tokenizer.encode("cat happy") == [len(vocabulary) - 2, len(vocabulary) - 1]
    assert tokenizer.token(vocabulary.index("cat")) == ""  # the earlier line stands for no text
    assert len(tokenizer.continues) == tokenizer.size


@pytest.mark.parametrize("added", [(), ("<new>",)])
def test_vocabularies_may_skip_ids(added):
    """A model's table must hold the largest id, however many tokens there are."""
    inner = t.Tokenizer(t.models.WordLevel({"[UNK]": 0, "a": 3, "b": 40}, unk_token="[UNK]"))
    inner.pre_tokenizer = t.pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(list(added))
    tokenizer = FastTokenizer(inner)
    assert tokenizer.size > max(tokenizer.encode("a b c <new>"))
    assert tokenizer.token(7) == "" and not tokenizer.continues.any()


# Around a text --------------------------------------------------------------------------------------------------------


def test_pairs_stand_as_their_tokenizer_joins_them():
    """BERT tells the second text by its type; RoBERTa has two separators and one type."""
    a, b = "the cat", "a dog"
    ids, types = bert().encode_pair(a, b)
    assert [bert().token(i) for i in ids] == ["[CLS]", "the", "cat", "[SEP]", "a", "dog", "[SEP]"]
    assert types == [0, 0, 0, 0, 1, 1, 1]
    tokenizer = roberta()
    first, second = tokenizer.encode_batch([a, b])
    ids, types = tokenizer.encode_pair(a, b)
    assert ids == [0, *first, 2, 2, *second, 2] and types == [0] * len(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_templates_give_what_the_library_gives(kind):
    tokenizer = KINDS[kind]()
    for text in SENTENCES:
        expected = tokenizer.inner.encode(text).ids
        if tokenizer.inner.num_special_tokens_to_add(False):
            assert tokenizer.encode(text, special=True) == expected
        if tokenizer.inner.num_special_tokens_to_add(True):
            both = tokenizer.inner.encode(text, "the cat")
            assert tokenizer.encode_pair(text, "the cat") == (both.ids, both.type_ids)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 40))
def test_pairs_are_cut_as_in_berts_own_code(a, b, room):
    first, second = [0] * a, [0] * b
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    assert cut_pair(a, b, room) == (len(first), len(second))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("pairs", [None, ["the dog " * 30] * 2])
def test_long_texts_keep_their_special_tokens(kind, pairs):
    """Even where the text spells a separator, which is then one of its words."""
    tokenizer = KINDS[kind]()
    end = tokenizer.token(tokenizer.sep_id)
    texts = ["the cat sat " * 30, f"{end} " * 40]
    tokens, _, length, cut = encode_sentences(tokenizer, texts, pairs, 16)
    assert length.tolist() == [16, 16] and cut == 2
    assert (tokens[:, 0] == tokenizer.cls_id).all() and (tokens[:, -1] == tokenizer.sep_id).all()


def test_causal_texts_begin_as_their_tokenizer_has_it():
    tokens, length = encode_texts(metaspace(), ["the cat", "", "the cat sat on"], 4)
    assert tokens[0, :3].tolist() == [1, *metaspace().encode("the cat")] and tokens[1, 0] == 1
    assert length.tolist() == [3, 1, 4]
    with pytest.raises(UserError, match="number 1 is empty, and this tokenizer has no token that begins a text"):
        encode_texts(CharacterTokenizer("ab"), ["a", ""], 4)


# Characters that UTF-8 does not have ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["\ud83d", "the \udc00cat", "a\udfff\ud800 é"])
def test_lone_surrogates_are_read_as_replacement_characters(text):
    plain = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    trained = [
        train(TokenizerSettings(name=name, size=280, min_frequency=1), [text, "the cat"]) for name in ("bpe", "wordpiece")
    ]
    for tokenizer in (*(make() for make in KINDS.values()), ByteTokenizer(), CharacterTokenizer(plain), *trained):
        assert tokenizer.encode(text) == tokenizer.encode(plain)
        assert tokenizer.encode_pair(text, text) == tokenizer.encode_pair(plain, plain)
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(plain) and all(0 <= a <= b <= len(text) for a, b in offsets)
    assert "\ud83d" not in train(TokenizerSettings(), ["\ud83d"]).characters


# Where words begin ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [metaspace, lambda: metaspace(unigram=True), lambda: byte_level(("<|endoftext|>",)), bert])
def test_words_begin_at_their_first_piece(make):
    """Whatever the vocabulary's mark ("▁", "Ġ", "##"), a text of n words has n places where one begins."""
    tokenizer = make()
    for text in SENTENCES:
        ids = tokenizer.encode(text + " rams")  # a word in pieces
        begins = ~tokenizer.continues[ids]
        begins[0] = True
        assert begins.sum() == len(text.split()) + 1


def test_characters_of_scripts_without_spaces_are_words_of_their_own():
    """Else a Chinese sentence would be one word, and masking by words hide all of it or nothing."""
    letters = CharacterTokenizer("ab 中文é。")
    assert letters.continues.tolist() == [True, True, False, False, False, True, False]
    tokenizer = byte_level(("<|endoftext|>",))
    ids = np.array(tokenizer.encode("中文"))
    assert (~tokenizer.continues[ids]).sum() == 2  # six bytes
    ids = np.array(tokenizer.encode(" été"))
    assert (~tokenizer.continues[ids]).sum() == 1


def test_vocabularies_without_marks_are_refused():
    inner = t.Tokenizer(t.models.BPE(vocab={letter: i for i, letter in enumerate(LETTERS)}, merges=[]))
    with pytest.raises(UserError, match="whole-word masking needs a vocabulary that marks where words begin"):
        _ = FastTokenizer(inner).continues


# Pieces ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_in_pieces_has_the_tokens_of_the_whole(kind):
    """LLaMA's tokenizer puts a space before every text it is given, which a piece from the middle must not get."""
    tokenizer = KINDS[kind]()
    text = " ".join(SENTENCES)
    cuts = [0, *(i for i, c in enumerate(text) if c == " " and i % 5 == 0), len(text)]
    pieces = [text[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    rows = tokenizer.encode_pieces(pieces, [i > 0 for i in range(len(pieces))])
    assert sum(rows, []) == tokenizer.encode(text)
