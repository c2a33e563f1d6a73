"""Plots of classes as PNG files: the confusion matrix, images per class, and contact sheets."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from skipway.errors import InputError
from skipway.report.palette import contrast
from skipway.report.plot_style import (
    BLUE,
    DPI,
    EMPTY,
    GREEN,
    GROUND,
    INK,
    PURPLE,
    VERMILION,
    add_axes,
    drawable_text,
    finite_or_nan,
    save_figure,
    save_note,
    set_titles,
    unique_labels,
)

__all__ = ["plot_class_counts", "plot_confusion_matrix", "plot_image_grid"]

SPLITS = {"train": ("training", BLUE), "val": ("validation", VERMILION), "test": ("test", GREEN)}
RIGHT = LinearSegmentedColormap.from_list("right", ["#f4f8fb", "#8fbfe0", BLUE, "#00395c"])
WRONG = LinearSegmentedColormap.from_list("wrong", ["#fafafa", "#f6c49b", VERMILION, "#7a3300"])
NUMBERED = 25  # classes up to which a confusion matrix has its counts written into the cells
LABELLED = 60  # classes up to which every row and column of it has its name
BARS = 40


def plot_confusion_matrix(matrix: np.ndarray, names: Sequence[object], path: str | Path) -> None:
    """Plot counts of (true class, predicted class).

    The color is the share of the true class, blue for right and orange for wrong predictions.
    """
    counts, n = np.asarray(matrix, dtype=float), len(names)
    if counts.shape != (n, n) or n == 0:
        shape = " x ".join(str(s) for s in counts.shape)
        raise InputError(
            f"cannot plot a confusion matrix: expected {n} x {n} counts for {n} class names, got {shape}. Pass one "
            "name for each row."
        )
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    tint = share**0.6  # so that one mistake in thirty is visible
    colors = np.where(np.eye(n, dtype=bool)[..., None], RIGHT(tint), WRONG(tint))[..., :3]
    colors[totals[:, 0] == 0] = np.array([int(EMPTY[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    side = min(max(0.46 * n, 3.0), 8.6)
    figure = Figure(figsize=(side + 3, side + 3), dpi=DPI)
    axes = add_axes(figure, (1.8, 1.8, side, side))
    axes.imshow(colors, interpolation="nearest" if n < side * DPI / 2 else "antialiased", aspect="equal")
    set_titles(axes, "Confusion matrix", x="predicted class", y="true class")
    axes.grid(False)
    axes.tick_params(length=0)
    if n <= LABELLED:
        edges = np.arange(n + 1) - 0.5
        axes.hlines(edges, -0.5, n - 0.5, color=GROUND, linewidth=1.2 if n <= NUMBERED else 0.5)
        axes.vlines(edges, -0.5, n - 0.5, color=GROUND, linewidth=1.2 if n <= NUMBERED else 0.5)
        axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5))
    ticks = range(0, n, math.ceil(n / LABELLED))
    labels = unique_labels(names, 22 if n <= NUMBERED else 18)
    size = 9.0 if n <= NUMBERED else 7.0
    rotation: dict[str, Any] = {}
    if max(len(labels[i]) for i in ticks) > 3:
        rotation = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        rotation |= {"rotation": 90, "va": "center"} if n > 12 else {}
    axes.set_xticks(list(ticks), [labels[i] for i in ticks], fontsize=size, **rotation)
    axes.set_yticks(list(ticks), [labels[i] for i in ticks], fontsize=size)
    if n <= NUMBERED:
        digits = len(f"{counts.max():.0f}")
        for (i, j), count in np.ndenumerate(counts):
            if count or i == j:
                color = _readable_on(to_hex(colors[i, j]))
                fit = min(11.0, side / n * 72 * 0.8 / (0.64 * digits))
                axes.text(j, i, f"{count:.0f}", ha="center", va="center", fontsize=fit, color=color)
    _draw_color_key(figure, left=1.8, side=side)
    save_figure(figure, path)


def _readable_on(ground: str) -> str:
    """Return black or white, whichever has the higher contrast."""
    return max(("#000000", GROUND), key=lambda text: contrast(text, ground))


def _draw_color_key(figure: Figure, *, left: float, side: float) -> None:
    """Draw the key of the two colors above the matrix."""
    axes = add_axes(figure, (left + side - 1.0, 1.8 + side + 0.26, 1.0, 0.22))
    tint = np.linspace(0, 1, 60) ** 0.6
    axes.imshow(np.stack([RIGHT(tint), WRONG(tint)]), aspect="auto", extent=(0, 100, 2, 0))
    axes.grid(False)
    axes.tick_params(length=0, labelsize=7, pad=1.5)
    axes.set_yticks([0.5, 1.5], ["right", "wrong"])
    axes.set_xticks([0, 100], ["0", "100% of row"])
    for spine in axes.spines.values():
        spine.set_visible(False)


def plot_class_counts(counts: Mapping[str, Mapping[str, int]], path: str | Path) -> None:
    """Plot images per class, one bar each, in parts per split; of more than 40 classes, the largest 40."""
    if not counts:
        return save_note("no classes were recorded", path)
    table = {name: {split: _count(n) for split, n in row.items()} for name, row in counts.items()}
    order = sorted(table, key=lambda name: -sum(table[name].values()))
    shown = order[:BARS]
    splits = [s for s in SPLITS if any(s in row for row in table.values())]
    splits += sorted(set().union(*table.values()) - set(SPLITS))
    high = 0.24 * len(shown) + 0.1
    figure = Figure(figsize=(9, high + 1.4), dpi=DPI)
    axes = add_axes(figure, (2.2, 0.6, 6, high))
    start = np.zeros(len(shown))
    for split in splits:
        label, color = SPLITS.get(split, (drawable_text(split), PURPLE))
        widths = np.array([table[name].get(split, 0.0) for name in shown])
        axes.barh(range(len(shown)), widths, left=start, height=0.68, color=color, label=label)
        start = start + widths
    for i, total in enumerate(start):
        axes.annotate(f"{total:,.0f}", (total, i), (4, 0), textcoords="offset points", va="center", fontsize=8)
    labels = dict(zip(table, unique_labels(list(table)), strict=True))
    axes.set_yticks(range(len(shown)), [labels[name] for name in shown], fontsize=8.5, color=INK)
    axes.set(ylim=(len(shown) - 0.45, -0.55), xlim=(0, max(start.max() * 1.08, 1)))
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    selection = f", the {BARS} largest of {len(order)} classes" if len(order) > BARS else ""
    set_titles(axes, "Images per class" + selection, x="number of images")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=len(splits),
        frameon=False,
        fontsize=9,
        borderpad=0.1,
        labelcolor=INK,
        handlelength=0.9,
        handleheight=0.9,
        columnspacing=1.4,
    )
    save_figure(figure, path)


def _count(value: object) -> float:
    return max(0.0, np.nan_to_num(finite_or_nan(value)))


def plot_image_grid(
    images: Sequence[np.ndarray], captions: Sequence[object], path: str | Path, columns: int = 8
) -> None:
    """Draw a contact sheet of uint8 images (H, W), (H, W, 1) or (H, W, 3).

    Each is scaled to fit a square, with its caption below.
    """
    if not images:
        return save_note("there are no images to show", path)
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    cell, below = 1.25, 0.28
    figure = Figure(figsize=(columns * cell, rows * (cell + below)), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, columns * cell), ylim=(rows * (cell + below), 0))
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        array = np.asarray(image, dtype=np.uint8)
        array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
        high, wide = array.shape[:2]
        left, top = index % columns * cell, index // columns * (cell + below)
        scale = 0.94 * cell / max(high, wide)
        dx, dy = (cell - wide * scale) / 2, (cell - high * scale) / 2
        axes.imshow(
            array,
            cmap="gray",
            vmin=0,
            vmax=255,
            extent=(left + dx, left + cell - dx, top + cell - dy, top + dy),
            interpolation="nearest" if max(high, wide) <= cell * DPI else "antialiased",
            aspect="auto",
        )
        axes.text(
            left + cell / 2,
            top + cell + 0.02,
            drawable_text(caption, 16),
            ha="center",
            va="top",
            fontsize=9,
            color=INK,
        )
    axes.set(xlim=(0, columns * cell), ylim=(rows * (cell + below), 0))
    save_figure(figure, path)
