"""Rows of text with columns by name or number: tsv, csv, jsonl, TREC's question files, two parallel files, any other source."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ssl_jax.data.labels import names_of
from ssl_jax.data.sources import Source, digest, load_source
from ssl_jax.data.sources.files import lines_of, read_text
from ssl_jax.data.sources.tables import check_column, json_lines, separated, text_of
from ssl_jax.errors import UserError

SEPARATED: dict[str, dict[str, Any]] = {"csv": dict(separator=","), "tsv": dict(separator="\t", quotes=False)}
SENTENCES = ("source", "target")  # columns that may not be empty: a reference without words has no score
UNIT = "\x1f"  # ASCII's unit separator: between the classes of a label, where an example may have several
Column = str | int  # a name of the header (or a key), or a number from 0 on in a file without a header
Rows = tuple[tuple[str, ...] | None, Iterator[tuple[str, Any]]]  # column names, (place, row) ...


@dataclasses.dataclass(frozen=True)
class Table(Source):
    """The chosen columns of a source: text by row. `places[i]` is what an error calls row i."""

    name: str
    columns: dict[str, tuple[str, ...]]  # by what the caller calls them
    places: tuple[str, ...]
    skipped: int = 0  # rows that could not be read

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self.columns.items()}

    def describe(self, index: int) -> str:
        return f"{self.name}: {self.places[index]}"

    def keys(self) -> Iterable[bytes]:
        """Yield each row's text, without its label."""
        columns = [values for name, values in sorted(self.columns.items()) if name != "label"] or list(self.columns.values())
        return ("\0".join(row).encode("utf-8", "surrogatepass") for row in zip(*columns, strict=True))

    def fingerprint(self) -> str:
        rows = zip(*(self.columns[name] for name in sorted(self.columns)), strict=True)
        return digest("\0".join(row).encode("utf-8", "surrogatepass") for row in rows)


def read_table(
    uri: str, columns: dict[str, Column], *, header: bool | None = None, skip_bad: bool = False,
    label_separator: str | None = None, remedy: str = "set data.columns",
) -> Table:  # fmt: skip
    """Read the rows behind `uri` (tsv:, csv:, jsonl:, trec:, parallel:FILE,FILE or any source); `columns` renames columns.

    `header` says whether the first line of a tsv or csv names the columns; by default it does where a column is asked for
    by name. A tsv has no quotes (as GLUE's), a csv has. Files may be gzipped. With `label_separator` a label names several
    classes, as a text or a list, and has UNIT between them. `remedy` says how to name a column that is not there.

    Raise UserError for a column that is not there, a row that is too short, an empty file, text that is not UTF-8, text that
    is null, and an empty side of parallel text. With `skip_bad` a line of JSON that cannot be read, and a row with one of the
    last two, are passed over and counted.
    """
    return _read_table(uri, tuple(sorted(columns.items())), header, skip_bad, label_separator, remedy)


@functools.lru_cache(maxsize=8)
def _read_table(
    uri: str, columns: tuple[tuple[str, Column], ...], header: bool | None, skip_bad: bool, label_separator: str | None,
    remedy: str,
) -> Table:  # fmt: skip
    wanted, bad = dict(columns), []
    scheme, _, path = uri.partition(":") if isinstance(uri, str) else ("", "", "")
    if scheme in SEPARATED:
        names, rows = _separated(uri, path, scheme, wanted, header)
    elif scheme == "jsonl":
        lines = json_lines(uri, path, bad.append if skip_bad else None)
        names, rows = None, ((f"line {number:,}", row) for number, row in lines)
    elif scheme == "trec":
        names, rows = ("label", "fine_label", "text"), _trec(uri, path)
    elif scheme == "parallel":
        names, rows = ("source", "target"), _parallel(uri, path)
    else:
        names, rows = None, _source(uri)
    found: dict[str, list[str]] = {name: [] for name in wanted}
    places = []
    first = True
    for place, row in rows:
        if first and not isinstance(row, dict):
            numbers = {name: _number(uri, column, names, len(row), remedy) for name, column in wanted.items()}
        try:
            if isinstance(row, dict):
                if first and "image" in row and set(row) <= {"image", "label"}:
                    raise UserError(f"{uri}: holds images, and this task reads text")
                if first and "label" in wanted and list(row) == ["text"]:
                    raise UserError(f"{uri}: holds text without labels; a table has both, such as csv:FILE")
                for column in wanted.values() if first else ():  # later an absent key is a null
                    check_column(f"{uri}: {place}", column, list(row), remedy)
                cells = {name: row.get(column) for name, column in wanted.items()}
            else:
                cells = {name: row[number] for name, number in numbers.items()}
            texts = {name: _cell(uri, place, name, value, label_separator) for name, value in cells.items()}
        except UserError as error:
            if not skip_bad:
                raise
            bad.append(error)
            continue
        first = False
        for name, text in texts.items():
            found[name].append(text)
        places.append(place)
    if not places:
        raise UserError(f"{uri}: none of its {len(bad):,} rows can be read; {bad[0]}" if bad else _EMPTY.format(uri))
    return Table(uri, {name: tuple(values) for name, values in found.items()}, tuple(places), len(bad))


