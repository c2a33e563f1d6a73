"""Kinds of the input columns of a table: those of `infer_kind`, and what only applies to inputs.

A declared category stays one although its values are numbers. Numbers such as 202412 are months. A running index is an
input of a regression if the targets follow it.

Shapes: N rows, T targets.
"""

from typing import Literal

import numpy as np

from skipway.data.sources.table import Table
from skipway.data.sources.text_column import Cells, TextColumn
from skipway.data.tables.columns import ColumnKind, as_texts, factorize_texts, infer_kind
from skipway.data.tables.date_formats import infer_date_format

__all__ = ["infer_input_kind", "targets_follow_order"]

_FEW = 20  # in fewer rows, the values of any column may all differ
_LARGEST_DATE = 2100_12_31
_SIGNIFICANT = 4.0  # standard errors of a correlation that show a trend


def infer_input_kind(name: str, table: Table) -> tuple[ColumnKind | Literal[""], str]:
    """Infer the kind of an input column from all rows of a table.

    Returns:
        The kind, or "" for a column without information, and a remark, as `infer_kind`.

    Raises:
        InputError: a number such as 1,234 is ambiguous.
    """
    raw = table.columns[name]
    if isinstance(raw, TextColumn) and raw.is_category:
        return _kind_of_categories(raw)
    kind, remark = infer_kind(name, table)
    if kind == "number" and _may_be_dates(raw) and infer_date_format(as_texts(raw))[0]:
        return "date", ""
    return kind, remark


def targets_follow_order(y: np.ndarray) -> bool:
    """Return True if numbers (N, T) follow the order of the rows: they have a trend, or neighbors are alike.

    The tests are Spearman's correlation with the row number, and the correlation of neighbors (von Neumann 1941).

    >>> targets_follow_order(np.arange(30.0)[:, None])
    True
    """
    for values in y.T:
        ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(np.float64)
        if len(ranks) < _FEW or not np.ptp(values) > 0:
            continue
        bound = _SIGNIFICANT / np.sqrt(len(ranks))
        trend = abs(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1])
        neighbors = np.corrcoef(ranks[1:], ranks[:-1])[0, 1]
        if max(trend, neighbors) > bound:
            return True
    return False


def _kind_of_categories(raw: TextColumn) -> tuple[ColumnKind | Literal[""], str]:
    codes, texts = factorize_texts(raw)
    present = int((codes >= 0).sum())
    if not present:
        return "", "empty"
    if len(texts) == 1 and present == len(raw):
        return "", "constant"
    if len(texts) == present and present >= _FEW:
        return "", "identifier: all values differ"
    return "category", ""


def _may_be_dates(raw: Cells) -> bool:
    """Return True if no number of a column is too small or too large for dates such as 202412 and 20241231."""
    numbers = raw.numbers if isinstance(raw, TextColumn) else raw
    if numbers is None:
        return True
    return bool(np.nanmin(numbers) >= 1900_01 and np.nanmax(numbers) <= _LARGEST_DATE)
