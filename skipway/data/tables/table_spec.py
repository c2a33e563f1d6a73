"""TableSpec: how the rows of a table become what a network is given, and what its outputs mean.

It is to tables what Spec is to pictures: plain values that travel in every file, so that a table met years later is
read as in training. Columns are found by name; the target is never needed.

Shapes: F numbers and indicators, K category columns: x (N, F + K), whose last K columns are slots of categories.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from skipway.data.sources.csv_parser import MOST_COLUMNS
from skipway.data.sources.read_table import Table, listed
from skipway.data.tables.columns import ABSENT, KINDS, UNSEEN, Column, Problem, plain, refusal
from skipway.errors import InputError, printable

__all__ = ["TASKS", "Encoded", "TableSpec"]

TASKS = ("classification", "regression")
_MOST_NAMES = 100_000  # class names, and categories of all columns together: they stand in every file's header
_MOST_BYTES = 1024  # of a name
_FIELDS = {"columns", "target", "task", "class_names", "target_mean", "target_std"}


@dataclass(frozen=True)
class Encoded:
    """x (N, F + K) float32; cells of no use; {column: values never seen in training}; {column: values missing}."""

    x: np.ndarray
    problems: list[Problem]
    unseen: Counter[str]
    missing: Counter[str]


@dataclass(frozen=True)
class TableSpec:
    """Inputs (B, F + K) made of `columns`, and the meaning of the outputs.

    Outputs are (B, len(class_names)) logits for the task "classification", and for "regression" (B, 1) numbers whose
    unit is `target_std` around `target_mean`.
    """

    columns: tuple[Column, ...]
    target: str
    task: str
    class_names: tuple[str, ...] = ()
    target_mean: float = 0.0
    target_std: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.task not in TASKS:
            raise InputError(f"a TableSpec's task is one of {', '.join(TASKS)}, not {printable(self.task)!r}")
        if not 1 <= len(self.columns) <= MOST_COLUMNS or len({c.name for c in self.columns}) != len(self.columns):
            raise InputError(f"a TableSpec has 1 to {MOST_COLUMNS:,} columns of different names")
        for column in self.columns:
            if column.kind not in KINDS:
                raise InputError(f"a TableSpec's columns are of the kinds {', '.join(KINDS)}, not {column.kind!r}")
            if not (math.isfinite(column.center) and math.isfinite(column.scale) and column.scale > 0):
                raise InputError("a TableSpec needs finite centres and positive scales")
            _check_names(column.categories)
        if sum(len(c.categories) for c in self.columns) > _MOST_NAMES or len(self.class_names) > _MOST_NAMES:
            raise InputError(
                f"a TableSpec holds at most {_MOST_NAMES:,} categories and class names; leave columns of many "
                "categories out with --ignore"
            )
        if (self.task == "classification") != bool(self.class_names):
            raise InputError("a TableSpec has class names for classification, and none for regression")
        _check_names(self.class_names)
        if not (math.isfinite(self.target_mean) and math.isfinite(self.target_std) and self.target_std > 0):
            raise InputError("a TableSpec needs a finite mean and a positive deviation of its target")

    @property
    def num_classes(self) -> int:
        """How many outputs there are: one for each class, or one number."""
        return len(self.class_names) or 1

    @property
    def numbers(self) -> tuple[Column, ...]:
        """The columns of numbers, in the order of their inputs."""
        return tuple(c for c in self.columns if c.kind != "category")

    @property
    def indicated(self) -> tuple[Column, ...]:
        """Those of `numbers` whose missing values have an input of their own, after all numbers."""
        return tuple(c for c in self.numbers if c.indicator)

    @property
    def sorts(self) -> tuple[Column, ...]:
        """The columns of categories, whose slots stand last."""
        return tuple(c for c in self.columns if c.kind == "category")

    @property
    def categories(self) -> tuple[int, ...]:
        """(K,) how many slots each column of categories has."""
        return tuple(c.slots for c in self.sorts)

    @property
    def input_shape(self) -> tuple[int]:
        """(F + K,) of one row."""
        return (len(self.numbers) + len(self.indicated) + len(self.sorts),)

    def encode(self, table: Table) -> Encoded:
        """The rows of `table` as the network is given them; further columns are passed over.

        Raises:
            InputError: the table lacks columns; names them.
        """
        lacking = [c.name for c in self.columns if c.name not in table.columns]
        if lacking:
            raise InputError(
                f"{printable(table.name)} lacks {len(lacking)} of the {len(self.columns)} columns that the network was "
                f"trained with: {listed(lacking)}; add them (empty where nothing is known), or name them as in training"
            )
        x = np.empty((len(table), *self.input_shape), np.float32)
        problems: list[Problem] = []
        unseen, missing = Counter[str](), Counter[str]()
        extra = len(self.numbers)
        for i, column in enumerate(self.numbers):
            values, bad = column.numbers(table.columns[column.name])
            absent = np.isnan(values)
            problems += bad
            if absent.any() and (count := int(absent.sum()) - len(bad)):
                missing[column.name] = count
            x[:, i] = column.scaled(values)
            if column.indicator:
                x[:, extra] = absent
                extra += 1
        for i, column in enumerate(self.sorts, extra):
            places = column.places(table.columns[column.name])
            x[:, i] = places
            if count := int((places == UNSEEN).sum()):
                unseen[column.name] = count
            if count := int((places == ABSENT).sum()):
                missing[column.name] = count
        return Encoded(x, problems, unseen, missing)

    def encode_whole(self, table: Table) -> Encoded:
        """As `encode`, where every cell must be fit for use: else the first that is not is named."""
        encoded = self.encode(table)
        if encoded.problems:
            raise InputError(refusal(encoded.problems, table.at))
        return encoded

    def as_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "columns": [plain(c) for c in self.columns],
            "target": self.target,
            "task": self.task,
            "class_names": list(self.class_names),
            "target_mean": self.target_mean,
            "target_std": self.target_std,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TableSpec":
        """The TableSpec that `as_dict` wrote."""
        if not isinstance(values, dict) or set(values) != _FIELDS:
            raise InputError(f"a TableSpec has the fields {', '.join(sorted(_FIELDS))}; the file's differ")
        try:
            columns = tuple(
                Column(
                    str(c["name"]),
                    str(c["kind"]),
                    float(c.get("center", 0)),
                    float(c.get("scale", 1)),
                    bool(c.get("indicator", False)),
                    tuple(c.get("categories", ())),
                )
                for c in values["columns"]
            )
            mean, std = float(values["target_mean"]), float(values["target_std"])
            names = tuple(values["class_names"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(
                f"a TableSpec's columns and numbers are not as they should be: {printable(error)}"
            ) from None
        return cls(columns, str(values["target"]), str(values["task"]), names, mean, std)


def _check_names(names: tuple[str, ...]) -> None:
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise InputError("a TableSpec's categories and class names are texts that differ from each other")
    for name in names:
        if len(name.encode("utf-8", "surrogatepass")) > _MOST_BYTES:
            raise InputError(f"the category {printable(name[:40])}... is longer than {_MOST_BYTES} bytes; leave it out")
