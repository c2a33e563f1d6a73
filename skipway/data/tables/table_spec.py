"""TableSpec: how the rows of a table become what a network is given, and what its outputs mean.

It is to tables what Spec is to images: plain values that travel in every file, so that a table met years later is
read as in training. Columns are found by name; the target is never needed.

Shapes: F numbers and indicators, K category columns: x (N, F + K), whose last K columns are slots of categories.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np

from skipway.data.sources.csv_parser import MAX_COLUMNS
from skipway.data.sources.read_table import Table, join_quoted
from skipway.data.tables.columns import (
    ABSENT,
    KINDS,
    UNSEEN,
    Column,
    ColumnKind,
    Problem,
    column_to_dict,
    describe_problems,
)
from skipway.errors import InputError, printable

__all__ = ["TASKS", "Encoded", "TableSpec", "TableTask"]

TableTask = Literal["classification", "regression"]
TASKS: tuple[TableTask, ...] = get_args(TableTask)
_MAX_NAMES = 100_000  # class names, and categories of all columns together: they stand in every file's header
_MAX_NAME_BYTES = 1024  # of a name
_FIELDS = {"columns", "target", "task", "class_names", "target_mean", "target_std"}


@dataclass(frozen=True)
class Encoded:
    """x (N, F + K) float32; cells of no use; {column: values never seen in training}; {column: values missing}."""

    x: np.ndarray
    problems: list[Problem]
    unseen: Counter[str]
    missing: Counter[str]

    def remarks(self) -> list[str]:
        """Return a line for each column with values that were not seen in training, or are missing."""
        unseen = [
            f"{n:,} values of {printable(c)!r} were rarely or never seen in training" for c, n in self.unseen.items()
        ]
        return unseen + [f"{n:,} values of {printable(c)!r} are missing" for c, n in self.missing.items()]


@dataclass(frozen=True)
class TableSpec:
    """Inputs (B, F + K) made of `columns`, and the meaning of the outputs.

    Outputs are (B, len(class_names)) logits for the task "classification", and for "regression" (B, 1) numbers whose
    unit is `target_std` around `target_mean`.
    """

    columns: tuple[Column, ...]
    target: str
    task: TableTask
    class_names: tuple[str, ...] = ()
    target_mean: float = 0.0
    target_std: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.task not in TASKS:
            raise InputError(f"a TableSpec's task is one of {', '.join(TASKS)}, not {printable(self.task)!r}")
        if not 1 <= len(self.columns) <= MAX_COLUMNS or len({c.name for c in self.columns}) != len(self.columns):
            raise InputError(f"a TableSpec has 1 to {MAX_COLUMNS:,} columns of different names")
        for column in self.columns:
            if column.kind not in KINDS:
                raise InputError(f"a TableSpec's columns are of the kinds {', '.join(KINDS)}, not {column.kind!r}")
            if not (math.isfinite(column.center) and math.isfinite(column.scale) and column.scale > 0):
                raise InputError("a TableSpec needs finite centres and positive scales")
            _check_names(column.categories)
        if sum(len(c.categories) for c in self.columns) > _MAX_NAMES or len(self.class_names) > _MAX_NAMES:
            raise InputError(
                f"a TableSpec holds at most {_MAX_NAMES:,} categories and class names; leave columns of many "
                "categories out with --ignore"
            )
        if (self.task == "classification") != bool(self.class_names):
            raise InputError("a TableSpec has class names for classification, and none for regression")
        _check_names(self.class_names)
        if not (math.isfinite(self.target_mean) and math.isfinite(self.target_std) and self.target_std > 0):
            raise InputError("a TableSpec needs a finite mean and a positive deviation of its target")

    @property
    def num_classes(self) -> int:
        """Return how many outputs there are: one for each class, or one number."""
        return len(self.class_names) or 1

    @property
    def number_columns(self) -> tuple[Column, ...]:
        """Return the columns of numbers, in the order of their inputs."""
        return tuple(c for c in self.columns if c.kind != "category")

    @property
    def indicator_columns(self) -> tuple[Column, ...]:
        """Return those of `number_columns` whose missing values have an input of their own, after all numbers."""
        return tuple(c for c in self.number_columns if c.indicator)

    @property
    def category_columns(self) -> tuple[Column, ...]:
        """Return the columns of categories, whose slots stand last."""
        return tuple(c for c in self.columns if c.kind == "category")

    @property
    def categories(self) -> tuple[int, ...]:
        """Return (K,) how many slots each column of categories has."""
        return tuple(c.num_slots for c in self.category_columns)

    @property
    def input_shape(self) -> tuple[int]:
        """Return (F + K,) of one row."""
        return (len(self.number_columns) + len(self.indicator_columns) + len(self.category_columns),)

    def encode(self, table: Table) -> Encoded:
        """Encode the rows of `table` as the network gets them; further columns are passed over.

        Raises:
            InputError: the table lacks columns; names them.
        """
        lacking = [c.name for c in self.columns if c.name not in table.columns]
        if lacking:
            raise InputError(
                f"{printable(table.name)} lacks {len(lacking)} of the {len(self.columns)} columns that the network was "
                f"trained with: {join_quoted(lacking)}; add them (empty where nothing is known), or name them as in "
                "training"
            )
        x = np.empty((len(table), *self.input_shape), np.float32)
        problems: list[Problem] = []
        unseen, missing = Counter[str](), Counter[str]()
        indicator = len(self.number_columns)
        for i, column in enumerate(self.number_columns):
            values, unreadable = column.read_numbers(table.columns[column.name])
            is_missing = np.isnan(values)
            problems += unreadable
            if is_missing.any() and (count := int(is_missing.sum()) - len(unreadable)):
                missing[column.name] = count
            x[:, i] = column.scaled(values)
            if column.indicator:
                x[:, indicator] = is_missing
                indicator += 1
        for i, column in enumerate(self.category_columns, indicator):
            slots = column.slot_indices(table.columns[column.name])
            x[:, i] = slots
            if count := int((slots == UNSEEN).sum()):
                unseen[column.name] = count
            if count := int((slots == ABSENT).sum()):
                missing[column.name] = count
        return Encoded(x=x, problems=problems, unseen=unseen, missing=missing)

    def encode_strict(self, table: Table) -> Encoded:
        """Encode as `encode` does, but refuse a table with cells that cannot be used, and name the first of them."""
        encoded = self.encode(table)
        if encoded.problems:
            raise InputError(describe_problems(encoded.problems, table.row_name))
        return encoded

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return {
            "columns": [column_to_dict(c) for c in self.columns],
            "target": self.target,
            "task": self.task,
            "class_names": list(self.class_names),
            "target_mean": self.target_mean,
            "target_std": self.target_std,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TableSpec":
        """Rebuild the TableSpec that `as_dict` wrote."""
        if not isinstance(values, dict) or set(values) != _FIELDS:
            raise InputError(f"a TableSpec has the fields {', '.join(sorted(_FIELDS))}; the file's differ")
        try:
            columns = tuple(
                Column(
                    name=str(c["name"]),
                    kind=cast(ColumnKind, str(c["kind"])),  # checked by the TableSpec
                    center=float(c.get("center", 0)),
                    scale=float(c.get("scale", 1)),
                    indicator=bool(c.get("indicator", False)),
                    categories=tuple(c.get("categories", ())),
                )
                for c in values["columns"]
            )
            mean, std = float(values["target_mean"]), float(values["target_std"])
            names = tuple(values["class_names"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(
                f"a TableSpec's columns and numbers are not as they should be: {printable(error)}"
            ) from None
        return cls(
            columns=columns,
            target=str(values["target"]),
            task=cast(TableTask, str(values["task"])),
            class_names=names,
            target_mean=mean,
            target_std=std,
        )


def _check_names(names: tuple[str, ...]) -> None:
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise InputError("a TableSpec's categories and class names are texts that differ from each other")
    for name in names:
        if len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES:
            raise InputError(
                f"the category {printable(name[:40])}... is longer than {_MAX_NAME_BYTES} bytes; leave it out"
            )
