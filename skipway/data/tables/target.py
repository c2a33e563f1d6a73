"""The targets of a table: inference of the task, and their values.

Text and integers with few distinct values are classes, all other numbers a regression target. Several columns of 0 and
1, and a column of lists or of labels with a separator, are labels. The task can also be set.

Shapes: N rows, K labels, T numbers.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from skipway.data.output_spec import TASKS, TaskName
from skipway.data.sources.image_source import class_order
from skipway.data.sources.table import Table, join_quoted
from skipway.data.sources.text_column import Cells, TextColumn
from skipway.data.tables.columns import (
    ColumnKind,
    Problem,
    as_texts,
    factorize_texts,
    infer_kind,
    missing_mask,
    read_numbers,
)
from skipway.data.tables.number_columns import describe_problems, infer_column_style, read_number_cells
from skipway.data.tables.number_style import NumberStyle
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError, printable

__all__ = ["Target", "infer_target", "missing_targets", "target_units"]

_MAX_CLASSES = 20  # maximum distinct integers of a target that is inferred as classes
_OUTLYING = 4.0  # multiple of the robust standard deviation, from which outliers dominate the standard deviation
_QUARTILES = 1.3489795003921634  # distance of the quartiles of a normal distribution, in standard deviations
_ROWS_A_CLASS = 5  # minimum average rows per class of such a target


@dataclass(frozen=True)
class Target:
    """Target columns of a table, and what their values mean.

    Attributes:
        names: names of the columns.
        task: "classification", "multilabel" or "regression".
        class_names: names of the classes or labels; empty for regression.
        label_sep: text between the labels of a row; empty for lists, and for a column of each label.
        styles: how the numbers of each column are written; empty if there are none.
    """

    names: tuple[str, ...]
    task: TaskName
    class_names: tuple[str, ...] = ()
    label_sep: str = ""
    styles: tuple[NumberStyle, ...] = ()

    @classmethod
    def of(cls, spec: TableSpec) -> "Target":
        """Return the target of a trained model."""
        return cls(spec.target_names, spec.task, spec.class_names, spec.label_sep, spec.target_styles)

    def read(self, table: Table) -> np.ndarray:
        """Read the targets of a table in which none is missing.

        Returns:
            (N,) indices into `class_names`, (N, K) float32 labels of 0 and 1, or (N, T) float64 numbers in their units.

        Raises:
            InputError: a target is not a number, or not a class or label of the training table.
        """
        if self.task == "regression":
            styles = self.styles or (None,) * len(self.names)
            pairs = zip(self.names, styles, strict=True)
            return np.stack([_read_numbers(table, name, style) for name, style in pairs], axis=1)
        cells = table.column(self.names[0])
        if self.task == "classification":
            return self._read_classes(table, cells)
        separator = _separator(cells, self.label_sep)
        if len(self.names) == 1 and separator:
            return self._read_labels(table, as_texts(cells), separator)
        return np.stack([_read_binary(table, name) for name in self.names], axis=1).astype(np.float32)

    def _read_classes(self, table: Table, raw: Cells) -> np.ndarray:
        # If all classes are integers, "1" and "1.0" are the same class.
        if isinstance(raw, TextColumn) and all(map(_is_whole, self.class_names)):
            values, problems = read_numbers(raw, "number", self.names[0], self.styles[0] if self.styles else None)
            raw = values if not problems else raw
        codes, texts = as_texts(raw).factorize()
        index = {name: i for i, name in enumerate(self.class_names)}
        indices = np.array([*(index.get(_normal(text), -1) for text in texts), -1], np.int64)[codes]
        if (wrong := np.flatnonzero(indices < 0)).size:
            raise self._unknown(table, int(wrong[0]), as_texts(raw)[int(wrong[0])])
        return indices

    def _read_labels(self, table: Table, cells: TextColumn, separator: str) -> np.ndarray:
        """Read the labels of each row: every distinct text is split once."""
        codes, texts = cells.factorize()
        index = {name: i for i, name in enumerate(self.class_names)}
        labels = np.zeros((len(texts) + 1, len(index)), np.float32)  # the last row is that of rows without a text
        for i, text in enumerate(texts):
            for label in _labels_in(text, separator):
                if label not in index:
                    raise self._unknown(table, int(np.flatnonzero(codes == i)[0]), label)
                labels[i, index[label]] = 1
        return labels[codes]

    def _unknown(self, table: Table, row: int, value: Any) -> InputError:
        noun = "labels" if self.task == "multilabel" else "classes"
        return InputError(
            f"cannot use {table.row_name(row)}, target {printable(self.names[0])!r}: expected one of the training "
            f"{noun} {join_quoted(list(self.class_names))}, got {printable(value)[:60]!r}. Correct it, or remove the "
            "row."
        )


def missing_targets(table: Table, names: Sequence[str], label_sep: str | None) -> np.ndarray:
    """Return (N,) booleans: True for the rows without a value in one of the target columns.

    In a column of labels with a separator, an empty cell means that the row has no labels.
    """
    missing = np.zeros(len(table), bool)
    for name in names:
        cells = table.column(name)
        if isinstance(cells, TextColumn) and cells.separator:
            missing |= cells.factorize()[0] < 0
        elif not label_sep:
            missing |= missing_mask(cells)
    return missing


def infer_target(train: Table, names: tuple[str, ...], task: str, label_sep: str | None) -> Target:
    """Infer the task, and the class or label names, from the targets of the training table.

    Args:
        train: the training table.
        names: names of the target columns.
        task: "auto" or a task.
        label_sep: text between several labels in the target column.

    Raises:
        InputError: a target is constant, or does not fit the task.
    """
    if task not in ("auto", *TASKS):
        raise InputError(
            f"cannot set the task: expected one of auto, {', '.join(TASKS)}, got {printable(task)!r}. Use one of these."
        )
    if label_sep and len(names) > 1:
        raise InputError(
            f"cannot use --label-sep with {len(names)} target columns: expected one column of labels. Drop "
            "--label-sep, or name one column."
        )
    if len(set(names)) < len(names):
        raise InputError(
            f"cannot use --target {printable(','.join(names))}: expected each column once. Remove the repeated name."
        )
    separator = _separator(train.columns[names[0]], label_sep)
    if len(names) == 1 and separator:
        if task in ("classification", "regression"):
            raise InputError(
                f"cannot use the target {printable(names[0])!r} of {printable(train.name)}: expected one value per row "
                f"for --task {task}, got several labels. Use --task multilabel, or drop --task."
            )
        return Target(names, "multilabel", _label_names(train, names[0], separator), label_sep or "")
    if len(names) > 1 or task == "multilabel":
        return _infer_columns(train, names, task)
    chosen, class_names = _infer_single(train, names[0], task)
    are_numbers = chosen == "regression" or all(map(_is_whole, class_names))
    return Target(names, chosen, class_names, styles=_styles(train, names) if are_numbers else ())


def _styles(train: Table, names: tuple[str, ...]) -> tuple[NumberStyle, ...]:
    return tuple(infer_column_style(train.columns[name], train) for name in names)


def _infer_columns(train: Table, names: tuple[str, ...], task: str) -> Target:
    """Infer the task of several columns: labels if all values are 0 or 1, else numbers."""
    if task == "classification":
        raise InputError(
            f"cannot classify {printable(train.name)}: expected one target column for --task classification, got "
            f"{len(names)}. Use --task multilabel for columns of 0 and 1, or --task regression for numbers."
        )
    if task == "multilabel" or (task == "auto" and all(not _binary_values(train, name)[1] for name in names)):
        for name in names:
            if not _read_binary(train, name).any():
                raise InputError(
                    f"cannot learn the label {printable(name)!r} of {printable(train.name)}: expected rows with 1, got "
                    "none. Remove it from --target."
                )
        return Target(names, "multilabel", names)
    for name in names:
        _refuse_texts(train, name)
        _infer_single(train, name, "regression")
    return Target(names, "regression", styles=_styles(train, names))


def _refuse_texts(train: Table, target: str) -> None:
    """Raise InputError if most values of one of several targets are not numbers."""
    if infer_kind(target, train)[0] in ("number", ""):
        return
    row, text = _first_text(train, target)
    raise InputError(
        f"cannot use {train.row_name(row)}, target {printable(target)!r}: expected several targets to be numbers, or 0 "
        f"and 1, got {text!r}. Train a model for each target of classes."
    )


def _first_text(train: Table, target: str) -> tuple[int, str]:
    """Return the row and the text of the first cell that is no number."""
    raw = train.columns[target]
    _, problems = read_numbers(raw, "number", target, infer_column_style(raw, train))
    return problems[0].row, printable(as_texts(raw)[problems[0].row])[:60]


def _infer_single(train: Table, target: str, task: str) -> tuple[TaskName, tuple[str, ...]]:
    """Return the task of one column, and the class names."""
    where = f"the target {printable(target)!r} of {printable(train.name)}"
    raw = train.columns[target]
    kind, remark = infer_kind(target, train)
    if remark == "constant":
        raise InputError(f"cannot learn {where}: expected at least 2 distinct values, got 1. Choose another target.")
    numeric = kind == "number" or remark == "row counter"
    if numeric:
        style = infer_column_style(raw, train)
        values = _read_numbers(train, target, style)
        distinct = np.unique(values)
        few = len(distinct) <= _MAX_CLASSES and len(values) >= _ROWS_A_CLASS * len(distinct)
        whole = bool(np.all(distinct == np.round(distinct)))
        if task == "regression" or (task == "auto" and not (few and whole)):
            return "regression", ()
        if style.unit:  # the names of the classes are the texts
            return "classification", _class_names(factorize_texts(raw)[1], len(values), where)
        if not whole:
            row = int(np.flatnonzero(values != np.round(values))[0])
            raise InputError(
                f"cannot use {train.row_name(row)}, target {printable(target)!r}: expected a class (text or integer), "
                f"got {values[row]:g}. Use --task regression, or drop --task."
            )
        names = [str(int(value)) for value in distinct]
        return "classification", _class_names(names, len(values), where, ordered=True)
    if task == "regression":
        row, text = _first_text(train, target)
        raise InputError(
            f"cannot use {train.row_name(row)}, target {printable(target)!r}: expected a number for --task regression, "
            f"got {text!r}. Drop --task to learn classes."
        )
    _, names = factorize_texts(raw)
    return "classification", _class_names(names, len(raw), where)


def _class_names(names: list[str], count: int, where: str, ordered: bool = False) -> tuple[str, ...]:
    if len(names) > max(2, count // 2):
        raise InputError(
            f"cannot classify {where}: expected several rows per class, got {len(names):,} distinct values in "
            f"{count:,} rows. Choose another target, or use --task regression for numbers."
        )
    return tuple(names) if ordered and len(names) > 1 else class_order(names, where)


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _label_names(train: Table, target: str, separator: str) -> tuple[str, ...]:
    """Return the distinct labels of a column, sorted."""
    _, texts = as_texts(train.columns[target]).factorize()
    counts = Counter(chain.from_iterable(_labels_in(text, separator) for text in texts))
    where = f"the target {printable(target)!r} of {printable(train.name)}"
    if not counts or (len(counts) > 2 and len(texts) == len(train) == counts.total() == len(counts)):
        found = "a different one in every row" if counts else "none"
        raise InputError(
            f"cannot learn {where}: expected labels that occur in several rows, got {found}. Check --label-sep, or "
            "choose another target."
        )
    return class_order(sorted(counts), where, least=1)


def _labels_in(text: str, separator: str) -> list[str]:
    """Return the labels in a cell."""
    return [_normal(label.strip()) for label in text.split(separator) if label.strip()]


def _normal(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _separator(cells: Cells, label_sep: str | None) -> str:
    """Return the text between the labels of a column: that of lists, or the option."""
    return (cells.separator if isinstance(cells, TextColumn) else "") or label_sep or ""


def _read_numbers(table: Table, target: str, style: NumberStyle | None) -> np.ndarray:
    """Return the (N,) numbers of a target; cells such as "-" and "<5" can only be features, and are errors."""
    cells = read_number_cells(table.column(target), target, style)
    problems = cells.problems or _missing_values(table, target, cells.exact, "a number")
    if problems:
        raise InputError(describe_problems(problems, table.row_name))
    return cells.values


def _read_binary(table: Table, target: str) -> np.ndarray:
    """Return the (N,) values of a column of 0 and 1, or of true and false."""
    values, problems = _binary_values(table, target)
    if problems:
        raise InputError(describe_problems(problems, table.row_name))
    return values


def _binary_values(table: Table, target: str) -> tuple[np.ndarray, list[Problem]]:
    """Return the (N,) values of a column as 0 and 1, and the cells that are neither."""
    cells = table.column(target)
    has_numbers = isinstance(cells, np.ndarray) or cells.numbers is not None
    kind: ColumnKind = "number" if has_numbers else "boolean"
    values, _ = read_numbers(cells, kind, target)
    return values, _missing_values(table, target, np.where(np.isin(values, (0, 1)), values, np.nan), "0 or 1")


def _missing_values(table: Table, target: str, values: np.ndarray, expected: str) -> list[Problem]:
    """Return a problem for each NaN among the values of a target."""
    rows = np.flatnonzero(np.isnan(values)).tolist()
    texts = as_texts(table.column(target)) if rows else None
    return [Problem(i, target, f"expected {expected}, got {printable(texts[i])[:60]!r}") for i in rows if texts]


def target_units(y: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the center and the scale of each target (N, T), by which it is standardized.

    They are the mean and the standard deviation, or the median and the standard deviation of a normal distribution with
    the same quartiles if outliers dominate the former. The scale of a target with equal values is 1.

    >>> target_units(np.array([[0.0], [1.0], [2.0], [3.0], [1e6]]))
    ((2.0,), (1.482602218505602,))
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = y.mean(axis=0), y.std(axis=0)
        lower, median, upper = np.quantile(y, (0.25, 0.5, 0.75), axis=0)
        robust = (upper - lower) / _QUARTILES
        outlying = (robust > 0) & (std > _OUTLYING * robust)
    center, scale = np.where(outlying, median, mean), np.where(outlying, robust, std)
    return tuple(center.tolist()), tuple(np.where(scale > 0, scale, 1.0).tolist())
