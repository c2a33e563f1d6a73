"""Plot of several runs next to each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from skipway.report.axes_layout import SERIES, WIDE, column_values, label_line_ends, line_end, panel_columns
from skipway.report.plot_style import DPI, add_axes, draw_line, save_figure, save_note, set_titles, unique_labels

__all__ = ["plot_run_comparison"]

_FIGURES = {
    "val_accuracy": ("Validation accuracy", "%, higher is better", 100.0),
    "val_map": ("Validation mean average precision", "higher is better", 1.0),
    "val_r2": ("Validation R2", "share of the variance, higher is better", 1.0),
}
_LOSS = ("Validation loss", "lower is better", 1.0)


def plot_run_comparison(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> None:
    """Plot the validation metric of each run, by name: over the epochs, and over the seconds of training."""
    runs = {name: rows for name, rows in histories.items() if rows}
    if not runs:
        return save_note("no run has finished an epoch", path)
    shared = [key for key in _FIGURES if all(key in rows[0] for rows in runs.values())]
    key = shared[0] if shared else "val_loss"
    title, unit, factor = _FIGURES.get(key, _LOSS)
    figure = Figure(figsize=(WIDE, 4.1), dpi=DPI)
    names = unique_labels(list(runs), 22)
    panels = panel_columns(2, left=0.7, gap=1.9, right=1.6)
    for (left, width), axis in zip(panels, ("epoch", "seconds of training"), strict=True):
        axes = add_axes(figure, (left, 0.65, width, 2.8))
        set_titles(axes, title, x=axis, y=unit)
        ends = []
        for i, (rows, name) in enumerate(zip(runs.values(), names, strict=True)):
            x = _positions(rows, axis)
            y, color = column_values(rows, key) * factor, SERIES[i % len(SERIES)]
            draw_line(axes, x, y, color=color, width=1.5)
            ends.append(line_end(name, x, y, color=color))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=axis == "epoch", min_n_ticks=1))
        label_line_ends(axes, ends)
    save_figure(figure, path)


def _positions(rows: Sequence[Mapping[str, Any]], axis: str) -> np.ndarray:
    if axis == "epoch":
        return column_values(rows, "epoch")
    return np.cumsum(np.nan_to_num(column_values(rows, "seconds")))
