"""One self-contained HTML page, its twin in Markdown, and the figures as PNG, of one run or of several side by side."""

import base64
import html
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ssl_jax.errors import UserError
from ssl_jax.reports import figures, tables
from ssl_jax.reports.panels import write
from ssl_jax.reports.run import Run, differences, flat, load_runs

STYLE = """
:root { color-scheme: light dark; --ground: #f4f5f7; --paper: #ffffff; --text: #22272e; --quiet: #66707d; --line: #e3e6ea;
  --accent: #2563c9; --good: #1f7a48; --bad: #b3261e; --code: #f0f2f5; }
@media (prefers-color-scheme: dark) { :root { --ground: #12151a; --paper: #1b1f26; --text: #d7dce3; --quiet: #8e99a8;
  --line: #343b46; --accent: #6ea8ff; --good: #63cf95; --bad: #ff8a80; --code: #12151a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 72px; }
header h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
header p { margin: 0; color: var(--quiet); overflow-wrap: anywhere; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 20px 24px; margin-top: 20px; }
h2 { font-size: 17px; margin: 0 0 14px; } h3 { font-size: 14px; margin: 18px 0 8px; color: var(--quiet); font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th { font-weight: 600; color: var(--quiet); font-size: 12.5px; text-align: right; padding: 4px 10px 8px; white-space: nowrap; }
td { text-align: right; padding: 6px 10px; border-top: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th:last-child, td:last-child { padding-right: 0; }
table.narrow { width: auto; } table + table, .wide + .wide { margin-top: 18px; }
td.own { font-weight: 650; } td.left, th.left { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); } .quiet { color: var(--quiet); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 20px; }
figure { margin: 0; min-width: 0; } figure img { display: block; max-width: 100%; height: auto; border-radius: 6px; }
figcaption { color: var(--quiet); font-size: 13px; margin: 0 0 8px; overflow-wrap: anywhere; }
pre { background: var(--code); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; margin: 0;
  overflow-x: auto; font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre.wrap { white-space: pre-wrap; overflow-wrap: anywhere; }
details + details { margin-top: 10px; } summary { cursor: pointer; color: var(--accent); font-size: 14px; margin-bottom: 8px; }
footer { color: var(--quiet); font-size: 12.5px; margin-top: 24px; }
@media print { body { background: none; } section { break-inside: avoid; border: none; padding: 8px 0; } }
"""


def write_report(workdirs: str | os.PathLike | Sequence[str | os.PathLike], out: str | os.PathLike | None = None, *,
                 log_x: bool = False) -> pathlib.Path:  # fmt: skip
    """Writes report.html, report.md and their PNGs; returns the path of the page.

    One work directory gets its report inside; several get one page, comparison.html, in `out` (default: the first of
    them). A run that was interrupted gets a report of what there is. Raises UserError for what is not a work directory.
    """
    single = isinstance(workdirs, str | os.PathLike)
    directories = [workdirs] if single else list(workdirs)
    if not directories:
        raise UserError("report: name at least one work directory")
    runs = load_runs(directories)
    directory = pathlib.Path(out) if out is not None else runs[0].path
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is a file; name a directory for the report")
    drawn = _figures(runs, log_x)
    page, text = _page(runs, drawn), _markdown(runs, drawn)
    directory.mkdir(parents=True, exist_ok=True)
    stem = "report" if len(runs) == 1 else "comparison"
    for name, (_, images) in drawn.items():
        write(directory / f"{stem}_{name}.png", images["light"])
    write(directory / f"{stem}.md", text.encode())
    write(directory / f"{stem}.html", page.encode())
    return directory / f"{stem}.html"


def _figures(runs: Sequence[Run], log_x: bool) -> dict[str, tuple[str, dict[str, bytes]]]:
    """name -> (caption, theme -> PNG), of those that have something to show."""
    metrics = {run.name: run.metrics for run in runs}
    draw = {
        "label_efficiency": ("Accuracy with a part of the labels", lambda theme: figures.label_efficiency_figure(
            {run.name: run.results for run in runs}, theme=theme)),
        "loss": ("Training loss: every logged value, and its running mean", lambda theme: figures.loss_figure(
            metrics, log_x=log_x, theme=theme)),
        "metrics": ("", lambda theme: figures.metrics_figure(metrics, theme=theme)),
    }  # fmt: skip
    drawn = {name: (caption, {theme: figure(theme) for theme in figures.THEMES}) for name, (caption, figure) in draw.items()}
    return {name: value for name, value in drawn.items() if value[1]["light"] is not None}


