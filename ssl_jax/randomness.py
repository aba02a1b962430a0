"""Named random streams: a new stream shifts no other, and no key is stored in a state."""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, UInt32


def stream(seed: int | Array, name: str, step: int | Array = 0) -> Key[Array, ""]:
    """The key of stream `name` at `step`: fold_in(fold_in(key(seed), crc32(name)), step)."""
    key = jax.random.fold_in(jax.random.key(seed), jnp.uint32(zlib.crc32(name.encode())))
    return jax.random.fold_in(key, step)


def substream(key: Key[Array, "*shape"], name: str) -> Key[Array, "*shape"]:
    """A named stream below `key`; an array of keys gives an array of keys."""
    salt = jnp.uint32(zlib.crc32(name.encode()))
    fold = lambda k: jax.random.fold_in(k, salt)
    for _ in range(key.ndim):
        fold = jax.vmap(fold)
    return fold(key)


def example_keys(key: Key[Array, ""], position: Int[Array, "batch"] | UInt32[Array, "batch"]) -> Key[Array, "batch"]:
    """One key an example, from its position in the global batch.

    What is drawn from them does not depend on the number of devices, processes or accumulation steps.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, position)
