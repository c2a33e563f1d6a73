"""Style of the PNG plots, drawn without pyplot and so without global state.

They have a light ground, thin grids, the colors of the palette, and labels next to the lines instead of legends.
"""

import functools
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from skipway.errors import printable
from skipway.report.palette import light
from skipway.utils.atomic_files import make_folder, storing, write_file

DPI = 144
INK, MUTED, GROUND = light("ink"), light("muted"), light("ground")
GRID, EMPTY = "#e3e6ea", "#eceef0"
BLUE, VERMILION, GREEN, PURPLE = light("blue"), light("orange"), light("green"), light("purple")
# DejaVu Sans comes with matplotlib; those of these fonts that are installed add the scripts that it lacks.
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
    """Return `text` on one line of at most `width` characters, with its middle left out.

    >>> shorten("a very long name of a class", 12)
    'a very…class'
    """
    line = printable(text)
    if len(line) <= width:
        return line
    return line[: width // 2].rstrip() + "…" + line[len(line) - (width - 1 - width // 2) :].lstrip()


@functools.cache
def _fonts() -> tuple[list[str], frozenset[int]]:
    """Return the font families to draw with, and all code points that they have."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = ["DejaVu Sans", *(name for name in FALLBACKS if name in installed)]
    code_points: set[int] = set()
    for name in families:
        code_points.update(map(int, FT2Font(font_manager.findfont(name)).get_charmap()))
    return families, frozenset(code_points)


def drawable_text(text: object, width: int = 24) -> str:
    r"""Shorten `text`, replace characters that no font has by a box, and escape `$`.

    Escaping each `$` leaves none bare, so matplotlib takes the text as plain and turns `\$` back into `$`.
    """
    code_points = _fonts()[1]
    return "".join(c if ord(c) in code_points else "□" for c in shorten(text, width)).replace("$", r"\$")


def unique_labels(names: Sequence[object], width: int = 24) -> list[str]:
    """Return drawable names that differ from each other: names that shortening makes equal get a number."""
    short = [drawable_text(name, width) for name in names]
    counts = Counter(short)
    return [f"{label} #{i}" if counts[label] > 1 else label for i, label in enumerate(short)]


def finite_or_nan(value: Any) -> float:
    """Return `value` as a finite float, or NaN."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def add_axes(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Add axes in the style of all plots; `box` is left, bottom, width, height in inches."""
    wide, high = figure.get_size_inches()
    axes = figure.add_axes((box[0] / wide, box[1] / high, box[2] / wide, box[3] / high), facecolor=GROUND)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color="#b6bdc4", linewidth=0.8)
    axes.tick_params(labelsize=9, colors=MUTED, width=0.8, length=3, labelfontfamily=_fonts()[0])
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    return axes


def set_titles(axes: Axes, title: str, *, x: str = "", y: str = "") -> None:
    """Set the title and the labels of the axes.

    All three are texts of skipway, not of the user: the bold font has fewer glyphs than `_fonts` returns.
    """
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=22)
    axes.set_xlabel(x, fontsize=9, color=MUTED, labelpad=6)
    axes.set_ylabel(y, fontsize=9, color=MUTED, labelpad=6)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a PNG atomically, without metadata, so that equal plots are equal files."""
    path, file = Path(path), io.BytesIO()
    for text in figure.findobj(Text):
        text.set_fontfamily(_fonts()[0])
        text.set_usetex(False)
    figure.savefig(
        file,
        format="png",
        dpi=DPI,
        facecolor=GROUND,
        bbox_inches="tight",
        pad_inches=0.12,
        metadata={"Software": None},
    )
    with storing(path, file.tell()):
        make_folder(path.parent)
    write_file(path, file.getvalue())


def save_note(text: str, path: str | Path) -> None:
    """Save a plot that is only a text, such as the reason why there is nothing to draw."""
    figure = Figure(figsize=(5, 1), dpi=DPI)
    figure.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, fontsize=10)
    save_figure(figure, path)


def draw_line(axes: Axes, epochs: np.ndarray, values: np.ndarray, *, color: str, width: float) -> None:
    """Draw a line, with dots if there are few epochs, and at values between NaN, which have no line."""
    finite = np.isfinite(values)
    isolated = finite & ~np.r_[False, finite[:-1]] & ~np.r_[finite[1:], False]
    dots = np.flatnonzero(finite if len(epochs) <= 30 else isolated)
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
