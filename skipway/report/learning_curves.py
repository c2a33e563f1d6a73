"""Plots of a training as PNG files: loss and accuracy over epochs, the schedule, the learning-rate range test.

Every axis has its unit, and which direction is better.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from skipway.report.plot_style import (
    BLUE,
    DPI,
    GREEN,
    INK,
    MUTED,
    VERMILION,
    add_axes,
    draw_line,
    finite_or_nan,
    save_figure,
    save_note,
    set_titles,
)
from skipway.utils.primary_metric import PRIMARY_METRICS, primary_metric_in

__all__ = ["plot_learning_curves", "plot_lr_range_test", "plot_schedule"]

_UNITS = {
    "accuracy": "accuracy, % (higher is better)",
    "map": "mean average precision, % (higher is better)",
    "r2": "R2 (higher is better)",
    "loss": "loss, nats (lower is better)",
    "squares": "loss of scaled errors (lower is better)",
}
_SPARE = {"accuracy": 5.0, "map": 5.0, "r2": 0.05}
_BEST = {"accuracy": ", {:.1f}%", "map": ", {:.1f}%", "r2": ", {:.3f}"}


def plot_learning_curves(
    history: Sequence[Mapping[str, Any]], path: str | Path, best: int | None = None, *, kept: str = "best"
) -> None:
    """Plot loss and accuracy or R2 over epochs, training and validation.

    `best` is the epoch to mark, if not that of the highest score.
    """
    if not history:
        return save_note("no epoch was finished, so there are no curves", path)
    epochs = np.array([finite_or_nan(row.get("epoch")) for row in history])
    metric = primary_metric_in(history[0]).name
    columns = ("train_loss", "val_loss", f"train_{metric}", f"val_{metric}")
    series = {column: np.array([finite_or_nan(row.get(column)) for row in history]) for column in columns}
    best_row = _best_row(epochs, series[f"val_{metric}"], best)
    figure = Figure(figsize=(10, 3.9), dpi=DPI)
    percent = 100.0 if PRIMARY_METRICS[metric].is_share else 1.0
    for left, kind, factor in ((0.6, "loss", 1.0), (5.75, metric, percent)):
        axes = add_axes(figure, (left, 0.6, 3.5, 2.75))
        train, val = (series[f"{split}_{kind}"] * factor for split in ("train", "val"))
        values = np.r_[train, val][np.isfinite(np.r_[train, val])]
        steep = kind == "loss" and len(values) and values.min() > 0 and values.max() > 30 * np.median(values)
        unit = _UNITS["squares" if (kind, metric) == ("loss", "r2") else kind]
        title = PRIMARY_METRICS[kind].heading if kind in PRIMARY_METRICS else kind.capitalize()
        set_titles(axes, title, x="epoch", y=unit + (", log scale" if steep else ""))
        if steep:
            axes.set_yscale("log")
        draw_line(axes, epochs, train, color=BLUE, width=1.3)
        draw_line(axes, epochs, val, color=VERMILION, width=1.8)
        first, last = float(np.nanmin(epochs)), float(np.nanmax(epochs))
        margin = max(0.5, 0.03 * (last - first))
        axes.set_xlim(first - margin, last + margin)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        if len(values) and not steep:
            _widen_y_axis(axes, values, kind)
        if best_row is not None:
            text = f"{kept}: epoch {epochs[best_row]:g}" + _BEST.get(kind, "").format(val[best_row])
            _mark_best(axes, float(epochs[best_row]), y=float(val[best_row]), text=text)
        _label_ends(axes, epochs, [("training", train, BLUE), ("validation", val, VERMILION)])
    save_figure(figure, path)


def _best_row(epochs: np.ndarray, scores: np.ndarray, best_epoch: int | None) -> int | None:
    """Return the row of `best_epoch`, or if there is none that of the highest score."""
    if best_epoch is not None and (epochs == best_epoch).any():
        return int(np.flatnonzero(epochs == best_epoch)[0])
    return int(np.nanargmax(scores)) if np.isfinite(scores).any() else None


def _widen_y_axis(axes: Axes, values: np.ndarray, kind: str) -> None:
    """Widen the axis so that small differences do not look large."""
    low, high = axes.get_ylim()
    spare = max(0.0, (_SPARE.get(kind) or 0.2 * abs(values).max()) - (high - low)) / 2
    floor = max(low - spare, -0.5) if kind == "r2" else max(0.0, low - spare)  # early epochs go far below 0
    axes.set_ylim(floor, min({"accuracy": 101.0, "map": 101.0, "r2": 1.01}.get(kind, math.inf), high + spare))


def _label_ends(axes: Axes, epochs: np.ndarray, ends: list[tuple[str, np.ndarray, str]]) -> None:
    """Write the name of each line behind its last value, moved apart if two would overlap."""
    spots: list[tuple[float, float, float, str, str]] = []
    for name, values, color in ends:
        finite = np.flatnonzero(np.isfinite(values))
        if len(finite):
            x, y = float(epochs[finite[-1]]), float(values[finite[-1]])
            spots.append((float(axes.transData.transform((x, y))[1]) * 72 / DPI, x, y, name, color))
    spots.sort()
    close = len(spots) == 2 and spots[1][0] - spots[0][0] < 13
    push = (13 - (spots[1][0] - spots[0][0])) / 2 if close else 0.0
    for sign, (_, x, y, name, color) in zip((-1, 1), spots, strict=False):
        axes.annotate(
            name,
            (x, y),
            (8, sign * push),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=9,
            annotation_clip=False,
        )


def _mark_best(axes: Axes, x: float, *, y: float, text: str) -> None:
    """Draw a thin vertical line with its text, and a ring around the value."""
    low, high = axes.get_xlim()
    side = "center"
    if x < low + 0.25 * (high - low):
        side = "left"
    elif x > high - 0.25 * (high - low):
        side = "right"
    axes.axvline(x, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    axes.annotate(
        text,
        (x, 1),
        (0, 5),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        ha=side,
        color=MUTED,
        fontsize=9,
        annotation_clip=False,
    )
    if math.isfinite(y):
        axes.plot([x], [y], "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.1)


def plot_schedule(points: Sequence[Sequence[float]], path: str | Path) -> None:
    """Plot the learning rate over the position in the run, 0 to 1.

    If all points have a third number, it is drawn below, as momentum.
    """
    rows = [[finite_or_nan(value) for value in point] for point in points]
    rows = [row for row in rows if all(map(math.isfinite, row))]
    if not rows:
        return save_note("no schedule was recorded", path)
    lift = 1.9 if min(map(len, rows)) > 2 else 0.0
    figure = Figure(figsize=(7, 2.9 + lift), dpi=DPI)
    axes = add_axes(figure, (0.8, 0.6 + lift, 5.8, 1.8))
    xs, ys, *momentum = np.array([row[: 3 if lift else 2] for row in rows]).T
    if lift:
        below = add_axes(figure, (0.8, 0.6, 5.8, 1.0))
        below.plot(xs * 100, momentum[0], color=VERMILION, linewidth=1.8, marker="o" if len(xs) == 1 else None)
        below.set_xlim(-1, 101)
        below.margins(y=0.15)
        below.yaxis.set_major_locator(MaxNLocator(3))
        set_titles(below, "", x="position in the run, %", y="momentum")
    axes.fill_between(xs * 100, ys, color=BLUE, alpha=0.08, linewidth=0)
    axes.plot(xs * 100, ys, color=BLUE, linewidth=1.8, marker="o" if len(xs) == 1 else None)
    axes.set_xlim(-1, 101)
    axes.set_ylim(0 if ys.min() >= 0 else None, max(ys.max() * 1.05, 1e-12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    set_titles(axes, "Learning rate", x="" if lift else "position in the run, %", y="learning rate per step")
    top = int(ys.argmax())
    _mark_best(axes, float(xs[top] * 100), y=math.nan, text=f"highest: {ys[top]:.3g}")
    save_figure(figure, path)


def plot_lr_range_test(result: Mapping[str, Any], path: str | Path) -> None:
    """Plot the loss over the learning rate of a range test, raw and smoothed, with its valley and steepest fall."""
    figure = Figure(figsize=(7, 3.4), dpi=DPI)
    axes = add_axes(figure, (0.8, 0.6, 5.8, 2.3))
    rates, smoothed = np.asarray(result["rates"], float), np.asarray(result["smoothed"], float)
    axes.plot(rates, result["losses"], color=MUTED, linewidth=0.6, alpha=0.6)
    axes.plot(rates, smoothed, color=BLUE, linewidth=1.8)
    axes.set_xscale("log")
    low, high = float(smoothed.min()), float(smoothed[: int(smoothed.argmin()) + 1].max())
    axes.set_ylim(low - 0.15 * (high - low) - 1e-9, high + 0.35 * (high - low) + 1e-9)
    set_titles(axes, "Learning-rate range test", x="learning rate", y="training loss: lower is better")
    for name, color, lift in (("steepest", GREEN, 26), ("valley", VERMILION, 10)):
        rate = result[name]
        height = float(np.interp(np.log(rate), np.log(rates), smoothed))
        axes.plot([rate], [height], "o", color=color, markersize=6)
        text = f"{name}: {rate:.2g}"
        axes.annotate(text, (rate, height), (8, lift), textcoords="offset points", color=color, fontsize=9)
    save_figure(figure, path)
