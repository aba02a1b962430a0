"""The contrastive losses of paired embeddings: CLIP's InfoNCE and SigLIP's pairwise sigmoid, over all pairs of a batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from ssl_jax.training.grad_cache import in_pieces

LOWEST = jnp.finfo(jnp.float32).min


def infonce(
    image: Float[Array, "batch dim"],
    text: Float[Array, "batch dim"],
    scale: Float[Array, ""] | float,
    *,
    same: UInt32[Array, "batch 2"] | None = None,
    chunks: int = 1,
) -> Float[Array, ""]:
    """Return CLIP's symmetric cross-entropy (Radford et al. 2021, figure 3), f32[].

    L = -1/2n sum_i [log softmax_j(s x_i.y_j)_i + log softmax_j(s x_j.y_i)_i] for unit vectors x (images), y (texts).
    same: fingerprints of the texts; pairs of an image with an equal text of another example are excluded from both softmaxes
    instead of being negatives. chunks: number of pieces of rows in which the logits are computed, and recomputed in the
    backward pass; the value does not depend on it.
    """

    def rows(piece, everywhere, scale):
        (x, y, place, mark), (text, same) = piece, everywhere
        logits = _logits(x, text, scale)
        if same is not None:
            logits = jnp.where(_twins(mark, place, same), LOWEST, logits)
        return jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0)[None], scale * jnp.sum(x * y, axis=1)

    split = image, text, jnp.arange(len(image)), same
    over_texts, over_images, matched = in_pieces(rows, split, (text, same), (scale,), chunks)
    over_images = jax.nn.logsumexp(over_images, axis=0)
    return (jnp.mean(over_texts) + jnp.mean(over_images)) / 2 - jnp.mean(matched)


def sigmoid(
    image: Float[Array, "batch dim"],
    text: Float[Array, "batch dim"],
    scale: Float[Array, ""] | float,
    bias: Float[Array, ""] | float,
    *,
    same: UInt32[Array, "batch 2"] | None = None,
    chunks: int = 1,
) -> Float[Array, ""]:
    """Return SigLIP's pairwise sigmoid loss (Zhai et al. 2023, equation 1), f32[].

    L = -1/n sum_ij log sigmoid(z_ij (s x_i.y_j + b)), z_ij = 1 for the pairs of the batch and -1 for all others. `same`
    and `chunks` as for `infonce`; excluded pairs have weight 0.
    """

    def rows(piece, everywhere, scale, bias):
        (x, place, mark), (text, same) = piece, everywhere
        sign = jnp.where(place[:, None] == jnp.arange(len(text)), 1.0, -1.0)
        values = jax.nn.log_sigmoid(sign * (_logits(x, text, scale) + bias))
        return jnp.sum(values if same is None else jnp.where(_twins(mark, place, same), 0.0, values), axis=1)

    split = image, jnp.arange(len(image)), same
    return -jnp.mean(in_pieces(rows, split, (text, same), (scale, bias), chunks))


def _logits(x, text, scale):
    return scale * jnp.matmul(x, text.T, precision="highest")


def _twins(
    mark: UInt32[Array, "rows 2"], place: Int[Array, "rows"], same: UInt32[Array, "batch 2"]
) -> Bool[Array, "rows batch"]:
    """Return the pairs of an image with another example's text that equals its own."""
    equal = jnp.all(mark[:, None] == same[None], axis=-1)
    return equal & (place[:, None] != jnp.arange(len(same)))


def fingerprints(tokens: Int[Array, "batch time"]) -> UInt32[Array, "batch 2"]:
    """Return a 64-bit hash of each row: two polynomials in odd numbers, modulo 2^32, of the hashed tokens."""
    x = tokens.astype(jnp.uint32)[..., None] + 1
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.array([0x846CA68B, 0xC2B2AE35], jnp.uint32)
    place = jnp.arange(tokens.shape[1], dtype=jnp.uint32)[:, None]
    weights = (2 * place + 1) * jnp.array([0x9E3779B1, 0x85EBCA6B], jnp.uint32)
    x = (x ^ (x >> 16)) * (weights ^ (weights >> 15) | 1)
    return jnp.sum(x, axis=1, dtype=jnp.uint32)