# HTML ---------------------------------------------------------------------------------------------------------------


def _page(runs: Sequence[Run], drawn: Mapping[str, tuple[str, Mapping[str, bytes]]]) -> str:
    title = " · ".join(run.name for run in runs)
    picture = {name: _picture(images, caption) for name, (caption, images) in drawn.items()}
    main = "".join(picture[name] for name in ("label_efficiency", "loss") if name in picture)
    parts = [
        f"<header><h1>{_text(title)}</h1><p>{_text('; '.join(_subtitle(run) for run in runs))}</p></header>",
        _section("Results", _results(runs)),
        _section("", f'<div class="figures">{main}</div>') if main else "",
        _section("Panels", _panels(runs)) if any(run.panels for run in runs) else "",
        _section("Other metrics", picture["metrics"]) if "metrics" in picture else "",
        _section("Time", _timings(runs)) if _timing_rows(runs) else "",
        _section("What differs", _difference_table(runs)) if len(runs) > 1 else "",
        *(_section(f"Recipe card{_of(run, runs)}", f'<pre class="wrap">{_text(run.card)}</pre>') for run in runs if run.card),
        *(_section(f"Environment{_of(run, runs)}", _pairs(flat(run.environment))) for run in runs if run.environment),
        *(_section(f"Config{_of(run, runs)}", _config(run)) for run in runs if run.config),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n<footer>ssl_jax report</footer>\n</main>\n</body>\n</html>\n"
    )


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _of(run: Run, runs: Sequence[Run]) -> str:
    return f": {run.name}" if len(runs) > 1 else ""


def _subtitle(run: Run) -> str:
    """Task, model and data in one line, and how far the run came."""
    name = lambda section: run.config.get(section, {}).get("name") if isinstance(run.config.get(section), Mapping) else None
    data = run.config.get("data")
    parts = [name("task"), name("model"), data.get("train") if isinstance(data, Mapping) else None]
    if run.last_step is not None:
        parts.append(f"{run.last_step:,} steps")
    if not run.results:
        parts.append("no results yet")
    return ", ".join(str(part) for part in parts if part)


def _section(title: str, body: str) -> str:
    heading = f"<h2>{_text(title)}</h2>" if title else ""
    return f"<section>{heading}{body}</section>"


def _results(runs: Sequence[Run]) -> str:
    if not any(run.results or run.expected for run in runs):
        return '<p class="quiet">No results yet: the run was not evaluated.</p>'
    return "".join(_table(header, body, own=1 if len(runs) == 1 else None) for header, body in _result_grids(runs))


def _table(header: Sequence[str], body: Sequence[Sequence[str]], *, own: int | None = None, left: bool = False) -> str:
    """An HTML table; column `own` is bold, verdicts are coloured."""

    def cell(i, text):
        colour = "good" if text.endswith("✓") else "bad" if text.endswith(("✗", "not measured")) else ""
        colour = colour or ("quiet" if text == tables.NOTHING else "")
        classes = " ".join(part for part in ("own" if i == own else "", "left" if left else "", colour) if part)
        return f'<td class="{classes}">{_text(text)}</td>' if classes else f"<td>{_text(text)}</td>"

    side, layout = (' class="left"', ' class="narrow"') if left else ("", "")
    head = "".join(f"<th{side}>{_text(name)}</th>" for name in header)
    lines = "".join("<tr>" + "".join(cell(i, str(text)) for i, text in enumerate(line)) + "</tr>" for line in body)
    return f'<div class="wide"><table{layout}><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _picture(images: Mapping[str, bytes], caption: str) -> str:
    """The figure in the reader's theme."""
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{_uri(images["dark"])}">'
    image = f'<img alt="{_text(caption)}" src="{_uri(images["light"])}">'
    heading = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return f"<figure>{heading}<picture>{dark}{image}</picture></figure>"


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _panels(runs: Sequence[Run]) -> str:
    """Panels of one name beside each other."""
    parts = []
    for name in dict.fromkeys(panel.name for run in runs for panel in run.panels):
        for run in runs:
            for panel in (panel for panel in run.panels if panel.name == name):
                label = f"{run.name}: {name}" if len(runs) > 1 else name
                if panel.png is not None:
                    body = f'<img alt="{_text(panel.caption or label)}" src="{_uri(panel.png)}">'
                else:
                    body = f'<pre class="wrap">{_text(panel.text.rstrip())}</pre>'
                parts.append(f"<figure><figcaption>{_text(label)}</figcaption>{body}</figure>")
    return f'<div class="figures">{"".join(parts)}</div>'


