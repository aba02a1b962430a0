"""The page of a sweep: its table with statistics, figure, learning curves, pictures and cost, from a folder of runs.

A sweep's folder holds sweep.json (the experiment) and ARM/seedN/, an ordinary work directory for each run. Everything
here is read from these files, so that the page can be made again at any time; missing runs are named. Table
and figures depend only on the runs' numbers: report.json and the figures are identical, byte for byte, however the
sweep was interrupted or divided.
"""

import dataclasses
import json
import math
import pathlib
import statistics as plain_statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ssl_jax.config import flat
from ssl_jax.errors import UserError
from ssl_jax.reports import page, statistics, sweep_figures, tables
from ssl_jax.reports.panels import write
from ssl_jax.reports.run import Run, load_run
from ssl_jax.reports.statistics import Comparison, Summary

FILE = "sweep.json"
RUN_FILES = ("config.json", "metrics.jsonl", "results.json")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the sweep. `missing` says why it has no results; "" if it has results."""

    arm: str
    seed: int
    path: pathlib.Path
    run: Run | None
    missing: str

    def value(self, metric: str) -> float | None:
        """Return the finite value of a metric, or None."""
        value = self.run.results.get(metric) if self.run else None
        return value if value is not None and math.isfinite(value) else None


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm: for each metric its summary over the seeds and its comparison with the default arm."""

    arm: str
    cells: Sequence[Cell]
    summaries: Mapping[str, Summary | None]
    comparisons: Mapping[str, Comparison | None]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The content of a sweep's folder."""

    path: pathlib.Path
    document: Mapping[str, Any]  # sweep.json
    rows: Sequence[Row]

    @property
    def columns(self) -> Mapping[str, str]:
        return self.document["columns"]

    @property
    def default(self) -> str:
        return self.document["default"]

    @property
    def cells(self) -> list[Cell]:
        return [cell for row in self.rows for cell in row.cells]

    @property
    def missing(self) -> list[tuple[Cell, str]]:
        """Return the runs without results, and those without a finite value in a column, each with the reason."""
        found = []
        for cell in self.cells:
            lacking = [name for name in self.columns if cell.value(name) is None]
            if cell.missing or lacking:
                found.append((cell, cell.missing or f"has no finite {', '.join(lacking)}"))
        return found

    def published(self, metric: str) -> list[float | None] | None:
        """Return the published values of the same quantity by arm; None if there are none."""
        published = self.document.get("published")
        if not published or metric not in published["columns"]:
            return None
        place = list(published["columns"]).index(metric)
        found = [published["rows"].get(row.arm) for row in self.rows]
        return [None if values is None else _sequence(values)[place] for values in found]

    def published_points(self, metric: str, x: Sequence[float]) -> list[tuple[float, float]]:
        """Return the points of the published figure: its curve, else the table's numbers at the arms' `x`."""
        curves = (self.document.get("published") or {}).get("curves") or {}
        if metric in curves:
            return [(a, b) for a, b in curves[metric]]
        found = self.published(metric) or []
        return [(a, b) for a, b in zip(x, found, strict=False) if b is not None]


def is_sweep(path: str | pathlib.Path) -> bool:
    return (pathlib.Path(path) / FILE).is_file()


def load_sweep(path: str | pathlib.Path) -> Sweep:
    """Read a sweep's folder, finished or not; raise UserError if it holds no sweep."""
    path = pathlib.Path(path)
    try:
        document = json.loads((path / FILE).read_text())
        arms, seeds, columns = document["arms"], document["seeds"], document["columns"]
    except FileNotFoundError:
        raise UserError(f"{path}: holds no sweep ({FILE} is missing)") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / FILE}: is not what a sweep writes there ({error}); restore it") from None
    cells = {arm["name"]: [_cell(path, arm, seed) for seed in seeds] for arm in arms}
    values = {
        name: {m: {c.seed: v for c in row if (v := c.value(m)) is not None} for m in columns} for name, row in cells.items()
    }
    default, others = document["default"], [arm["name"] for arm in arms if arm["name"] != document["default"]]
    places = [(name, metric) for name in others for metric in columns]
    found = [statistics.compare(values[name][metric], values[default][metric]) for name, metric in places]
    adjusted = statistics.holm([None if c is None else c.p for c in found])
    comparisons = {
        place: None if c is None else dataclasses.replace(c, adjusted=p)
        for place, c, p in zip(places, found, adjusted, strict=True)
    }
    rows = [
        Row(
            name,
            row,
            {m: statistics.summarize(list(values[name][m].values())) if values[name][m] else None for m in columns},
            {m: comparisons.get((name, m)) for m in columns},
        )
        for name, row in cells.items()
    ]
    return Sweep(path, document, rows)


