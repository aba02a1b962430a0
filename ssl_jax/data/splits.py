"""The held-out split of a source that has no test set of its own."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np


def held_out(keys: Iterable[bytes], share: float, labels: np.ndarray | None = None, *, seed: int = 0) -> np.ndarray:
    """Return bool[examples]: True for the examples held out of training, in expectation the given share.

    An example is held out if the hash of its key (its name within the source, or its content) is below `share`. The split
    therefore does not change when examples are added, removed or reordered, and equal examples are on the same side. As the
    hash is independent of the class, the split is stratified in expectation.

    labels: i32[examples], or bool[examples, classes] with several classes per example. Each class with at least two examples
    has one on either side: the example with the lowest hash is held out, and the one with the highest hash is kept. When a
    class grows, only a new example can take over the lowest hash, so this rule moves no training example into the test set.
    An example that is the lowest of one class and the highest of another is kept: every class keeps a training example.
    """
    hashes = np.array([_hash(key, seed) for key in keys], np.uint64)
    if share <= 0 or len(hashes) < 2:
        return np.zeros(len(hashes), bool)
    lowest, highest = np.zeros(len(hashes), bool), np.zeros(len(hashes), bool)
    for members in _classes(labels, len(hashes)):
        own = hashes[members]
        lowest[members[own == own.min()]] = True
        highest[members[own == own.max()]] = True
    return ((hashes < np.uint64(_threshold(share))) | lowest) & ~highest


def _classes(labels: np.ndarray | None, count: int) -> Iterator[np.ndarray]:
    """Yield the indices of the examples of each class; with several classes per example also of those without any class."""
    if labels is None:
        yield np.arange(count)
    elif labels.ndim == 1:
        order = np.argsort(labels, kind="stable")
        yield from np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    else:
        members = (np.flatnonzero(column) for column in (*labels.T, ~labels.any(axis=1)))
        yield from (own for own in members if len(own))


def is_below(key: bytes, share: float, *, seed: int = 0) -> bool:
    """Return whether the hash of `key` is below `share`: `held_out` for one example, without the minimum per class."""
    return _hash(key, seed) < _threshold(share)


def _hash(key: bytes, seed: int) -> int:
    salt = b"holdout" if seed == 0 else f"holdout {seed}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8, key=salt).digest(), "big")


def _threshold(share: float) -> int:
    return min(int(share * 2**64), 2**64 - 1)
