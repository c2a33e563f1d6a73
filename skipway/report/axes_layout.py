"""Layout shared by the plots over depth: panels side by side, labels next to lines and above axes.

Values that are missing or not finite become NaN, which is drawn as a gap.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from skipway.report import palette
from skipway.report.palette import light
from skipway.report.plot_style import DPI, INK, MUTED, drawable_text, finite_or_nan

__all__ = [
    "EDGE",
    "MEASURES",
    "SERIES",
    "STEEP",
    "WIDE",
    "End",
    "annotate_above",
    "column_values",
    "panel_columns",
    "line_end",
    "mark_stages",
    "finite_median",
    "label_line_ends",
    "to_array",
]

WIDE = 10.0  # inches, as the report shows it
EDGE = "#b6bdc4"
SERIES = tuple(map(light, palette.SERIES))
STEEP = 30.0  # a largest over a smallest loss from which a scale is logarithmic
MEASURES = {
    "accuracy": ("accuracy, % (higher is better)", 100.0),
    "loss": ("loss, nats (lower is better)", 1.0),
}
APART = 11.0  # points between labels next to lines
MOST_STAGES = 12
End = tuple[str, float, float, str]  # a label, the end (x, y) of its line, its color


def column_values(entries: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """Return one value of each entry."""
    return np.array([finite_or_nan(entry.get(key)) for entry in entries])


def to_array(values: Any) -> np.ndarray:
    """Return nested lists as a float array, with NaN for values that are not finite."""
    return np.vectorize(finite_or_nan, otypes=[float])(np.array(values, dtype=object))


def finite_median(values: np.ndarray) -> float:
    """Return the median of the finite values, NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def panel_columns(count: int, *, left: float, gap: float, right: float) -> list[tuple[float, float]]:
    """Return (left edge, width) in inches of `count` panels next to each other."""
    width = (WIDE - left - right - gap * (count - 1)) / count
    return [(left + i * (width + gap), width) for i in range(count)]


def annotate_above(axes: Axes, text: str, lift: float, *, x: float = 0.0, **style: Any) -> None:
    """Write text `lift` points above the axes, at `x` from 0 to 1 along them."""
    axes.annotate(
        text,
        (x, 1),
        (0, lift),
        xycoords="axes fraction",
        textcoords="offset points",
        annotation_clip=False,
        **{"color": INK, "fontsize": 9.5, **style},
    )


def label_line_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Write the label of each line behind its end, moved apart if they would overlap."""
    visible = [(float(axes.transData.transform((x, y))[1]) * 72 / DPI, x, y, w, c) for w, x, y, c in ends if y == y]
    visible.sort()
    for height, (line_height, x, y, word, color) in zip(_apart([end[0] for end in visible]), visible, strict=True):
        axes.annotate(
            word,
            (x, y),
            (7, height - line_height),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=8.5,
            annotation_clip=False,
        )


def _apart(heights: Sequence[float]) -> list[float]:
    """Return sorted heights, moved apart to a distance of `APART` around the middle of each group."""
    crowds: list[tuple[float, int]] = []  # (sum of heights, count)
    for height in heights:
        crowds.append((height, 1))
        while len(crowds) > 1:
            (low, below), (high, above) = crowds[-2:]
            if high / above - low / below >= APART * (below + above) / 2:
                break
            crowds[-2:] = [(low + high, below + above)]
    spread: list[float] = []
    for total, count in crowds:
        spread += [total / count + (i - (count - 1) / 2) * APART for i in range(count)]
    return spread


def line_end(word: str, xs: Sequence[float] | np.ndarray, ys: Sequence[float] | np.ndarray, *, color: str) -> End:
    """Return the label, the last finite point and the color of a line; NaN if it has no finite point."""
    finite = np.flatnonzero(np.isfinite(ys))
    if not len(finite):
        return (word, 0.0, math.nan, color)
    return (word, float(xs[finite[-1]]), float(ys[finite[-1]]), color)


def mark_stages(axes: Axes, paths: Sequence[str]) -> None:
    """Draw a thin line between stages, and their names above if they fit; the paths are at x = 0, 1, 2, ..."""
    stages = [path.split(".")[0] if "." in path else "" for path in paths]
    starts = [i for i, stage in enumerate(stages) if i == 0 or stage != stages[i - 1]]
    if len(starts) > MOST_STAGES:  # too many to be stages
        return
    capacity = axes.bbox.width / DPI / 0.55  # names that fit next to each other
    for start, end in zip(starts, [*starts[1:], len(stages)], strict=True):
        if start:
            axes.axvline(start - 0.5, color=EDGE, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0.5)
        if stages[start] and (end - start) / len(stages) * capacity >= 1:
            middle = (start + end) / 2 / len(stages)
            annotate_above(axes, drawable_text(stages[start], 12), 3, x=middle, ha="center", color=MUTED, fontsize=8)
