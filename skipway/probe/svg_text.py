"""Pieces of a diagram: their sizes, and the SVG that draws them.

Lengths are SVG pixels. A piece is placed on a line from left to right. It is `width` long, and extends `above` and
`below` the line.
"""

import html
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from skipway.errors import printable

__all__ = [
    "ARCS",
    "COLORS",
    "Box",
    "Card",
    "Chip",
    "Coupled",
    "Frame",
    "Join",
    "Lanes",
    "Piece",
    "Skipped",
    "Sliver",
    "Way",
    "draw_pieces",
    "fit_text",
    "length",
    "path",
    "rectangle",
    "shorten",
    "text",
]

INK, MUTED, FAINT, GROUND, BAND = "#1f2328", "#59626b", "#9aa3ab", "#ffffff", "#f5f7f9"
# Palette of Okabe and Ito, safe for color-blind readers.
BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"
COLORS = {  # kind of layer -> fill, edge
    "weights": ("#dcebf6", "#86b6d8"),
    "pool": ("#f8e6ef", PURPLE),
    "attention": ("#fcf6c8", "#c9b93a"),
    "other": ("#eef0f2", "#b6bdc4"),
    "norm": (ORANGE, ORANGE),
    "act": (GREEN, GREEN),
    "drop": (FAINT, FAINT),
}
ARCS = {  # kind of shortcut -> color, dashes
    "identity": (BLUE, ""),
    "changed": (BLUE, "3 3"),
    "projected": (VERMILION, "7 3"),
    "dense": (GREEN, ""),
}
LETTERS = 11.5
HALF, GAP, RADIUS = 17.0, 3.0, 8.0
_LIFT = 13.0  # height of an arc above its body


def fit_text(value: object, limit: int = 24) -> str:
    """Return `value` as one escaped line of at most `limit` characters that XML allows."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in printable(value))
    return shorten(html.escape(shown), limit)


def shorten(escaped: str, limit: int) -> str:
    """Shorten an escaped text to at most `limit` characters."""
    plain = html.unescape(escaped)
    return escaped if len(plain) <= limit else html.escape(plain[: limit - 1]) + "…"


def extent(escaped: str, size: float = LETTERS) -> float:
    """Estimate the width of an escaped text."""
    return size * sum(_extent(character) for character in html.unescape(escaped))


def _extent(character: str) -> float:
    if unicodedata.east_asian_width(character) in "WF":
        return 1.0
    if character in "ijlftrI.,:;()[]/'| ":
        return 0.38
    if character in "mwMW":
        return 0.92
    return 0.68 if character.isupper() else 0.62


def text(x: float, y: float, escaped: str, *, size: float = LETTERS, color: str = INK, more: str = "") -> str:
    """Draw an escaped text centered at x, unless the attributes in `more` set another anchor."""
    anchor = "" if "text-anchor" in more else ' text-anchor="middle"'
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{color}"{anchor}{more}>{escaped}</text>'


def path(way: str, *, color: str = FAINT, width: float = 1.3, dashes: str = "") -> str:
    """Draw a line along an SVG path."""
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="{way}" fill="none" stroke="{color}" stroke-width="{width:g}"{dashed}/>'


def arrow(x: float, y: float, dx: float, dy: float, *, color: str = FAINT) -> str:
    """Draw an arrowhead at (x, y) in the unit direction (dx, dy)."""
    back, aside = (x - 5.5 * dx, y - 5.5 * dy), (3 * dy, 3 * dx)
    corners = (x, y), (back[0] + aside[0], back[1] + aside[1]), (back[0] - aside[0], back[1] - aside[1])
    return f'<polygon points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}" fill="{color}"/>'


def rectangle(
    x: float, y: float, width: float, height: float, *, fill: str, edge: str = "none", corner: float = 4, more: str = ""
) -> str:
    """Draw a rectangle with rounded corners."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{corner:g}" fill="{fill}" '
        f'stroke="{edge}"{more}/>'
    )


class Size(NamedTuple):
    """Width of a piece, and its extent above and below the line."""

    width: float
    above: float = HALF
    below: float = HALF


class Piece:
    """Base of everything placed on a line. Equal pieces look the same; only their `tip` (tooltip) may differ."""

    tip: str

    @cached_property
    def size(self) -> Size:
        """Size of the piece."""
        return Size(0.0)

    def draw(self, x: float, y: float) -> Iterator[str]:
        """Draw the piece along the line at y, starting at x."""
        yield from ()


def length(pieces: Sequence[Piece]) -> float:
    """Return the width of consecutive pieces."""
    return sum(piece.size.width for piece in pieces) + GAP * max(len(pieces) - 1, 0)


def draw_pieces(pieces: Sequence[Piece], x: float, y: float) -> Iterator[str]:
    """Draw consecutive pieces along the existing line at y, starting at x."""
    for piece in pieces:
        yield f"<g><title>{piece.tip}</title>" if piece.tip else "<g>"
        yield from piece.draw(x, y)
        yield "</g>"
        x += piece.size.width + GAP


