"""The one loop that trains any task.

    evaluate -> save -> take the next batch -> step

so that what a checkpoint holds has been evaluated and no batch is taken twice. The metrics of a step are read after the
next one is dispatched; the loop waits for the device nowhere else.
"""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ssl_jax import config as configs
from ssl_jax.errors import UserError
from ssl_jax.task import Params, Task
from ssl_jax.training import preemption, sharding
from ssl_jax.training import state as states
from ssl_jax.training.checkpoint import Checkpoints, warn
from ssl_jax.training.exceptions import Diverged, Preempted
from ssl_jax.training.lock import locked
from ssl_jax.training.logging import Logger, Speed
from ssl_jax.training.optimizer import OptimizerSettings
from ssl_jax.training.prefetch import Prefetch
from ssl_jax.training.program import Program
from ssl_jax.training.settings import CheckpointSettings, MeshSettings, TrainingSettings
from ssl_jax.training.state import State
from ssl_jax.training.step import nonfinite

MAX_REWINDS = 10
Evaluate = Callable[[State], Mapping[str, float]]


def train(task: Task, stream: Any, *, training: TrainingSettings, optimizer: OptimizerSettings, seed: int,
          mesh: Mesh | MeshSettings | None = None, **options: Any) -> State:  # fmt: skip
    """Train `task` on `stream` and return the last State. `options` are those of `Trainer.run`."""
    return Trainer(task, stream, training=training, optimizer=optimizer, mesh=mesh).run(seed=seed, **options)


class Trainer(Program):
    """A task's compiled program, and runs of it.

    Runs share the program: they may differ in seed, initial parameters, length, learning rate, weight decay and data, as
    long as the batches have the same shapes and the same transforms.
    """

    def run(
        self,
        *,
        seed: int,
        total_steps: int | None = None,
        stream: Any = None,
        init_params: Params | Callable[[Params], Params] | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        workdir: str | pathlib.Path | None = None,
        checkpoint: CheckpointSettings | None = None,
        evaluate: Evaluate | None = None,
        name: str = "train",
        quiet: bool = False,
    ) -> State:
        """Train to the end, from the newest checkpoint in `workdir` where there is one.

        total_steps: default, from training.duration. stream: other data of the same shapes and transforms. init_params:
        parameters to start from, or a function from the task's own. evaluate: State -> numbers, at every
        training.evaluate_every. Without a workdir nothing is written.
        Raises Preempted, Diverged or SaveFailed when the run stops before its end.
        """
        checkpoint = checkpoint or CheckpointSettings()
        with contextlib.ExitStack() as stack:
            signals = None
            if workdir is not None:
                workdir = pathlib.Path(workdir)
                signals = stack.enter_context(preemption.active(checkpoint.grace))
                stack.enter_context(locked(workdir))
            run = Run(self, stream or self.stream, seed, total_steps, init_params, workdir, checkpoint, evaluate, signals)
            return run.train(stack, dict(lr=lr, weight_decay=weight_decay), name, quiet)


