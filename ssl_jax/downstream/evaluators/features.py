"""Features of a frozen encoder: one pass over each data set, shared by every evaluator."""

import hashlib
import os
import pathlib
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssl_jax.config import nearest
from ssl_jax.downstream.evaluator import identity
from ssl_jax.errors import UserError

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
        self._memory: dict[int, dict[str, np.ndarray]] = {}
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

    def forget(self) -> None:
        """Drop the features held in memory: the parameters have changed."""
        self._memory.clear()
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
        from ssl_jax.data.pipeline import eval_batches

        if not names and not dataset.skip_bad:
            return self._read(dataset, np.arange(dataset.size))
        split = 1 if self.mesh is None else int(np.prod([self.mesh.shape[a] for a in _axes(self.mesh)]))
        batch_size = -(-min(batch_size, dataset.size) // split) * split
        outputs: dict[str, np.ndarray] = {}
        seen, place, run, params, pending = [], 0, None, None, None

        def read(values, mask):
            nonlocal place
            count = int(mask.sum())
            for name, value in values.items():
                value = np.asarray(value)
                if name not in outputs:
                    outputs[name] = np.empty((dataset.size, *value.shape[1:]), np.float32)
                outputs[name][place : place + count] = value[mask]
            place += count

        for raw, mask in eval_batches(dataset, batch_size):
            seen.append(raw["index"][mask])
            if not names:  # even without names, reading finds the readable examples
                continue
            if run is None:
                params = self._parameters(jax.eval_shape(lambda b: prepare(dataset, b), raw))
                run = self._compiled(dataset, params, raw, names)
            values = run(params, jax.device_put(raw, self._sharding()))
            if pending is not None:  # fetched one batch later, so that the device never waits
                read(*pending)
            pending = values, mask
        if pending is not None:
            read(*pending)
        index = np.concatenate(seen)
        outputs = {name: value[: len(index)] for name, value in outputs.items()}  # fewer where unreadable ones are skipped
        for name, value in outputs.items():
            bad = np.flatnonzero(~np.isfinite(value.reshape(len(value), -1)).all(axis=1))
            if len(bad):
                mend = "training diverged: lower optimizer.lr, or evaluate an earlier checkpoint"
                if len(bad) < len(value):
                    mend = f"the first is {dataset.source.describe(int(index[bad[0]]))}; look at it, else {mend}"
                raise UserError(
                    f"features {name!r} of {dataset.source.name}: {len(bad)} of {len(value)} examples hold NaN or infinity;"
                    f" {mend}"
                )
        return outputs | self._read(dataset, index)

    @staticmethod
    def _read(dataset, index: np.ndarray) -> dict[str, np.ndarray | None]:
        """Return "index" and "label" of the examples that were read."""
        labels = dataset.labels()
        return {"index": index.astype(np.int32), "label": None if labels is None else np.asarray(labels, np.int32)[index]}

    def _sharding(self):
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec(_axes(self.mesh)))

    def _compiled(self, dataset, params, raw, names) -> Callable:
        """Return the jitted function raw batch -> features, which computes only the given names. Checks the names."""
        batch, function = jax.eval_shape(lambda b: prepare(dataset, b), raw), self._features
        available = jax.eval_shape(function, params, batch)
        for name in names:
            for part in name.split("+"):
                if part not in available:
                    raise UserError(f"representation {part!r}: the encoder has none of that name{nearest(part, available)}")

        def features(params, batch):
            found = function(params, batch)
            return {name: _joined([found[part] for part in name.split("+")]) for name in names}

        if names not in self._programs:
            replicated = None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())
            self._programs[names] = jax.jit(features, out_shardings=replicated)
        prepared, program = jax.jit(lambda b: prepare(dataset, b)), self._programs[names]  # data sets differ in the first only
        return lambda params, raw: program(params, prepared(raw))

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
