"""Cells of number columns: their parts, their meanings, and reading them in the style of a column.

Shapes: T distinct texts.
"""

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from skipway.data.sources.text_column import MISSING
from skipway.data.tables.number_style import NumberStyle
from skipway.errors import printable

__all__ = [
    "LARGEST",
    "Cell",
    "CellRole",
    "Meaning",
    "choose_meaning",
    "explain_cell",
    "has_group_form",
    "is_currency",
    "meanings_of",
    "read_texts",
    "simple_mark",
    "split_cell",
    "unit_key",
]

LARGEST = 1e300  # differences of larger numbers overflow
_MAX_LENGTH = 1000  # characters of a number
_MARKERS = MISSING | frozenset(
    ["none", "nil", "unknown", "unk", "missing", "not available", "(null)", "(blank)", "\\n", "#null!", "#name?"]
    + ["n.a.", "n.a", "n/d", "#div/0!", "#value!", "#ref!", "#num!", "-", "--", "---", "–", "—", ".", "..", "..."]
)
_LONGEST_MARKER = max(map(len, _MARKERS))
_PLAIN = frozenset("0123456789+-eE")
_SAME = str.maketrans({"\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2212": "-", "\u2019": "'"})
_CODES = "USD|EUR|GBP|JPY|CHF|CAD|AUD|NZD|CNY|RMB|INR|BRL|MXN|SEK|NOK|DKK|PLN|CZK|HUF|TRY|KRW|ZAR|SGD|HKD|ILS|THB"
_LETTERS = frozenset([*_CODES.split("|"), "Rs", "Fr", "kr"])
_CURRENCY = rf"(?:[A-Z]{{1,3}}?[$]|[$£¤¥฿\u20a0-\u20c0]|(?:{_CODES})(?![^\W\d_])|(?:Rs|Fr|kr)(?:\.|(?![^\W\d_])))"
_WORD = r"[^\W\d_]{1,12}\.?"
_CODE = re.compile(_CURRENCY)
_UNIT = rf"(?:[°µμ]?{_WORD}(?: {_WORD})?[23²³]?(?:/{_WORD}[23²³]?)?)"
_CELL = re.compile(
    rf"(?P<bound>[<>]=?|[≤≥])? ?(?P<sign>[+-])? ?(?P<prefix>{_CURRENCY})? ?(?P<inner>[+-])?"
    r"(?P<core>[.,]?[0-9][0-9.,]*+(?:[ '][0-9.,]++)*+)(?P<exponent>[eE][+-]?[0-9]++)?+"
    rf"(?: ?(?P<suffix>(?:{_CURRENCY}|[%‰])(?:/{_WORD})?|{_UNIT}))?"
)
_NUMERAL = re.compile(r"([+-])?([0-9.,]*[0-9][.,]?)([eE][+-]?[0-9]+)?")
_FIRST = frozenset(["\u2212", *map(chr, range(0x20A0, 0x20C1)), *"0123456789+-.,<>≤≥($£¤¥฿"])
_NO_NUMBER = re.compile(r"[0-9][-:/_][0-9]")  # dates, times and ranges
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


class Cell(NamedTuple):
    """Parts of a cell: digits and marks, an exponent, a unit, the sign, and signs of a bound and of accounting."""

    core: str
    exponent: str
    prefix: str
    suffix: str
    sign: int
    is_bound: bool
    in_parentheses: bool

    @property
    def unit(self) -> str:
        """Text before and after the number."""
        return self.prefix + self.suffix


class Meaning(NamedTuple):
    """One meaning of digits and marks; a mark that they do not have is ""."""

    value: float
    decimal: str
    thousands: str


