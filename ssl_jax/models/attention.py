"""Scaled dot-product attention on [batch, heads, time, head_width].

Restrictions are structured (causal, window, segments, prefix) instead of dense masks, so that fused kernels can apply them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import cpu
from ssl_jax.randomness import drop, keep, substream


def allowed(
    q_positions: Int[Array, "#batch q"],
    kv_positions: Int[Array, "#batch kv"],
    *,
    causal: bool = False,
    window: int | Array | None = None,
    q_segments: Int[Array, "#batch q"] | None = None,
    kv_segments: Int[Array, "#batch kv"] | None = None,
    prefix: Int[Array, "#batch"] | None = None,
) -> Bool[Array, "#batch q kv"] | None:
    """Return which keys each query may attend to; None if all.

    causal: keys at or before the query, and any key before `prefix` (a prefix language model).
    window: keys at most `window` positions away. segments: keys of the query's segment; padding is a separate segment.
    """
    q, kv = q_positions[:, :, None], kv_positions[:, None, :]
    rules = []
    if causal:
        rules.append(kv <= q if prefix is None else (kv <= q) | (kv < prefix[:, None, None]))
    if window is not None:
        rules.append(jnp.abs(q - kv) <= window)
    if q_segments is not None:
        rules.append(q_segments[:, :, None] == kv_segments[:, None, :])
    mask = None
    for rule in rules:
        mask = rule if mask is None else mask & rule
    return mask


def attend(
    q: Float[Array, "batch heads q width"],
    k: Float[Array, "batch kv_heads kv width"],
    v: Float[Array, "batch kv_heads kv width"],
    *,
    mask: Bool[Array, "#batch q kv"] | None = None,
    bias: Float[Array, "heads q kv"] | None = None,
    dropout: float = 0.0,
    keys: Key[Array, "batch"] | None = None,
) -> Float[Array, "batch heads q width"]:
    """Return softmax(q k^T / sqrt(width) + bias) v, with the softmax in f32 (Vaswani et al. 2017, equation 1).

    With fewer key heads than query heads, consecutive query heads share a key head (grouped-query attention).
    """
    batch, heads, time, width = q.shape
    kv_heads = k.shape[1]
    grouped = (q * (width**-0.5)).reshape(batch, kv_heads, heads // kv_heads, time, width)
    kept = None
    if dropout and keys is not None:
        kept = keep(substream(keys, "attention"), dropout, (*grouped.shape[1:-1], k.shape[2]))
    if bias is not None:
        scores = cpu.grouped_matmul(grouped, cpu.transpose(k), jnp.float32) + bias.reshape(*grouped.shape[1:-1], k.shape[2])
        weights = drop(jax.nn.softmax(_restricted(scores, mask), axis=-1), kept, dropout)
        return cpu.grouped_matmul(weights.astype(v.dtype), v).reshape(batch, heads, time, width)
    return _attended(dropout, grouped, k, v, mask, kept).reshape(batch, heads, time, width)


def _restricted(scores: Float[Array, "batch kv_heads group q kv"], mask: Bool[Array, "#batch q kv"] | None):
    return scores if mask is None else jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)


def _weights(
    q: Float[Array, "batch kv_heads group q width"],
    k: Float[Array, "batch kv_heads kv width"],
    mask: Bool[Array, "#batch q kv"] | None,
) -> Float[Array, "batch kv_heads group q kv"]:
    return jax.nn.softmax(_restricted(cpu.grouped_matmul(q, cpu.transpose(k), jnp.float32), mask), axis=-1)


@cpu.written_out_gradient(_weights)
def _attended(
    rate: float,
    q: Float[Array, "batch kv_heads group q width"],
    k: Float[Array, "batch kv_heads kv width"],
    v: Float[Array, "batch kv_heads kv width"],
    mask: Bool[Array, "#batch q kv"] | None,
    kept: Bool[Array, "batch kv_heads group q kv"] | None,
) -> Float[Array, "batch kv_heads group q width"]:
    return cpu.grouped_matmul(drop(_weights(q, k, mask), kept, rate).astype(v.dtype), v)
