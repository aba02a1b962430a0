"""Sweeps: the arms and seeds of an experiment as a folder of ordinary runs.

    D/sweep.json            the experiment
    D/ARM/seedN/            one run: a work directory like any other
    D/report.html, ...      the page, made from the runs

A folder can be filled by one process or by several at once, and a killed sweep continues with the same command: a run
that is finished is not started again, and one that was interrupted continues at its last checkpoint. `evaluate`,
`report`, `convert` and `ssl_jax.load` take ARM/seedN as they take any run.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ssl_jax import resume, runs
from ssl_jax.config import nearest
from ssl_jax.errors import UserError
from ssl_jax.experiments import Arm, Experiment
from ssl_jax.reports.sweep import FILE, load_sweep, write_sweep
from ssl_jax.runs import Parts, say
from ssl_jax.training.exceptions import Diverged
from ssl_jax.training.lock import Busy, locked
from ssl_jax.workdir import Workdir, differences

PRESENTATION = ("name", "command", "default", "columns", "figure", "published", "card")  # of sweep.json: may change
NUMBERS = ("seed", "optimizer.lr", "optimizer.base_lr", "optimizer.weight_decay")  # inputs of a compiled program


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
    def finished(self) -> bool:
        """Whether a start would find nothing to do: trained and evaluated, or diverged, which a second start would too."""
        return "diverged" in self.workdir.status() or resume.measured(self.workdir, self.config)


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that share one compiled program: they differ in numbers that it takes as inputs."""

    jobs: tuple[Job, ...]


def sweep(experiment: Experiment, workdir: str, *, plan: bool = False, shard: tuple[int, int] = (0, 1)) -> int:
    """Run what a sweep's folder lacks, and write its page.

    plan: print what would run, and stop. shard=(i, n): of the groups take every n-th, from the i-th on. Raises UserError,
    before anything is written, for an arm whose config is wrong and for a folder that holds another sweep.
    """
    folder = Workdir.at(workdir).path
    check_folder(folder, experiment)
    groups = grouped(jobs_of(experiment, folder))[shard[0] :: shard[1]]
    prepared = [(group, prepare(group, experiment)) for group in groups if not all(job.finished for job in group.jobs)]
    say(describe(experiment, groups, prepared))
    if plan:
        return 0
    with locked(folder, wait=True):  # another process may have begun it meanwhile
        check_folder(folder, experiment)
        Workdir(folder).write(FILE, merged(folder, experiment))
    total = sum(len(group.jobs) for group in groups)
    progress = Progress(total, sum(job.finished for group in groups for job in group.jobs))
    busy: list[Job] = []
    failed: list[str] = []
    for group, parts in prepared:
        run_group(group, parts, experiment, progress, busy, failed)
    with locked(folder, wait=True):  # the last of several processes sees all runs
        page = write_sweep(folder)
    show(folder)
    for job in busy:
        say(f"{job.name}: another process is at it")
    say(f"report: {page}")
    return 2 if failed else 0


# What there is to do ----------------------------------------------------------------------------------------------------


def jobs_of(experiment: Experiment, folder: pathlib.Path) -> list[Job]:
    """Every run of the experiment, seed by seed within an arm."""
    return [
        Job(arm, seed, experiment.config(arm, seed), Workdir(folder / arm.folder / f"seed{seed}"))
        for arm in experiment.arms
        for seed in experiment.seeds
    ]


def grouped(jobs: Sequence[Job]) -> list[Group]:
    """The jobs by compiled program, in the order of their first appearance."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(program_key(job.config), []).append(job)
    return [Group(tuple(members)) for members in found.values()]


def program_key(config: ConfigDict) -> str:
    """What a compiled program depends on: the config without the numbers that are its inputs, and without evaluation."""
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
    """(parts, trainer) of a group's first run, everything checked. UserErrors name the arm."""
    for arm in {job.arm.name: job for job in group.jobs}.values():
        try:
            parts = runs.prepare(arm.config, str(arm.workdir.path))
            check_columns(experiment, parts)
        except UserError as error:
            raise UserError(f"arm {arm.arm.name!r}: {error}") from None
    first = group.jobs[0]
    try:
        parts = runs.prepare(first.config, str(first.workdir.path))
        runs.odd_settings(parts)
        if parts.evaluators:
            runs.check_evaluation(parts)
        return parts, runs.trainer_of(parts)
    except UserError as error:
        raise UserError(f"arm {first.arm.name!r}: {error}") from None


def check_columns(experiment: Experiment, parts: Parts) -> None:
    """UserError for a column of an evaluator that the config does not name."""
    for metric in experiment.settings.columns:
        evaluator = metric.partition("/")[0]
        if evaluator not in parts.evaluators:
            near = nearest(evaluator, parts.evaluators) if parts.evaluators else "; the config names no evaluators"
            raise UserError(f"columns: {metric!r}: {evaluator!r} is no evaluator of `downstream`{near}")


def check_results(experiment: Experiment, job: Job) -> None:
    """UserError, with the nearest name, for a column that a finished run does not have."""
    results = job.workdir.results()
    for metric in experiment.settings.columns:
        if metric not in results:
            raise UserError(f"columns: {metric!r} is none of the results of {job.name}{nearest(metric, results)}")


