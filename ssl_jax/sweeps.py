"""Sweeps: the arms and seeds of an experiment as a folder of ordinary runs.

    D/sweep.json            the experiment
    D/ARM/seedN/            one run: a work directory like any other
    D/report.html, ...      the report, made from the runs

One or several processes can work on a folder at once. A killed sweep is resumed by the same command: finished runs are
skipped, and interrupted runs continue from their last checkpoint. `evaluate`, `report`, `convert` and `ssl_jax.load`
accept D/ARM/seedN like any run.
"""

import contextlib
import dataclasses
import fnmatch
import functools
import json
import pathlib
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ssl_jax import cpu, evidence, planning, resume, runs
from ssl_jax.config import nearest
from ssl_jax.errors import UserError
from ssl_jax.experiments import Arm, Experiment
from ssl_jax.planning import Progress
from ssl_jax.reports.sweep import FILE, load_sweep, write_sweep
from ssl_jax.runs import Parts, say
from ssl_jax.training.exceptions import Diverged
from ssl_jax.training.lock import Busy, locked
from ssl_jax.workdir import Workdir, differences

STACKS = ".stacks"  # folder with the members and checkpoints of runs that train and are evaluated together
MOST_TOGETHER = 8  # runs that are evaluated together, whose features are in memory at once
NUMBERS = ("seed", "optimizer.lr", "optimizer.base_lr", "optimizer.weight_decay")  # inputs of a compiled program


class WrongColumn(UserError):
    """A column of the table that no run will measure."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    arm: Arm
    seed: int
    config: ConfigDict
    workdir: Workdir

    @property
    def name(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"

    @property
    def key(self) -> list:
        return [self.arm.folder, self.seed]

    @property
    def finished(self) -> bool:
        """Return whether the run is trained and evaluated, or has diverged (another start would diverge again)."""
        return "diverged" in self.workdir.status() or resume.measured(self.workdir, self.config)


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that share one compiled program: they differ only in numbers that are its inputs."""

    jobs: tuple[Job, ...]


def sweep(
    experiment: Experiment, workdir: str, *, plan: bool = False, shard: tuple[int, int] = (0, 1), replicas: int | None = None
) -> int:
    """Run the missing runs of a sweep's folder, and write its report.

    plan: only print the missing runs and their estimated time. shard=(i, n): run only every n-th group, from the i-th on.
    replicas: number of runs that train together in one program; by default one per core on a CPU, and as many as fit on
    accelerators. Raise UserError, before anything is written, for an invalid config of an arm and for a folder with
    another sweep.
    """
    folder = Workdir.at(workdir).path
    check_folder(folder, experiment)
    groups = grouped(jobs_of(experiment, folder))[shard[0] :: shard[1]]
    left = [group for group in groups if not all(job.finished for job in group.jobs)]
    prepared = [(group, prepare(group, experiment)) for group in left]
    say(planning.describe(experiment, groups, prepared, replicas))
    if plan:
        return 0
    with locked(folder, wait=True):  # another process may have created it meanwhile
        check_folder(folder, experiment)
        Workdir(folder).write(FILE, merged(folder, experiment))
    jobs = [job for group in groups for job in group.jobs]
    running = Running(folder, experiment, Progress(len(jobs), sum(job.finished for job in jobs)), replicas)
    while prepared:  # release each finished group: its data, programs and features use as much memory as a run
        group, (parts, trainer) = prepared.pop(0)
        running.run(group, parts, trainer)
        del parts, trainer
        cpu.return_freed_memory()
    with locked(folder, wait=True):  # the last of several processes sees all runs
        page = write_sweep(folder)
    show(folder)
    for job in running.busy:
        say(f"{job.name}: another process is running it")
    say(f"report: {page}")
    return 2 if running.failed else 0


# What there is to do ----------------------------------------------------------------------------------------------------


def jobs_of(experiment: Experiment, folder: pathlib.Path) -> list[Job]:
    """Return every run of the experiment, ordered by arm, then seed."""
    return [
        Job(arm, seed, experiment.config(arm, seed), Workdir(folder / arm.folder / f"seed{seed}"))
        for arm in experiment.arms
        for seed in experiment.seeds
    ]


