"""One vocabulary of classes for all splits of a run: classes are matched by name, whatever their order in a source."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

from ssl_jax.data.sources import MISSING, Source
from ssl_jax.data.sources.tables import text_of
from ssl_jax.errors import UserError

UNKNOWN = -2  # the label of an example whose class the vocabulary does not have, where such examples are left out


def vocabulary(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct labels, in the order of numbers where all are whole numbers, else of names. "" is no label."""
    found = {label for label in labels if label}
    numbers = all(label.removeprefix("-").isdecimal() for label in found)
    return tuple(sorted(found, key=lambda label: (int(label), label) if numbers else (0, label)))


def names_of(cell: Any, separator: str | None) -> tuple[str, ...]:
    """Return the class names in a table's cell; () where it is empty.

    With `separator` a text holds several, and a list holds them apart. Raises ValueError, as the end of a sentence, for an
    object, and for a list without `separator`.
    """
    if isinstance(cell, dict) or (isinstance(cell, list) and separator is None):
        hint = '; for several set data.label_separator, such as ","' if isinstance(cell, list) else ""
        raise ValueError(f"{str(cell)[:40]!r}, expected one class{hint}")
    if isinstance(cell, str) and separator is not None:
        cell = cell.split(separator)
    found = [str(one) if isinstance(one, bool) else text_of(one) or "" for one in (cell if isinstance(cell, list) else [cell])]
    return tuple(dict.fromkeys(name.strip() for name in found if name.strip()))


def multi_hot(
    names: Sequence[Sequence[str]], classes: Sequence[str] | None = None
) -> tuple[Bool[np.ndarray, "examples classes"], tuple[str, ...]]:
    """Return which classes each example has, and the classes (default: all that occur)."""
    classes = vocabulary(name for own in names for name in own) if classes is None else tuple(classes)
    number, found = {name: i for i, name in enumerate(classes)}, np.zeros((len(names), len(classes)), bool)
    for row, own in zip(found, names, strict=True):
        row[[number[name] for name in own]] = True
    return found, classes


def without_and_with(labels: Shaped[np.ndarray, "examples classes"]) -> Int[np.ndarray, "classes 2"]:
    """Return for each class how many examples do not have it, and how many do; `labels` are 0 and 1."""
    having = np.count_nonzero(labels, axis=0)
    return np.stack([len(labels) - having, having], axis=1)


def rarest_class(labels: Shaped[np.ndarray, "examples classes"]) -> Int[np.ndarray, "examples"]:
    """Return of each example's classes the one with the fewest examples, MISSING where it has none.

    A split that is stratified by it is nearly stratified by every class, and most exactly by the rare ones.
    """
    rarest_first = np.argsort(labels.sum(axis=0), kind="stable")
    return np.where(labels.any(axis=1), rarest_first[labels[:, rarest_first].argmax(axis=1)], MISSING).astype(np.int32)


def several_classes(shapes: Mapping[str, Any]) -> bool:
    """Whether an example of these shapes (`DataInfo.shapes`) may have several classes: its label has an entry for each."""
    return "label" in shapes and len(shapes["label"].shape) == 1


def match_classes(source: Source, classes: Sequence[str], trained_on: str, unknown: str = "error") -> Source:
    """Return `source` with its labels numbered by `classes`, those of the training source `trained_on`.

    Unchanged where the source has no labels, where there is nothing to match, or where the classes are equal. With unknown
    "skip" examples of a class that is not in `classes` get the label UNKNOWN (of several classes an example loses that one);
    with "error" they raise UserError, which names the class.
    """
    classes = tuple(classes)
    if not classes or not source.classes or source.classes == classes:
        return source
    number = {name: i for i, name in enumerate(classes)}
    table = np.array([number.get(name, UNKNOWN) for name in source.classes], np.int32)
    labels = source.labels()
    present: set[int] = set()
    if labels is not None:
        present = set((np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else np.unique(labels[labels >= 0])).tolist())
    strangers = [name for i, name in enumerate(source.classes) if table[i] == UNKNOWN and i in present]
    if strangers and (unknown == "error" or len(strangers) == len(present)):
        raise UserError(_unknown(source.name, strangers, len(present), classes, trained_on))
    return Relabelled(source, classes, table)


def _unknown(name: str, strangers: list[str], present: int, classes: tuple[str, ...], trained_on: str) -> str:
    more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
    named = f"class{'es' * (len(strangers) > 1)} {', '.join(strangers[:3])}{more}"
    have = f"{', '.join(classes[:5])}{' ...' if len(classes) > 5 else ''}"
    if len(strangers) < present:
        return (
            f"{name}: {named} does not occur in the training data ({trained_on} has {have}); rename or remove it, "
            'or set data.unknown_classes="skip" to leave its examples out'
        )
    hint = f"; are the images of {name} not sorted into class folders? " if present == 1 else "; "
    return (
        f"{name}: none of its classes occurs in the training data: it has {named}, {trained_on} has {have}{hint}"
        "Name the folder whose class folders are called as in training"
        + (f", or {name}/{strangers[0]} to read it without labels" if present == 1 and name.startswith("folder:") else "")
    )


class Relabelled(Source):
    """A source whose labels count in another vocabulary of classes; everything else is the source's."""

    def __init__(self, base: Source, classes: tuple[str, ...], table: np.ndarray):
        self.base, self.classes, self.table, self.name = base, classes, table, base.name
        self.class_texts, self.captions, self.has_text = base.class_texts, base.captions, base.has_text

    @property
    def draw(self) -> Callable[[int, np.random.Generator], dict[str, Any]] | None:
        return None if self.base.draw is None else self._draw

    def _draw(self, index: int, generator: np.random.Generator) -> dict[str, Any]:
        return self._example(self.base.draw(index, generator))

    @property
    def arrays(self) -> dict[str, np.ndarray] | None:
        arrays = self.base.arrays
        return arrays | {"label": self._numbers(arrays["label"])} if arrays is not None and "label" in arrays else arrays

    def _numbers(self, labels: Any) -> np.ndarray:
        """Return labels (class numbers, or the bool[..., classes] of several classes an example) by the other vocabulary."""
        labels = np.asarray(labels)
        if labels.dtype == bool:
            found, known = np.zeros((*labels.shape[:-1], len(self.classes)), bool), self.table >= 0
            found[..., self.table[known]] = labels[..., known]
            return found
        return np.where(labels == MISSING, np.int32(MISSING), self.table[labels])

    def _example(self, example: Mapping[str, Any]) -> dict[str, Any]:
        return {**example, "label": self._numbers(example["label"])} if "label" in example else dict(example)

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._example(self.base[index])

    def labels(self) -> np.ndarray | None:
        labels = self.base.labels()
        return None if labels is None else self._numbers(labels)

    def describe(self, index: int) -> str:
        return self.base.describe(index)

    def keys(self) -> Iterable[bytes]:
        return self.base.keys()

    def remarks(self) -> tuple[str, ...]:
        return self.base.remarks()

    def fingerprint(self) -> str:
        return self.base.fingerprint()
