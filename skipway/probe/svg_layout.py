"""Page of a diagram: rows of pieces, the lines that connect them, and a legend. Lengths are SVG pixels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import chain, takewhile
from typing import Any

from skipway.probe.svg_text import (
    ARCS,
    BAND,
    COLORS,
    FAINT,
    GROUND,
    HALF,
    INK,
    LETTERS,
    MUTED,
    RADIUS,
    Box,
    Card,
    Chip,
    Coupled,
    Frame,
    Join,
    Lanes,
    Piece,
    Skipped,
    Sliver,
    Way,
    arrow,
    draw_pieces,
    extent,
    path,
    rectangle,
    shorten,
    text,
)

__all__ = ["ROOM", "Row", "page", "tint"]

WIDTH, NARROWEST, LEFT, EDGE = 1100.0, 700.0, 176.0, 16.0
ROOM = WIDTH - LEFT - 2 * EDGE
INDENT, APART, BETWEEN = 30.0, 10.0, 14.0
_FONT = "system-ui, 'Segoe UI', Roboto, Helvetica, Arial, 'DejaVu Sans', sans-serif"
_NAMES = {
    "weights": "convolution (kernel/stride, channels out) or linear layer (outputs)",
    "norm": "norm",
    "act": "activation",
    "drop": "dropout",
    "pool": "pooling",
    "attention": "channel attention",
    "other": "other layer",
    "identity": "identity shortcut",
    "changed": "shortcut without parameters",
    "projected": "projection: shortcut with weights",
    "dense": "dense: input concatenated with the output",
    "+": "add",
    "×": "multiply",
    "‖": "concat",
    "g": "gate (highway)",
    "s": "add with a learned scale of the branch",
    "f": "custom join",
}


@dataclass(frozen=True)
class Row:
    """Row of a diagram: a part of the network with its name, its facts and the pieces that draw it."""

    name: str
    facts: tuple[str, ...]
    pieces: tuple[Piece, ...]


@dataclass
class _Line:
    """Line of pieces that fit next to each other, indented by `depth` steps."""

    depth: int
    pieces: list[Piece] = field(default_factory=list)

    def places(self) -> list[float]:
        """Return the start of each piece and the end of the last one."""
        x, places = LEFT + INDENT * self.depth, []
        for before, piece in zip([None, *self.pieces], self.pieces, strict=False):
            x += _gap(before, piece)
            places.append(x)
            x += piece.size.width
        return [*places, x]

    def reach(self) -> tuple[float, float]:
        """Return the extent above and below the middle of the line."""
        return max(p.size.above for p in self.pieces), max(p.size.below for p in self.pieces)


@dataclass
class _Bracket:
    """Shortcut or branch over several lines, from before `first` to the join that begins `last`, or to its end."""

    first: int
    last: int
    depth: int
    way: Way | None
    title: str = ""


def _gap(before: Piece | None, piece: Piece) -> float:
    if before is None:
        return 0.0
    return APART if isinstance(before, Card | Chip) or isinstance(piece, Card | Chip) else 4.0


def tint(share: float) -> str:
    """Return a color between white (0) and orange (1)."""
    return "#" + "".join(f"{round(255 + (end - 255) * share):02x}" for end in (0xF2, 0xA8, 0x6B))


class _Flow:
    """Layout of pieces in lines that fit the page; a wider piece is split into several lines with a bracket."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.lines = [_Line(0)]
        self.brackets: list[_Bracket] = []
        self.branch_starts: set[int] = set()  # lines that the previous line does not lead to
        self._put(pieces, 0)
        self.lines = [line for line in self.lines if line.pieces]

    def _put(self, pieces: Sequence[Piece], depth: int) -> None:
        for number, piece in enumerate(pieces):
            room = ROOM - INDENT * depth
            if piece.size.width > room and isinstance(piece, Skipped | Frame | Card | Lanes | Coupled) and room > 400:
                self._open(piece, depth)
                continue
            end = self.lines[-1].places()[-1] + _gap(piece, piece) + piece.size.width
            for sliver in takewhile(lambda p: isinstance(p, Sliver), pieces[number + 1 :]):  # no line begins with them
                end += _gap(piece, sliver) + sliver.size.width
            if end > LEFT + ROOM:
                self._begin(depth)
            self.lines[-1].pieces.append(piece)

    def _begin(self, depth: int) -> int:
        """Begin a new line, or reuse the last one if it is empty, and return its number."""
        if self.lines[-1].pieces:
            self.lines.append(_Line(depth))
        self.lines[-1].depth = depth
        return len(self.lines) - 1

    def _open(self, piece: Skipped | Frame | Card | Lanes | Coupled, depth: int) -> None:
        parts, rest = _open_piece(piece)
        for number, (inside, way, title) in enumerate(parts):
            first = self._begin(depth + 1)
            self.branch_starts |= {first} if number and isinstance(piece, Lanes) else set()
            self._put(inside, depth + 1)
            last = self._begin(depth + 1) if way is not None else len(self.lines) - 1 - (not self.lines[-1].pieces)
            if way is not None or title:
                self.brackets.append(_Bracket(first=first, last=last, depth=depth, way=way, title=title))
        if rest:
            self._begin(depth + 1)
            self._put(rest, depth + 1)
        else:
            self._begin(depth)


