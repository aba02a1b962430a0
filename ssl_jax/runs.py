"""Puts one run together: config -> data, task, trainer, evaluators, report. The only place that knows all rooms."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import data, downstream, pretext
from ssl_jax.config import look_up, nearest, read
from ssl_jax.errors import UserError
from ssl_jax.resume import begin_anew, check_directory, evaluator_sections, fingerprint, finished, trained
from ssl_jax.task import Context, DataInfo, Params, Task, by_default
from ssl_jax.workdir import Workdir

PANEL_EXAMPLES = 8


def say(text: str) -> None:
    print(text, flush=True)


# From a config to its parts -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a config names, built and checked; nothing is on a device yet and nothing is written."""

    config: ConfigDict
    task: Task
    dataset: Callable[[str, bool], Any]  # (split, augmented) -> Dataset
    training: Any  # training.settings.TrainingSettings
    optimizer: Any  # training.optimizer.OptimizerSettings
    schedules: Any  # training.schedules.Schedules
    checkpoint: Any  # training.settings.CheckpointSettings
    mesh_settings: Any  # training.settings.MeshSettings
    mesh: Any  # jax.sharding.Mesh
    stream: Any  # data.pipeline.Stream
    evaluators: Mapping[str, Any]

    @property
    def info(self) -> DataInfo:
        return self.dataset("train", True).info


def task_class(config: ConfigDict) -> type:
    """The Task class of config.task.name, pretext or supervised."""
    return look_up({**pretext.TASKS, **downstream.TASKS}, config.task.get("name"), "task.name")


def prepare(config: ConfigDict, workdir: str | None = None) -> Parts:
    """Build and check everything a config names. Raises UserError for all that a user can get wrong."""
    from ssl_jax.data.pipeline import Stream
    from ssl_jax.training import sharding
    from ssl_jax.training.index_ranges import check_dataset
    from ssl_jax.training.optimizer import OptimizerSettings
    from ssl_jax.training.schedules import Schedules
    from ssl_jax.training.settings import CheckpointSettings, MeshSettings, TrainingSettings

    seed = config.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise UserError(f"seed={seed!r}: must be a whole number from 0 to 2^31 - 1")
    cls = task_class(config)
    if "batch_size" not in config.data:
        raise UserError("data.batch_size is missing")
    training = read(TrainingSettings, config.training, "training")
    optimizer = read(OptimizerSettings, config.optimizer, "optimizer")
    checkpoint = read(CheckpointSettings, config.get("checkpoint"), "checkpoint")
    mesh_settings = read(MeshSettings, config.get("mesh"), "mesh")
    evaluators = read_evaluators(config)
    for name in training.evaluators:
        if name not in evaluators:
            raise UserError(f"training.evaluators: {name!r} is not in downstream{nearest(str(name), evaluators)}")
    check_expected(config)

    @functools.cache
    def dataset(split: str, augmented: bool) -> Any:
        return data.build(cls.data, config.data, split=split, train=augmented, task_section=config.task, workdir=workdir)

    train = dataset("train", True)
    task = cls.from_config(config, train.info)
    schedules = Schedules.read(config.get("schedules"), task.scheduled())
    check_dataset(task, train)
    stream = Stream(train, batch_size=config.data.batch_size, seed=seed)
    rows = sharding.shared_rows(stream.batch_size, training.accumulation, task.relates_examples)
    mesh = sharding.make_mesh(mesh_settings, rows=rows)
    sharding.check_batch(mesh, stream.batch_size, training.accumulation, task.relates_examples)
    return Parts(config, task, dataset, training, optimizer, schedules, checkpoint, mesh_settings, mesh, stream, evaluators)


def read_evaluators(config: ConfigDict) -> dict[str, Any]:
    """Return the evaluators of config.downstream by name; a name may carry a suffix, "linear_probe:tokens"."""
    found = {}
    for name, settings in evaluator_sections(config).items():
        cls = look_up(downstream.EVALUATORS, name.partition(":")[0], "downstream")
        found[name] = read(cls, settings, f"downstream.{name}")
    return found


