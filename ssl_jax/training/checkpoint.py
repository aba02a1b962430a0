"""Checkpoints through Orbax: asynchronous, atomic, verified before they are restored.

checkpoints/00000500/state/         Orbax: every array of the State by its path ("params/encoder/block00/..."); a small
                                    State on one device as one array per dtype, ten times faster to write
                     extra.json     the loop's own state; "layout" of the packed arrays
                     manifest.json  size and CRC-32 of every file
checkpoints/saving-...              being written; renamed when complete
checkpoints/damaged/...             damaged ones, moved here at start-up
"""

import errno
import json
import os
import pathlib
import shutil
import sys
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.training import rules, sharding
from ssl_jax.training.exceptions import SaveFailed
from ssl_jax.training.selection import best_step
from ssl_jax.training.settings import CheckpointSettings

MANIFEST, EXTRA, STATE = "manifest.json", "extra.json", "state"
PACKED_BYTES = 2**28  # states up to this size are packed


def warn(text: str) -> None:
    print(f"ssl-jax: {text}", file=sys.stderr, flush=True)


def _orbax():
    import orbax.checkpoint as ocp

    return ocp


class Checkpoints:
    """The checkpoints of one run. `save` returns when the arrays are on the host; files are written in the background."""

    def __init__(self, directory: pathlib.Path, settings: CheckpointSettings, *, first: bool = False):
        self.directory, self.settings = pathlib.Path(directory).absolute(), settings
        self.first = first  # save step 0 too
        self.primary = jax.process_index() == 0
        self._checkpointer = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._lock = threading.RLock()
        self.saved: int | None = None  # the newest step that is complete or being saved
        self.last_save = time.monotonic()
        self.seconds = 0.0  # of the last save, from start to complete

    def steps(self) -> list[int]:
        """Return the steps of complete checkpoints, oldest first; they may be damaged (see `newest`)."""
        return complete_steps(self.directory)

    # Saving -------------------------------------------------------------------------------------------------------------

    def is_due(self, step: int) -> bool:
        """Return whether the settings ask for a checkpoint of `step`; the same in all processes."""
        every, minutes = self.settings.every, self.settings.every_minutes
        if step == 0:
            return self.first
        if every and step % every == 0:
            return True
        if minutes is None:
            return False
        due = time.monotonic() - self.last_save >= 60 * minutes
        if jax.process_count() == 1:
            return due
        return step % 100 == 0 and sharding.from_primary(due)  # clocks differ: the first process decides for all

    def save(self, step: int, state: Any, extra: dict) -> None:
        """Save unless this step is already saved; raise SaveFailed if this or an earlier save failed."""
        with self._lock:
            self.wait()
            if self.saved == step or step in self.steps():
                self.saved = step
                return
            started = time.monotonic()
            folder = self.directory / f"saving-{step:08d}"
            try:
                if self.primary:
                    self.directory.mkdir(parents=True, exist_ok=True)
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir()
                self._sync(f"saving-{step}")
                ocp = _orbax()
                if self._checkpointer is None:
                    self._checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
                content, layout = pack(rules.flatten(state))
                self._checkpointer.save(folder / STATE, args=ocp.args.PyTreeSave(content))
                extra = {**extra, "layout": layout}
            except Exception as error:
                raise SaveFailed(_reason(folder, error)) from error
            self._thread = threading.Thread(target=self._finish, args=(step, folder, extra, started), name="save")
            self._thread.start()
            self.saved, self.last_save = step, time.monotonic()

    def _finish(self, step: int, folder: pathlib.Path, extra: dict, started: float) -> None:
        try:
            self._checkpointer.wait_until_finished()
            if self.primary:
                write_json(folder / EXTRA, {"step": step, **extra})
                write_json(folder / MANIFEST, manifest(folder))
                sync_folder(folder)
                os.rename(folder, self.directory / f"{step:08d}")
                sync_folder(self.directory)
                self._retain()
            self.seconds = time.monotonic() - started
        except BaseException as error:  # reported by the next call of the loop
            self._error = SaveFailed(_reason(folder, error))

    def check(self) -> None:
        """Raise SaveFailed if a save in the background has failed."""
        if self._error is not None:
            error, self._error = self._error, None
            self.saved = None
            raise error

    def join(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Wait until nothing is being written; raise SaveFailed if a save failed."""
        self.join()
        self.check()

    def close(self) -> None:
        self.wait()
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None

    def _sync(self, name: str) -> None:
        if jax.process_count() > 1:
            from jax._src import distributed

            distributed.global_state.client.wait_at_barrier(f"ssl_jax/{name}/{time_free_id(name)}", 300_000)

    def _retain(self) -> None:
        """Delete all but the newest `keep`, every `keep_every`-th step and the best."""
        steps, s = self.steps(), self.settings
        keep = set(steps[-s.keep :])
        if s.keep_every:
            keep |= {step for step in steps if step % s.keep_every == 0}
        if s.best:
            keep.add(best_step({step: read_extra(self.directory, step) for step in steps}, s.best, s.mode or "max"))
        for step in steps:
            if step not in keep:
                delete(self.directory / f"{step:08d}")

    # Restoring ----------------------------------------------------------------------------------------------------------

    def newest(self) -> int | None:
        """Return the step of the newest undamaged checkpoint; report and move aside damaged and half-written ones."""
        found = None
        if self.primary and self.directory.is_dir():
            for leftover in sorted(self.directory.glob("deleting-*")):
                shutil.rmtree(leftover, ignore_errors=True)
            for leftover in sorted(self.directory.glob("saving-*")):
                self._aside(leftover, "was being written when the run stopped")
            for step in reversed(self.steps()):
                problem = damage(self.directory / f"{step:08d}")
                if problem is None:
                    found = step
                    break
                self._aside(self.directory / f"{step:08d}", f"is damaged ({problem})")
        found = sharding.from_primary(-1 if found is None else found)
        found = None if found < 0 else found
        self.saved = found
        return found

    def _aside(self, folder: pathlib.Path, why: str) -> None:
        target = self.directory / "damaged" / folder.name
        target.parent.mkdir(exist_ok=True)
        partial = folder.name.startswith("saving-")
        for old in target.parent.glob("saving-*") if partial else [target]:  # keep only one half-written copy
            shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, target)
        warn(f"checkpoint {folder} {why}; moved to {target}; using the previous one")

    def restore(self, step: int, state: Any) -> tuple[Any, dict]:
        """Return (State, extra) at `step`; `state`: a State of ShapeDtypeStructs with shardings, of any mesh."""
        flat = rules.flatten(state)
        extra = read_extra(self.directory, step)
        folder = self.directory / f"{step:08d}" / STATE
        if extra.get("layout"):
            arrays = unpack(_read(folder), extra["layout"])
            wrong = next((n for n in sorted(set(arrays) | set(flat)) if n not in arrays or n not in flat), None)
            wrong = wrong or next((n for n in flat if flat[n].shape != arrays[n].shape), None)
            if wrong is not None:
                raise UserError(f"{folder}: does not fit this config ({wrong} differs); use another --workdir")
            restored = {name: sharding.put_state(arrays[name], leaf.sharding) for name, leaf in flat.items()}
        else:
            ocp = _orbax()
            try:
                arguments = ocp.args.PyTreeRestore(flat, restore_args=ocp.checkpoint_utils.construct_restore_args(flat))
                with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                    restored = checkpointer.restore(folder, args=arguments)
            except (ValueError, KeyError) as error:
                line = str(error).splitlines()[0][:200]
                raise UserError(f"{folder}: does not fit this config ({line}); use another --workdir") from error
        leaves = [restored[rules.path_of(keys)] for keys, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
        return jax.tree.unflatten(jax.tree.structure(state), leaves), extra


def pack(arrays: dict[str, Any]) -> tuple[dict[str, Any], list | None]:
    """Return small arrays on one device as one host array per dtype, with [name, dtype, shape] of each; others unchanged."""
    sizes = [x.size * x.dtype.itemsize for x in arrays.values()]
    if jax.process_count() > 1 or sum(sizes) > PACKED_BYTES:
        return arrays, None
    if any(len(x.sharding.device_set) > 1 for x in arrays.values() if isinstance(x, jax.Array)):
        return arrays, None
    layout = [[name, str(x.dtype), list(x.shape)] for name, x in arrays.items()]
    packed: dict[str, list] = {}
    values = jax.device_get(arrays)  # in the order of the names, not of `arrays`
    for name, value in arrays.items():
        packed.setdefault(str(value.dtype), []).append(np.ravel(values[name]))
    return {dtype: np.concatenate(parts) for dtype, parts in packed.items()}, layout  # a copy: the state is donated


def unpack(packed: dict[str, np.ndarray], layout: list) -> dict[str, np.ndarray]:
    """Return arrays by name from the result of `pack`."""
    arrays, start = {}, dict.fromkeys(packed, 0)
    for name, dtype, shape in layout:
        size = int(np.prod(shape))
        arrays[name] = packed[dtype][start[dtype] : start[dtype] + size].reshape(shape)
        start[dtype] += size
    return arrays


def _read(folder: pathlib.Path, keep: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """Return the arrays of an Orbax folder whose names satisfy `keep`, on the host."""
    ocp, folder = _orbax(), folder.absolute()  # Orbax finds nothing under a relative path
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        metadata = checkpointer.metadata(folder)
        metadata = getattr(metadata, "item_metadata", metadata)
        metadata = {k: v for k, v in dict(getattr(metadata, "tree", metadata)).items() if keep(k)}
        if not metadata:  # Orbax cannot restore an empty tree
            return {}
        target = {k: jax.ShapeDtypeStruct(tuple(v.shape), v.dtype) for k, v in metadata.items()}
        as_numpy = {k: ocp.RestoreArgs(restore_type=np.ndarray) for k in metadata}
        arguments = ocp.args.PyTreeRestore(target, restore_args=as_numpy, partial_restore=True)
        return {k: np.asarray(v) for k, v in checkpointer.restore(folder, args=arguments).items()}


def read_arrays(folder: pathlib.Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, np.ndarray]:
    """Return the arrays of a checkpoint folder whose path in the State starts with one of `prefixes`."""
    layout = read_extra(folder.parent, int(folder.name)).get("layout")
    if layout:
        return {k: v for k, v in unpack(_read(folder / STATE), layout).items() if k.startswith(prefixes)}
    return _read(folder / STATE, lambda name: name.startswith(prefixes))


_counters: dict[str, int] = {}


def time_free_id(name: str) -> int:
    """Return how often this was called with `name`, which makes a barrier's name unique and equal in all processes."""
    _counters[name] = _counters.get(name, 0) + 1
    return _counters[name]


def _reason(folder: pathlib.Path, error: BaseException) -> str:
    text = str(error) or type(error).__name__
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "quota exceeded" in text:
        return f"checkpoint {folder} could not be saved: the disk is full; make room and run the same command again"
    return f"checkpoint {folder} could not be saved: {text.splitlines()[0][:300]}"


# Files ------------------------------------------------------------------------------------------------------------------


def complete_steps(directory: pathlib.Path) -> list[int]:
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.is_dir() and p.name.isdigit() and len(p.name) >= 8)


