"""A self-contained HTML page, the same in Markdown, and the figures as PNG, of one run or of several side by side."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from ssl_jax.config import flat
from ssl_jax.errors import UserError
from ssl_jax.reports import figures, page, tables
from ssl_jax.reports.panels import write
from ssl_jax.reports.run import Run, differences, groups, load_runs


def write_report(workdirs: str | os.PathLike | Sequence[str | os.PathLike], out: str | os.PathLike | None = None, *,
                 log_x: bool = False) -> pathlib.Path:  # fmt: skip
    """Write report.html, report.md and their PNGs; return the path of the page.

    The report of one work directory is written into it; several get one page, comparison.html, in `out` (default: the first
    of them). An interrupted run gets a report of its existing results. Raise UserError for anything but a work directory.
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
    html, markdown = _page(runs, drawn), _markdown(runs, drawn)
    directory.mkdir(parents=True, exist_ok=True)
    stem = "report" if len(runs) == 1 else "comparison"
    for name, (_, images) in drawn.items():
        write(directory / f"{stem}_{name}.png", images["light"])
    write(directory / f"{stem}.md", markdown.encode())
    write(directory / f"{stem}.html", html.encode())
    return directory / f"{stem}.html"


def _figures(runs: Sequence[Run], log_x: bool) -> dict[str, tuple[str, dict[str, bytes]]]:
    """Return name -> (caption, theme -> PNG) of the figures with data."""
    metrics = {run.name: run.metrics for run in runs}
    tasks = {run.name: _name_of(run, "task") or "" for run in runs}
    grouped = {run.name: group.name for group in groups(runs) for run in group.runs}
    of_task = lambda task: {name: lines for name, lines in metrics.items() if tasks[name] == task}
    several = len(set(tasks.values())) > 1
    losses = {
        f"loss_{task}" if several else "loss": (
            f"Loss{f' of {task}' if several else ''}: every value of training, its running mean, and (broken) validation",
            lambda theme, task=task: figures.loss_figure(of_task(task), log_x=log_x, theme=theme, groups=grouped),
        )
        for task in dict.fromkeys(tasks.values())
    }
    draw = {
        "label_efficiency": ("Accuracy with a part of the labels", lambda theme: figures.label_efficiency_figure(
            {run.name: run.records for run in runs}, theme=theme)),
        **losses,
        "metrics": ("", lambda theme: figures.metrics_figure(metrics, theme=theme, groups=grouped)),
    }  # fmt: skip
    drawn = {name: (caption, {theme: figure(theme) for theme in figures.THEMES}) for name, (caption, figure) in draw.items()}
    return {name: value for name, value in drawn.items() if value[1]["light"] is not None}


# HTML ---------------------------------------------------------------------------------------------------------------


def _page(runs: Sequence[Run], drawn: Mapping[str, tuple[str, Mapping[str, bytes]]]) -> str:
    title = _title(runs)
    picture = {name: page.picture(images, caption) for name, (caption, images) in drawn.items()}
    main = "".join(picture[name] for name in picture if name != "metrics")
    parts = [
        f"<header><h1>{page.text(title)}</h1><p>{page.text(_subtitles(runs))}</p></header>",
        page.section("What differs", _difference_table(runs)) if len(runs) > 1 else "",
        *(page.section(f"Warnings{_of(run, runs)}", _list(run.warnings)) for run in runs if run.warnings),
        page.section("Results", _results(runs)),
        page.section("", f'<div class="figures">{main}</div>') if main else "",
        page.section("Panels", _panels(runs)) if any(run.panels for run in runs) else "",
        page.section("Other metrics", f'<div class="dense">{picture["metrics"]}</div>') if "metrics" in picture else "",
        page.section("Time", _timings(runs)) if _timing_rows(runs) else "",
        page.section("Started from", _started(runs)) if any(run.initialised for run in runs) else "",
        *(
            page.section(f"Recipe card{_of(run, runs)}", f'<pre class="wrap">{page.text(run.card)}</pre>')
            for run in runs
            if run.card
        ),
        *(page.section(f"Environment{_of(run, runs)}", page.pairs(flat(run.environment))) for run in runs if run.environment),
        *(page.section(f"Config{_of(run, runs)}", _config(run)) for run in runs if run.config),
    ]
    return page.document(title, parts)


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{page.text(line)}</li>' for line in lines)}</ul>"


def _of(run: Run, runs: Sequence[Run]) -> str:
    return f": {run.name}" if len(runs) > 1 else ""


def _title(runs: Sequence[Run]) -> str:
    return " · ".join(f"{g.name} ({len(g.runs)} runs)" if len(g.runs) > 1 else g.name for g in groups(runs))


def _subtitles(runs: Sequence[Run]) -> str:
    return "; ".join(dict.fromkeys(_subtitle(run) for run in runs))


def _subtitle(run: Run) -> str:
    """Return task, model, data and progress of the run in one line."""
    data = run.config.get("data")
    parts = [_name_of(run, "task"), _name_of(run, "model"), data.get("train") if isinstance(data, Mapping) else None]
    if run.last_step is not None:
        parts.append(f"{run.last_step:,} steps")
    if not run.records:
        parts.append("no results yet")
    return ", ".join(str(part) for part in parts if part)


def _name_of(run: Run, section: str) -> str | None:
    return run.config.get(section, {}).get("name") if isinstance(run.config.get(section), Mapping) else None