def _reach(pieces: Sequence[Piece]) -> tuple[float, float]:
    return max((p.size.above for p in pieces), default=HALF), max((p.size.below for p in pieces), default=HALF)


@dataclass(frozen=True)
class Box(Piece):
    """Box of a layer, with one or two escaped words."""

    kind: str
    words: tuple[str, ...]
    tip: str = field(default="", compare=False)

    @cached_property
    def size(self) -> Size:
        """Size that fits the words."""
        return Size(max(26.0, max(extent(word) for word in self.words) + 9))

    def draw(self, x: float, y: float) -> Iterator[str]:
        """Draw a colored box."""
        fill, edge = COLORS[self.kind]
        yield rectangle(x, y - HALF, self.size.width, 2 * HALF, fill=fill, edge=edge)
        first = y + 4 if len(self.words) == 1 else y - 2.5
        for number, word in enumerate(self.words):
            yield text(x + self.size.width / 2, first + 13 * number, word)


@dataclass(frozen=True)
class Sliver(Piece):
    """Narrow bar of a layer without words: a norm, an activation or dropout."""

    kind: str
    tip: str = field(default="", compare=False)
    size = Size(6.0)

    def draw(self, x: float, y: float) -> Iterator[str]:
        """Draw a narrow bar."""
        yield rectangle(x, y - 14, self.size.width, 28, fill=COLORS[self.kind][0], corner=2)


@dataclass(frozen=True)
class Join(Piece):
    """Circle of a join."""

    sign: str
    tip: str = field(default="", compare=False)
    size = Size(2 * RADIUS)

    def draw(self, x: float, y: float) -> Iterator[str]:
        """Draw a circle with the sign of the join."""
        yield f'<circle cx="{x + RADIUS:.1f}" cy="{y:.1f}" r="{RADIUS:g}" fill="{GROUND}" stroke="{INK}"/>'
        yield text(x + RADIUS, y + 4.2, self.sign, size=12.5)


@dataclass(frozen=True)
class Way:
    """Shortcut: its kind, a key of `ARCS`, and a word for its operation."""

    kind: str
    word: str = ""


@dataclass(frozen=True)
class Skipped(Piece):
    """Body with the arc of its shortcut above it."""

    body: tuple[Piece, ...]
    way: Way
    join: Join
    after: tuple[Piece, ...] = ()
    tip: str = field(default="", compare=False)

    @cached_property
    def size(self) -> Size:
        """Size of the body, the arc with its word, the join and the pieces after it."""
        (above, below), (over, under) = _reach(self.body), _reach(self.after)
        inside = max(length(self.body), extent(self.way.word) - 12)
        top = above + _LIFT + (14 if self.way.word else 1)
        return Size(12 + inside + 9 + length((self.join, *self.after)), max(top, over), max(below, under))

    def draw(self, x: float, y: float) -> Iterator[str]:
        """Draw the arc, then the pieces below it."""
        color, dashes = ARCS[self.way.kind]
        meet, top = x + self.size.width - length((self.join, *self.after)), _reach(self.body)[0] + _LIFT
        start, end = x + 4, meet + RADIUS
        bend = min(top, 26, (end - start) / 2)
        yield path(
            f"M{start:.1f} {y:.1f}V{y - top + bend:.1f}q0 {-bend:g} {bend:g} {-bend:g}H{end - bend:.1f}"
            f"q{bend:g} 0 {bend:g} {bend:g}V{y - RADIUS - 4:.1f}",
            color=color,
            width=2,
            dashes=dashes,
        )
        yield arrow(end, y - RADIUS, 0, 1, color=color)
        yield f'<circle cx="{start:.1f}" cy="{y:.1f}" r="2.4" fill="{color}"/>'
        if self.way.word:
            yield text((start + end) / 2, y - top - 4, self.way.word, size=LETTERS, color=color)
        yield from draw_pieces(self.body, x + 12, y)
        yield from draw_pieces((self.join, *self.after), meet, y)


@dataclass(frozen=True)
class Lanes(Piece):
    """Parallel branches from one point to one join."""

    branches: tuple[tuple[Piece, ...], ...]
    join: Join
    tip: str = field(default="", compare=False)

    @cached_property
    def size(self) -> Size:
        """Size of all branches, with their bends and the join."""
        half = max(HALF, (sum(sum(_reach(b)) for b in self.branches) + 8 * (len(self.branches) - 1)) / 2)
        return Size(max(map(length, self.branches)) + 40 + 2 * RADIUS, half, half)

    def draw(self, x: float, y: float) -> Iterator[str]:
        """Draw each branch between its two bends."""
        end = x + self.size.width - 2 * RADIUS
        at = y - self.size.above
        for branch in self.branches:
            above, below = _reach(branch)
            at += above
            bends = f"C{x + 10:.1f} {y:.1f} {x + 8:.1f} {at:.1f} {x + 18:.1f} {at:.1f}H{end - 18:.1f}"
            back = f"C{end - 8:.1f} {at:.1f} {end - 10:.1f} {y:.1f} {end:.1f} {y:.1f}"
            color, width = (FAINT, 1.3) if branch else (BLUE, 2)
            yield path(f"M{x:.1f} {y:.1f}{bends}{back}", color=color, width=width)
            yield from draw_pieces(branch, x + 20, at)
            at += below + 8
        yield from draw_pieces((self.join,), end, y)