def check_folder(folder: pathlib.Path, experiment: Experiment) -> None:
    """UserError, with what differs, where a folder holds another sweep or a run. Seeds and arms may be added."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--workdir={folder}: is a file; take another")
    if (folder / "config.json").exists():
        raise UserError(f"--workdir={folder}: holds a single run; take another")
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
        raise UserError(f"--workdir={folder}: holds another sweep ({'; '.join(differ[:3])}{more}); take another --workdir")


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: json.dumps(value) for key, value in values.items()}


def merged(folder: pathlib.Path, experiment: Experiment) -> dict[str, Any]:
    """sweep.json: the experiment, with the arms and seeds that the folder held before and the experiment leaves out."""
    new, old = experiment.document(), Workdir(folder).read(FILE, {})
    names = [arm["name"] for arm in new["arms"]]
    new["arms"] += [arm for arm in old.get("arms", []) if arm["name"] not in names]
    new["seeds"] += [seed for seed in old.get("seeds", []) if seed not in new["seeds"]]
    return new


def describe(experiment: Experiment, groups: Sequence[Group], prepared: Sequence[tuple[Group, Any]]) -> str:
    """The plan in a few lines."""
    jobs = [job for group in groups for job in group.jobs]
    done = sum(job.finished for job in jobs)
    lines = [f"{experiment.name}: {len(experiment.arms)} arms x {len(experiment.seeds)} seeds; "
             f"{len(jobs)} runs, {done} of them done, in {len(groups)} programs"]  # fmt: skip
    for group, _ in prepared:
        left = [job for job in group.jobs if not job.finished]
        names = list(dict.fromkeys(job.arm.name for job in left))
        lines.append(f"  {len(left)} runs: {', '.join(names)}")
    return "\n".join(lines)


# Running ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Progress:
    """One line for each run that ends, with the time that the others will take."""

    total: int
    done: int
    started: float = dataclasses.field(default_factory=time.monotonic)
    ran: int = 0

    def ended(self, job: Job, text: str, seconds: float) -> None:
        from ssl_jax.reports.page import duration

        self.done, self.ran = self.done + 1, self.ran + 1
        left = (self.total - self.done) * (time.monotonic() - self.started) / self.ran
        ahead = f", {duration(left)} left" if self.done < self.total else ""
        say(f"[{self.done}/{self.total}] {job.name}: {text} ({duration(seconds)}{ahead})")


def run_group(group: Group, prepared: tuple[Parts, Any], experiment: Experiment, progress: Progress,
              busy: list[Job], failed: list[str]) -> None:  # fmt: skip
    """Run what is left of a group, one run after another with one trainer."""
    parts, trainer = prepared
    for job in group.jobs:
        if job.finished:
            continue
        started = time.monotonic()
        try:
            text = run_job(job, parts, trainer, experiment)
        except Busy:
            busy.append(job)
            continue
        except Diverged as error:
            job.workdir.write("status.json", {**job.workdir.status(), "diverged": str(error)})
            text = f"diverged, {error}"
        except UserError as error:
            job.workdir.write("status.json", {**job.workdir.status(), "failed": str(error)})
            failed.append(job.name)
            text = f"failed, {error}"
        else:
            check_results(experiment, job)
        progress.ended(job, text, time.monotonic() - started)


def run_job(job: Job, parts: Parts, trainer: Any, experiment: Experiment) -> str:
    """Train and evaluate one run; its columns as text."""
    own = with_numbers(parts, job.config)
    with locked(job.workdir.path):
        if not job.finished:  # another process may just have ended it
            status = job.workdir.status()
            if status.pop("failed", None):
                job.workdir.write("status.json", status)
            runs.complete(own, job.workdir, None if resume.trained(job.workdir) else trainer, quiet=True)
    results = job.workdir.results()
    columns = experiment.settings.columns.items()
    return ", ".join(f"{heading} {results[metric]:.4g}" for metric, heading in columns if metric in results)


def with_numbers(parts: Parts, config: ConfigDict) -> Parts:
    """The parts of a run that shares its program with `parts`: another seed, learning rate or weight decay."""
    from ssl_jax.config import read
    from ssl_jax.data.pipeline import Stream
    from ssl_jax.training.optimizer import OptimizerSettings

    stream = Stream(parts.stream.dataset, batch_size=parts.stream.batch_size, seed=config.seed)
    optimizer = read(OptimizerSettings, config.optimizer, "optimizer")
    return dataclasses.replace(parts, config=config, stream=stream, optimizer=optimizer)


def show(folder: pathlib.Path) -> None:
    """Print the table, and name what is missing in it."""
    from rich.console import Console

    from ssl_jax.reports.sweep import console_table, missing_lines, notes

    found = load_sweep(folder)
    Console().print(console_table(found))
    for line in (*notes(found), *(f"missing: {line}" for line in missing_lines(found))):
        say(line)


def parse_shard(text: str) -> tuple[int, int]:
    """ "0/2" -> (0, 2)."""
    first, slash, count = text.partition("/")
    if not (slash and first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise UserError(f"--shard={text}: write i/n with i from 0 to n - 1, such as 0/2")
    return int(first), int(count)
