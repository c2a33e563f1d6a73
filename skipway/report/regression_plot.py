"""Plot of a regression: predicted over true values."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from skipway.report.plot_style import BLUE, DPI, MUTED, add_axes, drawable_text, save_figure, save_note, set_titles

__all__ = ["plot_predictions"]

_MOST_POINTS = 4000


def plot_predictions(true: np.ndarray, predicted: np.ndarray, target: object, path: str | Path) -> None:
    """Plot predicted over true values, at most a few thousand points, with the line on which they are equal."""
    true, predicted = np.asarray(true, dtype=float), np.asarray(predicted, dtype=float)
    finite = np.isfinite(true) & np.isfinite(predicted)
    true, predicted = true[finite], predicted[finite]
    if not len(true):
        return save_note("there is nothing to compare", path)
    step = -(-len(true) // _MOST_POINTS)
    low, high = float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))
    margin = 0.04 * (high - low) or 1.0
    figure = Figure(figsize=(5.4, 5.2), dpi=DPI)
    axes = add_axes(figure, (0.8, 0.6, 4.3, 4.1))
    axes.plot([low - margin, high + margin], [low - margin, high + margin], color=MUTED, linewidth=1)
    strength = min(0.8, max(0.15, 30 / len(true[::step]) ** 0.5 / 2))
    axes.plot(true[::step], predicted[::step], "o", color=BLUE, markersize=4, alpha=strength, markeredgewidth=0)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(low - margin, high + margin)
    set_titles(axes, "Predicted and true values", x=f"true {drawable_text(target)}", y="predicted (on the line: right)")
    save_figure(figure, path)
