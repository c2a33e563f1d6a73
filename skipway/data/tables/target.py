"""The target of a table: inference of the task, and the target values.

Text and integers with few distinct values are classes, all other numbers a regression target. The task can also be set.
"""

from typing import Any

import numpy as np

from skipway.data.output_spec import TASKS, TaskName
from skipway.data.sources.image_source import class_order
from skipway.data.sources.table import Table, join_quoted
from skipway.data.sources.text_column import Cells, TextColumn
from skipway.data.tables.columns import (
    Problem,
    as_texts,
    describe_problems,
    factorize_texts,
    infer_kind,
    missing_mask,
    read_numbers,
)
from skipway.errors import InputError, printable

__all__ = ["infer_task", "missing_rows", "read_targets"]

_MAX_CLASSES = 20  # maximum distinct integers of a target that is inferred as classes
_ROWS_A_CLASS = 5  # minimum average rows per class of such a target


def missing_rows(raw: Cells) -> np.ndarray:
    """Return the indices of the rows of `raw` (N,) without a value."""
    return np.flatnonzero(missing_mask(raw))


def infer_task(train: Table, target: str, task: str) -> tuple[TaskName, tuple[str, ...]]:
    """Infer the task and the class names from the target of the training table.

    Args:
        train: the training table.
        target: name of the target column.
        task: "auto", "classification" or "regression".

    Returns:
        The task, and the class names; no names for regression.

    Raises:
        InputError: the target is constant, or does not fit the task.
    """
    if task not in ("auto", *TASKS):
        raise InputError(
            f"cannot set the task: expected one of auto, {', '.join(TASKS)}, got {printable(task)!r}. Use one of these."
        )
    where = f"the target {printable(target)!r} of {printable(train.name)}"
    raw = train.columns[target]
    kind, remark = infer_kind(target, train)
    if remark == "constant":
        raise InputError(f"cannot learn {where}: expected at least 2 distinct values, got 1. Choose another target.")
    numeric = kind == "number" or remark == "row counter"
    if numeric:
        values = _read_numbers(train, target)
        distinct = np.unique(values)
        few = len(distinct) <= _MAX_CLASSES and len(values) >= _ROWS_A_CLASS * len(distinct)
        whole = bool(np.all(distinct == np.round(distinct)))
        if task == "regression" or (task == "auto" and not (few and whole)):
            return "regression", ()
        if not whole:
            row = int(np.flatnonzero(values != np.round(values))[0])
            raise InputError(
                f"cannot use {train.row_name(row)}, target {printable(target)!r}: expected a class (text or integer), "
                f"got {values[row]:g}. Use --task regression, or drop --task."
            )
        names = [str(int(value)) for value in distinct]
        return "classification", _class_names(names, len(values), where, ordered=True)
    if task == "regression":
        row = int(np.flatnonzero([not _is_number(v) for v in raw])[0])
        raise InputError(
            f"cannot use {train.row_name(row)}, target {printable(target)!r}: expected a number for --task regression, "
            f"got {printable(raw[row])[:60]!r}. Drop --task to learn classes."
        )
    _, names = factorize_texts(raw)
    return "classification", _class_names(names, len(raw), where)


def _is_number(value: Any) -> bool:
    return not read_numbers(np.array([value], object), "number", "")[1]


def _class_names(names: list[str], count: int, where: str, ordered: bool = False) -> tuple[str, ...]:
    if len(names) > max(2, count // 2):
        raise InputError(
            f"cannot classify {where}: expected several rows per class, got {len(names):,} distinct values in "
            f"{count:,} rows. Choose another target, or use --task regression for numbers."
        )
    return tuple(names) if ordered and len(names) > 1 else class_order(names, where)


def read_targets(table: Table, target: str, *, task: TaskName, names: tuple[str, ...]) -> np.ndarray:
    """Read the targets of a table.

    Args:
        table: a table without missing targets.
        target: name of the target column.
        task: "classification" or "regression".
        names: class names; empty for regression.

    Returns:
        (N,) indices into `names`, or float64 numbers in their original unit.

    Raises:
        InputError: a target is not a number, or not a class in `names`.
    """
    raw = table.column(target)
    if task == "regression":
        return _read_numbers(table, target)
    # If all classes are integers, "1" and "1.0" are the same class.
    if isinstance(raw, TextColumn) and all(map(_is_whole, names)):
        values, problems = read_numbers(raw, "number", target)
        raw = values if not problems else raw
    index = {name: i for i, name in enumerate(names)}
    cells = as_texts(raw)
    codes, texts = cells.factorize()
    indices = np.array([*(index.get(text, -1) for text in texts), -1], np.int64)[codes]
    if (wrong := np.flatnonzero(indices < 0)).size:
        text = printable(cells[int(wrong[0])])[:60]
        raise InputError(
            f"cannot use {table.row_name(int(wrong[0]))}, target {printable(target)!r}: expected one of the training "
            f"classes {join_quoted(list(names))}, got {text!r}. Correct it, or remove the row."
        )
    return indices


def _read_numbers(table: Table, target: str) -> np.ndarray:
    """Return the (N,) numbers of a target; cells such as "-", which only mean a missing feature, are errors too."""
    raw = table.column(target)
    values, problems = read_numbers(raw, "number", target)
    if not problems:
        problems = [
            Problem(int(i), target, f"expected a number, got {printable(as_texts(raw)[int(i)])!r}")
            for i in np.flatnonzero(np.isnan(values))
        ]
    if problems:
        raise InputError(describe_problems(problems, table.row_name))
    return values


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