def _started(runs: Sequence[Run]) -> str:
    """Return the section on the parameters that were loaded from another model."""
    return "".join(page.pairs({"run": run.name, **run.initialised}) for run in runs if run.initialised)


def _results(runs: Sequence[Run]) -> str:
    if not any(run.records or run.expected for run in runs):
        return '<p class="quiet">No results yet: the run was not evaluated.</p>'
    note = '<p class="quiet note">Of several runs: mean ± deviation over them.</p>' if len(groups(runs)) < len(runs) else ""
    return "".join(page.table(header, body, own=1 if len(runs) == 1 else None) for header, body in _result_grids(runs)) + note


def _panels(runs: Sequence[Run]) -> str:
    """Return the panels, those with the same name side by side."""
    parts = []
    for name in dict.fromkeys(panel.name for run in runs for panel in run.panels):
        for run in runs:
            for panel in (panel for panel in run.panels if panel.name == name):
                label = f"{run.name}: {name}" if len(runs) > 1 else name
                if panel.png is not None:
                    columns = f"{label}: {panel.caption}" if panel.caption else label
                    parts.append(page.sheet(columns, panel.png, panel.caption or label, panel.note))
                else:
                    parts.append(page.figure(label, f'<pre class="wrap">{page.text(panel.text.rstrip())}</pre>'))
    return f'<div class="figures">{"".join(parts)}</div>'


def _config(run: Run) -> str:
    return f"<details><summary>{len(flat(run.config))} settings</summary>{page.pairs(flat(run.config))}</details>"


# Shared by both pages -----------------------------------------------------------------------------------------------


def _result_grids(runs: Sequence[Run]) -> list[tables.Grid]:
    if len(runs) == 1:
        return [tables.grid(tables.rows(runs[0].records, runs[0].expected))]
    return [tables.grouped({g.name: [(run.records, run.expected) for run in g.runs] for g in groups(runs)})]


def _timing_rows(runs: Sequence[Run]) -> list[list[str]]:
    names = dict.fromkeys(name for run in runs for name in run.timings)
    value = lambda run, name: page.duration(run.timings[name]) if name in run.timings else tables.NOTHING
    return [[name, *(value(run, name) for run in runs)] for name in names]


def _timings(runs: Sequence[Run]) -> str:
    return page.table(["", *(run.name if len(runs) > 1 else "" for run in runs)], _timing_rows(runs), left=True)


def _difference_table(runs: Sequence[Run]) -> str:
    if not differences(runs):
        return '<p class="quiet">The configs are the same.</p>'
    return page.table(*_difference_grid(runs), left=True)


def _difference_grid(runs: Sequence[Run]) -> tables.Grid:
    """Return the settings that differ, one column per group of runs; the seeds of a group share a cell."""
    found, keys = groups(runs), differences(runs)
    value = lambda group, key: page.plain(list(dict.fromkeys(page.plain(flat(run.config).get(key)) for run in group.runs)))
    return ["", *(group.name for group in found)], [[key, *(value(group, key) for group in found)] for key in keys]


# Markdown -----------------------------------------------------------------------------------------------------------


def _markdown(runs: Sequence[Run], drawn: Mapping[str, tuple[str, Mapping[str, bytes]]]) -> str:
    stem = "report" if len(runs) == 1 else "comparison"
    parts = [f"# {page.inline(_title(runs))}\n", f"{page.inline(_subtitles(runs))}\n"]
    if len(runs) > 1 and differences(runs):
        parts.append("## What differs\n\n" + tables.markdown(*_difference_grid(runs)))
    for run in runs:
        if run.warnings:
            lines = "".join(f"- {page.inline(line)}\n" for line in run.warnings)
            parts.append(f"## Warnings{page.inline(_of(run, runs))}\n\n{lines}")
    parts.append("## Results\n")
    if any(run.records or run.expected for run in runs):
        parts += [tables.markdown(*grid) for grid in _result_grids(runs)]
    else:
        parts.append("No results yet: the run was not evaluated.\n")
    for name, (caption, _) in drawn.items():
        parts.append(f"![{caption}]({stem}_{name}.png)\n")
    for run in runs:
        if run.panels:
            parts.append(f"## Panels{page.inline(_of(run, runs))}\n")
        for panel in run.panels:
            base = "" if len(runs) == 1 else f"{run.path.resolve()}/"
            body = (
                f"![{page.inline(panel.name)}]({base}panels/{panel.name}.png)\n"
                if panel.png is not None
                else page.fence(panel.text)
            )
            parts.append(f"### {page.inline(panel.name)}\n\n{body}" if panel.png is None else body)
            if panel.note:
                parts.append(f"{page.inline(panel.note)}\n")
    rows = _timing_rows(runs)
    if rows:
        parts.append("## Time\n\n" + tables.markdown(["", *(run.name for run in runs)], rows))
    for title, part in (("Environment", "environment"), ("Config", "config")):
        for run in runs:
            values = [[key, page.plain(value)] for key, value in flat(getattr(run, part)).items()]
            if values:
                parts.append(f"## {title}{page.inline(_of(run, runs))}\n\n" + tables.markdown(["", ""], values))
    for run in runs:
        if run.card:
            parts.append(f"## Recipe card{page.inline(_of(run, runs))}\n\n{page.fence(run.card)}")
    return "\n".join(parts)