def _config(run: Run) -> str:
    return f"<details><summary>{len(flat(run.config))} settings</summary>{_pairs(flat(run.config))}</details>"


def _pairs(values: Mapping[str, Any]) -> str:
    return _table(("", ""), [(key, _plain(value)) for key, value in values.items()], left=True).replace(
        '<thead><tr><th class="left"></th><th class="left"></th></tr></thead>', "")  # fmt: skip


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(v) for v in value) if not any(isinstance(v, list | tuple) for v in value) else str(value)
    return tables.NOTHING if value is None else str(value)


# Shared by both pages -----------------------------------------------------------------------------------------------


def _result_grids(runs: Sequence[Run]) -> list[tables.Grid]:
    if len(runs) == 1:
        return tables.grids(runs[0].results, runs[0].expected)
    return [tables.comparison({run.name: (run.results, run.expected) for run in runs})]


def _timing_rows(runs: Sequence[Run]) -> list[list[str]]:
    names = dict.fromkeys(name for run in runs for name in run.timings)
    value = lambda run, name: duration(run.timings[name]) if name in run.timings else tables.NOTHING
    return [[name, *(value(run, name) for run in runs)] for name in names]


def _timings(runs: Sequence[Run]) -> str:
    return _table(["", *(run.name if len(runs) > 1 else "" for run in runs)], _timing_rows(runs), left=True)


def _difference_table(runs: Sequence[Run]) -> str:
    found = differences(runs)
    if not found:
        return '<p class="quiet">The configs are the same.</p>'
    return _table(["", *(run.name for run in runs)], [[key, *map(_plain, values)] for key, values in found.items()])


def duration(seconds: float) -> str:
    """ "48.2 s", "6 min 05 s", "2 h 14 min"."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


# Markdown -----------------------------------------------------------------------------------------------------------


def _markdown(runs: Sequence[Run], drawn: Mapping[str, tuple[str, Mapping[str, bytes]]]) -> str:
    stem = "report" if len(runs) == 1 else "comparison"
    parts = [f"# {' · '.join(_inline(run.name) for run in runs)}\n", *(f"{_inline(_subtitle(run))}\n" for run in runs)]
    parts.append("## Results\n")
    if any(run.results or run.expected for run in runs):
        parts += [tables.markdown(*grid) for grid in _result_grids(runs)]
    else:
        parts.append("No results yet: the run was not evaluated.\n")
    for name, (caption, _) in drawn.items():
        parts.append(f"![{caption}]({stem}_{name}.png)\n")
    for run in runs:
        if run.panels:
            parts.append(f"## Panels{_inline(_of(run, runs))}\n")
        for panel in run.panels:
            base = "" if len(runs) == 1 else f"{run.path.resolve()}/"
            body = f"![{_inline(panel.name)}]({base}panels/{panel.name}.png)\n" if panel.png is not None else _fence(panel.text)
            parts.append(f"### {_inline(panel.name)}\n\n{body}" if panel.png is None else body)
    rows = _timing_rows(runs)
    if rows:
        parts.append("## Time\n\n" + tables.markdown(["", *(run.name for run in runs)], rows))
    if len(runs) > 1 and differences(runs):
        rows = [[key, *map(_plain, values)] for key, values in differences(runs).items()]
        parts.append("## What differs\n\n" + tables.markdown(["", *(run.name for run in runs)], rows))
    for title, part in (("Environment", "environment"), ("Config", "config")):
        for run in runs:
            values = [[key, _plain(value)] for key, value in flat(getattr(run, part)).items()]
            if values:
                parts.append(f"## {title}{_inline(_of(run, runs))}\n\n" + tables.markdown(["", ""], values))
    for run in runs:
        if run.card:
            parts.append(f"## Recipe card{_inline(_of(run, runs))}\n\n{_fence(run.card)}")
    return "\n".join(parts)


def _inline(text: str) -> str:
    """Text from a run inside a Markdown line: no tags, one line."""
    return text.replace("<", "&lt;").replace("\n", " ")


def _fence(text: str) -> str:
    """A code block that its text cannot close."""
    ticks = "```"
    while ticks in text:
        ticks += "`"
    return f"{ticks}\n{text.rstrip()}\n{ticks}\n"