def check_expected(config: ConfigDict) -> None:
    """Raise UserError unless every value of config.expected is an interval (low, high)."""
    section = config.get("expected") or {}
    if not isinstance(section, Mapping | ConfigDict):
        raise UserError(f'expected={section!r}: write intervals by name, such as {{"knn/accuracy": (0.8, 0.9)}}')
    for name, ends in section.items():
        pair = isinstance(ends, list | tuple) and len(ends) == 2
        numbers = pair and all(isinstance(e, int | float) and not isinstance(e, bool) for e in ends)
        if not numbers or not ends[0] <= ends[1]:
            raise UserError(f"expected[{name!r}]={ends!r}: write (low, high)")


# The commands -------------------------------------------------------------------------------------------------------


def run(config: ConfigDict, workdir: str) -> int:
    """Train, evaluate, report; what is done already is not done again."""
    return _run(config, workdir, evaluate=True)


def pretrain(config: ConfigDict, workdir: str) -> int:
    """Train only."""
    return _run(config, workdir, evaluate=False)


def finetune(config: ConfigDict, workdir: str, *, init: str | None = None) -> int:
    """Train a supervised task, its encoder from `init`, and evaluate it."""
    if config.task.get("name") not in downstream.TASKS:
        known = ", ".join(downstream.TASKS)
        raise UserError(f"finetune: task.name={config.task.get('name')!r} is no supervised task; those are {known}")
    if init is not None:
        config.task.init = init
    return _run(config, workdir, evaluate=True)


def _run(config: ConfigDict, workdir: str, *, evaluate: bool) -> int:
    wd = Workdir.at(workdir)
    workdir = str(wd.path)
    check_directory(wd, config)
    if finished(wd, config, evaluate):
        say(f"{workdir}: the run is complete ({wd.status()['trained']:,} steps); the report is {wd.path / 'report.html'}")
        show_results(wd, config)
        return 0
    parts = prepare(config, workdir)
    meanwhile = parts.training.evaluate_every is not None
    test = checked_test_data(parts) if parts.evaluators and (evaluate or meanwhile) else None
    complete(parts, wd, None if trained(wd, config) else trainer_of(parts), test, evaluate=evaluate)
    if evaluate:
        write_report(wd, config)
    return 0


def complete(parts: Parts, wd: Workdir, trainer: Any, test: Any, *, evaluate: bool = True, quiet: bool = False) -> None:
    """Train and evaluate what is not done yet in `wd`. `trainer` may be shared by runs; None: the run is trained already."""
    from ssl_jax.training import preemption
    from ssl_jax.training.lock import locked

    odd = odd_settings(parts)
    splits = {"train": parts.stream.dataset, **({} if test is None else {"test": test})}
    made_from = {split: dataset.fingerprint() for split, dataset in splits.items()}
    odd += dict.fromkeys(line for dataset in splits.values() for line in dataset.notes())
    with locked(wd.path), preemption.active(parts.checkpoint.grace):
        begin_anew(wd, parts.config)
        wd.start(parts.config, parts.info, made_from)
        warn_of(wd, odd)
        started = time.monotonic()
        steps, params = train(parts, wd, trainer, quiet)
        timings = wd.read("timings.json", {})
        if "trained" not in wd.status():
            timings["training"] = timings.get("training", 0.0) + time.monotonic() - started
            wd.write("timings.json", timings)
            wd.write("status.json", {**wd.status(), "trained": steps})
        if evaluate:
            evaluate_all(parts, wd, params, steps, test, quiet=quiet)
            write_panels(parts, wd, params)


def odd_settings(parts: Parts) -> list[str]:
    """Return one line for each odd setting; raise UserError for settings that contradict each other."""
    from ssl_jax.task import tokens_of
    from ssl_jax.training import checks

    return checks.odd_settings(
        parts.training, parts.optimizer, batch_size=parts.stream.batch_size, examples=parts.stream.dataset.size,
        tokens_per_example=tokens_of(parts.info), evaluates=bool(parts.evaluators),
        ema_is_scheduled="ema" in (parts.config.get("schedules") or {}),
    )  # fmt: skip


def warn_of(wd: Workdir, lines: Sequence[str]) -> None:
    """Print what is odd about a run, and record it for the report page."""
    from ssl_jax.training.checkpoint import warn

    recorded = wd.read("warnings.json", {}).get("lines", [])
    for line in lines:
        warn(f"warning: {line}")
    new = [*recorded, *(line for line in lines if line not in recorded)]
    if new != recorded:
        wd.write("warnings.json", {"lines": new})


