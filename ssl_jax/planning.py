"""The plan of a sweep (runs, programs, replicas, time, disk), and its progress line."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ssl_jax.reports.page import duration
from ssl_jax.training.logging import Console

MEMORY_SHARE = 0.8  # of an accelerator's memory, for replicas
WARM_STEPS, SECONDS = 3, 2.0  # of the measured step


def replicas_of(program: Any, saving: Any, wanted: int | None) -> int:
    """Return how many runs of a program train together: `wanted`, else one per core on a CPU, or as many as fit elsewhere."""
    from ssl_jax.training.replicas import can_be_replicated, replica_devices

    if not can_be_replicated(program, saving):
        return 1
    if wanted is not None:
        return wanted
    devices = replica_devices(program)
    if devices[0].platform == "cpu":  # measured: a second replica on a core costs as much as it saves
        return len(devices)
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:
        return 1
    return max(1, int(MEMORY_SHARE * limit / bytes_of(program))) * len(devices)


def bytes_of(program: Any) -> int:
    """Return the device memory of one run of a program: its state and the temporaries of its compiled step."""
    from ssl_jax.training import sharding

    compiled = program.compiled(1, sharding.put_replicated(program.stream.resident, program.mesh))
    analysis = compiled.memory_analysis()
    return state_bytes(program) + int(getattr(analysis, "temp_size_in_bytes", 0))


def state_bytes(program: Any) -> int:
    return int(sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(program.abstract)))


def steps_of(trainer: Any, parts: Any) -> int | None:
    """Return the steps of a run; None for a budget in minutes."""
    from ssl_jax.training.length import in_steps

    return in_steps(parts.training.duration, "training.duration", parts.stream)


def step_seconds(trainer: Any, parts: Any) -> float:
    """Return the measured time of a single run's step."""
    from ssl_jax.training import length as lengths
    from ssl_jax.training import sharding

    program, stream = trainer.program, parts.stream
    resident = sharding.put_replicated(stream.resident, program.mesh)
    run = program.compiled(1, resident)
    state = program.create(lengths.hyper(program, stream, 0, 1000))
    batches, times = stream.iterate(0, program.rows), []
    started = time.monotonic()
    while len(times) < WARM_STEPS + 1 or (time.monotonic() - started < SECONDS and len(times) < 200):
        batch, begun = program.put(next(batches), 1), time.monotonic()
        state, metrics = run(state, batch, resident)
        jax.block_until_ready(metrics)
        times.append(time.monotonic() - begun)
    if hasattr(batches, "close"):
        batches.close()
    return float(np.median(times[WARM_STEPS:]))


def describe(experiment: Any, groups: Sequence[Any], prepared: Sequence[tuple[Any, Any]], replicas: int | None) -> str:
    """Return the plan: the remaining runs by program, the time of training, and the disk space.

    The step of the first program is measured, those of the others are estimated from their FLOPs.
    """
    jobs = [job for group in groups for job in group.jobs]
    done = sum(job.finished for job in jobs)
    many = f"{len(groups)} program{'s' * (len(groups) > 1)}"
    lines = [f"{experiment.name}: {len(experiment.arms)} arms x {len(experiment.seeds)} seeds; {len(jobs)} runs, {done} of them"
             f" done, in {many}"]  # fmt: skip
    if not prepared:
        return lines[0]
    _, (first, trainer) = prepared[0]
    seconds = step_seconds(trainer, first)
    per_flop = seconds / max(first.task.flops() * first.stream.batch_size, 1)
    total = disk = 0.0
    for group, (parts, own) in prepared:
        left = [job for job in group.jobs if not job.finished]
        steps = steps_of(own, parts)
        step = per_flop * parts.task.flops() * parts.stream.batch_size or seconds
        each = step * steps if steps is not None else 60 * float(parts.training.duration.split()[0])
        size = min(replicas_of(own.program, parts.checkpoint, replicas), len(left))
        together = f", {size} at once" if size > 1 else ""
        names = ", ".join(dict.fromkeys(job.arm.name for job in left))
        lines.append(f"  {names}: {len(left)} runs of {steps or '?'} steps{together}; about {duration(each)} each")
        total += each * len(left)
        disk += state_bytes(own.program) * (parts.checkpoint.keep + (size > 1)) * len(left)
    evaluation = evaluation_seconds(jobs)
    left = len(jobs) - done
    more = f"evaluation {duration(evaluation * left)}" if evaluation is not None else "evaluation has not been measured yet"
    measured = f"a step of {1e3 * seconds:.1f} ms measured, others by their FLOPs"
    lines.append(f"training about {duration(total)} ({measured}); {more}; checkpoints {disk / 2**20:,.0f} MiB")
    return "\n".join(lines)


def evaluation_seconds(jobs: Sequence[Any]) -> float | None:
    """Return the mean evaluation time of the completed runs; None if there are none."""
    found = [job.workdir.read("timings.json", {}) for job in jobs if job.finished and job.workdir.results()]
    found = [sum(v for k, v in timings.items() if k != "training") for timings in found]
    return float(np.mean(found)) if found else None


# Progress ---------------------------------------------------------------------------------------------------------------


class Progress:
    """One line for the whole sweep, live on a terminal, at most once a minute elsewhere; and a line for each completed run."""

    def __init__(self, total: int, done: int):
        self.total, self.done, self.begun = total, done, done
        self.started = self.last = time.monotonic()
        self.live = sys.stderr.isatty()

    def left(self, share: float = 0.0) -> str:
        """Return the remaining time, given the `share` of the current run that is done."""
        ran = self.done - self.begun + share
        if ran <= 0:
            return ""
        seconds = (self.total - self.done - share) * (time.monotonic() - self.started) / ran
        return f", {duration(seconds)} left" if self.total > self.done else ""

    def ended(self, job: Any, text: str) -> None:
        self.done += 1
        self.clear()
        print(
            f"[{self.done}/{self.total}] {job.name}: {text} ({duration(time.monotonic() - self.started)}{self.left()})",
            flush=True,
        )

    def clear(self) -> None:
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def console(self, name: str) -> "RunLine":
        return RunLine(self, name)


class RunLine(Console):
    """The console of one run, or of several that train together, shown in the sweep's line."""

    def __init__(self, progress: Progress, name: str):  # draws nothing of its own
        self.quiet = False
        self.progress, self.name, self.shown = progress, name, 0.0

    def due(self) -> bool:
        return time.monotonic() - self.shown >= (0.5 if self.progress.live else 10.0)

    def show(self, step: int, metrics: Mapping[str, float], speed: Mapping[str, float]) -> None:
        self.shown = time.monotonic()
        p = self.progress
        text = f"[{p.done + 1}/{p.total}] {self.name}: step {step}, loss {metrics.get('loss', float('nan')):.4g}{p.left()}"
        if p.live:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - p.last >= 60:
            p.last = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        self.progress.clear()
