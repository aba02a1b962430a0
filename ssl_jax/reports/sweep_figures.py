"""The figures of a sweep: results with error bars, and learning curves with bands."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssl_jax.config import Duration
from ssl_jax.errors import UserError
from ssl_jax.reports import statistics
from ssl_jax.reports.figures import THEMES, axes_grid, label_axes, png, series

__all__ = ["THEMES", "curves_figure", "png", "results_figure", "svg"]


def svg(figure: Any) -> bytes:
    """Return a figure as an SVG that depends only on the drawing."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "ssl_jax"}):  # otherwise its ids are random
        figure.savefig(buffer, format="svg", facecolor=figure.get_facecolor(), metadata={"Date": None})
    return buffer.getvalue().encode()


def numbers(values: Sequence[Any]) -> tuple[list[float], str] | None:
    """Return the values of a config key as numbers with their unit ("epochs" of durations); None if they are not numbers."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return [float(v) for v in values], ""
    try:
        found = [Duration.parse(v, "") for v in values]
    except UserError:
        return None
    units = {d.unit for d in found}
    return ([d.number for d in found], "%" if units == {"%"} else f"{units.pop()}s") if len(units) == 1 else None


def results_figure(sweep: Any, theme: str) -> Any | None:
    """Draw every metric of the figure against its x, with 95 % intervals, and below it the published numbers, if any. Return
    None if no run has results."""
    settings = sweep.document.get("figure") or {}
    metrics = [m for m in (settings.get("y") or sweep.columns) if any(row.summaries[m] for row in sweep.rows)]
    if not metrics:
        return None
    arms = sweep.document["arms"]
    found = numbers([arm.get("x") for arm in arms]) if settings.get("x") else None
    x, unit = found or (list(range(len(arms))), "")
    published = {m: sweep.published_points(m, x) for m in metrics}
    height = 2 if any(published.values()) else 1
    figure, grid = axes_grid(theme, (4.2 * len(metrics), 3.2 * height), height, len(metrics))
    label = f"{settings.get('x')}{f' ({unit})' if unit else ''}" if found else ""
    names = list(dict.fromkeys(str(arm.get("series")) for arm in arms))
    colours = _colours(len(names), theme)
    for c, metric in enumerate(metrics):
        for name, colour in zip(names, colours, strict=True):
            rows = [i for i, arm in enumerate(arms) if str(arm.get("series")) == name]
            rows = sorted(rows, key=lambda i: x[i])
            _draw(grid[0, c], [(x[i], sweep.rows[i], metric) for i in rows], colour, name, bool(found))
        heading = sweep.columns[metric]
        _ticks(grid[0, c], arms, x, settings, bool(found))
        legend = bool(settings.get("series"))
        label_axes(grid[0, c], theme, label, heading, legend)
        if legend and grid[0, c].get_legend():
            title = grid[0, c].get_legend()
            title.set_title(settings["series"].rpartition(".")[2], prop={"size": 8.5})
            title.get_title().set_color(THEMES[theme]["text"])
        if height == 2:
            style = dict(marker="o", markersize=4.5, color=colours[0], linestyle="--" if found else "none")
            if published[metric]:
                grid[1, c].plot(*zip(*sorted(published[metric]), strict=True), **style)
            _ticks(grid[1, c], arms, x, settings, bool(found))
            grid[1, c].set_visible(bool(published[metric]))
            label_axes(grid[1, c], theme, label, f"{heading}, published", False)
    return figure


def _draw(axes: Any, points: Sequence[tuple], colour: str, name: str, connected: bool) -> None:
    """Draw the mean of each arm with its interval, and its runs as pale dots."""
    xs, means, halves = [], [], []
    for x, row, metric in points:
        values = [v for cell in row.cells if (v := cell.value(metric)) is not None]
        axes.plot([x] * len(values), values, "o", color=colour, markersize=2.5, alpha=0.35, markeredgewidth=0)
        if (summary := row.summaries[metric]) is not None:
            xs.append(x), means.append(summary.mean), halves.append(summary.half_width or 0.0)
    if xs:
        line = "-" if connected else "none"
        axes.errorbar(xs, means, halves, color=colour, marker="o", markersize=4.5, capsize=3, linewidth=1.7, linestyle=line,
                      label=name)  # fmt: skip


def _ticks(axes: Any, arms: Sequence[Mapping], x: Sequence[float], settings: Mapping, numeric: bool) -> None:
    if not numeric:
        axes.set_xticks(
            list(x),
            [arm["name"] for arm in arms],
            rotation=30 if len(arms) > 3 else 0,
            ha="right" if len(arms) > 3 else "center",
        )
        axes.set_xlim(-0.5, len(arms) - 0.5)
    elif settings.get("log_x"):
        axes.set_xscale("log")
        axes.set_xticks(sorted(set(x)), [f"{v:g}" for v in sorted(set(x))])
        axes.minorticks_off()


def curves_figure(sweep: Any, theme: str) -> Any | None:
    """Draw the training loss of every arm: the mean over its seeds at the steps that all have logged, and its 95 % t
    interval as a band. Return None if nothing was logged."""
    curves = []
    for row in sweep.rows:
        found = [series(cell.run.metrics, "loss") for cell in row.cells if cell.run is not None]
        found = [dict(zip(steps.tolist(), values.tolist(), strict=True)) for steps, values in found if len(steps)]
        if found:
            steps = sorted(set.intersection(*(set(curve) for curve in found)))
            values = np.array([[curve[s] for curve in found] for s in steps]).reshape(len(steps), len(found))
            keep = np.isfinite(values).all(axis=1)
            if keep.any():
                curves.append((row.arm, np.array(steps)[keep], values[keep]))
    if not curves:
        return None
    figure, grid = axes_grid(theme, (7.0, 3.8))
    axes = grid[0, 0]
    for (name, steps, values), colour in zip(curves, _colours(len(curves), theme), strict=True):
        mean, n = values.mean(axis=1), values.shape[1]
        axes.plot(steps, mean, color=colour, linewidth=1.5, label=name, marker="o" if len(steps) < 4 else None, markersize=3)
        if n > 1:
            half = statistics.critical(n - 1) * values.std(axis=1, ddof=1) / math.sqrt(n)
            axes.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
    later = np.concatenate([values[len(values) // 20 :].ravel() for _, _, values in curves])
    low, high = np.quantile(later, 0), np.quantile(later, 0.99)  # the first steps and divergent ends may be cut off
    if high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.08 * (high - low))
    label_axes(axes, theme, "step", "loss")
    return figure


def _colours(count: int, theme: str) -> list[Any]:
    """Return the theme's colours if they suffice, else evenly spaced colours of viridis."""
    own = THEMES[theme]["colours"]
    if count <= len(own):
        return list(own[:count])
    import matplotlib

    return [matplotlib.colormaps["viridis"](v) for v in np.linspace(0.05, 0.9, count)]
