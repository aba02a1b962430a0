"""Metrics of a trained image classifier on the test split."""

import dataclasses

from ssl_jax.downstream.evaluator import EvaluationData, Evaluator, Records
from ssl_jax.downstream.evaluators.baselines import majority
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.metrics import classification as metrics


@dataclasses.dataclass(frozen=True)
class ClassificationMetrics(Evaluator):
    """The trained head of a "classification" task, under the evaluation transform.

    Yields `metrics.classification` and the majority class's accuracy; with several classes per example
    `metrics.several_classes`.
    """

    batch_size: int = 128

    requires_labels = ("train", "test")
    several_classes = True

    @property
    def representations(self) -> tuple[str, ...]:
        return ("logits",)

    @property
    def names(self) -> tuple[str, ...]:
        return (*metrics.NAMES, *metrics.SEVERAL, "majority/accuracy")

    def check(self, data: EvaluationData) -> None:
        metrics.check_labels(data.train.labels(), data.test.labels(), data.classes)

    def __call__(self, encoder: Encoder, data: EvaluationData) -> Records:
        self.check(data)
        test = encoder.extract(data.test, ("logits",), self.batch_size)
        if test["label"].ndim == 2:
            yield from metrics.several_classes(test["logits"], test["label"], data.classes)
            return
        yield from metrics.classification(test["logits"], test["label"], data.classes)
        yield majority(data.train.labels(), test["label"])
