"""Figures of what the probes find, in the style of `plots`: plain values of their `as_dict` in, one PNG out.

What is not finite is a gap.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from skipway.errors import InputError
from skipway.report.axes_layout import (
    EDGE,
    SERIES,
    WIDE,
    End,
    above,
    column,
    columns_of,
    end_of,
    mark_stages,
    median,
    name_ends,
    numbers,
)
from skipway.report.learning_curves import (
    BLUE,
    DPI,
    EMPTY,
    GREEN,
    GROUND,
    INK,
    MUTED,
    PURPLE,
    VERMILION,
    _axes,
    _labels,
    _note,
    _number,
    _safe,
    _save,
    _title,
)

__all__ = ["accuracy_over_compute", "flow", "landscape", "lesion"]

COLUMNS = 4
STEEP = 30.0  # a largest over a smallest loss from which a scale is logarithmic
FARTHEST = 60  # powers of ten that an axis reaches; what lies beyond is drawn at its end
DEEPEST = 1e3  # a scale of colors spans no more than this, from the smallest loss up
MEASURES = {
    "accuracy": ("accuracy, % (higher is better)", 100.0),
    "loss": ("loss, nats (lower is better)", 1.0),
}
COMPUTE = {
    "seconds": "training time, seconds (less is better)",
    "FLOPs": "training compute, FLOPs (less is better)",
}
REMAINDERS = {
    "identity": ("dropped, its identity stays", BLUE),
    "shortcut": ("dropped, its projection stays", VERMILION),
    "nothing": ("taken out, nothing goes around", PURPLE),
}
ROWS = (  # of the picture of flows: title, what is laid along the depth, unit, lines with their key and color
    (
        "Activations",
        "blocks",
        "root mean square",
        (("shortcut", "shortcut", BLUE), ("body", "added", VERMILION), ("output", "out", INK)),
    ),
    ("Gradients of the loss by activations", "blocks", "norm over the batch", (("by input", "gradient_in", GREEN),)),
    ("Gradients of the loss by weights", "layers", "root mean square", (("by weight", "gradient", PURPLE),)),
)
Line = tuple[str, np.ndarray, str]  # its word, values, color


def flow(flows: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Sizes of activations, body against shortcut, and of gradients along the depth; a column for each flow.

    `flows` are names (of networks, or of times in training) with `Flow.as_dict()`. Of more than four, the first, the
    last and two between are shown.
    """
    names = _chosen(list(flows))
    if not any(flows[name]["blocks"] or flows[name]["layers"] for name in names):
        return _note("there are no blocks and no layers with weights whose flow could be shown", path)
    some = f" ({COLUMNS} of {len(flows)} shown)" if len(names) < len(flows) else ""
    figure = Figure(figsize=(WIDE, 7.7), dpi=DPI)
    for row, (title, what, unit, parts) in enumerate(ROWS):
        drawn = [
            [line for word, key, color in parts if np.isfinite((line := (word, column(f[what], key), color))[1]).any()]
            for f in (flows[name] for name in names)
        ]
        limits = _log_limits([values for lines in drawn for _, values, _ in lines])
        for i, (left, width) in enumerate(columns_of(len(names), 0.85, 0.85, 0.75)):
            axes = _axes(figure, (left, 0.55 + 2.5 * (2 - row), width, 1.4))
            _title(axes, "", f"{what}, in the order of calls", "" if i else f"{unit}\nlog scale, level is best")
            above(axes, _labels(names, 30)[i], 16)
            if i == 0:
                above(axes, title + some, 32, fontsize=11, fontweight="bold")
            axes.tick_params(labelleft=i == 0)
            _draw_sizes(axes, drawn[i], limits, [entry["path"] for entry in flows[names[i]][what]])
    _save(figure, path)


