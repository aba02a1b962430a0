"""Texts as padded arrays of token ids, with the special tokens of the model that reads them."""

from collections.abc import Sequence

import numpy as np

from ssl_jax.data.text.tokenizers import Tokenizer
from ssl_jax.errors import UserError

SHORTEST = 32  # tokens of the shortest compiled program


def bucket(size: int, most: int, least: int = SHORTEST) -> int:
    """The least power of two from `least` on that holds `size`, but at most `most`: few shapes, and little padding."""
    return min(max(least, 1 << max(size - 1, 0).bit_length()), most)


def encode_sentences(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Sentences or pairs as the tokenizer's own model expects them: (tokens, token_types, length, how many were cut).

    tokens i32[N, max_length] and token_types u8[N, max_length], padded with the padding token and 0; length i32[N]. A text that
    is too long loses its last tokens, a pair those of the longer sentence first (`cut_pair`); special tokens stay.
    """
    template = tokenizer.template(pair=pairs is not None)
    room = max(max_length - template.special, 0)
    first = tokenizer.encode_batch(texts)
    second = [()] * len(first) if pairs is None else tokenizer.encode_batch(pairs)
    tokens = np.full((len(first), max_length), tokenizer.pad_id or 0, np.int32)
    token_types, length = np.zeros((len(first), max_length), np.uint8), np.empty(len(first), np.int32)
    truncated = 0
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        n, m = cut_pair(len(a), len(b), room)
        truncated += n + m < len(a) + len(b)
        ids, kinds = template.fill(a[:n], b[:m])
        length[i] = min(len(ids), max_length)
        tokens[i, : length[i]], token_types[i, : length[i]] = ids[:max_length], kinds[:max_length]
    return tokens, token_types, length, truncated


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts as a causal model reads them, behind what the tokenizer itself puts before a text: (tokens i32[N, max_length],
    padded, and length i32[N]). A text that is too long loses its last tokens; an empty one is the token that begins a text.

    Raise UserError for an empty text where there is no such token.
    """
    tokens = np.full((len(texts), max_length), tokenizer.pad_id or 0, np.int32)
    length = np.empty(len(texts), np.int32)
    for i, ids in enumerate(tokenizer.encode_batch(texts)):
        row = ([*tokenizer.prefix_ids, *ids] if ids else list(tokenizer.begin_ids))[:max_length]
        if not row:
            raise UserError(f"text: number {i} is empty, and this tokenizer has no token that begins a text")
        tokens[i, : len(row)], length[i] = row, len(row)
    return tokens, length


def cut_pair(a: int, b: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts of `a` and `b` tokens stay: the longer one loses its last token until both fit into `room`,
    of equal ones the second (`_truncate_seq_pair` of BERT's code)."""
    kept = min(a, max(room - b, (room + 1) // 2))
    return kept, min(b, room - kept)
