"""Linear probe: a linear classifier on frozen features, by one of three published protocols."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from ssl_jax.data.labels import without_and_with
from ssl_jax.downstream.class_weights import balanced_weights, positive_weights
from ssl_jax.downstream.evaluator import EvaluationData, Evaluator, Records
from ssl_jax.downstream.evaluators.baselines import flat, majority
from ssl_jax.downstream.evaluators.features import Encoder, separately
from ssl_jax.downstream.evaluators.heads import PATH, Descent, Linear, LogisticRegression, train_linear_heads
from ssl_jax.downstream.metrics import classification as metrics
from ssl_jax.errors import UserError
from ssl_jax.reports.records import Record

PROTOCOLS = ("lbfgs", "grid", "mae")


@dataclasses.dataclass(frozen=True)
class LinearProbe(Evaluator):
    """Train a linear head on the training split's features and evaluate it on the test split.

    "lbfgs": logistic regression on standardised features, its strength selected on a held-out part of the training split,
    then fitted to all of it.
    "grid" (DINOv2): heads for all learning rates x weight decays x representations in one program over one stream of
    features, the best selected on the held-out part; it is evaluated without retraining on that part.
    "mae" (He et al. 2022, table 10): LARS, base lr 0.1 per 256 examples, batch 16,384, 90 epochs, 10 of warm-up, batch norm
    without affine (eps 1e-6) before the head. With `augment` every batch is augmented and goes through the frozen encoder
    (its class token), by the common training loop; without, features of the evaluation transform are used. In both cases
    the test split is normalised by the running moments of the training batches (momentum 0.1, as in torch).

    A head with non-finite weights has diverged: it is named in the log and never selected.

    With several classes per example every protocol fits one binary logistic regression per class, and the head is selected by
    mean average precision. With class_weights="balanced" ("lbfgs" only) every class has the same total weight, as in
    scikit-learn, and the strength is selected by balanced accuracy; with several classes per example the examples of a class
    weigh as much as those without it (`positive_weights`).

    Yields `metrics.classification` (`metrics.several_classes`), the selected settings, and each baseline's headline metric.
    """

    protocol: str = "lbfgs"
    representation: str | tuple[str, ...] = "mean"  # several: the best on the held-out part is used
    l2: tuple = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of "lbfgs": penalty l2 / 2 |W|^2 on the mean cross entropy
    learning_rates: tuple | None = None  # of "grid" and "mae": base values, times batch_size / 256
    weight_decays: tuple | None = None
    epochs: float | None = None
    warmup_epochs: float | None = None
    batch_size: int | None = None
    augment: Mapping | None = None  # of "mae": as data.augment, such as dict(crop=dict(scale=(0.08, 1.0)), flip=True)
    class_weights: str | None = None  # "balanced"
    held_out: float = 0.1  # share of the training split for selection
    baselines: bool | tuple[str, ...] = True  # or the names of some, such as ("random_encoder",)
    seed: int = 0

    requires_labels = ("train", "test")
    several_classes = True

    def __post_init__(self):
        super().__post_init__()
        if self.protocol not in PROTOCOLS:
            raise UserError(f"protocol={self.protocol!r}: must be one of {', '.join(PROTOCOLS)}")
        if self.class_weights not in (None, "balanced"):
            raise UserError(f'class_weights={self.class_weights!r}: must be "balanced" or None')
        if self.class_weights and self.protocol != "lbfgs":
            raise UserError(f'class_weights: protocol={self.protocol!r} weighs every example the same; use "lbfgs"')
        if not self.representations:
            raise UserError("representation is empty: name one, such as mean")
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out={self.held_out}: must lie in (0, 1)")
        if not self.l2 or any(not isinstance(v, int | float) or v <= 0 for v in self.l2):
            raise UserError(f"l2={self.l2!r}: must be one or more positive numbers")
        if self.augment is not None and (self.protocol != "mae" or self.representations != ("cls",)):
            raise UserError('augment: only with protocol="mae" and representation="cls"; other probes read cached features')
        heads = self.descent.heads  # reading them checks the settings of every protocol
        if self.protocol == "mae" and len(heads) > 1:
            raise UserError('learning_rates: protocol="mae" has one; use "grid" to choose among several')

    @property
    def representations(self) -> tuple[str, ...]:
        return (self.representation,) if isinstance(self.representation, str) else tuple(self.representation)

    @property
    def descent(self) -> Descent:
        """The settings of the protocols by gradient descent, with the config's overrides."""
        mae = dict(optimizer="lars", learning_rates=(0.1,), epochs=90, warmup_epochs=10, batch_size=16384, norm="batch")
        names = ("learning_rates", "weight_decays", "epochs", "warmup_epochs", "batch_size")
        own = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return Descent(**((mae if self.protocol == "mae" else {}) | own))

    @property
    def names(self) -> tuple[str, ...]:
        own = ("held_out_*", "training_accuracy", "chosen/*", "diverged_heads")
        return (*metrics.NAMES, *metrics.SEVERAL, *own, "*/accuracy", "*/mean_average_precision")

    def __call__(self, encoder: Encoder, data: EvaluationData) -> Records:
        chosen, logits, labels = (self._probe if self.augment is None else self._augmented)(encoder, data)
        several = labels.ndim == 2
        yield from (metrics.several_classes if several else metrics.classification)(logits, labels, data.classes)
        yield from chosen
        if self.baselines:
            for name in encoder.baselines if self.baselines is True else self.baselines:
                if name not in encoder.baselines:
                    raise UserError(f"baselines: {name!r} is none of {', '.join(encoder.baselines)}")
                measure = functools.partial(self._baseline, name, data)
                yield encoder.baselines[name].result(data, repr(self), separately(measure))
            if not several:
                yield majority(encoder.extract(data.train, ())["label"], labels)

    def _baseline(self, name: str, data: EvaluationData, baseline: Encoder) -> Record:
        _, logits, labels = self._probe(baseline, data)
        return metrics.headline_metric(logits, labels, baseline=name)

    def _probe(self, encoder: Encoder, data: EvaluationData) -> tuple[list[Record], np.ndarray, np.ndarray]:
        """Return the selected settings, the test split's logits and its labels."""
        names = self.representations
        train, test = (encoder.extract(split, names) for split in (data.train, data.test))
        classes = metrics.check_labels(train.get("label"), test.get("label"), data.classes)
        if "input" in train:  # a baseline whose only representation is its input
            names = ("input",)
        found = probe([flat(train[name]) for name in names], train["label"], classes, self, data.log)
        scores = [choice.score for choice in found]
        best = metrics.best(scores) if np.isfinite(scores).any() else 0
        choice = found[best]
        metric, _ = selects_by(train["label"], self.class_weights)
        measured = f"training_{metric}" if self.protocol == "mae" else f"held_out_{metric}"  # "mae" trains on all of the split
        records = [Record(measured, choice.score)] if np.isfinite(choice.score) else []
        records += [Record(name, value, setting="chosen") for name, value in choice.settings.items()]
        if len(names) > 1:
            records.append(Record("representation", float(best), setting="chosen"))
        if choice.diverged:
            records.append(Record("diverged_heads", float(choice.diverged)))
        return records, choice.head(flat(test[names[best]])), test["label"]

    def _augmented(self, encoder: Encoder, data: EvaluationData) -> tuple[list[Record], np.ndarray, np.ndarray]:
        """Like `_probe`, with a head trained by the loop on augmented images."""
        metrics.check_labels(data.train.labels(), data.test.labels(), data.classes)
        test = encoder.extract(data.test, ("cls",))
        tuner, every = data.once(("tuner", repr(self)), lambda: self._tuner(data)), np.arange(data.train.size)
        steps = tuner.steps(len(every))
        params = tuner.fit(every, seed=self.seed, steps=steps, source=encoder)
        mean, var = tuner.running_moments(params, every, seed=self.seed, steps=steps)
        x = (test["cls"] - mean) / np.sqrt(var + 1e-6)
        head = params["head"]
        return [], x @ np.asarray(head["kernel"]) + np.asarray(head["bias"]), test["label"]

    def check(self, data: EvaluationData) -> None:
        metrics.check_labels(data.train.labels(), data.test.labels(), data.classes)
        if self.augment is not None:
            self._tuner(data)

    def _tuner(self, data: EvaluationData):
        from ssl_jax.downstream.evaluators.finetune import FineTuner, Recipe

        settings = self.descent
        (lr, decay), batch_size = settings.heads[0], min(settings.batch_size, data.train.size)
        recipe = Recipe(
            task=dict(pooling="cls", head_norm="batch", head_std=settings.init_std),
            data=dict(augment=dict(self.augment)),
            training=dict(duration=f"{settings.epochs} epochs"),
            optimizer=dict(name="lars", base_lr=lr, weight_decay=decay, warmup=f"{settings.warmup_epochs} epochs"),
            batch_size=batch_size,
            blocks=0,
        )
        return FineTuner(recipe, data)