def _cell(path: pathlib.Path, arm: Mapping[str, Any], seed: int) -> Cell:
    folder = path / arm["folder"] / f"seed{seed}"
    run, status = None, {}
    if any((folder / name).exists() for name in RUN_FILES):
        run = load_run(folder, f"{arm['name']}, seed {seed}")
        if (folder / "status.json").is_file():
            status = json.loads((folder / "status.json").read_text())
    if "diverged" in status:
        missing = f"diverged: {status['diverged']}"
    elif "failed" in status:
        missing = f"failed: {status['failed']}"
    elif run is None:
        missing = "not started"
    elif "trained" not in status:
        missing = f"in training, step {run.last_step:,}" if run.last_step else "in training"
    elif not run.results:
        missing = "trained, not evaluated"
    else:
        missing = ""
    return Cell(arm["name"], seed, folder, run, missing)


def _sequence(values: Any) -> Sequence[float | None]:
    return values if isinstance(values, list | tuple) else (values,)


# The page -------------------------------------------------------------------------------------------------------------


def write_sweep(path: str | pathlib.Path, out: str | pathlib.Path | None = None) -> pathlib.Path:
    """Write report.html, report.md, report.json and the figures (PNG and SVG) of a sweep; return the page's path."""
    sweep = load_sweep(path)
    out = pathlib.Path(out) if out is not None else sweep.path
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a directory for the report")
    out.mkdir(parents=True, exist_ok=True)
    figures = {
        name: {theme: figure(sweep, theme) for theme in sweep_figures.THEMES}
        for name, figure in (("figure", sweep_figures.results_figure), ("curves", sweep_figures.curves_figure))
    }
    figures = {name: drawn for name, drawn in figures.items() if drawn["light"] is not None}
    for name, drawn in figures.items():
        write(out / f"report_{name}.png", sweep_figures.png(drawn["light"]))
        write(out / f"report_{name}.svg", sweep_figures.svg(drawn["light"]))
    write(out / "report.json", (json.dumps(table_document(sweep), indent=1) + "\n").encode())
    write(out / "report.md", _markdown(sweep, figures).encode())
    images = {name: {theme: sweep_figures.png(figure) for theme, figure in drawn.items()} for name, drawn in figures.items()}
    write(out / "report.html", _html(sweep, images).encode())
    return out / "report.html"


CAPTIONS = {
    "figure": "Mean over the seeds with its 95 % t interval; pale dots are single runs",
    "curves": "Training loss: mean over the seeds, and its 95 % t interval as a band",
}


def table_document(sweep: Sweep) -> dict[str, Any]:
    """Return the data of the table and the figure: only numbers, independent of clock, folder and machine."""
    rows = []
    for row, arm in zip(sweep.rows, sweep.document["arms"], strict=True):
        columns = {}
        for metric in sweep.columns:
            summary, comparison = row.summaries[metric], row.comparisons[metric]
            columns[metric] = {
                "values": {str(cell.seed): cell.value(metric) for cell in row.cells},
                "summary": dataclasses.asdict(summary) if summary else None,
                "against_default": dataclasses.asdict(comparison) if comparison else None,
            }
        rows.append({"arm": row.arm, "x": arm.get("x"), "series": arm.get("series"), "columns": columns})
    keys = ("name", "default", "seeds", "columns", "figure", "published")
    order = {metric: tau for metric in sweep.columns if (tau := _tau(sweep, metric)) is not None}
    missing = [{"arm": cell.arm, "seed": cell.seed, "why": why} for cell, why in sweep.missing]
    return {**{key: sweep.document.get(key) for key in keys}, "rows": rows, "kendall_tau": order, "missing": missing}


def _tau(sweep: Sweep, metric: str) -> float | None:
    """Return Kendall's tau between our order of the arms and the published one."""
    published = sweep.published(metric)
    pairs = [(row.summaries[metric].mean, theirs) for row, theirs in zip(sweep.rows, published or [], strict=False)
             if row.summaries[metric] and theirs is not None]  # fmt: skip
    return statistics.concordance(*zip(*pairs, strict=True)) if pairs else None


# Tables as text, for both pages


def results_table(sweep: Sweep) -> tables.Grid:
    """Return the table: one row per arm, cells "mean ± half the interval (sd, n)", and the published numbers."""
    published = sweep.document.get("published")
    heads = [f"{heading}, published" for heading in published["columns"].values()] if published else []
    body = []
    for row in sweep.rows:
        name = f"{row.arm} (default)" if row.arm == sweep.default else row.arm
        theirs = _sequence(published["rows"].get(row.arm, [None] * len(heads))) if published else []
        cells = [summary_text(row.summaries[m], row.comparisons[m]) for m in sweep.columns]
        body.append([name, *cells, *(tables.NOTHING if v is None else f"{v:g}" for v in theirs)])
    return ["", *sweep.columns.values(), *heads], body