def _chosen(names: list[str]) -> list[str]:
    """At most `COLUMNS` of the names, evenly spread from the first to the last."""
    places = [round(i * (len(names) - 1) / (COLUMNS - 1)) for i in range(COLUMNS)]
    return names if len(names) <= COLUMNS else [names[place] for place in places]


def _log_limits(values: Sequence[np.ndarray]) -> tuple[float, float, bool]:
    """(lowest, highest, whether zeros are among them) of an axis of at least two decades."""
    every = np.concatenate([*values, []])
    zeros = bool((every == 0).any())
    powers = np.log10(every[np.isfinite(every) & (every > 0)]).clip(-FARTHEST, FARTHEST)
    low, high = (float(powers.min()), float(powers.max())) if len(powers) else (-1.0, 1.0)
    spare = max(0.08 * (high - low), (2 - (high - low)) / 2)  # no false drama
    low, high = low - spare, high + spare
    return 10 ** (low - 0.18 * (high - low) * zeros), 10**high, zeros


def _draw_sizes(axes: Axes, lines: Sequence[Line], limits: tuple[float, float, bool], paths: Sequence[str]) -> None:
    """Lines over places in the depth; what is zero lies as triangles below a line at the bottom."""
    low, high, zeros = limits
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(10, numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(-0.5, max(len(paths), 1) - 0.5)
    axes.xaxis.set_major_locator(
        FixedLocator([tick - 1 for tick in MaxNLocator(5, integer=True).tick_values(1, max(len(paths), 2))])
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x + 1:g}"))
    if paths:
        mark_stages(axes, paths)
    bottom = low * (high / low) ** 0.06
    if zeros:
        axes.axhline(low * (high / low) ** 0.12, color=EDGE, linewidth=0.8)
    ends = []
    for word, sizes, color in lines:
        xs, none, thin = np.arange(len(sizes)), sizes == 0, color == INK
        values = sizes.clip(low, high)
        axes.plot(
            xs,
            np.where(none, math.nan, values),
            color=color,
            linewidth=1.0 if thin else 1.8,
            zorder=2.0 if thin else 2.5,
            marker="o" if len(values) <= 30 else "",
            markersize=3,
        )
        axes.plot(xs[none], np.full(none.sum(), bottom), "v", color=color, markersize=4)
        ends.append(end_of(word + " (zero)" * bool(none.all()), xs, np.where(none, bottom, values), color))
    name_ends(axes, [(word, max(len(paths), 1) - 0.5, y, color) for word, _, y, color in ends])


def lesion(found: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Scores without each block, without several, and in another order; networks by name with `Lesion.as_dict()`."""
    shown = {name: cut for name, cut in found.items() if cut["dropped"] or cut["shuffled"]}
    if not shown:
        return _note("no block was dropped or moved, so there is nothing to compare", path)
    measure = next(iter(shown.values()))["measure"]
    unit, factor = MEASURES.get(measure, (_safe(measure), 1.0))
    labels = dict(zip(shown, _labels(list(shown), 30), strict=True))
    bars = [name for name, cut in shown.items() if cut["dropped"]]
    curves = any(cut["several"] or cut["shuffled"] for cut in shown.values())
    below = 3.4 * curves
    figure = Figure(figsize=(WIDE, 2.6 * len(bars) + below), dpi=DPI)
    for i, name in enumerate(bars):
        axes = _axes(figure, (0.75, 0.6 + below + 2.6 * (len(bars) - 1 - i), WIDE - 1.75, 1.4))
        _title(axes, "", "block, in the order of the network", unit)
        above(axes, labels[name], 17)
        if i == 0:
            above(axes, "Each block by itself", 36, fontsize=11, fontweight="bold")
        _draw_drops(axes, shown[name], factor)
    if curves:
        whole = {name: _number(cut["score"]) * factor for name, cut in shown.items()}
        several, shuffled = (_axes(figure, (left, 0.6, width, 2.0)) for left, width in columns_of(2, 0.75, 1.9, 1.5))
        several.set_xscale("symlog", base=2, linthresh=1)
        several.xaxis.set_minor_locator(NullLocator())
        several.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        _title(several, "Several at random dropped", "blocks dropped (line: median of draws)", unit)
        _title(shuffled, "Shuffled within stages", "pairs of blocks in the wrong order, %", unit)
        for axes, groups_of in ((several, _several), (shuffled, _shuffled)):
            ends = []
            words = _labels(list(shown), 20)
            for word, (name, cut), color in zip(words, shown.items(), SERIES * len(shown), strict=False):
                xs, ys = [0.0], [whole[name]]
                for group in sorted(groups_of(cut), key=lambda group: median(group[0])):
                    axes.plot(
                        group[0], group[1] * factor, "o", color=color, markersize=3.2, alpha=0.4, markeredgewidth=0
                    )
                    xs.append(median(group[0]))
                    ys.append(median(group[1]) * factor)
                axes.plot(xs, ys, color=color, linewidth=1.8, marker="o", markersize=3)
                ends.append(end_of(word, xs, ys, color))
            _score_axis(axes, factor)
            axes.set_xlim(0)
            name_ends(axes, [(word, axes.get_xlim()[1], y, color) for word, _, y, color in ends])  # not on other dots
    _save(figure, path)


def _several(cut: Mapping[str, Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(counts, scores) of the draws of each count."""
    for row in cut["several"]:
        yield np.full(len(row["scores"]), row["count"]), numbers(row["scores"])


def _shuffled(cut: Mapping[str, Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(distances in %, scores) of the draws of each number of exchanges."""
    rows = cut["shuffled"]
    exchanges, distances, scores = (column(rows, key) for key in ("exchanges", "distance", "score"))
    for count in np.unique(exchanges):
        yield 100 * distances[exchanges == count], scores[exchanges == count]


def _draw_drops(axes: Axes, cut: Mapping[str, Any], factor: float) -> None:
    """A bar for each block, a mark between two that were exchanged, and a line for the whole network."""
    paths = [drop["path"] for drop in cut["dropped"]]
    scores = np.nan_to_num(column(cut["dropped"], "score")) * factor
    for remainder, (words, color) in REMAINDERS.items():
        mine = np.flatnonzero([drop["remainder"] == remainder for drop in cut["dropped"]])
        if len(mine):
            axes.bar(mine, scores[mine], width=0.72, color=color, label=words)
    place = {path: i for i, path in enumerate(paths)}
    swaps = [s for s in cut["swapped"] if s["first"] in place and s["second"] in place]
    if swaps:
        axes.plot(
            [(place[s["first"]] + place[s["second"]]) / 2 for s in swaps],
            column(swaps, "score") * factor,
            "D",
            color=GREEN,
            markersize=4.5,
            markeredgecolor=GROUND,
            markeredgewidth=0.6,
            label="two neighbours exchanged",
        )
    whole = _number(cut["score"]) * factor
    axes.axhline(whole, color=INK, linewidth=1.1)
    axes.set_xlim(-0.5, len(paths) - 0.5)
    ticks = list(range(0, len(paths), math.ceil(len(paths) / 60)))
    axes.set_xticks(ticks, [str(i + 1) for i in ticks], fontsize=8)
    axes.grid(False, axis="x")
    axes.tick_params(axis="x", length=0)
    _score_axis(axes, factor)
    mark_stages(axes, paths)
    name_ends(axes, [(f"whole: {whole:.4g}", len(paths) - 0.5, whole, INK)])
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
    """From zero up, to 100 % at least for an accuracy; other scores that differ by far have a logarithmic axis."""
    if factor == 1 and axes.dataLim.y1 > STEEP * axes.dataLim.minposy:
        axes.set_yscale("log")
        axes.set_ylabel(axes.get_ylabel() + ", log scale")
        return
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylim(0, max(101.0, axes.dataLim.y1) if factor == 100 else None)


def landscape(found: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Losses around the weights, networks by name with `Landscape.as_dict()`: lines together, squares side by side.

    All squares have one scale of colors.

    Raises:
        InputError: lines and squares are mixed.
    """
    if not found:
        return _note("there is no landscape to show", path)
    square = {isinstance(one["losses"][0], list) for one in found.values()}
    if len(square) > 1:
        raise InputError("landscapes of one and of two directions do not fit one picture; draw them apart")
    (_draw_squares if square.pop() else _draw_slices)(found, path)


def _shape_words(one: Mapping[str, Any]) -> str:
    curvature, share = (one[key] for key in ("curvature", "nonconvex"))
    words = (
        "unknown" if curvature is None else f"{curvature:.3g}",
        "unknown" if share is None else f"{100 * share:.0f} %",
    )
    return f"curvature {words[0]}, not convex {words[1]}"


def _is_steep(losses: np.ndarray) -> bool:
    known = losses[np.isfinite(losses)]
    return bool(len(known) and known.min() > 0 and known.max() > STEEP * known.min())


def _draw_slices(found: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    accuracies = all(one["accuracies"] for one in found.values())
    under = 0.85 + 0.2 * len(found)
    figure = Figure(figsize=(WIDE, under + 2.9), dpi=DPI)
    labels = _labels(list(found), 20)
    panels = columns_of(2, 0.75, 1.9, 1.5) if accuracies else columns_of(1, 0.75, 0, 1.5)
    for (left, width), key in zip(panels, ("losses", "accuracies"), strict=False):
        axes = _axes(figure, (left, under, width, 2.3))
        unit, factor = MEASURES["loss" if key == "losses" else "accuracy"]
        tables = [numbers(one[key]) * factor for one in found.values()]
        steep = key == "losses" and _is_steep(np.concatenate(tables))
        if steep:
            axes.set_yscale("log")
        ends = []
        for label, one, values, color in zip(labels, found.values(), tables, SERIES * len(found), strict=False):
            axes.plot(one["steps"], values, color=color, linewidth=1.8, marker="o", markersize=2.6)
            ends.append(end_of(label, one["steps"], values, color))
        if key == "accuracies":
            axes.set_ylim(0, 101)
        axes.axvline(0, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0.6)
        title = "Loss around the weights" if key == "losses" else "Accuracy around the weights"
        _title(axes, title, "step (1: as far as the weights are large)", unit + ", log scale" * steep)
        name_ends(axes, ends)
    high = figure.get_size_inches()[1]
    for i, (label, one, color) in enumerate(zip(labels, found.values(), SERIES * len(found), strict=False)):
        figure.text(
            0.75 / WIDE, (under - 0.75 - 0.2 * i) / high, f"{label}: {_shape_words(one)}", color=color, fontsize=9
        )
    _save(figure, path)


def _draw_squares(found: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    tables = [numbers(one["losses"]) for one in found.values()]
    every = np.concatenate([table.ravel() for table in tables])
    known = every[np.isfinite(every)]
    if not len(known):
        return _note("no loss of these landscapes is finite", path)
    low, steep = float(known.min()), _is_steep(every)
    high = min(float(known.max()), low * DEEPEST) if steep else float(known.max())
    high = high if high > low else low + max(1.0, abs(low))
    levels = np.geomspace(low, high, 22) if steep else np.linspace(low, high, 22)
    norm = LogNorm(low, high) if steep else Normalize(low, high)
    colors = colormaps["cividis"]
    columns = 2 if len(found) in (2, 4) else min(len(found), 3)
    side, gap = (3.5 if columns < 3 else 2.4), 0.5
    rows = math.ceil(len(found) / columns)
    high_inches = rows * (side + 1.3)
    figure = Figure(figsize=(WIDE, high_inches), dpi=DPI)
    for i, (label, one, table) in enumerate(zip(_labels(list(found), 30), found.values(), tables, strict=True)):
        bottom = 0.6 + (rows - 1 - i // columns) * (side + 1.3)
        axes = _axes(figure, (0.75 + i % columns * (side + gap), bottom, side, side))
        axes.set_facecolor(EMPTY)
        steps = np.array(one["steps"], float)
        shown = np.ma.masked_invalid(table.clip(levels[0])).T  # the first direction goes to the right
        axes.contourf(steps, steps, shown, levels=levels, norm=norm, cmap=colors, extend="max")
        lines = [level for level in levels[::2] if shown.min() < level < shown.max()]
        if lines:
            axes.contour(steps, steps, shown, levels=lines, colors=GROUND, linewidths=0.4, alpha=0.7)
        axes.plot([0], [0], "+", color=GROUND, markersize=9, markeredgewidth=1.6)
        axes.grid(False)
        axes.tick_params(labelleft=i % columns == 0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        _title(axes, "", "first direction", "" if i % columns else "second direction")
        above(axes, label, 20, fontsize=10.5)
        above(axes, _shape_words(one), 6, fontsize=8.5, color=MUTED)
    left, total = 0.75 + columns * (side + gap), high_inches - 1.3
    bar = figure.add_axes((left / WIDE, 0.6 / high_inches, 0.16 / WIDE, total / high_inches))
    scale = figure.colorbar(ScalarMappable(norm, colors), cax=bar, extend="max" if known.max() > high else "neither")
    scale.outline.set_visible(False)
    bar.tick_params(labelsize=9, colors=MUTED, length=3)
    bar.set_ylabel(MEASURES["loss"][0] + ", log scale" * steep, fontsize=9, color=MUTED)
    _save(figure, path)


def accuracy_over_compute(
    runs: Mapping[str, Sequence[Sequence[Sequence[float]]]], path: str | Path, unit: str = "seconds"
) -> None:
    """Accuracy over what it cost: for each name its seeds, for each seed rows of (compute so far, accuracy 0 to 1).

    Seeds are thin lines, their median is a thick one where all of them have values. `unit` is "seconds", "FLOPs" or
    another word.
    """
    figure = Figure(figsize=(WIDE, 4.2), dpi=DPI)
    axes = _axes(figure, (0.75, 0.6, WIDE - 2.6, 3.0))
    ends: list[End] = []
    for label, run, color in zip(_labels(list(runs), 22), runs.values(), SERIES * len(runs), strict=False):
        seeds = [numbers(sorted(seed)).reshape(-1, 2) * (1, 100) for seed in run if len(seed)]
        for rows in seeds:
            axes.plot(*rows.T, color=color, linewidth=0.7, alpha=0.55)
        if seeds:
            begin, stop = max(rows[0, 0] for rows in seeds), min(rows[-1, 0] for rows in seeds)
            xs = np.unique(np.concatenate([rows[:, 0] for rows in seeds]))
            xs = xs[(xs >= begin) & (xs <= stop)]
            ys = np.median([np.interp(xs, *rows.T) for rows in seeds], axis=0)
            axes.plot(xs, ys, color=color, linewidth=2.2, marker="o" if len(xs) <= 30 else "", markersize=3)
            ends.append(end_of(label, xs, ys, color))
    if not ends:
        return _note("no run has an epoch to show", path)
    low, high = axes.get_ylim()
    spare = max(0.0, 5 - (high - low)) / 2  # no false drama
    axes.set_ylim(max(0.0, low - spare), min(101.0, high + spare))
    axes.set_xlim(0)
    axes.yaxis.set_major_locator(MaxNLocator(7))
    _title(axes, "Accuracy over compute", COMPUTE.get(unit, _safe(unit, 40)), MEASURES["accuracy"][0])
    above(axes, "thick: median of the seeds; thin: each seed", 6, fontsize=9, color=MUTED)
    name_ends(axes, ends)
    _save(figure, path)
