"""Figures as PNG: loss curves, other metrics, label efficiency. Each function takes plain numbers and a theme."""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ssl_jax.reports.records import Record

_LIGHT = ("#2563c9", "#d9632b", "#2f8f5b", "#9046b8", "#b8860b", "#0f8b99")
_DARK = ("#6ea8ff", "#ff9a66", "#63cf95", "#c78bf0", "#e0b64a", "#52c9d8")
THEMES = {
    "light": dict(background="#ffffff", text="#22272e", grid="#e3e6ea", colours=_LIGHT),
    "dark": dict(background="#1b1f26", text="#d7dce3", grid="#343b46", colours=_DARK),
}
METHODS = {
    "finetune": "fine-tuned",
    "scratch": "from scratch",
    "linear_probe": "linear probe",
    "random_encoder": "linear probe, random encoder",
    "raw_pixels": "linear probe, raw pixels",
    "bag_of_tokens": "linear probe, bag of tokens",
}


def axes_grid(theme: str, size: tuple[float, float] = (5.0, 3.2), rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """Return a figure and its axes, drawn by Agg without a display or global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = THEMES[theme]
    figure = Figure(figsize=size, dpi=150, facecolor=colours["background"], layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_facecolor(colours["background"])
        axes.grid(True, color=colours["grid"], linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(colors=colours["text"], labelsize=8.5, length=0)
        axes.minorticks_off()
        for name, spine in axes.spines.items():
            spine.set_visible(name == "bottom")
            spine.set_color(colours["text"])
    return figure, grid


def png(figure: Any) -> bytes:
    """Return a figure as a PNG that depends only on the drawing, not on time or version."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})
    return buffer.getvalue()


def label_axes(axes: Any, theme: str, x: str, y: str, legend: bool = True) -> None:
    """Label both axes, and add a legend."""
    text = THEMES[theme]["text"]
    axes.set_xlabel(x, color=text, fontsize=9)
    axes.set_ylabel(y, color=text, fontsize=9)
    if legend:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=text)


def series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Return steps and values of one metric; if a resumed run logged a step again, the later value counts."""
    found = {}
    for line in metrics:
        value = line.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and isinstance(line.get("step"), int | float):
            found[line["step"]] = value
    steps = sorted(found)
    return np.array(steps, np.float64), np.array([found[step] for step in steps], np.float64)


def running_mean(values: Float[np.ndarray, "n"], window: int) -> Float[np.ndarray, "n"]:
    """Return the centred mean over `window` values, at the ends over the existing values only."""
    base = values[0] if len(values) else 0.0  # differences from it keep a constant exactly constant
    total = np.concatenate([[0.0], np.cumsum(values - base)])
    i, half = np.arange(len(values)), window // 2
    low, high = np.maximum(i - half, 0), np.minimum(i + half + 1, len(values))
    return base + (total[high] - total[low]) / (high - low)


FEW = 30  # up to this many values are drawn as points


def validation_loss(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the name under which evaluators have logged a loss during training, "language_modelling/loss"."""
    names = dict.fromkeys(name for line in lines for name in line)
    return next((name for name in names if re.fullmatch(r"[^/]+/loss", name)), None)


