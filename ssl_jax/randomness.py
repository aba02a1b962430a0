"""Named random streams: a new stream does not change the others, and the state stores no key."""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32


def stream(seed: int | Array, name: str, step: int | Array = 0) -> Key[Array, ""]:
    """Return the key of stream `name` at `step`: fold_in(fold_in(key(seed), crc32(name)), step)."""
    key = jax.random.fold_in(jax.random.key(seed), jnp.uint32(zlib.crc32(name.encode())))
    return jax.random.fold_in(key, step)


def substream(key: Key[Array, "*shape"], name: str) -> Key[Array, "*shape"]:
    """Return the key of a named stream below `key`; an array of keys gives an array of keys."""
    salt = jnp.uint32(zlib.crc32(name.encode()))
    fold = lambda k: jax.random.fold_in(k, salt)
    for _ in range(key.ndim):
        fold = jax.vmap(fold)
    return fold(key)


def example_keys(key: Key[Array, ""], position: Int[Array, "batch"] | UInt32[Array, "batch"]) -> Key[Array, "batch"]:
    """Return one key per example, derived from its position in the global batch.

    Random numbers from these keys do not depend on the number of devices, processes or accumulation steps.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, position)


def keep(keys: Key[Array, "batch"], rate: float, shape: tuple[int, ...]) -> Bool[Array, "batch *shape"]:
    """Return dropout's mask of each example: False with probability `rate`, rounded to a multiple of 2**-16.

    Two draws share a 32-bit word, which halves the work of jax.random.bernoulli.
    """
    *lead, last = shape

    def draw(key):
        words = jax.random.bits(key, (*lead, -(-last // 2)), jnp.uint32)
        halves = jnp.concatenate([words & 0xFFFF, words >> 16], axis=-1)
        return halves[..., :last] >= round(rate * 2**16)

    return jax.vmap(draw)(keys)


def drop(x: Float[Array, "*shape"], kept: Bool[Array, "*shape"] | None, rate: float) -> Float[Array, "*shape"]:
    """Apply inverted dropout: `x` / (1 - rate) where `kept`, else 0; `x` itself if `kept` is None."""
    return x if kept is None else jnp.where(kept, x / (1 - round(rate * 2**16) / 2**16), 0)