def _open_piece(
    piece: Skipped | Frame | Card | Lanes | Coupled,
) -> tuple[list[tuple[tuple[Piece, ...], Way | None, str]], tuple[Piece, ...]]:
    """Return the parts of a piece, each with its shortcut or title, and the pieces after the last part."""
    if isinstance(piece, Skipped):
        return [(piece.body, piece.way, "")], (piece.join, *piece.after)
    if isinstance(piece, Lanes):
        same = (Box("other", ("Identity",)),)
        count = len(piece.branches)
        return [(b or same, None, f"{i} of {count}") for i, b in enumerate(piece.branches, 1)], (piece.join,)
    if isinstance(piece, Coupled):
        return [(piece.first, piece.ways[0], "f"), ((Join("+"), *piece.second), piece.ways[1], "g")], (Join("+"),)
    return [(piece.inside, None, piece.title if isinstance(piece, Frame) else piece.caption)], ()


def page(title: str, facts: Sequence[str], rows: Sequence[Row], scale: tuple[float, float] | None) -> str:
    """Return the SVG of a diagram.

    Args:
        title: title of the page. All texts must be escaped.
        facts: facts below the title.
        rows: rows of the network, from the input to the output.
        scale: lowest and highest value of the tints, or None.
    """
    flows = [_Flow(row.pieces) for row in rows]
    ends = [line.places()[-1] for line in chain.from_iterable(flow.lines for flow in flows)]
    width = max(NARROWEST, *(end + EDGE + 12 for end in ends), extent(title, 19) + 2 * EDGE)
    body: list[str] = [
        text(EDGE, 32, title, size=19, color=INK, more=' text-anchor="start" font-weight="bold"'),
        text(EDGE, 53, " · ".join(facts), size=13, color=MUTED, more=' text-anchor="start"'),
    ]
    y, before = 68.0, None
    for row, flow in zip(rows, flows, strict=True):
        height, middles = _heights(flow, len(row.facts))
        body.append(rectangle(EDGE - 6, y, width - 2 * EDGE + 12, height, fill=BAND, corner=9))
        body += _label(row, y)
        body += _lines(flow, [y + middle for middle in middles], before, y)
        before = flow.lines[-1].places()[-1], y + middles[-1]
        y += height + BETWEEN
    legend, y = _legend(list(_drawn_items(rows)), scale, y + 4, width)
    described = "; ".join(f"{row.name}: {', '.join(row.facts)}" if row.facts else row.name for row in rows)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{y:.0f}" '
            f'viewBox="0 0 {width:.0f} {y:.0f}" role="img" font-family="{_FONT}">',
            f"<title>{title}</title>",
            f"<desc>{', '.join(facts)}. From input to output: {described}</desc>",
            rectangle(0, 0, width, y, fill=GROUND, corner=0),
            *body,
            *legend,
            "</svg>\n",
        ]
    )


