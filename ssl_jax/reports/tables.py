"""Tables of results: each measurement of the representation beside its baselines, for the console and as Markdown."""

import dataclasses
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from ssl_jax.reports.records import Record

BASELINES = {  # name -> heading, in the order of the columns
    "random_encoder": "random encoder",
    "raw_pixels": "raw pixels",
    "bag_of_tokens": "bag of tokens",
    "unigram": "unigram",
    "most_frequent": "most frequent",
    "likeliest_sentence": "likeliest sentence",
    "copied_source": "copied source",
    "scratch": "from scratch",
    "majority": "majority",
    "chance": "chance",
}
NOTHING = "\N{EM DASH}"

Grid = tuple[list[str], list[list[str]]]
Intervals = Mapping[str, Sequence[float]]  # a result's name -> its expected interval


@dataclasses.dataclass
class Row:
    """One measurement: the representation's record and each baseline's."""

    name: str  # "evaluator/setting/metric"
    record: Record | None = None  # None: expected, but not measured
    baselines: dict[str, Record] = dataclasses.field(default_factory=dict)
    expected: dict[str | None, tuple[float, float]] = dataclasses.field(
        default_factory=dict
    )  # intervals of the representation (None) and of baselines

    @property
    def headline(self) -> bool:
        """Return whether the short table shows this row."""
        return self.record is None or self.record.headline or None in self.expected

    def holds(self, baseline: str | None = None) -> bool | None:
        """Return whether a value lies in its expected interval, ends included; None if there is no interval."""
        record = self.record if baseline is None else self.baselines.get(baseline)
        if record is None or baseline not in self.expected:
            return None
        low, high = self.expected[baseline]
        return low <= record.value <= high

    @property
    def best_baseline(self) -> Record | None:
        """Return the best finite baseline."""
        finite = [record for record in self.baselines.values() if math.isfinite(record.value)]
        lower = self.record is not None and self.record.lower_is_better
        return min(finite, key=lambda record: record.value if lower else -record.value, default=None)

    def verdict(self) -> str:
        """Return the expected interval and whether the value lies in it."""
        if None not in self.expected:
            return ""
        low, high = self.expected[None]
        return f"{low:g} to {high:g} {'not measured' if self.record is None else _mark(self.holds())}"

    def gain(self) -> str:
        """Return the difference to the best baseline, with the standard error of a difference of independent values."""
        best = self.best_baseline
        if self.record is None or best is None:
            return NOTHING
        errors = [r.stderr for r in (self.record, best) if r.stderr is not None]
        stderr = math.hypot(*errors) if errors else None
        return _with_error(self.record.value - best.value, stderr, signed=True)


def _mark(holds: bool | None) -> str:
    return "" if holds is None else "✓" if holds else "✗"


def number_text(number: float) -> str:
    """Format a measurement with four significant digits, a count with all digits."""
    if isinstance(number, bool) or not math.isfinite(number):
        return str(number)
    if float(number).is_integer() and (isinstance(number, int) or abs(number) >= 1e4):
        return f"{int(number):,}" if abs(number) < 1e15 else f"{number:.3e}"
    if abs(number) >= 1e4:
        return f"{number:,.0f}"
    if number and abs(number) < 1e-3:
        return f"{number:.3e}"
    return f"{number:.4g}" if abs(number) >= 1 else f"{number:.4f}"


def value_text(record: Record) -> str:
    """Return "0.8674 ± 0.0034", the value with the digits that its standard error justifies."""
    return _with_error(record.value, record.stderr)


def _with_error(value: float, stderr: float | None, *, signed: bool = False) -> str:
    if stderr is None or not stderr > 0 or not math.isfinite(value) or not math.isfinite(stderr):
        text = number_text(value)
        return f"+{text}" if signed and value > 0 else text
    places = max(0, 1 - math.floor(math.log10(stderr)))
    return f"{value:{'+' if signed else ''},.{places}f} ± {stderr:.{places}f}"


