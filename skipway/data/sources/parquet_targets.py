"""Targets of images in Parquet files: classes, lists of labels, or numbers.

Shapes: N rows of a split, K labels, T numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.column_roles import ColumnRoles
from skipway.data.output_spec import TaskName
from skipway.data.sources.parquet_columns import declared_names, is_list
from skipway.data.sources.parquet_files import open_parquet
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of

__all__ = ["ParquetTargets", "read_targets"]

_WITHHELD = -1  # class index of rows without a label, as Hugging Face datasets write it
Values = list[Any]  # of a column: texts, numbers, or lists of texts; None for a missing value


@dataclass
class ParquetTargets:
    """Targets of all splits.

    Attributes:
        task: "classification", "multilabel" or "regression".
        class_names: names of the classes or labels; empty for regression.
        targets: {split: targets of the rows that have one}, as in a Source.
        labeled: {split: (N,) True for the rows that have a target}.
        warnings: remarks about the targets.
    """

    task: TaskName
    class_names: tuple[str, ...]
    targets: dict[str, np.ndarray] = field(default_factory=dict)
    labeled: dict[str, np.ndarray] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def read_targets(
    files: dict[str, list[Path]],
    names: tuple[str, ...],
    *,
    roles: ColumnRoles,
    allow_empty: bool,
    where: str,
    is_known: bool = False,
) -> ParquetTargets:
    """Read the targets of all splits.

    Args:
        files: {split: parquet files}.
        names: target columns.
        roles: the task, and the text between several labels in a column of text.
        allow_empty: True to leave out declared classes without training images instead of raising.
        where: name of the dataset, for errors.
        is_known: True if a trained model has the classes, so that those of all splits are used, and one is enough.

    Raises:
        InputError: a column is missing, or holds values that do not fit the task.
    """
    columns = {
        split: [list(chain.from_iterable(_values(path, name) for path in paths)) for name in names]
        for split, paths in files.items()
    }
    for values in columns.get("test", ()):
        if all(value is None or value == _WITHHELD for value in values):
            values[:] = [None] * len(values)
    if roles.label_sep and len(names) == 1:
        for values in columns.values():
            values[0] = [_split(value, roles.label_sep) for value in values[0]]
    for values in chain.from_iterable(columns.values()):
        values[:] = [None if isinstance(value, str) and not value.strip() else value for value in values]
    reader = _Reader(where, names, least=1 if is_known else 2)
    labeled = {split: reader.labeled(values) for split, values in columns.items()}
    defining = next(iter(files))
    present = [_take(values, labeled[defining]) for values in columns[defining]]
    chosen = reader.task_of(present, roles.task, len(labeled[defining]))
    warnings: list[str] = []
    class_names: tuple[str, ...] = ()
    if chosen != "regression":
        class_names = names
        if len(names) == 1:
            with open_parquet(files[defining][0]) as file:
                declared = declared_names(file.schema_arrow, names[0])
            trained = present[0]
            if is_known:
                everything = chain.from_iterable(_take(columns[split][0], labeled[split]) for split in files)
                trained, declared = list(everything), None
            class_names = reader.class_names(trained, declared, chosen, allow_empty=allow_empty, warnings=warnings)
    result = ParquetTargets(chosen, class_names, labeled=labeled, warnings=warnings)
    for split, values in columns.items():
        result.targets[split] = reader.targets(split, values, labeled[split], chosen, class_names)
        result.warnings += _absent(split, result) if split != "train" and len(result.targets[split]) else []
    return result


def _take(values: Values, labeled: np.ndarray) -> Values:
    return [value for value, is_labeled in zip(values, labeled, strict=True) if is_labeled]


def _absent(split: str, result: ParquetTargets) -> list[str]:
    """Return a warning about classes or labels without images in a split."""
    if result.task == "regression":
        return []
    present = result.targets[split]
    counts = np.bincount(present, minlength=len(result.class_names)) if present.ndim == 1 else present.sum(axis=0)
    missing = [printable(result.class_names[i]) for i in np.flatnonzero(counts == 0)]
    return [f"the {split} set has no images of: {', '.join(missing[:20])}"] if missing else []


def _split(value: Any, label_sep: str) -> Any:
    """Split a text into its labels; other values are unchanged."""
    if not isinstance(value, str):
        return value
    return [label.strip() for label in value.split(label_sep) if label.strip()]


def _values(path: Path, name: str) -> Values:
    """Read a column of a file: texts for classes, numbers, or lists of texts; None for a missing value."""
    from pyarrow import types

    with open_parquet(path) as file:
        schema = file.schema_arrow
        if name not in schema.names:
            raise InputError(
                f"cannot read {printable(path)}: expected the column {name!r} as in the train file. Add this column."
            )
        column = file.read(columns=[name]).column(0)
        kind = getattr(column.type, "storage_type", column.type)
        kind = kind.value_type if types.is_dictionary(kind) else kind
        inner = kind.value_type if is_list(kind) else kind
        inner = inner.value_type if types.is_dictionary(inner) else inner
        is_plain = (
            types.is_floating(inner) or types.is_integer(inner) or types.is_boolean(inner) or types.is_null(inner)
        )
        if not is_plain and not str(inner).endswith(("string", "string_view")):
            raise InputError(
                f"cannot read the column {printable(name)!r} of {printable(path)}: expected labels as strings, numbers "
                f"or lists of them, got {printable(column.type)[:80]}. Store one class, or a list of labels, per image."
            )
        values = column.to_pylist()
        declared = declared_names(schema, name)
    if is_list(kind):
        return [None if v is None else [_plain(e, declared) for e in v if e is not None] for v in values]
    return [_plain(value, declared) for value in values]


def _plain(value: Any, declared: Sequence[str] | None) -> Any:
    """Return the class name of an index, and None for a missing value."""
    if value is None or value != value:  # NaN
        return None
    if declared is None or isinstance(value, str):
        return value
    if value == _WITHHELD:
        return None
    return declared[int(value)] if 0 <= value < len(declared) and value == int(value) else value


@dataclass(frozen=True)
class _Reader:
    """The target columns: the name of their file or folder, for errors, their names, and the fewest classes."""

    where: str
    names: tuple[str, ...]
    least: int

    def labeled(self, columns: list[Values]) -> np.ndarray:
        """Return (N,) booleans: True for the rows with a value in every column."""
        return np.array([all(value is not None for value in row) for row in zip(*columns, strict=True)], bool)

    def task_of(self, columns: list[Values], task: str, count: int) -> TaskName:
        """Return the task of the training targets: the requested one, or that of their values.

        Args:
            columns: the values of the rows that have a target.
            task: "auto" or a task.
            count: number of all training rows.
        """
        if not columns[0] and count:
            raise InputError(
                f"cannot use the column {self._quoted()} of {self.where}: expected a value in some training rows, got "
                f"none in {count:,}. Choose another --target."
            )
        lists = [value for value in columns[0] if isinstance(value, list)]
        self._refuse_vectors(lists)
        is_lists = bool(lists)
        if len(columns) > 1:
            if task == "classification":
                raise InputError(
                    f"cannot classify {self.where}: expected one target column, got {len(columns)}. Use --task "
                    "multilabel for columns of 0 and 1, or --task regression for numbers."
                )
            is_binary = all(value in (0, 1) for value in chain.from_iterable(columns))
            return "multilabel" if task == "multilabel" or (task == "auto" and is_binary) else "regression"
        if is_lists and task in ("classification", "regression"):
            raise InputError(
                f"cannot use the column {self._quoted()} of {self.where}: expected one value per image for --task "
                f"{task}, got lists. Use --task multilabel, or drop --task."
            )
        if task == "multilabel" and not is_lists and columns[0]:
            raise InputError(
                f"cannot use the column {self._quoted()} of {self.where}: expected lists of labels for --task "
                "multilabel, got single values. Add --label-sep, or drop --task."
            )
        if is_lists:
            return "multilabel"
        return "regression" if task == "regression" else "classification"

    def _refuse_vectors(self, lists: list[list[Any]]) -> None:
        """Raise InputError for vectors of 0 and 1, which are not lists of the labels 0 and 1."""
        lengths, values = set(map(len, lists)), set(chain.from_iterable(lists))
        if len(lengths) == 1 and values <= {0, 1} and any(len(set(row)) < len(row) for row in lists):
            raise InputError(
                f"cannot use the column {self._quoted()} of {self.where}: expected lists of labels, got vectors of "
                f"{lengths.pop()} numbers. Store the names of the labels, or a column for each number."
            )

    def class_names(
        self, values: Values, declared: list[str] | None, task: TaskName, *, allow_empty: bool, warnings: list[str]
    ) -> tuple[str, ...]:
        """Return the classes or labels of the training set, in the declared order if there is one, else sorted."""
        where, label = self.where, self._quoted()
        present = set(chain.from_iterable(values) if task == "multilabel" else values)
        names = declared or [_name(v) for v in sorted(present, key=lambda v: (isinstance(v, str), v))]
        if len(set(names)) != len(names):
            raise InputError(
                f"cannot use the column {label} of {where}: expected unique class names, got duplicates. Rename them."
            )
        unused = [name for name in names if declared and name not in present]
        if unused and not allow_empty:
            raise InputError(
                f"cannot use {where}: expected training images of every class, found none of {printable(unused[0])!r}"
                + (f" and {len(unused) - 1} more" if len(unused) > 1 else "")
                + ". Add images, or use --allow-empty-classes."
            )
        if unused:
            warnings.append(f"ignored classes without training images: {', '.join(map(printable, unused[:20]))}")
        names = [name for name in names if name not in set(unused)]
        if len(names) < (1 if task == "multilabel" else self.least):
            least = count_of(self.least, "class", "classes")
            raise InputError(
                f"cannot use the column {label} of {where}: expected at least {least}, got {len(names)}. Add images of "
                "other classes."
            )
        return tuple(names)

    def targets(
        self, split: str, columns: list[Values], labeled: np.ndarray, task: TaskName, names: tuple[str, ...]
    ) -> np.ndarray:
        """Return the targets of the labeled rows of a split, as in a Source."""
        rows = np.flatnonzero(labeled).tolist()
        if task == "regression" or len(columns) > 1:
            numbers = [
                [self._number(split, row, i, values[row], task) for row in rows] for i, values in enumerate(columns)
            ]
            kind = np.float64 if task == "regression" else np.float32
            return np.array(numbers, kind).T.reshape(len(rows), len(columns))
        index = {name: i for i, name in enumerate(names)}
        if task == "classification":
            return np.array([self._index(split, row, columns[0][row], index) for row in rows], np.int64)
        labels = np.zeros((len(rows), len(names)), np.float32)
        for i, row in enumerate(rows):
            labels[i, [self._index(split, row, label, index) for label in columns[0][row]]] = 1
        return labels

    def _index(self, split: str, row: int, value: Any, index: dict[str, int]) -> int:
        """Return the index of a class or label."""
        if isinstance(value, float) and not value.is_integer():
            raise InputError(
                f"cannot use row {row} of the {split} set of {self.where}: expected a class in the column "
                f"{self._quoted()}, got the number {value:g}. Use --task regression."
            )
        name = _name(value)
        if name not in index:
            raise InputError(
                f"cannot use row {row} of the {split} set of {self.where}: expected a class of the training set, "
                f"got {printable(name)}. Correct the column {self._quoted()}, or remove the row."
            )
        return index[name]

    def _number(self, split: str, row: int, column: int, value: Any, task: TaskName) -> float:
        """Return a number, or the presence of a label."""
        is_number = isinstance(value, int | float) and np.isfinite(value)
        if not is_number or (task == "multilabel" and value not in (0, 1)):
            expected = "a finite number" if task == "regression" else "0 or 1"
            raise InputError(
                f"cannot use row {row} of the {split} set of {self.where}: expected {expected} in the column "
                f"{printable(self.names[column])!r}, got {printable(value)[:60]}. Correct the value, or drop --task."
            )
        return float(value)

    def _quoted(self) -> str:
        return repr(printable(self.names[0]))


def _name(value: Any) -> str:
    """Return the class name of a value; the float 1.0 is the class "1"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
