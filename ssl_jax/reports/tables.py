"""The table of results: each measurement of the representation with its baselines beside it, on a console and in Markdown."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

BASELINES = {
    "random_encoder": "random encoder",
    "raw_pixels": "raw pixels",
    "bag_of_tokens": "bag of tokens",
    "likeliest_sentence": "likeliest sentence",
    "copied_source": "copied source",
    "scratch": "from scratch",
    "majority": "majority",
    "chance": "chance",
}
TREATMENTS = ("finetune",)  # what stands against a baseline of the same name: dropped from the row's name
NOTHING = "\N{EM DASH}"

Grid = tuple[list[str], list[list[str]]]


@dataclasses.dataclass(frozen=True)
class Value:
    """One measured number, perhaps the mean of several runs, and the interval it was expected in."""

    name: str  # its key in results.json
    number: float
    stderr: float | None = None
    expected: tuple[float, float] | None = None

    @property
    def as_expected(self) -> bool | None:
        """Whether it lies in the expected interval, ends included; None where nothing was expected."""
        if self.expected is None:
            return None
        return self.expected[0] <= self.number <= self.expected[1]

    def __str__(self) -> str:
        return number_text(self.number) if self.stderr is None else f"{number_text(self.number)} ± {self.stderr:.2g}"


@dataclasses.dataclass
class Row:
    """One measurement: the representation's value and each baseline's, by column."""

    name: str
    cells: dict[str, Value] = dataclasses.field(default_factory=dict)  # "" is the representation
    expected: tuple[float, float] | None = None  # of the representation; also where it was never measured

    @property
    def measured(self) -> Value | None:
        return self.cells.get("")

    def verdict(self) -> str:
        """The expected interval and whether the value lies in it."""
        if self.expected is None:
            return ""
        low, high = self.expected
        mark = "not measured" if self.measured is None else "✓" if self.measured.as_expected else "✗"
        return f"{low:g} to {high:g} {mark}"


def number_text(number: float) -> str:
    """Four significant digits for a measurement, all of them for a count."""
    if isinstance(number, bool) or not math.isfinite(number):
        return str(number)
    if float(number).is_integer() and (isinstance(number, int) or abs(number) >= 1e4):
        return f"{int(number):,}" if abs(number) < 1e15 else f"{number:.3e}"
    if abs(number) >= 1e4:
        return f"{number:,.0f}"
    if number and abs(number) < 1e-3:
        return f"{number:.3e}"
    return f"{number:.4g}" if abs(number) >= 1 else f"{number:.4f}"


def rows(results: Mapping[str, float], expected: Mapping[str, Sequence[float]] | None = None) -> list[Row]:
    """The flat results grouped by what was measured, in the order of their first appearance.

    "linear_probe/random_encoder/accuracy" becomes the column "random encoder" of the row "linear_probe/accuracy";
    ".../mean" and ".../stderr" become one value. An expected metric without a result has its row too.
    """
    expected = {name: (float(ends[0]), float(ends[1])) for name, ends in (expected or {}).items()}
    table: dict[str, Row] = {}
    for name, number in results.items():
        path = name.split("/")
        stem = name.removesuffix("/stderr")
        if path[-1] == "stderr" and f"{stem}/mean" in results:
            continue
        stderr = results.get(name.removesuffix("/mean") + "/stderr") if path[-1] == "mean" else None
        mean = path[-1] == "mean" and len(path) > 1 and name.removesuffix("/mean") not in results
        row, column = _place(path[:-1] if mean else path)
        interval = expected.get(name, expected.get(name.removesuffix("/mean")))
        cell = Value(name, number, stderr, interval)
        entry = table.setdefault(row, Row(row))
        entry.cells[column] = cell
        if not column:
            entry.expected = interval
    for name, interval in expected.items():
        if name not in results and f"{name}/mean" not in results:
            row, column = _place(name.split("/"))
            entry = table.setdefault(row, Row(row))
            if not column:
                entry.expected = interval
    return list(table.values())


def _place(path: list[str]) -> tuple[str, str]:
    """The row and the column ("" is the representation) of a result's path."""
    column = next((part for part in path if part in BASELINES), "")
    kept = [part for i, part in enumerate(path) if part != column and not (i and part in TREATMENTS)]
    return "/".join(kept) or "/".join(path), column