@dataclasses.dataclass(frozen=True)
class Choice:
    """The best head of one representation."""

    score: float  # `selects_by` on the held-out part (of "mae": trained on too); NaN where no example could be held out
    settings: dict[str, float]  # the selected settings, by name
    head: Linear
    diverged: int = 0  # number of heads with non-finite weights


def probe(
    xs: Sequence[Float[np.ndarray, "examples _"]],
    labels: Int[np.ndarray, "examples ..."],
    classes: int,
    settings: LinearProbe,
    log: Callable[[str], None] = lambda text: None,
) -> list[Choice]:
    """Return the best head for each representation. Raises UserError if every head of one has diverged."""
    kept, held = metrics.held_out(labels, settings.held_out, settings.seed)
    if settings.protocol == "lbfgs":
        return [_logistic(x, labels, classes, settings, held, log) for x in xs]
    if settings.protocol == "mae":  # nothing to choose: all of the split is trained on
        heads = train_linear_heads(xs, labels, classes, settings.descent, settings.seed)
        names = [{"lr": settings.descent.heads[0][0]}]
        own = [_choose(h, names, [h[0](x[held])], labels[held], log) for x, h in zip(xs, heads, strict=True)]
        return [dataclasses.replace(choice, settings={}) for choice in own]
    grids = train_linear_heads([x[kept] for x in xs], labels[kept], classes, settings.descent, settings.seed)
    names = [{"lr": lr, "weight_decay": decay} for lr, decay in settings.descent.heads]
    return [
        _choose(heads, names, [head(x[held]) for head in heads], labels[held], log) for x, heads in zip(xs, grids, strict=True)
    ]