def _heights(flow: _Flow, facts: int) -> tuple[float, list[float]]:
    """Return the height of a row, and the distance of each line from its top."""
    y, middles = 8.0, []
    for line in flow.lines:
        above, below = line.reach()
        middles.append(y + above)
        y += above + below + BETWEEN
    return max(y - BETWEEN + 8, 34 + 16.0 * facts), middles


def _label(row: Row, y: float) -> Iterator[str]:
    name = shorten(row.name, 18)
    yield f"<g><title>{row.name}</title>"
    yield text(EDGE + 4, y + 22, name, size=13.5, color=INK, more=' text-anchor="start" font-weight="bold"') + "</g>"
    for number, fact in enumerate(row.facts):
        yield text(EDGE + 4, y + 40 + 16 * number, shorten(fact, 24), size=12, color=MUTED, more=' text-anchor="start"')


def _lines(flow: _Flow, middles: list[float], before: tuple[float, float] | None, top: float) -> Iterator[str]:
    """Draw the lines of a row and the connections between them."""
    joined = {bracket.last for bracket in flow.brackets if bracket.way is not None}
    for number, (line, y) in enumerate(zip(flow.lines, middles, strict=True)):
        *places, end = line.places()
        begin, gap = places[0], top - BETWEEN / 2 if number == 0 else y - line.reach()[0] - BETWEEN / 2
        if before is None or number in flow.branch_starts:
            yield path(f"M{begin - 16:.1f} {y:.1f}H{begin:.1f}", color=INK if before is None else FAINT)
        elif number in joined:
            yield path(f"M{before[0]:.1f} {before[1]:.1f}h9V{gap:.1f}H{begin + RADIUS:.1f}V{y - RADIUS - 4:.1f}")
            yield arrow(begin + RADIUS, y - RADIUS, 0, 1)
        else:
            yield path(f"M{before[0]:.1f} {before[1]:.1f}h9V{gap:.1f}H{begin - 16:.1f}V{y:.1f}H{begin - 4:.1f}")
        if number not in joined:
            yield arrow(begin, y, 1, 0, color=INK if before is None else FAINT)
        yield path(f"M{begin:.1f} {y:.1f}H{end:.1f}", color=INK)
        for piece, x in zip(line.pieces, places, strict=True):
            yield from draw_pieces([piece], x, y)
        before = (end, y)
    for bracket in flow.brackets:
        yield from _bracket(bracket, flow, middles)


def _bracket(bracket: _Bracket, flow: _Flow, middles: list[float]) -> Iterator[str]:
    x = LEFT + INDENT * bracket.depth + 1
    top, bottom = middles[bracket.first], middles[bracket.last]
    if bracket.way is None:
        above, below = flow.lines[bracket.first].reach()[0], flow.lines[bracket.last].reach()[1]
        yield path(f"M{x:.1f} {top - above:.1f}V{bottom + below:.1f}", color=MUTED, width=1, dashes="2 3")
        color, word, middle = MUTED, bracket.title, (top - above + bottom + below) / 2
    else:
        color, dashes = ARCS[bracket.way.kind]
        fork, meet = LEFT + INDENT * flow.lines[bracket.first].depth - 8, x + INDENT - 5
        yield f'<circle cx="{fork:.1f}" cy="{top:.1f}" r="2.4" fill="{color}"/>'
        yield path(
            f"M{fork:.1f} {top:.1f}H{x + 12:.1f}q-12 0 -12 12V{bottom - 12:.1f}q0 12 12 12H{meet:.1f}",
            color=color,
            width=2,
            dashes=dashes,
        )
        yield arrow(meet + 4, bottom, 1, 0, color=color)
        word, middle = " ".join(w for w in (bracket.title, bracket.way.word) if w), (top + bottom) / 2
    if word:
        turned = f' transform="rotate(-90 {x - 5:.1f} {middle:.1f})"'
        yield text(x - 5, middle, word, size=LETTERS, color=color, more=turned)