def rows(records: Iterable[Record], expected: Intervals | None = None) -> list[Row]:
    """Return one row per measurement, in the order of first appearance, and per missing measurement that was expected.

    A baseline that does not depend on the setting (the majority class) is in the rows of all settings.
    """
    records, intervals = list(records), {name: (float(low), float(high)) for name, (low, high) in (expected or {}).items()}
    table: dict[tuple, Row] = {}
    for record in records:
        key = (record.evaluator, record.metric, record.class_name, record.setting)
        if record.baseline is None:
            table[key] = Row(record.name, record)
    for record in records:
        if record.baseline is None:
            continue
        of_all = record.setting == "" and (record.evaluator, record.metric, record.class_name, "") not in table
        same = lambda key, r=record: key[:3] == (r.evaluator, r.metric, r.class_name)
        homes = [row for key, row in table.items() if same(key) and (of_all or key[3] == record.setting)]
        homes = homes or [table.setdefault((record.name,), Row(record.name))]
        for row in homes:
            row.baselines[record.baseline] = record
    found = list(table.values())
    for row in found:
        for baseline, record in [(None, row.record), *row.baselines.items()]:
            interval = record and intervals.get(record.name, intervals.get(record.name.removesuffix("/mean")))
            if interval:
                row.expected[baseline] = interval
    names = {record.name for record in records}
    absent = [name for name in intervals if name not in names and f"{name}/mean" not in names]
    return found + [Row(name, expected={None: intervals[name]}) for name in absent]


def columns(table: Sequence[Row]) -> list[str]:
    """Return the baselines that occur, in the order of BASELINES, with unknown ones last."""
    present = dict.fromkeys(name for row in table for name in row.baselines)
    return [name for name in BASELINES if name in present] + [name for name in present if name not in BASELINES]


def heading(baseline: str) -> str:
    return BASELINES.get(baseline, baseline.replace("_", " "))


def failures(table: Sequence[Row]) -> list[str]:
    """Return one line for each value that lies outside its expected interval or was not measured."""
    lines = []
    for row in table:
        for baseline, (low, high) in row.expected.items():
            record = row.record if baseline is None else row.baselines[baseline]
            if record is None:
                lines.append(f"{row.name}: expected {low:g} to {high:g}, not measured")
            elif not row.holds(baseline):
                lines.append(f"{record.name}={number_text(record.value)}: expected {low:g} to {high:g}")
    return lines


def grid(table: Sequence[Row], *, gain: bool = False) -> Grid:
    """Return (header, body) as text: name, encoder, baselines and, where they exist, the number of examples, the difference to
    the best baseline (with `gain`), and the expected interval."""
    beside = columns(table)
    counted = any(row.record is not None and row.record.n for row in table)
    judged, gain = any(row.expected for row in table), gain and bool(beside)
    header = ["", "encoder", *(["to the best baseline"] if gain else []), *map(heading, beside)]
    header += (["n"] if counted else []) + (["expected"] if judged else [])
    body = []
    for row in table:
        line = [row.name, NOTHING if row.record is None else value_text(row.record)]
        line += [row.gain()] if gain else []
        for name in beside:
            cell = value_text(row.baselines[name]) if name in row.baselines else NOTHING
            line.append(f"{cell} {_mark(row.holds(name))}".rstrip())
        line += [f"{row.record.n:,}" if row.record is not None and row.record.n else NOTHING] if counted else []
        body.append(line + ([row.verdict()] if judged else []))
    return header, body


# The short table ----------------------------------------------------------------------------------------------------


def short_table(records: Iterable[Record], expected: Intervals | None = None, *, width: int = 80) -> str:
    """Return the headline of each evaluator beside its baselines, with standard errors, on `width` columns.

    Values outside their expected interval follow, one line each. Baselines that do not fit are only in the report.
    """
    table = rows(records, expected)
    shown = [row for row in table if row.headline]
    if not shown:
        return ""
    lines = _columns_of_text(shown, width)
    if any(row.record is not None and row.record.stderr for row in shown):
        lines.append("± standard error; n: examples of the test split. Everything else is in results.json and the report.")
    judged = sum(len(row.expected) for row in table)
    outside = failures(table)
    if judged and not outside:
        lines.append(f"As expected: {judged} of {judged} values.")
    lines += [f"✗ {line}" for line in outside]
    return "\n".join(line for text in lines for line in (textwrap.wrap(text, width) if len(text) > width else [text]))


