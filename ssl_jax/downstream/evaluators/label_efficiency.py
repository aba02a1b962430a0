"""How few labels a representation needs: fine-tuned, from scratch and linearly probed on parts of the labels."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from ssl_jax.config import Duration
from ssl_jax.data.pipeline import balanced_subset
from ssl_jax.downstream.evaluators.baselines import flat, majority
from ssl_jax.downstream.evaluators.features import Encoder, EvaluationData
from ssl_jax.downstream.evaluators.finetune import FineTuner, Recipe, Scratch, same_or_longer, summary
from ssl_jax.downstream.evaluators.linear_probe import LinearProbe, probe
from ssl_jax.downstream.metrics import classification as metrics
from ssl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LabelEfficiency:
    """Test accuracy with `fractions` of the training labels: class-balanced subsets, one drawn for each seed, nested.

    From scratch is the same model under its own recipe, with its own learning rate (several in scratch.learning_rates are
    tried on a held-out fifth of the subset), the same augmentation and at least as many steps. The linear probe is logistic
    regression on frozen features, and on those of the baselines.

    Yields "1%/finetune/mean", "1%/finetune/stderr" (with several seeds), the same of "scratch", "linear_probe",
    "random_encoder/linear_probe" and so on, and "majority/accuracy". Fine-tuning is compared with from scratch seed by seed,
    on the same examples: "1%/finetune_minus_scratch/mean", its "stderr", and "1%/finetune_minus_scratch/standard_errors",
    how many of them the mean is.
    """

    fractions: tuple = (0.01, 0.1, 1.0)
    seeds: int = 3
    seed: int = 0
    finetune: Recipe = dataclasses.field(default_factory=Recipe)
    scratch: Scratch | None = Scratch()
    durations: tuple = ()  # of both, one for each fraction; (): the recipes' own
    linear_probe: LinearProbe | None = dataclasses.field(default_factory=lambda: LinearProbe(held_out=0.2))
    baselines: bool = True  # of the linear probe

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

    def check(self, data: EvaluationData) -> None:
        """UserError for what labels, sizes and recipes alone tell."""
        metrics.check_labels(data.train.labels(), data.test.labels(), data.classes)
        self._tuners(data)

    def _tuners(self, data: EvaluationData) -> dict[str, FineTuner]:
        tuners = {"finetune": FineTuner(self.finetune, data)}
        if self.scratch is not None:
            tuners["scratch"] = FineTuner(self.scratch.beside(self.finetune), data)
            for fraction, duration in zip(self.fractions, self.durations or [None] * len(self.fractions), strict=True):
                examples, what = (
                    len(self._part(data.train.labels(), fraction, self.seed)),
                    f"on {100 * fraction:g}% of the labels",
                )
                same_or_longer(tuners["scratch"], tuners["finetune"], examples, what, duration)
        return tuners

    def __call__(self, encoder: Encoder, data: EvaluationData) -> Iterator[tuple[str, float]]:
        labels, truth = data.train.labels(), data.test.labels()
        metrics.check_labels(labels, truth, data.classes)
        methods = self._tuners(data)
        for i, fraction in enumerate(self.fractions):
            percent = f"{100 * fraction:g}%"
            parts = [self._part(labels, fraction, self.seed + n) for n in range(self.seeds)]
            duration = self.durations[i] if self.durations else None
            found = {}
            for name, tuner in methods.items():
                source = encoder if name == "finetune" else None
                found[name] = self._runs(tuner, source, parts, tuner.steps(len(parts[0]), duration), truth, name, data.log)
                yield from summary(f"{percent}/{name}/", found[name], "mean")
            if "scratch" in found and self.seeds > 1:
                yield from self._comparison(percent, np.subtract(found["finetune"], found["scratch"]), data.log)
            if self.linear_probe is not None:
                parts = parts[:1] if fraction == 1 else parts  # nothing differs between seeds
                encoders = {"": encoder} | (encoder.baselines if self.baselines else {})
                for name, source in encoders.items():
                    scores = [self._probe(source, data, part) for part in parts]
                    yield from summary(f"{percent}/{name + '/' if name else ''}linear_probe/", scores, "mean")
        yield "majority/accuracy", majority(labels, truth)

    def _runs(self, tuner, source, parts, steps, truth, name, log) -> list[float]:
        """Test accuracy of each seed."""
        scores, rates = [], []
        for n, part in enumerate(parts):
            params, lr = tuner.fit_tuned(part, seed=self.seed + n, steps=steps, source=source)
            scores.append(metrics.accuracy(tuner.logits(params), truth))
            rates.append(lr)
        chosen = "" if rates[0] is None else f", learning rate {', '.join(f'{lr:g}' for lr in rates)}"
        log(f"{len(parts[0]):,} labels, {name}: {np.mean(scores):.4f} ({steps:,} steps{chosen})")
        return scores

    @staticmethod
    def _comparison(percent: str, gains, log) -> Iterator[tuple[str, float]]:
        """The mean gain over the seeds, its standard error, and the one divided by the other."""
        found = dict(summary("", list(gains), "mean"))
        mean, stderr = found["mean"], found["stderr"]
        yield from ((f"{percent}/finetune_minus_scratch/{key}", value) for key, value in found.items())
        if stderr > 0:
            yield f"{percent}/finetune_minus_scratch/standard_errors", mean / stderr
        verdict = "more" if mean > 2 * stderr else "not more"
        log(
            f"{percent} of the labels, fine-tuned minus from scratch: {mean:+.4f} ± {stderr:.4f} (standard error, {len(gains)}"
            f" seeds), {verdict} than two standard errors"
        )

    @staticmethod
    def _part(labels, fraction, seed):
        return np.arange(len(labels)) if fraction == 1 else balanced_subset(labels, fraction=fraction, seed=seed)

    def _probe(self, encoder: Encoder, data: EvaluationData, part: np.ndarray) -> float:
        name = self.linear_probe.representations[0]
        train, test = (encoder.extract(split, (name,)) for split in (data.train, data.test))
        classes = metrics.check_labels(train["label"], test["label"], data.classes)
        ((_, _, head),) = probe([flat(train[name])[part]], train["label"][part], classes, self.linear_probe)
        return metrics.accuracy(head(flat(test[name])), test["label"])