def read_texts(
    texts: Sequence[str], style: NumberStyle, known: Sequence[Cell | None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read distinct texts in a style.

    Args:
        texts: the texts.
        style: the style.
        known: the parts of the texts, if they are known.

    Returns:
        (T,) float64 values, NaN for all but numbers and bounds, and (T,) roles.
    """
    mark = simple_mark(texts) if known is None and not style.is_percent else None
    if mark is not None and mark in ("", style.decimal):
        values = _converted(texts, mark)
        if not len(values) or np.abs(values).max() <= LARGEST:
            return values, np.zeros(len(values), np.int8)
    rows = [_read(text, cell, style) for text, cell in zip(texts, known or map(split_cell, texts), strict=True)]
    return np.array([value for value, _ in rows], np.float64), np.array([role for _, role in rows], np.int8)


def explain_cell(text: str, style: NumberStyle) -> str:
    """Explain why a cell cannot be read, and how it must be written."""
    shown, cell = repr(printable(text)[:60]), split_cell(text)
    readings = meanings_of(cell.core, cell.exponent) if cell else []
    if _INFINITE.fullmatch(text) or any(reading.value > LARGEST for reading in readings):
        return f"expected a finite number up to {LARGEST:g}, got {shown}"
    if cell is None or not readings:
        return f"expected a number, got {shown}"
    if style.is_percent and not cell.unit:
        return f"expected a percentage, got {shown} (write it with {style.suffix})"
    if cell.unit and unit_key(cell.unit) != unit_key(style.unit):
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


def has_group_form(text: str) -> bool:
    """Return True if a mark of a number may separate thousands."""
    return _GROUPS.fullmatch(text.lstrip("+-")) is not None


def is_currency(unit: str) -> bool:
    """Return True if a unit, or its key, is a currency alone."""
    return _CODE.fullmatch(unit.upper()) is not None


def simple_mark(texts: Sequence[str]) -> str | None:
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


def split_cell(text: str) -> Cell | None:
    """Split a text into the parts of a number, or return None."""
    has_code = text[:3] in _LETTERS or text[:2] in _LETTERS or "$" in text[:4]
    if (text[:1] not in _FIRST and not has_code) or len(text) > _MAX_LENGTH:
        return None
    if numeral := _NUMERAL.fullmatch(text):
        return Cell(numeral[2], numeral[3] or "", "", "", -1 if numeral[1] == "-" else 1, False, False)
    if _NO_NUMBER.search(text):
        return None
    text = " ".join(text.translate(_SAME).split()) if not text.isascii() or " " in text else text
    inside = _PARENTHESES.fullmatch(text) if "(" in text else None
    match = _CELL.fullmatch("".join(inside.groups()).strip() if inside else text)
    if match is None or (match["sign"] and match["inner"]) or (inside and (match["sign"] or match["inner"])):
        return None
    return Cell(
        core=match["core"],
        exponent=match["exponent"] or "",
        prefix=(match["prefix"] or "").strip(),
        suffix=match["suffix"] or "",
        sign=-1 if inside or "-" in (match["sign"], match["inner"]) else 1,
        is_bound=match["bound"] is not None,
        in_parentheses=inside is not None,
    )


def meanings_of(core: str, exponent: str = "") -> list[Meaning]:
    """Return the meanings of digits and marks, the one with decimals last; empty if there is none."""
    if core.isdigit():
        return [Meaning(float(core + exponent), "", "")]
    if not exponent and (groups := _GROUPS.fullmatch(core)):
        thousands, decimal = groups[1], groups[2] or ""
        if decimal != thousands:
            whole = _number(core, decimal, thousands)
            if decimal or thousands not in ".," or core.count(thousands) > 1:
                return [Meaning(whole, decimal, thousands)]
            return [Meaning(whole, "", thousands), Meaning(_number(core, thousands, ""), thousands, "")]
        return []
    if not exponent and (groups := _INDIAN.fullmatch(core)):
        return [Meaning(_number(core, groups[1] or "", ","), groups[1] or "", ",")]
    if decimals := _DECIMAL.fullmatch(core):
        return [Meaning(float(core.replace(",", ".") + exponent), decimals[1], "")]
    return []


def _number(core: str, decimal: str, thousands: str) -> float:
    text = core.replace(thousands, "") if thousands else core
    return float(text.replace(decimal, ".") if decimal else text)


def unit_key(unit: str) -> str:
    """Return a text that is equal for equal units; one letter has a meaning of its own in upper case."""
    return unit.casefold().rstrip(".") if len(unit) > 1 else unit


def _read(text: str, cell: Cell | None, style: NumberStyle) -> tuple[float, CellRole]:
    """Return the value of a text in a style, NaN if it has none, and its role."""
    if len(text) <= _LONGEST_MARKER and text.casefold() in _MARKERS:
        return np.nan, CellRole.MISSING
    if cell is None:
        return np.nan, CellRole.MISWRITTEN if _INFINITE.fullmatch(text) else CellRole.TEXT
    readings = meanings_of(cell.core, cell.exponent)
    other_unit = cell.unit and cell.unit != style.unit and unit_key(cell.unit) != unit_key(style.unit)
    if not readings or other_unit or (style.is_percent and not cell.unit):
        return np.nan, CellRole.TEXT
    reading = choose_meaning(readings, style)
    if reading is None or reading.value > LARGEST or (cell.in_parentheses and not style.parentheses):
        return np.nan, CellRole.MISWRITTEN
    return cell.sign * reading.value, CellRole.BOUND if cell.is_bound else CellRole.NUMBER


def choose_meaning(readings: list[Meaning], style: NumberStyle) -> Meaning | None:
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
