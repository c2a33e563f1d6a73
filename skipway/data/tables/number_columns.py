"""Columns of numbers: their style, with the evidence of the other columns of the table, and reading them in a style.

Shapes: N rows.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skipway.data.sources.table import Table
from skipway.data.sources.text_column import Cells, TextColumn
from skipway.data.tables.number_cells import LARGEST, CellRole, explain_cell, read_texts
from skipway.data.tables.number_inference import MAX_ODD, NumberTexts, infer_style, inspect_texts
from skipway.data.tables.number_style import NumberStyle
from skipway.data.tables.odd_cells import OddCells, Oddity
from skipway.errors import printable

__all__ = ["NumberCells", "Problem", "describe_problems", "infer_column_style", "inspect_column", "read_number_cells"]

_SAMPLED = 500  # distinct texts of another column that show its decimal mark


@dataclass(frozen=True)
class Problem:
    """A cell that cannot be used: its row, its column, the reason, and True if it is text among numbers."""

    row: int
    column: str
    why: str
    is_text: bool = False

    def describe(self) -> str:
        """Return the column and the reason."""
        return f"column {printable(self.column)!r}: {self.why}"


def describe_problems(problems: Iterable[Problem], row_name: Callable[[int], str]) -> str:
    """Return an error message about the first invalid cell.

    Args:
        problems: at least 1 invalid cell.
        row_name: function that returns the name of a row.
    """
    first, *rest = sorted(problems, key=lambda p: (p.row, p.column))
    others = f" (and {len(rest):,} more such cells)" if rest else ""
    return (
        f"cannot use {row_name(first.row)}, column {printable(first.column)!r}: {first.why}{others}. Correct the cell, "
        "or leave it empty if the value is missing."
    )


@dataclass(frozen=True)
class NumberCells:
    """Cells of a column as numbers.

    Attributes:
        values: (N,) float64, NaN for missing and invalid cells.
        problems: the invalid cells.
        odd: the cells that are read as missing, or as a bound such as <5.
    """

    values: np.ndarray
    problems: list[Problem]
    odd: list[OddCells] = field(default_factory=list)

    @property
    def remarks(self) -> list[str]:
        """Lines that count the odd cells."""
        return [cells.line for cells in self.odd]

    @property
    def exact(self) -> np.ndarray:
        """The values, with NaN also for bounds."""
        values = self.values.copy()
        for cells in self.odd:
            values[cells.rows] = np.nan
        return values


def infer_column_style(raw: Cells, table: Table | None = None) -> NumberStyle:
    """Infer how the numbers of a column are written.

    Args:
        raw: (N,) cells of the whole column.
        table: its table, whose other columns are evidence for numbers with two meanings.
    """
    numbers = raw.numbers if isinstance(raw, TextColumn) else raw
    if numbers is not None and numbers.dtype != object:
        return NumberStyle(decimal="." if _has_fractions(numbers) else "")
    codes, texts = _as_column(raw).factorize_present()
    return infer_style(texts, _counts(codes, texts), **_evidence(table))[0]


def inspect_column(codes: np.ndarray, texts: list[str], table: Table | None = None) -> NumberTexts:
    """Infer the style of a column, and read its texts.

    Args:
        codes: (N,) index of the text of each cell, -1 for a missing value.
        texts: the distinct texts.
        table: table of the column.
    """
    return inspect_texts(texts, _counts(codes, texts), **_evidence(table))


def _counts(codes: np.ndarray, texts: list[str]) -> np.ndarray:
    return np.bincount(codes[codes >= 0], minlength=len(texts))


def _evidence(table: Table | None) -> dict[str, Any]:
    """Return the arguments of `infer_style` about the table of a column."""
    if table is None:
        return {}
    return {"has_commas": not table.thousands, "file_decimal": lambda: _decimal_of_table(table)}


def read_number_cells(raw: Cells, name: str, style: NumberStyle | None) -> NumberCells:
    """Parse a column of numbers.

    Args:
        raw: (N,) cells.
        name: name of the column, for the problems.
        style: how the numbers are written; None to infer it from these cells.
    """
    if isinstance(raw, np.ndarray) and raw.dtype != object:
        return _check_numbers(raw, name, style)
    column = _as_column(raw)
    if column.numbers is not None and (style is None or _holds_plain_numbers(column, style)):
        return NumberCells(column.numbers, [])
    codes, texts = column.factorize_present()
    style = style or infer_style(texts, _counts(codes, texts), has_commas=True)[0]
    values, roles = column.parse_once(style, lambda: read_texts(texts, style))
    cell_roles = np.append(roles, CellRole.MISSING)[codes]
    problems = [
        Problem(int(i), name, explain_cell(texts[codes[i]], style), is_text=cell_roles[i] == CellRole.TEXT)
        for i in np.flatnonzero(cell_roles >= CellRole.MISWRITTEN)
    ]
    odd = []
    for role, oddity in ((CellRole.MISSING, Oddity.MARKER), (CellRole.BOUND, Oddity.BOUND)):
        if len(rows := np.flatnonzero((cell_roles == role) & (codes >= 0))):
            odd.append(OddCells(name, oddity, rows, [texts[code] for code in codes[rows]]))
    return NumberCells(np.append(values, np.nan)[codes], problems, odd)


def _check_numbers(raw: np.ndarray, name: str, style: NumberStyle | None) -> NumberCells:
    """Return (N,) float64 numbers, with a problem for each that is too large, or is no percentage of a style."""
    is_bare = style is not None and style.is_percent
    bad = np.flatnonzero(~np.isnan(raw) if is_bare else np.abs(raw) > LARGEST)
    values = raw.copy()
    values[bad] = np.nan
    style = style or NumberStyle()
    return NumberCells(values, [Problem(int(i), name, explain_cell(str(raw[i]), style)) for i in bad])


def _holds_plain_numbers(column: TextColumn, style: NumberStyle) -> bool:
    """Return True if the numbers that a file was read to have the same meaning in a style."""
    if column.numbers is None or style.is_percent:
        return False
    return style.decimal == "." or not _has_fractions(column.numbers)


def _as_column(raw: Cells) -> TextColumn:
    return raw if isinstance(raw, TextColumn) else TextColumn.of(raw)


def _has_fractions(numbers: np.ndarray) -> bool:
    """Return True if one of (N,) numbers has decimals."""
    for some in (numbers[:1000], numbers):
        present = some[np.isfinite(some)]
        if (present != np.floor(present)).any():
            return True
    return False


def _decimal_of_table(table: Table) -> str:
    """Return the decimal mark of the columns in which it has no other meaning; "" if there is none, or both occur."""
    if table.decimal_mark is None:
        table.decimal_mark = _infer_decimal(table)
    return table.decimal_mark


def _infer_decimal(table: Table) -> str:
    marks = set()
    for column in table.columns.values():
        if not isinstance(column, TextColumn) or column.separator:
            continue
        if column.numbers is not None:
            marks.add("." if _has_fractions(column.numbers) else "")
            continue
        texts = column.factorize_present()[1][:_SAMPLED]
        ones = np.ones(len(texts), np.int64)
        style, assumption = infer_style(texts, ones)
        _, roles = read_texts(texts, style)
        if texts and not assumption and np.mean(roles == CellRole.TEXT) <= MAX_ODD:
            marks.add(style.decimal)
    marks.discard("")
    return marks.pop() if len(marks) == 1 else ""