def grouped(jobs: Sequence[Job]) -> list[Group]:
    """Return the jobs grouped by compiled program, in the order of their first appearance."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(program_key(job.config), []).append(job)
    return [Group(tuple(members)) for members in found.values()]


def program_key(config: ConfigDict) -> str:
    """Return a key of the compiled program: the config without the numbers that are its inputs, and without evaluation."""
    plain = config.to_dict()
    for name in ("card", "expected"):
        plain.pop(name, None)
    optimizer = plain.get("optimizer", {})
    fixed = optimizer.get("matrix_lr") is not None  # muon's ratio of two learning rates is compiled in
    for key in NUMBERS:
        section, _, name = key.rpartition(".")
        if not (fixed and name in ("lr", "base_lr")):
            (plain.get(section, {}) if section else plain).pop(name, None)
    return json.dumps(plain, sort_keys=True, default=str)


def prepare(group: Group, experiment: Experiment) -> tuple[Parts, Any]:
    """Return (parts, trainer) of a group's first run, fully checked. UserErrors name the arm."""
    for arm in {job.arm.name: job for job in group.jobs}.values():
        try:
            parts = runs.prepare(arm.config, str(arm.workdir.path))
            check_columns(experiment, parts)
        except UserError as error:
            raise UserError(f"arm {arm.arm.name!r}: {error}") from None
    first = group.jobs[0]
    try:
        parts = runs.prepare(first.config, str(first.workdir.path))
        runs.questionable_settings(parts)
        if parts.evaluators:
            runs.check_evaluation(parts)
        return parts, runs.trainer_of(parts)
    except UserError as error:
        raise UserError(f"arm {first.arm.name!r}: {error}") from None


def check_columns(experiment: Experiment, parts: Parts) -> None:
    """Raise UserError for a column that no evaluator of the config will measure."""
    for metric in experiment.settings.columns:
        name, _, rest = metric.partition("/")
        if name not in parts.evaluators:
            near = nearest(name, parts.evaluators) if parts.evaluators else "; the config names no evaluators"
            raise WrongColumn(f"columns: {metric!r}: {name!r} is not an evaluator of `downstream`{near}")
        names = parts.evaluators[name].names
        if names and not any(fnmatch.fnmatchcase(rest, pattern) for pattern in names):
            raise WrongColumn(f"columns: {metric!r} is not a result of {name}{nearest(metric, [f'{name}/{n}' for n in names])}")


def check_results(experiment: Experiment, job: Job) -> None:
    """Raise UserError, with the nearest name, for a column that a finished run does not have."""
    results = job.workdir.results()
    for metric in experiment.settings.columns:
        if metric not in results:
            raise WrongColumn(f"columns: {metric!r} is not among the results of {job.name}{nearest(metric, results)}")


