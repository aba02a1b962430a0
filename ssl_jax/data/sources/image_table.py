"""`csv:`, `tsv:` and `jsonl:FILE`: tables of image files with captions, labels or both."""

import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ssl_jax.data.labels import multi_hot, names_of, vocabulary
from ssl_jax.data.sources import HINT, MISSING, BadExample, Source, digest
from ssl_jax.data.sources.files import content_samples, read_text
from ssl_jax.data.sources.tables import check_column, header_hint, json_lines, named_rows, separated, text_of
from ssl_jax.data.sources.texts import Texts
from ssl_jax.errors import UserError

COLUMNS = {  # usual names of columns
    "image": ("image", "image_path", "filepath", "file_path", "path", "filename", "file_name", "file", "img"),
    "text": ("captions", "caption", "text", "texts", "title", "sentences", "alt_text"),
    "label": ("label", "class", "category"),
}

Row = tuple[int, dict[str, Any]]  # line number, cells by column


class ImageTable(Source):
    """Rows of an image path with captions, a label or both; several rows of one image are one example with all captions.

    Paths are relative to the table's folder. Empty captions are ignored; an empty label is a missing label; a row without a
    path is an unreadable example. With `separator`, a label cell holds several classes, an example has those of all its
    rows, and an empty cell means no class.
    """

    def __init__(self, name: str, root: pathlib.Path, rows: Iterable[Row], names: dict[str, str], separator: str | None = None):
        self.name, self.root, self.separator = name, root, separator
        self.places: list[int] = []  # line numbers
        self.paths: list[str] = []  # "" for a row without a path
        self.texts: list[list[str]] = []
        self.longest = (0, 0)  # the largest number of line ends in a cell, and the line of its row
        labels: list[tuple[str, ...]] = []
        number: dict[str, int] = {}
        for line, row in rows:
            path, texts, own = self._cells(line, row, names)
            index = number.setdefault(path, len(self.paths)) if path else len(self.paths)
            if index == len(self.paths):
                self.places.append(line)
                self.paths.append(path)
                self.texts.append([])
                labels.append(())
            self.texts[index] += texts
            labels[index] = tuple(dict.fromkeys(labels[index] + own))
            if separator is None and len(labels[index]) > 1:
                first = f"{labels[index][0]!r} in line {self.places[index]:,}"
                raise UserError(f"{name}: line {line:,}: {path} has the label {own[0]!r}, but {first}")
        if not self.paths:
            raise UserError(f"{name}: is empty; expected rows of image paths, with captions or labels")
        self.has_text = "text" in names
        self.classes = vocabulary(label for own in labels for label in own)
        numbers = {label: i for i, label in enumerate(self.classes)}
        self._labels = np.array([numbers[own[0]] if own else MISSING for own in labels], np.int32) if self.classes else None
        if separator is not None and self.classes:
            self._labels, _ = multi_hot(labels)

    @property
    def captions(self) -> Callable[[int], tuple[str, ...]] | None:
        return self._captions if self.has_text else None

    def _cells(self, line: int, row: dict[str, Any], names: dict[str, str]) -> tuple[str, list[str], tuple[str, ...]]:
        """Return (path, captions, classes) of a row, "" and () if missing."""
        values = {role: row.get(column) for role, column in names.items()}
        path, texts = values["image"], values.get("text")
        if path is not None and not isinstance(path, str):
            raise UserError(
                f"{self.name}: line {line:,}: {names['image']} is {str(path)[:40]!r}, expected the path of an image"
            )
        lines = max((value.count("\n") for value in row.values() if isinstance(value, str)), default=0)
        self.longest = max(self.longest, (lines, line))
        found = []
        for text in texts if isinstance(texts, list) else [texts]:
            try:
                text = (text_of(text) or "").strip()
            except ValueError as error:
                raise UserError(f"{self.name}: line {line:,}: {names['text']} is {error}") from None
            found += [text] if text else []
        try:
            return (path or "").strip(), found, names_of(values.get("label"), self.separator)
        except ValueError as error:
            raise UserError(f"{self.name}: line {line:,}: {names['label']} is {error}") from None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not self.paths[index]:
            raise BadExample(f"{self.describe(index)} names no image; {HINT}")
        path = self.root / self.paths[index]
        try:
            example: dict[str, Any] = {"image": path.read_bytes()}
        except (FileNotFoundError, NotADirectoryError):
            own = self.paths[index]
            hint = "download it" if "://" in own else HINT
            if "\\" in own and (self.root / own.replace("\\", "/")).exists():
                hint = 'write "/" instead of "\\" in paths'
            name = own if "://" in own else path
            raise BadExample(f"{self.describe(index)} names an image that does not exist: {name}; {hint}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadExample(f"{self.describe(index)}: {path} cannot be read ({reason}); {HINT}") from None
        if self.has_text:
            example["captions"] = self._captions(index)
        return example if self._labels is None else example | {"label": self._labels[index]}

    def _captions(self, index: int) -> tuple[str, ...]:
        return tuple(self.texts[index])

    def labels(self) -> np.ndarray | None:
        return self._labels

    def describe(self, index: int) -> str:
        return f"{self.name}: line {self.places[index]:,}"

    def keys(self) -> Iterable[bytes]:
        """Yield each image's path as in the table, or its line if it has no path."""
        return (os.fsencode(path or f"line {place}") for path, place in zip(self.paths, self.places, strict=True))

    def remarks(self) -> tuple[str, ...]:
        lines, start = self.longest
        found = f"the row of line {start:,} continues to line {start + lines:,}; if it should not, a quote is not closed there"
        several = None if self.separator else joined_classes(self.classes)
        hint = (
            f"{several[0]!r} looks like several classes; data.label_separator={several[1]!r} separates them" if several else ""
        )
        return tuple(line for line in (found if lines else "", hint) if line)

    def fingerprint(self) -> str:
        texts = ("\0".join(texts).encode("utf-8", "surrogatepass") for texts in self.texts)
        contents = content_samples([self.root / path for path in self.paths])
        return digest([*self.keys(), *texts, *contents], self._labels, self.classes)


def joined_classes(classes: Sequence[str]) -> tuple[str, str] | None:
    """Return (a class whose name joins the names of other classes with a separator, the separator), or None."""
    known = set(classes)
    for separator in ("|", ";", ",", "/"):
        for name in classes:
            parts = [part.strip() for part in name.split(separator)]
            if len(parts) > 1 and known.issuperset(parts):
                return name, separator
    return None


class Records(Source):
    """Rows {column: text} of a table without images, for a kind of text data."""

    has_image = False

    def __init__(self, name: str, rows: Iterable[Row]):
        self.name = name
        self.places, self.rows = zip(*rows, strict=True)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.rows[index])

    def describe(self, index: int) -> str:
        return f"{self.name}: line {self.places[index]:,}"


