"""Inputs of the scikit-learn estimators: data frames of other libraries, and the kinds of their columns.

Shapes: N rows, F columns.
"""

from typing import Any, Literal

import numpy as np

from skipway.data.sources.csv_parser import MAX_COLUMNS
from skipway.data.sources.table import Table
from skipway.data.sources.text_column import Cells
from skipway.data.tables.columns import ColumnKind, factorize_texts
from skipway.data.tables.input_kinds import infer_input_kind
from skipway.errors import InputError

__all__ = ["dense_matrix", "has_numbers_only", "infer_frame_kind", "to_pandas", "with_plain_cells"]

_MAX_CATEGORIES = 20  # distinct values of a column of objects that is no column of numbers
_ROWS_A_CATEGORY = 5  # fewest rows per value of such a column, on average


def to_pandas(x: Any) -> Any:
    """Return a table or column of polars or pyarrow as one of pandas; anything else is returned unchanged."""
    return x.to_pandas() if hasattr(x, "to_pandas") and not hasattr(x, "iloc") else x


def has_numbers_only(frame: Any) -> bool:
    """Return True if all columns of a DataFrame are integers or floats."""
    return all(getattr(dtype, "kind", "O") in "iuf" for dtype in frame.dtypes)


def with_plain_cells(frame: Any) -> Any:
    """Return a DataFrame whose columns of objects have integers for whole floats.

    A text in a column turns its numbers into texts, so that 1.0 would be another category than the 1 of other rows.
    """
    import pandas as pd

    frame = frame.copy(deep=False)
    for i, dtype in enumerate(frame.dtypes):
        if pd.api.types.is_object_dtype(dtype):
            frame.isetitem(i, frame.iloc[:, i].map(_plain).astype(object))
    return frame


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def dense_matrix(matrix: Any) -> np.ndarray:
    """Return a matrix (N, F), which may be sparse, as an array.

    Raises:
        InputError: a sparse matrix has too many columns.
    """
    if not hasattr(matrix, "toarray"):
        return np.asarray(matrix)
    if matrix.shape[1] > MAX_COLUMNS:
        raise InputError(
            f"cannot use a sparse matrix: expected at most {MAX_COLUMNS:,} columns, got {matrix.shape[1]:,}. Reduce "
            "them, for example with TruncatedSVD."
        )
    return np.asarray(matrix.toarray())


def infer_frame_kind(name: str, table: Table, is_object: bool) -> tuple[ColumnKind | Literal[""], str]:
    """Infer the kind of a column of a DataFrame; numbers are always used as numbers.

    Texts such as "0", "1" and "2" with few distinct values are categories: in a part of the rows, such as a fold, a
    value such as "3+" may be missing.

    Args:
        name: name of the column.
        table: the DataFrame as a table.
        is_object: True for texts and objects, False for a column with a dtype of its own.

    Returns:
        The kind, or "" for a column without information, and a remark, as `infer_kind`.
    """
    raw = table.columns[name]
    if is_object:
        kind, remark = infer_input_kind(name, table)
        return (kind, remark) if kind in ("", "date") or not _has_few_values(raw) else ("category", "")
    if raw.dtype != object:
        return "number", ""
    return infer_input_kind(name, table)


def _has_few_values(raw: Cells) -> bool:
    codes, texts = factorize_texts(raw)
    return len(texts) <= _MAX_CATEGORIES and int((codes >= 0).sum()) >= _ROWS_A_CATEGORY * len(texts)
