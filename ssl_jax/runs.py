"""Put one run together: config -> data, task, trainer, evaluators, report. The only module that imports all packages."""

import dataclasses
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax import data, downstream, initialisation, pretext, target
from ssl_jax.config import look_up, nearest, read
from ssl_jax.errors import UserError
from ssl_jax.evidence import (
    check_evaluation,
    check_selection,
    evaluate_all,
    evaluate_during,
    panel_batch,
    say,
    show_results,
    write_panels,
    write_report,
)  # fmt: skip
from ssl_jax.overview import overview
from ssl_jax.resume import (
    begin_anew,
    best_checkpoint,
    check_directory,
    evaluator_sections,
    extended,
    finished,
    set_results_aside,
    trained,
)  # fmt: skip
from ssl_jax.task import DataInfo, Params, Task, by_default
from ssl_jax.validation import split_training
from ssl_jax.workdir import Workdir

# From a config to its parts -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Parts:
    """The objects that a config describes, built and checked; nothing is on a device or written yet."""

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
    part: Callable[[str, bool], Any] | None = None  # with checkpoint.best: ("train" or "validation", augmented) -> Dataset
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the command, the config's file and its overrides
    chosen: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # automatic choices, by key
    shared: dict[Any, Any] = dataclasses.field(default_factory=dict)  # `EvaluationData.shared` of all runs of one program

    @property
    def info(self) -> DataInfo:
        return self.dataset("train", True).info

    @functools.cached_property
    def evaluation(self) -> Any:
        """Return the evaluators with their data; raise UserError if there is no test split."""
        from ssl_jax.downstream.evaluation import Evaluation
        from ssl_jax.downstream.evaluator import EvaluationData

        train, test = self.dataset("train", False), self.dataset("test", False)
        own = EvaluationData(train, test, config=self.config, mesh=self.mesh, log=say, shared=self.shared)
        other = functools.partial(other_data, self, own)
        return Evaluation(self.evaluators, self.task, own, other, seed=self.config.get("seed", 0))

    @functools.cached_property
    def initial(self) -> "initialisation.Start | None":
        """Return the source of initial parameters, `task.init`, read and checked; None without it."""
        paths = initialisation.named(self.config.task)
        return initialisation.match(self.task, initialisation.load(paths, restore)) if paths else None

    @functools.cached_property
    def selection(self) -> Any:
        """Return the evaluators with parts of the training data, on which checkpoint.best selects; None without it."""
        from ssl_jax.downstream.evaluation import Evaluation
        from ssl_jax.downstream.evaluator import EvaluationData

        if self.part is None:
            return None
        chosen = {name: self.evaluators[name] for name in self.training.evaluators or self.evaluators}
        own = EvaluationData(self.part("train", False), self.part("validation", False), mesh=self.mesh, shared=self.shared)
        return Evaluation(chosen, self.task, own, refuse_other_data, seed=self.config.get("seed", 0))


def refuse_other_data(sources: Mapping[str, Any]) -> Any:
    raise UserError("data: an evaluator with other data cannot run during training with checkpoint.best, which selects on a"
                    " part of the training data; omit it from training.evaluators")  # fmt: skip


def task_class(config: ConfigDict) -> type:
    """Return the Task class of config.task.name, pretext or supervised."""
    return look_up({**pretext.TASKS, **downstream.TASKS}, config.task.get("name"), "task.name")


