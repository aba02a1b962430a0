"""The one reader of tables: rows of csv, tsv and JSON lines with their line numbers. Malformed rows raise one line."""

import csv
import difflib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ssl_jax.data.sources.files import lines_of, read_bytes, read_text, without_surrogates
from ssl_jax.errors import UserError

_FILE_NAME = re.compile(r"\.(jpe?g|png|gif|webp|bmp|tiff?)$", re.IGNORECASE)
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def separated(uri: str, path: str, *, separator: str = ",", quotes: bool = True) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of every row, the header included; rows all have as many cells as the first.

    With `quotes` a field may be quoted and then hold separators, line ends and doubled quotes (RFC 4180); without, as in
    GLUE's files, a row is a line. Blank lines are ignored. Raise UserError with the line for a quote that is not closed, a
    quote or a carriage return within a field, and a row with more or fewer cells.
    """
    text = read_text(uri, path)
    if not text.strip():
        raise UserError(f"{uri}: is empty; expected rows of text")
    if "\n" not in text:
        text = text.replace("\r", "\n")  # the line ends of old Macs
    width, first = None, 0
    plain = ((number, line.split(separator)) for number, line in lines_of(text) if line)
    rows = _quoted(uri, text, separator) if quotes else plain
    for number, cells in rows:
        if width is None:
            width, first = len(cells), number
        elif len(cells) != width:
            more = "; quote a field that holds the separator" if quotes and len(cells) > width else ""
            raise UserError(f"{uri}: line {number:,} has {len(cells)} columns, expected {width} as in line {first:,}{more}")
        yield number, cells


def _quoted(uri: str, text: str, separator: str) -> list[tuple[int, list[str]]]:
    """Parse the whole csv text at once, so that the csv module's limit of 128 KiB per field is lifted only meanwhile."""
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=separator, strict=True)
    rows, start, limit = [], 1, csv.field_size_limit(sys.maxsize)
    try:
        for cells in reader:
            if cells:
                rows.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{uri}: line {start:,} {_problem(str(error), start, reader.line_num)}") from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _problem(message: str, start: int, stop: int) -> str:
    """Return the problem of the row that begins in line `start`, at which the csv module failed in line `stop`."""
    if "unexpected end" in message:
        return "opens a quote that is never closed; close it, or double the quotes that are part of the text"
    if "new-line character" in message:
        return "holds a carriage return within a field; remove it or quote the field"
    if "expected after" in message:
        until = f" (the quoted field continues to line {stop:,})" if stop > start else ""
        return f"has text after a closing quote{until}; close the quote, or double the quotes that are part of the text"
    return f"is not csv ({message})"


def named_rows(uri: str, rows: Iterator[tuple[int, list[str]]]) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Return (column names, (line number, row by name) ...) of a table whose first row is the header."""
    header = [name.strip() for name in next(rows)[1]]
    return header, ((number, dict(zip(header, cells, strict=True))) for number, cells in rows)


def check_column(uri: str, name: Any, columns: Sequence[str], remedy: str = "set data.columns") -> None:
    """Raise UserError, with the nearest name or else `remedy`, unless the column `name` exists exactly once."""
    columns = list(columns)
    if columns.count(name) > 1:
        raise UserError(f"{uri}: has {columns.count(name)} columns called {name!r}; rename all but one")
    if name not in columns:
        close = difflib.get_close_matches(str(name), columns, n=1, cutoff=0.6)
        hint = f"; did you mean {close[0]!r}?" if close else f"; {remedy}"
        hint = f"; {header_hint(columns)}" if header_hint(columns) else hint
        raise UserError(f"{uri}: there is no column {name!r}, only {', '.join(map(repr, columns))}{hint}")


def header_hint(columns: Sequence[str]) -> str:
    """Return what is wrong with a header whose columns do not look like names: the separator, or no header at all; else ""."""
    other = next((mark for mark in ";\t|" if len(columns) == 1 and mark in str(columns[0])), None)
    if other is not None:
        return f"its columns are separated by {other!r}; separate them by commas (csv:) or tabs (tsv:)"
    if any(_FILE_NAME.search(str(column)) for column in columns):
        return "its first line must name the columns, such as path,label"
    return ""


def json_lines(uri: str, path: str, skip: Callable[[UserError], None] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a file of JSON lines, gzipped or not; null and NaN are None.

    A line that is not UTF-8 or not a JSON object raises UserError, or is skipped and its error passed to `skip`.
    """
    lines = lines_of(read_text(uri, path)) if skip is None else enumerate(read_bytes(uri, path).split(b"\n"), 1)
    for number, line in lines:
        if line.strip():
            try:
                row = json_object(uri, f"line {number:,}", line)
            except UserError as error:
                if skip is None:
                    raise
                skip(error)
                continue
            yield number, row


def json_object(uri: str, place: str, line: str | bytes) -> dict[str, Any]:
    """Parse the JSON object of one line. NaN and infinities are None; half a surrogate pair is U+FFFD. Raise UserError."""
    try:
        text = line if isinstance(line, str) else line.decode("utf-8-sig")
        row = json.loads(text, parse_constant=lambda constant: None)
    except UnicodeDecodeError as error:
        raise UserError(f"{uri}: {place} is not UTF-8 (byte {error.start:,} of the line); convert it first") from None
    except json.JSONDecodeError as error:
        where = f"{error.msg} at character {error.colno}"
        raise UserError(f"{uri}: {place} is not JSON ({where}); write one object per line") from None
    except RecursionError:
        raise UserError(f"{uri}: {place} is nested too deeply for JSON; remove or flatten it") from None
    if not isinstance(row, dict):
        array = "; it is one JSON array: write each of its objects on a line of its own" if isinstance(row, list) else ""
        raise UserError(
            f'{uri}: {place} is {str(row)[:40]!r}, expected an object with keys, such as {{"text": ..., "label": ...}}{array}'
        )
    return _whole_characters(row) if _ESCAPED_SURROGATE.search(text) else row


def _whole_characters(value: Any) -> Any:
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, dict):
        return {without_surrogates(key): _whole_characters(item) for key, item in value.items()}
    return [_whole_characters(item) for item in value] if isinstance(value, list) else value


def text_of(value: Any) -> str | None:
    """Return a cell as text, None for null, NaN and an empty cell; raise ValueError for a list, an object or true/false."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{str(value)[:40]!r}, expected text")
    return str(value)
