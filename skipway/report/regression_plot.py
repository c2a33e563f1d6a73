"""Plot of a regression: predicted over true values."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from skipway.report.plot_style import BLUE, DPI, MUTED, add_axes, drawable_text, save_figure, save_note, set_titles

__all__ = ["plot_predictions"]

_MOST_POINTS = 4000
_MOST_PANELS, _COLUMNS = 6, 3  # of several targets
_WIDTH, _HEIGHT = 5.4, 5.2  # of a panel, in inches


def plot_predictions(true: np.ndarray, predicted: np.ndarray, names: Sequence[object], path: str | Path) -> None:
    """Plot predicted over true values, a panel for each of the first targets, with the line on which they are equal.

    Args:
        true: (N, T) true values.
        predicted: (N, T) predicted values.
        names: T names of the targets.
        path: file to write.
    """
    true, predicted = np.asarray(true, dtype=float), np.asarray(predicted, dtype=float)
    finite = (np.isfinite(true) & np.isfinite(predicted)).all(axis=1)
    true, predicted = true[finite], predicted[finite]
    if not len(true):
        return save_note("there is nothing to compare", path)
    shown = min(len(names), _MOST_PANELS)
    columns = min(shown, _COLUMNS)
    rows = -(-shown // columns)
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows), dpi=DPI)
    for t in range(shown):
        row, column = divmod(t, columns)
        place = (_WIDTH * column + 0.8, _HEIGHT * (rows - 1 - row) + 0.6, 4.3, 4.1)
        _draw_panel(add_axes(figure, place), true[:, t], predicted[:, t], names[t])
    save_figure(figure, path)


def _draw_panel(axes: Axes, true: np.ndarray, predicted: np.ndarray, name: object) -> None:
    step = -(-len(true) // _MOST_POINTS)
    low, high = float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))
    margin = 0.04 * (high - low) or 1.0
    axes.plot([low - margin, high + margin], [low - margin, high + margin], color=MUTED, linewidth=1)
    strength = min(0.8, max(0.15, 30 / len(true[::step]) ** 0.5 / 2))
    axes.plot(true[::step], predicted[::step], "o", color=BLUE, markersize=4, alpha=strength, markeredgewidth=0)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(low - margin, high + margin)
    set_titles(axes, "Predicted and true values", x=f"true {drawable_text(name)}", y="predicted (on the line: right)")
