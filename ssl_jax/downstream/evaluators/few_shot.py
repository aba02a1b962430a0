"""Few-shot classification by ridge regression, in closed form."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from ssl_jax.downstream.evaluator import EvaluationData, Evaluator, Records
from ssl_jax.downstream.evaluators.baselines import flat, majority
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.metrics.classification import accuracy, best, check_finite, check_labels, hits
from ssl_jax.errors import UserError
from ssl_jax.reports.records import over_examples, over_runs


@dataclasses.dataclass(frozen=True)
class FewShot(Evaluator):
    """Ridge regression of +-1 targets on a few examples of each class (the protocol of Kolesnikov et al. 2020, BiT).

    The examples are drawn `draws` times. For each number of shots, the strength is selected by the mean accuracy over the
    draws on other training examples. Yields "5-shot/accuracy" for each number of shots, the mean over the draws with its
    standard error, and the same for each baseline. The headline is 10 shots, or else the largest number.
    """

    representation: str = "mean"
    shots: tuple = (1, 5, 10, 25)  # examples of each class
    draws: int = 3
    l2: tuple = tuple(2.0**p for p in range(-10, 21, 2))
    held_out: int = 2000  # training examples on which the strength is selected
    baselines: bool = True
    seed: int = 0

    requires_labels = ("train", "test")
    one_class_because = " (an example of several classes would be a shot of each, so that no class has N shots)"

    def __post_init__(self):
        super().__post_init__()
        if not self.shots or any(not isinstance(n, int) or n < 1 for n in self.shots):
            raise UserError(f"shots={self.shots!r}: must be one or more positive whole numbers")
        if self.draws < 1:
            raise UserError(f"draws={self.draws}: must be at least 1")
        if not self.l2 or any(v <= 0 for v in self.l2):
            raise UserError(f"l2={self.l2!r}: must be one or more positive numbers")

    @property
    def representations(self) -> tuple[str, ...]:
        return (self.representation,)

    def check(self, data: EvaluationData) -> None:
        labels = data.train.labels()
        draw(labels, check_labels(labels, data.test.labels(), data.classes), max(self.shots), self.seed, data.classes)

    @property
    def names(self) -> tuple[str, ...]:
        return ("*-shot/accuracy", "*-shot/stderr", "majority/accuracy")

    def __call__(self, encoder: Encoder, data: EvaluationData) -> Records:
        yield from self._measure(encoder, data, None)
        if self.baselines:
            for name, baseline in encoder.baselines.items():
                yield from self._measure(baseline, data, name)
            train, test = (encoder.extract(split, ())["label"] for split in (data.train, data.test))
            yield majority(train, test)

    def _measure(self, encoder: Encoder, data: EvaluationData, baseline: str | None) -> Records:
        train, test = (encoder.extract(split, (self.representation,)) for split in (data.train, data.test))
        classes = check_labels(train.get("label"), test.get("label"), data.classes)
        x, labels, xt = flat(train[self.representation]), train["label"], flat(test[self.representation])
        headline = 10 if 10 in self.shots else max(self.shots)
        for shots in dict.fromkeys(self.shots):
            score, draws = np.zeros(len(self.l2)), []
            for i in range(self.draws):
                drawn = draw(labels, classes, shots, self.seed + i, data.classes)
                rest = np.setdiff1d(np.arange(len(labels)), drawn)
                rest = np.random.default_rng(self.seed + i).permutation(rest)[: self.held_out]
                solutions = ridge(x[drawn], signs(labels[drawn], classes), self.l2)
                if len(rest):
                    score += [accuracy(x[rest] @ w + b, labels[rest]) for w, b in solutions]
                draws.append(solutions)
            chosen, found = best(list(score)), []
            for solutions in draws:
                logits = xt @ solutions[chosen][0] + solutions[chosen][1]
                check_finite(logits, f"{shots}-shot logits")
                found.append(over_examples("accuracy", hits(logits, test["label"])))
            yield over_runs(found, setting=f"{shots}-shot", baseline=baseline, headline=shots == headline and not baseline)


def draw(
    labels: Int[np.ndarray, "examples"], classes: int, shots: int, seed: int, names: Sequence[str] = ()
) -> Int[np.ndarray, "drawn"]:
    """Return indices of `shots` examples of every class, drawn by `seed`; smaller draws are subsets of larger ones."""
    random = np.random.default_rng(seed)
    found = []
    for label in range(classes):
        members = random.permutation(np.flatnonzero(labels == label))
        if len(members) < shots:
            name = names[label] if names else label
            raise UserError(f"shots={shots}: class {name} has only {len(members)} training examples; ask for fewer shots")
        found.append(members[:shots])
    return np.concatenate(found)


def signs(labels: Int[np.ndarray, "examples"], classes: int) -> Float[np.ndarray, "examples classes"]:
    """Return +1 for the example's class, -1 for the others."""
    return np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)


def ridge(
    x: Float[np.ndarray, "examples dim"], y: Float[np.ndarray, "examples classes"], strengths: Sequence[float]
) -> list[tuple[Float[np.ndarray, "dim classes"], Float[np.ndarray, "classes"]]]:
    """Return for each strength the (W, b) that minimises |x W + b - y|^2 + strength |W|^2, in f64.

    One eigendecomposition is used for all strengths: of the covariance, or of the Gram matrix if that is smaller.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    x, y = x - x_mean, y - y_mean
    tall = len(x) > x.shape[1]
    values, vectors = np.linalg.eigh(x.T @ x if tall else x @ x.T)
    target = vectors.T @ (x.T @ y if tall else y)
    back = vectors if tall else x.T @ vectors
    weights = [back @ (target / (np.maximum(values, 0) + strength)[:, None]) for strength in strengths]
    return [(w, y_mean - x_mean @ w) for w in weights]