def check_folder(folder: pathlib.Path, experiment: Experiment) -> None:
    """Raise UserError, naming the difference, if a folder holds another sweep or a run. Seeds and arms may be added."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--workdir={folder}: is a file; use another --workdir")
    if (folder / "config.json").exists():
        raise UserError(f"--workdir={folder}: holds a single run; use another --workdir")
    old = Workdir(folder).read(FILE)
    if old is None:
        return
    new = experiment.document()
    differ = [line for _, line in differences({"config": old.get("config")}, {"config": new["config"]})]
    arms = {arm["name"]: arm["values"] for arm in new["arms"]}
    for arm in old.get("arms", []):
        if arm["name"] in arms:
            lines = differences(_flat(arm["values"]), _flat(arms[arm["name"]]))
            differ += [f"arm {arm['name']!r}: {line}" for _, line in lines]
    if differ:
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise UserError(f"--workdir={folder}: holds another sweep ({'; '.join(differ[:3])}{more}); use another --workdir")


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: json.dumps(value) for key, value in values.items()}


def merged(folder: pathlib.Path, experiment: Experiment) -> dict[str, Any]:
    """Return the content of sweep.json: the experiment, plus the arms and seeds that only the folder has."""
    new, old = experiment.document(), Workdir(folder).read(FILE, {})
    names = [arm["name"] for arm in new["arms"]]
    new["arms"] += [arm for arm in old.get("arms", []) if arm["name"] not in names]
    new["seeds"] += [seed for seed in old.get("seeds", []) if seed not in new["seeds"]]
    return new


# Running ----------------------------------------------------------------------------------------------------------------


class Running:
    """The runs of a sweep in this process: groups one after another, each in chunks that train together."""

    def __init__(self, folder: pathlib.Path, experiment: Experiment, progress: Progress, replicas: int | None):
        self.folder, self.experiment, self.progress, self.replicas = folder, experiment, progress, replicas
        self.busy: list[Job] = []  # locked by another process
        self.failed: list[Job] = []

    def run(self, group: Group, parts: Parts, trainer: Any) -> None:
        """Run the unfinished jobs of a group with one trainer."""
        from ssl_jax.training.replicas import forget

        size = planning.replicas_of(trainer.program, parts.checkpoint, self.replicas)
        for chunk in chunks_of(group, size, self.folder):
            tried: list[Job] = []
            if len(chunk) > 1:
                self.attempt(chunk, lambda chunk=chunk: self.train_together(chunk, parts, trainer))
                trained = [job for job in chunk if resume.trained(job.workdir) and "diverged" not in job.workdir.status()]
                for start in range(0, len(trained), MOST_TOGETHER):
                    jobs = trained[start : start + MOST_TOGETHER]
                    if len(jobs) > 1 and not any(job in self.busy for job in chunk):
                        self.attempt(jobs, lambda jobs=jobs: self.evaluate_together(jobs, parts, trainer))
                        tried += jobs
            for job in chunk:
                if not job.finished and job not in tried and job not in self.busy:
                    self.attempt([job], lambda job=job: self.complete(job, parts, trainer))
            if len(chunk) > 1 and not any(job in self.busy for job in chunk):
                forget(stack_of(self.folder, chunk))

    def attempt(self, jobs: Sequence[Job], work: Callable[[], None]) -> None:
        """Call `work` for `jobs`; report and record a divergence or failure, so that other jobs continue."""
        try:
            work()
        except Busy:
            self.busy += jobs
        except WrongColumn:
            raise
        except (Diverged, UserError) as error:
            self.fail(jobs, error)

    def fail(self, jobs: Sequence[Job], error: Exception) -> None:
        why = "diverged" if isinstance(error, Diverged) else "failed"
        for job in jobs:
            job.workdir.write("status.json", {**job.workdir.status(), why: str(error)})
            self.progress.ended(job, f"{why}, {error}")
        self.failed += jobs if why == "failed" else []

    def complete(self, job: Job, parts: Parts, trainer: Any) -> None:
        """Train a run, unless it is trained already, and evaluate it."""
        own = with_numbers(parts, job.config)
        with locked(job.workdir.path):
            if not job.finished:  # another process may just have finished it
                clear_failure(job)
                trained = resume.trained(job.workdir)
                console = self.progress.console(job.name)
                runs.complete(own, job.workdir, None if trained else trainer, quiet=True, console=console)
        self.ended(job)

    def ended(self, job: Job) -> None:
        """Check and print the results of a run."""
        check_results(self.experiment, job)
        results, columns = job.workdir.results(), self.experiment.settings.columns.items()
        self.progress.ended(job, ", ".join(f"{heading} {results[metric]:.4g}" for metric, heading in columns))

    def train_together(self, chunk: Sequence[Job], parts: Parts, trainer: Any) -> None:
        """Train several runs in one program; afterwards each has its own checkpoint."""
        from ssl_jax.training import checks, preemption
        from ssl_jax.training.replicas import Replica, forget, train_replicas

        owns = [with_numbers(parts, job.config) for job in chunk]
        stack = stack_of(self.folder, chunk)
        with contextlib.ExitStack() as locks:
            for job in chunk:
                locks.enter_context(locked(job.workdir.path))
            locks.enter_context(preemption.active(parts.checkpoint.grace))
            for job, own in zip(chunk, owns, strict=True):
                if not job.finished:
                    clear_failure(job)
                    runs.start(own, job.workdir, runs.questionable_settings(own))
            if all(resume.trained(job.workdir) or "diverged" in job.workdir.status() for job in chunk):
                return
            Workdir(stack).write("members.json", {"members": [job.key for job in chunk]})
            replicas = [
                Replica(own.config.seed, own.stream, job.workdir.path, own.optimizer.peak(own.stream.batch_size),
                        own.optimizer.weight_decay, **runs.starting_point(own, job.workdir),
                        evaluate=functools.partial(runs.evaluate_during, own) if own.evaluators else None)
                for job, own in zip(chunk, owns, strict=True)
            ]  # fmt: skip
            name = f"{chunk[0].name} and {len(chunk) - 1} more"
            console = self.progress.console(name)
            started, share = time.monotonic(), self.experiment.settings.share_data
            states = train_replicas(trainer, replicas, workdir=stack, checkpoint=parts.checkpoint, share_data=share,
                                    console=console)  # fmt: skip
            seconds = (time.monotonic() - started) / len(chunk)
            for job, own, state in zip(chunk, owns, states, strict=True):
                if isinstance(state, Diverged):
                    self.fail([job], state)
                elif "trained" not in job.workdir.status():
                    runs.record_training(job.workdir, int(state.step), own.training.duration, seconds)
                    runs.warn_and_record(job.workdir, checks.skipped_updates(own.training, state))
            forget(stack / "checkpoints")

    def evaluate_together(self, jobs: Sequence[Job], parts: Parts, trainer: Any) -> None:
        """Evaluate trained runs together, including those that a killed start has evaluated, so that no number changes."""
        from ssl_jax.training import preemption
        from ssl_jax.training.checkpoint import load_params
        from ssl_jax.training.replicas import replica_devices

        with contextlib.ExitStack() as locks:
            for job in jobs:
                locks.enter_context(locked(job.workdir.path))
            locks.enter_context(preemption.active(parts.checkpoint.grace))
            left, members = [job for job in jobs if not job.finished], []
            if not left:
                return
            for job in jobs:
                step, params = load_params(job.workdir.path / "checkpoints", job.workdir.status()["trained"])
                members.append(evidence.RunEvaluation(with_numbers(parts, job.config), job.workdir, params, step))
            errors = evidence.evaluate_together(members, replica_devices(trainer.program))
            for job, run, error in zip(jobs, members, errors, strict=True):
                if error is not None:
                    self.fail([job], error)
                elif job in left:
                    evidence.write_panels(run.parts, job.workdir, run.params, run.step)
        for job in left:
            if job.finished:
                self.ended(job)


def chunks_of(group: Group, size: int, folder: pathlib.Path) -> list[list[Job]]:
    """Divide the unfinished jobs of a group into chunks of `size` runs that train together.

    Chunks interrupted by a kill are resumed unchanged; a run with its own checkpoints is resumed alone.
    """
    left = [job for job in group.jobs if not job.finished]
    chunks, by_key = [], {tuple(job.key): job for job in group.jobs}
    for stack in sorted((folder / STACKS).glob("*/members.json")):
        members = [by_key.get(tuple(key)) for key in Workdir(stack.parent).read(stack.name)["members"]]
        if all(member is not None for member in members) and any(member in left for member in members):
            chunks.append(members)
            left = [job for job in left if job not in members]
    alone = [job for job in left if resume.has_progress(job.workdir)]
    fresh = [job for job in left if job not in alone]
    whole = len(fresh) - len(fresh) % size if len(fresh) >= size else 0
    chunks += [fresh[i : i + size] for i in range(0, whole, size)]
    return chunks + [[job] for job in (*alone, *fresh[whole:])]


def stack_of(folder: pathlib.Path, chunk: Sequence[Job]) -> pathlib.Path:
    """Return the folder of the common checkpoints of runs that train together, used until each has its own."""
    return folder / STACKS / f"{zlib.crc32(json.dumps([job.key for job in chunk]).encode()):08x}"


def clear_failure(job: Job) -> None:
    """Remove the record that an earlier start of the run failed."""
    status = job.workdir.status()
    if status.pop("failed", None):
        job.workdir.write("status.json", status)


def with_numbers(parts: Parts, config: ConfigDict) -> Parts:
    """Return the parts of a run with the program of `parts` and another seed, learning rate or weight decay."""
    from ssl_jax.config import read
    from ssl_jax.data.pipeline import Stream
    from ssl_jax.training.optimizer import OptimizerSettings

    stream = Stream(parts.stream.dataset, batch_size=parts.stream.batch_size, seed=config.seed)
    optimizer = read(OptimizerSettings, config.optimizer, "optimizer")
    return dataclasses.replace(parts, config=config, stream=stream, optimizer=optimizer)


def show(folder: pathlib.Path) -> None:
    """Print the table, and name the runs that are missing in it."""
    from rich.console import Console

    from ssl_jax.reports.sweep import console_table, missing_lines, notes

    found = load_sweep(folder)
    Console().print(console_table(found))
    for line in (*notes(found), *(f"missing: {line}" for line in missing_lines(found))):
        say(line)


def parse_positive(option: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"{option}={text}: must be a whole number of at least 1")
    return int(text)


def parse_shard(text: str) -> tuple[int, int]:
    """Parse "0/2" into (0, 2)."""
    first, slash, count = text.partition("/")
    if not (slash and first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise UserError(f"--shard={text}: expected i/n with i from 0 to n - 1, such as 0/2")
    return int(first), int(count)
