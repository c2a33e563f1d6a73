"""Plot of losses around the weights, from the values of `Landscape.as_dict`.

Values that are not finite are gaps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from skipway.errors import InputError
from skipway.report.axes_layout import (
    MEASURES,
    SERIES,
    STEEP,
    WIDE,
    annotate_above,
    label_line_ends,
    line_end,
    panel_columns,
    to_array,
)
from skipway.report.plot_style import (
    DPI,
    EMPTY,
    GROUND,
    MUTED,
    add_axes,
    save_figure,
    save_note,
    set_titles,
    unique_labels,
)

__all__ = ["plot_loss_landscape"]

DEEPEST = 1e3  # a scale of colors spans no more than this, from the smallest loss up


def plot_loss_landscape(landscapes: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Plot losses around the weights: lines together, squares side by side with one scale of colors.

    `landscapes` are networks by name with `Landscape.as_dict()`.

    Raises:
        InputError: lines and squares are mixed.
    """
    if not landscapes:
        return save_note("there is no landscape to show", path)
    are_squares = {isinstance(landscape["losses"][0], list) for landscape in landscapes.values()}
    if len(are_squares) > 1:
        raise InputError("cannot plot landscapes of one and of two directions together. Plot them separately.")
    (_draw_squares if are_squares.pop() else _draw_slices)(landscapes, path)


def _describe_shape(landscape: Mapping[str, Any]) -> str:
    curvature, share = (landscape[key] for key in ("curvature", "nonconvex"))
    curvature_text = "unknown" if curvature is None else f"{curvature:.3g}"
    share_text = "unknown" if share is None else f"{share:.0%}"
    return f"curvature {curvature_text}, not convex {share_text}"


def _is_steep(losses: np.ndarray) -> bool:
    finite = losses[np.isfinite(losses)]
    return bool(len(finite) and finite.min() > 0 and finite.max() > STEEP * finite.min())


def _draw_slices(landscapes: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    has_accuracies = all(landscape["accuracies"] for landscape in landscapes.values())
    bottom = 0.85 + 0.2 * len(landscapes)
    figure = Figure(figsize=(WIDE, bottom + 2.9), dpi=DPI)
    labels = unique_labels(list(landscapes), 20)
    panels = panel_columns(2 if has_accuracies else 1, left=0.75, gap=1.9, right=1.5)
    for (left, width), key in zip(panels, ("losses", "accuracies"), strict=False):
        axes = add_axes(figure, (left, bottom, width, 2.3))
        unit, factor = MEASURES["loss" if key == "losses" else "accuracy"]
        tables = [to_array(landscape[key]) * factor for landscape in landscapes.values()]
        steep = key == "losses" and _is_steep(np.concatenate(tables))
        if steep:
            axes.set_yscale("log")
        ends = []
        for i, landscape in enumerate(landscapes.values()):
            color = SERIES[i % len(SERIES)]
            axes.plot(landscape["steps"], tables[i], color=color, linewidth=1.8, marker="o", markersize=2.6)
            ends.append(line_end(labels[i], landscape["steps"], tables[i], color=color))
        if key == "accuracies":
            axes.set_ylim(0, 101)
        axes.axvline(0, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0.6)
        title = "Loss around the weights" if key == "losses" else "Accuracy around the weights"
        x_label = "step (1: as far as the weights are large)"
        set_titles(axes, title, x=x_label, y=unit + ", log scale" * steep)
        label_line_ends(axes, ends)
    height = figure.get_size_inches()[1]
    for i, landscape in enumerate(landscapes.values()):
        text, y = f"{labels[i]}: {_describe_shape(landscape)}", (bottom - 0.75 - 0.2 * i) / height
        figure.text(0.75 / WIDE, y, text, color=SERIES[i % len(SERIES)], fontsize=9)
    save_figure(figure, path)


@dataclass(frozen=True)
class _ColorScale:
    """Colors of losses, one scale for all squares: they change at `levels`."""

    norm: Normalize
    levels: np.ndarray
    steep: bool
    is_cut: bool  # True if there are losses above the scale


def _color_scale(losses: np.ndarray) -> _ColorScale:
    """Choose the scale of finite and other losses."""
    finite = losses[np.isfinite(losses)]
    low, steep = float(finite.min()), _is_steep(losses)
    high = min(float(finite.max()), low * DEEPEST) if steep else float(finite.max())
    high = high if high > low else low + max(1.0, abs(low))
    is_cut = bool(finite.max() > high)
    if steep:
        return _ColorScale(LogNorm(low, high), levels=np.geomspace(low, high, 22), steep=True, is_cut=is_cut)
    return _ColorScale(Normalize(low, high), levels=np.linspace(low, high, 22), steep=False, is_cut=is_cut)


def _draw_squares(landscapes: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    tables = [to_array(landscape["losses"]) for landscape in landscapes.values()]
    losses = np.concatenate([table.ravel() for table in tables])
    if not np.isfinite(losses).any():
        return save_note("no loss of these landscapes is finite", path)
    scale, colors = _color_scale(losses), colormaps["cividis"]
    columns = 2 if len(landscapes) in (2, 4) else min(len(landscapes), 3)
    side, gap = (3.5 if columns < 3 else 2.4), 0.5
    rows = math.ceil(len(landscapes) / columns)
    height = rows * (side + 1.3)
    figure = Figure(figsize=(WIDE, height), dpi=DPI)
    labels = unique_labels(list(landscapes), 30)
    for i, (label, landscape, table) in enumerate(zip(labels, landscapes.values(), tables, strict=True)):
        bottom = 0.6 + (rows - 1 - i // columns) * (side + 1.3)
        axes = add_axes(figure, (0.75 + i % columns * (side + gap), bottom, side, side))
        _draw_contours(axes, np.array(landscape["steps"], float), table, scale=scale, colors=colors)
        axes.tick_params(labelleft=i % columns == 0)
        set_titles(axes, "", x="first direction", y="" if i % columns else "second direction")
        annotate_above(axes, label, 20, fontsize=10.5)
        annotate_above(axes, _describe_shape(landscape), 6, fontsize=8.5, color=MUTED)
    left, bar_height = 0.75 + columns * (side + gap), height - 1.3
    bar = figure.add_axes((left / WIDE, 0.6 / height, 0.16 / WIDE, bar_height / height))
    extend = "max" if scale.is_cut else "neither"
    colorbar = figure.colorbar(ScalarMappable(scale.norm, colors), cax=bar, extend=extend)
    colorbar.outline.set_visible(False)
    bar.tick_params(labelsize=9, colors=MUTED, length=3)
    bar.set_ylabel(MEASURES["loss"][0] + ", log scale" * scale.steep, fontsize=9, color=MUTED)
    save_figure(figure, path)


def _draw_contours(axes: Axes, steps: np.ndarray, losses: np.ndarray, *, scale: _ColorScale, colors: Colormap) -> None:
    """Draw one square of losses (S, S) over `steps` (S,) in both directions."""
    axes.set_facecolor(EMPTY)
    levels = scale.levels
    shown = np.ma.masked_invalid(losses.clip(levels[0])).T  # the first direction goes to the right
    axes.contourf(steps, steps, shown, levels=levels, norm=scale.norm, cmap=colors, extend="max")
    lines = [level for level in levels[::2] if shown.min() < level < shown.max()]
    if lines:
        axes.contour(steps, steps, shown, levels=lines, colors=GROUND, linewidths=0.4, alpha=0.7)
    axes.plot([0], [0], "+", color=GROUND, markersize=9, markeredgewidth=1.6)
    axes.grid(False)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
