"""Features of a frozen encoder: one pass over each data set serves every evaluator, and every encoder joined to it."""

import hashlib
import os
import pathlib
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssl_jax.config import nearest
from ssl_jax.downstream.evaluator import EvaluationData, identity
from ssl_jax.errors import UserError
from ssl_jax.training.exceptions import Diverged
from ssl_jax.training.replicas import AXIS, over_replicas, replica_mesh

FAILURES = (UserError, Diverged)  # of one encoder; others go on
_PROGRAMS: dict[Any, tuple[Any, dict]] = {}  # of each task (kept, so that its id stays its own) and mesh: by names


class Encoder:
    """A task with parameters, read for its representations.

    `params` are f32 and may be sharded over `mesh`; batches are split over its "data" and "fsdp" axes. The same parameters
    give the same features to the last digit on the same devices.

    Args:
        seed: for random choices in an evaluation.
        baselines: untrained encoders, by name, with the same `extract`.
        planned: names that will be requested later; the first pass over a data set computes them all.
        cache: a directory in which features are stored by `checkpoint` (any string that identifies the parameters),
            source and transform.
    """

    def __init__(
        self,
        task: Any,
        params: Any = None,
        mesh: Mesh | None = None,
        *,
        seed: int = 0,
        baselines: "Mapping[str, Encoder] | None" = None,
        planned: Iterable[str] = (),
        cache: str | os.PathLike | None = None,
        checkpoint: str | None = None,
    ):
        self.task, self.params, self.mesh, self.seed = task, params, mesh, seed
        self.baselines, self.planned = dict(baselines or {}), tuple(planned)
        self.cache, self.checkpoint = pathlib.Path(cache) if cache and checkpoint else None, checkpoint
        self.joined: tuple[Encoder, ...] = (self,)  # see `join`
        self.devices: tuple[jax.Device, ...] = ()
        self._memory: dict[int, dict[str, np.ndarray]] = {}
        self._results: dict[Any, tuple[Any, EvaluationData]] = {}
        self._programs = _PROGRAMS.setdefault((id(task), mesh), (task, {}))[1]

    def extract(self, dataset, names: Iterable[str], batch_size: int = 128) -> dict[str, np.ndarray]:
        """Return features f32[examples, ...] by name in the data set's order, "index" i32[examples], the examples' indices in
        the data set, and "label" i32[examples] if it has labels.

        A name is one of the task's representations ("cls", "mean", "tokens", "block06/mean"), or several joined by "+",
        which are flattened and concatenated. New names are computed in one pass, together with those of `planned`. Skipped
        unreadable examples are missing in both features and labels. Raises UserError for an unknown name and for non-finite
        features.
        """
        names = tuple(dict.fromkeys(names))
        known = self._cached(dataset)
        missing = tuple(name for name in names if name not in known)
        if missing:
            missing = tuple(name for name in dict.fromkeys((*self.planned, *names)) if name not in known)
        if missing or "index" not in known:
            known.update(self._load(dataset, missing) or self._store(dataset, self._compute(dataset, missing, batch_size)))
        result = {name: known[name] for name in (*names, "index")}
        if known["label"] is not None:
            result["label"] = known["label"]
        return result

    def result(
        self, data: EvaluationData, key: Hashable, compute: "Callable[[Sequence[Encoder]], Sequence[Any]]", keep: bool = True
    ) -> Any:
        """Return this encoder's entry of `compute(encoders)`, which is called once for all joined encoders.

        An entry depends on its encoder, the splits of `data` and what `key` names. It is stored with its encoder, until it is
        first asked for or, with `keep`, as long as the encoder. An error as an entry is raised, for its encoder only.
        """
        place = (key, id(data.train), id(data.test))
        if place not in self._results:
            encoders = [encoder for encoder in self.joined if place not in encoder._results]
            for encoder, entry in zip(encoders, compute(encoders), strict=True):
                encoder._results[place] = entry, data  # the reference keeps the ids of the splits unique
        entry, _ = self._results[place] if keep else self._results.pop(place)
        if isinstance(entry, FAILURES):
            raise entry
        return entry

    def forget(self) -> None:
        """Drop the features and results held in memory: the parameters have changed."""
        self._memory.clear()
        self._results.clear()
        for encoder in self.baselines.values():
            encoder.forget()

    def _cached(self, dataset) -> dict:
        key = id(dataset)
        if key not in self._memory:
            self._memory[key] = {}
            weakref.finalize(dataset, self._memory.pop, key, None)
        return self._memory[key]

    def _parameters(self, batch: Mapping[str, Any]):
        return self.params

    @property
    def _features(self) -> Callable:
        """A function (params, batch) -> representations without parameters, since compiled programs outlive this encoder."""
        return self.task.features

    def _compute(self, dataset, names: tuple[str, ...], batch_size: int) -> dict[str, np.ndarray | None]:
        """Compute features in one pass, for this encoder and for joined encoders that lack them; return its own."""
        from ssl_jax.data.pipeline import eval_batches

        if not names and not dataset.skip_bad:
            return self._read(dataset, np.arange(dataset.size))
        encoders = [e for e in self.joined if e is self or (names and not e._cached(dataset).keys() >= set(names))]
        encoders.sort(key=lambda encoder: encoder is not self)
        outputs: list[dict[str, np.ndarray]] = [{} for _ in encoders]
        seen, place, program, pending = [], 0, None, None

        def read(values, mask):
            nonlocal place
            count = int(mask.sum())
            for name, value in values.items():
                for output, own in zip(outputs, program.each(value), strict=True):
                    if name not in output:
                        output[name] = np.empty((dataset.size, *own.shape[1:]), np.float32)
                    output[name][place : place + count] = own[mask]
            place += count

        for raw, mask in eval_batches(dataset, rows_of_batch(encoders, min(batch_size, dataset.size))):
            seen.append(raw["index"][mask])
            if not names:  # even without names, reading finds the readable examples
                continue
            if program is None:
                program = self._program(dataset, encoders, raw, names)
            values = program(raw)
            if pending is not None:  # fetched one batch later, so that the device never waits
                read(*pending)
            pending = values, mask
        if pending is not None:
            read(*pending)
        index = np.concatenate(seen)
        places = self._read(dataset, index)
        own, *others = [{name: value[: len(index)] for name, value in output.items()} for output in outputs]
        for encoder, output in zip(encoders[1:], others, strict=True):
            if all(np.isfinite(value).all() for value in output.values()):  # else it computes them itself, and raises
                encoder._cached(dataset).update(encoder._store(dataset, output | places))
        for name, value in own.items():
            bad = np.flatnonzero(~np.isfinite(value.reshape(len(value), -1)).all(axis=1))
            if len(bad):
                mend = "training diverged: lower optimizer.lr, or evaluate an earlier checkpoint"
                if len(bad) < len(value):
                    mend = f"the first is {dataset.source.describe(int(index[bad[0]]))}; look at it, else {mend}"
                raise UserError(
                    f"features {name!r} of {dataset.source.name}: {len(bad)} of {len(value)} examples hold NaN or infinity;"
                    f" {mend}"
                )
        return own | places

    @staticmethod
    def _read(dataset, index: np.ndarray) -> dict[str, np.ndarray | None]:
        """Return "index" and "label" of the examples that were read."""
        labels = dataset.labels()
        return {"index": index.astype(np.int32), "label": None if labels is None else np.asarray(labels, np.int32)[index]}

    def _program(self, dataset, encoders: "Sequence[Encoder]", raw, names) -> "EncoderProgram":
        """Return the program raw batch -> features of `encoders`, which computes only the given names. Checks the names."""
        batch, function = jax.eval_shape(lambda b: prepare(dataset, b), raw), self._features
        params = [encoder._parameters(batch) for encoder in encoders]
        available = jax.eval_shape(function, params[0], batch)
        for name in names:
            for part in name.split("+"):
                if part not in available:
                    raise UserError(f"representation {part!r}: the encoder has none of that name{nearest(part, available)}")

        def features(params, batch):
            found = function(params, batch)
            return {name: _joined([found[part] for part in name.split("+")]) for name in names}

        return EncoderProgram(encoders, dataset, features, params, names)

    # On disk ----------------------------------------------------------------------------------------------------------

    def _path(self, dataset) -> pathlib.Path:
        info = dataset.info
        transform = sorted((name, tuple(s.shape), str(s.dtype)) for name, s in info.shapes.items())
        options = sorted((k, repr(v)) for k, v in getattr(dataset.on_device, "keywords", {}).items())  # of a partial
        transform = (transform, info.mean, info.std, options)
        ends = {name: value.tobytes() for name, value in sorted(dataset.rows(np.array([0, dataset.size - 1])).items())}
        text = repr((self.checkpoint, identity(dataset.source), dataset.size, transform, ends))
        return self.cache / hashlib.sha256(text.encode()).hexdigest()[:24]

    def _load(self, dataset, names) -> dict | None:
        if self.cache is None:
            return None
        folder = self._path(dataset)
        files = {name: folder / f"{name.replace('/', '.')}.npy" for name in (*names, "label", "index")}
        if not names or not all(file.is_file() for file in files.values()):
            return None
        arrays = {name: np.load(file) for name, file in files.items()}
        return arrays | {"label": arrays["label"] if arrays["label"].size else None}

    def _store(self, dataset, arrays: dict) -> dict:
        if self.cache is not None and jax.process_index() == 0:
            folder = self._path(dataset)
            folder.mkdir(parents=True, exist_ok=True)
            for name, value in arrays.items():
                file = folder / f"{name.replace('/', '.')}.npy"
                partial = file.with_suffix(".partial.npy")
                np.save(partial, np.zeros(0, np.int32) if value is None else value)
                partial.replace(file)
        return arrays


