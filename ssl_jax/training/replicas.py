"""K runs of one program at once: every array of the State has a leading replica axis, and the loop is the same.

A replica has its own seed, learning rate, weight decay, initial parameters, masks and data order, and its results equal those
of a single run, up to the order of sums. Replicas are distributed over the devices without communication, each on one device;
the replicas of a device are batched by `jax.vmap`, or on a CPU run one after another (`jax.lax.map`).
"""

import contextlib
import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssl_jax.training import divergence, preemption, startup
from ssl_jax.training import length as lengths
from ssl_jax.training.checkpoint import Checkpoints
from ssl_jax.training.exceptions import Diverged
from ssl_jax.training.lock import locked
from ssl_jax.training.logging import Console, Logger
from ssl_jax.training.loop import Run, Trainer
from ssl_jax.training.program import CompiledAhead, Program, shapes
from ssl_jax.training.settings import CheckpointSettings
from ssl_jax.training.state import State
from ssl_jax.training.step import TrainStep, logged, nonfinite, several

AXIS = "replica"


@dataclasses.dataclass(frozen=True)
class Replica:
    """The options of `Trainer.run` that differ between the runs."""

    seed: int
    stream: Any
    workdir: pathlib.Path | None = None
    lr: float | None = None
    weight_decay: float | None = None
    init_params: Any = None
    init_variables: Any = None
    evaluate: Callable[[State], Mapping[str, float]] | None = None


def train_replicas(
    trainer: Trainer, replicas: Sequence[Replica], *, workdir: pathlib.Path | None = None, total_steps: int | None = None,
    checkpoint: CheckpointSettings | None = None, share_data: bool = False, console: Console | None = None,
) -> list[State | Diverged]:  # fmt: skip
    """Train all replicas to the end; return the last State of each (of NumPy arrays), or its Diverged exception.

    workdir: for the common checkpoints during training; a new start resumes from the newest. At the end every
    replica has its own checkpoint in its own work directory, like a single run. share_data: all replicas read the batches
    of the first, decoded once. Raise ValueError if `can_be_replicated` is False; other errors are those of `Trainer.run`.
    """
    saving, count = checkpoint or CheckpointSettings(), len(replicas)
    if not can_be_replicated(trainer.program, saving):
        raise ValueError("these runs cannot train together: see can_be_replicated")
    program = trainer.stacks.get(count) or trainer.stacks.setdefault(count, ReplicaProgram(trainer.program, count))
    stream = ReplicaStream([r.stream for r in (replicas[:1] * count if share_data else replicas)], share_data)
    with contextlib.ExitStack() as stack:
        signals = checkpoints = None
        if workdir is not None:
            signals = stack.enter_context(preemption.active(saving.grace))
            stack.enter_context(locked(workdir))
            checkpoints = Checkpoints(workdir / "checkpoints", dataclasses.replace(saving, keep_every=None))
            stack.callback(checkpoints.join)
        for r in replicas:
            if r.workdir is not None:
                stack.enter_context(locked(r.workdir))
        begun = startup.begin(
            program, stream, checkpoints, signals, functools.partial(program.hyper_of, replicas), total=total_steps,
            init_params=[r.init_params for r in replicas], init_variables=[r.init_variables for r in replicas],
            evaluates=replicas[0].evaluate is not None, save_every=saving.every,
        )  # fmt: skip
        run = ReplicaRun(replicas, program, stream, begun, None, saving, workdir, checkpoints, signals)
        if begun.step < begun.length.total:
            stack.callback(run.close)
            with contextlib.suppress(AllDiverged):
                run.train(console or Console(begun.length.total))
        return run.finished()


def can_be_replicated(program: Program, saving: CheckpointSettings) -> bool:
    """Return whether several runs of the program can train together: not with rewinding, early stopping or checkpoint.best."""
    training = program.training
    alike = training.on_nonfinite != "rewind" and training.patience is None and saving.best is None
    return alike and "minute" not in training.duration and jax.process_count() == 1


