"""OddCells: cells of a column that are not as in training, for counts of each column and remarks on each row.

Shapes: N rows of a table, R odd cells of a column.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from skipway.errors import printable

__all__ = ["OddCells", "Oddity", "join_remarks"]

_LONGEST = 40  # characters of a cell that is quoted
_MOST = 5  # remarks on a row; the others are counted


class Oddity(Enum):
    """Kinds of odd cells."""

    MARKER = "marker"  # a text that means a missing value
    BOUND = "bound"  # of a censored number, such as <5
    TEXT = "text"  # text among numbers, read as missing
    FAR = "far"  # far outside of the training range
    UNSEEN = "unseen"  # a category rarely or never seen in training
    MISSING = "missing"  # in a column without missing values in training


_REMARKS = {
    Oddity.MARKER: "{cell} read as missing",
    Oddity.BOUND: "{cell} read as its bound",
    Oddity.TEXT: "{cell} read as missing",
    Oddity.FAR: "{cell} is far outside of the training range {detail}",
    Oddity.UNSEEN: "{cell} rarely or never seen in training",
    Oddity.MISSING: "missing, but never in training",
}
_LINES = {  # each counts the cells of a column
    Oddity.MARKER: "cells of {name} read as missing, such as {cell}: {count}",
    Oddity.BOUND: "cells of {name} read as their bound, such as {cell}: {count}",
    Oddity.TEXT: "texts in {name} read as missing: {count}",
    Oddity.FAR: "values of {name} far outside of the training range {detail}, such as {cell}: {count}",
    Oddity.UNSEEN: "values of {name} rarely or never seen in training: {count}",
    Oddity.MISSING: "missing values of {name}, which has none in training: {count}",
}


@dataclass(frozen=True)
class OddCells:
    """Cells of one column that are odd in the same way.

    Attributes:
        column: name of the column.
        oddity: what is odd.
        rows: (R,) rows of the cells, ascending, at least one.
        texts: R texts of the cells.
        detail: the training range, for numbers and dates outside of it.
    """

    column: str
    oddity: Oddity
    rows: np.ndarray
    texts: Sequence[str]
    detail: str = ""

    @property
    def line(self) -> str:
        """The line that counts the cells."""
        name, count = repr(printable(self.column)), f"{len(self.rows):,}"
        return _LINES[self.oddity].format(name=name, cell=_quoted(self.texts[0]), count=count, detail=self.detail)

    def remarks(self) -> Iterator[tuple[int, str]]:
        """Yield the row of each cell with its remark."""
        start = f"column {printable(self.column)!r}: "
        for row, text in zip(self.rows.tolist(), self.texts, strict=True):
            yield row, start + _REMARKS[self.oddity].format(cell=_quoted(text), detail=self.detail)


def join_remarks(remarks: Iterable[tuple[int, str]]) -> dict[int, str]:
    """Return the remarks on each row, joined by semicolons.

    >>> cells = OddCells("city", Oddity.UNSEEN, np.array([1]), ["Bonn"])
    >>> join_remarks(cells.remarks())
    {1: "column 'city': 'Bonn' rarely or never seen in training"}
    """
    by_row: dict[int, list[str]] = defaultdict(list)
    for row, remark in remarks:
        by_row[row].append(remark)
    return {row: _joined(texts) for row, texts in by_row.items()}


def _joined(remarks: list[str]) -> str:
    others = len(remarks) - _MOST
    return "; ".join([*remarks[:_MOST], *([f"and {others:,} more"] if others > 0 else [])])


def _quoted(cell: str) -> str:
    return repr(printable(cell)[:_LONGEST])