def require_images(source: Source) -> None:
    """Raise UserError for a table without a column of images."""
    if isinstance(source, Texts):
        raise UserError(f"{source.name}: holds text, and this task reads images")
    if not source.has_image:
        columns = list(source[0])
        hint = header_hint(columns) or "set data.columns.image"
        raise UserError(f"{source.name}: the column of images is unknown (columns: {', '.join(map(repr, columns))}); {hint}")


def open_jsonl(path: str, *, columns: tuple = (), label_separator: str | None = None, **options: Any) -> Source:
    """Open `jsonl:FILE`: one object per line with an image path and captions (one or a list), a label, or both."""
    uri = f"jsonl:{path}"
    rows = list(json_lines(uri, path))
    return _table(uri, path, list(dict.fromkeys(key for _, row in rows for key in row)), rows, dict(columns), label_separator)


def open_csv(
    path: str, *, columns: tuple = (), label_separator: str | None = None, separator: str = ",", scheme: str = "csv",
    **options: Any,
) -> Source:  # fmt: skip
    """Open `csv:FILE`; its first line names the columns. A file whose first line has tabs but no commas is read as tsv."""
    uri = f"{scheme}:{path}"
    first = read_text(uri, path).split("\n", 1)[0]
    if separator not in first and "\t" in first:
        separator = "\t"
    header, rows = named_rows(uri, separated(uri, path, separator=separator, quotes=separator != "\t"))
    return _table(uri, path, header, list(rows), dict(columns), label_separator)


def _table(
    uri: str, path: str, header: list[str], rows: list[Row], columns: dict[str, str | None], label_separator: str | None
) -> Source:
    if not rows:
        raise UserError(f"{uri}: is empty; expected rows of image paths with captions or labels, or of text")
    names = column_names(uri, header, columns)
    if "image" not in names:
        return Records(uri, rows)
    table = ImageTable(uri, _root(path), rows, names, label_separator)
    table.unread = tuple(column for column in header if column not in names.values())
    return table


def open_tsv(path: str, **options: Any) -> Source:
    """Open `tsv:FILE`, like csv but with tabs and without quotes."""
    return open_csv(path, **{**options, "separator": "\t", "scheme": "tsv"})


def _root(path: str) -> pathlib.Path:
    return pathlib.Path(path).expanduser().parent


def column_names(uri: str, header: Sequence[str], wanted: dict[str, str | None]) -> dict[str, str]:
    """Return the columns of image, text and label, as in `wanted` or by their usual names.

    A role of None in `wanted` is not read. Raise UserError for a missing column of `wanted`.
    """
    names = {}
    for role, usual in COLUMNS.items():
        name = wanted[role] if role in wanted else next((name for name in usual if name in header), None)
        if name is not None:
            check_column(uri, name, header)
            names[role] = name
    return names