def selects_by(
    labels: Int[np.ndarray, "examples ..."], class_weights: str | None = None
) -> tuple[str, Callable[[np.ndarray, np.ndarray], float]]:
    """Return the name and the function, (logits, labels) -> value, of the metric by which a head is selected."""
    if labels.ndim == 2:
        return "mean_average_precision", metrics.mean_average_precision
    return ("balanced_accuracy", metrics.balanced_accuracy) if class_weights else ("accuracy", metrics.accuracy)


def _choose(
    heads: Sequence[Linear],
    settings: Sequence[dict[str, float]],
    logits: Sequence[Float[np.ndarray, "held classes"]],
    labels: Int[np.ndarray, "held ..."],
    log: Callable[[str], None],
    class_weights: str | None = None,
) -> Choice:
    """Return the head that is the best on the held-out part, by its `logits` there and `selects_by`.

    Diverged heads are excluded and logged. Without held-out examples, return the first finite head.
    """
    finite = [head.finite for head in heads]
    bad = [", ".join(f"{k}={v:g}" for k, v in own.items()) for own, good in zip(settings, finite, strict=True) if not good]
    if not any(finite):
        raise UserError(f"every head diverged ({'; '.join(bad[:3])}): lower learning_rates or raise l2")
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        log(f"{len(bad)} of {len(heads)} heads diverged and cannot be chosen: {'; '.join(bad[:3])}{more}")
    _, measure = selects_by(labels, class_weights)
    score = lambda own: np.nan_to_num(measure(own, labels)) if len(labels) else 0.0
    scores = [score(own) if good else np.nan for own, good in zip(logits, finite, strict=True)]
    place = metrics.best(scores)
    return Choice(scores[place] if len(labels) else np.nan, settings[place], heads[place], len(bad))


def _logistic(x, labels, classes, settings: LinearProbe, held, log) -> Choice:
    whole, positive, strengths = np.ones(len(labels), np.float32), None, settings.l2
    if settings.class_weights and labels.ndim == 2:
        positive = positive_weights(without_and_with(labels))
    elif settings.class_weights:
        whole = balanced_weights(np.bincount(labels, minlength=classes))[labels]
    problem = LogisticRegression(x, labels, classes, positive)
    weights = whole.copy()
    weights[held] = 0
    strengths = sorted(strengths, reverse=True) if len(held) else strengths[:1]
    heads, start = [], None
    for l2 in strengths if len(strengths) > 1 else ():
        heads.append(problem.fit(l2, weights, start, iterations=PATH if heads else 2 * PATH))
        if all(np.isfinite(part).all() for part in heads[-1]):
            start = heads[-1]  # a stronger penalty's optimum is a good start for the next
    if heads:
        tried = [{"l2": l2} for l2 in strengths]
        logits = [problem.logits(head)[held] for head in heads]
        linear = [problem.linear(head) for head in heads]
        choice = _choose(linear, tried, logits, labels[held], log, settings.class_weights)
        start = heads[strengths.index(choice.settings["l2"])]
        head = problem.linear(problem.fit(choice.settings["l2"], whole, start))
        choice = dataclasses.replace(choice, head=head)
    else:
        choice = Choice(np.nan, {"l2": strengths[0]}, problem.linear(problem.fit(strengths[0], whole)))
    if not choice.head.finite:
        raise UserError(f"the head diverged (l2={choice.settings['l2']:g}): raise l2")
    return choice
