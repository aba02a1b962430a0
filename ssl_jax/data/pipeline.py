"""The global batch as a pure function of (seed, step): the only saved data state is one integer, the step.

Workers and prefetching hide the latency of decoding and change no value. A data set that fits may be placed on the device:
then a host batch holds only indices, and indexing and augmentation run inside the jitted step.
"""

import dataclasses
import functools
import re
import signal
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import grain  # not in the thread that reads: while it is imported, imports of other threads can fail (etils' lazy imports)
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Key

from ssl_jax import randomness, signals
from ssl_jax.data.labels import rarest_class
from ssl_jax.data.sources import BadExample, Source
from ssl_jax.errors import UserError
from ssl_jax.task import DataInfo

HostBatch = dict[str, np.ndarray]
SAMPLING = ("uniform", "class_balanced")  # how training examples are drawn
Arrays = Mapping[str, jax.Array | np.ndarray]


class ReaderDied(Exception):
    """A process that reads examples has died during the run."""

    def __init__(self, workers: int, status: int):
        super().__init__(workers, status)
        self.workers, self.status = workers, status

    def __str__(self) -> str:
        name = signal.Signals(-self.status).name if self.status < 0 else f"exit status {self.status}"
        memory = ", as the kernel does when memory runs out" if self.status == -signal.SIGKILL else ""
        return f"a reader process died ({name}){memory}; try fewer than data.workers={self.workers}"


def gather_rows(resident: Arrays, index: Array | np.ndarray) -> dict[str, Any]:
    """Return row `index[b]` of every resident array."""
    return {name: array[index] for name, array in resident.items()}


def unchanged(batch: Arrays, keys: Key[Array, "batch"] | None) -> dict[str, Any]:
    return dict(batch)


