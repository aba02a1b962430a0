"""Cross-entropy of an output layer over a large vocabulary, without materializing f32[batch, time, vocabulary]."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ssl_jax import cpu, partition, target

PLAIN = 2**25  # up to this many logits are computed at once
CHUNK = 2**26  # more are computed in chunks of this size, or of a larger one on a device with much memory
SHARE = 32  # logits get 1 / SHARE of a device's memory; large chunks pay, as each reads and adds a whole weight gradient


def logits(
    features: Float[Array, "*batch dim"],
    weight: Float[Array, "*devices vocabulary dim"],
    bias: Float[Array, "vocabulary"] | None = None,
) -> Float[Array, "*batch vocabulary"]:
    """Return f32 logits `features @ weight.T + bias`, multiplied in the dtype of `features` and accumulated in f32.

    weight: a matrix or its `partition.copies`.
    """
    if weight.ndim == 3:
        own = lambda gather, split, whole: logits(split[0], split[1][0], *whole)
        return partition.by_rows(own, (features, weight), (bias,))
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
    """Return the negative log-likelihood, the log partition function and the most likely token at each position.

    For evaluation; training uses `cross_entropy`. The time axis is cut into `chunks` (default: `chunks_of`) that are computed
    one after another; the batch axis, which may be sharded, is not cut.
    """
    batch, time, _ = features.shape
    chunks = chunks_of(batch, time, weight.shape[0]) if chunks is None else min(chunks, time)

    def piece(features: Array, labels: Array) -> tuple[Array, Array, Array]:
        scores = logits(features, weight, bias)
        log_z = jax.nn.logsumexp(scores, axis=-1)
        return log_z - _at(scores, labels), log_z, jnp.argmax(scores, axis=-1).astype(jnp.int32)

    if chunks <= 1:
        return piece(features, labels)
    parts = jax.lax.map(lambda arrays: piece(*arrays), (_split(features, chunks), _split(labels, chunks)))
    return tuple(jnp.moveaxis(part, 0, 1).reshape(batch, -1)[:, :time] for part in parts)


def chunks_of(batch: int, time: int, vocabulary: int) -> int:
    """Return the number of pieces of the time axis that bounds a piece's logits on each device; a divisor of `time` if
    possible."""
    total = batch * time * vocabulary // partition.count(partition.free_axes(partition.ROWS, batch))
    chunk = max(CHUNK, (target.current().memory or 0) // SHARE // 4)
    fewest = 1 if total <= PLAIN else min(time, -(-total // chunk))
    return next((n for n in range(fewest, min(2 * fewest, time) + 1) if time % n == 0), fewest)


def _split(x: Array, chunks: int) -> Array:
    """Return [batch, time, ...] as [chunks, batch, size, ...], padded with zeros."""
    batch, time = x.shape[:2]
    size = -(-time // chunks)
    x = jnp.pad(x, ((0, 0), (0, chunks * size - time)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(batch, chunks, size, *x.shape[2:]), 1, 0)


def _at(scores: Float[Array, "... vocabulary"], labels: Int[Array, "..."]) -> Float[Array, "..."]:
    return jnp.take_along_axis(scores, labels[..., None].astype(jnp.int32), axis=-1)[..., 0]


def cross_entropy(
    features: Float[Array, "batch time dim"],
    weight: Float[Array, "*devices vocabulary dim"],
    labels: Int[Array, "batch time"],
    bias: Float[Array, "vocabulary"] | None = None,
    *,
    label_weights: Float[Array, "batch time"] | None = None,
    z_loss: float = 0.0,
    chunks: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return the weighted mean over positions of -log p(label) + z_loss log(Z)^2 (Chowdhery et al. 2022, section 5).

    Metrics, without gradient: "cross_entropy" (nats, without the z loss), "accuracy" (k equally likely best tokens count 1 / k
    each), and "weight", the number of terms. The loss has no gradient in `label_weights`. The time axis is cut into `chunks`
    (default: `chunks_of`). weight: a matrix or its `partition.copies`.
    """
    w = jnp.ones(labels.shape, jnp.float32) if label_weights is None else label_weights.astype(jnp.float32)
    total = jnp.sum(w)
    scale = 1 / jnp.maximum(total, 1e-9)
    if chunks is None:
        chunks = chunks_of(*labels.shape, weight.shape[-2])
    loss, nll, right = _summed(z_loss, min(chunks, labels.shape[1]), features, weight, bias, labels, w)
    nll, right = jax.lax.stop_gradient((nll, right))
    return loss * scale, {"cross_entropy": nll * scale, "accuracy": right * scale, "weight": total}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed(z_loss, chunks, features, weight, bias, labels, w):
    """Return the weighted sums of loss, negative log-likelihood and correct predictions.

    The gradient is computed together with the value, chunk by chunk: the logits are computed once, and their gradient is
    written once, in the dtype of the features.
    """
    return _run(z_loss, chunks, False, features, weight, bias, labels, w)[0]


