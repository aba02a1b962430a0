"""Linear probe: a linear classifier on frozen features, by one of three published protocols."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from ssl_jax.downstream.evaluators.baselines import flat, majority
from ssl_jax.downstream.evaluators.features import Encoder, EvaluationData
from ssl_jax.downstream.evaluators.heads import Descent, Linear, LogisticRegression, descend
from ssl_jax.downstream.metrics import classification as metrics
from ssl_jax.errors import UserError

PROTOCOLS = ("lbfgs", "grid", "mae")


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """Trains a linear head on the training split's features and measures it on the test split.

    "lbfgs": logistic regression on standardised features, its strength chosen on a held-out part of the training split,
    then fitted to all of it.
    "grid" (DINOv2): heads for all learning rates x weight decays x representations in one program over one stream of
    features, the best chosen on the held-out part; it is reported as trained, on the rest.
    "mae" (He et al. 2022, table 10): LARS, base lr 0.1 per 256 examples, batch 16,384, 90 epochs, 10 of warm-up, batch norm
    without affine (eps 1e-6) before the head. With `augment` every batch is augmented and goes through the frozen encoder
    (its class token), by the loop that trains everything. Without, on the features of the evaluation transform. Either way
    the test split is normalised by the running moments of the training batches (momentum 0.1, as torch keeps them).

    Yields "accuracy", "top5", "ece", "per_class/<name>" and what was chosen; of each baseline "<baseline>/accuracy".
    """

    protocol: str = "lbfgs"
    representation: str | tuple[str, ...] = "mean"  # several: the best on the held-out part is chosen
    l2: tuple = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of "lbfgs": penalty l2 / 2 |W|^2 on the mean cross entropy
    learning_rates: tuple | None = None  # of "grid" and "mae": base values, times batch_size / 256
    weight_decays: tuple | None = None
    epochs: float | None = None
    warmup_epochs: float | None = None
    batch_size: int | None = None
    augment: Mapping | None = None  # of "mae": as data.augment, such as dict(crop=dict(scale=(0.08, 1.0)), flip=True)
    held_out: float = 0.1  # share of the training split that chooses
    baselines: bool | tuple[str, ...] = True  # or the names of some, such as ("random_encoder",)
    seed: int = 0

    requires_labels = True

    def __post_init__(self):
        if self.protocol not in PROTOCOLS:
            raise UserError(f"protocol={self.protocol!r}: must be one of {', '.join(PROTOCOLS)}")
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
        """The settings of the protocols by descent, with what the config overrides."""
        mae = dict(optimizer="lars", learning_rates=(0.1,), epochs=90, warmup_epochs=10, batch_size=16384, norm="batch")
        names = ("learning_rates", "weight_decays", "epochs", "warmup_epochs", "batch_size")
        own = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return Descent(**((mae if self.protocol == "mae" else {}) | own))

    def __call__(self, encoder: Encoder, data: EvaluationData) -> Iterator[tuple[str, float]]:
        chosen, logits, labels = (self._probe if self.augment is None else self._augmented)(encoder, data)
        yield from metrics.classification(logits, labels, data.classes).items()
        yield from chosen.items()
        if self.baselines:
            for name in encoder.baselines if self.baselines is True else self.baselines:
                if name not in encoder.baselines:
                    raise UserError(f"baselines: {name!r} is none of {', '.join(encoder.baselines)}")
                _, found, _ = self._probe(encoder.baselines[name], data)
                yield f"{name}/accuracy", metrics.accuracy(found, labels)
            yield "majority/accuracy", majority(encoder.extract(data.train, ())["label"], labels)

    def _probe(self, encoder, data) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
        """What was chosen, the test split's logits and its labels."""
        names = self.representations
        train, test = (encoder.extract(split, names) for split in (data.train, data.test))
        classes = metrics.check_labels(train.get("label"), test.get("label"), data.classes)
        if "input" in train:  # a baseline whose only representation is its input
            names = ("input",)
        found = probe([flat(train[name]) for name in names], train["label"], classes, self)
        best = int(np.argmax([score for score, _, _ in found]))
        score, chosen, head = found[best]
        place = {"chosen/representation": float(best)} if len(names) > 1 else {}
        return {"held_out_accuracy": score, **chosen, **place}, head(flat(test[names[best]])), test["label"]

    def _augmented(self, encoder, data) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
        """As `_probe`, the head trained by the loop on augmented images."""
        metrics.check_labels(data.train.labels(), data.test.labels(), data.classes)
        test = encoder.extract(data.test, ("cls",))
        tuner, every = self._tuner(data), np.arange(data.train.size)
        steps = tuner.steps(len(every))
        params = tuner.fit(every, seed=self.seed, steps=steps, source=encoder)
        mean, var = tuner.running_moments(params, every, seed=self.seed, steps=steps)
        x = (test["cls"] - mean) / np.sqrt(var + 1e-6)
        head = params["head"]
        return {}, x @ np.asarray(head["kernel"]) + np.asarray(head["bias"]), test["label"]

    def check(self, data: EvaluationData) -> None:
        """UserError for what labels, sizes and settings alone tell."""
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


def probe(
    xs: Sequence[Float[np.ndarray, "examples _"]],
    labels: Int[np.ndarray, "examples"],
    classes: int,
    settings: LinearProbe,
) -> list[tuple[float, dict[str, float], Linear]]:
    """The best head for each representation: its accuracy on the held-out part, what was chosen, the head."""
    kept, held = metrics.held_out(labels, settings.held_out, settings.seed)
    if settings.protocol == "lbfgs":
        return [_logistic(x, labels, classes, settings.l2, held) for x in xs]
    if settings.protocol == "mae":  # nothing to choose: all of the split is trained on
        heads = [found[0] for found in descend(xs, labels, classes, settings.descent, settings.seed)]
        return [(metrics.accuracy(head(x[held]), labels[held]), {}, head) for x, head in zip(xs, heads, strict=True)]
    grids = descend([x[kept] for x in xs], labels[kept], classes, settings.descent, settings.seed)
    found = []
    for x, heads in zip(xs, grids, strict=True):
        scores = [metrics.accuracy(head(x[held]), labels[held]) for head in heads]
        best = int(np.argmax(scores))
        lr, wd = settings.descent.heads[best]
        found.append((scores[best], {"chosen/lr": lr, "chosen/weight_decay": wd}, heads[best]))
    return found


def _logistic(x, labels, classes, strengths, held):
    problem = LogisticRegression(x, labels, classes)
    if not len(held) or len(strengths) == 1:
        best, start, score = strengths[0], None, float("nan")
    else:
        weights = np.ones(len(labels), np.float32)
        weights[held] = 0
        heads, start, scores = {}, None, {}
        for l2 in sorted(strengths, reverse=True):  # the stronger penalty's optimum is a good start for the next
            heads[l2] = start = problem.fit(l2, weights, start)
            scores[l2] = metrics.accuracy(problem.logits(start)[held], labels[held])
        best = max(scores, key=scores.get)
        score, start = scores[best], heads[best]
    head = problem.fit(best, start=start)
    return score, {"chosen/l2": best}, problem.linear(head)
