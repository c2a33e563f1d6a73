"""The figure of several runs beside each other, in the style of `plots`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from skipway.report.axes_layout import SERIES, WIDE, column, columns_of, end_of, name_ends
from skipway.report.learning_curves import DPI, _axes, _draw_line, _labels, _note, _save, _title

__all__ = ["comparison"]

_FIGURES = {
    "val_accuracy": ("Validation accuracy", "%, higher is better", 100.0),
    "val_r2": ("Validation R2", "share of the variance, higher is better", 1.0),
}
_LOSS = ("Validation loss", "lower is better", 1.0)


def comparison(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> None:
    """What was validated in every epoch of each run, by name: over the epochs, and over the seconds of training."""
    told = {name: rows for name, rows in histories.items() if rows}
    if not told:
        return _note("no run has finished an epoch", path)
    shared = [key for key in _FIGURES if all(key in rows[0] for rows in told.values())]
    key = shared[0] if shared else "val_loss"
    title, unit, factor = _FIGURES.get(key, _LOSS)
    figure = Figure(figsize=(WIDE, 4.1), dpi=DPI)
    names = _labels(list(told), 22)
    for (left, width), axis in zip(columns_of(2, 0.7, 1.9, 1.6), ("epoch", "seconds of training"), strict=True):
        axes = _axes(figure, (left, 0.65, width, 2.8))
        _title(axes, title, axis, unit)
        _draw(axes, list(told.values()), names, key, factor, axis)
    _save(figure, path)


def _draw(axes: Axes, runs: Sequence[Any], names: Sequence[str], key: str, factor: float, axis: str) -> None:
    ends = []
    for i, (rows, name) in enumerate(zip(runs, names, strict=True)):
        x = column(rows, "epoch") if axis == "epoch" else np.cumsum(np.nan_to_num(column(rows, "seconds")))
        y, color = column(rows, key) * factor, SERIES[i % len(SERIES)]
        _draw_line(axes, x, y, color, 1.5)
        ends.append(end_of(name, x, y, color))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=axis == "epoch", min_n_ticks=1))
    name_ends(axes, ends)
