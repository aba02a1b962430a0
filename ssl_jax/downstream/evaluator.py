"""The contract between an evaluator and what runs it."""

import dataclasses
import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssl_jax.errors import UserError
from ssl_jax.reports.records import Record

Records = Iterator[Record]


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """What an evaluator may read: the two splits; evaluators that train also use the rest."""

    train: Any  # data.pipeline.Dataset
    test: Any
    config: ConfigDict | None = None  # the run's config, its `data` those of `train` and `test`
    mesh: Mesh | None = None
    workdir: str | None = None
    log: Callable[[str], None] = lambda text: None  # one line of progress
    shared: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)  # see `once`; of all copies

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Return `compute()`, called once for these splits; runs that share a program share it.

        The value must not depend on the encoder, nor on the numbers in which such runs differ (seed, learning rate, weight
        decay).
        """
        place = (key, id(self.train), id(self.test))
        if place not in self.shared:
            self.shared[place] = compute(), self  # the reference keeps the ids of the splits unique
        return self.shared[place][0]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.train.info.classes)

    @property
    def same_split(self) -> bool:
        """Whether the test split is the training split: the same examples of the same source."""
        train, test = self.train, self.test
        return test is train or (identity(train.source), train.size) == (identity(test.source), test.size)


def identity(source) -> tuple:
    """Return what tells two sources apart: the name and, of a part of one, a digest of its indices (recursively)."""
    if hasattr(source, "parent"):
        return (*identity(source.parent.source), hashlib.sha256(np.ascontiguousarray(source.indices)).hexdigest())
    return (source.name,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Base of all evaluators: a frozen dataclass of settings, called with an encoder and the data.

    The same object runs during training, at the end, and over a checkpoint of another process, and gives the same numbers
    each time. A subclass states what is its own and overrides what it needs of the rest.
    """

    data: Mapping | tuple | None = None  # laid over the run's section `data`; (train, test): its two sources
    weights: str = "ema"  # "ema": the moving average, where the run keeps one; "student": the trained parameters

    requires_labels: ClassVar[tuple[str, ...]] = ()  # of "train", "test": splits without whose labels nothing is measured
    several_classes: ClassVar[bool] = False  # whether an example may have several classes
    one_class_because: ClassVar[str] = ""  # why it may not
    excludes_itself: ClassVar[bool] = False  # an example of the test split never serves as its own training example
    notes: ClassVar[Mapping[str, str]] = {}  # by the name of a task: a caution printed beside its result

    def __post_init__(self):
        if self.weights not in ("ema", "student"):
            raise UserError(f'weights={self.weights!r}: must be "ema" or "student"')
        pair = isinstance(self.data, tuple) and len(self.data) == 2 and all(isinstance(uri, str) for uri in self.data)
        if not (self.data is None or isinstance(self.data, Mapping) or pair):
            raise UserError(
                f"data={self.data!r}: must be (train, test), two sources, or a section such as dict(train=..., test=...)"
            )

    @property
    def representations(self) -> tuple[str, ...]:
        """Names that will be asked of `Encoder.extract`, so that one pass serves every evaluator."""
        return ()

    @property
    def sources(self) -> dict[str, Any]:
        """`data` as a section."""
        return dict(zip(("train", "test"), self.data, strict=True)) if isinstance(self.data, tuple) else dict(self.data or {})

    def missing_labels(self, data: EvaluationData) -> str | None:
        """Return why nothing can be measured: a split without the labels that this evaluator needs, or a single class to learn.

        None if the labels are there.
        """
        splits = {"train": data.train, "test": data.test}
        lacking = [splits[name].source.name for name in self.requires_labels if splits[name].labels() is None]
        if lacking:
            return f"{' and '.join(dict.fromkeys(lacking))} {'has' if len(set(lacking)) == 1 else 'have'} no labels"
        if "train" in self.requires_labels and len(data.classes) == 1:
            return f"{data.train.source.name} has a single class ({data.classes[0]})"
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """Patterns (`fnmatch`) of the names that its results have in results.json after its own; (): not known ahead."""
        return ()

    def check(self, data: EvaluationData) -> None:
        """Raise UserError for what labels, sizes and settings alone show to be wrong; called before training."""

    def __call__(self, encoder: Any, data: EvaluationData) -> Records:
        """Yield what was measured. `encoder` is a `features.Encoder` or a baseline with its interface."""
        raise NotImplementedError
