"""Targets of the scikit-learn estimators: one value, or one row of values, per row.

Shapes: N rows, K values.
"""

from typing import Any

import numpy as np

from skipway.errors import InputError, printable

__all__ = ["column_names", "has_columns", "read_labels", "read_target", "refuse_overflow"]


def has_columns(y: Any) -> bool:
    """Return True if y has several columns, as an array, a DataFrame, a sparse matrix or a list of lists."""
    shape = _shape(y)
    return len(shape) == 2 and shape[1] > 1


def _shape(y: Any) -> tuple[int, ...]:
    return tuple(y.shape if hasattr(y, "shape") else np.asarray(y).shape)


def column_names(y: Any) -> tuple[str, ...]:
    """Return the names of the columns of y: those of a DataFrame if they differ, or else their indices."""
    names = tuple(map(str, getattr(y, "columns", ())))
    count = _shape(y)[1]
    return names if len(set(names)) == count else tuple(map(str, range(count)))


def read_target(y: Any, count: int, numeric: bool = False) -> np.ndarray:
    """Return y as a plain array with one value, or one row of values, per row of X."""
    from sklearn.utils import check_array, check_consistent_length, column_or_1d

    if y is None:
        raise InputError("requires y to be passed, but the target y is None. Pass one value per row.")
    if has_columns(y):
        kind = np.float64 if numeric else None
        y = check_array(y, accept_sparse=not numeric, dtype=kind, input_name="y")
        y = y.toarray() if hasattr(y, "toarray") else y
        check_consistent_length(np.empty(count), y)
        return y
    y = column_or_1d(y, warn=True)
    if numeric:
        y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
    else:
        y = check_array(y, ensure_2d=False, dtype=None, input_name="y", ensure_all_finite=y.dtype.kind == "f")
    check_consistent_length(np.empty(count), y)
    return y


def read_labels(y: Any, count: int) -> np.ndarray:
    """Return an indicator matrix (N, K) with one row per row of X.

    Raises:
        InputError: a value is neither 0 nor 1.
    """
    labels = read_target(y, count)
    others = labels[~np.isin(labels, (0, 1))]
    if others.size:
        raise InputError(
            f"cannot fit a classifier: expected classes (N,) or an indicator matrix (N, K) of 0 and 1, got "
            f"{printable(str(others[0]))[:40]!r} in a matrix of shape {labels.shape}. Fit one per column."
        )
    return labels


def refuse_overflow(y: np.ndarray) -> None:
    """Raise InputError if the mean or the standard deviation of numbers (N, T) is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = y.mean(axis=0), y.std(axis=0)
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise InputError(
            "cannot fit a regressor: expected a finite mean and standard deviation of y, got numbers "
            "too large to average. Scale y first."
        )
