"""Missing markers: texts that the user names as missing values, such as -999, replaced before cells are read.

Shapes: N rows.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from skipway.data.sources.table import Table
from skipway.data.sources.text_column import Cells

__all__ = ["mark_missing"]

_CODE = re.compile(r"0[0-9]")  # leading zeros: 007 is not the number 7


def mark_missing(table: Table, markers: Sequence[str], names: Iterable[str]) -> tuple[Table, set[str]]:
    """Replace the cells with a marker by missing values.

    A marker is a text in any case. A number also marks equal numbers: -999 marks -999.0. COLUMN=TEXT marks the cells
    of one column, if the table has it.

    Args:
        table: the table.
        markers: the markers.
        names: columns to mark; others are not read.

    Returns:
        The table, and the markers that no cell has.
    """
    if not markers:
        return table, set()
    columns, used = dict(table.columns), set[str]()
    for name in [name for name in names if name in table.columns]:
        for marker in markers:
            if (text := _text_for(marker, name, table)) is None:
                continue
            marked = _marked(columns[name], text)
            if marked is not None:
                used.add(marker)
                columns[name] = marked
    return replace(table, columns=columns), set(markers) - used


def _text_for(marker: str, name: str, table: Table) -> str | None:
    """Return the text that a marker has for a column, or None if it is for another column."""
    places = [i for i, character in enumerate(marker) if character == "="]  # a name may have the character, too
    parts = [(marker[:i].strip(), marker[i + 1 :].strip()) for i in places]
    named = [(column, text) for column, text in parts if column in table.columns]
    if not named:
        return marker
    return named[0][1] if named[0][0] == name else None


def _marked(cells: Cells, text: str) -> Cells | None:
    """Return a column without the cells that a text marks, or None if there are none."""
    number = _number(text)
    if isinstance(cells, np.ndarray):
        is_marked = cells == number
        return np.where(is_marked, np.nan, cells) if is_marked.any() else None
    if cells.numbers is not None and not (cells.numbers == number).any():
        return None
    codes, texts = cells.factorize()
    wanted = text.casefold()
    removed = [other.casefold() == wanted or (number == number and _number(other) == number) for other in texts]
    return cells.without(removed) if any(removed) and np.array([*removed, False])[codes].any() else None


def _number(text: str) -> float:
    """Return the number that a text is, or NaN."""
    try:
        return math.nan if _CODE.match(text) else float(text)
    except ValueError:
        return math.nan
