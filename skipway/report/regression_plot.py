"""The picture of a regression: predicted over true numbers."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from skipway.report.learning_curves import BLUE, DPI, MUTED, _axes, _note, _safe, _save, _title

__all__ = ["against"]

_MOST_POINTS = 4000


def against(true: np.ndarray, predicted: np.ndarray, target: object, path: str | Path) -> None:
    """Predicted over true numbers, with the line on which they would be equal; at most a few thousand points."""
    true, predicted = np.asarray(true, dtype=float), np.asarray(predicted, dtype=float)
    there = np.isfinite(true) & np.isfinite(predicted)
    true, predicted = true[there], predicted[there]
    if not len(true):
        return _note("There is nothing to compare.", path)
    step = -(-len(true) // _MOST_POINTS)
    low, high = float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))
    margin = 0.04 * (high - low) or 1.0
    figure = Figure(figsize=(5.4, 5.2), dpi=DPI)
    axes = _axes(figure, (0.8, 0.6, 4.3, 4.1))
    axes.plot([low - margin, high + margin], [low - margin, high + margin], color=MUTED, linewidth=1)
    strength = min(0.8, max(0.15, 30 / len(true[::step]) ** 0.5 / 2))
    axes.plot(true[::step], predicted[::step], "o", color=BLUE, markersize=4, alpha=strength, markeredgewidth=0)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(low - margin, high + margin)
    _title(axes, "Predicted and true", f"true {_safe(target)}", "predicted (on the line: right)")
    _save(figure, path)
