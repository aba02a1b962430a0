"""Scaled dot-product attention, heads in front: [batch, heads, time, head_width].

Every restriction is structure (causal, window, segments, prefix), not a dense mask, so that a fused kernel can take it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax.randomness import substream


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
    if jax.default_backend() == "cpu" and q.dtype == k.dtype == v.dtype == jnp.float32 and not (dropout and keys is not None):
        return _attend(grouped, k, v, mask).reshape(batch, heads, time, width)
    weights = _weights(grouped, k, mask).astype(v.dtype)
    if dropout and keys is not None:
        draw = lambda key: jax.random.bernoulli(key, 1 - dropout, weights.shape[1:])
        weights = jnp.where(jax.vmap(draw)(substream(keys, "attention")), weights / (1 - dropout), 0)
    return jnp.einsum("bkgqt,bktd->bkgqd", weights, v).reshape(batch, heads, time, width)


def _weights(
    q: Float[Array, "batch kv_heads group q width"],
    k: Float[Array, "batch kv_heads kv width"],
    mask: Bool[Array, "#batch q kv"] | None,
) -> Float[Array, "batch kv_heads group q kv"]:
    scores = jnp.einsum("bkgqd,bktd->bkgqt", q, k).astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)


@jax.custom_vjp
def _attend(
    q: Float[Array, "batch kv_heads group q width"],
    k: Float[Array, "batch kv_heads kv width"],
    v: Float[Array, "batch kv_heads kv width"],
    mask: Bool[Array, "#batch q kv"] | None,
) -> Float[Array, "batch kv_heads group q width"]:
    """The same with its gradient written out, for XLA's CPU compiler.

    The softmax's gradient needs, of every query, sum_t p_t dp_t = o . do (Dao et al. 2022, appendix B.4): a sum over the head's
    width. Autodiff takes it over the keys, through a division that the compiler then does again for every weight.
    """
    return jnp.einsum("bkgqt,bktd->bkgqd", _weights(q, k, mask), v)


def _attend_forward(q, k, v, mask):
    weights = jax.lax.optimization_barrier(_weights(q, k, mask))
    y = jnp.einsum("bkgqt,bktd->bkgqd", weights, v)
    return y, (q, k, v, mask, weights, y)


def _attend_backward(residual, dy):
    q, k, v, mask, weights, y = residual
    dy = jax.lax.optimization_barrier(dy)
    dweights = jnp.einsum("bkgqd,bktd->bkgqt", dy, v)
    dscores = weights * (dweights - jnp.sum(dy * y, axis=-1, keepdims=True))
    if mask is not None:  # a query that may read nothing weighs all keys alike, yet moves no score
        dscores = jnp.where(mask[:, None, None], dscores, 0)
    dscores = jax.lax.optimization_barrier(dscores)
    dq = jnp.einsum("bkgqt,bktd->bkgqd", dscores, k)
    # Contracted over the queries, one factor must be turned: the narrow one, and then the result.
    turned = lambda x, scores: jnp.einsum("bkgqd,bkgqt->bkdt", x, scores).swapaxes(-1, -2)
    return dq, turned(q, dscores), turned(dy, weights), None


_attend.defvjp(_attend_forward, _attend_backward)