def prepare(config: ConfigDict, workdir: str | None = None, build: Callable[..., Any] = data.build,
            devices: Sequence[Any] | None = None) -> Parts:  # fmt: skip
    """Build and check everything that a config describes, for `devices` (default: all). Raise UserError for invalid
    settings and data."""
    from ssl_jax.data.pipeline import Stream
    from ssl_jax.plan import auto
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
        raise UserError("data.batch_size is missing; set it, such as batch_size=64")
    own = config
    config, chosen = auto.resolve(config, target.current() if devices is None else target.of(devices))
    training = read(TrainingSettings, config.training, "training")
    optimizer = read(OptimizerSettings, config.optimizer, "optimizer")
    checkpoint = read(CheckpointSettings, config.get("checkpoint"), "checkpoint")
    mesh_settings = read(MeshSettings, config.get("mesh"), "mesh")
    evaluators = read_evaluators(config)
    for name in training.evaluators:
        if name not in evaluators:
            raise UserError(f"training.evaluators: {name!r} is not in downstream{nearest(str(name), evaluators)}")
    check_expected(config)
    if training.patience is not None and checkpoint.best is None:
        raise UserError("training.patience: needs checkpoint.best, the result that must improve")
    if checkpoint.best is not None and training.evaluate_every is None:
        raise UserError('checkpoint.best: needs training.evaluate_every, such as "5 epochs", the interval of its evaluation')

    section = data_section(config, cls.data, workdir) if build is data.build else config.data  # not of a stand-in

    @functools.cache
    def dataset(split: str, augmented: bool) -> Any:
        return build(cls.data, section, split=split, train=augmented, task_section=config.task, workdir=workdir)

    train = dataset("train", True)
    task = cls.from_config(config, train.info)
    schedules = Schedules.read(config.get("schedules"), task.scheduled())
    check_dataset(task, train)
    part = None
    if checkpoint.best is not None:
        whole, options = functools.partial(dataset, "train"), dict(task_section=config.task, workdir=workdir)
        part = split_training(whole, cls.data, section.to_dict(), training.validation, **options)
        train = part("train", True)
    stream = Stream(train, batch_size=config.data.batch_size, seed=seed)
    rows = sharding.shared_rows(stream.batch_size, training.accumulation, task.relates_examples)
    mesh = sharding.make_mesh(mesh_settings, devices, rows=rows)
    sharding.check_batch(mesh, stream.batch_size, training.accumulation, task.relates_examples)
    return Parts(
        own, task, dataset, training, optimizer, schedules, checkpoint, mesh_settings, mesh, stream, evaluators, part,
        chosen=chosen,
    )  # fmt: skip


def data_section(config: ConfigDict, kind: str, workdir: str | None) -> ConfigDict:
    """Return `config.data`; with task.init, the source's tokenizer replaces one that would be trained.

    A started run has that tokenizer in its work directory, and does not read its initial model again.
    """
    from ssl_jax.data.text.tokenizers import TokenizerSettings

    paths = initialisation.named(config.task)
    if not paths or kind == "images" or not read(TokenizerSettings, config.data.get("tokenizer"), "data.tokenizer").trained:
        return config.data
    folder, wd = initialisation.tokenizer_folder(paths), None if workdir is None else Workdir.at(workdir)
    recorded = wd.config() if wd is not None else None
    if recorded is not None and initialisation.named(recorded.task) == paths and (wd.path / "tokenizer").is_dir():
        folder = str(wd.path / "tokenizer")
    return config.data if folder is None else ConfigDict({**config.data, "tokenizer": dict(name="file", path=folder)})


def read_evaluators(config: ConfigDict) -> dict[str, Any]:
    """Return the evaluators of config.downstream by name; a name may carry a suffix, "linear_probe:tokens"."""
    found = {}
    for name, settings in evaluator_sections(config).items():
        if "/" in name:
            raise UserError(
                f"downstream.{name}: an evaluator's name must not contain '/', which separates the parts of a result; rename it"
            )
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


def run(config: ConfigDict, workdir: str, *, origin: Mapping[str, Any] | None = None) -> int:
    """Train, evaluate and write the report; skip completed parts.

    origin: where the config comes from ("command", "config_file", "overrides"), recorded in config.json.
    """
    return _run(config, workdir, evaluate=True, origin=origin)


def pretrain(config: ConfigDict, workdir: str, *, origin: Mapping[str, Any] | None = None) -> int:
    """Train only."""
    return _run(config, workdir, evaluate=False, origin=origin)


