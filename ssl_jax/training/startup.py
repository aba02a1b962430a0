"""Start a run: create or restore its state while programs compile and the first batch is read."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ssl_jax import config as configs
from ssl_jax.training import length as lengths
from ssl_jax.training import sharding
from ssl_jax.training.checkpoint import Checkpoints
from ssl_jax.training.length import Length
from ssl_jax.training.preemption import Preemption
from ssl_jax.training.prefetch import Prefetch
from ssl_jax.training.program import Program


@dataclasses.dataclass
class Begun:
    """A run before its first call. For a complete run only state and length are set."""

    step: int
    state: Any  # State
    length: Length
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)  # the content of a checkpoint besides the State
    resident: Any = None  # the data set's arrays on the devices (placement "device")
    batches: Prefetch | None = None


def begin(
    program: Program, stream: Any, checkpoints: Checkpoints | None, signals: Preemption | None,
    hyper: Callable[[int | None], dict[str, Any]], *, total: int | None, init_params: Any, init_variables: Any, evaluates: bool,
    save_every: int | None,
) -> Begun:  # fmt: skip
    """Begin a run at the newest checkpoint, or at step 0.

    hyper: total steps (None: not known yet) -> the hyper-parameters. total: steps; by default from training.duration.
    evaluates: whether the run has an evaluation to call at training.evaluate_every.
    """
    training = program.training
    newest = checkpoints.newest() if checkpoints else None
    if signals:
        signals.begin(newest or 0)
    if total is None:
        total = lengths.at_least_one(training.duration, "training.duration", stream)
    of = lambda total: length_of(program, stream, total, evaluates, save_every if checkpoints else None)
    if total is not None and (newest or 0) < total:
        program.compile_ahead(program.steps_per_call_of(total), stream.resident)
    if newest is not None:
        return resumed(program, stream, checkpoints, signals, newest, of, hyper, total)

    begun = Begun(0, None, Length(0))
    if total is not None:
        begun.length = of(total)
        begun.batches = read_ahead(program, stream, begun.length, 0)
    begun.state = program.create(hyper(total), init_params, init_variables)
    begun.resident = sharding.put_replicated(stream.resident, program.mesh)
    with may_block(signals, lambda: save(checkpoints, begun)):
        if total is None:  # a budget in minutes
            minutes = configs.Duration.parse(training.duration, "training.duration").number
            total = lengths.measured(program, begun.state, stream, begun.resident, minutes)
            numbers = jax.tree.map(np.asarray, hyper(total))
            begun.state = begun.state.replace(hyper=sharding.put_replicated(numbers, program.mesh))
            begun.length = of(total)
            begun.batches = read_ahead(program, stream, begun.length, 0)
        program.compiled(begun.length.many, begun.resident)
    if begun.length.has_single_steps(0):
        program.compile_ahead(1, begun.resident)
    return begun


def resumed(
    program: Program, stream: Any, checkpoints: Checkpoints, signals: Preemption | None, step: int, of: Callable[[int], Length],
    hyper: Callable[[int | None], dict[str, Any]], total: int | None,
) -> Begun:  # fmt: skip
    """Restore the checkpoint of `step`, for a run of `total` steps (None: its original length)."""
    state, extra = checkpoints.restore(step, program.abstract)
    if total is not None and total != first_of(state.hyper["total_steps"]):
        numbers = lengths.extended(program, sharding.to_host(state.hyper), hyper(total), step)
        state = state.replace(hyper=sharding.put_replicated(numbers, program.mesh))
    begun = Begun(step, state, of(first_of(state.hyper["total_steps"])), extra)
    if step < begun.length.total:
        begun.resident = sharding.put_replicated(stream.resident, program.mesh)
        begun.batches = read_ahead(program, stream, begun.length, step, first_of(state.hyper["data_offset"]))
        with may_block(signals, lambda: save(checkpoints, begun)):
            program.compiled(begun.length.many, begun.resident)
        if begun.length.has_single_steps(step):
            program.compile_ahead(1, begun.resident)
    return begun


def first_of(number: Any) -> int:
    """Return an integer of State.hyper that all replicas share."""
    return int(np.ravel(number)[0])


def length_of(program: Program, stream: Any, total: int, evaluates: bool, save_every: int | None) -> Length:
    """Return the run's Length, which also determines the boundaries of calls."""
    every = program.training.evaluate_every if evaluates else None
    evaluate_every = lengths.at_least_one(every, "training.evaluate_every", stream, total) if every else None
    return Length(total, program.steps_per_call_of(total), evaluate_every, save_every)


def read_ahead(program: Program, stream: Any, length: Length, step: int, offset: int = 0) -> Prefetch:
    """Read the batches of the calls from `step` on in the background; `offset`: batches skipped by rewinding."""
    return Prefetch(stream.iterate(step + offset, program.rows), length.calls(step), program.put)


def save(checkpoints: Checkpoints, begun: Begun) -> None:
    checkpoints.save(begun.step, begun.state, begun.extra)
    checkpoints.wait()


def may_block(signals: Preemption | None, saver: Callable[[], Any]) -> contextlib.AbstractContextManager:
    """Return a context for blocking work in the main thread: a signal calls `saver` from another thread, then exits."""
    return contextlib.nullcontext() if signals is None else signals.may_block(saver)