@dataclasses.dataclass
class Dataset:
    """Random access to examples, and their transforms on the host and on the device.

    `example(i, generator)` decodes example i into arrays of fixed shape; with a generator it augments on the host, with None
    it applies the evaluation transform. `arrays`, if given, holds the same raw examples as arrays (leading axis: examples),
    so that no example is read individually. `resident` holds the arrays on the device for placement "device"; `gather`
    takes a raw batch from it. `on_device` computes the task's batch from a raw one, augmented if keys are given.
    """

    info: DataInfo
    size: int
    example: Callable[[int, np.random.Generator | None], dict[str, np.ndarray]]
    source: Source
    resident: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    gather: Callable[[Arrays, Any], dict[str, Any]] = gather_rows
    on_device: Callable[[Arrays, Key[Array, "batch"] | None], dict[str, Any]] = unchanged
    arrays: dict[str, np.ndarray] | None = None
    label_array: np.ndarray | None = None  # if they differ from the source's
    placement: str = "host"  # "device" or "host": the setting, with "auto" resolved
    workers: int = 0
    skip_bad: bool = False  # settings' on_bad_example="skip"
    class_balanced: bool = False  # training draws every class equally often
    bad: set[int] = dataclasses.field(default_factory=set)  # indices found unreadable in this process
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)  # why -> of how many examples (see `existing`)

    def labels(self) -> np.ndarray | None:
        """Return i32[size] without decoding any example; None without labels."""
        return self.source.labels() if self.label_array is None else self.label_array

    def places(self) -> np.ndarray:
        """Return i64[size]: the index of each example in the whole source, before any split or skipping."""
        places, dataset = np.arange(self.size), self
        while isinstance(dataset.source, Part):
            places, dataset = dataset.source.indices[places], dataset.source.parent
        return places

    def skipped(self) -> int:
        """Return the number of skipped examples of the source: unreadable, without a label, or of an unknown class."""
        return len(self.bad) + sum(self.left_out.values())

    def notes(self) -> tuple[str, ...]:
        """Return the source's remarks and the counts of examples that are not in this data set, one line each."""
        lines = list(self.source.remarks())
        lines += [f"skipped: {count:,} examples {why}" for why, count in self.left_out.items() if count]
        return tuple(f"{self.source.name}: {line}" for line in lines)

    def fingerprint(self) -> dict[str, Any]:
        """Return the source's name, number of examples and digest, before any split."""
        source = whole(self.source)
        return {"source": source.name, "examples": len(source), "digest": source.fingerprint()}

    def read(self, index: int, generator: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Return example(index), or the next readable one if bad examples are skipped. Raises BadExample otherwise."""
        state = generator.bit_generator.state if generator is not None else None
        for candidate in range(index, index + self.size):
            candidate %= self.size
            try:
                if candidate not in self.bad:
                    return self.example(candidate, generator)
            except BadExample:
                if not self.skip_bad:
                    raise
                self.bad.add(candidate)
            if generator is not None:
                generator.bit_generator.state = state
        raise UserError(f"{self.source.name}: none of its {self.size:,} examples can be read; run `ssl-jax data inspect` on it")

    def rows(self, index: np.ndarray, generators: list[np.random.Generator] | None = None) -> HostBatch:
        """Return the raw examples at `index` as one batch of arrays."""
        if self.arrays is not None:
            return {name: array[index] for name, array in self.arrays.items()}
        examples = [self.read(int(i), generators[b] if generators else None) for b, i in enumerate(index)]
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def subset(dataset: Dataset, indices: Any) -> Dataset:
    """Return the examples of `dataset` at `indices` (i64[n], repeats allowed), in that order."""
    indices = np.asarray(indices, np.int64)
    if indices.ndim != 1 or len(indices) == 0 or indices.min() < 0 or indices.max() >= dataset.size:
        raise ValueError(f"indices must be a non-empty list within [0, {dataset.size})")
    parent, of_parent = dataset, Part(dataset, indices)
    changes: dict[str, Any] = dict(size=len(indices), example=of_parent.example, source=of_parent, bad=set())
    changes["label_array"] = None
    if parent.arrays is not None:
        changes["arrays"] = {name: array[indices] for name, array in parent.arrays.items()}
        changes["resident"] = changes["arrays"] if parent.resident else {}
    elif parent.resident:
        changes["gather"] = lambda resident, index: parent.gather(resident, jnp.asarray(indices, np.int32)[index])
    return dataclasses.replace(dataset, **changes)


class Part(Source):
    """The examples of a data set at a list of indices, as a source."""

    def __init__(self, parent: Dataset, indices: np.ndarray):
        self.parent, self.indices = parent, indices
        self.name, self.classes, self.class_texts = parent.source.name, parent.source.classes, parent.source.class_texts

    @property
    def captions(self) -> Callable[[int], tuple[str, ...]] | None:
        return None if self.parent.source.captions is None else self._captions

    def _captions(self, index: int) -> tuple[str, ...]:
        return self.parent.source.captions(int(self.indices[index]))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.parent.source[int(self.indices[index])]

    def labels(self) -> np.ndarray | None:
        labels = self.parent.labels()
        return None if labels is None else labels[self.indices]

    def describe(self, index: int) -> str:
        return self.parent.source.describe(int(self.indices[index]))

    def example(self, index: int, generator: np.random.Generator | None) -> dict[str, np.ndarray]:
        return self.parent.example(int(self.indices[index]), generator)

    def keys(self) -> Iterable[bytes]:
        keys = list(self.parent.source.keys())
        return (keys[index] for index in self.indices)

    def remarks(self) -> tuple[str, ...]:
        return self.parent.source.remarks()


def whole(source: Source) -> Source:
    """Return the source that a part, or a part of a part, was taken from."""
    while isinstance(source, Part):
        source = source.parent.source
    return source


def balanced_subset(
    labels: np.ndarray, *, fraction: float | None = None, per_class: int | None = None, seed: int = 0
) -> np.ndarray:
    """Return sorted i64 indices of a random subset with equally many examples of each class.

    `fraction` of all examples (at least one per class) or `per_class` of each class; all examples of a class with fewer.
    Where an example may have several classes (bool[examples, classes]), the subset cannot be balanced: it holds `fraction` of
    the examples of each rarest class (at least one). Subsets of the same seed are nested.
    """
    if (fraction is None) == (per_class is None):
        raise ValueError("give either fraction or per_class")
    several, labels = labels.ndim == 2, rarest_class(labels) if labels.ndim == 2 else labels
    order = np.random.default_rng([zlib.crc32(b"balanced_subset"), seed]).permutation(len(labels))
    members = [order[labels[order] == label] for label in np.unique(labels)]
    count = per_class if per_class is not None else max(1, round(fraction * len(labels) / len(members)))
    sizes = [max(1, round(fraction * len(own))) if several else count for own in members]
    return np.sort(np.concatenate([own[:size] for own, size in zip(members, sizes, strict=True)]))


class ClassBalanced:
    """Map each position in a run to an example, so that C consecutive positions hold one example of each of C classes.

    The examples of a class are ordered by keyed permutations, so each of them is drawn equally often. Classes without
    examples are ignored. Raise UserError without labels, and if an example has several classes.
    """

    def __init__(self, dataset: Dataset, seed: int):
        labels = dataset.labels()
        if labels is None or labels.ndim == 2:
            why = "its examples have several classes" if labels is not None else "it has no labels"
            raise UserError(f'data.sampling="class_balanced": {dataset.source.name}: {why}; use "uniform"')
        self.members, self.seed = [np.flatnonzero(labels == label) for label in np.unique(labels)], seed
        self._latest: dict[int, tuple[int, np.ndarray]] = {}  # cached per order: its epoch and permutation

    def __getitem__(self, position: int) -> int:
        count = len(self.members)
        number = self._shuffled(0, count, position)
        own = self.members[number]
        return int(own[self._shuffled(1 + number, len(own), position // count)])

    def _shuffled(self, order: int, count: int, position: int) -> int:
        """Return the entry at `position` in a sequence of keyed permutations of range(count)."""
        epoch, place = divmod(position, count)
        known = self._latest.get(order)
        if known is None or known[0] != epoch:
            key = np.random.SeedSequence([zlib.crc32(b"class_balanced"), self.seed % 2**64, order, epoch])
            known = self._latest[order] = epoch, np.random.Generator(np.random.Philox(key)).permutation(count)
        return int(known[1][place])


class Stream:
    """The training stream: (seed, step) -> the global batch of `batch_size` examples, a pure function.

    Every epoch is a keyed permutation of all examples (grain's MapDataset). Epochs are concatenated: a batch may hold the
    end of one and the beginning of the next, and no example is dropped. With `class_balanced` an epoch has the same number
    of examples, with every class equally often (`ClassBalanced`).
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        seed: int,
        placement: str | None = None,
        workers: int | None = None,
        shuffle: bool = True,
    ):
        if batch_size < 1:
            raise UserError(f"data.batch_size={batch_size}: must be at least 1")
        if dataset.size < 1:
            raise UserError(f"{dataset.source.name}: holds no examples")
        placement = dataset.placement if placement in (None, "auto") else placement
        if placement == "device" and not dataset.resident:
            raise UserError(f'data.placement="device": {dataset.source.name} has no arrays of one size; use "host"')
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.placement, self.shuffle = placement, shuffle
        self.workers = dataset.workers if workers is None else workers
        self.steps_per_epoch = dataset.size / batch_size
        self.resident = dataset.resident if placement == "device" else {}
        if dataset.class_balanced:
            _ = self._order  # UserError without labels before training

    @functools.cached_property
    def _order(self) -> Any:
        """Map each position in the run to an example; unbounded."""
        if self.dataset.class_balanced:
            return ClassBalanced(self.dataset, self.seed)
        order = grain.MapDataset.range(self.dataset.size)
        # grain shuffles epoch e with seed + e: neighbouring seeds would share their epochs, so the seed is hashed first
        hashed = int(np.random.SeedSequence([zlib.crc32(b"order"), self.seed % 2**64]).generate_state(1)[0])
        return (order.shuffle(seed=hashed) if self.shuffle else order).repeat()

    def indices(self, step: int) -> np.ndarray:
        """Return i64[batch_size]: the examples of the global batch of `step`."""
        return self._indices(step, np.arange(self.batch_size))

    def _indices(self, step: int, position: np.ndarray) -> np.ndarray:
        start = int(step) * self.batch_size
        return np.array([self._order[start + int(p)] for p in position], np.int64)

    def host_batch(self, step: int, rows: Any = slice(None)) -> HostBatch:
        """Return this process's part of the global batch of `step`: its `rows` (a slice or a list).

        It always holds "position" i32[rows], the row in the global batch, and "index" i32[rows], the example in the data
        set; with placement "device" nothing else. If bad examples are skipped, "bad" bool[rows] marks replaced ones.
        Pure: it does not depend on workers or on earlier reads.
        """
        position = np.arange(self.batch_size, dtype=np.int32)[rows]
        return self._read(step, position, self._indices(step, position))

    def example(self) -> HostBatch:
        """Return a batch of only the first example; it has the shapes of a host batch, except for the number of rows."""
        return self._read(0, np.zeros(1, np.int32), np.zeros(1, np.int64))

    def _read(self, step: int, position: np.ndarray, index: np.ndarray) -> HostBatch:
        batch = {"position": position, "index": index.astype(np.int32)}
        if self.placement == "device":
            return batch
        generators = None
        if self.dataset.arrays is None:
            entropy = [zlib.crc32(b"augment"), self.seed % 2**64, int(step)]
            generators = [np.random.Generator(np.random.Philox(np.random.SeedSequence([*entropy, int(p)]))) for p in position]
        batch |= self.dataset.rows(index, generators)
        if self.dataset.skip_bad:
            batch["bad"] = np.array([i in self.dataset.bad for i in index.tolist()])
        return batch

    def iterate(self, start: int, rows: Any = slice(None)) -> Iterator[HostBatch]:
        """Yield host_batch(start), host_batch(start + 1) ... without end, read ahead by threads or by `workers` processes."""
        if self.placement == "device" or self.dataset.arrays is not None:  # cheaper than workers
            return (self.host_batch(step, rows) for step in _count(start))
        batches = grain.MapDataset.source(_Steps(self, start, rows))
        if self.workers == 0:
            return self._received(batches.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)))
        if not flags.FLAGS.is_parsed():  # grain's worker pool reads absl flags, which only absl's app.run parses
            flags.FLAGS.mark_as_parsed()
        alone = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        options = grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=2)
        return self._received(batches.to_iter_dataset(alone).mp_prefetch(options, signals.become_reader))

    def _received(self, batches: Iterable) -> Iterator[HostBatch]:
        """Yield the readers' batches, and record in this process the examples that they skipped."""
        if self.workers:
            signals.shield_children()
            signals.spare_main_module()
        try:
            for batch, bad in batches:
                self.dataset.bad.update(bad.tolist())
                yield batch
        except RuntimeError as error:
            killed = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
            if killed is None:
                raise
            raise ReaderDied(self.workers, int(killed[1])) from error

    def on_device(self, resident: Arrays, host_batch: Arrays, key: Key[Array, ""] | None) -> dict:
        """Return the task's batch (jittable): gathered from resident arrays, augmented with a key per position if `key` is
        given. "position", "index" and "bad" remain in it.
        """
        places = {name: host_batch[name] for name in ("position", "index", "bad") if name in host_batch}
        raw = {name: value for name, value in host_batch.items() if name not in places}
        if resident:
            raw = self.dataset.gather(resident, host_batch["index"])
        keys = None if key is None else randomness.example_keys(key, jnp.asarray(host_batch["position"]))
        return {**self.dataset.on_device(raw, keys), **places}