def summary_text(summary: Summary | None, comparison: Comparison | None = None) -> str:
    """Return "0.8531 ± 0.0042 (sd 0.0017, n 3) *"; the star marks a significant difference from the default arm."""
    if summary is None:
        return "missing"
    star = " *" if comparison is not None and comparison.significant else ""
    if summary.sd is None:
        return f"{tables.number_text(summary.mean)} (n 1, no interval){star}"
    digits = _digits(summary.half_width)
    return f"{summary.mean:.{digits}f} ± {summary.half_width:.{digits}f} (sd {summary.sd:.{digits}f}, n {summary.n}){star}"


def _digits(width: float) -> int:
    """Return the number of decimals that gives a half width two significant digits; at least 4 for shares, at most 6."""
    if width <= 0:
        return 4
    return min(max(1 - math.floor(math.log10(width)), 2), 6)


def comparison_table(sweep: Sweep) -> tables.Grid:
    """Return each arm's difference from the default, paired by seed: mean, interval, p, and p after Holm's correction."""
    body = []
    for row in sweep.rows:
        for metric, heading in sweep.columns.items():
            found = row.comparisons[metric]
            if found is None:
                continue
            interval, p, adjusted = tables.NOTHING, tables.NOTHING, tables.NOTHING
            digits = _digits((found.high - found.low) / 2) if found.low is not None else 4
            if found.low is not None:
                interval = f"[{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
            if found.p is not None:
                p, adjusted = f"{found.p:.2g}", f"{found.adjusted:.2g}{' *' if found.significant else ''}"
            body.append([row.arm, heading, f"{found.difference:+.{digits}f}", interval, str(found.n), p, adjusted])
    return ["", "metric", "difference", "95 % interval", "n", "p", "p (Holm)"], body


def notes(sweep: Sweep) -> list[str]:
    """Return the notes on the table, one sentence each."""
    seeds = sweep.document["seeds"]
    found = []
    if len(seeds) == 1:
        found.append("One seed: no interval and no test; give --experiment.seeds=3 or more for both.")
    else:
        found.append(
            f"± is half of the 95 % t interval of the mean over {len(seeds)} seeds, sd their sample standard deviation;"
            f" * marks p < {statistics.SIGNIFICANT:g} against {sweep.default}, paired by seed (paired t),"
            " corrected for all comparisons of the table (Holm)."
        )
    published = sweep.document.get("published")
    if published:
        found.append(f"Published: {published['source']}.")
    for metric, heading in sweep.columns.items():
        tau = _tau(sweep, metric)
        if tau is not None:
            found.append(f"Order of the arms in {heading}: Kendall's tau {tau:+.2f} with the published one.")
    if sweep.document.get("share_data"):
        found.append("Replicas of one program read the same batches (share_data): their data order is not independent.")
    return found


def missing_lines(sweep: Sweep) -> list[str]:
    return [f"{cell.arm}, seed {cell.seed}: {why}" for cell, why in sweep.missing]


def difference_table(sweep: Sweep) -> tables.Grid:
    """Return the config keys in which the arms differ."""
    arms = sweep.document["arms"]
    keys = list(dict.fromkeys(key for arm in arms for key in arm["values"]))
    base = flat(sweep.document["config"])

    def shown(arm, key):
        value = arm["values"].get(key, base.get(key))
        return json.dumps(value) if isinstance(value, dict) else page.plain(value)

    return ["", *keys], [[arm["name"], *(shown(arm, key) for key in keys)] for arm in arms]


def cost_table(sweep: Sweep) -> tables.Grid:
    """Return the measured cost of each arm: means over its runs."""
    mean = lambda values: plain_statistics.fmean(values) if values else None
    text = lambda value, show: tables.NOTHING if value is None else show(value)
    body = []
    for row in sweep.rows:
        runs = [cell.run for cell in row.cells if cell.run is not None]
        steps = mean([v for run in runs if (v := step_time(run)) is not None])
        training = mean([run.timings["training"] for run in runs if "training" in run.timings])
        others = [math.fsum(v for k, v in run.timings.items() if k != "training") for run in runs if run.results]
        body.append([row.arm, text(steps, lambda s: f"{1e3 * s:.1f} ms"), text(training, page.duration),
                     text(mean(others), page.duration), str(len(runs))])  # fmt: skip
    return ["", "step", "training", "evaluation", "runs"], body


def step_time(run: Run) -> float | None:
    """Return the median time of a step in seconds, from speed.jsonl; None if none was logged."""
    speeds = [line["steps/s"] for line in run.metrics if isinstance(line.get("steps/s"), int | float) and line["steps/s"] > 0]
    return 1 / plain_statistics.median(speeds) if speeds else None


