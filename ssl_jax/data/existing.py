"""Select the examples that a run uses: labelled where labels are needed, of a known class, and readable."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np

from ssl_jax.cache import user_cache
from ssl_jax.data.labels import without_and_with
from ssl_jax.data.pipeline import Dataset, Part, subset, whole
from ssl_jax.data.sources import MISSING, BadExample, Source
from ssl_jax.errors import UserError

LARGE = 10_000  # with at least so many examples, the check shows a progress bar and its result is stored on disk
_READABLE: weakref.WeakKeyDictionary[Source, dict[str, np.ndarray]] = weakref.WeakKeyDictionary()
_UNCHECKED, _GOOD, _BAD = 0, 1, 2


def existing(dataset: Dataset, *, scan: bool, augmented: bool = False, unlabelled: bool = False) -> Dataset:
    """Return the examples that a run uses: with a label if the source has labels, of a known class, and readable.

    Every command selects examples here. Size, labels, order and subsets of the result refer to the selected examples only, so
    features and labels always have equal length. `left_out` counts the others by reason.

    scan: if bad examples are skipped, read every example once to find them. The result is shared by all data sets of this
    source in the process; that of a large source is also stored on disk. Without `scan` (an unlabelled training set may be
    too large to read before training), a bad example is found when it is read, and is replaced by the next one.
    augmented: examples are read under a training transform. unlabelled: also keep examples without a label.

    Raise UserError for a missing label, unless bad examples are skipped or `unlabelled` is set, and if no example is left.
    """
    keep, left_out, source = np.ones(dataset.size, bool), dict(dataset.left_out), dataset.source
    labels = None if unlabelled or whole(source).all_labelled else dataset.labels()
    if labels is not None and labels.ndim == 1:  # with several classes per example, "none" is a valid label
        missing, unknown = labels == MISSING, labels < MISSING
        if missing.any() and not dataset.skip_bad:
            raise UserError(
                f"{source.describe(int(np.argmax(missing)))} has no label ({np.sum(missing):,} of {dataset.size:,} have none); "
                'fill it in, or set data.on_bad_example="skip" to leave such examples out'
            )
        left_out |= {"without a label": int(np.sum(missing)), "of classes that training does not have": int(np.sum(unknown))}
        keep = labels >= 0
    if scan and dataset.skip_bad and dataset.arrays is None:
        candidates = np.flatnonzero(keep)
        bad = candidates[~readable(dataset, candidates)]
        keep[bad] = False
        left_out["that cannot be read"] = left_out.get("that cannot be read", 0) + len(bad)
        if not augmented:  # an example that fails later must raise: the number of features is fixed
            dataset = dataclasses.replace(dataset, skip_bad=False)
    if not keep.any():
        raise UserError(f"{source.name}: not one of its {dataset.size:,} examples can be read")
    dataset = dataset if keep.all() else subset(dataset, np.flatnonzero(keep))
    return dataclasses.replace(dataset, left_out=left_out)


def with_class_counts(dataset: Dataset, task_section: Any) -> Dataset:
    """Add info.extra["class_counts"], the number of examples of each class, if the task has `class_weights`.

    With several classes per example: for each class, the numbers of examples without it and with it. Raise UserError if the
    counts are unknown before training.
    """
    if not (task_section or {}).get("class_weights"):
        return dataset
    labels = None if whole(dataset.source).all_labelled else dataset.labels()
    if labels is None:
        raise UserError(f"task.class_weights: {dataset.source.name}: its labels are not known before training; leave it out")
    if labels.ndim == 2:
        counts = without_and_with(labels)
    else:
        counts = np.bincount(labels[labels >= 0], minlength=len(dataset.info.classes))
    info = dataclasses.replace(dataset.info, extra={**dataset.info.extra, "class_counts": counts.tolist()})
    return dataclasses.replace(dataset, info=info)


def readable(dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    """Return bool[len(indices)]: whether each example can be read and transformed for evaluation.

    The result for a large source is stored in the user's cache. A later process reads only the bad examples again.
    """
    places, root = dataset.places()[indices], dataset
    while isinstance(root.source, Part):
        root = root.source.parent
    source, kind = getattr(root.source, "base", root.source), type(root.example).__name__
    known = _READABLE.setdefault(source, {})
    if kind not in known:
        known[kind] = _stored(source, kind)
    states = known[kind]

    def check(pair: tuple[int, int]) -> None:
        index, place = pair
        try:
            dataset.example(index, None)
            states[place] = _GOOD
        except BadExample:
            states[place] = _BAD

    todo = states[places] == _UNCHECKED
    pairs = list(zip(np.asarray(indices)[todo].tolist(), places[todo].tolist(), strict=True))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for _ in _bar(pool.map(check, pairs), len(pairs), source.name):
            pass
    if len(pairs) >= LARGE:
        _store(source, kind, states)
    return states[places] == _GOOD


def _file(source: Source, kind: str) -> pathlib.Path:
    name = hashlib.sha256(f"{source.name}\0{source.fingerprint()}\0{kind}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return user_cache() / "readable" / f"{name}.npy"


def _stored(source: Source, kind: str) -> np.ndarray:
    """Return u8[len(source)]: _GOOD for examples that an earlier process could read, else _UNCHECKED."""
    if len(source) >= LARGE:
        with contextlib.suppress(OSError, ValueError, EOFError):
            states = np.load(_file(source, kind), allow_pickle=False)
            if states.shape == (len(source),) and states.dtype == np.uint8:
                return np.where(states == _GOOD, states, np.uint8(_UNCHECKED))
    return np.full(len(source), _UNCHECKED, np.uint8)


def _store(source: Source, kind: str, states: np.ndarray) -> None:
    file = _file(source, kind)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as handle:
            np.save(handle, states)
        os.replace(partial, file)


def _bar(items: Iterable, total: int, name: str) -> Iterable:
    if total < LARGE:
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, f"reading {name} once", total=total, console=Console(stderr=True), transient=True)