# The legend


def _drawn_items(value: Any) -> Iterator[Any]:
    """Yield all drawn items: boxes, joins, shortcuts and others."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _drawn_items(item)
    elif is_dataclass(value):
        yield value
        for part in fields(value):
            yield from _drawn_items(getattr(value, part.name))


def _legend(shown: list[Any], scale: tuple[float, float] | None, y: float, width: float) -> tuple[list[str], float]:
    """Return a sample and an explanation of each symbol in use, and the bottom of the page."""
    kinds = {item.kind for item in shown if isinstance(item, Box | Sliver | Way)}
    kinds |= {item.sign for item in shown if isinstance(item, Join)}
    kinds |= {"+"} if any(isinstance(item, Coupled) for item in shown) else set()
    kinds |= {"identity"} if any(isinstance(item, Lanes) and () in item.branches for item in shown) else set()
    entries = [(kind, name) for kind, name in _NAMES.items() if kind in kinds]
    if any(isinstance(item, Chip) for item in shown):
        entries.append(("more", "n more of the same"))
    if scale is not None:
        entries.append(("tint", f"value of a block, from {scale[0]:.3g} to {scale[1]:.3g}"))
    parts: list[str] = []
    x, y = EDGE + 4, y + 14
    for kind, name in entries:
        space, sample = _sample(kind)
        wide = space + 8 + extent(name, 12)
        if x + wide > width - EDGE and x > EDGE + 4:
            x, y = EDGE + 4, y + 28
        parts += sample(x, y)
        parts.append(text(x + space + 8, y + 4, name, size=12, color=MUTED, more=' text-anchor="start"'))
        x += wide + 22
    return parts, y + 28


def _sample(kind: str) -> tuple[float, Callable[[float, float], Iterator[str]]]:
    """Return the width of a legend sample and the function that draws it."""
    if kind in ARCS:
        return 36, lambda x, y: _arc(kind, x, y)
    if kind == "more":
        return 28, _cards
    if kind == "tint":
        return 48, lambda x, y: (
            rectangle(x + 8 * i, y - 8, 8, 16, fill=tint(i / 5), edge="#dfe3e7", corner=0) for i in range(6)
        )
    if kind in ("norm", "act", "drop"):
        return 6, Sliver(kind).draw
    if kind in COLORS:
        return 28, lambda x, y: _swatch(kind, x, y)
    return 2 * RADIUS, Join(kind).draw


def _swatch(kind: str, x: float, y: float) -> Iterator[str]:
    fill, edge = COLORS[kind]
    yield rectangle(x, y - HALF / 2, 28, HALF, fill=fill, edge=edge)


def _arc(kind: str, x: float, y: float) -> Iterator[str]:
    color, dashes = ARCS[kind]
    yield path(
        f"M{x:.1f} {y + 8:.1f}V{y + 1:.1f}q0 -8 8 -8H{x + 24:.1f}q8 0 8 8V{y + 4:.1f}",
        color=color,
        width=2,
        dashes=dashes,
    )
    yield arrow(x + 32, y + 8, 0, 1, color=color)


def _cards(x: float, y: float) -> Iterator[str]:
    for back in (4, 2, 0):
        yield rectangle(x + back, y - 7 - back + 2, 24, 15, fill=GROUND, edge=FAINT, corner=3)
    yield text(x + 12, y + 6.5, "+ n", size=11)
