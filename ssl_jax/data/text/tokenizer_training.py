"""Tokenizers trained on a corpus: characters, byte-level BPE, WordPiece."""

import collections
from collections.abc import Iterable

from ssl_jax.data.sources.files import without_surrogates
from ssl_jax.data.text.tokenizer_files import bert_steps, byte_level_steps, wordpiece
from ssl_jax.data.text.tokenizers import (
    ByteTokenizer,
    CharacterTokenizer,
    FastTokenizer,
    Tokenizer,
    TokenizerSettings,
)
from ssl_jax.errors import UserError

ALPHABET = 1000  # number of the most frequent characters in a trained WordPiece vocabulary


def train(settings: TokenizerSettings, texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer trained on `texts`, an iterator over pieces of the corpus."""
    texts = (without_surrogates(text) for text in texts)
    if settings.name == "characters":
        seen: set[str] = set()
        for text in texts:
            seen.update(text)
        return CharacterTokenizer("".join(sorted(seen)), settings.special())
    if settings.name == "bytes":
        return ByteTokenizer(settings.special())
    import tokenizers as t

    special = list(settings.special())
    common = dict(vocab_size=settings.size, min_frequency=settings.min_frequency, special_tokens=special, show_progress=False)
    if settings.name == "bpe":
        if settings.size < 256 + len(special):
            raise UserError(f"data.tokenizer.size={settings.size}: must be at least {256 + len(special)} for byte-level BPE")
        inner = t.Tokenizer(t.models.BPE())
        byte_level_steps(inner)
        trainer = t.trainers.BpeTrainer(initial_alphabet=sorted(t.pre_tokenizers.ByteLevel.alphabet()), **common)
        inner.train_from_iterator(texts, trainer)
        return FastTokenizer(inner)
    if "[UNK]" not in special:
        raise UserError("data.tokenizer.special_tokens: WordPiece needs [UNK]; add it")
    return _train_wordpiece(t, settings, texts, common)


def _train_wordpiece(t, settings: TokenizerSettings, texts: Iterable[str], common: dict) -> FastTokenizer:
    """Train WordPiece with the library's trainer, deterministically.

    The trainer numbers "##a", "##b", ... in the order of a hash table and breaks ties by these numbers; here they are numbered
    beforehand by frequency.
    """
    inner = t.Tokenizer(t.models.WordPiece(unk_token="[UNK]"))
    bert_steps(inner, settings.lowercase)
    words: collections.Counter[str] = collections.Counter()
    for text in texts:
        words.update(inner.normalizer.normalize_str(text).split())
    letters: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    alphabet = sorted(letters, key=lambda letter: (-letters[letter], letter))[:ALPHABET]
    common["special_tokens"] = [*common["special_tokens"], *alphabet, *("##" + letter for letter in alphabet)]
    if len(common["special_tokens"]) > settings.size:
        raise UserError(
            f"data.tokenizer.size={settings.size}: this text's characters alone need {len(common['special_tokens'])}; raise it"
        )
    trainer = t.trainers.WordPieceTrainer(continuing_subword_prefix="##", limit_alphabet=len(alphabet), **common)
    repeated = (" ".join([word] * count) for word, count in sorted(words.items()))
    inner.train_from_iterator(repeated, trainer)
    return wordpiece(inner.get_vocab(), settings.lowercase)
