"""Plots of the results of the probes as PNG files, from the values of their `as_dict`.

Values that are not finite are gaps.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from skipway.report.axes_layout import (
    EDGE,
    MEASURES,
    SERIES,
    STEEP,
    WIDE,
    End,
    annotate_above,
    column_values,
    finite_median,
    label_line_ends,
    line_end,
    mark_stages,
    panel_columns,
    to_array,
)
from skipway.report.plot_style import (
    BLUE,
    DPI,
    GREEN,
    GROUND,
    INK,
    MUTED,
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

__all__ = ["plot_ablation", "plot_accuracy_over_compute", "plot_signal_flow"]

COLUMNS = 4
FARTHEST = 60  # powers of ten that an axis reaches; values beyond are drawn at its end
COMPUTE = {
    "seconds": "training time, seconds (less is better)",
    "FLOPs": "training compute, FLOPs (less is better)",
}
REMAINDERS = {  # the part of a dropped block that stays
    "identity": ("dropped, its identity stays", BLUE),
    "shortcut": ("dropped, its projection stays", VERMILION),
    "nothing": ("taken out, nothing goes around", PURPLE),
}
ROWS = (  # of the signal-flow plot: title, entries along the depth, unit, lines with their key and color
    (
        "Activations",
        "blocks",
        "root mean square",
        (("shortcut", "shortcut", BLUE), ("body", "added", VERMILION), ("output", "out", INK)),
    ),
    ("Gradients of the loss by activations", "blocks", "norm over the batch", (("by input", "gradient_in", GREEN),)),
    ("Gradients of the loss by weights", "layers", "root mean square", (("by weight", "gradient", PURPLE),)),
)
_GroupsOf = Callable[[Mapping[str, Any]], Iterator[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class _Line:
    word: str
    values: np.ndarray
    color: str


@dataclass(frozen=True)
class _LogLimits:
    """Limits of a logarithmic axis; `zeros` if zeros are drawn below them."""

    low: float
    high: float
    zeros: bool


def plot_signal_flow(flows: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Plot sizes of activations, body against shortcut, and of gradients along the depth; a column for each flow.

    `flows` are names (of networks, or of times in training) with `Flow.as_dict()`. Of more than four, the first, the
    last and two between are shown.
    """
    names = _evenly_chosen(list(flows))
    if not any(flows[name]["blocks"] or flows[name]["layers"] for name in names):
        return save_note("there are no blocks and no layers with weights whose flow could be shown", path)
    selection = f" ({COLUMNS} of {len(flows)} shown)" if len(names) < len(flows) else ""
    figure = Figure(figsize=(WIDE, 7.7), dpi=DPI)
    for row, (title, entries, unit, series) in enumerate(ROWS):
        lines = [_finite_lines(flows[name][entries], series) for name in names]
        limits = _log_limits([line.values for line in chain.from_iterable(lines)])
        for i, (left, width) in enumerate(panel_columns(len(names), left=0.85, gap=0.85, right=0.75)):
            axes = add_axes(figure, (left, 0.55 + 2.5 * (2 - row), width, 1.4))
            y_label = "" if i else f"{unit}\nlog scale, level is best"
            set_titles(axes, "", x=f"{entries}, in the order of calls", y=y_label)
            annotate_above(axes, unique_labels(names, 30)[i], 16)
            if i == 0:
                annotate_above(axes, title + selection, 32, fontsize=11, fontweight="bold")
            axes.tick_params(labelleft=i == 0)
            _draw_sizes(axes, lines[i], limits=limits, paths=[entry["path"] for entry in flows[names[i]][entries]])
    save_figure(figure, path)


def _evenly_chosen(names: list[str]) -> list[str]:
    """Choose at most `COLUMNS` of the names, evenly spread from the first to the last."""
    if len(names) <= COLUMNS:
        return names
    return [names[round(i * (len(names) - 1) / (COLUMNS - 1))] for i in range(COLUMNS)]


def _finite_lines(entries: Sequence[Mapping[str, Any]], series: Sequence[tuple[str, str, str]]) -> list[_Line]:
    lines = [_Line(word, column_values(entries, key), color) for word, key, color in series]
    return [line for line in lines if np.isfinite(line.values).any()]


def _log_limits(arrays: Sequence[np.ndarray]) -> _LogLimits:
    """Choose the limits of an axis of at least two decades."""
    values = np.concatenate([*arrays, []])
    zeros = bool((values == 0).any())
    powers = np.log10(values[np.isfinite(values) & (values > 0)]).clip(-FARTHEST, FARTHEST)
    low, high = (float(powers.min()), float(powers.max())) if len(powers) else (-1.0, 1.0)
    spare = max(0.08 * (high - low), (2 - (high - low)) / 2)  # small differences must not look large
    low, high = low - spare, high + spare
    return _LogLimits(low=10 ** (low - 0.18 * (high - low) * zeros), high=10**high, zeros=zeros)