class ReplicaProgram(Program):
    """A program's step for `replicas` runs, (state, batch, resident) -> (state, metrics), all with a leading replica axis."""

    def __init__(self, single: Program, replicas: int):  # all other attributes are the single program's
        vars(self).update(vars(single))
        self.single, self.replicas = single, replicas
        self.mesh = replica_mesh(replica_devices(single), replicas)
        self.lead = NamedSharding(self.mesh, PartitionSpec(AXIS))
        stacked = lambda x: jax.ShapeDtypeStruct((replicas, *x.shape), x.dtype, sharding=self.lead)
        self.abstract = jax.tree.map(stacked, single.abstract)
        self.step = over_replicas(dataclasses.replace(single.step, replicas=None), self.mesh)
        self._programs = CompiledAhead(self.compile)

    def hyper_of(self, replicas: Sequence[Replica], total: int) -> dict[str, Any]:
        """Return the hyper-parameters of runs of `total` steps, stacked."""
        each = [lengths.hyper(self.single, r.stream, r.seed, total, lr=r.lr, weight_decay=r.weight_decay) for r in replicas]
        return jax.tree.map(lambda *values: np.stack(values), *each)

    def create(self, hyper: dict, params: Sequence[Any], variables: Sequence[Any]) -> State:
        """Return the stacked State at step 0; each replica is created like a single run."""
        one = lambda k: jax.device_get(self.single.create(replica(hyper, k), params[k], variables[k]))
        states = [one(k) for k in range(self.replicas)]
        return jax.device_put(jax.tree.map(lambda *values: np.stack(values), *states), self.lead)

    def compile(self, count: int, resident: Any) -> Callable:
        lead = (self.replicas,) if count == 1 else (count, self.replicas)
        rows = self._rows(count)
        raw = {k: jax.ShapeDtypeStruct((*lead, *v.shape), v.dtype, sharding=rows) for k, v in self.single.raw.items()}
        step = self.step if count == 1 else several(self.step, count)
        program = jax.jit(step, donate_argnums=0, out_shardings=(self.lead, None))
        whole = NamedSharding(self.mesh, PartitionSpec())
        return program.lower(self.abstract, raw, shapes(resident, whole)).compile()

    def put(self, batch: dict, count: int) -> Any:
        return jax.device_put(batch, self._rows(count))

    def _rows(self, count: int) -> NamedSharding:
        return self.lead if count == 1 else NamedSharding(self.mesh, PartitionSpec(None, AXIS))


def replica_devices(program: Program) -> list[jax.Device]:
    """Return the devices that replicas of a program may use."""
    return jax.local_devices() if program.layout.data == -1 else list(program.mesh.devices.flat)


def replica_mesh(devices: Sequence[jax.Device], replicas: int) -> Mesh:
    """Return a mesh for the replicas: as many of `devices` as divide the number of replicas."""
    count = max(n for n in range(1, len(devices) + 1) if replicas % n == 0)
    return Mesh(np.array(devices[:count]), (AXIS,))


def over_replicas(step: TrainStep, mesh: Mesh) -> Callable:
    """Return `step` for a State with a leading replica axis that is split over `mesh`."""

    def local(state, raw, resident):
        if jax.tree.leaves(state)[0].shape[0] == 1:  # one per device: the single program
            first = lambda tree: jax.tree.map(lambda x: x[0], tree)
            return jax.tree.map(lambda x: x[None], step(first(state), first(raw), resident))
        if mesh.devices.flat[0].platform == "cpu":  # batched products would be slower and need K times the memory
            return jax.lax.map(lambda pair: step(*pair, resident), (state, raw))
        return jax.vmap(step, in_axes=(0, 0, None))(state, raw, resident)

    if mesh.size == 1:
        return local
    spec = PartitionSpec(AXIS)
    return jax.shard_map(local, mesh=mesh, in_specs=(spec, spec, PartitionSpec()), out_specs=spec, check_vma=False)


def replica(tree: Any, k: int) -> Any:
    """Return replica `k` of a stacked tree."""
    return jax.tree.map(lambda x: x[k], tree)


