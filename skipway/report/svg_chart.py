"""Charts as inline SVG: plain values in, markup out.

Every color is a class that the stylesheet of the report resolves to a CSS variable, so charts follow light and dark.
All text is escaped. Values that are not finite are gaps.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

from skipway.errors import printable
from skipway.report.plot_style import shorten

__all__ = ["Axis", "Line", "Mark", "bar_chart", "label_width", "line_chart", "svg", "svg_text"]

WIDTH, HEIGHT = 420.0, 270.0  # of the drawing, in units that are about pixels
_LEFT, _RIGHT, _BOTTOM = 62.0, 16.0, 44.0
_TITLE, _LEGEND, _MARK_ROW = 24.0, 17.0, 14.0
_CHARACTER = 6.9  # mean width of a character of the 12-unit font
_WIDE_CHARACTER = 12.5  # of scripts from U+1100 on
_MOST_DOTS = 30  # points up to which a line has a dot at each
_MARK_ROWS = 3
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LEAST_DECADES = 1.0  # of a logarithmic axis


@dataclass(frozen=True)
class Axis:
    """An axis: its label, limits (default: by the values), scale, and the unit behind its numbers.

    `least` is the smallest span, so that small differences do not look large. Limits never leave `bounds`.
    """

    label: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    unit: str = ""
    least: float = 0.0
    bounds: tuple[float, float] = (-math.inf, math.inf)
    whole: bool = False


@dataclass(frozen=True)
class Line:
    """A named series of points, drawn as a line with dots if they are few, as dots only, or as a line only."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: str
    dashed: bool = False
    dots: Literal["few", "only", "none"] = "few"
    opacity: float = 1.0


@dataclass(frozen=True)
class Mark:
    """A labeled vertical line, and a ring at `y` if that is finite."""

    x: float
    text: str
    y: float = math.nan


