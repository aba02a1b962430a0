"""The locations of a masked-token task's sequences in a token array: parts of documents, and BERT's sentence pairs."""

from typing import Any

import numpy as np

from ssl_jax.data.text.token_array import TokenArray


def gather_spans(xp: Any, tokens: Any, rows: Any, length: int, ids: tuple[int, int, int]) -> dict[str, Any]:
    """Return [CLS] A [SEP] (B [SEP]) of each row (start and length of A and of B, is_random), padded to `length`; `xp` is NumPy
    or jax.numpy."""
    cls, sep, pad = ids
    a, a_length, b, b_length, is_random = (rows[:, i : i + 1] for i in range(5))
    place = xp.arange(length)[None]
    first_sep = a_length + 1
    last = xp.where(b_length > 0, first_sep + b_length + 1, first_sep)  # the last position that is not padding
    in_a, in_b = (place >= 1) & (place < first_sep), (place > first_sep) & (place < last)
    source = xp.where(in_a, a + place - 1, xp.where(in_b, b + place - first_sep - 1, 0))
    out = xp.where(in_a | in_b, tokens[source].astype(xp.int32), pad)
    out = xp.where(place == 0, cls, xp.where((place == first_sep) | (place == last), sep, out))
    out = xp.where(place > last, pad, out)
    return {
        "tokens": out.astype(xp.int32),
        "segments": (place <= last).astype(xp.int32),
        "token_types": ((place > first_sep) & (place <= last)).astype(xp.int32),
        "is_random": is_random[:, 0].astype(xp.int32),
    }


def _limits(array: TokenArray, separator: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return start and end of each document, without separators."""
    starts = np.asarray(array.documents)
    if len(starts) == 0 or starts[0] != 0:
        starts = np.concatenate([[0], starts])
    ends = np.append(starts[1:] - (separator is not None), len(array.tokens))
    return starts, ends


def document_spans(
    array: TokenArray, separator: int | None, content: int, generator: np.random.Generator, *, duplicates: int, short: float
) -> np.ndarray:
    """Return i64[n, 5]: each document split into runs of `content` tokens, a share `short` of them of random length >= 2."""
    starts, ends = _limits(array, separator)
    tables = []
    for _ in range(duplicates):
        if short == 0:
            counts = -(-(ends - starts) // content)
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            begin = np.repeat(starts, counts) + within * content
            size = np.minimum(content, np.repeat(ends, counts) - begin)
        else:
            begin, size = [], []
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
                while start < end:
                    target = int(generator.integers(2, content + 1)) if generator.random() < short else content
                    begin.append(start)
                    size.append(min(target, end - start))
                    start += size[-1]
        table = np.zeros((len(begin), 5), np.int64)
        table[:, 0], table[:, 1] = begin, size
        tables.append(table[table[:, 1] > 0])
    return np.concatenate(tables)


def sentence_pairs(
    array: TokenArray, content: int, generator: np.random.Generator, *, duplicates: int, short: float
) -> np.ndarray:
    """Return i64[n, 5]: BERT's training pairs (Devlin et al. 2019, appendix A.2), drawn as by its published data script.

    A is the beginning of a run of consecutive sentences that fills `content` tokens (for a share `short`: a random
    length >= 2); B is, in half of the cases, the rest of the run, else sentences of another document. The longer of both loses
    tokens at random ends until they fit. Documents with one sentence always get a random B.
    """
    sentences = np.append(np.asarray(array.sentences), len(array.tokens))
    edges = np.searchsorted(sentences[:-1], np.asarray(array.documents))
    edges = np.append(edges, len(sentences) - 1)
    ends = sentences[1:].copy()
    for first in edges[1:-1]:  # a document's last sentence ends before the separator
        if first > 0 and len(array.documents) > 1:
            ends[first - 1] -= _separated(array)
    sizes = ends - sentences[:-1]
    documents = [(int(lo), int(hi)) for lo, hi in zip(edges[:-1], edges[1:], strict=True) if hi > lo]
    rows: list[tuple[int, int, int, int, int]] = []
    for _ in range(duplicates):
        for number in range(len(documents)):
            _pairs_of(documents, number, sentences, sizes, content, short, generator, rows)
    return np.array(rows, np.int64).reshape(-1, 5)


def _separated(array: TokenArray) -> int:
    """Return 1 if a separator, which belongs to no sentence, precedes each document but the first; else 0."""
    return int(array.separated)


def _pairs_of(documents, number, sentences, sizes, content, short, generator, rows) -> None:
    low, high = documents[number]
    draw_target = lambda: int(generator.integers(2, content + 1)) if generator.random() < short else content
    target = draw_target()
    first = low  # the chunk consists of the sentences first ... i
    i, length = low, 0
    while i < high:
        length += int(sizes[i])
        if i == high - 1 or length >= target:
            count = i + 1 - first
            a_count = int(generator.integers(1, count)) if count > 1 else 1
            a_start, a_length = int(sentences[first]), int(sizes[first : first + a_count].sum())
            is_random = count == 1 or generator.random() < 0.5
            if is_random and len(documents) > 1:
                other = int(generator.integers(0, len(documents) - 1))
                other += other >= number
                o_low, o_high = documents[other]
                at = int(generator.integers(o_low, o_high))
                b_start, b_length = int(sentences[at]), 0
                while at < o_high and b_length < target - a_length:
                    b_length += int(sizes[at])
                    at += 1
                b_length = max(b_length, 1)
                i = first + a_count - 1  # unused sentences begin the next chunk
            else:
                is_random = False
                b_start, b_length = int(sentences[first]) + a_length, int(sizes[first + a_count : i + 1].sum())
            if a_length >= 1 and b_length >= 1:
                rows.append((*_truncate(a_start, a_length, b_start, b_length, content, generator), int(is_random)))
            first, length = i + 1, 0
            target = draw_target()
        i += 1


def _truncate(a, a_length, b, b_length, content, generator) -> tuple[int, int, int, int]:
    while a_length + b_length > content:
        front = generator.random() < 0.5
        if a_length > b_length:
            a, a_length = a + front, a_length - 1
        else:
            b, b_length = b + front, b_length - 1
    return a, a_length, b, b_length