def loss_figure(runs: Mapping[str, Sequence[Mapping[str, Any]]], *, log_x: bool = False, theme: str = "light",
                metric: str = "loss", groups: Mapping[str, str] | None = None) -> bytes | None:  # fmt: skip
    """Draw the loss of each run against its step: all logged values as a pale line, and their running mean.

    A validation loss is a dashed line with points. The first non-finite loss is marked. groups: the legend's name of each
    run; runs of one group share a colour. Return None if no run logged the metric.
    """
    curves = {name: series(lines, metric) for name, lines in runs.items()}
    if not any(len(steps) for steps, _ in curves.values()):
        return None
    figure, grid = axes_grid(theme)
    axes = grid[0, 0]
    colours, labelled = group_colours(groups or dict.fromkeys(runs), theme), set()
    for run, (steps, values) in curves.items():
        name, colour = (groups or {}).get(run, run), colours[run]
        label = lambda text: text if name not in labelled else None  # noqa: B023
        finite = np.isfinite(values)
        if not finite.all():
            first = steps[~finite][0]
            axes.axvline(first, color=colour, linestyle=":", linewidth=1.2, label=f"{name}: not finite at step {first:.0f}")
        steps, values = steps[finite], values[finite]
        if log_x:
            steps, values = steps[steps > 0], values[steps > 0]
        window = max(1, len(values) // 50) | 1
        smooth = window > 1
        marker = "o" if len(values) <= FEW else None
        axes.plot(steps, values, color=colour, linewidth=0.8 if smooth else 1.6, alpha=0.35 if smooth else 1.0, marker=marker,
                  markersize=4, label=None if smooth else label(name))  # fmt: skip
        if smooth:
            mean = running_mean(values, window)
            axes.plot(steps, mean, color=colour, linewidth=1.7, label=label(f"{name} (mean of {window} values)"))
        validation = validation_loss(runs[run])
        if validation is not None and metric == "loss":
            steps, values = series(runs[run], validation)
            axes.plot(steps, values, "--o", color=colour, linewidth=1.2, markersize=4, label=label(f"{name}: {validation}"))
        labelled.add(name)
    if log_x:
        axes.set_xscale("log")
    label_axes(axes, theme, "step", metric)
    return png(figure)


def metrics_figure(runs: Mapping[str, Sequence[Mapping[str, Any]]], *, theme: str = "light", most: int = 12,
                   groups: Mapping[str, str] | None = None) -> bytes | None:  # fmt: skip
    """Draw each other logged metric in a separate small plot; return None if there is none."""
    colours = group_colours(groups or dict.fromkeys(runs), theme)
    names: dict[str, None] = {}
    for lines in runs.values():
        for line in lines:
            names.update((k, None) for k, v in line.items() if isinstance(v, int | float) and not isinstance(v, bool))
    wanted = [
        name
        for name in names
        if name not in ("step", "loss")
        and not re.fullmatch(r"[^/]+/loss", name)
        and any(len(series(r, name)[0]) > 1 for r in runs.values())
    ]
    wanted = wanted[:most]
    if not wanted:
        return None
    columns = min(3, len(wanted))
    count = math.ceil(len(wanted) / columns)
    figure, grid = axes_grid(theme, (3.2 * columns, 2.1 * count), count, columns)
    for axes, name in zip(grid.flat, wanted, strict=False):
        for run, lines in runs.items():
            colour, (steps, values) = colours[run], series(lines, name)
            keep = np.isfinite(values)
            window = max(1, int(keep.sum()) // 50) | 1
            marker = "o" if keep.sum() <= FEW else None
            axes.plot(steps[keep], values[keep], color=colour, linewidth=0.7, alpha=0.3 if window > 1 else 1.0, marker=marker,
                      markersize=3)  # fmt: skip
            if window > 1:
                axes.plot(steps[keep], running_mean(values[keep], window), color=colour, linewidth=1.3)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.set_title(name, fontsize=9, color=THEMES[theme]["text"], loc="left")
    for axes in list(grid.flat)[len(wanted) :]:
        axes.set_visible(False)
    return png(figure)


def label_efficiency(records: Iterable[Record]) -> dict[str, list[tuple[float, float, float | None]]]:
    """Return method -> [(percent of the labels, accuracy, standard error or None)], in order of the percentage."""
    curves: dict[str, list] = {}
    for record in records:
        share, _, probe = record.setting.partition("/")
        if record.evaluator.partition(":")[0] == "label_efficiency" and record.metric == "accuracy" and share.endswith("%"):
            method = record.baseline or probe or "finetune"
            curves.setdefault(method, []).append((float(share[:-1]), record.value, record.stderr))
    return {method: sorted(points, key=lambda point: point[0]) for method, points in curves.items()}


def label_efficiency_figure(runs: Mapping[str, Iterable[Record]], *, theme: str = "light") -> bytes | None:
    """Draw accuracy against the share of the labels, with standard errors; return None if no run measured it.

    Colours denote runs, line styles methods: fine-tuned, from scratch, ...
    """
    curves = {name: label_efficiency(records) for name, records in runs.items()}
    if not any(curves.values()):
        return None
    figure, grid = axes_grid(theme)
    axes, alone = grid[0, 0], len([1 for found in curves.values() if found]) == 1
    colours, styles = colour_cycle(theme), ("-", "--", ":", "-.")
    methods = list(dict.fromkeys(method for found in curves.values() for method in found))
    ticks = set()
    for r, (name, found) in enumerate(curves.items()):
        for method, points in found.items():
            m = methods.index(method)
            percent, mean, stderr = zip(*points, strict=True)
            label = METHODS.get(method, method) if alone else f"{name}: {METHODS.get(method, method)}"
            line = dict(color=colours[m if alone else r], linestyle=styles[m % len(styles)], linewidth=1.7)
            axes.errorbar(percent, mean, [e or 0.0 for e in stderr], marker="o", markersize=4.5, capsize=3, label=label, **line)
            ticks.update(percent)
    axes.set_xscale("log")
    axes.set_xticks(sorted(ticks), [f"{tick:g} %" for tick in sorted(ticks)])
    axes.minorticks_off()
    label_axes(axes, theme, "share of the labels", "accuracy (bars: standard error)")
    return png(figure)


def group_colours(groups: Mapping[str, str | None], theme: str) -> dict[str, str]:
    """Return each run's colour: its group's, or a separate one if it has no group."""
    names = list(dict.fromkeys(group or run for run, group in groups.items()))
    cycle = colour_cycle(theme) * (1 + len(names) // 8)
    return {run: cycle[names.index(group or run)] for run, group in groups.items()}


def colour_cycle(theme: str) -> tuple[str, ...]:
    """Return the theme's colours, repeated for any number of runs."""
    return THEMES[theme]["colours"] * 8