def hardware(sweep: Sweep) -> list[str]:
    """Return the machines on which the runs were made, one line each, with their numbers of runs."""
    found: dict[str, int] = {}
    for cell in sweep.cells:
        if cell.run is None or not cell.run.environment:
            continue
        device, versions = cell.run.environment.get("device") or {}, cell.run.environment.get("versions") or {}
        kind = device.get("processor") or device.get("kind", "unknown device")
        line = f"{device.get('count', 1)} x {kind}, {device.get('cores', '?')} cores, {cell.run.environment.get('host', '')}"
        line += f", JAX {versions.get('jax', '?')}, commit {cell.run.environment.get('git_commit') or 'unknown'}"
        found[line] = found.get(line, 0) + 1
    return [f"{line} ({count} runs)" for line, count in sorted(found.items())]


def pictures(sweep: Sweep) -> Iterator[tuple[str, str, bytes | None, str | None]]:
    """Yield (arm, panel's name, PNG, text) of the first run of each arm that has panels."""
    for row in sweep.rows:
        run = next((cell.run for cell in row.cells if cell.run is not None and cell.run.panels), None)
        for panel in run.panels if run else ():
            yield row.arm, panel.name, panel.png, panel.text


def _html(sweep: Sweep, images: Mapping[str, Mapping[str, bytes]]) -> str:
    document, body = sweep.document, '<div class="figures">'
    for name, drawn in images.items():
        body += page.picture(drawn, CAPTIONS[name])
    items = lambda lines: "".join(f'<p class="quiet">{page.text(line)}</p>' for line in lines)
    missing = missing_lines(sweep)
    comparisons = comparison_table(sweep)
    settings = f"<details><summary>settings</summary>{page.pairs(flat(document['config']))}</details>"
    parts = [
        f"<header><h1>{page.text(document['name'])}</h1><p>{page.text(_subtitle(sweep))}</p></header>",
        page.section("Results", page.table(*results_table(sweep)) + items(notes(sweep))),
        page.section("Missing", items(missing)) if missing else "",
        page.section("", body + "</div>") if images else "",
        page.section(f"Differences from {sweep.default}", page.table(*comparisons)) if comparisons[1] else "",
        page.section("Pictures", _html_pictures(sweep)) if any(True for _ in pictures(sweep)) else "",
        page.section("What the arms set", page.table(*difference_table(sweep), left=True)),
        page.section("Cost", page.table(*cost_table(sweep)) + items(hardware(sweep))),
        page.section("Command", f"<pre>{page.text(_command(sweep))}</pre>"),
        page.section("Recipe card", f'<pre class="wrap">{page.text(document["card"])}</pre>') if document.get("card") else "",
        page.section("Base config", settings),
    ]
    return page.document(document["name"], parts)


def _subtitle(sweep: Sweep) -> str:
    done = sum(not cell.missing for cell in sweep.cells)
    return f"{len(sweep.rows)} arms x {len(sweep.document['seeds'])} seeds, {done} of {len(sweep.cells)} runs finished"


def _command(sweep: Sweep) -> str:
    return f"{sweep.document['command']} --workdir=DIR"


def _html_pictures(sweep: Sweep) -> str:
    parts = []
    for arm, name, png, text in pictures(sweep):
        label = f"{arm}: {name}"
        shown = lambda text: page.figure(label, f'<pre class="wrap">{page.text(text)}</pre>')  # noqa: B023
        parts.append(page.sheet(label, png, name) if png else shown(text))
    return f'<div class="figures">{"".join(parts)}</div>'


def _markdown(sweep: Sweep, figures: Mapping[str, Any]) -> str:
    document = sweep.document
    parts = [f"# {page.inline(document['name'])}\n", f"{page.inline(_subtitle(sweep))}\n"]
    parts += ["## Results\n", tables.markdown(*results_table(sweep)), *(f"{page.inline(line)}\n" for line in notes(sweep))]
    if sweep.missing:
        parts += ["## Missing\n", "\n".join(f"- {page.inline(line)}" for line in missing_lines(sweep)) + "\n"]
    parts += [f"![{CAPTIONS[name]}](report_{name}.png)\n" for name in figures]
    comparisons = comparison_table(sweep)
    if comparisons[1]:
        parts += [f"## Differences from {page.inline(sweep.default)}\n", tables.markdown(*comparisons)]
    parts += ["## What the arms set\n", tables.markdown(*difference_table(sweep))]
    parts += ["## Cost\n", tables.markdown(*cost_table(sweep)), *(f"{page.inline(line)}\n" for line in hardware(sweep))]
    parts += ["## Command\n", page.fence(_command(sweep))]
    return "\n".join(parts)


def console_table(sweep: Sweep) -> Any:
    """Return the table for a terminal; print it with `rich.print`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    header, body = results_table(sweep)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for line in body:
        table.add_row(*(Text(cell) for cell in line))
    return table
