"""Texts as padded arrays of token ids, with the model's special tokens."""

from collections.abc import Sequence

import numpy as np

from ssl_jax.data.text.tokenizers import Tokenizer
from ssl_jax.errors import UserError

SHORTEST = 32  # tokens of the shortest compiled program


def bucket(size: int, most: int, least: int = SHORTEST) -> int:
    """Return the smallest power of two >= max(size, least), at most `most`, for few shapes and little padding."""
    return min(max(least, 1 << max(size - 1, 0).bit_length()), most)


def encode_sentences(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Encode sentences or pairs as the tokenizer's model expects them: (tokens, token_types, length, number truncated).

    tokens i32[N, max_length] and token_types u8[N, max_length], padded with the padding token and 0; length i32[N]. A long text
    is truncated at its end, a pair first in its longer sentence (`cut_pair`); special tokens are never removed.
    """
    template = tokenizer.template(pair=pairs is not None)
    most = max(max_length - template.special, 0)
    first = tokenizer.encode_batch(texts)
    second = [()] * len(first) if pairs is None else tokenizer.encode_batch(pairs)
    tokens = np.full((len(first), max_length), tokenizer.pad_id or 0, np.int32)
    token_types, length = np.zeros((len(first), max_length), np.uint8), np.empty(len(first), np.int32)
    truncated = 0
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        n, m = cut_pair(len(a), len(b), most)
        truncated += n + m < len(a) + len(b)
        ids, kinds = template.fill(a[:n], b[:m])
        length[i] = min(len(ids), max_length)
        tokens[i, : length[i]], token_types[i, : length[i]] = ids[:max_length], kinds[:max_length]
    return tokens, token_types, length, truncated


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Encode texts for a causal model, after the tokenizer's own prefix: (tokens i32[N, max_length], padded, length i32[N]).

    A long text is truncated at its end; an empty text becomes the token that begins a text. Raise UserError for an empty text
    if there is no such token.
    """
    tokens = np.full((len(texts), max_length), tokenizer.pad_id or 0, np.int32)
    length = np.empty(len(texts), np.int32)
    for i, ids in enumerate(tokenizer.encode_batch(texts)):
        row = ([*tokenizer.prefix_ids, *ids] if ids else list(tokenizer.begin_ids))[:max_length]
        if not row:
            raise UserError(
                f"text: number {i} is empty, and this tokenizer has no token that begins a text; give non-empty texts"
            )
        tokens[i, : len(row)], length[i] = row, len(row)
    return tokens, length


def cut_pair(a: int, b: int, most: int) -> tuple[int, int]:
    """Return the truncated lengths of two texts of `a` and `b` tokens: the longer one, or the second of equal ones, loses its
    last token until both have at most `most` tokens together (`_truncate_seq_pair` of BERT's code)."""
    kept = min(a, max(most - b, (most + 1) // 2))
    return kept, min(b, most - kept)
