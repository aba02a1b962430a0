"""How few labels a representation needs: fine-tuned, from scratch and linearly probed on parts of the labels."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from ssl_jax.config import Duration
from ssl_jax.data.pipeline import balanced_subset
from ssl_jax.downstream.evaluator import EvaluationData, Evaluator, Records
from ssl_jax.downstream.evaluators.baselines import flat, majority
from ssl_jax.downstream.evaluators.features import Encoder, separately
from ssl_jax.downstream.evaluators.finetune import FineTuner, Recipe, Scratch, check_choice, same_or_longer
from ssl_jax.downstream.evaluators.linear_probe import LinearProbe, probe
from ssl_jax.downstream.metrics import classification as metrics
from ssl_jax.errors import UserError
from ssl_jax.reports.records import Record, over_runs


@dataclasses.dataclass(frozen=True)
class LabelEfficiency(Evaluator):
    """Test accuracy with `fractions` of the training labels: class-balanced subsets, one drawn for each seed, nested.

    With several classes per example, mean average precision, with subsets that are stratified by each example's rarest class.

    From scratch is the same model under its own recipe, with its own learning rate (several in scratch.learning_rates are
    tried on a held-out fifth of the subset), the same augmentation and at least as many steps. The linear probe is logistic
    regression on frozen features, and on those of the baselines.

    Yields the accuracy of fine-tuning under "1%" and so on with the baseline "scratch" beside it, of the probe under
    "1%/linear_probe" with the encoder's baselines, and the baseline "majority"; of several seeds the mean and its standard
    error. Fine-tuning is compared with training from scratch on the same examples for each seed: "finetune_minus_scratch",
    its standard error, and their ratio. In results.json these are "1%/finetune/mean", "1%/scratch/mean",
    "1%/linear_probe/mean", "1%/random_encoder/linear_probe/mean" and "1%/finetune_minus_scratch/mean".
    """

    fractions: tuple = (0.01, 0.1, 1.0)
    seeds: int = 3
    seed: int = 0
    finetune: Recipe = dataclasses.field(default_factory=Recipe)
    scratch: Scratch | None = Scratch()
    durations: tuple = ()  # of both, one for each fraction; (): the recipes' own
    linear_probe: LinearProbe | None = dataclasses.field(default_factory=lambda: LinearProbe(held_out=0.2))
    baselines: bool = True  # of the linear probe

    requires_labels = ("train", "test")
    several_classes = True

    def __post_init__(self):
        super().__post_init__()
        if not self.fractions or any(not isinstance(f, int | float) or not 0 < f <= 1 for f in self.fractions):
            raise UserError(f"fractions={self.fractions!r}: must be numbers in (0, 1]")
        if self.seeds < 1:
            raise UserError(f"seeds={self.seeds}: must be at least 1")
        if self.durations and len(self.durations) != len(self.fractions):
            raise UserError(f"durations={self.durations!r}: give one for each of the {len(self.fractions)} fractions")
        for text in self.durations:
            Duration.parse(text, "durations")

    @property
    def representations(self) -> tuple[str, ...]:
        return self.linear_probe.representations[:1] if self.linear_probe is not None else ()

    def check(self, data: EvaluationData) -> None:
        metrics.check_labels(data.train.labels(), data.test.labels(), data.classes)
        tuners = self._tuners(data)
        for fraction in self.fractions:
            labels = data.train.labels()[self._part(data.train.labels(), fraction, self.seed)]
            for tuner in tuners.values():
                check_choice(tuner.recipe, labels, f"with {100 * fraction:g}% of the labels ")

    def _tuners(self, data: EvaluationData) -> dict[str, FineTuner]:
        tuners = {"finetune": FineTuner(self.finetune, data)}
        if self.scratch is not None:
            tuners["scratch"] = FineTuner(self.scratch.completed(self.finetune), data)
            for fraction, duration in zip(self.fractions, self.durations or [None] * len(self.fractions), strict=True):
                examples = len(self._part(data.train.labels(), fraction, self.seed))
                what = f"on {100 * fraction:g}% of the labels"
                same_or_longer(tuners["scratch"], tuners["finetune"], examples, what, duration)
        return tuners

    @property
    def names(self) -> tuple[str, ...]:
        kinds = ("finetune", "scratch", "linear_probe", "*/linear_probe", "finetune_minus_scratch")
        found = [f"{100 * f:g}%/{kind}/{value}" for f in self.fractions for kind in kinds for value in ("mean", "stderr")]
        extra = [f"{100 * f:g}%/finetune_minus_scratch/standard_errors" for f in self.fractions]
        return (*found, *extra, "majority/accuracy")

    def __call__(self, encoder: Encoder, data: EvaluationData) -> Records:
        labels = data.train.labels()
        metrics.check_labels(labels, data.test.labels(), data.classes)
        methods = data.once(("tuners", repr(self)), lambda: self._tuners(data))
        for i, fraction in enumerate(self.fractions):
            percent = f"{100 * fraction:g}%"
            parts = [self._part(labels, fraction, self.seed + n) for n in range(self.seeds)]
            duration = self.durations[i] if self.durations else None
            found = {}
            for name, tuner in methods.items():
                options = dict(parts=parts, steps=tuner.steps(len(parts[0]), duration), name=name, log=data.log)
                if name == "finetune":
                    found[name] = self._runs(tuner, encoder, **options)
                else:
                    found[name] = data.once((repr(self), name, i), functools.partial(self._runs, tuner, None, **options))
                baseline = None if name == "finetune" else name
                fields = dict(setting=percent, baseline=baseline, path=f"{percent}/{name}/mean", headline=baseline is None)
                yield over_runs(found[name], **fields)
            if "scratch" in found and self.seeds > 1:
                gains = [a.value - b.value for a, b in zip(found["finetune"], found["scratch"], strict=True)]
                yield from self._comparison(percent, gains, data.log)
            if self.linear_probe is not None:
                parts = parts[:1] if fraction == 1 else parts  # nothing differs between seeds
                encoders = {None: encoder} | (encoder.baselines if self.baselines else {})
                for name, source in encoders.items():
                    measure = functools.partial(self._probes, data, parts)
                    scores = measure(source) if name is None else source.result(data, (repr(self), i), separately(measure))
                    path = f"{percent}/{name + '/' if name else ''}linear_probe/mean"
                    yield over_runs(scores, setting=f"{percent}/linear_probe", baseline=name, path=path)
        if labels.ndim == 1:
            yield majority(labels, encoder.extract(data.test, ())["label"])

    def _runs(self, tuner: FineTuner, source: Encoder | None, parts, steps: int, name: str, log) -> list[Record]:
        """Return `headline_metric` of each seed on the test split."""
        scores, rates = [], []
        for n, part in enumerate(parts):
            params, lr = tuner.fit_tuned(part, seed=self.seed + n, steps=steps, source=source)
            scores.append(metrics.headline_metric(*tuner.logits(params)))
            rates.append(lr)
        chosen = "" if rates[0] is None else f", learning rate {', '.join(f'{lr:g}' for lr in rates)}"
        mean = np.mean([score.value for score in scores])
        log(f"{len(parts[0]):,} labels, {name}: {mean:.4f} ({steps:,} steps{chosen})")
        return scores

    @staticmethod
    def _comparison(percent: str, gains: list[float], log) -> Records:
        """Yield the mean gain over the seeds with its standard error, and the one divided by the other."""
        name = "finetune_minus_scratch"
        gain = over_runs([Record(name, value) for value in gains], setting=percent, path=f"{percent}/{name}/mean")
        yield gain
        if gain.stderr > 0:
            yield Record("standard_errors", gain.value / gain.stderr, setting=f"{percent}/{name}")
        verdict = "more" if gain.value > 2 * gain.stderr else "not more"
        log(
            f"{percent} of the labels, fine-tuned minus from scratch: {gain.value:+.4f} ± {gain.stderr:.4f} (standard error,"
            f" {len(gains)} seeds), {verdict} than two standard errors"
        )

    @staticmethod
    def _part(labels, fraction, seed):
        return np.arange(len(labels)) if fraction == 1 else balanced_subset(labels, fraction=fraction, seed=seed)

    def _probes(self, data: EvaluationData, parts: Sequence[np.ndarray], encoder: Encoder) -> list[Record]:
        return [self._probe(encoder, data, part) for part in parts]

    def _probe(self, encoder: Encoder, data: EvaluationData, part: np.ndarray) -> Record:
        """Return `headline_metric` of a probe that is trained on the examples `part` of the training split."""
        name = self.linear_probe.representations[0]
        train, test = (encoder.extract(split, (name,)) for split in (data.train, data.test))
        classes = metrics.check_labels(train["label"], test["label"], data.classes)
        rows = np.flatnonzero(np.isin(train["index"], part))
        (choice,) = probe([flat(train[name])[rows]], train["label"][rows], classes, self.linear_probe, data.log)
        return metrics.headline_metric(choice.head(flat(test[name])), test["label"])
