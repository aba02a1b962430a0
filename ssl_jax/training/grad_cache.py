"""Losses over all examples of a batch, whose embeddings are computed piece by piece (Gao et al. 2021, arXiv:2101.06983)."""

from collections.abc import Callable
from typing import Any

import jax


def in_chunks(function: Callable, rows: tuple, chunks: int, join: bool = True) -> Any:
    """Apply `function(*rows)` to `chunks` interleaved pieces of the leading axis, one after another.

    The backward pass runs piece by piece too, computing each piece's forward again, so that only one piece's intermediate
    values are alive at a time. Row i is in piece i mod chunks, because a batch is sharded along its leading axis: each
    piece then lies on all devices. join: put the results' rows back in their places; else the pieces are the leading axis.
    """
    if chunks == 1 and join:
        return function(*rows)
    split = lambda x: x.reshape(x.shape[0] // chunks, chunks, *x.shape[1:]).swapaxes(0, 1)
    results = jax.lax.map(jax.checkpoint(lambda piece: function(*piece)), jax.tree.map(split, rows))
    merge = lambda y: y.swapaxes(0, 1).reshape(-1, *y.shape[2:])
    return jax.tree.map(merge, results) if join else results
