"""Figures: plain values in, one PNG out, drawn without pyplot and so without global state.

One style for all: a light ground, thin grids, the colors of Okabe and Ito (which color-blind readers can tell apart),
words beside the lines rather than legends, and on every axis its unit and which direction is better.
"""

import functools
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from skipway.errors import InputError, printable

__all__ = ["classes", "confusion", "curves", "range_test", "schedule", "sheet", "shorten"]

DPI = 144
INK, MUTED, GRID, GROUND, EMPTY = "#1f2328", "#59626b", "#e3e6ea", "#ffffff", "#eceef0"
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
SPLITS = {"train": ("training", BLUE), "val": ("validation", VERMILION), "test": ("test", GREEN)}
RIGHT = LinearSegmentedColormap.from_list("right", ["#f4f8fb", "#8fbfe0", BLUE, "#00395c"])
WRONG = LinearSegmentedColormap.from_list("wrong", ["#fafafa", "#f6c49b", VERMILION, "#7a3300"])
NUMBERED = 25  # classes up to which a confusion matrix has its counts written into the cells
LABELLED = 60  # classes up to which every row and column of it has its name
BARS = 40
# DejaVu Sans comes with matplotlib; of these, what the machine has adds the scripts that it lacks.
FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
)


def shorten(text: object, width: int = 24) -> str:
    """`text` on one line in at most `width` characters, its middle left out.

    >>> shorten("a very long name of a class", 12)
    'a very…class'
    """
    line = printable(text)
    if len(line) <= width:
        return line
    return line[: width // 2].rstrip() + "…" + line[len(line) - (width - 1 - width // 2) :].lstrip()


@functools.cache
def _fonts() -> tuple[list[str], frozenset[int]]:
    """The families to draw with, and every code point that one of them can show."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = ["DejaVu Sans", *(name for name in FALLBACKS if name in installed)]
    shown = (FT2Font(font_manager.findfont(name)).get_charmap() for name in families)
    return families, frozenset(int(code) for charmap in shown for code in charmap)


def _safe(text: object, width: int = 24) -> str:
    r"""`text` fit to be drawn: shortened, a box for what no font has, and `$` not the start of a formula.

    Escaping each `$` leaves none bare, so matplotlib takes the text as plain and turns `\$` back into `$`.
    """
    known = _fonts()[1]
    return "".join(c if ord(c) in known else "□" for c in shorten(text, width)).replace("$", r"\$")


def _labels(names: Sequence[object], width: int = 24) -> list[str]:
    """Safe names that still differ from each other: those made equal by shortening get their number."""
    short = [_safe(name, width) for name in names]
    often = Counter(short)
    return [f"{s} #{i}" if often[s] > 1 else s for i, s in enumerate(short)]


def _number(value: Any) -> float:
    """A finite float, or NaN for all else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _axes(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Axes in the house style; `box` is left, bottom, width, height in inches."""
    wide, high = figure.get_size_inches()
    axes = figure.add_axes((box[0] / wide, box[1] / high, box[2] / wide, box[3] / high), facecolor=GROUND)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color="#b6bdc4", linewidth=0.8)
    axes.tick_params(labelsize=9, colors=MUTED, width=0.8, length=3, labelfontfamily=_fonts()[0])
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    return axes


def _title(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    """Own words only: titles are bold, and the bold font has fewer glyphs than `_fonts` promises."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=22)
    axes.set_xlabel(x, fontsize=9, color=MUTED, labelpad=6)
    axes.set_ylabel(y, fontsize=9, color=MUTED, labelpad=6)


def _save(figure: Figure, path: str | Path) -> None:
    """Write the PNG beside `path`, then rename; no metadata, so equal figures are equal files."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for text in figure.findobj(Text):
        text.set_fontfamily(_fonts()[0])
        text.set_usetex(False)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(
            aside,
            format="png",
            dpi=DPI,
            facecolor=GROUND,
            bbox_inches="tight",
            pad_inches=0.12,
            metadata={"Software": None},
        )
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _note(text: str, path: str | Path) -> None:
    """A figure that says why there is nothing to see."""
    figure = Figure(figsize=(5, 1), dpi=DPI)
    figure.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, fontsize=10)
    _save(figure, path)


def _draw_line(axes: Axes, epochs: np.ndarray, values: np.ndarray, color: str, width: float) -> None:
    """A line, with dots where few epochs or NaN neighbours would leave a value without one."""
    finite = np.isfinite(values)
    alone = finite & ~np.r_[False, finite[:-1]] & ~np.r_[finite[1:], False]
    dots = np.flatnonzero(finite if len(epochs) <= 30 else alone)
    axes.plot(
        epochs,
        values,
        color=color,
        linewidth=width,
        marker="o",
        markersize=3.2 if len(epochs) > 1 else 6,
        markevery=[int(i) for i in dots],
        solid_joinstyle="round",
    )


def _draw_ends(axes: Axes, epochs: np.ndarray, ends: list[tuple[str, np.ndarray, str]]) -> None:
    """The name of each line behind its last value, pushed apart where two would overlap."""
    spots: list[tuple[float, float, float, str, str]] = []
    for name, values, color in ends:
        last = np.flatnonzero(np.isfinite(values))
        if len(last):
            x, y = float(epochs[last[-1]]), float(values[last[-1]])
            spots.append((float(axes.transData.transform((x, y))[1]) * 72 / DPI, x, y, name, color))
    spots.sort()
    close = len(spots) == 2 and spots[1][0] - spots[0][0] < 13
    push = (13 - (spots[1][0] - spots[0][0])) / 2 if close else 0.0
    for sign, (_, x, y, name, color) in zip((-1, 1), spots, strict=False):
        axes.annotate(
            name,
            (x, y),
            (8, sign * push),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=9,
            annotation_clip=False,
        )


_UNITS = {
    "accuracy": "accuracy, % (higher is better)",
    "r2": "explained share of variance (higher is better)",
    "loss": "loss, nats (lower is better)",
    "squares": "squared error, scaled (lower is better)",
}
_SPARE = {"accuracy": 5.0, "r2": 0.05}
_BEST = {"accuracy": ", {:.1f} %", "r2": ", {:.3f}"}


def curves(history: Sequence[Mapping[str, Any]], path: str | Path, best: int | None = None) -> None:
    """Loss and accuracy or R2 over epochs, training and validation; `best` is an epoch (else that of the best one)."""
    if not history:
        return _note("no epoch was finished, so there are no curves", path)
    epochs = np.array([_number(row.get("epoch")) for row in history])
    figure_name = "r2" if "val_r2" in history[0] else "accuracy"
    columns = ("train_loss", "val_loss", f"train_{figure_name}", f"val_{figure_name}")
    found = {k: np.array([_number(row.get(k)) for row in history]) for k in columns}
    judge = found[f"val_{figure_name}"]
    at = int(np.nanargmax(judge)) if np.isfinite(judge).any() else None
    if best is not None and (epochs == best).any():
        at = int(np.flatnonzero(epochs == best)[0])
    figure = Figure(figsize=(10, 3.9), dpi=DPI)
    percent = 100.0 if figure_name == "accuracy" else 1.0
    for left, kind, factor in ((0.6, "loss", 1.0), (5.75, figure_name, percent)):
        axes = _axes(figure, (left, 0.6, 3.5, 2.75))
        train, val = (found[f"{part}_{kind}"] * factor for part in ("train", "val"))
        both = np.r_[train, val][np.isfinite(np.r_[train, val])]
        steep = kind == "loss" and len(both) and both.min() > 0 and both.max() > 30 * np.median(both)
        unit = _UNITS["squares" if (kind, figure_name) == ("loss", "r2") else kind]
        _title(axes, kind.capitalize(), "epoch", unit + (", log scale" if steep else ""))
        if steep:
            axes.set_yscale("log")
        _draw_line(axes, epochs, train, BLUE, 1.3)
        _draw_line(axes, epochs, val, VERMILION, 1.8)
        first, last = float(np.nanmin(epochs)), float(np.nanmax(epochs))
        room = max(0.5, 0.03 * (last - first))
        axes.set_xlim(first - room, last + room)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        if len(both) and not steep:
            low, high = axes.get_ylim()
            spare = max(0.0, (_SPARE.get(kind) or 0.2 * abs(both).max()) - (high - low)) / 2  # no false drama
            floor = max(low - spare, -0.5) if kind == "r2" else max(0.0, low - spare)  # early epochs go far below 0
            axes.set_ylim(floor, min({"accuracy": 101.0, "r2": 1.01}.get(kind, math.inf), high + spare))
        if at is not None:
            words = f"best: epoch {epochs[at]:g}" + _BEST.get(kind, "").format(val[at])
            _draw_best(axes, float(epochs[at]), float(val[at]), words)
        _draw_ends(axes, epochs, [("training", train, BLUE), ("validation", val, VERMILION)])
    _save(figure, path)


def _draw_best(axes: Axes, x: float, y: float, words: str) -> None:
    """A thin line down from its words, and a ring around the value."""
    low, high = axes.get_xlim()
    side = "left" if x < low + 0.25 * (high - low) else "right" if x > high - 0.25 * (high - low) else "center"
    axes.axvline(x, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    axes.annotate(
        words,
        (x, 1),
        (0, 5),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        ha=side,
        color=MUTED,
        fontsize=9,
        annotation_clip=False,
    )
    if math.isfinite(y):
        axes.plot([x], [y], "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.1)


def schedule(points: Sequence[Sequence[float]], path: str | Path) -> None:
    """The learning rate over the position in the run, 0 to 1; below it, where points have a third number, momentum."""
    rows = [[_number(value) for value in point] for point in points]
    rows = [row for row in rows if all(map(math.isfinite, row))]
    if not rows:
        return _note("no schedule was recorded", path)
    lift = 1.9 if min(map(len, rows)) > 2 else 0.0
    figure = Figure(figsize=(7, 2.9 + lift), dpi=DPI)
    axes = _axes(figure, (0.8, 0.6 + lift, 5.8, 1.8))
    xs, ys, *momentum = np.array([row[: 3 if lift else 2] for row in rows]).T
    if lift:
        below = _axes(figure, (0.8, 0.6, 5.8, 1.0))
        below.plot(xs * 100, momentum[0], color=VERMILION, linewidth=1.8, marker="o" if len(xs) == 1 else None)
        below.set_xlim(-1, 101)
        below.margins(y=0.15)
        below.yaxis.set_major_locator(MaxNLocator(3))
        _title(below, "", "position in the run, %", "momentum")
    axes.fill_between(xs * 100, ys, color=BLUE, alpha=0.08, linewidth=0)
    axes.plot(xs * 100, ys, color=BLUE, linewidth=1.8, marker="o" if len(xs) == 1 else None)
    axes.set_xlim(-1, 101)
    axes.set_ylim(0 if ys.min() >= 0 else None, max(ys.max() * 1.05, 1e-12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    _title(axes, "Learning rate", "" if lift else "position in the run, %", "learning rate per step")
    top = int(ys.argmax())
    _draw_best(axes, float(xs[top] * 100), math.nan, f"highest: {ys[top]:.3g}")
    _save(figure, path)


def range_test(found: Mapping[str, Any], path: str | Path) -> None:
    """The loss over the learning rate of a range test, raw and smoothed, with the two rates that it suggests."""
    figure = Figure(figsize=(7, 3.4), dpi=DPI)
    axes = _axes(figure, (0.8, 0.6, 5.8, 2.3))
    rates, smoothed = np.asarray(found["rates"], float), np.asarray(found["smoothed"], float)
    axes.plot(rates, found["losses"], color=MUTED, linewidth=0.6, alpha=0.6)
    axes.plot(rates, smoothed, color=BLUE, linewidth=1.8)
    axes.set_xscale("log")
    low, high = float(smoothed.min()), float(smoothed[: int(smoothed.argmin()) + 1].max())
    axes.set_ylim(low - 0.15 * (high - low) - 1e-9, high + 0.35 * (high - low) + 1e-9)
    _title(axes, "Learning-rate range test", "learning rate", "training loss: lower is better")
    for name, color, lift in (("steepest", GREEN, 26), ("valley", VERMILION, 10)):
        height = float(np.interp(np.log(found[name]), np.log(rates), smoothed))
        axes.plot([found[name]], [height], "o", color=color, markersize=6)
        words = f"{name}: {found[name]:.2g}"
        axes.annotate(words, (found[name], height), (8, lift), textcoords="offset points", color=color, fontsize=9)
    _save(figure, path)


def confusion(matrix: np.ndarray, names: Sequence[object], path: str | Path) -> None:
    """Counts of (true class, predicted class); the color is the share of the true class, blue right, orange wrong."""
    counts, n = np.asarray(matrix, dtype=float), len(names)
    if counts.shape != (n, n) or n == 0:
        shape = " x ".join(str(s) for s in counts.shape)
        raise InputError(f"the confusion matrix is {shape}, expected {n} x {n} for the {n} class names given")
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    tint = share**0.6  # so that one mistake in thirty is still seen
    colors = np.where(np.eye(n, dtype=bool)[..., None], RIGHT(tint), WRONG(tint))[..., :3]
    colors[totals[:, 0] == 0] = np.array([int(EMPTY[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    side = min(max(0.46 * n, 3.0), 8.6)
    figure = Figure(figsize=(side + 3, side + 3), dpi=DPI)
    axes = _axes(figure, (1.8, 1.8, side, side))
    axes.imshow(colors, interpolation="nearest" if n < side * DPI / 2 else "antialiased", aspect="equal")
    _title(axes, "Confusion matrix", "predicted class", "true class")
    axes.grid(False)
    axes.tick_params(length=0)
    if n <= LABELLED:
        edges = np.arange(n + 1) - 0.5
        axes.hlines(edges, -0.5, n - 0.5, color=GROUND, linewidth=1.2 if n <= NUMBERED else 0.5)
        axes.vlines(edges, -0.5, n - 0.5, color=GROUND, linewidth=1.2 if n <= NUMBERED else 0.5)
        axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5))
    every = range(0, n, math.ceil(n / LABELLED))
    labels = _labels(names, 22 if n <= NUMBERED else 18)
    size = 9.0 if n <= NUMBERED else 7.0
    long = max(len(labels[i]) for i in every) > 3
    turned: dict[str, Any] = {}
    if long:
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        turned |= {"rotation": 90, "va": "center"} if n > 12 else {}
    axes.set_xticks(list(every), [labels[i] for i in every], fontsize=size, **turned)
    axes.set_yticks(list(every), [labels[i] for i in every], fontsize=size)
    if n <= NUMBERED:
        digits = len(f"{counts.max():.0f}")
        for (i, j), count in np.ndenumerate(counts):
            if count or i == j:
                white = tint[i, j] > 0.62 and totals[i, 0] > 0
                fit = min(11.0, side / n * 72 * 0.8 / (0.64 * digits))
                axes.text(j, i, f"{count:.0f}", ha="center", va="center", fontsize=fit, color=GROUND if white else INK)
    _draw_key(figure, (1.8, side))
    _save(figure, path)


def _draw_key(figure: Figure, place: tuple[float, float]) -> None:
    """What the two colors mean, right above the matrix."""
    left, side = place
    axes = _axes(figure, (left + side - 1.0, 1.8 + side + 0.26, 1.0, 0.22))
    tint = np.linspace(0, 1, 60) ** 0.6
    axes.imshow(np.stack([RIGHT(tint), WRONG(tint)]), aspect="auto", extent=(0, 100, 2, 0))
    axes.grid(False)
    axes.tick_params(length=0, labelsize=7, pad=1.5)
    axes.set_yticks([0.5, 1.5], ["right", "wrong"])
    axes.set_xticks([0, 100], ["0", "100 % of row"])
    for spine in axes.spines.values():
        spine.set_visible(False)


def classes(counts: Mapping[str, Mapping[str, int]], path: str | Path) -> None:
    """Pictures per class, one bar each, in parts per split; the largest 40 where there are more."""
    if not counts:
        return _note("no classes were recorded", path)
    table = {name: {k: max(0.0, np.nan_to_num(_number(v))) for k, v in row.items()} for name, row in counts.items()}
    order = sorted(table, key=lambda name: -sum(table[name].values()))
    shown = order[:BARS]
    splits = [s for s in SPLITS if any(s in row for row in table.values())]
    splits += sorted({s for row in table.values() for s in row} - set(SPLITS))
    high = 0.24 * len(shown) + 0.1
    figure = Figure(figsize=(9, high + 1.4), dpi=DPI)
    axes = _axes(figure, (2.2, 0.6, 6, high))
    start = np.zeros(len(shown))
    for split in splits:
        words, color = SPLITS.get(split, (_safe(split), PURPLE))
        part = np.array([table[name].get(split, 0.0) for name in shown])
        axes.barh(range(len(shown)), part, left=start, height=0.68, color=color, label=words)
        start = start + part
    for i, total in enumerate(start):
        axes.annotate(f"{total:,.0f}", (total, i), (4, 0), textcoords="offset points", va="center", fontsize=8)
    labels = dict(zip(table, _labels(list(table)), strict=True))
    axes.set_yticks(range(len(shown)), [labels[name] for name in shown], fontsize=8.5, color=INK)
    axes.set(ylim=(len(shown) - 0.45, -0.55), xlim=(0, max(start.max() * 1.08, 1)))
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    more = f", the {BARS} largest of {len(order)} classes" if len(order) > BARS else ""
    _title(axes, "Pictures per class" + more, "number of pictures")
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
    _save(figure, path)


def sheet(pictures: Sequence[np.ndarray], captions: Sequence[object], path: str | Path, columns: int = 8) -> None:
    """A contact sheet of uint8 pictures (H, W), (H, W, 1) or (H, W, 3), each whole in a square, its caption below."""
    if not pictures:
        return _note("there are no pictures to show", path)
    columns = max(1, min(columns, len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    cell, below = 1.25, 0.28
    figure = Figure(figsize=(columns * cell, rows * (cell + below)), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, columns * cell), ylim=(rows * (cell + below), 0))
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        array = np.asarray(picture, dtype=np.uint8)
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
            left + cell / 2, top + cell + 0.02, _safe(caption, 20), ha="center", va="top", fontsize=7.5, color=INK
        )
    axes.set(xlim=(0, columns * cell), ylim=(rows * (cell + below), 0))
    _save(figure, path)
