"""What diagrams are drawn with: pieces that know their size and their looks, and the SVG that shows them.

Lengths are SVG's pixels. A piece lies on a line that runs from left to right: it is `width` long, and reaches `above`
and `below` the line.
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
BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"  # of Okabe and Ito
COLORS = {  # kind of layer -> ground, edge
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
_LIFT = 13.0  # of an arc over what it leads around


def fit_text(value: object, limit: int = 24) -> str:
    """A text on one line in at most `limit` characters, escaped, without what XML cannot hold."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in printable(value))
    return shorten(html.escape(shown), limit)


def shorten(escaped: str, limit: int) -> str:
    """An escaped text in at most `limit` characters."""
    plain = html.unescape(escaped)
    return escaped if len(plain) <= limit else html.escape(plain[: limit - 1]) + "…"


def extent(escaped: str, size: float = LETTERS) -> float:
    """About how long a text is."""
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
    """An escaped text in the middle of x; `more` attributes may say otherwise."""
    anchor = "" if "text-anchor" in more else ' text-anchor="middle"'
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{color}"{anchor}{more}>{escaped}</text>'


def path(way: str, *, color: str = FAINT, width: float = 1.3, dashes: str = "") -> str:
    """A line along an SVG path."""
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="{way}" fill="none" stroke="{color}" stroke-width="{width:g}"{dashed}/>'


def arrow(x: float, y: float, dx: float, dy: float, *, color: str = FAINT) -> str:
    """The head of an arrow that ends at (x, y) after a step (dx, dy) of length 1."""
    back, aside = (x - 5.5 * dx, y - 5.5 * dy), (3 * dy, 3 * dx)
    corners = (x, y), (back[0] + aside[0], back[1] + aside[1]), (back[0] - aside[0], back[1] - aside[1])
    return f'<polygon points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}" fill="{color}"/>'


def rectangle(
    x: float, y: float, width: float, height: float, *, fill: str, edge: str = "none", corner: float = 4, more: str = ""
) -> str:
    """A rectangle with round corners."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{corner:g}" fill="{fill}" '
        f'stroke="{edge}"{more}/>'
    )


class Size(NamedTuple):
    """How long a piece is, and how far it reaches beside its line."""

    width: float
    above: float = HALF
    below: float = HALF


class Piece:
    """Something on a line. Equal pieces look the same: what only shows under the pointer, their `tip`, may differ."""

    tip: str

    @cached_property
    def size(self) -> Size:
        """How much room it takes."""
        return Size(0.0)

    def draw(self, x: float, y: float) -> Iterator[str]:
        """SVG of the piece, from x on along the line at y."""
        yield from ()


def length(pieces: Sequence[Piece]) -> float:
    """Of pieces one after the other."""
    return sum(piece.size.width for piece in pieces) + GAP * max(len(pieces) - 1, 0)


def draw_pieces(pieces: Sequence[Piece], x: float, y: float) -> Iterator[str]:
    """Pieces one after the other, from x on along the line at y, which is there already."""
    for piece in pieces:
        yield f"<g><title>{piece.tip}</title>" if piece.tip else "<g>"
        yield from piece.draw(x, y)
        yield "</g>"
        x += piece.size.width + GAP


def _reach(pieces: Sequence[Piece]) -> tuple[float, float]:
    return max((p.size.above for p in pieces), default=HALF), max((p.size.below for p in pieces), default=HALF)


@dataclass(frozen=True)
class Box(Piece):
    """A layer with one or two words in it, escaped."""

    kind: str
    words: tuple[str, ...]
    tip: str = field(default="", compare=False)

    @cached_property
    def size(self) -> Size:
        """As wide as its words."""
        return Size(max(26.0, max(extent(word) for word in self.words) + 9))

    def draw(self, x: float, y: float) -> Iterator[str]:
        """A colored box."""
        fill, edge = COLORS[self.kind]
        yield rectangle(x, y - HALF, self.size.width, 2 * HALF, fill=fill, edge=edge)
        first = y + 4 if len(self.words) == 1 else y - 2.5
        for number, word in enumerate(self.words):
            yield text(x + self.size.width / 2, first + 13 * number, word)


@dataclass(frozen=True)
class Sliver(Piece):
    """A layer that needs no words: a norm, an activation, a dropout."""

    kind: str
    tip: str = field(default="", compare=False)
    size = Size(6.0)

    def draw(self, x: float, y: float) -> Iterator[str]:
        """A narrow bar."""
        yield rectangle(x, y - 14, self.size.width, 28, fill=COLORS[self.kind][0], corner=2)


@dataclass(frozen=True)
class Join(Piece):
    """Where ways meet."""

    sign: str
    tip: str = field(default="", compare=False)
    size = Size(2 * RADIUS)

    def draw(self, x: float, y: float) -> Iterator[str]:
        """A circle with the join's sign."""
        yield f'<circle cx="{x + RADIUS:.1f}" cy="{y:.1f}" r="{RADIUS:g}" fill="{GROUND}" stroke="{INK}"/>'
        yield text(x + RADIUS, y + 4.2, self.sign, size=12.5)