def _columns_of_text(shown: Sequence[Row], width: int) -> list[str]:
    beside = columns(shown)
    wanted = min(20, max(len(row.name) for row in shown))
    while True:
        header = [["encoder"], *(heading(name).split(" ", 1) for name in beside), ["n"]]
        body = [_cells(row, beside) for row in shown]
        sizes = [max(len(text) for text in (*head, *(line[i] for line in body))) for i, head in enumerate(header)]
        left = width - sum(sizes) - 2 * len(sizes)
        if left >= wanted or not beside:
            break
        beside = beside[:-1]
    names = [_folded(row.name, max(left, 12)) for row in shown]
    first = max(len(part) for parts in names for part in parts)
    lines, height = [], max(map(len, header))
    for i in range(height):  # headings of two words take two lines, the second one above the numbers
        parts = [head[i - height] if len(head) >= height - i else "" for head in header]
        text = "".join(f"  {part:>{size}}" for part, size in zip(parts, sizes, strict=True))
        lines.append((" " * first + text).rstrip())
    lines.append("─" * (first + sum(sizes) + 2 * len(sizes)))
    for parts, cells in zip(names, body, strict=True):
        text = "".join(f"  {cell:>{size}}" for cell, size in zip(cells, sizes, strict=True))
        lines += [f"{parts[0]:<{first}}{text}".rstrip(), *parts[1:]]
    return lines


def _cells(row: Row, beside: Sequence[str]) -> list[str]:
    """Return value, baselines and n of a row; baselines are rounded like the value."""
    record = row.record
    if record is None:
        return ["not measured", *([""] * len(beside)), ""]
    places = None
    if record.stderr and math.isfinite(record.stderr):
        places = max(0, -math.floor(math.log10(record.stderr)))
        own = f"{record.value:,.{places}f} ±{record.stderr:.{places}f}"
    else:
        own = number_text(record.value)
    found = [f"{own} {_mark(row.holds())}".rstrip()]
    for name in beside:
        other = row.baselines.get(name)
        text = "" if other is None else number_text(other.value) if places is None else f"{other.value:,.{places}f}"
        found.append(f"{text} {_mark(row.holds(name))}".rstrip())
    return [*found, f"{record.n:,}" if record.n else ""]


def _folded(name: str, width: int) -> list[str]:
    """Return a name in indented lines of at most `width`, broken at a space, else after one of "/:_", else anywhere."""
    lines, rest = [], name
    while len(rest) > width:
        cut = rest.rfind(" ", 1, width + 1)
        cut = max(cut, max(rest.rfind(mark, 1, width) for mark in "/:_") + 1)
        cut = cut if cut > (2 if lines else 0) else width
        lines, rest = [*lines, rest[:cut]], "  " + rest[cut:].lstrip()
    return [*lines, rest]


# Several runs -------------------------------------------------------------------------------------------------------


def grouped(groups: Mapping[str, Sequence[tuple[Iterable[Record], Intervals]]]) -> Grid:
    """Return groups of runs side by side, name -> [(records, expected)], with mean and deviation over several runs."""
    header = [f"{name} ({len(runs)} runs)" if len(runs) > 1 else name for name, runs in groups.items()]
    tables = {name: [{row.name: row for row in rows(*run)} for run in runs] for name, runs in groups.items()}
    every = [table for of_group in tables.values() for table in of_group]
    body = []
    for name in dict.fromkeys(row for table in every for row in table):
        for column in (None, *columns([table[name] for table in every if name in table])):
            cells = []
            for of_group in tables.values():
                held = [table[name] for table in of_group if name in table]
                found = [row.record if column is None else row.baselines.get(column) for row in held]
                found = [record for record in found if record is not None]
                if len(of_group) == 1:
                    cells.append(f"{value_text(found[0])} {_mark(held[0].holds(column))}".rstrip() if found else NOTHING)
                else:
                    cells.append(_over_runs([record.value for record in found], len(of_group)))
            body.append([f"{name}, {heading(column)}" if column else name, *cells])
    return ["", *header], body


def _over_runs(values: Sequence[float], runs: int) -> str:
    """Return "0.8674 ± 0.0034", the mean and the deviation (n - 1), with the number of runs if some lack the value."""
    if not values:
        return NOTHING
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)) if len(values) > 1 else None
    if deviation is not None and deviation <= 1e-12 * abs(mean):  # only rounding
        deviation = None
    return _with_error(mean, deviation) + (f" ({len(values)} of {runs})" if len(values) < runs else "")


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are aligned to the right."""
    escape = lambda text: str(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
    lines = [[escape(cell) for cell in line] for line in (header, *body)]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:])) + "\n"