def train(parts: Parts, wd: Workdir, trainer: Any, quiet: bool = False) -> tuple[int, Params]:
    """Train, or continue, to the end; return (steps, parameters to evaluate: the moving average if there is one).

    Without a trainer the run is trained already, and its last checkpoint is read.
    """
    from ssl_jax.training import checks
    from ssl_jax.training.checkpoint import load_params

    if trainer is None:
        return load_params(wd.path / "checkpoints", wd.status()["trained"])
    state = trainer.run(
        seed=parts.config.get("seed", 0),
        stream=parts.stream,
        lr=parts.optimizer.peak(parts.stream.batch_size),
        weight_decay=parts.optimizer.weight_decay,
        **starting_point(parts),
        workdir=wd.path,
        checkpoint=parts.checkpoint,
        evaluate=functools.partial(evaluate_during, parts) if parts.evaluators else None,
        name=parts.task.name,
        quiet=quiet,
    )
    warn_of(wd, checks.skipped_updates(parts.training, state))
    return int(state.step), state.evaluated


def starting_point(parts: Parts) -> dict[str, Callable]:
    """Return how a task takes its first parameters from other runs, and its variables from the data, where it does."""
    task, options = parts.task, {}
    if not by_default(task, "initialise"):
        options["init_params"] = functools.partial(task.initialise, load=restore)
    if not by_default(task, "fit"):
        examples = functools.partial(panel_batch, parts.dataset("train", False))
        options["init_variables"] = functools.partial(task.fit, examples=examples)
    return options


def trainer_of(parts: Parts) -> Any:
    """The loop of this run. It checks what only shapes can tell (rules, devices), and allocates nothing."""
    from ssl_jax.training.loop import Trainer

    return Trainer(
        parts.task, parts.stream, training=parts.training, optimizer=parts.optimizer, schedules=parts.schedules,
        mesh=parts.mesh_settings,
    )  # fmt: skip


def restore(path: str, checkpoint: int | None = None) -> tuple[Task, Params, DataInfo]:
    """(task, parameters, data info) of a work directory's checkpoint, or of `hf:DIR`."""
    if str(path).startswith("hf:"):
        from ssl_jax.interop import load_pretrained

        return load_pretrained(str(path).removeprefix("hf:"))
    from ssl_jax.training.checkpoint import load_params

    wd = Workdir.existing(path)
    config, info = wd.config(), wd.info()
    task = task_class(config).from_config(config, info)
    _, params = load_params(wd.path / "checkpoints", checkpoint)
    return task, params, info


def as_trained(section: Any, task: Task, info: DataInfo, workdir: str) -> dict[str, Any]:
    """A section `data` under which other sources are read as the model's own were.

    Imported weights come without one (`section` is empty): then each line or row of a text is a sequence for a masked-token
    model.
    """
    imported, section = not section, {"batch_size": 1, **dict(section)}
    image, tokens = info.shapes.get("image"), info.shapes.get("tokens")
    if task.data in ("images", "pairs"):
        section |= {"image_size": tuple(image.shape[:2]), "normalize": (tuple(info.mean) or (0.0,), tuple(info.std) or (1.0,))}
        section |= {"channels": image.shape[2]} if task.data == "images" else {"context_length": tokens.shape[0]}
    if task.data in ("tokens", "sequences"):
        section["block"] = min(section.get("block", 128), tokens.shape[0] - (task.data == "tokens"))
        if imported and task.data == "sequences":
            section |= {"packing": "documents", "documents": "line"}
    if info.tokenizer is not None:
        folder = pathlib.Path(workdir.removeprefix("hf:")).expanduser()
        section["tokenizer"] = {"name": "file", "path": str(folder if workdir.startswith("hf:") else folder / "tokenizer")}
    return section


# Evidence -----------------------------------------------------------------------------------------------------------


