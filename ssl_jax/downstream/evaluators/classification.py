"""How well a trained classifier of images does on the test split."""

import dataclasses
from collections.abc import Iterator

from ssl_jax.downstream.evaluators.baselines import majority
from ssl_jax.downstream.evaluators.features import Encoder, EvaluationData
from ssl_jax.downstream.metrics import classification as metrics


@dataclasses.dataclass(frozen=True)
class ClassificationMetrics:
    """The trained head of a "classification" task, under the evaluation transform.

    Yields "accuracy", "top5", "ece", "per_class/<name>" and "majority/accuracy".
    """

    batch_size: int = 128

    requires_labels = True

    def check(self, data: EvaluationData) -> None:
        """UserError for what labels and sizes alone tell."""
        metrics.check_labels(data.train.labels(), data.test.labels(), data.classes)

    def __call__(self, encoder: Encoder, data: EvaluationData) -> Iterator[tuple[str, float]]:
        self.check(data)
        test = encoder.extract(data.test, ("logits",), self.batch_size)
        yield from metrics.classification(test["logits"], test["label"], data.classes).items()
        yield "majority/accuracy", majority(data.train.labels(), test["label"])
