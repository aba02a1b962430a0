"""The one loop that trains any task.

    evaluate -> save -> take the next batch -> step -> record the previous step

In this order a saved state has been evaluated, and no batch is taken twice. The metrics of a call are read after the
next call is dispatched; the loop waits for the device nowhere else.
"""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from ssl_jax.task import Params, Task
from ssl_jax.training import divergence, preemption, startup
from ssl_jax.training import length as lengths
from ssl_jax.training.checkpoint import Checkpoints
from ssl_jax.training.exceptions import Preempted
from ssl_jax.training.lock import locked
from ssl_jax.training.logging import Console, Logger, Speed
from ssl_jax.training.optimizer import OptimizerSettings
from ssl_jax.training.program import Program
from ssl_jax.training.schedules import NO_SCHEDULES, Schedules
from ssl_jax.training.selection import Selection
from ssl_jax.training.settings import CheckpointSettings, MeshSettings, TrainingSettings
from ssl_jax.training.state import State
from ssl_jax.training.step import lines_of, logged, nonfinite

Evaluate = Callable[[State], Mapping[str, float]]


def train(task: Task, stream: Any, *, training: TrainingSettings, optimizer: OptimizerSettings, seed: int,
          schedules: Schedules = NO_SCHEDULES, mesh: Mesh | MeshSettings | None = None, **options: Any) -> State:  # fmt: skip
    """Train `task` on `stream` and return the last State. `options` are those of `Trainer.run`."""
    trainer = Trainer(task, stream, training=training, optimizer=optimizer, schedules=schedules, mesh=mesh)
    return trainer.run(seed=seed, **options)


class Trainer:
    """Runs of one compiled program: they may differ in seed, initial parameters, length, learning rate and data."""

    def __init__(self, task: Task, stream: Any, **options: Any):
        """options: those of `Program`."""
        self.program = Program(task, stream, **options)
        self.stacks: dict[int, Program] = {}  # of replicas.py, by their number

    def run(
        self,
        *,
        seed: int,
        total_steps: int | None = None,
        stream: Any = None,
        init_params: Params | Callable[[Params], Params] | None = None,
        init_variables: Callable[[Any], Any] | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        workdir: str | pathlib.Path | None = None,
        checkpoint: CheckpointSettings | None = None,
        evaluate: Evaluate | None = None,
        name: str = "train",
        quiet: bool = False,
        console: Console | None = None,
    ) -> State:
        """Train to the end, from the newest checkpoint in `workdir` if there is one.

        total_steps: by default from training.duration. stream: other data of the same shapes and transforms. init_params:
        parameters, or a function that changes the task's initial ones; init_variables: the same for its variables.
        evaluate: State -> {name: number}, called at every training.evaluate_every. console: by default one line under
        `name`. Without a workdir nothing is written. Raise Preempted, Diverged, ReadingFailed or SaveFailed if the run
        stops before its end.
        """
        saving = checkpoint or CheckpointSettings()
        with contextlib.ExitStack() as stack:
            signals = checkpoints = None
            if workdir is not None:
                workdir = pathlib.Path(workdir)
                signals = stack.enter_context(preemption.active(saving.grace))
                stack.enter_context(locked(workdir))
                rewinds = self.program.training.on_nonfinite == "rewind"
                checkpoints = Checkpoints(workdir / "checkpoints", saving, first=rewinds)
                stack.callback(checkpoints.join)  # a save that has begun is finished, however the run ends
            stream = stream or self.program.stream
            hyper = functools.partial(lengths.hyper, self.program, stream, seed, lr=lr, weight_decay=weight_decay)
            begun = startup.begin(
                self.program, stream, checkpoints, signals, hyper, total=total_steps, init_params=init_params,
                init_variables=init_variables, evaluates=evaluate is not None, save_every=saving.every,
            )  # fmt: skip
            if begun.step >= begun.length.total:
                return begun.state
            run = Run(self.program, stream, begun, evaluate, saving, workdir, checkpoints, signals)
            stack.callback(run.close)
            return run.train(console or Console(begun.length.total, name, quiet=quiet))