def columns(table: Sequence[Row]) -> list[str]:
    """The baselines that occur, in the order of BASELINES."""
    return [name for name in BASELINES if any(name in row.cells for row in table)]


def failures(table: Sequence[Row]) -> list[str]:
    """What lies outside its expected interval or was not measured: one line each."""
    lines = []
    for row in table:
        for cell in row.cells.values():
            if cell.as_expected is False:
                low, high = cell.expected
                lines.append(f"{cell.name}={number_text(cell.number)}: expected {low:g} to {high:g}")
        if row.expected is not None and row.measured is None:
            lines.append(f"{row.name}: expected {row.expected[0]:g} to {row.expected[1]:g}, not measured")
    return lines


def groups(table: Sequence[Row]) -> list[tuple[list[str], list[Row]]]:
    """The rows by evaluator, evaluators that share their baselines together: (baselines, rows)."""
    evaluators: dict[str, list[Row]] = {}
    for row in table:
        evaluators.setdefault(row.name.split("/")[0], []).append(row)
    found: list[tuple[list[str], list[Row]]] = []
    for members in evaluators.values():
        wanted = columns(members)
        home = next((g for g in found if wanted and g[0] and (set(wanted) <= set(g[0]) or set(g[0]) <= set(wanted))), None)
        home = home or next((g for g in found if not wanted and not g[0]), None)
        if home is None:
            found.append((wanted, members))
        else:
            home[1].extend(members)
            home[0][:] = columns(home[1])
    return found


def grids(results: Mapping[str, float], expected: Mapping[str, Sequence[float]] | None = None) -> list[Grid]:
    """The tables as text, (header, body) each: name, representation, each baseline, and the expected interval if any."""
    found = []
    for baselines, members in groups(rows(results, expected)):
        judged = any(row.expected is not None for row in members)
        header = ["", "encoder", *(BASELINES[name] for name in baselines), *(["expected"] if judged else [])]
        body = []
        for row in members:
            cells = [_cell(row.cells.get(name), mark=bool(name)) for name in ("", *baselines)]
            body.append([row.name, *cells, *([row.verdict()] if judged else [])])
        found.append((header, body))
    return found


def comparison(runs: Mapping[str, tuple[Mapping[str, float], Mapping[str, Sequence[float]]]]) -> Grid:
    """Several runs side by side, name -> (results, expected): a column a run, a line a measurement or baseline."""
    tables = {name: {row.name: row for row in rows(*run)} for name, run in runs.items()}
    names = list(dict.fromkeys(row for table in tables.values() for row in table))
    body = []
    for name in names:
        found = [table[name] for table in tables.values() if name in table]
        for column in ("", *columns(found)):
            cells = [_cell(table[name].cells.get(column) if name in table else None, mark=True) for table in tables.values()]
            body.append([f"{name}, {BASELINES[column]}" if column else name, *cells])
    return ["", *runs], body


def _cell(value: Value | None, *, mark: bool) -> str:
    """A cell's text; a baseline carries the mark of its own interval, the representation's stands in the last column."""
    if value is None:
        return NOTHING
    if not mark or value.as_expected is None:
        return str(value)
    return f"{value} {'✓' if value.as_expected else '✗'}"


def results_table(results: Mapping[str, float], expected: Mapping[str, Sequence[float]] | None = None) -> Any:
    """The results as rich tables, one for each set of baselines; print it with `rich.print`."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    tables = []
    for header, body in grids(results, expected):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(header):
            width = max(len(text) for text in (*name.split(), *(line[i] for line in body)))
            whole = width >= len(name)  # only a header may wrap in a narrow terminal, never a number
            style = "bold" if i == 1 else None
            table.add_column(name, justify="right" if i else "left", style=style, min_width=width, no_wrap=whole)
        for line in body:
            table.add_row(*(Text(cell, style=_colour(cell)) for cell in line))
        tables.append(table)
    return Group(*tables)


def _colour(cell: str) -> str:
    return "green" if cell.endswith("✓") else "red" if cell.endswith(("✗", "not measured")) else ""


def results_markdown(results: Mapping[str, float], expected: Mapping[str, Sequence[float]] | None = None) -> str:
    """The same tables in Markdown."""
    return "\n".join(markdown(*table) for table in grids(results, expected))


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are aligned to the right."""
    escape = lambda text: str(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
    lines = [[escape(cell) for cell in line] for line in (header, *body)]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:])) + "\n"
