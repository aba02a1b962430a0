"""`folder:DIR`: image files, in class folders or in one flat folder."""

import collections
import functools
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ssl_jax.data.sources import HINT, BadExample, Source, digest
from ssl_jax.data.sources.files import check_exists, content_samples
from ssl_jax.errors import UserError

IDENTIFIED_ONLY = (
    "MPEG",
    "HDF5",
    "GRIB",
    "BUFR",
    "WMF",
    "EPS",
)  # formats that Pillow recognises but cannot decode without a plugin
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case with their dot, of the image formats that this Pillow decodes."""
    from PIL import Image

    Image.init()
    return frozenset(
        suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in IDENTIFIED_ONLY
    )


class Folder(Source):
    """`folder:DIR`: image files of every format that Pillow decodes, in class folders or, without labels, in one flat folder.

    If DIR has folders, each is a class, ordered by name, and its images are found at any depth; otherwise DIR's own images are
    read without labels. Links are followed, except to a folder above. Hidden files and folders are ignored; other unread files
    are counted (`remarks`). Examples are ordered by path; splits are drawn by path within DIR.
    """

    def __init__(self, path: str, **options: Any):
        self.name = f"folder:{path}"
        check_exists(self.name, path, folder=True)
        self.root = pathlib.Path(path).expanduser()
        self._other: collections.Counter[str] = collections.Counter()  # numbers of files that are not images, by suffix
        self._loops: list[str] = []
        self._dangling: list[str] = []
        own, folders = self._scan("")
        flat = [file for file in own if self._is_image(file)]
        trail = frozenset((_identity(self.root),))
        found = {folder: sorted(self._images(folder, trail)) for folder in folders}
        self._empty = [folder for folder, files in found.items() if not files]
        found = {folder: files for folder, files in found.items() if files}
        if flat and found:
            raise UserError(
                f"{self.name}: holds images ({flat[0]} ...) beside class folders ({next(iter(found))} ...); keep one kind"
            )
        if found and set(map(str.lower, found)) <= SPLITS:
            options_ = " or ".join(f"folder:{os.path.join(path, name)}" for name in found)
            raise UserError(f"{self.name}: its folders {', '.join(found)} are splits, not classes; use {options_}")
        self.files, self.classes = flat or [file for files in found.values() for file in files], tuple(found)
        if not self.files:
            what = "; ".join(self.remarks())
            raise UserError(
                f"{self.name}: contains no image, neither directly nor in class folders{f' ({what})' if what else ''}"
            )
        labels = [label for label, files in enumerate(found.values()) for _ in files]
        self._labels = np.array(labels, np.int32) if labels else None

    def _scan(self, below: str) -> tuple[list[str], list[str]]:
        """Return (files, folders) in `below`, as paths within the root ordered by name."""
        files, folders = [], []
        try:
            with os.scandir(self.root / below) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    name = f"{below}/{entry.name}" if below else entry.name
                    (folders if _is_folder(entry) else files).append(name)
        except OSError as error:
            what = f"{self.root / below} cannot be read ({error.strerror})"
            raise UserError(f"{self.name}: {what}; change its permissions") from None
        return sorted(files), sorted(folders)

    def _images(self, below: str, trail: frozenset[tuple[int, int]]) -> Iterator[str]:
        """Yield the images at any depth in `below`; `trail` holds the identities of the folders above it."""
        here = _identity(self.root / below)
        if here in trail:
            self._loops.append(below)
            return
        files, folders = self._scan(below)
        for file in files:
            if self._is_image(file):
                yield file
        for folder in folders:
            yield from self._images(folder, trail | {here})

    def _is_image(self, file: str) -> bool:
        """Return whether a file is an image by its suffix; what is not is counted."""
        suffix = os.path.splitext(file)[1].lower()
        if suffix in suffixes():
            return True
        if os.path.exists(self.root / file):
            self._other[suffix or "without a suffix"] += 1
        else:
            self._dangling.append(file)
        return False

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            data = (self.root / self.files[index]).read_bytes()
        except OSError as error:
            link = os.path.islink(self.root / self.files[index])
            what = "is a link to a file that does not exist" if link else f"cannot be read ({error.strerror})"
            raise BadExample(f"{self.describe(index)} {what}; {HINT}") from None
        return {"image": data} if self._labels is None else {"image": data, "label": self._labels[index]}

    def labels(self) -> np.ndarray | None:
        return self._labels

    def describe(self, index: int) -> str:
        return f"{self.name}: {self.root / self.files[index]}"

    def keys(self) -> Iterable[bytes]:
        """Yield each file's path within the folder."""
        return (os.fsencode(file) for file in self.files)

    def fingerprint(self) -> str:
        contents = content_samples([self.root / file for file in self.files])
        return digest([b"\0".join(self.keys()), *contents], self._labels, self.classes)

    def remarks(self) -> tuple[str, ...]:
        kinds = [f"{suffix} {count:,}" for suffix, count in self._other.most_common()]
        found = (
            ("file(s) not read, of a kind that Pillow does not decode", sum(self._other.values()), kinds),
            ("link(s) to nothing", len(self._dangling), self._dangling),
            ("link(s) not followed, back to a folder above", len(self._loops), self._loops),
            ("class folder(s) without images", len(self._empty), self._empty),
        )
        return tuple(
            f"{count:,} {what.replace('(s)', 's' * (count != 1))} ({', '.join(names[:5])}{' ...' * (len(names) > 5)})"
            for what, count, names in found
            if count
        )


def _is_folder(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder or a link to one; not where the link leads round in a circle."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(folder: pathlib.Path) -> tuple[int, int]:
    """Return what tells a folder apart whatever path leads to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino
