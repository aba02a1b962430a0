"""Cross-entropy of an output layer over a large vocabulary, without ever holding f32[batch, time, vocabulary]."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

PLAIN = 2**25  # logits up to this many numbers are held at once
CHUNK = 2**26  # and otherwise this many at a time


def logits(
    features: Float[Array, "*batch dim"], weight: Float[Array, "vocabulary dim"], bias: Float[Array, "vocabulary"] | None = None
) -> Float[Array, "*batch vocabulary"]:
    """f32 logits: `features @ weight.T + bias`, multiplied in the dtype of `features`, accumulated in f32."""
    contract = (((features.ndim - 1,), (1,)), ((), ()))
    out = jax.lax.dot_general(features, weight.astype(features.dtype), contract, preferred_element_type=jnp.float32)
    return out if bias is None else out + bias.astype(jnp.float32)


def token_losses(
    features: Float[Array, "batch time dim"],
    weight: Float[Array, "vocabulary dim"],
    labels: Int[Array, "batch time"],
    bias: Float[Array, "vocabulary"] | None = None,
    *,
    chunks: int | None = None,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"], Int[Array, "batch time"]]:
    """Negative log-likelihood, log of the partition function, and the likeliest token, at each place.

    The time axis is cut into `chunks` (default: as few as keep a chunk's logits small) that are computed one after another and
    once more in the backward pass; the batch axis, which may be sharded, is not touched.
    """
    batch, time, _ = features.shape
    total = batch * time * weight.shape[0]
    if chunks is None:
        chunks = 1 if total <= PLAIN else min(time, -(-total // CHUNK))
    chunks = min(chunks, time)
    if chunks <= 1:
        return _losses(weight, bias, features, labels)
    size = -(-time // chunks)
    pad = chunks * size - time

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, chunks, size, *x.shape[2:]), 1, 0)

    body = jax.checkpoint(functools.partial(_losses, weight, bias), prevent_cse=False)
    parts = jax.lax.map(lambda piece: body(*piece), (split(features), split(labels)))
    return tuple(jnp.moveaxis(part, 0, 1).reshape(batch, chunks * size)[:, :time] for part in parts)


def _losses(weight, bias, features, labels):
    scores = logits(features, weight, bias)
    log_z = jax.nn.logsumexp(scores, axis=-1)
    label_score = jnp.take_along_axis(scores, labels[..., None].astype(jnp.int32), axis=-1)[..., 0]
    return log_z - label_score, log_z, jnp.argmax(scores, axis=-1).astype(jnp.int32)


def cross_entropy(
    features: Float[Array, "batch time dim"],
    weight: Float[Array, "vocabulary dim"],
    labels: Int[Array, "batch time"],
    bias: Float[Array, "vocabulary"] | None = None,
    *,
    label_weights: Float[Array, "batch time"] | None = None,
    z_loss: float = 0.0,
    chunks: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean over the places with weight of -log p(label) + z_loss log(Z)^2 (Chowdhery et al. 2022, section 5).

    Metrics: "cross_entropy" (nats, without the z loss), "accuracy", and "weight", the number of terms.
    """
    nll, log_z, predicted = token_losses(features, weight, labels, bias, chunks=chunks)
    w = jnp.ones(labels.shape, jnp.float32) if label_weights is None else label_weights.astype(jnp.float32)
    total = jnp.sum(w)
    mean = lambda x: jnp.sum(x * w) / jnp.maximum(total, 1e-9)
    nll = mean(nll)
    loss = nll + z_loss * mean(jnp.square(log_z)) if z_loss else nll
    return loss, {"cross_entropy": nll, "accuracy": mean(predicted == labels), "weight": total}