@dataclass(frozen=True)
class Coupled(Piece):
    """Two bodies of a Coupling, each between the half that it reads and the half that it adds to."""

    first: tuple[Piece, ...]
    second: tuple[Piece, ...]
    ways: tuple[Way, Way]
    tip: str = field(default="", compare=False)

    @cached_property
    def size(self) -> Size:
        """Size of both bodies with their bends, and of the two halves."""
        above, below = _reach((*self.first, *self.second))
        return Size(length(self.first) + length(self.second) + 72, above + 27, below + 27)

    def draw(self, x: float, y: float) -> Iterator[str]:
        """Draw the split into halves, f upwards, g downwards, and the merge."""
        width, above, below = self.size
        left, right = x + 8, x + width - 8
        up, down = 13 - above, below - 13
        for way, side, lift in zip(self.ways, (y + up, y + down), (-5, 12), strict=True):
            color, dashes = ARCS[way.kind]
            yield path(f"M{x:.1f} {y:.1f}L{left:.1f} {side:.1f}", color=INK)
            yield path(f"M{left:.1f} {side:.1f}H{right:.1f}", color=color, width=2, dashes=dashes)
            yield path(f"M{right:.1f} {side:.1f}L{x + width:.1f} {y:.1f}", color=INK)
            if way.word:
                yield text(x + 0.28 * width, side + lift, way.word, size=LETTERS, color=color)
        second = left + length(self.first) + 32
        for body, begin, source, target in ((self.first, left + 4, down, up), (self.second, second, up, down)):
            end = begin + length(body) + 16
            yield path(f"M{begin:.1f} {y + source:.1f}V{y:.1f}H{end:.1f}V{y + target:.1f}", color=INK)
            yield f'<circle cx="{begin:.1f}" cy="{y + source:.1f}" r="2.4" fill="{INK}"/>'
            yield from draw_pieces(body, begin + 8, y)
            yield from Join("+").draw(end - RADIUS, y + target)


@dataclass(frozen=True)
class Frame(Piece):
    """Frame around the layers of a module with a custom forward."""

    title: str
    inside: tuple[Piece, ...]
    tip: str = field(default="", compare=False)

    @cached_property
    def size(self) -> Size:
        """Size of the content with the title and the edge."""
        above, below = _reach(self.inside)
        return Size(max(length(self.inside), extent(self.title)) + 14, above + 20, below + 6)

    def draw(self, x: float, y: float) -> Iterator[str]:
        """Draw a dashed frame, then the content."""
        width, above, below = self.size
        yield rectangle(
            x, y - above, width, above + below, fill="none", edge=FAINT, corner=6, more=' stroke-dasharray="2 3"'
        )
        yield text(x + 7, y - above + 13, self.title, size=LETTERS, color=MUTED, more=' text-anchor="start"')
        yield from draw_pieces(self.inside, x + 7, y)


@dataclass(frozen=True)
class Card(Piece):
    """Card of a block, tinted by its value if it has one."""

    inside: tuple[Piece, ...]
    tint: str = GROUND
    caption: str = ""
    tip: str = field(default="", compare=False)

    @cached_property
    def size(self) -> Size:
        """Size of the content with the edge and the caption."""
        above, below = _reach(self.inside)
        return Size(max(length(self.inside), extent(self.caption)) + 14, above + 7, below + (20 if self.caption else 7))

    def draw(self, x: float, y: float) -> Iterator[str]:
        """Draw the card, then the block."""
        width, above, below = self.size
        yield rectangle(x, y - above, width, above + below, fill=self.tint, edge="#dfe3e7", corner=7)
        yield path(f"M{x:.1f} {y:.1f}h{width:.1f}", color=INK)
        yield from draw_pieces(self.inside, x + 7, y)
        if self.caption:
            yield text(x + width / 2, y + below - 6, self.caption)


@dataclass(frozen=True)
class Chip(Piece):
    """Stack of cards that counts further pieces equal to those before."""

    words: tuple[str, ...]
    tint: str = GROUND
    tip: str = field(default="", compare=False)

    @cached_property
    def size(self) -> Size:
        """Size of one line per word, with the cards behind."""
        half = 7.5 * len(self.words) + 12
        return Size(max(map(extent, self.words)) + 22, half, half)

    def draw(self, x: float, y: float) -> Iterator[str]:
        """Draw stacked cards."""
        width, half, _ = self.size
        for back in (6, 3, 0):
            yield rectangle(
                x + back, y - half + 6 - back, width - 6, 2 * half - 6, fill=self.tint, edge=FAINT, corner=6
            )
        for number, word in enumerate(self.words):
            at = y + 6 - 7.5 * (len(self.words) - 1) + 15 * number + 1
            yield text(
                x + width / 2 - 3, at, word, size=LETTERS, color=INK, more=' font-weight="bold"' if number == 0 else ""
            )
