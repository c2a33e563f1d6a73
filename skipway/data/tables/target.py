"""The target of a table: whether it is a class or a number, and its values.

A class is text, or one of few whole numbers; any other number is predicted as one. Either can be asked for instead.
"""

from typing import Any

import numpy as np

from skipway.data.sources.image_source import class_order
from skipway.data.sources.read_table import Table, join_quoted
from skipway.data.tables.columns import as_texts, describe_problems, factorize_texts, infer_kind, read_numbers
from skipway.data.tables.table_spec import TASKS, TableTask
from skipway.errors import InputError, printable

__all__ = ["infer_task", "missing_rows", "read_targets"]

_MAX_CLASSES = 20  # different whole numbers up to which a target of numbers is taken for classes
_ROWS_A_CLASS = 5


def missing_rows(raw: np.ndarray) -> np.ndarray:
    """Return the rows in which a target is missing."""
    return np.flatnonzero(np.isnan(raw) if raw.dtype != object else factorize_texts(raw)[0] < 0)


def infer_task(train: Table, target: str, task: str) -> tuple[TableTask, tuple[str, ...]]:
    """Return the task and its class names, read off the training table's target."""
    if task not in ("auto", *TASKS):
        raise InputError(f"task is one of auto, {', '.join(TASKS)}, not {printable(task)!r}")
    where = f"{printable(train.name)}, target {printable(target)!r}"
    raw = train.columns[target]
    kind, remark = infer_kind(target, train)
    if remark == "constant":
        raise InputError(f"{where}: all rows have the same value; there is nothing to learn: choose another column")
    numeric = kind == "number" or remark.startswith("a counter")
    if numeric:
        values, problems = read_numbers(raw, "number", target)
        if problems:
            raise InputError(describe_problems(problems, train.row_name))
        distinct = np.unique(values)
        few = len(distinct) <= _MAX_CLASSES and len(values) >= _ROWS_A_CLASS * len(distinct)
        whole = bool(np.all(distinct == np.round(distinct)))
        if task == "regression" or (task == "auto" and not (few and whole)):
            return "regression", ()
        if not whole:
            row = int(np.flatnonzero(values != np.round(values))[0])
            raise InputError(
                f"{train.row_name(row)}, target {printable(target)!r}: {values[row]:g} is no class: whole numbers or "
                "text were expected; say --task regression, or leave --task out"
            )
        names = [str(int(value)) for value in distinct]
        return "classification", _class_names(names, len(values), where, ordered=True)
    if task == "regression":
        row = int(np.flatnonzero([not _is_number(v) for v in raw])[0])
        raise InputError(
            f"{train.row_name(row)}, target {printable(target)!r}: {printable(raw[row])[:60]!r} is not a number, as "
            "--task regression needs; leave --task out to learn classes"
        )
    _, names = factorize_texts(as_texts(raw))
    return "classification", _class_names(names, len(raw), where)


def _is_number(value: Any) -> bool:
    return not read_numbers(np.array([value], object), "number", "")[1]


def _class_names(names: list[str], count: int, where: str, ordered: bool = False) -> tuple[str, ...]:
    if len(names) > max(2, count // 2):
        raise InputError(
            f"{where}: {len(names):,} different values in {count:,} rows; a classifier needs several rows of each "
            "class: choose another target, or --task regression for numbers"
        )
    return tuple(names) if ordered and len(names) > 1 else class_order(names, where)


def read_targets(table: Table, target: str, *, task: TableTask, names: tuple[str, ...]) -> np.ndarray:
    """Return (N,) indices into `names`, or numbers in their own unit."""
    raw = table.column(target)
    if task == "regression":
        values, problems = read_numbers(raw, "number", target)
        if problems:
            raise InputError(describe_problems(problems, table.row_name))
        return values
    if raw.dtype == object and all(
        _is_whole(name) for name in names
    ):  # "1" and "1.0" are one class where all are numbers
        values, problems = read_numbers(raw, "number", target)
        raw = values if not problems else raw
    index = {name: i for i, name in enumerate(names)}
    texts = as_texts(raw)
    indices = np.array([index.get(text, -1) for text in texts], np.int64)
    if (wrong := np.flatnonzero(indices < 0)).size:
        text = printable(texts[wrong[0]])[:60]
        raise InputError(
            f"{table.row_name(int(wrong[0]))}, target {printable(target)!r}: {text!r} is no class of training "
            f"({join_quoted(list(names))}); correct it, or leave the row out"
        )
    return indices


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
