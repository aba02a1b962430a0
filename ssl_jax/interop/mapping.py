"""One table of corresponding parameters, used in both directions.

A table is a sequence of `Row`s. A row maps our parameters (paths such as "encoder/stack/block00/attention/query/kernel")
to their tensors (names such as "vit.encoder.layer.0.attention.attention.query.weight") by a pair of inverse functions.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from ssl_jax.errors import UserError

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Transform:
    """A pair of inverse functions, `ours(*theirs)` and `theirs(*ours)`, each of which returns a tuple of arrays."""

    ours: Callable[..., tuple]
    theirs: Callable[..., tuple]


SAME = Transform(lambda *x: x, lambda *x: x)
TRANSPOSED = Transform(lambda x: (x.T,), lambda x: (x.T,))  # our dense kernel [in, out], torch's weight [out, in]


def leading(axes: int) -> Transform:
    """Return the transform to a tensor with `axes` more leading axes of length 1; -1: ours has one more."""
    if axes < 0:
        return Transform(lambda x: (x[None],), lambda x: (x[0],))
    return Transform(lambda x: (x.reshape(x.shape[axes:]),), lambda x: (x.reshape((1,) * axes + x.shape),))


def convolution(patch: tuple[int, int]) -> Transform:
    """Return the transform of a patch embedding: their convolution [out, channels, rows, columns], our kernel [(row, column,
    channel), out]."""
    p, q = patch
    return Transform(
        lambda x: (x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),),
        lambda x: (x.reshape(p, q, -1, x.shape[1]).transpose(3, 2, 0, 1),),
    )


def fused(parts: int, *, transposed: bool = True) -> Transform:
    """Return the transform of several dense layers that they fuse (kernels or biases); `transposed`: as in torch's Linear."""

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
    """Our paths and their names; "{i}" and "{i:02d}" are replaced by the block's number."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transform: Transform = SAME


def row(ours: str | Sequence[str], theirs: str | Sequence[str], transform: Transform = SAME) -> Row:
    pack = lambda x: (x,) if isinstance(x, str) else tuple(x)
    return Row(pack(ours), pack(theirs), transform)


def constant(theirs: str, value: np.ndarray, what: str) -> Row:
    """Return the row of a tensor of theirs that is constant in our model: exported, and checked on import."""

    def check(x):
        if not np.array_equal(x, value):
            raise UserError(f"{theirs}: must equal {what}, which are constant in this model")
        return ()

    return Row((), (theirs,), Transform(check, lambda: (value,)))


def dense(ours: str, theirs: str, *, bias: bool = True, weight: Transform = TRANSPOSED) -> list[Row]:
    """Return the rows of a dense layer."""
    rows = [row(f"{ours}/kernel", f"{theirs}.weight", weight)]
    return rows + ([row(f"{ours}/bias", f"{theirs}.bias")] if bias else [])


def norm(ours: str, theirs: str, *, bias: bool = True) -> list[Row]:
    """Return the rows of a layer norm, or without bias of an RMS norm."""
    rows = [row(f"{ours}/scale", f"{theirs}.weight")]
    return rows + ([row(f"{ours}/bias", f"{theirs}.bias")] if bias else [])


def blocks(depth: int, rows: Iterable[Row]) -> list[Row]:
    """Return the rows of each of `depth` blocks."""
    rows = list(rows)
    fill = lambda names, i: tuple(name.format(i=i) for name in names)
    return [Row(fill(r.ours, i), fill(r.theirs, i), r.transform) for i in range(depth) for r in rows]


# Reading a table -------------------------------------------------------------------------------------------------------


def to_ours(
    rows: Sequence[Row], tensors: Tensors, expected: Mapping[str, tuple[int, ...]], source: str
) -> dict[str, np.ndarray]:
    """Return our parameters by path, f32, of the shapes `expected`; `source` names the file in errors.

    Raise UserError if tensors are missing, if the table has no row for one, or if shapes do not fit.
    """
    known = [name for r in rows for name in r.theirs]
    _same_names(
        set(known), set(tensors), f"{source}: lacks", f"{source}: contains tensors that this architecture does not have:"
    )
    covered = [path for r in rows for path in r.ours]
    if set(covered) != set(expected):
        raise UserError(f"{source}: no tensor corresponds to {listed(set(expected) ^ set(covered))}")
    found = {}
    for r in rows:
        given = [tensors[name] for name in r.theirs]
        count, held = sum(math.prod(expected[path]) for path in r.ours), sum(a.size for a in given)
        if count > max(held, 2**28):  # too large to allocate
            raise UserError(f"{source}: {listed(r.theirs)}: {held:,} values, expected {count:,} by config.json")
        wanted = r.transform.theirs(*(np.zeros(expected[path], np.float32) for path in r.ours))
        for name, a, b in zip(r.theirs, given, wanted, strict=True):
            if a.shape != b.shape:
                raise UserError(f"{source}: {name} has shape {list(a.shape)}, expected {list(b.shape)} by config.json")
        pieces = r.transform.ours(*(np.asarray(a, np.float32) for a in given))
        found |= {path: np.asarray(piece, order="C") for path, piece in zip(r.ours, pieces, strict=True)}
    return found


def to_theirs(rows: Sequence[Row], params: Tensors, architecture: str) -> dict[str, np.ndarray]:
    """Return their tensors by name, f32; raise UserError if parameters are missing or have no place in `architecture`."""
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