def evaluate(workdir: str, *, config: ConfigDict | None = None, checkpoint: int | None = None) -> int:
    """Run the evaluators over a checkpoint; those of the newest go into results.json, an older one's into its own file."""
    from ssl_jax.training.checkpoint import load_params
    from ssl_jax.training.lock import locked

    wd = Workdir.existing(workdir)
    own = wd.config()
    if not own.data and config is None:
        raise UserError(f"--workdir={workdir}: imported weights have no data of their own; give --config=FILE with some")
    if config is not None:
        if not own.data:
            task, _, info = restore(workdir)
            own.data = {**config.data, **as_trained({}, task, info, workdir), "batch_size": config.data.batch_size}
            own.training, own.optimizer = config.training, config.optimizer  # of evaluators that train
        own.downstream = config.get("downstream", ConfigDict())
        own.expected = config.get("expected", ConfigDict())
    parts = prepare(own, workdir)
    if not parts.evaluators:
        raise UserError(f"--workdir={workdir}: its config names no evaluators; give a config whose `downstream` does")
    test = checked_test_data(parts)
    with locked(wd.path):
        step, params = load_params(wd.path / "checkpoints", checkpoint)
        newest = checkpoint is None or step == wd.status().get("trained")
        name = "results.json" if newest else f"results_{step:08d}.json"
        evaluate_all(parts, wd, params, step, test, name=name, again=True)
        if newest:
            write_panels(parts, wd, params)
            write_report(wd, own)
    return 0


def checked_test_data(parts: Parts) -> Any:
    """The test data, after every evaluator has looked at labels and sizes: what cannot work is told before training."""
    from ssl_jax.training.index_ranges import check_dataset

    test = parts.dataset("test", False)
    check_dataset(parts.task, test)
    evaluation = evaluation_data(parts, test, None)
    for name, evaluator in parts.evaluators.items():
        if left_out(evaluator, evaluation):
            say(f"{name}: will be left out, {unlabelled(evaluation)} has no labels")
        elif hasattr(evaluator, "check"):
            try:
                evaluator.check(evaluation)
            except UserError as error:
                raise UserError(f"downstream.{name}: {error}") from None
    return test


def evaluate_all(
    parts: Parts, wd: Workdir, params: Params, step: int, test: Any, *, name: str = "results.json", again: bool = False,
    quiet: bool = False,
) -> None:  # fmt: skip
    """Every evaluator once, each one's results written as soon as it is done: a killed run goes on with the next."""
    status = wd.status()
    results = {} if again else wd.read(name, {})
    done = {} if again else dict(status.get("evaluated", {}))
    timings = wd.read("timings.json", {})
    cache = wd.path / "features" if parts.checkpoint.features else None
    encoder, evaluation = encoder_of(parts, params, cache, f"step {step}"), evaluation_data(parts, test, wd, quiet)
    for key, evaluator in parts.evaluators.items():
        mark = fingerprint(parts.config.downstream[key])
        if done.get(key) == mark:
            continue
        started = time.monotonic()
        values = dict(values_of(key, evaluator, encoder, evaluation))
        results = {n: v for n, v in results.items() if not n.startswith(f"{key}/")} | values
        timings[key] = time.monotonic() - started
        results |= skipped_examples(evaluation)
        done[key] = mark
        wd.write(name, results)
        if name == "results.json":
            wd.write("timings.json", timings)
            wd.write("status.json", {**wd.status(), "evaluated": done})
        if values and not quiet:
            first, value = next(iter(values.items()))
            say(f"{first} {value:.4g}  ({timings[key]:.1f} s)" + (f"; {evaluator.note}" if hasattr(evaluator, "note") else ""))
    if not parts.evaluators and name == "results.json":
        wd.write(name, results)
        wd.write("status.json", {**wd.status(), "evaluated": {}})


def values_of(name: str, evaluator: Any, encoder: Any, evaluation: Any) -> Iterator[tuple[str, float]]:
    """An evaluator's values under its name; nothing, with a line, where it needs labels that the data have not."""
    if left_out(evaluator, evaluation):
        evaluation.log(f"{name}: left out, {unlabelled(evaluation)} has no labels")
        return
    for key, value in evaluator(encoder, evaluation):
        yield f"{name}/{key}", float(value)


def skipped_examples(evaluation: Any) -> dict[str, int]:
    """Return how many examples of each split were skipped ("data/test/skipped"), where any were."""
    counts = {f"data/{split}/skipped": getattr(evaluation, split).skipped() for split in ("train", "test")}
    return {name: count for name, count in counts.items() if count}


def left_out(evaluator: Any, evaluation: Any) -> bool:
    """Whether an evaluator needs labels that a split does not have."""
    return getattr(evaluator, "requires_labels", False) and bool(unlabelled(evaluation))