def finetune(config: ConfigDict, workdir: str, *, init: str | None = None, origin: Mapping[str, Any] | None = None) -> int:
    """Train a supervised task, its encoder from `init`, and evaluate it."""
    if config.task.get("name") not in downstream.TASKS:
        known = ", ".join(downstream.TASKS)
        raise UserError(f"finetune: task.name={config.task.get('name')!r} is not a supervised task; use one of {known}")
    if init is not None:
        config.task.init = init
    return _run(config, workdir, evaluate=True, origin=origin)


def _run(config: ConfigDict, workdir: str, *, evaluate: bool, origin: Mapping[str, Any] | None) -> int:
    wd = Workdir.at(workdir)
    workdir = str(wd.path)
    check_directory(wd, config)
    if finished(wd, config, evaluate):
        say(f"{workdir}: the run is complete ({wd.status()['trained']:,} steps); the report is {wd.path / 'report.html'}")
        show_results(wd, config)
        return 0
    if not wd.begun():
        initialisation.check_exist(initialisation.named(config.task))
    parts = dataclasses.replace(prepare(config, workdir), origin=origin or {})
    meanwhile = parts.training.evaluate_every is not None
    if parts.evaluators and (evaluate or meanwhile):
        check_evaluation(parts)
    trainer = None if trained(wd, config) else trainer_of(parts)
    if trainer is not None:
        if not wd.begun():
            _ = parts.initial  # UserError before anything is compiled
        checked = parts.evaluators and (evaluate or meanwhile)
        say(overview(parts, trainer, parts.evaluation.measured if checked else tuple(parts.evaluators)))
    complete(parts, wd, trainer, evaluate=evaluate)
    if evaluate:
        write_report(wd, config)
    return 0


def complete(
    parts: Parts, wd: Workdir, trainer: Any, *, evaluate: bool = True, quiet: bool = False, console: Any = None
) -> None:
    """Finish training and evaluation in `wd`. `trainer` may be shared by runs; None: the run is already trained."""
    from ssl_jax.training import preemption
    from ssl_jax.training.checkpoint import load_params
    from ssl_jax.training.lock import locked

    parts, warnings = check_selection(parts, wd, (lambda text: None) if quiet else say), questionable_settings(parts)
    with locked(wd.path), preemption.active(parts.checkpoint.grace):
        start(parts, wd, warnings, evaluate=evaluate)
        started = time.monotonic()
        steps, params = train(parts, wd, trainer, quiet=quiet, console=console)
        if "trained" not in wd.status():
            record_training(wd, steps, parts.training.duration, time.monotonic() - started)
        best = best_checkpoint(wd, parts.checkpoint)
        if best not in (None, steps):
            if not quiet:
                say(f"evaluating step {best:,}, the best by {parts.checkpoint.best}")
            steps, params = load_params(wd.path / "checkpoints", best)
        if evaluate:
            evaluate_all(parts, wd, params, steps, quiet=quiet)
            write_panels(parts, wd, params, steps)


def start(parts: Parts, wd: Workdir, warnings: list[str], *, evaluate: bool = True) -> None:
    """Record config, data and `warnings` in the work directory; remove the records of a previous config."""
    tested = bool(parts.evaluators) and (evaluate or parts.training.evaluate_every is not None)
    splits = {"train": parts.stream.dataset, **({"test": parts.evaluation.data.test} if tested else {})}
    warnings += dict.fromkeys(line for dataset in splits.values() for line in dataset.notes())
    warnings += parts.evaluation.cautions() if tested else []
    begin_anew(wd, parts.config)
    if extended(wd, parts.config):
        set_results_aside(wd)
    made_from = {split: dataset.fingerprint() for split, dataset in splits.items()}
    wd.start(parts.config, parts.info, made_from, {**parts.origin, "chosen": dict(parts.chosen)})
    warn_and_record(wd, warnings)


def record_training(wd: Workdir, steps: int, duration: str, seconds: float) -> None:
    """Record that a run is trained, and how long its last start took."""
    timings = wd.read("timings.json", {})
    timings["training"] = timings.get("training", 0.0) + seconds
    wd.write("timings.json", timings)
    wd.write("status.json", {**wd.status(), "trained": steps, "duration": duration})