class Run:
    """One run of a program: its progress, logger, checkpoints and signals."""

    def __init__(self, program: Program, stream: Any, begun: startup.Begun, evaluate: Evaluate | None,
                 saving: CheckpointSettings, workdir: pathlib.Path | None, checkpoints: Checkpoints | None,
                 signals: preemption.Preemption | None):  # fmt: skip
        self.program, self.stream, self.evaluate, self.saving = program, stream, evaluate, saving
        self.workdir, self.checkpoints, self.signals = workdir, checkpoints, signals
        self.step, self.state, self.length = begun.step, begun.state, begun.length
        self.extra = begun.extra  # saved with the State: the logger's sums, the last evaluation, rewinds
        self.resident, self.batches = begun.resident, begun.batches
        self.speed = Speed(program.task, stream, program.training.dtype)
        self.selection = Selection.of(saving, program.training, self.extra)
        self.save_now = functools.partial(self.save, wait=True)
        self.logger: Logger | None = None

    # The loop -----------------------------------------------------------------------------------------------------------

    def train(self, console: Console) -> State:
        """Train from `self.step` to the end and return the State."""
        while True:
            self.logger = self.open_log(console)
            try:
                self.loop()
                break
            except divergence.Rewind as bad:
                self.go_back(bad)
        if self.checkpoints:
            self.checkpoints.close()
        if self.signals:
            self.signals.end()
        return self.state

    def open_log(self, console: Console) -> Logger:
        return Logger(self.workdir, self.program.training, step=self.step, total=self.length.total, speed=self.speed,
                      state=self.extra.get("logger"), console=console, trouble=self.program.task.trouble)  # fmt: skip

    def loop(self) -> None:
        """Take a batch, step, record; between calls evaluate, save, and stop after a signal."""
        pending, programs = None, {}  # pending: the metrics of the previous call, still on the device
        for count in self.length.calls(self.step):
            if count not in programs:
                self.record(pending)
                pending = None
                with self.may_block(), self.speed.pause():
                    programs[count] = self.program.compiled(count, self.resident)
            pending = self.between_calls(pending, ahead=count)
            if self.selection.over:
                return
            batch, pending = self.next_batch(pending)
            self.state, metrics = programs[count](self.state, batch, self.resident)
            self.step += count
            self.speed.steps += count * self.program.replicas
            self.speed.waited += self.batches.last_wait
            self.record(pending)
            pending = (self.step - count, count, metrics)
        self.between_calls(pending, ahead=0)

    def next_batch(self, pending: Any) -> tuple[Any, Any]:
        """Return the next call's batch and the metrics still to be read; if the reader is slow or dead, no work is lost."""
        try:
            if not self.batches.is_ready(seconds=1.0):
                self.record(pending)
                pending = None
                signals = self.signals if jax.process_count() == 1 else None  # several processes stop at one step
                with startup.may_block(signals, self.save_now):
                    self.batches.is_ready()
            return next(self.batches), pending
        except Exception:
            self.record(pending)
            self.save()
            raise

    def between_calls(self, pending: Any, ahead: int) -> Any:
        """Evaluate, save, stop after a signal; return the metrics still to be read. `ahead`: the next call's steps."""
        step, last = self.step, self.step == self.length.total
        if self.signals and self.signals.must_stop(step, ahead):
            self.record(pending)
            self.save_now()
            raise Preempted(f"stopped after step {step}, which is saved; the same command continues", self.signals.status)
        evaluates, saves = self.length.evaluates(step), last or bool(self.checkpoints and self.checkpoints.is_due(step))
        if evaluates or saves:
            self.record(pending)
            pending = None
        if evaluates and self.extra.get("evaluated") != step:
            with self.may_block(), self.speed.pause():
                results = self.measure()
            self.extra |= {"evaluated": step, "evaluation": results}
            self.logger.flush_line(results, step)
            saves |= self.selection.metric is not None and self.selection.update(step, results)
        if saves:
            self.save()
        if self.checkpoints:
            self.checkpoints.check()
        self.logger.report()
        return pending

    def measure(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.evaluate(self.state).items()}

    def record(self, pending: Any) -> None:
        """Read, check and log the metrics of a dispatched call; waits until the device has finished it."""
        if pending is None:
            return
        start, count, metrics = pending
        for i, line in enumerate(lines_of(jax.device_get(metrics), count)):
            self.record_step(start + i + 1, line)

    def record_step(self, step: int, line: dict[str, float]) -> None:
        bad = nonfinite(line)
        if bad and self.program.training.on_nonfinite != "skip":
            rewinds = self.extra.get("rewinds", 0) if self.program.training.on_nonfinite == "rewind" else None
            divergence.stop_or_rewind(self, step, *bad, rewinds=rewinds)
        more = {"rewinds": self.extra["rewinds"]} if self.extra.get("rewinds") else {}
        self.logger.add(step, {**logged(line), **more})
        if not self.length.evaluates(step):
            self.logger.flush_line()

    # Save, go back -----------------------------------------------------------------------------------------------------

    def save(self, *, wait: bool = False) -> None:
        """Save the state of the last completed step; the files are written in the background unless `wait` is set."""
        if self.checkpoints is None:
            return
        if self.logger is not None:
            self.logger.sync()
            self.extra["logger"] = self.logger.state()
        self.checkpoints.save(self.step, self.state, {**self.extra, "selection": self.selection.state()})
        if wait:
            self.checkpoints.wait()

    def may_block(self) -> contextlib.AbstractContextManager:
        """Return a context for compilations and evaluations, in which a signal saves this step from another thread."""
        return startup.may_block(self.signals, self.save_now)

    def go_back(self, bad: divergence.Rewind) -> None:
        """Continue from the last checkpoint before a bad step, with the batches after the bad one."""
        self.close()
        abstract, mesh, rewinds = self.program.abstract, self.program.mesh, self.extra.get("rewinds", 0)
        self.step, self.state, self.extra = divergence.rewound(bad, self.checkpoints, abstract, mesh, rewinds)
        self.selection = Selection.of(self.saving, self.program.training, self.extra)
        if self.signals:
            self.signals.begin(self.step)
        offset = int(self.state.hyper["data_offset"])
        self.batches = startup.read_ahead(self.program, self.stream, self.length, self.step, offset)

    def close(self) -> None:
        self.batches.close()
        if self.logger is not None:
            self.logger.close()
            self.logger = None
