"""Rows of text with columns by name or number: tsv, csv, jsonl, TREC's question files, two parallel files, any other source."""

import csv
import dataclasses
import functools
import gzip
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ssl_jax.data.sources.base import check_exists, load_source
from ssl_jax.errors import UserError

Column = str | int  # a name of the header (or a key), or a number from 0 on in a file without a header


@dataclasses.dataclass(frozen=True)
class Table:
    """The chosen columns of a source: text by row. `places[i]` is where row i stands, as an error names it."""

    name: str
    columns: dict[str, tuple[str, ...]]  # by what the caller calls them
    places: tuple[str, ...]

    arrays = None
    classes = ()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self.columns.items()}

    def labels(self) -> None:
        return None

    def describe(self, index: int) -> str:
        return f"{self.name}: {self.places[index]}"


def read_table(uri: str, columns: dict[str, Column], *, header: bool | None = None) -> Table:
    """The rows behind `uri` (tsv:, csv:, jsonl:, trec:, parallel:FILE,FILE or any source), with `columns` named anew.

    `header` says whether the first line of a tsv or csv names the columns; by default it does where a column is asked for
    by name. A tsv has no quotes (as GLUE's), a csv has. Files may be gzipped. Raises UserError for a column that is not
    there, a row that is too short, an empty file and text that is not UTF-8.
    """
    return _read_table(uri, tuple(sorted(columns.items())), header)


@functools.lru_cache(maxsize=8)
def _read_table(uri: str, columns: tuple[tuple[str, Column], ...], header: bool | None) -> Table:
    wanted = dict(columns)
    scheme, _, path = uri.partition(":") if isinstance(uri, str) else ("", "", "")
    if scheme in ("tsv", "csv"):
        names, rows = _separated(uri, path, scheme, wanted, header)
    elif scheme == "jsonl":
        names, rows = None, _json_lines(uri, path)
    elif scheme == "trec":
        names, rows = ("label", "fine_label", "text"), _trec(uri, path)
    elif scheme == "parallel":
        names, rows = ("source", "target"), _parallel(uri, path)
    else:
        names, rows = None, _source(uri)
    found: dict[str, list[str]] = {name: [] for name in wanted}
    places = []
    for place, row in rows:
        for name, column in wanted.items():
            found[name].append(_cell(uri, place, row, column, names))
        places.append(place)
    if not places:
        raise UserError(f"{uri}: is empty; expected rows of text")
    return Table(uri, {name: tuple(values) for name, values in found.items()}, tuple(places))


def _cell(uri: str, place: str, row: Any, column: Column, names: tuple[str, ...] | None) -> str:
    if isinstance(row, dict):
        if column not in row:
            raise UserError(f"{uri}: {place}: has no column {column!r}; it has {', '.join(map(repr, row))}")
        value = row[column]
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if not isinstance(value, str | int | float | np.generic):
            raise UserError(f"{uri}: {place}: column {column!r} holds {str(value)[:40]!r}, expected text or a number")
        return str(value)
    if isinstance(column, str):
        if names is None or column not in names:
            have = "no header to name its columns" if names is None else f"the columns {', '.join(map(repr, names))}"
            raise UserError(f"{uri}: there is no column {column!r}; the file has {have}; set data.columns (or data.column)")
        column = names.index(column)
    if column >= len(row):
        raise UserError(f"{uri}: {place}: has {len(row)} columns, expected at least {column + 1}")
    return row[column]


def read_text(uri: str, path: str, encoding: str = "utf-8") -> str:
    """The whole text of a file, gzipped or not, line ends as "\\n"; a UserError names the line that is not UTF-8."""
    check_exists(uri, path, folder=False)
    data = pathlib.Path(path).expanduser().read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise UserError(f"{uri}: is a damaged gzip file ({error})") from None
    try:
        return data.decode(encoding).removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{uri}: line {line:,} is not UTF-8 (byte {error.start:,} of the file); convert it first") from None


def _lines(text: str) -> list[str]:
    """Lines by "\\n" alone: a text may hold other characters that Unicode counts as line ends."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _separated(uri, path, scheme, wanted, header):
    text = read_text(uri, path)
    if not text.strip():
        raise UserError(f"{uri}: is empty; expected rows of text")
    if scheme == "tsv":
        rows = [(number, line.split("\t")) for number, line in enumerate(_lines(text), 1) if line]
    else:
        reader = csv.reader(io.StringIO(text, newline=""))
        rows = [(reader.line_num, row) for row in reader if row]
    if header is None:
        header = any(isinstance(column, str) for column in wanted.values())
    names = tuple(rows.pop(0)[1]) if header else None
    return names, ((f"line {number:,}", row) for number, row in rows)


def _json_lines(uri: str, path: str) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(_lines(read_text(uri, path)), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{uri}: line {number:,} is not JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise UserError(f'{uri}: line {number:,} is not an object with keys, such as {{"text": ..., "label": ...}}')
        yield f"line {number:,}", row


def _trec(uri: str, path: str) -> Iterator[tuple[str, list[str]]]:
    """TREC's question classes (Li & Roth 2002): "DESC:manner How did ...", in ISO 8859-1."""
    for number, line in enumerate(_lines(read_text(uri, path, "latin-1")), 1):
        label, space, text = line.partition(" ")
        coarse, colon, fine = label.partition(":")
        if not space or not colon:
            raise UserError(f"{uri}: line {number:,} is {line[:40]!r}, expected COARSE:fine and a question")
        yield f"line {number:,}", [coarse, fine, text.strip()]


def _parallel(uri: str, path: str) -> Iterator[tuple[str, list[str]]]:
    files = path.split(",")
    if len(files) != 2:
        raise UserError(f"{uri}: expected two files, parallel:SOURCE,TARGET, one sentence a line")
    source, target = (_lines(read_text(f"parallel:{file}", file)) for file in files)
    if len(source) != len(target):
        raise UserError(f"{uri}: the files differ in length, {len(source):,} and {len(target):,} lines; they must be aligned")
    return ((f"line {i:,}", [a, b]) for i, (a, b) in enumerate(zip(source, target, strict=True), 1))


def _source(uri: str) -> Iterator[tuple[str, dict]]:
    source = load_source(uri)
    return ((f"example {i:,}", source[i]) for i in range(len(source)))