def _forward(z_loss, chunks, features, weight, bias, labels, w):
    sums, gradients = _run(z_loss, chunks, True, features, weight, bias, labels, w)
    return sums, (gradients, weight, bias)


def _backward(z_loss, chunks, residual, cotangents):
    (d_features, d_weight, d_bias), weight, bias = residual
    g = cotangents[0]
    scaled = lambda x: (x.astype(jnp.float32) * g).astype(x.dtype)
    d_bias = None if bias is None else scaled(d_bias).astype(bias.dtype)
    return scaled(d_features), scaled(d_weight).astype(weight.dtype), d_bias, None, None


_summed.defvjp(_forward, _backward)


def _run(z_loss, chunks, differentiate, features, weight, bias, labels, w):
    """Return (sums over all devices, (gradients with respect to features, weight and bias) or None).

    Each device holds a part of the vocabulary if the mesh's "tensor" axis divides it. With copies of the weight, their
    gradients are each device's own.
    """

    def summed(features, labels, w, weight, bias, across):
        piece = functools.partial(_piece, z_loss, differentiate, across, weight, bias)
        if chunks <= 1:
            sums, d_features = piece(features, labels, w)
            return sums, _sum(d_features, across) if differentiate else d_features
        arrays = tuple(_split(x, chunks) for x in (features, labels, w))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(piece, *(x[0] for x in arrays))[0])

        def add(total, arrays):
            sums, d_features = piece(*arrays)
            return jax.tree.map(jnp.add, total, sums), d_features

        sums, d_features = jax.lax.scan(add, zeros, arrays)
        if differentiate:
            batch, time, width = features.shape
            d_features = _sum(jnp.moveaxis(d_features, 0, 1).reshape(batch, -1, width)[:, :time], across)
        return sums, d_features

    def with_copy(split, parts, across):
        (sums, d_weight, d_bias), d_features = summed(*split[:3], split[3][0], *parts, across)
        return (sums, d_bias), (d_features, d_weight[None] if differentiate else None)

    split, weight = (features, labels, w), weight.astype(features.dtype)
    if weight.ndim == 3:
        (sums, d_bias), (d_features, d_weight) = partition.over_rows(with_copy, (*split, weight), (bias,))
    else:
        local = lambda split, parts, across: summed(*split, *parts, across)
        (sums, d_weight, d_bias), d_features = partition.over_rows(local, split, (weight, bias))
    return sums, (d_features, d_weight, d_bias)


def _sum(x: Array, across: tuple[str, ...]) -> Array:
    return jax.lax.psum(x, across) if across else x


def _piece(z_loss, differentiate, across, weight, bias, features, labels, w):
    """Return ((sums, gradients of weight and bias), gradient of the features) of one chunk; gradients may be None.

    With `across`, weight and bias are this device's part of the vocabulary, and the features' gradient is that part's.
    """
    scores = logits(features, weight, bias)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    if across:
        highest = jax.lax.pmax(highest, across)
        labels = labels - jax.lax.axis_index(across) * scores.shape[-1]
    exponential = jnp.exp(scores - highest)
    z = _sum(jnp.sum(exponential, axis=-1, keepdims=True), across)
    log_z = (highest + jnp.log(z))[..., 0]
    own = _at(scores, labels)
    if across:
        own = _sum(jnp.where((labels >= 0) & (labels < scores.shape[-1]), own, 0), across)
    nll = log_z - own
    ties = _sum(jnp.sum(scores == highest, axis=-1), across)
    right = (own == highest[..., 0]) / ties
    loss = nll + z_loss * jnp.square(log_z) if z_loss else nll
    sums = tuple(jnp.sum(x * w) for x in (loss, nll, right))
    if not differentiate:
        return (sums, None, None), None
    slope = w * (1 + 2 * z_loss * log_z) if z_loss else w  # d loss / d log Z
    is_label = labels[..., None] == jnp.arange(scores.shape[-1])
    d_scores = exponential * (slope[..., None] / z) - jnp.where(is_label, w[..., None], 0)
    d_bias = None if bias is None else jnp.sum(d_scores, axis=(0, 1))
    d_scores = d_scores.astype(features.dtype)
    d_features = cpu.matmul(d_scores, weight)
    flat = lambda x: x.reshape(-1, x.shape[-1])
    d_weight = cpu.matmul(cpu.transpose(flat(d_scores)), flat(features), jnp.float32, accumulate=jnp.float32)
    return (sums, d_weight, d_bias), d_features