class ReplicaStream:
    """The batches of several streams, stacked; with `share_data`, one stream's batch for all."""

    def __init__(self, streams: Sequence[Any], share_data: bool = False):
        self.streams, self.share_data = list(streams), share_data
        first = self.streams[0]
        self.dataset, self.batch_size, self.resident = first.dataset, first.batch_size, first.resident

    def iterate(self, start: int, rows: Any) -> Iterator[dict[str, np.ndarray]]:
        readers = [stream.iterate(start, rows) for stream in (self.streams[:1] if self.share_data else self.streams)]
        try:
            while True:
                batches = [next(reader) for reader in readers]
                batches = batches * len(self.streams) if self.share_data else batches
                yield {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        finally:
            for reader in readers:
                if hasattr(reader, "close"):
                    reader.close()


class AllDiverged(Exception):
    """All replicas have diverged."""


class ReplicaRun(Run):
    """The run of several replicas. A diverged replica is no longer logged or checkpointed; the others continue."""

    def __init__(self, replicas: Sequence[Replica], *arguments: Any):
        super().__init__(*arguments)
        self.replicas = replicas
        self.diverged: dict[str, str] = self.extra.setdefault("diverged", {})  # replica's number -> reason

    def alive(self) -> list[int]:
        return [k for k in range(len(self.replicas)) if str(k) not in self.diverged]

    def open_log(self, console: Console) -> "ReplicaLog":
        states = self.extra.get("logger") or [None] * len(self.replicas)
        logs = [
            Logger(r.workdir, self.program.training, step=self.step, total=self.length.total, speed=self.speed, state=state,
                   console=Console(self.length.total, quiet=True))
            for r, state in zip(self.replicas, states, strict=True)
        ]  # fmt: skip
        return ReplicaLog(logs, console, self.speed, self.length.total)

    def measure(self) -> list[dict[str, float]]:
        found = []
        for k, r in enumerate(self.replicas):
            values = r.evaluate(replica(self.state, k)) if k in self.alive() else {}
            found.append({name: float(value) for name, value in values.items()})
        return found

    def record_step(self, step: int, line: Mapping[str, np.ndarray]) -> None:
        for k in self.alive():
            own = {name: float(value[k]) for name, value in line.items()}
            bad = nonfinite(own)
            if bad and self.program.training.on_nonfinite != "skip":
                r = self.replicas[k]
                self.diverged[str(k)] = divergence.report(step, *bad, step - 1, r.stream, r.workdir)
                if not self.alive():
                    raise AllDiverged
                continue
            self.logger.logs[k].add(step, logged(own))
            if not self.length.evaluates(step):
                self.logger.logs[k].flush_line()

    def finished(self) -> list[State | Diverged]:
        """Write every replica's own checkpoint; return its State, or the reason why it diverged."""
        state, found = jax.device_get(self.state), []
        for k, r in enumerate(self.replicas):
            if str(k) in self.diverged:
                found.append(Diverged(f"{self.diverged[str(k)]}; {divergence.ADVICE}"))
                continue
            own = replica(state, k)
            if r.workdir is not None:
                checkpoints = Checkpoints(r.workdir / "checkpoints", self.saving)
                checkpoints.save(self.step, own, self.extra_of(k))
                checkpoints.close()
            found.append(own)
        return found

    def extra_of(self, k: int) -> dict[str, Any]:
        """Return the extra state in the checkpoint of a single run, for replica `k`."""
        extra = {name: self.extra[name] for name in ("evaluated",) if name in self.extra}
        extra |= {name: self.extra[name][k] for name in ("evaluation", "logger") if name in self.extra}
        return {**extra, "selection": self.selection.state()}


class ReplicaLog:
    """The logs of the replicas, and one line on the console for all."""

    def __init__(self, logs: Sequence[Logger], console: Console, speed: Any, total: int):
        self.logs, self.console, self.speed, self.total = list(logs), console, speed, total

    def flush_line(self, extras: Sequence[Mapping[str, float]], step: int) -> None:
        for log, extra in zip(self.logs, extras, strict=True):
            if extra:
                log.flush_line(extra, step)

    def report(self) -> None:
        """Show the console's line when it is due, and after the last step; each replica's speed is its share of the total."""
        step = max(log.step for log in self.logs)
        shown = [log.last for log in self.logs if log.step == step and log.last]
        if shown and (step == self.total or self.console.due()):
            speed = self.speed.report()
            self.console.show(step, {"loss": float(np.mean([values["loss"] for values in shown]))}, speed)
            for log in self.logs:
                if log.speeds is not None and log.step == step:
                    log.speeds.write({"step": step, **speed, "replicas": len(self.logs)})

    def sync(self) -> None:
        for log in self.logs:
            log.sync()

    def state(self) -> list[dict[str, Any]]:
        return [log.state() for log in self.logs]

    def close(self) -> None:
        for log in (*self.logs, self.console):
            log.close()


def forget(workdir: pathlib.Path) -> None:
    """Remove the folder of common checkpoints after each replica has its own."""
    shutil.rmtree(workdir, ignore_errors=True)