def unlabelled(evaluation: Any) -> str:
    """Return the names of the sources without labels, "" where all have them."""
    names = [dataset.source.name for dataset in (evaluation.train, evaluation.test) if dataset.labels() is None]
    return " and ".join(dict.fromkeys(names))


def encoder_of(parts: Parts, params: Params, cache: pathlib.Path | None = None, checkpoint: str | None = None) -> Any:
    from ssl_jax.downstream.evaluators.features import Encoder

    seed = parts.config.get("seed", 0)
    encoder = Encoder(parts.task, params, parts.mesh, seed=seed, cache=cache, checkpoint=checkpoint)
    encoder.together = representations_of(parts.evaluators.values())
    return encoder


def representations_of(evaluators: Iterable[Any]) -> tuple[str, ...]:
    """What evaluators will ask an encoder for. One pass serves them all, and always the same one: whichever evaluator runs
    first or alone, its features are equal to the last digit."""
    asked = (getattr(evaluator, "representation", ()) for evaluator in evaluators)
    return tuple(name for names in asked for name in ((names,) if isinstance(names, str) else names))


def evaluation_data(parts: Parts, test: Any, wd: Workdir | None, quiet: bool = False) -> Any:
    from ssl_jax.downstream.evaluators.features import EvaluationData

    train = parts.dataset("train", False) if test is not None else None
    workdir, log = None if wd is None else str(wd.path), (lambda text: None) if quiet else say
    return EvaluationData(train, test, config=parts.config, mesh=parts.mesh, workdir=workdir, log=log)


def evaluate_during(parts: Parts, state: Any) -> dict[str, float]:
    """The evaluators named in training.evaluators (all where none are named), while training goes on."""
    params = state.evaluated
    chosen = parts.training.evaluators or tuple(parts.evaluators)
    encoder, evaluation = encoder_of(parts, params), evaluation_data(parts, parts.dataset("test", False), None)
    values: dict[str, float] = {}
    for name in chosen:
        values |= dict(values_of(name, parts.evaluators[name], encoder, evaluation))
    return values


def panel_batch(dataset: Any, count: int = PANEL_EXAMPLES) -> dict[str, Any]:
    """`count` evenly spaced examples under the evaluation transform, as a task's batch."""
    from ssl_jax.data.pipeline import eval_batches, subset

    index = np.linspace(0, dataset.size - 1, min(count, dataset.size)).astype(int)
    raw, _ = next(iter(eval_batches(subset(dataset, index), len(index))))
    places = {name: raw.pop(name) for name in ("position", "index")}
    return {**dataset.on_device(raw, None), **places}


def write_panels(parts: Parts, wd: Workdir, params: Params) -> None:
    from ssl_jax.randomness import stream
    from ssl_jax.reports.panels import save_panels
    from ssl_jax.training.checkpoint import load_variables

    with contextlib.suppress(FileNotFoundError):
        dataset = parts.dataset("test", False) if _has_test(parts) else parts.dataset("train", False)
        key, context = stream(parts.config.get("seed", 0), "panels"), Context(variables=load_variables(wd.path / "checkpoints"))
        panels = parts.task.panels(params, panel_batch(dataset), key, context=context)
        save_panels(panels, wd.path / "panels")


def _has_test(parts: Parts) -> bool:
    try:
        parts.dataset("test", False)
    except UserError:
        return False
    return True


def write_report(wd: Workdir, config: ConfigDict) -> None:
    from ssl_jax.reports.report import write_report as write

    page = write(wd.path)
    show_results(wd, config)
    say(f"report: {page}")


def show_results(wd: Workdir, config: ConfigDict) -> None:
    from rich.console import Console

    from ssl_jax.reports.tables import results_table

    results = wd.results()
    if results:
        expected = {name: tuple(ends) for name, ends in (config.get("expected") or {}).items()}
        Console().print(results_table(results, expected))


def report(workdirs: Sequence[str], *, to: str | None = None) -> int:
    """One page of one run, of a sweep, or of several runs side by side."""
    from ssl_jax.reports.sweep import is_sweep, write_sweep

    if len(workdirs) == 1 and is_sweep(workdirs[0]):
        say(f"report: {write_sweep(workdirs[0], to)}")
        return 0
    from ssl_jax.reports.report import write_report as write

    say(f"report: {write(workdirs[0] if len(workdirs) == 1 else list(workdirs), to)}")
    return 0
