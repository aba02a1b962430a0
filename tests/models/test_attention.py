"""Attention against the equation written out in float64, and the restrictions one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import target
from ssl_jax.models.attention import allowed, attend

RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def equation(q, k, v, mask=None):
    """softmax(q k^T / sqrt(d)) v, one head at a time, query heads sharing key heads in order."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, h in np.ndindex(*q.shape[:2]):
        shared = h * k.shape[1] // q.shape[1]
        scores = q[b, h] @ k[b, shared].T / np.sqrt(q.shape[-1])
        if mask is not None:
            scores = np.where(np.asarray(mask)[b % len(mask)], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[b, h] = weights / weights.sum(-1, keepdims=True) @ v[b, shared]
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_its_equation(kv_heads, masked):
    q, k, v = draw(2, 4, 5, 8), draw(2, kv_heads, 7, 8), draw(2, kv_heads, 7, 8)
    mask = jnp.asarray(RNG.random((2, 5, 7)) < 0.5) | (np.arange(7) == 0) if masked else None
    np.testing.assert_allclose(jax.jit(attend)(q, k, v, mask=mask), equation(q, k, v, mask), atol=2e-6)


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_written_out_gradient_is_autodiffs(kv_heads, masked, dropout):
    """Of all three inputs, a query that may read nothing included. Off the CPU the gradient is autodiff's."""
    q, k, v, weight = draw(2, 4, 5, 8), draw(2, kv_heads, 7, 8), draw(2, kv_heads, 7, 8), draw(2, 4, 5, 8)
    mask = jnp.asarray(RNG.random((2, 5, 7)) < 0.5).at[0, 2].set(False) if masked else None
    keys = jax.random.split(jax.random.key(1), 2)
    loss = lambda q, k, v: jnp.sum(weight * attend(q, k, v, mask=mask, dropout=dropout, keys=keys))
    ours = jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)
    with target.told(target.Target("gpu")):
        theirs = jax.jit(jax.grad(lambda *inputs: loss(*inputs), (0, 1, 2)))(q, k, v)
    for mine, other in zip(ours, theirs, strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(mine, other, atol=2e-6)


def test_attention_in_bf16_and_its_gradient_are_near_f32s():
    q, k, v, weight = draw(2, 4, 5, 8), draw(2, 2, 7, 8), draw(2, 2, 7, 8), draw(2, 4, 5, 8)
    value = lambda q, k, v: jnp.sum(weight * attend(q, k, v))
    gradient = jax.jit(jax.grad(value, (0, 1, 2)))
    exact = gradient(q, k, v)
    for ours, other in zip(gradient(*(x.astype(jnp.bfloat16) for x in (q, k, v))), exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(jnp.float32), other, atol=0.03 * np.abs(other).max())


def test_restrictions_combine():
    """Entry by entry: causal but for a prefix, at most `window` away, within one segment."""
    positions, segments, prefix = jnp.arange(6)[None], jnp.asarray([[1, 1, 1, 1, 2, 2]]), jnp.asarray([2])
    ours = allowed(positions, positions, causal=True, window=2, q_segments=segments, kv_segments=segments, prefix=prefix)
    for q in range(6):
        for k in range(6):
            expected = (k <= q or k < 2) and abs(q - k) <= 2 and (q < 4) == (k < 4)
            assert bool(ours[0, q, k]) == expected, (q, k)
    assert allowed(positions, positions) is None


def test_dropout_keeps_the_mean_and_follows_the_examples_keys():
    q, k, v = draw(1, 2, 3, 4), draw(1, 2, 5, 4), draw(1, 2, 5, 4)
    repeat = lambda x: jnp.repeat(x, 4000, axis=0)
    keys = jax.random.split(jax.random.key(0), 4000)
    drop = jax.jit(lambda q, k, v, keys: attend(q, k, v, dropout=0.5, keys=keys))
    dropped = drop(repeat(q), repeat(k), repeat(v), keys)
    plain = attend(q, k, v)[0]
    error = np.asarray(dropped).std(0) / np.sqrt(4000)
    assert np.all(np.abs(dropped.mean(0) - plain) < 5 * error)
    part = drop(repeat(q)[:3], repeat(k)[:3], repeat(v)[:3], keys[7:10])
    np.testing.assert_allclose(part, dropped[7:10], atol=1e-6)
