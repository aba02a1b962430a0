"""Records: measured numbers with a description of the measurement, made by evaluators and read by reports."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ssl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Record:
    """One measured number.

    `stderr` is the standard error of `value`: over the `n` examples of the test split, or over `runs` seeds or draws if
    there are several.
    """

    metric: str  # "accuracy", "R@1", "loss" ...
    value: float
    baseline: str | None = None  # the baseline that was measured instead of the representation, such as "random_encoder"
    setting: str = ""  # distinguishes measurements of one evaluator: "k=20", "5-shot", "text_to_image"
    class_name: str | None = None  # the class, for a value of one class
    n: int | None = None  # number of examples or tokens over which the value is a mean
    stderr: float | None = None
    runs: int = 1
    headline: bool = False  # shown in the short table with its baselines
    lower_is_better: bool = False
    path: str = ""  # the flat name under the evaluator if `name` cannot derive it
    evaluator: str = ""  # its section of `config.downstream`

    @property
    def name(self) -> str:
        """Return the key in results.json, "linear_probe/random_encoder/accuracy", which is never parsed."""
        if self.path:
            return "/".join(part for part in (self.evaluator, self.path) if part)
        metric = self.metric
        if self.class_name is not None:
            prefix = "per_class" if self.metric == "accuracy" else f"per_class_{self.metric}"
            metric = f"{prefix}/{self.class_name}"
        return "/".join(part for part in (self.evaluator, self.baseline, self.setting, metric) if part)

    def of(self, **fields: Any) -> "Record":
        """Return the record with other values of `fields`."""
        return dataclasses.replace(self, **fields)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields if f.name != "evaluator" and getattr(self, f.name) != f.default}


def over_examples(metric: str, values: Shaped[np.ndarray, "examples"], **fields: Any) -> Record:
    """Return the mean of one number or truth value per example with its standard error (of hits: sqrt(p (1 - p) / n))."""
    values = np.asarray(values, np.float64)
    stderr = float(values.std() / np.sqrt(len(values)))
    return Record(metric, float(values.mean()), n=len(values), stderr=stderr, **fields)


def over_runs(records: Sequence[Record], **fields: Any) -> Record:
    """Return the mean over runs that differ in the seed, with its standard error; a single record is returned unchanged."""
    first = records[0].of(**fields)
    if len(records) == 1:
        return first
    values = [record.value for record in records]
    return first.of(value=float(np.mean(values)), stderr=float(np.std(values, ddof=1) / len(values) ** 0.5), runs=len(values))


def flat(records: Iterable[Record]) -> dict[str, float]:
    """Return name -> value as in results.json, with ".../stderr" for a mean over several runs.

    Raise ValueError if two records have the same name.
    """
    found: dict[str, float] = {}

    def add(name: str, value: float) -> None:
        if name in found:
            raise ValueError(f"two results are named {name!r}")
        found[name] = value

    for record in records:
        add(record.name, float(record.value))
        if record.runs > 1 and record.stderr is not None:
            add(f"{record.name.rpartition('/')[0]}/stderr", float(record.stderr))
    return found


def to_json(records: Iterable[Record]) -> dict[str, list[dict[str, Any]]]:
    """Return evaluator -> its records as in records.json."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault(record.evaluator, []).append(record.to_json())
    return found


def from_json(stored: Mapping[str, Any], path: str = "records.json") -> list[Record]:
    """Return the records that `to_json` stored; raise UserError for an invalid record."""
    found = []
    for evaluator, entries in stored.items():
        for entry in entries if isinstance(entries, list) else [entries]:
            try:
                record = Record(evaluator=evaluator, **entry)
                found.append(record.of(value=float(record.value)))
            except (TypeError, ValueError):
                raise UserError(
                    f"{path}: {evaluator} has {entry!r}, which is not a valid record; evaluate the run again"
                ) from None
    return found