def questionable_settings(parts: Parts) -> list[str]:
    """Return a warning for each setting without effect or that is probably unintended; raise UserError for contradictions."""
    from ssl_jax.task import tokens_of
    from ssl_jax.training import checks

    return checks.questionable_settings(
        parts.training, parts.optimizer, schedules=parts.schedules, batch_size=parts.stream.batch_size,
        examples=parts.stream.dataset.size, tokens_per_example=tokens_of(parts.info), evaluates=bool(parts.evaluators),
    )  # fmt: skip


def warn_and_record(wd: Workdir, lines: Sequence[str]) -> None:
    """Print warnings about a run, and record them for the report."""
    from ssl_jax.training.checkpoint import warn

    recorded = wd.read("warnings.json", {}).get("lines", [])
    for line in lines:
        warn(f"warning: {line}")
    new = [*recorded, *(line for line in lines if line not in recorded)]
    if new != recorded:
        wd.write("warnings.json", {"lines": new})


def train(parts: Parts, wd: Workdir, trainer: Any, *, quiet: bool = False, console: Any = None) -> tuple[int, Params]:
    """Train or resume to the end; return (steps, parameters to evaluate: the moving average if there is one).

    Without a trainer the run is already trained, and its last checkpoint is read.
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
        **starting_point(parts, wd),
        workdir=wd.path,
        checkpoint=parts.checkpoint,
        evaluate=functools.partial(evaluate_during, parts) if parts.evaluators else None,
        name=parts.task.name,
        quiet=quiet,
        console=console,
    )
    warn_and_record(wd, [*checks.skipped_updates(parts.training, state), *training_trouble(parts, wd)])
    return int(state.step), state.evaluated


def training_trouble(parts: Parts, wd: Workdir) -> list[str]:
    """Return the task's diagnosis (`Task.trouble`) of the last line of the log, if it shows that training has failed."""
    from ssl_jax.reports.run import load_run

    lines = [line for line in load_run(wd.path).metrics if "loss" in line]
    said = parts.task.trouble(lines[-1]) if lines else None
    return [f"step {lines[-1]['step']}: {said}"] if said else []


def starting_point(parts: Parts, wd: Workdir) -> dict[str, Callable]:
    """Return functions for the initial parameters from `task.init` and the variables from data, if the run has them."""
    task, options = parts.task, {}
    if parts.config.task.get("init") is not None:
        options["init_params"] = functools.partial(initial_params, parts, wd)
    if not by_default(task, "fit"):
        examples = functools.partial(panel_batch, parts.dataset("train", False))
        options["init_variables"] = functools.partial(task.fit, examples=examples)
    return options


def initial_params(parts: Parts, wd: Workdir, params: Params) -> Params:
    """Return initial parameters with those of `task.init` loaded; print and record which."""
    start = parts.initial
    if start is None:
        return params
    say(start.line())
    wd.write("initialised.json", start.report())
    return start(params)


def trainer_of(parts: Parts) -> Any:
    """Return the run's trainer; raise UserError for errors found from shapes (rules, devices). Allocates nothing."""
    from ssl_jax.training.loop import Trainer

    return Trainer(
        parts.task, parts.stream, training=parts.training, optimizer=parts.optimizer, schedules=parts.schedules,
        mesh=parts.mesh_settings,
    )  # fmt: skip


def selected_checkpoint(wd: Workdir) -> int | None:
    """Return the step of the best checkpoint (checkpoint.best); None without selection."""
    from ssl_jax.training.settings import CheckpointSettings

    return best_checkpoint(wd, read(CheckpointSettings, wd.config().get("checkpoint"), "checkpoint"))


def restore(path: str, checkpoint: int | None = None) -> tuple[Task, Params, DataInfo]:
    """Return (task, parameters, data info) of a work directory's checkpoint, or of `hf:DIR`.

    checkpoint: a step; by default the best (checkpoint.best) or, without selection, the newest.
    """
    if str(path).startswith("hf:"):
        from ssl_jax.interop import load_pretrained

        return load_pretrained(str(path).removeprefix("hf:"))
    from ssl_jax.training.checkpoint import load_params

    wd = Workdir.existing(path)
    config, info = wd.config(), wd.info()
    task = task_class(config).from_config(config, info)
    if checkpoint is None:
        checkpoint = selected_checkpoint(wd)
    _, params = load_params(wd.path / "checkpoints", checkpoint)
    return task, params, info


