"""Panels: what the pictures of depth share: places side by side, words beside lines and above axes, plain values.

Numbers that are missing or not finite become NaN, which is drawn as a gap.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from skipway.report.learning_curves import BLUE, DPI, GREEN, INK, MUTED, PURPLE, VERMILION, _number, _safe

__all__ = [
    "EDGE",
    "SERIES",
    "WIDE",
    "End",
    "above",
    "column",
    "columns_of",
    "end_of",
    "mark_stages",
    "median",
    "name_ends",
    "numbers",
]

WIDE = 10.0  # inches, as the report shows it
EDGE = "#b6bdc4"
SERIES = (BLUE, VERMILION, GREEN, PURPLE, "#a06a00", "#3f8fc4", INK)  # Okabe and Ito's, the light ones darkened
APART = 11.0  # points between words beside lines
MOST_STAGES = 12
End = tuple[str, float, float, str]  # a word, where its line ends, its color


def column(entries: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """One value of each entry."""
    return np.array([_number(entry.get(key)) for entry in entries])


def numbers(values: Any) -> np.ndarray:
    """Nested lists as an array."""
    return np.vectorize(_number, otypes=[float])(np.array(values, dtype=object))


def median(values: np.ndarray) -> float:
    """Of what is finite."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan


def columns_of(count: int, left: float, gap: float, right: float) -> list[tuple[float, float]]:
    """(left edge, width) in inches of `count` panels beside each other."""
    width = (WIDE - left - right - gap * (count - 1)) / count
    return [(left + i * (width + gap), width) for i in range(count)]


def above(axes: Axes, words: str, lift: float, x: float = 0.0, **style: Any) -> None:
    """Words so many points above the axes; x from 0 to 1 along them."""
    axes.annotate(
        words,
        (x, 1),
        (0, lift),
        xycoords="axes fraction",
        textcoords="offset points",
        annotation_clip=False,
        **{"color": INK, "fontsize": 9.5, **style},
    )


def name_ends(axes: Axes, ends: Sequence[End]) -> None:
    """The word of each line behind its end, pushed apart where they would overlap."""
    placed = [(float(axes.transData.transform((x, y))[1]) * 72 / DPI, x, y, w, c) for w, x, y, c in ends if y == y]
    placed.sort()
    for height, (own, x, y, word, color) in zip(_apart([p[0] for p in placed]), placed, strict=True):
        axes.annotate(
            word,
            (x, y),
            (7, height - own),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=8.5,
            annotation_clip=False,
        )


def _apart(heights: Sequence[float]) -> list[float]:
    """Sorted heights, those closer than `APART` moved until they are not, around the middle of each crowd."""
    crowds: list[tuple[float, int]] = []  # (sum of heights, count)
    for height in heights:
        crowds.append((height, 1))
        while len(crowds) > 1:
            (low, below), (high, above) = crowds[-2:]
            if high / above - low / below >= APART * (below + above) / 2:
                break
            crowds[-2:] = [(low + high, below + above)]
    return [total / count + (i - (count - 1) / 2) * APART for total, count in crowds for i in range(count)]


def end_of(word: str, xs: Sequence[float] | np.ndarray, ys: Sequence[float] | np.ndarray, color: str) -> End:
    """Where the last finite value of a line is; NaN where there is none."""
    known = np.flatnonzero(np.isfinite(ys))
    return (word, float(xs[known[-1]]), float(ys[known[-1]]), color) if len(known) else (word, 0.0, math.nan, color)


def mark_stages(axes: Axes, paths: Sequence[str]) -> None:
    """A thin line between stages, and their names above where there is room; paths stand at 0, 1, 2, ..."""
    stages = [path.split(".")[0] if "." in path else "" for path in paths]
    starts = [i for i, stage in enumerate(stages) if i == 0 or stage != stages[i - 1]]
    if len(starts) > MOST_STAGES:  # names that are no stages
        return
    room = axes.bbox.width / DPI / 0.55  # names that fit beside each other
    for start, end in zip(starts, [*starts[1:], len(stages)], strict=True):
        if start:
            axes.axvline(start - 0.5, color=EDGE, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0.5)
        if stages[start] and (end - start) / len(stages) * room >= 1:
            above(
                axes, _safe(stages[start], 12), 3, (start + end) / 2 / len(stages), ha="center", color=MUTED, fontsize=8
            )