def _draw_sizes(axes: Axes, lines: Sequence[_Line], *, limits: _LogLimits, paths: Sequence[str]) -> None:
    """Draw lines along the depth; zeros are triangles below a line at the bottom."""
    low, high = limits.low, limits.high
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(10, numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(-0.5, max(len(paths), 1) - 0.5)
    numbers = MaxNLocator(5, integer=True).tick_values(1, max(len(paths), 2))
    axes.xaxis.set_major_locator(FixedLocator([number - 1 for number in numbers]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x + 1:g}"))
    if paths:
        mark_stages(axes, paths)
    bottom = low * (high / low) ** 0.06
    if limits.zeros:
        axes.axhline(low * (high / low) ** 0.12, color=EDGE, linewidth=0.8)
    ends = []
    for line in lines:
        xs, is_zero, thin = np.arange(len(line.values)), line.values == 0, line.color == INK
        values = line.values.clip(low, high)
        axes.plot(
            xs,
            np.where(is_zero, math.nan, values),
            color=line.color,
            linewidth=1.0 if thin else 1.8,
            zorder=2.0 if thin else 2.5,
            marker="o" if len(values) <= 30 else "",
            markersize=3,
        )
        axes.plot(xs[is_zero], np.full(is_zero.sum(), bottom), "v", color=line.color, markersize=4)
        word = line.word + " (zero)" * bool(is_zero.all())
        ends.append(line_end(word, xs, np.where(is_zero, bottom, values), color=line.color))
    label_line_ends(axes, [(word, max(len(paths), 1) - 0.5, y, color) for word, _, y, color in ends])


def plot_ablation(lesions: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Plot scores without each block, without several, and in another order.

    `lesions` are networks by name with `Lesion.as_dict()`.
    """
    shown = {name: lesion for name, lesion in lesions.items() if lesion["dropped"] or lesion["shuffled"]}
    if not shown:
        return save_note("no block was dropped or moved, so there is nothing to compare", path)
    measure = next(iter(shown.values()))["measure"]
    unit, factor = MEASURES.get(measure, (drawable_text(measure), 1.0))
    labels = dict(zip(shown, unique_labels(list(shown), 30), strict=True))
    bars = [name for name, lesion in shown.items() if lesion["dropped"]]
    has_draws = any(lesion["several"] or lesion["shuffled"] for lesion in shown.values())
    draws_height = 3.4 * has_draws
    figure = Figure(figsize=(WIDE, 2.6 * len(bars) + draws_height), dpi=DPI)
    for i, name in enumerate(bars):
        axes = add_axes(figure, (0.75, 0.6 + draws_height + 2.6 * (len(bars) - 1 - i), WIDE - 1.75, 1.4))
        set_titles(axes, "", x="block, in the order of the network", y=unit)
        annotate_above(axes, labels[name], 17)
        if i == 0:
            annotate_above(axes, "Each block by itself", 36, fontsize=11, fontweight="bold")
        _draw_drops(axes, shown[name], factor)
    if has_draws:
        left, right = (
            add_axes(figure, (left, 0.6, width, 2.0)) for left, width in panel_columns(2, left=0.75, gap=1.9, right=1.5)
        )
        left.set_xscale("symlog", base=2, linthresh=1)
        left.xaxis.set_minor_locator(NullLocator())
        left.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        set_titles(left, "Several at random dropped", x="blocks dropped (line: median of draws)", y=unit)
        set_titles(right, "Shuffled within stages", x="pairs of blocks in the wrong order, %", y=unit)
        _draw_draws(left, shown, _several, factor=factor)
        _draw_draws(right, shown, _shuffled, factor=factor)
    save_figure(figure, path)


def _draw_draws(axes: Axes, lesions: Mapping[str, Mapping[str, Any]], groups_of: _GroupsOf, *, factor: float) -> None:
    """Draw a dot for each draw, and for each network a line through the medians, from its whole score on."""
    ends = []
    labels = unique_labels(list(lesions), 20)
    for label, lesion, color in zip(labels, lesions.values(), SERIES * len(lesions), strict=False):
        xs, ys = [0.0], [finite_or_nan(lesion["score"]) * factor]
        for amounts, scores in sorted(groups_of(lesion), key=lambda group: finite_median(group[0])):
            axes.plot(amounts, scores * factor, "o", color=color, markersize=3.2, alpha=0.4, markeredgewidth=0)
            xs.append(finite_median(amounts))
            ys.append(finite_median(scores) * factor)
        axes.plot(xs, ys, color=color, linewidth=1.8, marker="o", markersize=3)
        ends.append(line_end(label, xs, ys, color=color))
    _score_axis(axes, factor)
    axes.set_xlim(0)
    label_line_ends(axes, [(word, axes.get_xlim()[1], y, color) for word, _, y, color in ends])  # not on other dots


def _several(lesion: Mapping[str, Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterate over (counts, scores) of the draws of each count."""
    for row in lesion["several"]:
        yield np.full(len(row["scores"]), row["count"]), to_array(row["scores"])


def _shuffled(lesion: Mapping[str, Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterate over (distances in %, scores) of the draws of each number of exchanges."""
    rows = lesion["shuffled"]
    exchanges, distances, scores = (column_values(rows, key) for key in ("exchanges", "distance", "score"))
    for count in np.unique(exchanges):
        yield 100 * distances[exchanges == count], scores[exchanges == count]


def _draw_drops(axes: Axes, lesion: Mapping[str, Any], factor: float) -> None:
    """Draw a bar for each block, a diamond between two that were exchanged, and a line for the whole network."""
    paths = [drop["path"] for drop in lesion["dropped"]]
    scores = np.nan_to_num(column_values(lesion["dropped"], "score")) * factor
    for remainder, (label, color) in REMAINDERS.items():
        blocks = np.flatnonzero([drop["remainder"] == remainder for drop in lesion["dropped"]])
        if len(blocks):
            axes.bar(blocks, scores[blocks], width=0.72, color=color, label=label)
    index = {path: i for i, path in enumerate(paths)}
    swaps = [swap for swap in lesion["swapped"] if swap["first"] in index and swap["second"] in index]
    if swaps:
        axes.plot(
            [(index[swap["first"]] + index[swap["second"]]) / 2 for swap in swaps],
            column_values(swaps, "score") * factor,
            "D",
            color=GREEN,
            markersize=4.5,
            markeredgecolor=GROUND,
            markeredgewidth=0.6,
            label="two neighbors exchanged",
        )
    whole = finite_or_nan(lesion["score"]) * factor
    axes.axhline(whole, color=INK, linewidth=1.1)
    axes.set_xlim(-0.5, len(paths) - 0.5)
    ticks = list(range(0, len(paths), math.ceil(len(paths) / 60)))
    axes.set_xticks(ticks, [str(i + 1) for i in ticks], fontsize=8)
    axes.grid(False, axis="x")
    axes.tick_params(axis="x", length=0)
    _score_axis(axes, factor)
    mark_stages(axes, paths)
    label_line_ends(axes, [(f"whole: {whole:.4g}", len(paths) - 0.5, whole, INK)])
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.01, 1.09),
        ncols=4,
        frameon=False,
        fontsize=8.5,
        borderpad=0.1,
        labelcolor=INK,
        handlelength=0.9,
        handleheight=0.9,
        columnspacing=1.4,
    )


def _score_axis(axes: Axes, factor: float) -> None:
    """Set the axis of a score: from 0, to 100 for an accuracy; logarithmic if other scores differ by far."""
    if factor == 1 and axes.dataLim.y1 > STEEP * axes.dataLim.minposy:
        axes.set_yscale("log")
        axes.set_ylabel(axes.get_ylabel() + ", log scale")
        return
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylim(0, max(101.0, axes.dataLim.y1) if factor == 100 else None)


def plot_accuracy_over_compute(
    runs: Mapping[str, Sequence[Sequence[Sequence[float]]]], path: str | Path, unit: str = "seconds"
) -> None:
    """Plot accuracy over the compute that it took.

    `runs` has for each name its seeds, for each seed rows of (compute so far, accuracy 0 to 1).
    Seeds are thin lines; their median is a thick one, over the range that all of them have. `unit` is "seconds",
    "FLOPs" or another word.
    """
    figure = Figure(figsize=(WIDE, 4.2), dpi=DPI)
    axes = add_axes(figure, (0.75, 0.6, WIDE - 2.6, 3.0))
    ends: list[End] = []
    for label, run, color in zip(unique_labels(list(runs), 22), runs.values(), SERIES * len(runs), strict=False):
        seeds = [to_array(sorted(seed)).reshape(-1, 2) * (1, 100) for seed in run if len(seed)]
        for rows in seeds:
            axes.plot(*rows.T, color=color, linewidth=0.7, alpha=0.55)
        if seeds:
            begin, stop = max(rows[0, 0] for rows in seeds), min(rows[-1, 0] for rows in seeds)
            xs = np.unique(np.concatenate([rows[:, 0] for rows in seeds]))
            xs = xs[(xs >= begin) & (xs <= stop)]
            ys = np.median([np.interp(xs, *rows.T) for rows in seeds], axis=0)
            axes.plot(xs, ys, color=color, linewidth=2.2, marker="o" if len(xs) <= 30 else "", markersize=3)
            ends.append(line_end(label, xs, ys, color=color))
    if not ends:
        return save_note("no run has an epoch to show", path)
    low, high = axes.get_ylim()
    spare = max(0.0, 5 - (high - low)) / 2  # small differences must not look large
    axes.set_ylim(max(0.0, low - spare), min(101.0, high + spare))
    axes.set_xlim(0)
    axes.yaxis.set_major_locator(MaxNLocator(7))
    x_label = COMPUTE.get(unit, drawable_text(unit, 40))
    set_titles(axes, "Accuracy over compute", x=x_label, y=MEASURES["accuracy"][0])
    annotate_above(axes, "thick: median of the seeds; thin: each seed", 6, fontsize=9, color=MUTED)
    label_line_ends(axes, ends)
    save_figure(figure, path)
