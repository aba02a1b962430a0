"""Sources of arrays in memory, and `npz:FILE`."""

import hashlib
import os
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool

from ssl_jax.data.sources import MISSING, Source
from ssl_jax.data.sources.files import check_exists
from ssl_jax.errors import UserError


class Arrays(Source):
    """A source of arrays: {"image": u8[N, H, W, C], "label": i32[N]} or others with a leading axis N."""

    def __init__(self, name: str, arrays: dict[str, np.ndarray], classes: tuple[str, ...] = ()):
        self.name, self.arrays, self.classes = name, arrays, classes
        sizes = {key: len(value) for key, value in arrays.items()}
        if len(set(sizes.values())) > 1:
            raise UserError(f"{name}: its arrays differ in length: {', '.join(f'{k} {n:,}' for k, n in sizes.items())}")
        self._size = next(iter(sizes.values()), 0)
        if self._size == 0:
            raise UserError(f"{name}: holds no examples")

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value[index] for key, value in self.arrays.items()}

    def labels(self) -> np.ndarray | None:
        return self.arrays.get("label")

    def describe(self, index: int) -> str:
        return f"{self.name}: example {index:,}"

    def keys(self) -> Iterable[bytes]:
        """Yield each example's bytes: of its image if there are images, else of all arrays."""
        arrays = [self.arrays["image"]] if "image" in self.arrays else list(self.arrays.values())
        return (b"".join(np.ascontiguousarray(array[index]).tobytes() for array in arrays) for index in range(len(self)))

    def fingerprint(self) -> str:
        state = hashlib.sha256("\0".join(self.classes).encode())
        for key, value in sorted(self.arrays.items()):
            state.update(f"{key}{value.dtype}{value.shape}".encode())
            state.update(np.ascontiguousarray(value).data if value.dtype != object else repr(value.tolist()).encode())
        return state.hexdigest()[:32]


class Npz(Arrays):
    """`npz:FILE`: arrays by name. "image" (or images, x): [N, H, W(, C)]; "label" (or labels, y, target): [N].

    Images: u8; other integers within 0 to 255; u16; floats in [0, 1]. Labels: class names, or class numbers from 0 on, whose
    names are in an array "classes" or else the numbers; -1 or "" marks a missing label. If an example may have several
    classes, labels are [N, classes] of 0 and 1. Other arrays with a leading axis N are included under their own names.
    """

    ALIASES = {"images": "image", "x": "image", "labels": "label", "y": "label", "target": "label", "targets": "label"}

    def __init__(self, path: str, **options: Any):
        name = f"npz:{path}"
        check_exists(name, path, folder=False)
        try:
            with np.load(os.path.expanduser(path), allow_pickle=False) as file:
                arrays = {self.ALIASES.get(key, key): file[key] for key in file.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
            raise UserError(f"{name}: is not an .npz file of plain arrays ({error}); write it with numpy.savez") from None
        if "image" not in arrays and {"x_train", "x_test"} & set(arrays):
            raise UserError(f'{name}: holds {", ".join(arrays)}; write one file for each split, with "image" and "label"')
        classes = arrays.pop("classes", None)
        for key, value in arrays.items():
            if value.ndim == 0:
                raise UserError(f"{name}: {key} is a single number; expected one entry per example")
        if "image" in arrays:
            arrays["image"] = self._images(name, arrays["image"])
        names: tuple[str, ...] = ()
        if "label" in arrays:
            arrays["label"], names = named_labels(name, arrays["label"], classes)
            if (arrays["label"] == MISSING).all():
                del arrays["label"]
                names = ()
        super().__init__(name, arrays, names)

    @staticmethod
    def _images(name: str, images: np.ndarray) -> np.ndarray:
        from ssl_jax.data.images.values import as_stored

        images = images[..., None] if images.ndim == 3 else images
        if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
            hint = "; move the channels last" if images.ndim == 4 and images.shape[1] in (1, 3, 4) else ""
            raise UserError(f"{name}: image has shape {images.shape}, expected (N, height, width, 1 or 3 channels){hint}")
        return as_stored(images, name)


def named_labels(name: str, labels: np.ndarray, classes: np.ndarray | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (i32[N] class numbers, class names) of labels that are numbers or names; of [N, classes] (bool[N, classes], class
    names). Raise UserError."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "bui":
        return several_labels(name, labels, classes)
    if labels.ndim == 1 and labels.dtype.kind in "SU":
        from ssl_jax.data.labels import vocabulary

        texts = [label.decode("utf-8", "replace") if isinstance(label, bytes) else label for label in labels.tolist()]
        texts = [text.strip() for text in texts]
        names = tuple(map(str, classes)) if classes is not None else vocabulary(texts)
        number = {text: i for i, text in enumerate(names)} | {"": MISSING}
        for index, text in enumerate(texts):
            if text not in number:
                raise UserError(f"{name}: example {index:,} has label {text!r}, which is not among its {len(names)} classes")
        return np.array([number[text] for text in texts], np.int32), names
    labels = check_labels(name, labels)
    highest = int(labels.max(initial=MISSING))
    names = tuple(str(c) for c in (classes if classes is not None else range(highest + 1)))
    if highest >= len(names):
        raise UserError(f"{name}: label {highest} has no name among {len(names)} classes; name all classes")
    return labels, names


def several_labels(
    name: str, labels: np.ndarray, classes: np.ndarray | None
) -> tuple[Bool[np.ndarray, "examples classes"], tuple[str, ...]]:
    """Return which classes each example has, and their names, of an integer or boolean matrix of 0 and 1. Raise UserError."""
    wrong = np.argwhere((labels != 0) & (labels != 1))
    if len(wrong):
        row, column = wrong[0]
        raise UserError(
            f"{name}: example {row:,} has {labels[row, column]} in column {column} of its labels; expected a class number an "
            "example, or where it may have several classes a matrix of 0 and 1"
        )
    names = tuple(map(str, range(labels.shape[1]) if classes is None else classes))
    if len(names) != labels.shape[1]:
        raise UserError(f"{name}: its labels have {labels.shape[1]} columns, but there are {len(names)} classes")
    return labels.astype(bool), names


def check_labels(name: str, labels: np.ndarray) -> np.ndarray:
    """Return i32[N] class numbers from 0 on (MISSING for none). Raise UserError that names the first of another kind."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{name}: label is {labels.dtype}{list(labels.shape)}, expected whole numbers or names, one per example"
        )
    wrong = ((labels < 0) & (labels != MISSING)) | (labels >= 2**24)
    if wrong.any():
        index = int(np.argmax(wrong))
        raise UserError(
            f"{name}: example {index:,} has label {labels[index]}, expected class numbers from 0 on, or {MISSING} for none"
        )
    return labels.astype(np.int32)
