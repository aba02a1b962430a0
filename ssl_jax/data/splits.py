"""The held-out split of a source that has no test set of its own."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np


def held_out(keys: Iterable[bytes], share: float, labels: np.ndarray | None = None, *, seed: int = 0) -> np.ndarray:
    """Return bool[examples]: which examples a random share is held out of training.

    Whether an example is held out depends on its key alone (its name within the source, or its content): a keyed hash of it
    is compared with `share`. So the split stays what it was when examples are added, removed or put in another order, and
    equal examples are on one side. With `labels` (i32[examples], or of several classes an example bool[examples, classes])
    this holds in every class, which makes the split stratified in expectation.

    Each class of two examples or more has at least one on either side: if need be the one with the lowest hash is held out,
    and the one with the highest is kept. As a class grows its lowest hash can only fall to a new example, so that no example
    that was trained on moves into the test set. An example of several classes that is the lowest of one and the highest of
    another is kept: every class has an example to train on.
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
    """Yield the indices of the examples of each class that occurs; of several classes an example, of none as well."""
    if labels is None:
        yield np.arange(count)
    elif labels.ndim == 1:
        order = np.argsort(labels, kind="stable")
        yield from np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    else:
        members = (np.flatnonzero(column) for column in (*labels.T, ~labels.any(axis=1)))
        yield from (own for own in members if len(own))


def is_below(key: bytes, share: float, *, seed: int = 0) -> bool:
    """Return whether the hash of `key` lies below `share`: `held_out` of one example, without the rule for small sets."""
    return _hash(key, seed) < _threshold(share)


def _hash(key: bytes, seed: int) -> int:
    salt = b"holdout" if seed == 0 else f"holdout {seed}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8, key=salt).digest(), "big")


def _threshold(share: float) -> int:
    return min(int(share * 2**64), 2**64 - 1)
