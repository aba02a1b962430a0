"""The evaluators of one run: the data and the weights that each reads, the checks before training, the records."""

import dataclasses
import fnmatch
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from ssl_jax.config import look_up
from ssl_jax.downstream import EVALUATORS
from ssl_jax.downstream.evaluator import EvaluationData, Evaluator
from ssl_jax.downstream.evaluators.baselines import InputEncoder, baselines
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.errors import UserError
from ssl_jax.reports.records import Record

AUGMENTATION = ("augment", "views")  # of a section `data`: without influence on the evaluation transform


class Evaluation:
    """Runs a run's evaluators by name.

    Args:
        evaluators: by section name.
        task: the run's task.
        data: what an evaluator without `data` of its own reads.
        build: sources (a section laid over the run's `data`) -> (train, test, config), read as the encoder's own images or
            texts are.
        seed: of the run.
    """

    def __init__(
        self,
        evaluators: Mapping[str, Evaluator],
        task: Any,
        data: EvaluationData,
        build: Callable[[Mapping[str, Any]], EvaluationData],
        *,
        seed: int = 0,
    ):
        self.evaluators, self.task, self.data, self.build, self.seed = evaluators, task, data, build, seed

    @functools.cached_property
    def planned(self) -> tuple[str, ...]:
        """Every representation that an evaluator will ask for. One pass serves all, and is the same whichever runs first."""
        return tuple(dict.fromkeys(name for e in self.evaluators.values() for name in e.representations))

    @functools.cached_property
    def baselines(self) -> dict[str, Encoder]:
        """Encoders that learnt nothing; they stay as they are while training goes on, and so do their features.

        Runs that share a program share the one that returns its input.
        """
        found = baselines(self.task, self.data.mesh, seed=self.seed, planned=self.planned)
        shared = lambda name, encoder: self.data.once(("baseline", name), lambda: encoder)
        return {name: shared(name, e) if isinstance(e, InputEncoder) else e for name, e in found.items()}

    def encoder(self, params: Any, cache: Any = None, checkpoint: str | None = None) -> Encoder:
        """Return the encoder with `params` beside its baselines; `cache` and `checkpoint` as in `Encoder`."""
        return Encoder(
            self.task, params, self.data.mesh, seed=self.seed, baselines=self.baselines, planned=self.planned, cache=cache,
            checkpoint=checkpoint,
        )  # fmt: skip

    def data_of(self, name: str) -> EvaluationData:
        """Return what the evaluator `name` reads."""
        sources = self.evaluators[name].sources
        data = self.data
        if set(sources) - set(AUGMENTATION):
            key = json.dumps(sources, sort_keys=True, default=str)
            data = self.data.once(("data", key), lambda: self.build(sources))
        return data

    def check(self) -> None:
        """Check every evaluator against labels, sizes and settings before training.

        Logs which are skipped for want of labels. Raises UserError for what cannot work.
        """
        for name, evaluator in self.evaluators.items():
            try:
                data = self.data_of(name)
                missing = evaluator.missing_labels(data)
                if missing is None:
                    check_number_of_classes(name, evaluator, data)
                    evaluator.check(data)
            except UserError as error:
                raise UserError(f"downstream.{name}: {error}; --config.downstream.{name}=None omits this evaluator") from None
            if missing is not None:
                self.data.log(f"{name}: skipped, {missing}")

    @property
    def measured(self) -> tuple[str, ...]:
        """Return the names of the evaluators that have the labels they need."""
        return tuple(
            name for name, evaluator in self.evaluators.items() if evaluator.missing_labels(self.data_of(name)) is None
        )

    def cautions(self) -> list[str]:
        """Return a warning for each source whose test split is its training split, naming the evaluators that read it."""
        found: dict[str, list[str]] = {}
        for name in self.measured:
            data = self.data_of(name)
            if data.same_split and not self.evaluators[name].excludes_itself:
                found.setdefault(data.test.source.name, []).append(name)
        return [
            f"{source} is both data.train and data.test: {', '.join(names)} will be measured on training examples; give other"
            " data as data.test, or data.holdout in its place"
            for source, names in found.items()
        ]

    def measure(self, name: str, encoders: Mapping[str, Encoder], **changes: Any) -> list[Record]:
        """Return the records of the evaluator `name`; none where labels are missing.

        Args:
            encoders: by weights, "ema" and "student".
            changes: other values of fields of `EvaluationData`, such as `workdir` and `log`.
        """
        evaluator, data = self.evaluators[name], dataclasses.replace(self.data_of(name), **changes)
        if evaluator.missing_labels(data) is not None:
            return []
        found = list(evaluator(encoders[evaluator.weights], data))
        for record in found if evaluator.names else ():
            if not any(fnmatch.fnmatchcase(record.name, pattern) for pattern in evaluator.names):
                raise ValueError(f"{type(evaluator).__name__}.names lacks {record.name!r}")
        if data.train is not self.data.train:  # those of the run's own data stand by themselves
            skipped = {"train": data.train.skipped(), "test": data.test.skipped()}
            found += [Record("skipped", float(count), setting=split) for split, count in skipped.items() if count]
        return [record.of(evaluator=name) for record in found]


def check_number_of_classes(name: str, evaluator: Evaluator, data: EvaluationData) -> None:
    """Raise UserError where examples have several classes and the evaluator takes one of each."""
    splits = {"train": data.train, "test": data.test}
    if not evaluator.several_classes and any(splits[name].labels().ndim == 2 for name in evaluator.requires_labels):
        taking = [known for known in EVALUATORS if look_up(EVALUATORS, known, "downstream").several_classes]
        raise UserError(
            f"takes one class an example{evaluator.one_class_because}, but here an example may have several; those that take "
            f"several are {', '.join(taking)}"
        )
