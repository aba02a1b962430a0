"""How few labels a representation needs: fine-tuned, from scratch and linearly probed on parts of the labels."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from ssl_jax.config import Duration
from ssl_jax.data.pipeline import balanced_subset
from ssl_jax.downstream import metrics
from ssl_jax.downstream.baselines import flat, majority
from ssl_jax.downstream.features import Encoder, EvaluationData
from ssl_jax.downstream.finetune import FineTuner, Recipe, same_or_longer, summary
from ssl_jax.downstream.linear_probe import LinearProbe, probe
from ssl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LabelEfficiency:
    """Test accuracy with `fractions` of the training labels: class-balanced subsets, one drawn for each seed, nested.

    From scratch is the same model under its own recipe, with its own learning rate (several in scratch.learning_rates are
    tried on a held-out fifth of the subset) and at least as many steps. The linear probe is logistic regression on frozen
    features. Yields "1%/finetune/mean", "1%/finetune/stderr" (with several seeds), the same of "scratch" and
    "linear_probe", and "majority/accuracy".
    """

    fractions: tuple = (0.01, 0.1, 1.0)
    seeds: int = 3
    seed: int = 0
    finetune: Recipe = dataclasses.field(default_factory=Recipe)
    scratch: Recipe | None = dataclasses.field(
        default_factory=lambda: Recipe(
            optimizer=dict(name="adamw", lr=1e-3, weight_decay=0.05, warmup="10 %"), learning_rates=(5e-4, 1e-3, 2e-3)
        )
    )
    durations: tuple = ()  # of both, one for each fraction; (): the recipes' own
    linear_probe: LinearProbe | None = dataclasses.field(default_factory=lambda: LinearProbe(held_out=0.2))

    requires_labels = True

    def __post_init__(self):
        if not self.fractions or any(not isinstance(f, int | float) or not 0 < f <= 1 for f in self.fractions):
            raise UserError(f"fractions={self.fractions!r}: must be numbers in (0, 1]")
        if self.seeds < 1:
            raise UserError(f"seeds={self.seeds}: must be at least 1")
        if self.durations and len(self.durations) != len(self.fractions):
            raise UserError(f"durations={self.durations!r}: give one for each of the {len(self.fractions)} fractions")
        for text in self.durations:
            Duration.parse(text, "durations")

    def __call__(self, encoder: Encoder, data: EvaluationData) -> Iterator[tuple[str, float]]:
        labels, truth = data.train.labels(), data.test.labels()
        classes = metrics.check_labels(labels, truth, data.classes)
        methods = {"finetune": FineTuner(self.finetune, data)}
        if self.scratch is not None:
            methods["scratch"] = FineTuner(self.scratch, data)
        for i, fraction in enumerate(self.fractions):
            percent = f"{100 * fraction:g}%"
            parts = [self._part(labels, fraction, self.seed + n) for n in range(self.seeds)]
            duration = self.durations[i] if self.durations else None
            steps = {name: tuner.steps(len(parts[0]), duration) for name, tuner in methods.items()}
            if "scratch" in steps:
                same_or_longer(steps["scratch"], steps["finetune"], f"on {percent} of the labels")
            for name, tuner in methods.items():
                scores, rates = [], []
                for n, part in enumerate(parts):
                    source = encoder if name == "finetune" else None
                    params, lr = tuner.fit_tuned(part, seed=self.seed + n, steps=steps[name], source=source)
                    scores.append(metrics.accuracy(tuner.logits(params), truth))
                    rates.append(lr)
                chosen = "" if rates[0] is None else f", learning rate {', '.join(f'{lr:g}' for lr in rates)}"
                data.log(f"{len(parts[0]):,} labels, {name}: {np.mean(scores):.4f} ({steps[name]:,} steps{chosen})")
                yield from summary(f"{percent}/{name}/", scores, "mean")
            if self.linear_probe is not None:
                scores = [self._probe(encoder, data, part, classes) for part in parts]
                yield from summary(f"{percent}/linear_probe/", scores, "mean")
        yield "majority/accuracy", majority(labels, truth)

    @staticmethod
    def _part(labels, fraction, seed):
        return np.arange(len(labels)) if fraction == 1 else balanced_subset(labels, fraction=fraction, seed=seed)

    def _probe(self, encoder: Encoder, data: EvaluationData, part: np.ndarray, classes: int) -> float:
        name = self.linear_probe.representations[0]
        train, test = (encoder.extract(split, (name,)) for split in (data.train, data.test))
        _, _, head = probe(flat(train[name])[part], train["label"][part], classes, self.linear_probe)
        return metrics.accuracy(head(flat(test[name])), test["label"])
