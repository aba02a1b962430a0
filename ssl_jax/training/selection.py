"""Select the best checkpoint by a metric of the evaluation during training, and stop early without improvement."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ssl_jax.config import nearest
from ssl_jax.errors import UserError
from ssl_jax.training import sharding
from ssl_jax.training.settings import CheckpointSettings, TrainingSettings


@dataclasses.dataclass
class Selection:
    """The best value so far of the metric checkpoint.best; saved in checkpoints (`state`)."""

    metric: str | None  # None: nothing is selected
    mode: str = "max"
    patience: int | None = None  # evaluations without improvement after which training stops
    value: float | None = None
    step: int | None = None  # the step of the best value
    without: int = 0  # evaluations since the best value

    @classmethod
    def of(cls, saving: CheckpointSettings, training: TrainingSettings, extra: Mapping[str, Any]) -> "Selection":
        """Return a run's selection, restored from `extra`, the additional content of its checkpoint."""
        stored = extra.get("selection") or {}
        mode = saving.mode or "max"
        same = (stored.get("metric"), stored.get("mode")) == (saving.best, mode)
        return cls(**(stored if same else dict(metric=saving.best, mode=mode)), patience=training.patience)

    @property
    def over(self) -> bool:
        """Return whether the last `patience` evaluations did not improve the value."""
        return self.patience is not None and self.without >= self.patience

    def update(self, step: int, results: Mapping[str, float]) -> bool:
        """Record the results of the evaluation after `step`; return whether its state must be saved: if it is the best so
        far, or the last. A non-finite value is never the best. Raise UserError if the results lack the metric.
        """
        if self.metric is None:
            return False
        if self.metric not in results:
            raise UserError(
                f"checkpoint.best={self.metric!r}: is not among the evaluation's results{nearest(self.metric, results)}"
            )
        value = results[self.metric]
        better = math.isfinite(value) and (self.value is None or is_better(value, self.value, self.mode))
        if sharding.from_primary(better):
            self.value, self.step, self.without = value, step, 0
        else:
            self.without += 1
        return self.without == 0 or self.over

    def state(self) -> dict[str, Any]:
        """Return the selection as saved in a checkpoint."""
        return {name: getattr(self, name) for name in ("metric", "mode", "value", "step", "without")}


def is_better(value: float, than: float, mode: str) -> bool:
    """Return whether one value of a metric is better than another; mode: "max" or "min"."""
    return value > than if mode == "max" else value < than


def best_step(evaluations: Mapping[int, Mapping[str, Any]], metric: str, mode: str) -> int | None:
    """Return the step with the best finite value of `metric`, the earliest of equal ones.

    evaluations: step -> additional content of its checkpoint. An evaluation counts only for the step that it measured.
    """
    best: tuple[float, int] | None = None
    for step, extra in sorted(evaluations.items()):
        value = (extra.get("evaluation") or {}).get(metric) if extra.get("evaluated") == step else None
        if value is not None and math.isfinite(value) and (best is None or is_better(value, best[0], mode)):
            best = value, step
    return None if best is None else best[1]
