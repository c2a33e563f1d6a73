"""Cells of number columns: inference of the style of a column from all its cells, and reading cells in a style.

Shapes: T distinct texts, with the number of cells of each as counts (T,).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from skipway.data.sources.text_column import MISSING
from skipway.data.tables.number_style import NumberStyle
from skipway.errors import printable
from skipway.utils.format_text import count_of

__all__ = [
    "LARGEST",
    "MAX_ODD",
    "CellRole",
    "NumberTexts",
    "explain_cell",
    "infer_style",
    "inspect_texts",
    "read_texts",
]

LARGEST = 1e300  # differences of larger numbers overflow
MAX_ODD = 0.05  # share of texts among the numbers of a column up to which they are missing values: 1 in 20
_MAX_LENGTH = 1000  # characters of a number
_MAX_REPEATED = 5  # distinct texts that can be categories among numbers
_MAX_GRADES = 20  # distinct numbers next to which repeated texts are categories
_MARKERS = MISSING | frozenset(
    ["none", "nil", "unknown", "unk", "missing", "not available", "(null)", "(blank)", "\\n", "#null!", "#name?"]
    + ["n.a.", "n.a", "n/d", "#div/0!", "#value!", "#ref!", "#num!", "-", "--", "---", "–", "—", ".", "..", "..."]
)
_LONGEST_MARKER = max(map(len, _MARKERS))
_PLAIN = frozenset("0123456789+-eE")
_SAME = str.maketrans({"\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2212": "-", "\u2019": "'"})
_CODES = "USD|EUR|GBP|JPY|CHF|CAD|AUD|NZD|CNY|RMB|INR|BRL|MXN|SEK|NOK|DKK|PLN|CZK|HUF|TRY|KRW|ZAR|SGD|HKD|ILS|THB"
_CURRENCY = rf"(?:[A-Z]{{1,3}}?[$]|[$£¤¥฿\u20a0-\u20c0]|(?:{_CODES})(?![^\W\d_])|(?:Rs|Fr|kr)(?:\.|(?![^\W\d_])))"
_WORD = r"[^\W\d_]{1,12}\.?"
_UNIT = rf"(?:[°µμ]?{_WORD}(?: {_WORD})?[23²³]?(?:/{_WORD}[23²³]?)?)"
_CELL = re.compile(
    rf"(?P<bound>[<>]=?|[≤≥])? ?(?P<sign>[+-])? ?(?P<prefix>{_CURRENCY})? ?(?P<inner>[+-])?"
    r"(?P<core>[0-9](?:[0-9.,' ]*[0-9.,])?|[.,][0-9]+)(?P<exponent>[eE][+-]?[0-9]+)?"
    rf"(?: ?(?P<suffix>(?:{_CURRENCY}|[%‰])(?:/{_WORD})?|{_UNIT}))?"
)
_FIRST = re.compile(rf"[0-9+\-\u2212.,<>≤≥(]|{_CURRENCY}")
_PARENTHESES = re.compile(r"([^0-9()]*)\(([^()]*)\)([^0-9()]*)")
_GROUPS = re.compile(r"[1-9][0-9]{0,2}([.,' ])[0-9]{3}(?:\1[0-9]{3})*(?:([.,])[0-9]*)?")
_INDIAN = re.compile(r"[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}(?:(\.)[0-9]*)?")
_DECIMAL = re.compile(r"[0-9]*([.,])[0-9]*")
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.I)


class CellRole(IntEnum):
    """Role of a cell in a column of numbers."""

    NUMBER = 0
    BOUND = 1  # of a censored number, such as <5
    MISSING = 2  # a text that means a missing value
    MISWRITTEN = 3  # a number in another style
    TEXT = 4  # no number


class _Cell(NamedTuple):
    core: str
    exponent: str
    prefix: str
    suffix: str
    sign: int
    is_bound: bool
    in_parentheses: bool

    @property
    def unit(self) -> str:
        return self.prefix + self.suffix


class _Reading(NamedTuple):
    """One meaning of digits and marks; a mark that they do not have is ""."""

    value: float
    decimal: str
    thousands: str


@dataclass(frozen=True)
class NumberTexts:
    """Distinct texts of a column, read as numbers.

    Attributes:
        style: style of the column.
        values: (T,) float64, NaN for all but numbers and bounds.
        roles: (T,) roles of the texts.
        counts: (T,) number of cells of each text.
        remarks: assumptions and unusual cells, for a warning.
    """

    style: NumberStyle
    values: np.ndarray
    roles: np.ndarray
    counts: np.ndarray
    remarks: list[str] = field(default_factory=list)

    def count(self, *roles: CellRole) -> int:
        """Return the number of cells with one of the roles."""
        return int(self.counts[np.isin(self.roles, roles)].sum())

    @property
    def share(self) -> float:
        """Share of numbers, in whatever style, among the cells that do not mean a missing value."""
        total = int(self.counts.sum()) - self.count(CellRole.MISSING)
        return 1 - self.count(CellRole.TEXT) / total if total else 0.0

    @property
    def has_grades(self) -> bool:
        """True if texts repeat among few repeated numbers, such as 3+ after 0, 1 and 2: all are categories."""
        texts = self.roles == CellRole.TEXT
        numbers = np.isin(self.roles, (CellRole.NUMBER, CellRole.BOUND))
        repeat = self.counts[texts].sum() >= 2 * texts.sum() and self.counts[numbers].sum() >= 2 * numbers.sum()
        return bool(1 <= texts.sum() <= _MAX_REPEATED and numbers.sum() <= _MAX_GRADES and repeat)


def inspect_texts(
    texts: list[str], counts: np.ndarray, *, has_commas: bool = False, file_decimal: Callable[[], str] = str
) -> NumberTexts:
    """Infer the style of a column, and read its texts.

    Args:
        texts: the T distinct texts.
        counts: (T,) number of cells of each text.
        has_commas: True if numbers such as 1,234 have a decimal comma unless there is other evidence.
        file_decimal: function that returns the decimal mark of the other columns, or "". It is called if all marks of
            the column have two meanings.
    """
    style, assumption = infer_style(texts, counts, has_commas=has_commas, file_decimal=file_decimal)
    values, roles = read_texts(texts, style)
    remarks = [assumption] if assumption else []
    found = NumberTexts(style, values, roles, counts, remarks)
    total = int(counts.sum())
    for role, meaning in (
        (CellRole.MISSING, "read as missing"),
        (CellRole.TEXT, f"no numbers, read as missing if at most {MAX_ODD:.0%}"),
        (CellRole.BOUND, "read as their bound"),
    ):
        if count := found.count(role):
            example = printable(texts[int(np.flatnonzero(roles == role)[0])])[:40]
            remarks.append(f"{meaning}: {count:,} of {count_of(total, 'cell')}, such as {example!r}")
    return found


def infer_style(
    texts: Sequence[str], counts: np.ndarray, *, has_commas: bool = False, file_decimal: Callable[[], str] = str
) -> tuple[NumberStyle, str]:
    """Infer the style of a column from all its texts; see `inspect_texts`.

    Returns:
        The style, and the assumption that it rests on if numbers have two meanings, or "".
    """
    marks = _simple_mark(texts)
    if marks is not None and (not marks or _has_single_meaning(texts, marks)):
        return NumberStyle(decimal=marks), ""
    cells = [(text, cell, int(n)) for text, n in zip(texts, counts, strict=True) if (cell := _split(text))]
    prefix, suffix = _common_unit(cells)
    unit = _unit_key(prefix + suffix)
    cells = [row for row in cells if not row[1].unit or _unit_key(row[1].unit) == unit]
    decimal, thousands, example = _resolve_marks(cells, has_commas=has_commas, file_decimal=file_decimal)
    parentheses = any(cell.in_parentheses for _, cell, _ in cells)
    style = NumberStyle(decimal, thousands, prefix, suffix, parentheses)
    assumptions = []
    if example:
        assumptions.append(_describe_assumption(example, style))
    bare = sum(n for _, cell, n in cells if not cell.unit)
    if unit and bare and not style.is_percent:
        assumptions.append(f"read in {printable(style.unit)!r}: {count_of(bare, 'cell')} without a unit")
    return style, "; ".join(assumptions)


def read_texts(texts: Sequence[str], style: NumberStyle) -> tuple[np.ndarray, np.ndarray]:
    """Read distinct texts in a style.

    Returns:
        (T,) float64 values, NaN for all but numbers and bounds, and (T,) roles.
    """
    mark = None if style.is_percent else _simple_mark(texts)
    if mark is not None and mark in ("", style.decimal):
        values = _converted(texts, mark)
        if not len(values) or np.abs(values).max() <= LARGEST:
            return values, np.zeros(len(values), np.int8)
    values, roles = np.full(len(texts), np.nan), np.empty(len(texts), np.int8)
    for i, text in enumerate(texts):
        values[i], roles[i] = _read(text, style)
    return values, roles


def explain_cell(text: str, style: NumberStyle) -> str:
    """Explain why a cell cannot be read, and how it must be written."""
    shown, cell = repr(printable(text)[:60]), _split(text)
    readings = _readings(cell.core, cell.exponent) if cell else []
    if _INFINITE.fullmatch(text) or any(reading.value > LARGEST for reading in readings):
        return f"expected a finite number up to {LARGEST:g}, got {shown}"
    if cell is None or not readings:
        return f"expected a number, got {shown}"
    if style.is_percent and not cell.unit:
        return f"expected a percentage, got {shown} (write it with {style.suffix})"
    if cell.unit and _unit_key(cell.unit) != _unit_key(style.unit):
        if style.unit:
            return f"expected the unit {printable(style.unit)!r} as in other rows, got {shown} (convert it)"
        return f"expected a number without a unit as in other rows, got {shown} (remove {printable(cell.unit)!r})"
    values = list(dict.fromkeys(reading.value * cell.sign for reading in readings))
    ways = " or ".join(style.write(value) for value in values)
    if len(values) > 1:
        return f"expected a number with one meaning, got {shown} (write {ways})"
    if readings[0].decimal and not readings[0].thousands and readings[0].decimal != style.decimal_mark:
        mark = "comma" if style.decimal_mark == "," else "point"
        return f"expected a decimal {mark} as in other rows, got {shown} (write {ways})"
    return f"expected a number written as in other rows, got {shown} (write {ways})"


def _simple_mark(texts: Sequence[str]) -> str | None:
    """Return the only mark, "." or "," or "", of texts that are numbers with at most one mark each; else None."""
    characters = set("".join(texts))
    marks = characters & {".", ","}
    if len(marks) > 1 or not characters - marks <= _PLAIN:
        return None
    mark = next(iter(marks), "")
    try:
        _converted(texts, mark)
    except ValueError:
        return None
    return mark


def _converted(texts: Sequence[str], mark: str) -> np.ndarray:
    """Convert texts with the decimal mark `mark` to (T,) float64; texts that are no numbers raise ValueError."""
    return np.array([text.replace(",", ".") for text in texts] if mark == "," else texts, np.float64)


def _has_single_meaning(texts: Sequence[str], mark: str) -> bool:
    """Return True if a mark of simple texts can only be decimal."""
    return any(mark in text and not _GROUPS.fullmatch(text.lstrip("+-")) for text in texts)


def _split(text: str) -> _Cell | None:
    """Split a text into the parts of a number, or return None."""
    if not _FIRST.match(text) or len(text) > _MAX_LENGTH:
        return None
    text = " ".join(text.translate(_SAME).split()) if not text.isascii() or " " in text else text
    inside = _PARENTHESES.fullmatch(text) if "(" in text else None
    match = _CELL.fullmatch("".join(inside.groups()).strip() if inside else text)
    if match is None or (match["sign"] and match["inner"]) or (inside and (match["sign"] or match["inner"])):
        return None
    return _Cell(
        core=match["core"],
        exponent=match["exponent"] or "",
        prefix=(match["prefix"] or "").strip(),
        suffix=match["suffix"] or "",
        sign=-1 if inside or "-" in (match["sign"], match["inner"]) else 1,
        is_bound=match["bound"] is not None,
        in_parentheses=inside is not None,
    )


def _readings(core: str, exponent: str = "") -> list[_Reading]:
    """Return the meanings of digits and marks, the one with decimals last; empty if there is none."""
    if core.isdigit():
        return [_Reading(float(core + exponent), "", "")]
    if not exponent and (groups := _GROUPS.fullmatch(core)):
        thousands, decimal = groups[1], groups[2] or ""
        if decimal != thousands:
            whole = _number(core, decimal, thousands)
            if decimal or thousands not in ".," or core.count(thousands) > 1:
                return [_Reading(whole, decimal, thousands)]
            return [_Reading(whole, "", thousands), _Reading(_number(core, thousands, ""), thousands, "")]
        return []
    if not exponent and (groups := _INDIAN.fullmatch(core)):
        return [_Reading(_number(core, groups[1] or "", ","), groups[1] or "", ",")]
    if decimals := _DECIMAL.fullmatch(core):
        return [_Reading(float(core.replace(",", ".") + exponent), decimals[1], "")]
    return []


def _number(core: str, decimal: str, thousands: str) -> float:
    text = core.replace(thousands, "") if thousands else core
    return float(text.replace(decimal, ".") if decimal else text)


def _describe_assumption(text: str, style: NumberStyle) -> str:
    """Describe how a number with two meanings is read in a style."""
    cell = _split(text)
    assert cell is not None
    readings = _readings(cell.core)
    chosen = _chosen(readings, style)
    ways = [NumberStyle(".").write(reading.value * cell.sign) for reading in readings]
    first, second = ways if chosen == readings[0] else reversed(ways)
    return f"{printable(text)[:40]!r} is read as {first}, not as {second}"


def _unit_key(unit: str) -> str:
    """Return a text that is equal for equal units; one letter has a meaning of its own in upper case."""
    return unit.casefold().rstrip(".") if len(unit) > 1 else unit


def _common_unit(cells: list[tuple[str, _Cell, int]]) -> tuple[str, str]:
    """Return the prefix and suffix of the unit that at least half of the numbers have."""
    units = Counter[str]()
    for _, cell, count in cells:
        units[_unit_key(cell.unit)] += count
    total, (unit, most) = sum(units.values()), max(units.items(), key=lambda row: row[1], default=("", 0))
    if not unit or 2 * most < total:
        return "", ""
    return next((cell.prefix, cell.suffix) for _, cell, _ in cells if _unit_key(cell.unit) == unit)


def _resolve_marks(
    cells: list[tuple[str, _Cell, int]], *, has_commas: bool, file_decimal: Callable[[], str]
) -> tuple[str, str, str]:
    """Return the decimal mark, the separator of thousands, and a number for whose meaning there is no evidence."""
    decimals, thousands, open_marks = Counter[str](), Counter[str](), dict[str, str]()
    for text, cell, count in cells:
        readings = _readings(cell.core, cell.exponent)
        if len(readings) == 1:
            decimals[readings[0].decimal] += count
            thousands[readings[0].thousands] += count
        elif readings:
            open_marks.setdefault(readings[0].thousands, text)
    del decimals[""], thousands[""]
    decimal = max(".,", key=lambda mark: decimals[mark]) if decimals else ""
    if thousands[decimal] > decimals[decimal]:
        decimal = ""
    del thousands[decimal]
    separator = max(thousands, key=lambda mark: thousands[mark]) if thousands else ""
    if not open_marks or separator in open_marks and len(open_marks) == 1:
        return decimal, separator, ""
    if decimal:  # a mark that is not decimal separates thousands
        other = "," if decimal == "." else "."
        return decimal, separator or (other if other in open_marks else ""), ""
    if separator:  # a mark that separates no thousands is decimal
        return next(mark for mark in open_marks if mark != separator), separator, ""
    return _assume_marks(open_marks, file_decimal(), has_commas=has_commas)


def _assume_marks(open_marks: dict[str, str], evidence: str, *, has_commas: bool) -> tuple[str, str, str]:
    """Return the same as `_resolve_marks` for a column in which every mark has two meanings.

    Args:
        open_marks: {mark: a number with it}.
        evidence: decimal mark of the other columns, or "".
        has_commas: True if a comma is decimal without evidence.
    """
    if evidence:
        other = "," if evidence == "." else "."
        return evidence if evidence in open_marks else "", other if other in open_marks else "", ""
    if "." in open_marks:
        return ".", "," if "," in open_marks else "", open_marks["."]
    if has_commas:
        return ",", "", open_marks[","]
    return "", ",", ""


def _read(text: str, style: NumberStyle) -> tuple[float, CellRole]:
    """Return the value of a text in a style, NaN if it has none, and its role."""
    if len(text) <= _LONGEST_MARKER and text.casefold() in _MARKERS:
        return np.nan, CellRole.MISSING
    cell = _split(text)
    if cell is None:
        return np.nan, CellRole.MISWRITTEN if _INFINITE.fullmatch(text) else CellRole.TEXT
    readings = _readings(cell.core, cell.exponent)
    other_unit = cell.unit and _unit_key(cell.unit) != _unit_key(style.unit)
    if not readings or other_unit or (style.is_percent and not cell.unit):
        return np.nan, CellRole.TEXT
    reading = _chosen(readings, style)
    if reading is None or reading.value > LARGEST or (cell.in_parentheses and not style.parentheses):
        return np.nan, CellRole.MISWRITTEN
    return cell.sign * reading.value, CellRole.BOUND if cell.is_bound else CellRole.NUMBER


def _chosen(readings: list[_Reading], style: NumberStyle) -> _Reading | None:
    """Return the meaning that digits and marks have in a style, or None."""
    if len(readings) == 2:
        mark = readings[0].thousands
        if mark in (style.thousands, style.decimal):
            return readings[0] if mark == style.thousands else readings[1]
        # In a column without decimals and separators, 8,000 is 8000, but 8.000 may be 8.
        is_bare = not (style.decimal or style.thousands)
        return readings[0] if is_bare and mark == "," else None
    reading = readings[0]
    has_decimal = reading.decimal in ("", style.decimal_mark)
    has_either = not style.decimal and style.thousands in (" ", "'")  # decimals that training had none of
    has_thousands = reading.thousands in ("", style.thousands) or not style.thousands
    return reading if (has_decimal or has_either) and has_thousands else None