def data_as_trained(section: Any, task: Task, info: DataInfo, workdir: str, *, kind: str | None = None) -> dict[str, Any]:
    """Return a section `data` that reads other sources like the model's training data; `kind`: by default the task's.

    Imported weights have none (`section` is empty): for a masked-token model each line or row of a text is then a sequence.
    """
    kind = kind or task.data
    imported, section = not section, {"batch_size": 1, **dict(section)}
    if kind != task.data:  # only settings that every kind has
        shared = ("batch_size", "test") + (("holdout",) if kind in ("images", "pairs", "tokens", "sequences") else ())
        section = {name: value for name, value in section.items() if name in shared}
    image, tokens = info.shapes.get("image"), info.shapes.get("tokens")
    for what, shape, kinds in (("images", image, ("images", "pairs")), ("text", tokens, ("pairs", "labelled_text"))):
        if kind in kinds and shape is None:
            raise UserError(f"data.kind={kind!r}: a {task.name} model does not read {what}")
    if kind in ("images", "pairs"):
        section |= {"image_size": tuple(image.shape[:2]), "normalize": (tuple(info.mean) or (0.0,), tuple(info.std) or (1.0,))}
        section |= {"eval_crop": info.extra.get("eval_crop", 1.0)} if imported else {}
        section |= {"channels": image.shape[2]} if kind == "images" else {"context_length": tokens.shape[0]}
    if kind == "labelled_text":
        section["max_length"] = tokens.shape[0]
    if kind in ("tokens", "sequences"):
        section["block"] = min(section.get("block", 128), tokens.shape[0] - (kind == "tokens"))
        if imported and kind == "sequences":
            section |= {"packing": "documents", "documents": "line"}
    if info.tokenizer is not None and kind != "images":
        folder = pathlib.Path(workdir.removeprefix("hf:")).expanduser()
        section["tokenizer"] = {"name": "file", "path": str(folder if workdir.startswith("hf:") else folder / "tokenizer")}
    return section


# Evidence -----------------------------------------------------------------------------------------------------------


