"""Kinds of the input columns of a table: those of `infer_kind`, and what only applies to inputs.

A declared category stays one although its values are numbers. Numbers such as 202412 are months. Whole numbers that
repeat are codes, and so categories, if they have leading zeros, as 00137, or the name of codes, as store_id. Long text
is no input. A running index is an input of a regression if the targets follow it.

Shapes: N rows, T targets.
"""

import re
from typing import Literal

import numpy as np

from skipway.data.sources.table import Table
from skipway.data.sources.text_column import Cells, TextColumn
from skipway.data.tables.columns import (
    IDENTIFIER,
    MAX_CATEGORIES,
    ColumnKind,
    as_texts,
    factorize_texts,
    infer_kind,
)
from skipway.data.tables.date_formats import infer_date_format
from skipway.utils.format_text import count_of

__all__ = ["LONG_TEXT", "infer_input_kind", "targets_follow_order"]

LONG_TEXT = "long text"
_MIN_WORDS, _MIN_CHARACTERS, _MIN_DISTINCT = 4, 25, 0.5  # of long text, on average; the last as a share of the cells
_ROWS_A_CODE = 5  # fewest rows per code on average; codes that repeat less are poor categories
_CODE_WORDS = frozenset("id code zip zipcode postcode postalcode plz fips sku key".split())
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_PADDED = re.compile(r"0[0-9]{2,}")  # two digits, as in 01, are months and hours
_CLOCK = re.compile(r"(?:[01][0-9]|2[0-3])[0-5][0-9]")  # 0830

_FEW = 20  # in fewer rows, the values of any column may all differ
_SAMPLED = 1000  # cells that show that numbers are not whole, and texts that show their length
_MOSTLY = 0.9  # share of whole numbers among the cells of a column of codes
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
    if kind == "number":
        if _may_be_dates(raw) and infer_date_format(as_texts(raw))[0]:
            return "date", ""
        return _kind_of_codes(name, raw) or (kind, remark)
    if kind == "category" or remark == IDENTIFIER:
        text = _long_text(raw)
        return ("", text) if text else (kind, remark)
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
        return "", IDENTIFIER
    return "category", ""


def _kind_of_codes(name: str, raw: Cells) -> tuple[ColumnKind, str] | None:
    """Return the kind of a column of numbers that are codes, and a remark; None for other numbers."""
    numbers = raw.numbers if isinstance(raw, TextColumn) else raw
    is_named = _is_named_as_code(name)
    is_padded = isinstance(raw, TextColumn) and raw.may_be_padded()
    if not (is_named or is_padded) or (numbers is not None and not _are_few_whole(numbers)):
        return None
    codes, texts = factorize_texts(raw)
    counts = np.bincount(codes[codes >= 0], minlength=len(texts))
    is_whole = np.array([text.isascii() and text.isdigit() for text in texts], bool)
    digits = [text for text, whole in zip(texts, is_whole, strict=True) if whole]
    if counts[is_whole].sum() < _MOSTLY * counts.sum() or len(digits) <= 2:
        return None
    padded = next((text for text in digits if _PADDED.fullmatch(text)), None)
    if not is_named and (padded is None or all(map(_CLOCK.fullmatch, digits))):
        return None
    zeros = f"whole numbers with leading zeros such as {padded!r}"
    if len(texts) <= MAX_CATEGORIES and counts.sum() >= _ROWS_A_CODE * len(texts):
        reason = zeros if padded else "whole numbers in a column with this name"
        return "category", f"categories, because {reason} are codes (--numeric reads numbers)"
    return ("number", f"numbers, because {zeros} repeat too little for categories") if padded else None


def _are_few_whole(numbers: np.ndarray) -> bool:
    """Return True if (N,) numbers are whole and not negative, and if some of them repeat."""
    import pandas as pd

    for some in (numbers[:_SAMPLED], numbers):
        present = some[~np.isnan(some)]
        if len(present) and ((present < 0) | (present != np.floor(present))).any():
            return False
    return len(pd.unique(present)) < len(present)


def _is_named_as_code(name: str) -> bool:
    words = _WORD.findall(name)
    return bool(words) and words[-1].casefold() in _CODE_WORDS


def _long_text(raw: Cells) -> str:
    """Return why a column is long text, or "" if it is none."""
    codes, texts = factorize_texts(raw)
    present = int((codes >= 0).sum())
    some = texts[:_SAMPLED]
    if present < _FEW or len(texts) < _MIN_DISTINCT * present:
        return ""
    words, characters = (sum(map(size, some)) / len(some) for size in (lambda text: len(text.split()), len))
    if words < _MIN_WORDS or characters < _MIN_CHARACTERS:
        return ""
    return f"{LONG_TEXT}, {count_of(len(texts), 'distinct text')} of {words:.0f} words on average"


def _may_be_dates(raw: Cells) -> bool:
    """Return True if no number of a column is too small or too large for dates such as 202412 and 20241231."""
    numbers = raw.numbers if isinstance(raw, TextColumn) else raw
    if numbers is None:
        return True
    return bool(np.nanmin(numbers) >= 1900_01 and np.nanmax(numbers) <= _LARGEST_DATE)
