"""The length of a run: durations in steps, and the boundaries of calls of several steps."""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import config as configs
from ssl_jax.errors import UserError
from ssl_jax.task import tokens_of
from ssl_jax.training import sharding
from ssl_jax.training.prefetch import Prefetch
from ssl_jax.training.program import Program


@dataclasses.dataclass(frozen=True)
class Length:
    """A run's total steps, steps per call, and the intervals of evaluation and saving in steps (None: never)."""

    total: int
    many: int = 1
    evaluate_every: int | None = None
    save_every: int | None = None

    @property
    def boundaries(self) -> list[int]:
        """Return the intervals at whose multiples a call must end."""
        return [interval for interval in (self.evaluate_every, self.save_every) if interval]

    def calls(self, step: int) -> Iterator[int]:
        """Yield the number of steps of each call from `step` on. Calls end where the run evaluates or saves, independent of
        the first step, so that a resumed run makes the same calls."""
        many = self.many
        while step < self.total:
            ends = [self.total, *((step // m + 1) * m for m in (many, *self.boundaries))]
            begins = [0, *(step // m * m for m in (many, *self.boundaries))]
            count = many if min(ends) - max(begins) == many and step == max(begins) else 1
            yield count
            step += count

    def has_single_steps(self, step: int) -> bool:
        """Return whether some calls from `step` on have one step although others have several."""
        return any(m % self.many for m in (step, self.total, *self.boundaries))

    def evaluates(self, step: int) -> bool:
        """Return whether the run evaluates after `step`."""
        return bool(self.evaluate_every) and step > 0 and step % self.evaluate_every == 0


def in_steps(text: str, path: str, stream: Any, total: int | None = None) -> int | None:
    """Return a duration in steps; None for a budget in minutes, which needs a measurement."""
    duration = configs.Duration.parse(text, path)
    if duration.unit == "minute" and total is None:
        return None
    info = stream.dataset.info
    return duration.steps(
        path=path, batch_size=stream.batch_size, examples=stream.dataset.size, total=total, tokens_per_example=tokens_of(info)
    )


def at_least_one(text: str, path: str, stream: Any, total: int | None = None) -> int | None:
    """Return `in_steps`; raise UserError if that is less than one step."""
    steps = in_steps(text, path, stream, total)
    if steps is not None and steps < 1:
        raise UserError(f"{path}={text!r}: is less than one step of {stream.batch_size} examples; lengthen it")
    return steps


def hyper(program: Program, stream: Any, seed: int, total: int | None, **given: Any) -> dict[str, Any]:
    """Return the hyper-parameters of a run of `total` steps (None: not known yet).

    given: lr and weight_decay that replace the config's. Raise UserError for a schedule that does not fit the run.
    """
    settings, steps = program.settings, 1 if total is None else total
    steps_of = lambda name, schedule: in_steps(schedule.over, f"schedules.{name}.over", stream, steps)
    found = program.hyper(
        batch_size=stream.batch_size, seed=seed, total_steps=steps,
        warmup_steps=in_steps(settings.warmup, "optimizer.warmup", stream, steps),
        cooldown_steps=in_steps(settings.cooldown, "optimizer.cooldown", stream, steps),
        schedules={name: s.numbers(steps_of(name, s)) for name, s in program.schedules.by_name().items()}, **given,
    )  # fmt: skip
    if total is not None:
        try:
            warmup, cooldown = int(found["warmup_steps"]), int(found["cooldown_steps"])
            settings.check_lengths(peak=float(found["lr"]), total=total, warmup=warmup, cooldown=cooldown)
        except UserError as error:
            raise UserError(f"optimizer.{error}") from None
    return found


EXTENDABLE = ("constant", "warmup_stable_decay")  # schedules whose past rates do not depend on the length of the run


def extended(program: Program, saved: dict[str, Any], wanted: dict[str, Any], step: int) -> dict[str, Any]:
    """Return the hyper-parameters of a run after `step` steps, with the length changed to that of `wanted`.

    Raise UserError if the new length would have changed one of these steps.
    """
    number = lambda values, name: int(np.ravel(values[name])[0])
    old, new, warmup = number(saved, "total_steps"), number(wanted, "total_steps"), number(saved, "warmup_steps")
    if new == old:
        return saved
    path, schedule, cooldown = "training.duration", program.settings.schedule, number(wanted, "cooldown_steps")
    if schedule not in EXTENDABLE or program.schedules.by_name():
        raise UserError(
            f"{path}: a run of {old:,} steps with this schedule cannot become one of {new:,}; use another --workdir"
        )
    if number(wanted, "warmup_steps") != warmup:
        raise UserError(f"{path}: the warm-up was {warmup:,} steps; give it in steps, since % depends on the length")
    if step > new:
        raise UserError(f"{path}: {step:,} steps are already done, more than {new:,}; use a longer duration")
    decay = min(old - number(saved, "cooldown_steps"), new - cooldown)
    if schedule == "warmup_stable_decay" and step > decay:
        raise UserError(f"{path}: with {old:,} or {new:,} steps the rate decays from step {decay:,} on, but {step:,} are done")
    like = lambda value, name: np.full_like(saved[name], value)
    return saved | {"total_steps": like(new, "total_steps"), "cooldown_steps": like(cooldown, "cooldown_steps")}


def measured(program: Program, state: Any, stream: Any, resident: Any, minutes: float, seconds: float = 5.0) -> int:
    """Return how many steps fit into `minutes`, at the speed measured for a few seconds on a copy of the state."""
    count = program.steps_per_call
    run, state = program.compiled(count, resident), jax.tree.map(jnp.copy, state)
    batches = Prefetch(stream.iterate(0, program.rows), itertools.repeat(count), program.put)
    seconds = min(seconds, 3 * minutes)
    for _ in range(3):
        state, metrics = run(state, next(batches), resident)
    jax.block_until_ready(metrics)
    started, done = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        state, metrics = run(state, next(batches), resident)
        jax.block_until_ready(metrics)
        done += count
    batches.close()
    steps = done / (time.monotonic() - started) * 60 * minutes
    steps = sharding.from_primary(float(steps))
    return max(1, math.floor(steps))
