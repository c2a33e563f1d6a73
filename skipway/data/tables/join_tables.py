"""Join tables of one dataset, such as those of its splits, to one table."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from skipway.data.sources.table import RowNames, Table
from skipway.data.sources.text_column import Cells, join_columns
from skipway.data.tables.columns import as_texts

__all__ = ["join_tables", "select_rows"]


def join_tables(tables: Sequence[Table]) -> Table:
    """Return the rows of all tables, with the columns of the first one.

    A column of numbers in one table and text in another becomes text.

    Raises:
        InputError: a table lacks a column.
    """
    first = tables[0]
    return replace(
        first,
        columns={name: _joined([table.column(name) for table in tables]) for name in first.columns},
        row_name=RowNames(tables).__getitem__,
        notes=list(chain.from_iterable(table.notes for table in tables)),
        thousands=all(table.thousands for table in tables),
    )


def select_rows(table: Table, rows: np.ndarray) -> Table:
    """Return the rows of a table at the indices `rows`, with their names."""
    columns = {name: column[rows] for name, column in table.columns.items()}
    return replace(table, columns=columns, row_name=lambda i: table.row_name(int(rows[i])))


def _joined(columns: list[Cells]) -> Cells:
    numbers = [column for column in columns if isinstance(column, np.ndarray)]
    if len(numbers) == len(columns):
        return np.concatenate(numbers)
    return join_columns([as_texts(column) for column in columns])