def evaluate(
    workdir: str, *, config: ConfigDict | None = None, checkpoint: int | None = None, data: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> int:  # fmt: skip
    """Run the evaluators on a checkpoint and add their metrics to the run's results.

    config: its evaluators replace the run's. data: keys of the section `data` as text ("test" -> a source), which override
    the data of every evaluator; results are then named by evaluator and data, "linear_probe:folder:photos".
    overrides: keys of the run's own config as text, in `downstream`, `expected` and `data`.
    The results of the run's final checkpoint are written to results.json, those of another to a separate file.
    """
    from ssl_jax.training.checkpoint import load_params
    from ssl_jax.training.lock import locked

    wd = Workdir.existing(workdir)
    own, data = wd.config(), dict(data or {})
    if own.data:  # for imported weights, `config` has the data
        data |= below("data", overrides)
    sources = nested(data)
    for key, text in (overrides or {}).items():
        if key.partition(".")[0] not in ("downstream", "expected", "data"):
            raise UserError(
                f"--config.{key}: evaluate can change only downstream, expected and data; start another run for another {key}"
            )
        if config is None and not key.startswith("data."):
            configs.override(own, key, text)
    if not own.data and config is None:
        raise UserError(f"--workdir={workdir}: imported weights have no data; give --config=FILE with a data section")
    if config is not None:
        if not own.data:
            task, _, info = restore(workdir)
            own.data = {**config.data, **data_as_trained({}, task, info, workdir), "batch_size": config.data.batch_size}
            own.training, own.optimizer = config.training, config.optimizer  # used by evaluators that train
        own.downstream = config.get("downstream", ConfigDict())
        own.expected = config.get("expected", ConfigDict())
    parts = prepare(own, workdir)
    if sources:
        parts = dataclasses.replace(parts, evaluators=on_other_data(parts.evaluators, sources))
    if not parts.evaluators:
        raise UserError(f"--workdir={workdir}: its config names no evaluators; give --config=FILE with `downstream`")
    check_evaluation(parts)
    with locked(wd.path):
        warn_and_record(wd, parts.evaluation.cautions())
        final = best_checkpoint(wd, parts.checkpoint) or wd.status().get("trained")
        step, params = load_params(wd.path / "checkpoints", final if checkpoint is None else checkpoint)
        is_final = checkpoint is None or step == final
        name = "results.json" if is_final else f"results_{step:08d}.json"
        evaluate_all(parts, wd, params, step, name=name, again=True)
        if is_final:
            write_panels(parts, wd, params, step)
            write_report(wd, own)
    return 0


def below(section: str, overrides: Mapping[str, str] | None) -> dict[str, str]:
    """Return the overrides of one section: "data.test" of "data" as "test"."""
    found = {key.partition(".")[::2]: text for key, text in (overrides or {}).items()}
    return {rest: text for (name, rest), text in found.items() if name == section and rest}


def nested(texts: Mapping[str, str]) -> dict[str, Any]:
    """Return the nested section given by dotted keys and texts of the command line."""
    section = ConfigDict()
    for key, text in texts.items():
        configs.override(section, key, text)
    return section.to_dict()


def on_other_data(evaluators: Mapping[str, Any], sources: Mapping[str, Any]) -> dict[str, Any]:
    """Return the evaluators with `sources` overriding the data of each, under names that include the data."""
    words = dict.fromkeys(str(sources[split]) for split in ("train", "test") if split in sources)
    words |= dict.fromkeys(f"{key}={value}" for key, value in sources.items() if key not in ("train", "test"))
    label = "+".join(words).replace("/", ".")  # a "/" separates the parts of a result's name
    laid = lambda evaluator: dataclasses.replace(evaluator, data={**evaluator.sources, **sources})
    return {f"{name}:{label}": laid(evaluator) for name, evaluator in evaluators.items()}


def other_data(parts: Parts, own: Any, sources: Mapping[str, Any]) -> Any:
    """Return the data of an evaluator that names `sources`, with the encoder's image size, normalisation and tokenizer.

    `sources` may have `kind`, a key of data.KINDS; by default the task's.
    """
    sources = dict(sources)
    kind = sources.pop("kind", None) or parts.task.data
    if kind not in data.KINDS:
        raise UserError(f"data.kind={kind!r}: unknown{nearest(str(kind), data.KINDS)}")
    section = parts.config.data.to_dict()
    if "train" in sources:
        section = {name: value for name, value in section.items() if name != "test"}  # a share of the new source instead
    with tempfile.TemporaryDirectory(prefix="ssl_jax_") as folder:
        section = data_as_trained(section, parts.task, parts.info, "", kind=kind) | sources
        if parts.info.tokenizer is not None and kind != "images" and "tokenizer" not in sources:
            parts.info.tokenizer.save(folder)
            section["tokenizer"] = {"name": "file", "path": folder}
        build = lambda split: data.build(kind, section, split=split, train=False, task_section=parts.config.task)
        train, test = build("train"), build("test")
    config = ConfigDict(parts.config.to_dict() | {"data": section})
    return dataclasses.replace(own, train=train, test=test, config=config)


def report(workdirs: Sequence[str], *, to: str | None = None) -> int:
    """Write the report of one run, of a sweep, or of several runs compared."""
    from ssl_jax.reports.sweep import is_sweep, write_sweep

    if len(workdirs) == 1 and is_sweep(workdirs[0]):
        say(f"report: {write_sweep(workdirs[0], to)}")
        return 0
    from ssl_jax.reports.report import write_report as write

    say(f"report: {write(workdirs[0] if len(workdirs) == 1 else list(workdirs), to)}")
    return 0