class EncoderProgram:
    """`function(own, batch)` of one encoder, its batches split over the encoder's mesh, or of several joined encoders.

    Several are split over their `devices` instead, like replicas in training, and each device computes the whole batch.
    The compiled program is shared by all encoders of a task that name it the same.

    Args:
        function: (own, the task's batch) -> a tree of arrays.
        owns: for each encoder, what is its own: a tree of parameters and numbers, copied to the devices once.
        name: of `function`, hashable.
    """

    def __init__(self, encoders: Sequence[Encoder], dataset: Any, function: Callable, owns: Sequence[Any], name: Hashable):
        first, self.count = encoders[0], len(encoders)
        self.prepared = jax.jit(lambda raw: prepare(dataset, raw))  # the only part that differs between data sets
        if self.count == 1:
            self.rows = None if first.mesh is None else NamedSharding(first.mesh, PartitionSpec(_axes(first.mesh)))
            whole = None if first.mesh is None else NamedSharding(first.mesh, PartitionSpec())
            self.own = jax.tree.map(lambda x: jax.device_put(x, whole) if isinstance(x, np.ndarray) else x, owns[0])
            build = lambda: jax.jit(function, out_shardings=whole)
        else:
            mesh = replica_mesh(first.devices, self.count)
            self.rows = NamedSharding(mesh, PartitionSpec())
            stacked = jax.tree.map(lambda *parts: np.stack(parts), *jax.device_get(list(owns)))
            self.own = jax.device_put(stacked, NamedSharding(mesh, PartitionSpec(AXIS)))
            build = lambda: jax.jit(over_replicas(lambda own, _, batch: function(own, batch), mesh))
        key = (name, self.count, first.devices if self.count > 1 else ())
        if key not in first._programs:
            first._programs[key] = build()
        self.program = first._programs[key]

    def __call__(self, raw: Mapping[str, Any], **more: Any) -> Any:
        """Return the values of a raw batch, with a leading axis of encoders if there are several.

        more: arrays that are added to the task's batch.
        """
        raw, more = jax.device_put((raw, more), self.rows)
        batch = self.prepared(raw) | more
        return self.program(self.own, batch) if self.count == 1 else self.program(self.own, {}, batch)

    def each(self, value: Any) -> list[np.ndarray]:
        """Return the value of each encoder."""
        value = np.asarray(value)
        return [value] if self.count == 1 else list(value)