def _count(start: int) -> Iterator[int]:
    while True:
        yield start
        start += 1


class _Steps:
    """Steps from `start` on as a random-access source of host batches, for grain's readers."""

    def __init__(self, stream: Stream, start: int, rows: Any):
        self.stream, self.start, self.rows = stream, start, rows

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, step: int) -> tuple[HostBatch, np.ndarray]:
        batch = self.stream.host_batch(self.start + int(step), self.rows)
        return batch, np.array(sorted(self.stream.dataset.bad.copy()), np.int64)


def eval_batches(dataset: Dataset, batch_size: int) -> Iterator[tuple[HostBatch, np.ndarray]]:
    """Yield every example once, in order, under the evaluation transform: (raw batch, mask bool[batch_size]).

    The last batch is padded with example 0; the mask is False for padding and for skipped unreadable examples. Batches
    hold "position" and "index"; `dataset.on_device(batch, None)` computes the task's batch.
    """

    def batch(start: int) -> tuple[HostBatch, np.ndarray]:
        index = np.arange(start, start + batch_size)
        mask = index < dataset.size
        index = np.where(mask, index, 0)
        values = dataset.rows(index)
        mask &= np.array([i not in dataset.bad for i in index.tolist()])
        places = {"position": np.arange(batch_size, dtype=np.int32), "index": index.astype(np.int32)}
        return places | values, mask

    starts = range(0, dataset.size, batch_size)
    if dataset.arrays is not None:
        return (batch(start) for start in starts)
    batches = grain.MapDataset.source(list(starts)).map(batch)
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)))
