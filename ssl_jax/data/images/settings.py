"""The settings of the config's section `data` that all kinds of data with images share: sources, splits, classes, size."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.data.images.normalization import NORMALIZATIONS
from ssl_jax.data.labels import match_classes
from ssl_jax.data.pipeline import SAMPLING, Dataset, subset
from ssl_jax.data.sources import TABLES, Source, load_source
from ssl_jax.data.sources.image_table import require_images
from ssl_jax.data.splits import held_out
from ssl_jax.errors import UserError
from ssl_jax.task import DataInfo


@dataclasses.dataclass(frozen=True)
class ImageDataSettings:
    """The sources of images, and the evaluation transform.

    Without `test`, a random share `holdout` of the training source is held out as test set: by a hash of each example's name
    (of its content, for arrays), so that the split is the same in every run and does not change when the source grows.
    Evaluation scales an image so that `image_size` is `eval_crop` of it in the tighter direction, and crops centrally; an image
    of that size is unchanged.
    """

    train: str
    batch_size: int
    test: str | None = None
    holdout: float = 0.1  # share of the training source that is held out without `test`
    image_size: int | tuple | None = None  # int or (height, width); required if images differ in size
    eval_crop: float = 0.875  # share of an image that evaluation crops, in the tighter direction
    normalize: str | tuple | None = "dataset"  # "dataset", "imagenet", "half", "clip", None ([0, 1]) or (means, stds)
    workers: int = 0  # processes that decode; 0: threads of this process
    on_bad_example: str = "error"  # or "skip" (and count) unreadable examples and those without a label
    classes: tuple = ()  # class names in their order; default: the training source's
    unknown_classes: str = "error"  # or "skip" (and count) test examples of a class that training does not have
    columns: Mapping | None = None  # of a table: dict(image=..., text=..., label=...), None to skip one; default: usual names
    label_separator: str | None = None  # between the classes in a table's cell, if examples have several
    sampling: str = "uniform"  # in training; "class_balanced" draws every class equally often
    dir: str | None = None  # folder of prepared TFDS data; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: must be at least 1")
        if not 0 <= self.holdout < 1:
            raise UserError(f"holdout={self.holdout}: must lie in [0, 1)")
        sizes = (self.image_size,) if isinstance(self.image_size, int) else self.image_size or ()
        if any(not isinstance(n, int) or not 1 <= n <= 16384 for n in sizes) or len(sizes) > 2:
            raise UserError(f"image_size={self.image_size}: must be a number of pixels or (height, width)")
        if not 0 < self.eval_crop <= 1:
            raise UserError(f"eval_crop={self.eval_crop}: must lie in (0, 1]")
        if isinstance(self.normalize, str) and self.normalize not in ("dataset", *NORMALIZATIONS):
            known = ", ".join(NORMALIZATIONS)
            raise UserError(f"normalize={self.normalize!r}: must be dataset, {known}, None or (means, stds)")
        if not 0 <= self.workers <= 256:
            raise UserError(f"workers={self.workers}: must lie in [0, 256]")
        for name in ("on_bad_example", "unknown_classes"):
            if getattr(self, name) not in ("error", "skip"):
                raise UserError(f'{name}={getattr(self, name)!r}: must be "error" or "skip"')
        if self.sampling not in SAMPLING:
            raise UserError(f"sampling={self.sampling!r}: must be one of {', '.join(SAMPLING)}")
        if self.label_separator == "":
            raise UserError('label_separator="": must be at least one character, such as ","')
        for role, column in (self.columns or {}).items():
            if role not in ("image", "text", "label"):
                raise UserError(f"columns.{role}: unknown; valid keys are image, text, label")
            if column is not None and not isinstance(column, str):
                raise UserError(f"columns.{role}={column!r}: must be a column's name, or None")

    @property
    def size(self) -> tuple[int, int] | None:
        """Return (height, width), or None if `image_size` is not set."""
        size = self.image_size
        if size is None:
            return None
        return (size, size) if isinstance(size, int) else tuple(size) * (2 // len(size))

    def open(self, uri: str) -> Source:
        """Open a source of images; raise UserError if it has none."""
        source = load_source(uri, dir=self.dir, columns=self.columns, label_separator=self.label_separator)
        require_images(source)
        return source

    def source(self, split: str) -> Source:
        """Open the source of a split with labels numbered by the run's classes; raise UserError for an unknown class."""
        training = self.open(self.train)
        if split == "train" and self.label_separator is not None and self.train.partition(":")[0] not in TABLES:
            raise UserError(f"data.label_separator: {self.train} is not a table; use one of {', '.join(TABLES)}")
        classes, named_by = (self.classes, "data.classes") if self.classes else (training.classes, self.train)
        source = self.open(self.test) if split == "test" and self.test is not None else training
        return match_classes(source, classes, named_by, self.unknown_classes)

    def part(self, dataset: Dataset, split: str) -> Dataset:
        """Return a split's part of `source(split)`: all of it, or without `test` the trained or the held-out part."""
        if self.test is not None or (self.holdout == 0 and split != "test"):
            return dataset
        held = held_out(dataset.source.keys(), self.holdout, dataset.source.labels())
        if split == "test" and not held.any():
            why = f"data.holdout={self.holdout:g} of {dataset.size:,} examples"
            raise UserError(f"data.test is missing, and {why} holds out no test examples; set one of the two")
        return subset(dataset, np.flatnonzero(held if split == "test" else ~held)) if held.any() else dataset


def labelled(source: Source) -> bool:
    """Return whether a source has labels, without reading them if the source declares it."""
    return bool(source.all_labelled) or source.labels() is not None


def label_shape(source: Source) -> dict[str, jax.ShapeDtypeStruct]:
    """Return {"label": i32[]}, or for several classes per example {"label": i32[classes]}; {} without labels."""
    if not labelled(source):
        return {}
    several = not source.all_labelled and source.labels().ndim == 2
    return {"label": jax.ShapeDtypeStruct((len(source.classes),) if several else (), jnp.int32)}


def eval_crop(section: Any, kind: str, info: DataInfo) -> float:
    """Return the share of an image that a model's evaluation crops, by its section `data`; of imported weights by `info`."""
    from ssl_jax.data.pairs import PairsSettings

    if not section:
        return info.extra.get("eval_crop", 1.0)
    return section.get("eval_crop", (PairsSettings if kind == "pairs" else ImageDataSettings).eval_crop)
