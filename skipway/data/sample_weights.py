"""Weights of samples: how much each counts in the loss and in the metrics.

Shapes: N samples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skipway.data.sources.table import Table
from skipway.data.tables.columns import as_texts
from skipway.data.tables.number_columns import infer_column_style, read_number_cells
from skipway.errors import InputError, printable

__all__ = ["describe_weights", "effective_count", "loss_weights", "read_weights", "refuse_zero_weights"]


def read_weights(table: Table, column: str) -> np.ndarray:
    """Read a column of sample weights.

    Args:
        table: table with the column.
        column: its name.

    Returns:
        (N,) float64 weights, finite and at least 0.

    Raises:
        InputError: there is no such column, or a weight is missing, negative, infinite or not a number.
    """
    raw = table.column(column)
    values = read_number_cells(raw, column, infer_column_style(raw, table)).exact
    rows = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(rows):
        names = ", ".join(f"{_cell(raw, int(row))} in {table.row_name(int(row))}" for row in rows[:3])
        raise InputError(
            f"cannot use --weight-column {printable(column)}: expected a finite number of at least 0 in every row, got "
            f"{names}{' ...' if len(rows) > 3 else ''} ({len(rows):,} such rows). Correct them; 0 leaves a row out of "
            "the loss."
        )
    return values


def _cell(raw: object, row: int) -> str:
    if isinstance(raw, np.ndarray) and not np.isnan(raw[row]):
        return f"{raw[row]:g}"
    cell = as_texts(raw)[row]  # type: ignore[arg-type]
    return repr(printable(cell)[:40]) if cell else "no value"


def refuse_zero_weights(weights: np.ndarray | None, splits: Mapping[str, np.ndarray], name: str) -> np.ndarray | None:
    """Check that each split has a sample with a positive weight.

    Args:
        weights: (N,) weights, or None.
        splits: indices of the samples of each split.
        name: name of the dataset, for the error.

    Returns:
        The weights; None if all are equal, which is the same as no weights.

    Raises:
        InputError: all weights of a split are 0.
    """
    if weights is None:
        return None
    for split, rows in splits.items():
        if len(rows) and not weights[rows].any():
            raise InputError(
                f"cannot use the sample weights of {printable(name)}: expected a positive weight in the {split} set, "
                "got only 0. Correct --weight-column."
            )
    used = np.concatenate([rows for rows in splits.values() if len(rows)])
    return None if (weights[used] == weights[used[0]]).all() else weights


def effective_count(weights: np.ndarray | None, count: int) -> int:
    """Return the number of equally weighted samples with the same variance of a mean (Kish 1965), `count` for None.

    >>> effective_count(np.array([1.0, 1.0, 2.0, 0.0]), 4)
    3
    """
    return count if weights is None else max(1, round(float(weights.sum() ** 2 / (weights**2).sum())))


def describe_weights(
    weights: np.ndarray | None, splits: Mapping[str, np.ndarray], targets: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return the value of "weights" in the description of a dataset, in a dict; an empty one for equal weights.

    Args:
        weights: (N,) weights, or None.
        splits: indices of the samples of each split.
        targets: (N,) classes; other targets have no sums of weights by class.
        class_names: names of the classes.

    Returns:
        Under "weights": effective_counts by split (see `effective_count`), and by class the sums of the weights of each
        split, 1 on average over the training samples.
    """
    if weights is None:
        return {}
    facts: dict[str, Any] = {
        "effective_counts": {split: effective_count(weights[rows], len(rows)) for split, rows in splits.items()}
    }
    if class_names and targets.ndim == 1:
        scaled = weights / weights[splits["train"]].mean()
        sums = {split: np.bincount(targets[i], scaled[i], minlength=len(class_names)) for split, i in splits.items()}
        facts["classes"] = {
            name: {split: round(float(values[k]), 6) for split, values in sums.items()}
            for k, name in enumerate(class_names)
        }
    return {"weights": facts}


def loss_weights(weights: np.ndarray | None, train: np.ndarray) -> np.ndarray | None:
    """Return (N,) float32 weights that are 1 on average over the training samples; None for equal weights."""
    return None if weights is None else (weights / weights[train].mean()).astype(np.float32)