def join(encoders: Sequence[Encoder], devices: Sequence[jax.Device]) -> None:
    """Let encoders of one task compute together: what is asked of one is computed for all in one program over `devices`.

    Their values are those of the single encoders up to the order of sums. So are those of their baselines, which are
    joined too.
    """
    for encoder in encoders:
        encoder.joined, encoder.devices = tuple(encoders), tuple(devices)
    for name, baseline in encoders[0].baselines.items():
        if baseline is not encoders[-1].baselines[name]:  # else one for all
            join([encoder.baselines[name] for encoder in encoders], devices)


def separately(function: Callable[[Encoder], Any]) -> Callable[[Sequence[Encoder]], list[Any]]:
    """Return `function` as one of several encoders: called for one after another; an error is the entry of its encoder."""

    def entry(encoder: Encoder) -> Any:
        try:
            return function(encoder)
        except FAILURES as error:
            return error

    return lambda encoders: [entry(encoder) for encoder in encoders]


def rows_of_batch(encoders: Sequence[Encoder], batch_size: int) -> int:
    """Return the size of a batch that splits evenly, at least `batch_size`; of several encoders, a device's part of it."""
    mesh = encoders[0].mesh
    split = 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in _axes(mesh)]))
    part = -(-batch_size // split)
    return part * split if len(encoders) == 1 else part


def prepare(dataset, raw: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return the task's batch of a raw one under the evaluation transform (jittable); positions are unchanged."""
    places = {name: raw[name] for name in ("position", "index") if name in raw}
    return {**dataset.on_device({name: value for name, value in raw.items() if name not in places}, None), **places}


def _axes(mesh: Mesh) -> tuple[str, ...]:
    return tuple(name for name in ("data", "fsdp") if name in mesh.shape)


def _joined(parts: list[jax.Array]) -> jax.Array:
    if len(parts) == 1:
        return parts[0].astype(jnp.float32)
    return jnp.concatenate([part.reshape(len(part), -1).astype(jnp.float32) for part in parts], axis=1)
