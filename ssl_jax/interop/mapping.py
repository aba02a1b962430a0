"""One description of how parameters correspond, read in both directions.

A table is a sequence of `Row`s. A row joins tensors of ours (paths such as "encoder/stack/block00/attention/query/kernel")
to tensors of theirs (names such as "vit.encoder.layer.0.attention.attention.query.weight") by a pair of functions that
undo each other.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from ssl_jax.errors import UserError

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Transform:
    """`ours(*theirs)` and `theirs(*ours)`, each a tuple of arrays, the inverse of each other."""

    ours: Callable[..., tuple]
    theirs: Callable[..., tuple]


SAME = Transform(lambda *x: x, lambda *x: x)
TRANSPOSED = Transform(lambda x: (x.T,), lambda x: (x.T,))  # a dense kernel [in, out] and torch's weight [out, in]


def leading(axes: int) -> Transform:
    """Theirs has so many more axes of length 1 in front; -1: ours has one more."""
    if axes < 0:
        return Transform(lambda x: (x[None],), lambda x: (x[0],))
    return Transform(lambda x: (x.reshape(x.shape[axes:]),), lambda x: (x.reshape((1,) * axes + x.shape),))


def convolution(patch: tuple[int, int]) -> Transform:
    """A patch embedding: their convolution [out, channels, rows, columns], our kernel [(row, column, channel), out]."""
    p, q = patch
    return Transform(
        lambda x: (x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),),
        lambda x: (x.reshape(p, q, -1, x.shape[1]).transpose(3, 2, 0, 1),),
    )


def fused(parts: int, *, transposed: bool = True) -> Transform:
    """Several dense layers side by side in one of theirs: kernels, or biases; `transposed` as torch's Linear is."""

    def ours(x):
        if x.ndim == 2 and transposed:
            x = x.T
        return tuple(np.split(x, parts, axis=-1))

    def theirs(*pieces):
        x = np.concatenate(pieces, axis=-1)
        return (x.T if x.ndim == 2 and transposed else x,)

    return Transform(ours, theirs)


@dataclasses.dataclass(frozen=True)
class Row:
    """Paths of ours and names of theirs; "{i}" and "{i:02d}" stand for the block's number."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transform: Transform = SAME


def row(ours: str | Sequence[str], theirs: str | Sequence[str], transform: Transform = SAME) -> Row:
    pack = lambda x: (x,) if isinstance(x, str) else tuple(x)
    return Row(pack(ours), pack(theirs), transform)


def constant(theirs: str, value: np.ndarray, what: str) -> Row:
    """A tensor of theirs that our model fixes: written out, and checked when it is read."""

    def check(x):
        if not np.array_equal(x, value):
            raise UserError(f"{theirs}: differs from {what}, which this model fixes")
        return ()

    return Row((), (theirs,), Transform(check, lambda: (value,)))


def dense(ours: str, theirs: str, *, bias: bool = True, weight: Transform = TRANSPOSED) -> list[Row]:
    """A dense layer."""
    rows = [row(f"{ours}/kernel", f"{theirs}.weight", weight)]
    return rows + ([row(f"{ours}/bias", f"{theirs}.bias")] if bias else [])


def norm(ours: str, theirs: str, *, bias: bool = True) -> list[Row]:
    """A layer norm, or without a bias an RMS norm."""
    rows = [row(f"{ours}/scale", f"{theirs}.weight")]
    return rows + ([row(f"{ours}/bias", f"{theirs}.bias")] if bias else [])


def blocks(depth: int, rows: Iterable[Row]) -> list[Row]:
    """The rows of one block, for each of `depth`."""
    rows = list(rows)
    fill = lambda names, i: tuple(name.format(i=i) for name in names)
    return [Row(fill(r.ours, i), fill(r.theirs, i), r.transform) for i in range(depth) for r in rows]


# Reading a table -------------------------------------------------------------------------------------------------------


def to_ours(
    rows: Sequence[Row], tensors: Tensors, expected: Mapping[str, tuple[int, ...]], source: str
) -> dict[str, np.ndarray]:
    """Our parameters by path, f32, of the shapes `expected`; `source` names the file in errors.

    UserError for tensors of theirs that are missing or that the table does not know, and for shapes that do not fit.
    """
    known = [name for r in rows for name in r.theirs]
    _same_names(set(known), set(tensors), f"{source}: lacks", f"{source}: holds tensors that this architecture has not:")
    covered = [path for r in rows for path in r.ours]
    if set(covered) != set(expected):
        raise UserError(f"{source}: no tensor of theirs gives {listed(set(expected) ^ set(covered))}")
    found = {}
    for r in rows:
        given = [tensors[name] for name in r.theirs]
        count, held = sum(math.prod(expected[path]) for path in r.ours), sum(a.size for a in given)
        if count > max(held, 2**28):  # too much to try out
            raise UserError(f"{source}: {listed(r.theirs)}: {held:,} values, expected {count:,} by config.json")
        wanted = r.transform.theirs(*(np.zeros(expected[path], np.float32) for path in r.ours))
        for name, a, b in zip(r.theirs, given, wanted, strict=True):
            if a.shape != b.shape:
                raise UserError(f"{source}: {name} has shape {list(a.shape)}, expected {list(b.shape)} by config.json")
        pieces = r.transform.ours(*(np.asarray(a, np.float32) for a in given))
        found |= {path: np.asarray(piece, order="C") for path, piece in zip(r.ours, pieces, strict=True)}
    return found


def to_theirs(rows: Sequence[Row], params: Tensors, architecture: str) -> dict[str, np.ndarray]:
    """Their tensors by name, f32. UserError for parameters that are missing or that `architecture` has no place for."""
    covered = {path for r in rows for path in r.ours}
    _same_names(covered, set(params), f"{architecture}: the checkpoint lacks", f"{architecture}: has no place for")
    found = {}
    for r in rows:
        pieces = r.transform.theirs(*(np.asarray(params[path], np.float32) for path in r.ours))
        found |= {name: np.asarray(piece, order="C") for name, piece in zip(r.theirs, pieces, strict=True)}
    return found


def _same_names(known: set[str], given: set[str], lacks: str, unknown: str) -> None:
    if known - given:
        raise UserError(f"{lacks} {listed(known - given)}")
    if given - known:
        raise UserError(f"{unknown} {listed(given - known)}")


def listed(names: Iterable[str], most: int = 8) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
