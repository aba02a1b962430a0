"""Fine-tuning as an evaluator: train by a recipe with the common loop, and measure on the test split."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from ssl_jax import data as kinds
from ssl_jax import randomness
from ssl_jax.config import Duration, read
from ssl_jax.data.pipeline import Dataset, Stream, subset
from ssl_jax.downstream.evaluator import EvaluationData, Evaluator, Records
from ssl_jax.downstream.evaluators.baselines import majority
from ssl_jax.downstream.evaluators.features import FAILURES, Encoder, separately
from ssl_jax.downstream.metrics import classification as metrics
from ssl_jax.downstream.supervised.classification import Classification
from ssl_jax.downstream.supervised.freezing import freeze, partial
from ssl_jax.errors import UserError
from ssl_jax.initialisation import Start, Trained, match
from ssl_jax.reports.records import over_runs
from ssl_jax.task import Params
from ssl_jax.training import sharding
from ssl_jax.training.exceptions import Diverged
from ssl_jax.training.logging import Console
from ssl_jax.training.loop import Trainer
from ssl_jax.training.optimizer import OptimizerSettings
from ssl_jax.training.replicas import Replica, can_be_replicated, train_replicas
from ssl_jax.training.settings import CheckpointSettings, MeshSettings, TrainingSettings


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the "classification" task is trained: sections of a config.

    `model` and `data` override the run's; the other sections are used as they are.
    """

    model: Mapping = dataclasses.field(default_factory=dict)  # such as drop_path
    task: Mapping = dataclasses.field(default_factory=dict)  # ClassificationSettings: pooling, mix ...
    data: Mapping = dataclasses.field(default_factory=dict)  # such as augment, image_size
    training: Mapping = dataclasses.field(default_factory=lambda: dict(duration="50 epochs"))
    optimizer: Mapping = dataclasses.field(
        default_factory=lambda: dict(name="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75, warmup="10 %")
    )
    batch_size: int = 64
    blocks: float | None = None  # fine-tune only the last `blocks` blocks; 0.5: the MLP of the last one
    learning_rates: tuple = ()  # candidate peaks, selected on a held-out fifth of the training examples; (): the optimizer's

    def __post_init__(self):
        read(TrainingSettings, self.training, "training")
        read(OptimizerSettings, self.optimizer, "optimizer")
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: must be at least 1")
        if any(not isinstance(lr, int | float) or lr <= 0 for lr in self.learning_rates):
            raise UserError(f"learning_rates={self.learning_rates!r}: must be positive numbers")


@dataclasses.dataclass(frozen=True)
class Scratch(Recipe):
    """How the same model is trained from random parameters, as the baseline of fine-tuning.

    Keys missing in `data` (augmentation), `task` (pooling, mixing), `model`, `training` and `batch_size` are those of
    fine-tuning. The default `optimizer` is AdamW without layer decay, with the best of three peak learning rates.
    """

    training: Mapping = dataclasses.field(default_factory=dict)
    optimizer: Mapping | None = None
    batch_size: int | None = None
    learning_rates: tuple | None = None  # default with a given `optimizer`: (), its own rate

    def __post_init__(self):
        self.completed(Recipe())

    def completed(self, finetune: Recipe) -> Recipe:
        """Return this recipe, completed by that of fine-tuning, `finetune`."""
        rates = ((5e-4, 1e-3, 2e-3) if self.optimizer is None else ()) if self.learning_rates is None else self.learning_rates
        return Recipe(
            model={**finetune.model, **self.model},
            task={**finetune.task, **self.task},
            data={**finetune.data, **self.data},
            training={**finetune.training, **self.training},
            optimizer=self.optimizer or dict(name="adamw", lr=1e-3, weight_decay=0.05, warmup="10 %"),
            batch_size=finetune.batch_size if self.batch_size is None else self.batch_size,
            blocks=self.blocks,
            learning_rates=rates,
        )


class FineTuner:
    """A recipe compiled once for a data set; runs may differ in seed, initialisation, learning rate, length and examples.

    Runs from encoders that were joined (`features.join`) train together, as replicas in one program.
    """

    def __init__(self, recipe: Recipe, data: EvaluationData):
        if data.config is None:
            raise UserError(
                "fine-tuning reads all of the run's training data, and cannot be measured on a part of them; select by an "
                "evaluator of frozen features, such as linear_probe (training.evaluators names those measured during training)"
            )
        self.recipe, self.data, self.log, config = recipe, data, data.log, data.config.to_dict()
        section = {**config["data"], "views": {}, "sampling": "uniform", **recipe.data, "batch_size": recipe.batch_size}
        self.train = kinds.build("images", section, split="train", train=True, task_section=recipe.task, workdir=data.workdir)
        if self.train.class_balanced:
            raise UserError('data.sampling: fine-tuning draws examples uniformly; weight them by task.class_weights="balanced"')
        self.plain, self.test = data.train, data.test
        if set(recipe.data) - {"augment"}:
            build = lambda split: kinds.build("images", section, split=split, train=False, workdir=data.workdir)
            self.plain, self.test = build("train"), build("test")
        training = read(TrainingSettings, {"dtype": config["training"].get("dtype", "float32"), **recipe.training}, "training")
        model = {k: v for k, v in config["model"].items() if k != "mask_token"} | dict(recipe.model)
        sections = ConfigDict(dict(task=dict(recipe.task), model=model, training=dict(dtype=training.dtype)))
        self.task = Classification.from_config(sections, self.train.info)
        optimizer = dict(recipe.optimizer)
        if recipe.blocks is not None:
            optimizer = freeze(optimizer, partial(self.task.encoder.config.depth, recipe.blocks))
        stream = Stream(self.train, batch_size=recipe.batch_size, seed=0)
        self.trainer = Trainer(
            self.task, stream, training=training, optimizer=read(OptimizerSettings, optimizer, "optimizer"), mesh=data.mesh,
            mesh_rules=read(MeshSettings, config.get("mesh"), "mesh").rules,
        )  # fmt: skip

    def steps(self, examples: int, duration: str | None = None) -> int:
        """Return the length in steps of a run on `examples` examples."""
        path, text = "training.duration", duration or self.recipe.training.get("duration", "50 epochs")
        steps = Duration.parse(text, path).steps(path=path, batch_size=self.recipe.batch_size, examples=examples)
        return max(steps, 1)

    def fit(
        self,
        indices: Int[np.ndarray, "examples"],
        *,
        seed: int,
        steps: int,
        source: Encoder | None = None,
        lr: Callable[[Encoder | None], float] | float | None = None,
    ) -> Params:
        """Train on the examples at `indices`, from `source` or from scratch; returns the moving average if one is kept.

        lr: the peak learning rate, or a function from the source to it; by default the optimizer's.
        """
        replicable = can_be_replicated(self.trainer.program, CheckpointSettings())
        if source is None or len(source.joined) == 1 or not replicable:
            state = self.trainer.run(
                seed=seed, total_steps=steps, stream=self._stream(indices, seed), init_params=self._initial(source),
                lr=lr(source) if callable(lr) else lr, quiet=True,
            )  # fmt: skip
            return state.evaluated
        key = ("fit", self, seed, steps, "chosen" if callable(lr) else lr, indices.tobytes())
        train = lambda sources: self._fit_together(indices, sources, seed, steps, lr)
        return source.result(self.data, key, train, keep=False)

    def _initial(self, source: Encoder | None) -> Start | None:
        if source is None:
            return None
        trained = Trained(source.task, source.params, self.train.info, "the encoder")
        return match(self.task, {"": trained}, heads=False)

    def _fit_together(self, indices, sources: Sequence[Encoder], seed: int, steps: int, lr) -> list[Params | Exception]:
        """Train from each of `sources` in one program; return its parameters, or the error that it ended with."""
        rates = separately(lr if callable(lr) else lambda source: lr)(sources)
        left = [k for k, rate in enumerate(rates) if not isinstance(rate, FAILURES)]
        stream, found = self._stream(indices, seed), list(rates)
        replicas = [Replica(seed, stream, lr=rates[k], init_params=self._initial(sources[k])) for k in left]
        console = Console(steps, quiet=True)
        states = train_replicas(self.trainer, replicas, total_steps=steps, share_data=True, console=console) if left else []
        for k, state in zip(left, states, strict=True):
            found[k] = state if isinstance(state, Diverged) else state.evaluated
        return found

    def fit_tuned(self, indices: Int[np.ndarray, "examples"], **options: Any) -> tuple[Params, float | None]:
        """Call `fit` with the best of the recipe's learning rates, selected by runs on four fifths of `indices`.

        Return the parameters and the rate. A rate at which training diverges is never selected.
        """
        rates, source = self.recipe.learning_rates, options.get("source")
        choose = functools.partial(self._best_rate, indices, options)
        if len(rates) < 2 or source is None:
            lr = choose(None) if len(rates) > 1 else (*rates, None)[0]
            return self.fit(indices, lr=lr, **options), lr
        key = ("rate", self, options["seed"], options["steps"], indices.tobytes())
        rate = lambda source: source.result(self.data, key, separately(choose))  # of each joined source its own
        return self.fit(indices, lr=rate, **options), rate(source)

    def _best_rate(self, indices: np.ndarray, options: dict[str, Any], source: Encoder | None) -> float:
        rates, options = self.recipe.learning_rates, {**options, "source": source}
        kept, held = metrics.held_out(self.train.labels()[indices], 0.2, options["seed"])
        scores = [self._score(indices[kept], indices[held], lr, options) for lr in rates]
        if not np.isfinite(scores).any():
            raise UserError(f"learning_rates={rates!r}: training diverged at each of them; lower them")
        return rates[metrics.best(scores)]

    def _score(self, kept: np.ndarray, held: np.ndarray, lr: float, options: dict[str, Any]) -> float:
        """Return `headline_metric` on the examples `held` after training on `kept`; NaN where training diverged."""
        try:
            params = self.fit(kept, lr=lr, **options)
            return metrics.headline_metric(*self.logits(params, subset(self.plain, held))).value
        except FAILURES as error:
            self.log(f"learning rate {lr:g} cannot be chosen: {error}")
            return float("nan")

    def logits(
        self, params: Params, dataset: Dataset | None = None
    ) -> tuple[Float[np.ndarray, "examples classes"], Int[np.ndarray, "examples ..."]]:
        """Return logits and labels of the readable examples of a data set, by default the test split.

        Raises UserError for non-finite logits.
        """
        encoder = Encoder(self.task, params, self.trainer.program.mesh)
        found = encoder.extract(self.test if dataset is None else dataset, ("logits",))
        return found["logits"], found["label"]

    def running_moments(
        self, params: Params, indices: Int[np.ndarray, "examples"], *, seed: int, steps: int, batches: int = 100
    ) -> tuple[Float[np.ndarray, "width"], Float[np.ndarray, "width"]]:
        """Return running mean and variance of the head's input, as of torch's batch norm at the end of a `fit`.

        The momentum is 0.1 and the variance unbiased. For a frozen encoder they are computed after training: the last
        `batches` training batches are read again with the same augmentation; earlier ones weigh less than 0.9 ** batches.
        """
        data, mesh = self._stream(indices, seed), self.trainer.program.mesh
        resident = sharding.put_replicated(data.resident, mesh)

        @jax.jit
        def after(running, params, raw, resident, step):
            batch = data.on_device(resident, raw, randomness.stream(seed, "augment", step))
            x = self.task.features(params, batch)["pooled"]
            now = jnp.mean(x, axis=0), jnp.var(x, axis=0, ddof=min(1, len(x) - 1))
            return tuple(0.9 * old + 0.1 * new for old, new in zip(running, now, strict=True))

        width = self.task.encoder.config.width
        running, first = (jnp.zeros(width), jnp.ones(width)), max(steps - batches, 0)
        for step, raw in zip(range(first, steps), data.iterate(first, self.trainer.program.rows), strict=False):
            running = after(running, params, self.trainer.program.put(raw, 1), resident, jnp.int32(step))
        return np.asarray(running[0]), np.asarray(running[1])

    def _stream(self, indices: Int[np.ndarray, "examples"], seed: int) -> Stream:
        if len(indices) == self.train.size:
            return Stream(self.train, batch_size=self.recipe.batch_size, seed=seed)
        if not self.trainer.program.stream.resident:
            return Stream(subset(self.train, indices), batch_size=self.recipe.batch_size, seed=seed)
        return PartStream(self.train, indices, batch_size=self.recipe.batch_size, seed=seed)


class PartStream(Stream):
    """A stream over a subset of a data set that is on the device: the compiled program stays the same."""

    def __init__(self, dataset: Dataset, part: Int[np.ndarray, "examples"], **options: Any):
        super().__init__(dataclasses.replace(dataset, size=len(part)), **options)
        self.part = np.asarray(part, np.int64)

    def _indices(self, step: int, position: np.ndarray) -> np.ndarray:
        return self.part[super()._indices(step, position)]


@dataclasses.dataclass(frozen=True)
class FineTune(Recipe, Evaluator):
    """Fine-tune the encoder on all labels, and train the same model from scratch (unless `scratch=None`).

    Yields `metrics.classification` of the first seed (with several seeds, accuracy is their mean), and the baselines
    "scratch" and "majority"; with several classes per example `metrics.several_classes` and "scratch".
    """

    data: Mapping | tuple = dataclasses.field(default_factory=dict)
    scratch: Scratch | None = Scratch()
    seeds: int = 1
    seed: int = 0

    requires_labels = ("train", "test")
    several_classes = True

    def __post_init__(self):
        Evaluator.__post_init__(self)
        super().__post_init__()
        if self.seeds < 1:
            raise UserError(f"seeds={self.seeds}: must be at least 1")

    def check(self, data: EvaluationData) -> None:
        metrics.check_labels(data.train.labels(), data.test.labels(), data.classes)
        for tuner in self._tuners(data):
            if tuner is not None:
                check_choice(tuner.recipe, data.train.labels(), "")

    def _tuners(self, data: EvaluationData) -> tuple[FineTuner, FineTuner | None]:
        recipe = dataclasses.replace(self, data=self.sources)
        tuner = FineTuner(recipe, data)
        if self.scratch is None:
            return tuner, None
        baseline = FineTuner(self.scratch.completed(recipe), data)
        same_or_longer(baseline, tuner, data.train.size, "on all labels")
        return tuner, baseline

    @property
    def names(self) -> tuple[str, ...]:
        scratch = ("scratch/accuracy", "scratch/mean_average_precision", "scratch/stderr")
        return (*metrics.NAMES, *metrics.SEVERAL, "stderr", *scratch, "majority/accuracy")

    def __call__(self, encoder: Encoder, data: EvaluationData) -> Records:
        labels, everything = data.train.labels(), np.arange(data.train.size)
        metrics.check_labels(labels, data.test.labels(), data.classes)
        tuner, baseline = data.once(("tuners", repr(self)), lambda: self._tuners(data))

        def runs(tuner: FineTuner, source: Encoder | None) -> list[tuple[np.ndarray, np.ndarray]]:
            options = dict(steps=tuner.steps(len(everything)), source=source)
            fits = (tuner.fit_tuned(everything, seed=self.seed + i, **options)[0] for i in range(self.seeds))
            return [tuner.logits(params) for params in fits]

        several, found = labels.ndim == 2, runs(tuner, encoder)
        _, *rest = (metrics.several_classes if several else metrics.classification)(*found[0], data.classes)
        yield over_runs([metrics.headline_metric(*each) for each in found], headline=True)
        yield from rest
        if baseline is not None:
            scratch = lambda: over_runs([metrics.headline_metric(*each) for each in runs(baseline, None)], baseline="scratch")
            yield data.once(("scratch", repr(self)), scratch)
        if not several:
            yield majority(labels, found[0][1])


def check_choice(recipe: Recipe, labels: Int[np.ndarray, "examples ..."], what: str) -> None:
    """Raise UserError if no example of `labels` can be held out to select the recipe's learning rate."""
    if len(recipe.learning_rates) > 1 and not len(metrics.held_out(labels, 0.2, 0)[1]):
        raise UserError(
            f"learning_rates={recipe.learning_rates!r}: {what}no class has two training examples, so none can be held out to"
            " choose by; give one rate, or more examples"
        )


def same_or_longer(scratch: FineTuner, finetune: FineTuner, examples: int, what: str, duration: str | None = None) -> None:
    """Raise UserError if the baseline would get less training than fine-tuning.

    With another batch size it may take fewer steps, if it sees as many images.
    """
    own, other = scratch.steps(examples, duration), finetune.steps(examples, duration)
    if own < other and own * scratch.recipe.batch_size < other * finetune.recipe.batch_size:
        raise UserError(f"scratch.training.duration: {own} steps {what}, but fine-tuning takes {other}; give it as many")
