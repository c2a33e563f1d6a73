"""Split by a column of times or numbers: the last samples are the validation set, as in production.

Shapes: N samples.
"""

import numpy as np

from skipway.data.sources.table import Table
from skipway.data.sources.text_column import Cells
from skipway.data.stratified_split import MAX_HELD_OUT
from skipway.data.tables.columns import as_texts, read_numbers
from skipway.data.tables.date_formats import infer_date_format
from skipway.data.tables.number_columns import infer_column_style, read_number_cells
from skipway.errors import InputError, printable

__all__ = ["last_part", "read_order"]


def read_order(table: Table, column: str) -> np.ndarray:
    """Read a column of numbers or dates, by which samples are ordered.

    Args:
        table: table with the column.
        column: its name.

    Returns:
        (N,) float64 numbers; days since 1970 for dates.

    Raises:
        InputError: there is no such column, or it has a cell that is neither a number nor a date.
    """
    raw = table.column(column)
    numbers = read_number_cells(raw, column, infer_column_style(raw, table))
    values, problems = numbers.exact, numbers.problems
    if problems:
        values, problems = read_numbers(raw, "date", column, infer_date_format(as_texts(raw))[0] or "ymd")
    rows = sorted({*(problem.row for problem in problems), *np.flatnonzero(np.isnan(values)).tolist()})
    if rows:
        cell = as_texts(raw)[int(rows[0])]
        text = repr(printable(cell)[:40]) if cell else "an empty cell"
        raise InputError(
            f"cannot use --split-by {printable(column)}: expected a number in every row, or a date such as 2024-03-01 "
            f"in every row, got {text} in {table.row_name(rows[0])} ({len(rows):,} such rows). Correct them, or use "
            "another column."
        )
    return values


def last_part(values: np.ndarray, raw: Cells, *, fraction: float, name: str, column: str) -> tuple[np.ndarray, str]:
    """Select the last samples for validation. Equal values are on one side.

    Args:
        values: (N,) numbers to order by.
        raw: (N,) cells of the column, for the boundary.
        fraction: wanted share of the last samples, at most 5,000.
        name: name of the dataset, for errors.
        column: name of the column.

    Returns:
        (N,) booleans, True for validation, and the boundary in words.

    Raises:
        InputError: all values are equal.
    """
    starts = np.flatnonzero(np.diff(np.sort(values)) > 0) + 1  # positions at which a new value starts
    if not len(starts):
        raise InputError(
            f"cannot split {printable(name)} by {printable(column)!r}: expected at least 2 different values, got "
            f"{len(np.unique(values))}. Use another column."
        )
    wanted = len(values) - min(max(round(len(values) * fraction), 1), MAX_HELD_OUT)
    boundary = np.sort(values)[starts[np.abs(starts - wanted).argmin()]]
    cell = as_texts(raw)[int(np.flatnonzero(values == boundary)[0])]
    return values >= boundary, f"from {printable(column)} {printable(cell)} on"
