"""Losses over all examples of a batch, whose embeddings are computed piece by piece (Gao et al. 2021, arXiv:2101.06983)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ssl_jax import partition


def in_chunks(function: Callable, rows: tuple, chunks: int, join: bool = True) -> Any:
    """Apply `function(*rows)` to `chunks` interleaved pieces of the leading axis, one after another.

    The backward pass also runs piece by piece and recomputes each piece's forward pass, so that only one piece's
    intermediate values are in memory at a time. Row i is in piece i mod chunks: a batch is sharded along its leading axis,
    so each piece is on all devices. join: return rows in their original order; otherwise the pieces are the leading axis.
    """
    if chunks == 1 and join:
        return function(*rows)
    split = lambda x: x.reshape(x.shape[0] // chunks, chunks, *x.shape[1:]).swapaxes(0, 1)
    results = jax.lax.map(jax.checkpoint(lambda piece: function(*piece)), jax.tree.map(split, rows))
    merge = lambda y: y.swapaxes(0, 1).reshape(-1, *y.shape[2:])
    return jax.tree.map(merge, results) if join else results


def in_pieces(function: Callable, split: Any, shared: Any, numbers: tuple, chunks: int) -> Any:
    """Return `function(rows of split, shared, *numbers)` for each device's own rows, computed in `chunks` pieces and joined.

    split, shared: trees of arrays [batch, ...]. Every device gets the `shared` rows of all devices. They are gathered, and
    their gradient is summed over the devices, once and not for every piece. The number of pieces is reduced to a divisor of
    a device's rows. Results have a leading axis of rows, in the order of the pieces, or of length 1, and are concatenated.
    """

    def local(gather, arrays, numbers):
        split, everywhere = arrays[0], jax.tree.map(gather, arrays[1])
        pieces = math.gcd(chunks, len(jax.tree.leaves(split)[0]))
        if pieces == 1:
            return function(split, everywhere, *numbers)
        results = in_chunks(lambda rows: function(rows, everywhere, *numbers), (split,), pieces, join=False)
        return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), results)

    return partition.by_rows(local, (split, shared), tuple(map(jnp.asarray, numbers)))
