"""Shared by zero-shot classification and retrieval: vectors of texts, and ranks with ties."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ssl_jax.data.pairs import Encode
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.metrics.classification import check_finite
from ssl_jax.task import DataInfo


def embed_texts(
    encoder: Encoder, info: DataInfo, texts: Sequence[str], batch_size: int = 256
) -> Float[np.ndarray, "texts dim"]:
    """Return unit vectors of texts; `info` (a DataInfo) holds the tokenizer and the context length."""
    tokens, _ = Encode(info.tokenizer, info.shapes["tokens"].shape[0]).batch(texts)
    return in_batches(jax.jit(encoder.task.features), encoder.params, {"tokens": tokens}, "text_embedding", batch_size)


def in_batches(
    features: Callable, params, arrays: Mapping[str, np.ndarray], name: str, batch_size: int
) -> Float[np.ndarray, "rows dim"]:
    """Return features(params, batch)[name] over batches of equal size, the last one padded.

    Raises UserError for non-finite features.
    """
    count = len(next(iter(arrays.values())))
    size, parts = min(batch_size, count), []
    for start in range(0, count, size):
        index = np.minimum(np.arange(start, start + size), count - 1)
        batch = {key: jnp.asarray(value[index]) for key, value in arrays.items()}
        parts.append(np.asarray(features(params, batch)[name], np.float32)[: count - start])
    found = np.concatenate(parts)
    check_finite(found, name)
    return found


def hit_chance(
    higher: Int[np.ndarray, "queries"], tied: Int[np.ndarray, "queries"], correct: Int[np.ndarray, "queries"], k: int
) -> Float[np.ndarray, "queries"]:
    """Return the probability that a correct candidate is among the first k when ties are broken at random.

    `higher` candidates have a higher score; `correct` correct and `tied` wrong ones have the best correct score.
    """
    miss = np.ones(len(higher))
    for place in range(k):  # the next place of the tied group goes to a wrong one
        drawn = place - higher
        left = np.maximum(tied + correct - drawn, 1)
        miss = np.where(drawn < 0, miss, miss * np.clip(tied - drawn, 0, None) / left)
    return 1 - miss
