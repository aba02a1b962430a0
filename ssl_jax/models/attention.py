"""Scaled dot-product attention, heads in front: [batch, heads, time, head_width].

Every restriction is structure (causal, window, segments, prefix), not a dense mask, so that a fused kernel can take it.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax.models.dense import product, turned
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
    """Which keys a query may read; None when all.

    causal: keys at or before the query, and any key before `prefix` (a prefix language model).
    window: keys at most `window` positions away. segments: keys of the query's own segment; padding is a segment of its own.
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
    dropout: float = 0.0,
    keys: Key[Array, "batch"] | None = None,
) -> Float[Array, "batch heads q width"]:
    """softmax(q k^T / sqrt(width)) v, the softmax in f32 (Vaswani et al. 2017, equation 1).

    Grouped queries share a key head.
    """
    batch, heads, time, width = q.shape
    kv_heads = k.shape[1]
    grouped = (q * (width**-0.5)).reshape(batch, kv_heads, heads // kv_heads, time, width)
    kept = None
    if dropout and keys is not None:
        kept = keep(substream(keys, "attention"), dropout, (*grouped.shape[1:-1], k.shape[2]))
    attention = _attend if jax.default_backend() == "cpu" and q.dtype == k.dtype == v.dtype else _attended
    return attention(dropout, grouped, k, v, mask, kept).reshape(batch, heads, time, width)


def _weights(
    q: Float[Array, "batch kv_heads group q width"],
    k: Float[Array, "batch kv_heads kv width"],
    mask: Bool[Array, "#batch q kv"] | None,
) -> Float[Array, "batch kv_heads group q kv"]:
    scores = _per_key_head(q, turned(k), jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)


def _per_key_head(x: Float[Array, "batch kv_heads group q n"], y: Float[Array, "batch kv_heads n m"], dtype=None):
    """x @ y, the heads of a group sharing y."""
    batch, kv_heads, group, time, _ = x.shape
    return product(x.reshape(batch, kv_heads, group * time, -1), y, dtype).reshape(batch, kv_heads, group, time, -1)


def _attended(
    rate: float,
    q: Float[Array, "batch kv_heads group q width"],
    k: Float[Array, "batch kv_heads kv width"],
    v: Float[Array, "batch kv_heads kv width"],
    mask: Bool[Array, "#batch q kv"] | None,
    kept: Bool[Array, "batch kv_heads group q kv"] | None,
) -> Float[Array, "batch kv_heads group q width"]:
    return _per_key_head(drop(_weights(q, k, mask), kept, rate).astype(v.dtype), v)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rate, q, k, v, mask, kept):
    """`_attended` with its gradient written out, for XLA's CPU compiler.

    The softmax's gradient needs, of every query, sum_t p_t dp_t = o . do (Dao et al. 2022, appendix B.4): a sum over the head's
    width. Autodiff takes it over the keys, through a division that the compiler then does again for every weight.
    """
    return _attended(rate, q, k, v, mask, kept)


def _attend_forward(rate, q, k, v, mask, kept):
    weights = jax.lax.optimization_barrier(_weights(q, k, mask))
    y = _per_key_head(drop(weights, kept, rate).astype(v.dtype), v)
    return y, (q, k, v, mask, kept, weights, y)


def _attend_backward(rate, residual, dy):
    q, k, v, mask, kept, weights, y = residual
    dy = jax.lax.optimization_barrier(dy)
    dweights = drop(_per_key_head(dy, turned(v), jnp.float32), kept, rate)
    dscores = weights * (dweights - jnp.sum((dy * y).astype(jnp.float32), axis=-1, keepdims=True))
    if mask is not None:  # a query that may read nothing weighs all keys alike, yet moves no score
        dscores = jnp.where(mask[:, None, None], dscores, 0)
    dscores = jax.lax.optimization_barrier(dscores.astype(q.dtype))
    dq = _per_key_head(dscores, k)
    used = drop(weights, kept, rate).astype(v.dtype)
    return dq, _over_queries(dscores, q), _over_queries(used, dy), None, None


def _over_queries(scores: Float[Array, "batch kv_heads group q kv"], x: Float[Array, "batch kv_heads group q width"]):
    """scores^T @ x, summed over queries and group. One factor must be turned: the narrow one, and then the result."""
    merged = lambda a: a.reshape(*a.shape[:2], -1, a.shape[-1])
    return product(turned(merged(x)), merged(scores)).swapaxes(-1, -2)


_attend.defvjp(_attend_forward, _attend_backward)