_EMPTY = "{}: is empty; expected rows of text"


def _number(uri: str, column: Column, names: tuple[str, ...] | None, width: int, remedy: str) -> int:
    """Return which column is meant, as a number from 0 on."""
    if isinstance(column, str):
        if names is None:
            raise UserError(
                f"{uri}: there is no column {column!r}: the file has no header; set data.columns to numbers from 0 on"
            )
        check_column(uri, column, names, remedy)
        return names.index(column)
    if not 0 <= column < width:
        raise UserError(f"{uri}: there is no column {column}: its rows have {width} columns, 0 to {width - 1}")
    return column


def _cell(uri: str, place: str, name: str, value: Any, label_separator: str | None) -> str:
    """Return a cell as text; "" is a missing label. Raise UserError for anything else that is not text or a number."""
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    value = value.item() if isinstance(value, np.generic) else value
    try:
        text = UNIT.join(names_of(value, label_separator)) if name == "label" else text_of(value)
    except ValueError as error:
        raise UserError(f"{uri}: {place}: {name} is {error}") from None
    if text is None and name != "label":
        raise UserError(
            f"{uri}: {place}: {name} is {'null' if value is None else 'NaN'}, expected text; fill it in, remove the row, "
            'or set data.on_bad_example="skip"'
        )
    if name in SENTENCES and not text.strip():
        raise UserError(
            f'{uri}: {place}: {name} is empty, expected text; fill it in, remove the row, or set data.on_bad_example="skip"'
        )
    return "" if text is None else text


def _separated(uri: str, path: str, scheme: str, wanted: dict[str, Column], header: bool | None) -> Rows:
    rows = separated(uri, path, **SEPARATED[scheme])
    if header is None:
        header = any(isinstance(column, str) for column in wanted.values())
    names, rows = (tuple(name.strip() for name in next(rows)[1]), rows) if header else (None, rows)
    return names, ((f"line {number:,}", row) for number, row in rows)


def _trec(uri: str, path: str) -> Iterator[tuple[str, list[str]]]:
    """TREC's question classes (Li & Roth 2002): "DESC:manner How did ...", in ISO 8859-1."""
    for number, line in lines_of(read_text(uri, path, "latin-1")):
        label, space, text = line.partition(" ")
        coarse, colon, fine = label.partition(":")
        if not space or not colon:
            raise UserError(f"{uri}: line {number:,} is {line[:40]!r}, expected COARSE:fine and a question")
        yield f"line {number:,}", [coarse, fine, text.strip()]


def _parallel(uri: str, path: str) -> Iterator[tuple[str, list[str]]]:
    files = path.split(",")
    if len(files) != 2:
        raise UserError(f"{uri}: expected two files, parallel:SOURCE,TARGET, with one sentence per line")
    source, target = ([line for _, line in lines_of(read_text(f"parallel:{file}", file))] for file in files)
    if len(source) != len(target):
        raise UserError(f"{uri}: the files differ in length, {len(source):,} and {len(target):,} lines; they must be aligned")
    return ((f"line {i:,}", [a, b]) for i, (a, b) in enumerate(zip(source, target, strict=True), 1))


def _source(uri: str) -> Iterator[tuple[str, dict]]:
    source = load_source(uri)
    return ((f"example {i:,}", source[i]) for i in range(len(source)))
