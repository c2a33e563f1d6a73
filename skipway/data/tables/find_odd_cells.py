"""Find the cells of a table that are not as in training, with what the encoder of each column holds.

Shapes: N rows.
"""

from collections.abc import Iterator

import numpy as np

from skipway.data.sources.text_column import Cells
from skipway.data.tables.columns import ABSENT, UNSEEN, Column, as_texts
from skipway.data.tables.number_columns import NumberCells
from skipway.data.tables.odd_cells import OddCells, Oddity

__all__ = ["cell_texts", "odd_categories", "odd_numbers"]


def odd_numbers(column: Column, raw: Cells, cells: NumberCells) -> Iterator[OddCells]:
    """Yield the odd cells of a column of numbers, booleans or dates.

    Args:
        column: its encoder.
        raw: (N,) cells.
        cells: the same cells as numbers.
    """
    yield from cells.odd
    if column.seen is None:
        return
    far = np.flatnonzero(column.seen.is_far(cells.values))
    if len(far):
        yield OddCells(column.name, Oddity.FAR, far, cell_texts(raw, far), detail=_describe_span(column))
    if not column.seen.has_missing:
        is_missing = np.isnan(cells.values)
        is_missing[[problem.row for problem in cells.problems]] = False
        for odd in cells.odd:
            is_missing[odd.rows] = False
        yield from _missing(column, is_missing)


def odd_categories(column: Column, raw: Cells, slots: np.ndarray) -> Iterator[OddCells]:
    """Yield the odd cells of a column of categories.

    Args:
        column: its encoder.
        raw: (N,) cells.
        slots: (N,) indices of their categories.
    """
    unseen = np.flatnonzero(slots == UNSEEN)
    if len(unseen):
        yield OddCells(column.name, Oddity.UNSEEN, unseen, cell_texts(raw, unseen))
    if column.seen is not None and not column.seen.has_missing:
        yield from _missing(column, slots == ABSENT)


def _missing(column: Column, is_missing: np.ndarray) -> Iterator[OddCells]:
    """Yield the missing cells of a column that has none in training, by (N,) booleans."""
    rows = np.flatnonzero(is_missing)
    if len(rows):
        yield OddCells(column.name, Oddity.MISSING, rows, [""] * len(rows))


def cell_texts(raw: Cells, rows: np.ndarray) -> list[str]:
    """Return the texts of R cells of a column; a missing cell is ""."""
    codes, texts = as_texts(raw[rows]).factorize()
    return [texts[code] if code >= 0 else "" for code in codes]


def _describe_span(column: Column) -> str:
    if column.dates is not None:
        return column.dates.describe_range()
    assert column.seen is not None and column.seen.span is not None
    low, high = column.seen.span
    return f"{low:.7g} to {high:.7g}"
