"""Table: named columns of text or numbers in memory.

A column is either float64 with NaN for missing values, or text with None for missing values (`TextColumn`), as are all
columns of CSV files. Booleans and dates of typed sources are converted to text, so that they are parsed in the same way
for all sources.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skipway.data.sources.text_column import Cells, TextColumn
from skipway.errors import InputError, did_you_mean, printable
from skipway.utils.format_text import join_names

__all__ = ["RowNames", "Table", "join_quoted"]


@dataclass
class Table:
    """Named columns of N rows.

    Attributes:
        name: name of the table, for messages.
        columns: {name: (N,) float64 or text}; arrays of objects are converted to text.
        row_name: function that returns the name of row i for messages, such as "train.csv:12".
        notes: remarks about the file, such as its encoding.
        thousands: True if "1,234" means 1234 in a column without other evidence; False if it is 1.234, as in files
            with semicolons as separators.
        row_names: column that only names the rows, or "".
        has_header: False if the columns are named column_1, column_2 and so on by their position.
    """

    name: str
    columns: dict[str, Cells]
    row_name: Callable[[int], str]
    notes: list[str] = field(default_factory=list)
    thousands: bool = True
    row_names: str = ""
    has_header: bool = True
    decimal_mark: str | None = field(default=None, init=False, repr=False)  # set once it is inferred from all columns

    def __post_init__(self) -> None:
        for name, cells in self.columns.items():
            if isinstance(cells, np.ndarray) and cells.dtype == object:
                self.columns[name] = TextColumn.of(cells)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def name_of(self, name: str) -> str:
        """Return the name of a column, which may be its number if the table has no header."""
        is_number = name.isdecimal() and not self.has_header and name not in self.columns
        return f"column_{int(name)}" if is_number else name

    def column(self, name: str) -> Cells:
        """Return the (N,) values of a column.

        Raises:
            InputError: there is no column of this name.
        """
        if name not in self.columns:
            raise InputError(
                f"cannot find the column {printable(name)!r} in {printable(self.name)}: expected one of "
                f"{join_quoted(list(self.columns))}{did_you_mean(name, self.columns)}. Correct the name."
            )
        return self.columns[name]


class RowNames(Sequence[str]):
    """Names of the rows of several tables, one after the other; a name is made when it is read.

    Args:
        tables: the tables.
    """

    def __init__(self, tables: Sequence[Table]):
        self._names = [table.row_name for table in tables]
        self._ends = np.cumsum([len(table) for table in tables]).tolist()

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends else 0

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        index = range(len(self))[row]
        part = bisect_right(self._ends, index)
        return self._names[part](index - (self._ends[part - 1] if part else 0))


def join_quoted(names: list[str], limit: int = 8) -> str:
    """Join the first `limit` names, quoted, for an error or a note."""
    return join_names((repr(printable(name)) for name in names), limit=limit)
