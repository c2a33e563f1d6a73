"""Inputs of the scikit-learn estimators: data frames of other libraries, and the kinds of their columns.

Shapes: N rows, F columns.
"""

import os
from collections.abc import Collection, Mapping
from typing import Any, Literal, cast

import numpy as np
from sklearn.utils.validation import validate_data

from skipway.data.column_roles import KIND_OPTIONS, ColumnRoles
from skipway.data.sources.csv_parser import MAX_COLUMNS
from skipway.data.sources.in_memory import is_frame
from skipway.data.sources.read_table import frame_table
from skipway.data.sources.table import Table
from skipway.data.sources.text_column import Cells
from skipway.data.tables.column_choice import set_style
from skipway.data.tables.column_settings import LEFT_OUT, TARGET, ColumnSettings
from skipway.data.tables.columns import (
    Column,
    ColumnKind,
    factorize_texts,
    fit_column,
    infer_cell_style,
    missing_mask,
)
from skipway.data.tables.dataset_warnings import describe_rare
from skipway.data.tables.input_kinds import infer_input_kind
from skipway.data.tables.missing_markers import mark_missing
from skipway.errors import InputError, printable

__all__ = ["fit_frame_columns", "frame_settings", "read_inputs", "to_pandas"]

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


def read_inputs(estimator: Any, X: Any, *, reset: bool) -> tuple[Table, set[str]]:
    """Convert the inputs of an estimator to a Table, after scikit-learn's checks.

    Args:
        estimator: the estimator.
        X: a DataFrame, or a numeric matrix.
        reset: True when fitting.

    Returns:
        The table, and the names of the columns of texts and objects.
    """
    X = to_pandas(X)
    if is_frame(X) and not has_numbers_only(X):
        validate_data(estimator, X, skip_check_array=True, reset=reset)
        objects = {str(name) for name, dtype in X.dtypes.items() if dtype.kind == "O"}
        return frame_table(with_plain_cells(X)), objects
    matrix = dense_matrix(
        validate_data(
            estimator,
            X,
            reset=reset,
            accept_sparse=("csr", "csc", "coo"),
            dtype=np.float64,
            ensure_all_finite="allow-nan",
            ensure_min_samples=2 if reset else 1,
        )
    )
    names = list(getattr(estimator, "feature_names_in_", [f"x{i}" for i in range(matrix.shape[1])]))
    return Table("X", dict(zip(names, np.ascontiguousarray(matrix.T), strict=True)), lambda i: f"row {i}"), set()


def frame_settings(options: Mapping[str, Any], table: Table) -> ColumnSettings:
    """Return the settings of an estimator's arguments on columns, which are names or positions.

    Args:
        options: the arguments by name, see `COLUMN_OPTIONS`; None is unset. Texts are split at commas.
        table: inputs of the estimator.

    Raises:
        InputError: a column does not exist or has two kinds, or the file cannot be used.
    """
    values = dict(options)
    for option in KIND_OPTIONS:
        if values[option] is not None and not isinstance(values[option], str):
            values[option] = tuple(_name_at(column, table) for column in values[option])
    if (missing := values["missing"]) is not None and not isinstance(missing, str):
        values["missing"] = tuple(map(str, [missing] if isinstance(missing, int | float) else missing))
    if (path := values["columns"]) is not None:
        if not isinstance(path, str | os.PathLike):
            raise InputError(
                f"cannot fit: expected columns to be the path of a YAML file, got {printable(repr(path))[:40]}. Pass "
                "kinds as categorical, numeric and date."
            )
        values["columns"] = os.fspath(path)
    roles = ColumnRoles.of(values)
    for column in roles.kind_options():
        table.column(column)
    return ColumnSettings.of(roles, table)


def _name_at(column: Any, table: Table) -> str:
    """Return the name of a column that is given by its name or position."""
    names = list(table.columns)
    is_position = isinstance(column, int | np.integer) and str(column) not in names
    return names[int(column)] if is_position and -len(names) <= column < len(names) else str(column)


def fit_frame_columns(
    table: Table, objects: Collection[str], settings: ColumnSettings
) -> tuple[tuple[Column, ...], list[str]]:
    """Fit encoders of the columns of a table without a target.

    Args:
        table: the table.
        objects: columns of texts and objects.
        settings: kinds that the user sets, and missing markers.

    Returns:
        The encoders, and remarks on columns that are left out or read by a rule.

    Raises:
        InputError: no column can be used, or one cannot be read as the kind that is set for it.
    """
    columns, remarks = [], []
    table, unused = mark_missing(table, settings.missing, table.columns)
    remarks += [f"missing marker {printable(marker)!r}: no cell of X has this value" for marker in sorted(unused)]
    for name, raw in table.columns.items():
        setting, style, remark = settings.columns.get(name), None, ""
        if setting is None:
            kind, remark = infer_frame_kind(name, table, name in objects)
            style = infer_cell_style(kind, raw, table) if kind else None
        elif setting.kind in (LEFT_OUT, TARGET):
            continue
        else:
            kind, style = cast(ColumnKind, setting.kind), set_style(name, setting, table)
        if kind:
            column, counts = fit_column(name, kind, raw, style)
            columns.append(column)
            remarks += describe_rare(name, counts.get("rare_cells", 0) / max(1, int((~missing_mask(raw)).sum())))
        if remark:
            remarks.append(f"column {printable(name)!r}{'' if kind else ' is left out'}: {remark}")
    if not columns:
        raise InputError(
            "cannot fit: expected a column of X with at least two values, got none. Pass columns that differ between "
            "rows."
        )
    return tuple(columns), remarks


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
