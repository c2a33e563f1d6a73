"""Classes whose names mean a missing value elsewhere, such as NA for Namibia.

Shapes: N rows.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from skipway.data.column_roles import ColumnRoles
from skipway.data.sources.table import Table
from skipway.data.sources.text_column import MISSING, TextColumn
from skipway.data.sources.text_form import is_number
from skipway.errors import printable

__all__ = ["describe_marker_classes", "find_marker_classes", "with_marker_classes"]

_MARKERS = frozenset(["na", "n/a", "nan", "null"])  # texts that may also be names
_LEAST = 2  # rows of a class
_COMPARED = 10  # columns of numbers that show that a text means a missing value in this file


def find_marker_classes(train: Table, roles: ColumnRoles, missing: Iterable[str]) -> dict[str, int]:
    """Find texts of the target that are classes, although they mean a missing value in other columns.

    Such a text is a class if the target is a single column of texts in which it occurs at least twice, next to another
    text that occurs at least twice, and more often than empty cells. In a file in which it also means a missing
    number, as R writes all of them, it is a missing value.

    Args:
        train: the training table.
        roles: roles of the columns.
        missing: texts that the user has set as missing values, or COLUMN=TEXT.

    Returns:
        {text: number of rows}.
    """
    column = train.columns[roles.target[0]]
    if not isinstance(column, TextColumn) or column.numbers is not None or column.separator:
        return {}
    if len(roles.target) > 1 or roles.label_sep or roles.task not in ("auto", "classification"):
        return {}
    if not column.missing().any():
        return {}
    codes, texts = column.exact().factorize()
    counts = np.bincount(codes[codes >= 0], minlength=len(texts))
    empty = len(codes) - int(counts.sum()) + int(sum(counts[i] for i, text in enumerate(texts) if not text))
    named = {i for i, text in enumerate(texts) if text.casefold() in MISSING}
    classes = [i for i in range(len(texts)) if i not in named]
    if not any(counts[i] >= _LEAST for i in classes) or all(is_number(texts[i]) for i in classes):
        return {}
    ruled_out = {text.rpartition("=")[2].strip().casefold() for text in missing}
    found = {
        texts[i]: int(counts[i])
        for i in named
        if texts[i].casefold() in _MARKERS - ruled_out and counts[i] >= _LEAST and counts[i] > empty
    }
    return {text: count for text, count in found.items() if not _is_missing_number(train, text)} if found else {}


def with_marker_classes(table: Table, target: str, names: Iterable[str]) -> Table:
    """Return a table in whose target the texts `names` are classes, and no missing values."""
    column = table.columns.get(target)
    markers = frozenset(name.casefold() for name in names if name.casefold() in MISSING)
    if not markers or not isinstance(column, TextColumn):
        return table
    return replace(table, columns={**table.columns, target: column.exact(markers)})


def describe_marker_classes(classes: dict[str, int], target: str) -> list[str]:
    """Return a warning for each text that is read as a class."""
    return [
        f"target {printable(target)!r}: {text!r} is read as a class ({count:,} rows). Use --missing {text} if it is a "
        "missing value"
        for text, count in classes.items()
    ]


def _is_missing_number(table: Table, text: str) -> bool:
    """Return True if a text is in a column of numbers."""
    numeric = [
        column
        for column in table.columns.values()
        if isinstance(column, TextColumn) and column.numbers is not None and np.isnan(column.numbers).any()
    ]
    return any(text in column.exact().factorize()[1] for column in numeric[:_COMPARED])
