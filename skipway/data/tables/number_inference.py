"""Inference of the style of a column of numbers from all its cells.

A mark before three digits, as in 8,000, has two meanings. The other cells of the column decide, or else the other
columns of the file; an assumption without evidence is a remark.

Shapes: T distinct texts, with the number of cells of each as counts (T,).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from skipway.data.tables.number_cells import (
    Cell,
    CellRole,
    choose_meaning,
    has_group_form,
    is_currency,
    meanings_of,
    read_texts,
    simple_mark,
    split_cell,
    unit_key,
)
from skipway.data.tables.number_style import NumberStyle
from skipway.errors import printable
from skipway.utils.format_text import count_of

__all__ = ["MAX_ODD", "NumberTexts", "infer_style", "inspect_texts"]

MAX_ODD = 0.05  # share of texts among the numbers of a column up to which they are missing values: 1 in 20
_MAX_REPEATED = 5  # distinct texts that can be categories among numbers
_MAX_GRADES = 20  # distinct numbers next to which repeated texts are categories


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
    known = None if simple_mark(texts) is not None else list(map(split_cell, texts))
    style, assumption = infer_style(texts, counts, known=known, has_commas=has_commas, file_decimal=file_decimal)
    values, roles = read_texts(texts, style, known)
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
    texts: Sequence[str],
    counts: np.ndarray,
    *,
    known: Sequence[Cell | None] | None = None,
    has_commas: bool = False,
    file_decimal: Callable[[], str] = str,
) -> tuple[NumberStyle, str]:
    """Infer the style of a column from all its texts; see `inspect_texts`.

    Args:
        texts, counts, has_commas, file_decimal: as there.
        known: the parts of the texts, if they are known.

    Returns:
        The style, and the assumption that it rests on if numbers have two meanings, or "".
    """
    mark = simple_mark(texts) if known is None else None
    if mark is not None and (not mark or _has_single_meaning(texts, mark)):
        return NumberStyle(decimal=mark), ""
    parts = zip(texts, known or map(split_cell, texts), counts.tolist(), strict=True)
    cells = [(text, cell, count) for text, cell, count in parts if cell is not None]
    prefix, suffix = _common_unit(cells)
    unit = unit_key(prefix + suffix)
    cells = [row for row in cells if not row[1].unit or unit_key(row[1].unit) == unit]
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


def _has_single_meaning(texts: Sequence[str], mark: str) -> bool:
    """Return True if a mark of simple texts can only be decimal."""
    return any(mark in text and not has_group_form(text) for text in texts)


def _describe_assumption(text: str, style: NumberStyle) -> str:
    """Describe how a number with two meanings is read in a style."""
    cell = split_cell(text)
    assert cell is not None
    readings = meanings_of(cell.core)
    chosen = choose_meaning(readings, style)
    ways = [NumberStyle(".").write(reading.value * cell.sign) for reading in readings]
    first, second = ways if chosen == readings[0] else reversed(ways)
    return f"{printable(text)[:40]!r} is read as {first}, not as {second}"


def _common_unit(cells: list[tuple[str, Cell, int]]) -> tuple[str, str]:
    """Return the prefix and suffix of the unit that at least half of the numbers have, or of their only currency."""
    units = Counter[str]()
    for _, cell, count in cells:
        units[unit_key(cell.unit)] += count
    bare = units.pop("", 0)
    unit = max(units, key=lambda key: units[key], default="")
    is_common = 2 * units[unit] >= bare + units.total()
    if not unit or not (is_common or (len(units) == 1 and is_currency(unit))):
        return "", ""
    return next((cell.prefix, cell.suffix) for _, cell, _ in cells if unit_key(cell.unit) == unit)


def _resolve_marks(
    cells: list[tuple[str, Cell, int]], *, has_commas: bool, file_decimal: Callable[[], str]
) -> tuple[str, str, str]:
    """Return the decimal mark, the separator of thousands, and a number for whose meaning there is no evidence."""
    decimals, thousands, open_marks = Counter[str](), Counter[str](), dict[str, str]()
    for text, cell, count in cells:
        readings = meanings_of(cell.core, cell.exponent)
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