@dataclass(frozen=True)
class Way:
    """What travels around: its kind, of `ARCS`, and a word about it."""

    kind: str
    word: str = ""


@dataclass(frozen=True)
class Skipped(Piece):
    """A body with an arc over it."""

    body: tuple[Piece, ...]
    way: Way
    join: Join
    after: tuple[Piece, ...] = ()
    tip: str = field(default="", compare=False)

    @cached_property
    def size(self) -> Size:
        """Of the body, the join and what follows; of the arc and its word."""
        (above, below), (over, under) = _reach(self.body), _reach(self.after)
        inside = max(length(self.body), extent(self.way.word) - 12)
        top = above + _LIFT + (14 if self.way.word else 1)
        return Size(12 + inside + 9 + length((self.join, *self.after)), max(top, over), max(below, under))

    def draw(self, x: float, y: float) -> Iterator[str]:
        """The arc, then what is below it."""
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
    """Several ways beside each other from one place to one join."""

    branches: tuple[tuple[Piece, ...], ...]
    join: Join
    tip: str = field(default="", compare=False)

    @cached_property
    def size(self) -> Size:
        """Of the longest branch, the ways there and back and the join; of all branches."""
        half = max(HALF, (sum(sum(_reach(b)) for b in self.branches) + 8 * (len(self.branches) - 1)) / 2)
        return Size(max(map(length, self.branches)) + 40 + 2 * RADIUS, half, half)

    def draw(self, x: float, y: float) -> Iterator[str]:
        """Each branch between its two bends."""
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
    """Two bodies, each between the half that it reads and the half that it adds to."""

    first: tuple[Piece, ...]
    second: tuple[Piece, ...]
    ways: tuple[Way, Way]
    tip: str = field(default="", compare=False)

    @cached_property
    def size(self) -> Size:
        """Of both bodies with their turns; of the halves on both sides."""
        above, below = _reach((*self.first, *self.second))
        return Size(length(self.first) + length(self.second) + 72, above + 27, below + 27)

    def draw(self, x: float, y: float) -> Iterator[str]:
        """Halves apart, f up, g down, halves together."""
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
    """Layers of a module that does with them what only its code says."""

    title: str
    inside: tuple[Piece, ...]
    tip: str = field(default="", compare=False)

    @cached_property
    def size(self) -> Size:
        """Of what is inside, with the title and the edge."""
        above, below = _reach(self.inside)
        return Size(max(length(self.inside), extent(self.title)) + 14, above + 20, below + 6)

    def draw(self, x: float, y: float) -> Iterator[str]:
        """A dashed frame."""
        width, above, below = self.size
        yield rectangle(
            x, y - above, width, above + below, fill="none", edge=FAINT, corner=6, more=' stroke-dasharray="2 3"'
        )
        yield text(x + 7, y - above + 13, self.title, size=LETTERS, color=MUTED, more=' text-anchor="start"')
        yield from draw_pieces(self.inside, x + 7, y)


@dataclass(frozen=True)
class Card(Piece):
    """A block on a ground of its own, tinted where there is a number to show."""

    inside: tuple[Piece, ...]
    tint: str = GROUND
    caption: str = ""
    tip: str = field(default="", compare=False)

    @cached_property
    def size(self) -> Size:
        """Of what is inside, with an edge and the caption."""
        above, below = _reach(self.inside)
        return Size(max(length(self.inside), extent(self.caption)) + 14, above + 7, below + (20 if self.caption else 7))

    def draw(self, x: float, y: float) -> Iterator[str]:
        """The ground, then the block."""
        width, above, below = self.size
        yield rectangle(x, y - above, width, above + below, fill=self.tint, edge="#dfe3e7", corner=7)
        yield path(f"M{x:.1f} {y:.1f}h{width:.1f}", color=INK)
        yield from draw_pieces(self.inside, x + 7, y)
        if self.caption:
            yield text(x + width / 2, y + below - 6, self.caption)


@dataclass(frozen=True)
class Chip(Piece):
    """So many pieces more that look like those before."""

    words: tuple[str, ...]
    tint: str = GROUND
    tip: str = field(default="", compare=False)

    @cached_property
    def size(self) -> Size:
        """Of a line for each word, and the cards behind."""
        half = 7.5 * len(self.words) + 12
        return Size(max(map(extent, self.words)) + 22, half, half)

    def draw(self, x: float, y: float) -> Iterator[str]:
        """Cards behind each other."""
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
