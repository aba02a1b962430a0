"""A key for initial parameters whose values do not matter: its hash is quick to compile.

XLA takes 0.55 s to compile the initial parameters of a toy ViT with JAX's Threefry, 0.16 s with this hash (two cores of an AMD
EPYC, with the flags of conftest.py). What a test says about random numbers themselves is tested with JAX's own keys.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl


def toy_key(seed: int) -> jax.Array:
    return jax.random.key(seed, impl=HASH)


def _mix(x):
    """Return the hash "lowbias32" of u32[...] (Wellons, Prospecting for hash functions, 2018)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _seed(seed):
    return _mix(jnp.asarray(seed, jnp.uint32).reshape(1) + np.uint32(1))


def _fold_in(state, data):
    return _mix(_mix(state) + jnp.asarray(data, jnp.uint32) + np.uint32(1))


def _split(state, shape):
    return _fold_in(state, jnp.arange(np.prod(shape, dtype=int), dtype=jnp.uint32)).reshape(*shape, 1)


def _bits(state, width, shape):
    words = _fold_in(state ^ np.uint32(0x9E3779B9), jnp.arange(np.prod(shape, dtype=int), dtype=jnp.uint32))
    return words.reshape(shape).astype({8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[width])


HASH = define_prng_impl(
    key_shape=(1,), seed=_seed, split=_split, random_bits=_bits, fold_in=_fold_in, name="test_hash", tag="hash"
)