def manifest(folder: pathlib.Path) -> dict[str, list[int]]:
    """Return size and CRC-32 of every file below `folder`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {str(p.relative_to(folder)): [p.stat().st_size, checksum(p)] for p in files}


def checksum(path: pathlib.Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


def damage(folder: pathlib.Path) -> str | None:
    """Return the first problem of a checkpoint's files; None if they are valid."""
    try:
        recorded = json.loads((folder / MANIFEST).read_text())
        json.loads((folder / EXTRA).read_text())
        for name, (size, crc) in recorded.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} of {size} bytes"
            if checksum(file) != crc:
                return f"{name} has changed"
    except FileNotFoundError as error:
        return f"{pathlib.Path(error.filename).name} is missing"
    except (ValueError, TypeError, AttributeError, OSError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def read_extra(directory: pathlib.Path, step: int) -> dict:
    try:
        return json.loads((pathlib.Path(directory) / f"{step:08d}" / EXTRA).read_text())
    except (OSError, ValueError):
        return {}


def write_json(path: pathlib.Path, value: Any) -> None:
    with open(path, "w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems know no fsync of folders
        pass
    finally:
        os.close(handle)


def delete(folder: pathlib.Path) -> None:
    """Remove a checkpoint; if killed in between, the remains do not look like a checkpoint."""
    doomed = folder.with_name(f"deleting-{folder.name}")
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


# Parameters alone -------------------------------------------------------------------------------------------------------


def load_params(directory: pathlib.Path, step: int | None = None, *, average: bool | None = None) -> tuple[int, dict]:
    """Return (step, nested dict of NumPy arrays): the parameters of a checkpoint, without optimizer state, without the task.

    directory: a run's checkpoints/ or an `export`; step: by default the newest undamaged one. average: whether to return the
    moving average; None: if there is one.
    """
    step, folder = _sound(directory, step)
    found = read_arrays(folder, ("params/", "ema/"))
    has_average = any(name.startswith("ema/") for name in found)
    if average and not has_average:
        raise UserError(f"checkpoint {folder}: has no moving average, since training.ema was not set; use the parameters")
    return step, _nested(found, "ema/" if has_average and average is not False else "params/")


def load_variables(directory: pathlib.Path, step: int | None = None) -> dict:
    """Return the task's own state (`Task.variables`) of a checkpoint, as a nested dict of NumPy arrays."""
    return _nested(read_arrays(_sound(directory, step)[1], ("variables/",)), "variables/")


def _sound(directory: pathlib.Path, step: int | None) -> tuple[int, pathlib.Path]:
    """Return a checkpoint's (step, folder); raise UserError if there is none or if it is damaged."""
    directory = pathlib.Path(directory).absolute()
    steps = complete_steps(directory)
    if not steps:
        raise UserError(f"{directory}: holds no checkpoint; train first")
    if step is None:
        step = next((s for s in reversed(steps) if damage(directory / f"{s:08d}") is None), None)
        if step is None:
            raise UserError(f"{directory}: all checkpoints in it are damaged; train again or restore one")
    if step not in steps:
        raise UserError(f"{directory}: has no checkpoint of step {step}; use one of {', '.join(map(str, steps))}")
    folder = directory / f"{step:08d}"
    if problem := damage(folder):
        raise UserError(f"checkpoint {folder} is damaged ({problem}); choose another")
    return step, folder


def _nested(arrays: dict[str, np.ndarray], prefix: str) -> dict:
    """Return the arrays below a prefix as nested dicts."""
    tree: dict = {}
    for path, value in arrays.items():
        if not path.startswith(prefix):
            continue
        *parents, last = path.removeprefix(prefix).split("/")
        place = tree
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = value
    return tree


def export(directory: pathlib.Path, target: pathlib.Path, step: int | None = None, *, average: bool | None = None) -> int:
    """Write the parameters of a checkpoint, without optimizer state, as a separate checkpoint in `target`."""
    step, params = load_params(directory, step, average=average)
    checkpoints = Checkpoints(pathlib.Path(target), CheckpointSettings(keep=1))
    checkpoints.save(step, {"params": params}, {"exported": True})
    checkpoints.close()
    return step