@dataclass(frozen=True)
class _Scale:
    """Maps values of an axis to units of the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def svg(width: float, height: float, body: Sequence[str], label: str) -> Markup:
    """Wrap elements of a drawing, whose texts are escaped, into an inline SVG with an accessible label."""
    head = Markup('<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {:g} {:g}" style="--w:{:g}px">').format(
        printable(label), round(width, 1), round(height, 1), round(width, 1)
    )
    return head + Markup("".join(body)) + Markup("</svg>")


def svg_text(
    x: float, y: float, text: object, *, kind: str = "", anchor: str = "", turned: int = 0, size: float = 0.0
) -> str:
    """Return a text element; `anchor` is "m" (middle) or "e" (end), `turned` an angle around its place.

    `size` is the font size in pixels; 0 leaves it to the stylesheet.
    """
    classes = " ".join(filter(None, (kind, anchor)))
    attributes = f' class="{classes}"' if classes else ""
    if size:
        attributes += f' style="font-size:{size:.1f}px"'
    if turned:
        attributes += f' transform="rotate({turned} {x:.1f} {y:.1f})"'
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(printable(text))}</text>'


def label_width(text: str) -> float:
    """Estimate the width of a text in the font of charts."""
    return sum(_WIDE_CHARACTER if ord(character) >= 0x1100 else _CHARACTER for character in text)


def line_chart(title: str, lines: Sequence[Line], *, x: Axis, y: Axis, marks: Sequence[Mark] = ()) -> Markup:
    """Draw lines over one pair of axes, with a legend if there are several, and marks above the plot."""
    rows, num_rows = _mark_rows(marks, _limits(lines, x, "xs"))
    legend, legend_height = _legend(lines, _TITLE + 8)
    top = _TITLE + legend_height + _MARK_ROW * num_rows + 8
    height = HEIGHT + max(0.0, top - 58)
    to_x = _scale(_limits(lines, x, "xs"), x, _LEFT, WIDTH - _RIGHT)
    to_y = _scale(_limits(lines, y, "ys"), y, height - _BOTTOM, top)
    body = [svg_text(0, 15, title, kind="t"), *legend, *_axes(to_x, to_y, x=x, y=y)]
    for mark, row in zip(marks, rows, strict=True):
        body += _mark(mark, to_x, to_y, text_y=top - 8 - _MARK_ROW * row)
    for line in lines:
        body += _line(line, to_x, to_y)
    return svg(WIDTH, height, body, title)


def bar_chart(title: str, bars: Sequence[tuple[float, str]], *, x: Axis, y: Axis, level: float = math.nan) -> Markup:
    """Draw a bar (height, color) for each number from 1 on, and a horizontal line at `level`."""
    top, height = _TITLE + 22, HEIGHT - 20
    values = [bar[0] for bar in bars] + [level]
    to_x = _Scale(0.4, len(bars) + 0.6, _LEFT, WIDTH - _RIGHT)
    to_y = _scale(_limits([Line("", [], values, "")], y, "ys"), y, height - _BOTTOM, top)
    body = [svg_text(0, 15, title, kind="t"), *_axes(to_x, to_y, x=x, y=y)]
    width = 0.76 * (to_x(2) - to_x(1)) if len(bars) > 1 else 40.0
    for i, (value, color) in enumerate(bars):
        if math.isfinite(value):
            left, high = to_x(i + 1) - width / 2, to_y(value)
            size = f'width="{width:.1f}" height="{to_y(to_y.low) - high:.1f}"'
            body.append(f'<rect class="f-{color}" x="{left:.1f}" y="{high:.1f}" {size}/>')
    if math.isfinite(level):
        body.append(f'<path class="s-ink thin" d="M{_LEFT:.1f} {to_y(level):.1f}H{WIDTH - _RIGHT:.1f}"/>')
    return svg(WIDTH, height, body, title)


def _limits(lines: Sequence[Line], axis: Axis, which: str) -> tuple[float, float]:
    """Return the limits of an axis: those it sets, else those of the finite values with a margin."""
    values: list[float] = []
    for line in lines:
        values += [value for value in getattr(line, which) if math.isfinite(value) and (value > 0 or not axis.log)]
    low, high = min(values, default=1.0 if axis.log else 0.0), max(values, default=1.0)
    if axis.log:
        low, high = max(low, high * 1e-12), high
        spare = max(0.06 * math.log10(high / low), (_LEAST_DECADES - math.log10(high / low)) / 2)
        return low / 10**spare, high * 10**spare
    margin = max(0.05 * (high - low), (axis.least - (high - low)) / 2)
    if axis.whole:
        margin = max(0.03 * (high - low), 0.5)
    low, high = max(low - margin, axis.bounds[0]), min(high + margin, axis.bounds[1])
    low = low if axis.low is None else axis.low
    high = high if axis.high is None else axis.high
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _scale(limits: tuple[float, float], axis: Axis, start: float, end: float) -> _Scale:
    return _Scale(*limits, start, end, log=axis.log)


def _ticks(scale: _Scale, axis: Axis, count: int) -> list[float]:
    """Return round numbers inside the limits: 1, 2 or 5 times a power of ten apart, or powers of ten."""
    if axis.log:
        first, last = math.ceil(math.log10(scale.low) - 1e-9), math.floor(math.log10(scale.high) + 1e-9)
        step = max(1, math.ceil((last - first + 1) / count))
        powers = [10.0**power for power in range(first, last + 1, step)]
        return powers if len(powers) > 1 else [*powers, *_log_steps(scale)][:count]
    raw = (scale.high - scale.low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    step = max(step, 1.0) if axis.whole else step
    first = math.ceil(scale.low / step - 1e-9)
    return [i * step for i in range(first, math.floor(scale.high / step + 1e-9) + 1)]


def _log_steps(scale: _Scale) -> list[float]:
    """Return 2 and 5 times the powers of ten inside the limits."""
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    return sorted(v for p in powers for v in (2 * 10.0**p, 5 * 10.0**p) if scale.low <= v <= scale.high)


def _axes(to_x: _Scale, to_y: _Scale, *, x: Axis, y: Axis) -> Iterator[str]:
    """Draw grid lines, numbers and labels of both axes."""
    left, right, bottom, top = to_x.start, to_x.end, to_y.start, to_y.end
    ticks = [(to_y(value), f"{_number(value)}{y.unit}") for value in _ticks(to_y, y, 5)]
    grid = "".join(f"M{left:.1f} {place:.1f}H{right:.1f}" for place, _ in ticks)
    yield f'<path class="grid" d="{grid}"/>'
    yield f'<path class="axis" d="M{left:.1f} {top:.1f}V{bottom:.1f}H{right:.1f}"/>'
    for place, text in ticks:
        yield svg_text(left - 6, place + 4, text, anchor="e")
    for value in _ticks(to_x, x, 6):
        yield svg_text(to_x(value), bottom + 16, f"{_number(value)}{x.unit}", anchor="m")
    yield svg_text((left + right) / 2, bottom + 36, x.label, anchor="m")
    yield svg_text(left - 50, (top + bottom) / 2, y.label, anchor="m", turned=-90)


def _number(value: float) -> str:
    """Write the number of a tick; powers of ten far from 1 with an exponent."""
    if value > 0 and not 1e-3 <= value < 1e5:
        mantissa, exponent = f"{value:.0e}".split("e")
        power = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
        return power if mantissa == "1" else f"{mantissa}·{power}"
    return f"{value:.4g}"


def _line(line: Line, to_x: _Scale, to_y: _Scale) -> Iterator[str]:
    """Draw a series: a path with gaps, and dots if there are few points, or at points between gaps."""
    pairs = [_place(a, b, to_x, to_y) for a, b in zip(line.xs, line.ys, strict=True)]
    parts: list[str] = []
    alone: list[tuple[float, float]] = []
    command = "M"
    for i, pair in enumerate(pairs):
        if pair is None:
            command = "M"
            continue
        parts.append(f"{command}{pair[0]:.1f} {pair[1]:.1f}")
        is_alone = command == "M" and (i + 1 == len(pairs) or pairs[i + 1] is None)
        command = "L"
        if is_alone or len(pairs) <= _MOST_DOTS or line.dots == "only":
            alone.append(pair)
    faint = f' opacity="{line.opacity:g}"' if line.opacity < 1 else ""
    if parts and line.dots != "only":
        dash = " dash" if line.dashed else ""
        yield f'<path class="s-{line.color}{dash}"{faint} d="{"".join(parts)}"/>'
    if alone and line.dots != "none":
        dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in alone)
        yield f'<path class="s-{line.color} dots"{faint} d="{dots}"/>'


def _place(x: float, y: float, to_x: _Scale, to_y: _Scale) -> tuple[float, float] | None:
    """Return the place of a point in the drawing, or None if it is a gap."""
    if not (math.isfinite(x) and math.isfinite(y)) or (to_x.log and x <= 0):
        return None
    if not to_y.log and not to_y.low <= y <= to_y.high:  # a log axis draws zero at its lower end
        return None
    return to_x(x), to_y(y)


def _legend(lines: Sequence[Line], top: float) -> tuple[list[str], float]:
    """Draw the names of several lines under the title, and return the height that they take."""
    named = [line for line in lines if line.label]
    if len(named) < 2:
        return [], 0.0
    body: list[str] = []
    left, row = 0.0, 0
    for line in named:
        name = shorten(line.label, 30)
        width = 26 + label_width(name) + 14
        if left and left + width > WIDTH:
            left, row = 0.0, row + 1
        y = top + _LEGEND * row
        swatch = " dots" if line.dots == "only" else " dash" * line.dashed
        length = "h0" if line.dots == "only" else "h18"
        body.append(f'<path class="s-{line.color}{swatch}" d="M{left + 2:.1f} {y - 4:.1f}{length}"/>')
        body.append(svg_text(left + 26, y, name, kind="k"))
        left += width
    return body, _LEGEND * (row + 1)


def _mark_rows(marks: Sequence[Mark], limits: tuple[float, float]) -> tuple[list[int], int]:
    """Choose a row of text for each mark, so that texts do not overlap, and return them with the number of rows."""
    to_x = _Scale(*limits, _LEFT, WIDTH - _RIGHT)
    ends = [-math.inf] * _MARK_ROWS
    rows = []
    for mark in marks:
        left, right = _text_span(to_x(mark.x), mark.text)
        row = next((i for i, end in enumerate(ends) if left > end + 8), _MARK_ROWS - 1)
        ends[row] = right
        rows.append(row)
    return rows, max(rows, default=-1) + 1


def _text_span(x: float, text: str) -> tuple[float, float]:
    """Return left and right end of a text around `x`, moved into the drawing."""
    width = label_width(text)
    left = min(max(x - width / 2, 0.0), WIDTH - width)
    return left, left + width


def _mark(mark: Mark, to_x: _Scale, to_y: _Scale, *, text_y: float) -> Iterator[str]:
    x = to_x(mark.x)
    yield f'<path class="mark" d="M{x:.1f} {to_y.end - 5:.1f}V{to_y.start:.1f}"/>'
    yield svg_text(sum(_text_span(x, mark.text)) / 2, text_y, mark.text, anchor="m")
    if math.isfinite(mark.y):
        yield f'<circle class="ring" cx="{x:.1f}" cy="{to_y(mark.y):.1f}" r="5"/>'