@dataclasses.dataclass
class Run:
    """One pass of the loop: what changes while a Trainer trains."""

    trainer: Trainer
    stream: Any
    seed: int
    total: int | None
    init_params: Any
    workdir: pathlib.Path | None
    settings: CheckpointSettings
    evaluate: Evaluate | None
    signals: preemption.Preemption | None
    batches: Prefetch | None = None

    def train(self, stack: contextlib.ExitStack, given: dict, name: str, quiet: bool) -> State:
        trainer, training = self.trainer, self.trainer.training
        self.checkpoints = Checkpoints(self.workdir / "checkpoints", self.settings) if self.workdir else None
        if self.checkpoints:
            stack.callback(self.checkpoints.settle)  # whatever ends the run, a save that has begun is finished
        start = self.checkpoints.newest() if self.checkpoints else None
        self.step, self.extra = start or 0, {}
        if self.signals:
            self.signals.begin(self.step)
        steps = self.total if self.total is not None else self._duration(training.duration, "training.duration")
        if steps is not None and self.step < steps:  # beside the state's making
            trainer.compile_ahead(trainer.steps_per_call_of(steps), self.stream.resident)
            if start is None:
                self._begin(stack, steps)
        if start is None:
            self.state = trainer.create(self._hyper(steps or 1, given), self.init_params)
        else:
            self.state, self.extra = self.checkpoints.restore(start, trainer._abstract)
        if start is not None and start >= int(self.state.hyper["total_steps"]):
            return self.state
        self.init_params = None
        self.resident = sharding.put_replicated(self.stream.resident, trainer.mesh)
        if start is None and steps is None:  # a budget in minutes
            with self._may_block():
                trainer.compiled(trainer.steps_per_call, self.resident)
            self._set_total(self._measured(configs.Duration.parse(training.duration, "training.duration").number), given)
        if self.batches is None:
            self._begin(stack, int(self.state.hyper["total_steps"]), int(self.state.hyper["data_offset"]))
        with self._may_block():
            trainer.compiled(self.many, self.resident)
        if any(m % self.many for m in (self.step, self.total, *self._marks)):  # some calls will be of one step
            trainer.compile_ahead(1, self.resident)
        self.speed = Speed(self.stream.batch_size, tokens_of(self.stream.dataset.info), trainer.task.flops(), training.dtype)
        logger = lambda: Logger(
            self.workdir, step=self.step, total=self.total, every=training.log_every, speed=self.speed, name=name,
            state=self.extra.get("logger"), quiet=quiet, tensorboard=training.tensorboard, wandb=training.wandb,
        )  # fmt: skip
        self.logger = logger()
        stack.callback(lambda: self.logger.close())
        self.last_save = time.monotonic()
        while True:
            try:
                self._loop()
                break
            except _Rewind as bad:
                self.logger.close()
                self._rewind(bad)
                self._read_ahead(int(self.state.hyper["data_offset"]))
                self.logger = logger()
        if self.checkpoints:
            self.checkpoints.close()
        if self.signals:
            self.signals.end()
        return self.state

    def _begin(self, stack: contextlib.ExitStack, total: int, offset: int = 0) -> None:
        """Fix the run's length and what follows from it, and read ahead: the first batch comes while programs compile."""
        self.total, self.many = total, self.trainer.steps_per_call_of(total)
        every = self.trainer.training.evaluate_every
        self.evaluate_every = self._duration(every, "training.evaluate_every", total) if every and self.evaluate else None
        self._read_ahead(offset)
        stack.callback(lambda: self.batches.close())

    def _read_ahead(self, offset: int) -> None:
        steps = self.stream.iterate(self.step + offset, self.trainer.rows)
        self.batches = Prefetch(steps, self._plan(self.step), self.trainer.put)

    def _loop(self) -> None:
        trainer, pending, batches = self.trainer, None, self.batches
        programs: dict[int, Callable] = {}
        try:
            for count in self._plan(self.step):
                if count not in programs:  # that of single steps may still be in the making
                    self._settle(pending)
                    pending = None
                    with self._may_block():
                        programs[count] = trainer.compiled(count, self.resident)
                pending = self._boundary(pending, count)
                waited = batches.waited
                batch = next(batches)
                self.speed.waited += batches.waited - waited
                self.state, metrics = programs[count](self.state, batch, self.resident)
                self.step += count
                self.speed.steps += count
                self._settle(pending)
                pending = (self.step - count, metrics)
            self._boundary(pending, 0)
        finally:
            batches.close()

    def _plan(self, step: int) -> Iterator[int]:
        """How many steps each call holds. Calls end where the run evaluates or saves, wherever it was started."""
        many, marks = self.many, self._marks
        while step < self.total:
            ends = [self.total, *((step // m + 1) * m for m in (many, *marks))]
            begins = [0, *(step // m * m for m in (many, *marks))]
            count = many if min(ends) - max(begins) == many and step == max(begins) else 1
            yield count
            step += count

    @property
    def _marks(self) -> list[int]:
        return [m for m in (self.evaluate_every, self.settings.every if self.checkpoints else None) if m]

    def _boundary(self, pending: Any, ahead: int) -> Any:
        """Between two calls: evaluate, save, stop when asked. Returns the metrics still to be read."""
        step, last = self.step, self.step == self.total
        if self.signals and self.signals.must_stop(step, ahead):
            self._settle(pending)
            self._save()
            self.checkpoints.wait()
            raise Preempted(f"stopped after step {step}, which is saved; the same command continues", self.signals.status)
        evaluates = self._evaluate_due(step)
        saves = self.checkpoints is not None and self._save_due(step, last)
        if evaluates or saves or last:
            self._settle(pending)
            pending = None
        if evaluates and self.extra.get("evaluated") != step:
            started = time.monotonic()
            with self._may_block():
                results = {k: float(v) for k, v in self.evaluate(self.state).items()}
            self.speed.paused += time.monotonic() - started
            self.extra |= {"evaluated": step, "evaluation": results}
            self.logger.flush_line(results, step)
        if saves:
            self._save()
            self.last_save = time.monotonic()
        if self.checkpoints:
            self.checkpoints.check()
        self.logger.report()
        return pending

    def _evaluate_due(self, step: int) -> bool:
        return bool(self.evaluate_every) and step > 0 and step % self.evaluate_every == 0

    def _save_due(self, step: int, last: bool) -> bool:
        every, minutes = self.settings.every, self.settings.every_minutes
        if last or (every and step and step % every == 0):
            return True
        if step == 0 or minutes is None:
            return step == 0 and self.trainer.training.on_nonfinite == "rewind"
        if jax.process_count() == 1:
            return time.monotonic() - self.last_save >= 60 * minutes
        if step % 100:  # clocks differ: the first process decides for all
            return False
        from jax.experimental import multihost_utils

        return bool(multihost_utils.broadcast_one_to_all(np.bool_(time.monotonic() - self.last_save >= 60 * minutes)))

    def _save(self) -> None:
        self.logger.sync()
        self.checkpoints.save(self.step, self.state, {**self.extra, "logger": self.logger.state()})

    @contextlib.contextmanager
    def _may_block(self):
        """Around compilations and evaluations: a signal then saves this step from another thread."""
        if self.signals is None:
            yield
            return

        def save():
            self.checkpoints.save(self.step, self.state, {**self.extra, "logger": self._logger_state()})
            self.checkpoints.wait()

        with self.signals.may_block(save):
            yield

    def _logger_state(self) -> Any:
        logger = getattr(self, "logger", None)
        return self.extra.get("logger") if logger is None else logger.state()

    def _settle(self, pending: Any) -> None:
        """Read the metrics of a call (the device has finished it by now, or soon will) and judge them."""
        if pending is None:
            return
        start, metrics = pending
        names = self.trainer.step.names
        values = np.asarray(metrics, np.float32).reshape(-1, len(names))
        shown = [i for i, name in enumerate(names) if not name.startswith("norm/")]
        for i, row in enumerate(values):
            step = start + i + 1
            bad = nonfinite(names, row)
            if bad and self.trainer.training.on_nonfinite != "skip":
                self._diverged(step, *bad)
            line = {names[j]: float(row[j]) for j in shown}
            if self.extra.get("rewinds"):
                line["rewinds"] = self.extra["rewinds"]
            if bad:  # skipped: its numbers would spoil the means
                line = {k: v for k, v in line.items() if np.isfinite(v)}
            self.logger.add(step, line)
            if not self._evaluate_due(step):
                self.logger.flush_line()

    # Divergence ---------------------------------------------------------------------------------------------------------

    def _diverged(self, step: int, metric: str, group: str) -> None:
        offset = int(self.state.hyper["data_offset"])
        batch = step - 1 + offset
        if self.checkpoints:
            self.checkpoints.wait()
        good = max((s for s in self.checkpoints.steps() if s < step), default=None) if self.checkpoints else None
        index = [int(i) for i in self.stream.indices(batch)]
        shown = ", ".join(map(str, index[:8])) + (f" ... ({len(index)} in all)" if len(index) > 8 else "")
        kept = "none" if good is None else f"step {good}"
        where = f"nor is the gradient of {group}" if group else "all gradients are finite"
        line = (
            f"step {step}: {metric} is not finite, {where}; last good checkpoint: {kept}; the batch holds the examples {shown}"
        )
        if self.workdir is not None and jax.process_index() == 0:
            report = {"step": step, "metric": metric, "group": group, "checkpoint": good, "batch": batch, "indices": index}
            (self.workdir / "diverged.json").write_text(configs.to_json(report) + "\n")
        rewinds = self.extra.get("rewinds", 0)
        if self.trainer.training.on_nonfinite == "rewind" and self.checkpoints and rewinds < MAX_REWINDS:
            warn(f"{line}; going back, past these batches")
            raise _Rewind(step)
        raise Diverged(f'{line}; lower optimizer.lr, set optimizer.clip, or training.on_nonfinite="skip"')

    def _rewind(self, bad: "_Rewind") -> None:
        """Back to the last checkpoint; the batches from there to the bad one are passed over."""
        rewinds = self.extra.get("rewinds", 0) + 1
        self.checkpoints.wait()
        good = max(s for s in self.checkpoints.steps() if s < bad.step)
        self.state, self.extra = self.checkpoints.restore(good, self.trainer._abstract)
        self.extra["rewinds"] = max(rewinds, self.extra.get("rewinds", 0) + 1)
        self.checkpoints.saved, self.step = good, good
        offset = np.int32(int(self.state.hyper["data_offset"]) + bad.step - good)
        hyper = {**self.state.hyper, "data_offset": sharding.put_replicated(offset, self.trainer.mesh)}
        self.state = self.state.replace(hyper=hyper)
        if self.signals:
            self.signals.begin(good)

    # Length -------------------------------------------------------------------------------------------------------------

    def _duration(self, text: str, path: str, total: int | None = None) -> int | None:
        """A duration in steps, at least one; None for a budget in minutes, which has to be measured."""
        duration = configs.Duration.parse(text, path)
        if duration.unit == "minute" and total is None:
            return None
        steps = duration.steps(
            path=path, batch_size=self.stream.batch_size, examples=self.stream.dataset.size, total=total,
            tokens_per_example=tokens_of(self.stream.dataset.info),
        )  # fmt: skip
        if steps < 1:
            raise UserError(f"{path}={text!r}: is less than one step of {self.stream.batch_size} examples")
        return steps

    def _hyper(self, total: int, given: dict) -> dict:
        settings = self.trainer.settings
        part = lambda name: configs.Duration.parse(getattr(settings, name), f"optimizer.{name}").steps(
            path=f"optimizer.{name}", batch_size=self.stream.batch_size, examples=self.stream.dataset.size, total=total,
            tokens_per_example=tokens_of(self.stream.dataset.info),
        )  # fmt: skip
        return states.hyper(
            settings, batch_size=self.stream.batch_size, seed=self.seed, total_steps=total,
            warmup_steps=part("warmup"), cooldown_steps=part("cooldown"), **given,
        )  # fmt: skip

    def _set_total(self, total: int, given: dict) -> None:
        hyper = sharding.put_replicated(jax.tree.map(np.asarray, self._hyper(total, given)), self.trainer.mesh)
        self.state = self.state.replace(hyper=hyper)

    def _measured(self, minutes: float, seconds: float = 5.0) -> int:
        """Steps in so many minutes, at the speed of a few seconds on a copy of the state that is then thrown away."""
        trainer, count = self.trainer, self.trainer.steps_per_call
        program = trainer.compiled(count, self.resident)
        state = jax.tree.map(jnp.copy, self.state)
        counts = iter(lambda: count, None)
        batches = Prefetch(self.stream.iterate(0, trainer.rows), counts, trainer.put)
        seconds = min(seconds, 3 * minutes)
        for _ in range(3):
            state, metrics = program(state, next(batches), self.resident)
        jax.block_until_ready(metrics)
        started, done = time.monotonic(), 0
        while time.monotonic() - started < seconds:
            state, metrics = program(state, next(batches), self.resident)
            jax.block_until_ready(metrics)
            done += count
        batches.close()
        steps = done / (time.monotonic() - started) * 60 * minutes
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            steps = float(multihost_utils.broadcast_one_to_all(np.float32(steps)))
        return max(1, math.floor(steps))


class _Rewind(Exception):
    def __init__(self, step: int):
        self.step = step


def tokens_of(info: Any) -> int:
    """Tokens of one example, where examples are text; else 1."""
    if "tokens" not in info.shapes or "image" in info.shapes:
        return 1
    return int(info.extra.get("tokens_per_example", info.shapes["tokens"].shape[-1]))
