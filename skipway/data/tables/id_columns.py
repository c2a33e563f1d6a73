"""Id columns: the texts that name the rows of a table, as the source has them.

Shapes: N rows.
"""

from collections.abc import Sequence

import numpy as np

from skipway.data.sources.table import Table, join_quoted
from skipway.data.tables.columns import as_texts

__all__ = ["IdColumns", "read_ids"]


class IdColumns:
    """Id columns of a table, of which some may be missing.

    Args:
        table: the table.
        names: names of the id columns of the model.

    Attributes:
        warnings: a line if columns are missing.
    """

    def __init__(self, table: Table, names: Sequence[str]):
        self._texts = {name: read_ids(table, name) for name in names if name in table.columns}
        lacking = [name for name in names if name not in self._texts]
        self.warnings = [f"warning: no column {join_quoted(lacking)}: predictions lack these ids"] if lacking else []

    def of_row(self, row: int) -> tuple[tuple[str, str], ...]:
        """Return the names and texts of the ids of a row."""
        return tuple((name, texts[row]) for name, texts in self._texts.items())


def read_ids(table: Table, name: str) -> list[str]:
    """Return the N texts of an id column; a missing value is "".

    Raises:
        InputError: there is no column of this name, or its cells are no texts or numbers.
    """
    codes, texts = as_texts(table.column(name)).exact().factorize()
    cells = np.array([*texts, ""], object)
    return cells[codes].tolist()
