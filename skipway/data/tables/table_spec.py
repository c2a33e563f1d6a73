"""TableSpec: the encoders of a model's input columns and the meaning of its outputs.

Every checkpoint and export contains the TableSpec, so that tables are encoded at inference as in training. Columns are
found by name, and the target column is not required.

Shapes: x is (N, F + K): F numbers and indicators, then the indices of K category columns. A column of dates has several
numbers.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from skipway.data.output_spec import MAX_NAMES, OUTPUT_FIELDS, OutputSpec, TaskName, check_texts
from skipway.data.sources.csv_parser import MAX_COLUMNS
from skipway.data.sources.table import Table, join_quoted
from skipway.data.tables.columns import (
    ABSENT,
    KINDS,
    Column,
    Problem,
    column_to_dict,
    columns_from_dicts,
)
from skipway.data.tables.find_odd_cells import cell_texts, odd_categories, odd_numbers
from skipway.data.tables.missing_markers import mark_missing
from skipway.data.tables.number_columns import describe_problems
from skipway.data.tables.number_inference import MAX_ODD
from skipway.data.tables.number_style import NumberStyle, style_from_dict, style_to_dict
from skipway.data.tables.odd_cells import OddCells, Oddity, join_remarks
from skipway.errors import InputError, printable

__all__ = ["Encoded", "TableSpec"]


@dataclass(frozen=True)
class Encoded:
    """Encoded rows of a table.

    Attributes:
        x: (N, F + K) float32.
        problems: cells that cannot be used.
        missing: {column: number of missing values}.
        odd: cells that are not as in training.
    """

    x: np.ndarray
    problems: list[Problem]
    missing: Counter[str]
    odd: list[OddCells] = field(default_factory=list)

    @property
    def unseen(self) -> dict[str, int]:
        """{column: number of values rarely or never seen in training}."""
        return {cells.column: len(cells.rows) for cells in self.odd if cells.oddity is Oddity.UNSEEN}

    @property
    def odd_lines(self) -> list[str]:
        """Lines on cells that are read as missing or as a bound such as <5, or that are outside of a range."""
        counted = (Oddity.UNSEEN, Oddity.MISSING)
        return [cells.line for cells in self.odd if cells.oddity not in counted]

    def remarks(self) -> list[str]:
        """Return a line for each column with unseen, missing or unusual values."""
        unseen = [cells.line for cells in self.odd if cells.oddity is Oddity.UNSEEN]
        missing = [f"missing values of {printable(c)!r}: {n:,}" for c, n in self.missing.items()]
        return self.odd_lines + unseen + missing

    def errors(self) -> dict[int, str]:
        """Return the first cell that cannot be used of each row that has one, with the reason."""
        errors: dict[int, str] = {}
        for problem in sorted(self.problems, key=lambda problem: problem.row):
            errors.setdefault(problem.row, problem.describe())
        return errors

    def row_remarks(self) -> dict[int, str]:
        """Return remarks on the odd cells of each row that has some, and on further cells that cannot be used."""
        errors = self.errors()
        problems = ((problem.row, problem.describe()) for problem in self.problems)
        further = ((row, text) for row, text in problems if text != errors[row])
        return join_remarks(chain(further, *(cells.remarks() for cells in self.odd)))


@dataclass(frozen=True)
class TableSpec(OutputSpec):
    """Encoders of table rows to inputs (B, F + K), and the meaning of the outputs (B, num_outputs).

    Args:
        columns: encoders of the input columns.
        target_names, task, class_names, target_mean, target_std, thresholds, label_sep: see `OutputSpec`.
        target_styles: how the numbers of each target are written; empty for text, and for models of earlier versions.
        id_names: columns that name the rows, which are no inputs and are copied by predict.
        missing: texts that mean a missing value in all columns, or as COLUMN=TEXT in one; see `missing_markers`.

    Raises:
        InputError: a value is out of range, or values contradict each other.

    >>> from skipway.data.tables.columns import Column
    >>> columns = (Column("size", "number", center=80.0, scale=20.0), Column("city", "category", categories=("Bonn",)))
    >>> spec = TableSpec(columns, target_names=("price",), task="regression")
    >>> spec.input_shape, spec.num_outputs
    ((2,), 1)
    """

    kind: ClassVar[str] = "a TableSpec"

    columns: tuple[Column, ...]
    target_names: tuple[str, ...]
    task: TaskName = "classification"
    class_names: tuple[str, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()
    label_sep: str = ""
    target_styles: tuple[NumberStyle, ...] = field(default=(), repr=False)  # as in `Column.style`
    id_names: tuple[str, ...] = field(default=(), repr=False)  # likewise
    missing: tuple[str, ...] = field(default=(), repr=False)  # likewise

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        self._check_outputs()
        check_texts(self.id_names, self.kind, "id columns")
        unique = len({c.name for c in self.columns})
        if not 1 <= len(self.columns) <= MAX_COLUMNS or unique != len(self.columns):
            raise InputError(
                f"cannot create a TableSpec: expected 1 to {MAX_COLUMNS:,} columns with unique names, got "
                f"{len(self.columns):,} columns with {unique:,} names. Remove or rename columns."
            )
        for column in self.columns:
            if column.kind not in KINDS:
                raise InputError(
                    f"cannot create a TableSpec: expected columns of the kinds {', '.join(KINDS)}, got "
                    f"{printable(column.kind)!r}. Choose one of these."
                )
            if not (math.isfinite(column.center) and math.isfinite(column.scale) and column.scale > 0):
                raise InputError(
                    f"cannot create a TableSpec: expected a finite center and a positive, finite scale, got "
                    f"{column.center} and {column.scale}. Fit the column again."
                )
            check_texts(column.categories, self.kind, "categories")
        check_texts(self.missing, self.kind, "missing markers")
        if self.target_styles and len(self.target_styles) != len(self.target_names):
            raise InputError(
                f"cannot create a TableSpec: expected a style for each of {len(self.target_names)} targets, got "
                f"{len(self.target_styles)}. Use a file saved by skipway."
            )
        if sum(len(c.categories) for c in self.columns) > MAX_NAMES:
            raise InputError(
                f"cannot create a TableSpec: expected at most {MAX_NAMES:,} categories. Use --ignore for columns with "
                "many categories."
            )

    @property
    def number_columns(self) -> tuple[Column, ...]:
        """Columns of numbers, booleans and dates, in the order of their inputs; see `Column.num_inputs`."""
        return tuple(c for c in self.columns if c.kind != "category")

    @property
    def indicator_columns(self) -> tuple[Column, ...]:
        """Numeric columns with an indicator input for missing values; indicators follow all numbers."""
        return tuple(c for c in self.number_columns if c.indicator)

    @property
    def category_columns(self) -> tuple[Column, ...]:
        """Category columns, whose indices are the last inputs."""
        return tuple(c for c in self.columns if c.kind == "category")

    @property
    def num_numbers(self) -> int:
        """Number of inputs of the numeric columns, without indicators."""
        return sum(c.num_inputs for c in self.number_columns)

    @property
    def categories(self) -> tuple[int, ...]:
        """Number of indices of each category column, of length K."""
        return tuple(c.num_slots for c in self.category_columns)

    @property
    def input_shape(self) -> tuple[int]:
        """Shape (F + K,) of one encoded row."""
        return (self.num_numbers + len(self.indicator_columns) + len(self.category_columns),)

    def number_inputs(self) -> Iterator[tuple[Column, slice, int | None]]:
        """Yield each numeric column with the places of its inputs, and that of its indicator or None."""
        start, indicator = 0, self.num_numbers
        for column in self.number_columns:
            yield column, slice(start, start + column.num_inputs), indicator if column.indicator else None
            start += column.num_inputs
            indicator += column.indicator

    def random_rows(self, count: int) -> np.ndarray:
        """Return random encoded rows (count, F + K) float32, always the same, to try a network on."""
        generator = np.random.default_rng(0)
        numbers = generator.normal(size=(count, self.num_numbers))
        indicators = generator.integers(0, 2, (count, len(self.indicator_columns)))
        slots = generator.integers(0, self.categories, (count, len(self.category_columns)))
        return np.concatenate([numbers, indicators, slots], 1).astype(np.float32)

    def encode(self, table: Table) -> Encoded:
        """Encode the rows of a table; columns that are not in `columns` are ignored.

        Cells that cannot be used are encoded as missing and listed in `problems`.

        Raises:
            InputError: the table lacks columns.
        """
        lacking = [c.name for c in self.columns if c.name not in table.columns]
        if lacking:
            raise InputError(
                f"cannot encode {printable(table.name)}: expected {len(self.columns)} columns as in training, got all "
                f"but {join_quoted(lacking)}. Add these columns (empty if unknown), or rename columns as in training."
            )
        table = self.with_missing(table)
        x = np.empty((len(table), *self.input_shape), np.float32)
        problems: list[Problem] = []
        odd: list[OddCells] = []
        missing = Counter[str]()
        for column, places, indicator in self.number_inputs():
            cells = column.read_cells(table.columns[column.name])
            is_missing = np.isnan(cells.values)
            problems += cells.problems
            odd += odd_numbers(column, table.columns[column.name], cells)
            if is_missing.any() and (count := int(is_missing.sum()) - len(cells.problems)):
                missing[column.name] = count
            x[:, places] = column.encoded(cells.values)
            if indicator is not None:
                x[:, indicator] = is_missing
        for i, column in enumerate(self.category_columns, self.num_numbers + len(self.indicator_columns)):
            slots = column.slot_indices(table.columns[column.name])
            x[:, i] = slots
            odd += odd_categories(column, table.columns[column.name], slots)
            if count := int((slots == ABSENT).sum()):
                missing[column.name] = count
        return Encoded(x=x, problems=problems, missing=missing, odd=odd)

    def with_missing(self, table: Table) -> Table:
        """Return a table without the cells that hold one of the missing markers."""
        return mark_missing(table, self.missing, [*(c.name for c in self.columns), *self.target_names])[0]

    def encode_strict(self, table: Table, *, allow_odd: bool = False) -> Encoded:
        """Encode the rows of a table, and require that all cells can be used.

        Args:
            table: the table.
            allow_odd: accept a share of texts in each column of numbers up to `MAX_ODD`, as missing values with a line
                in `odd`. Rows with a target are encoded so.

        Raises:
            InputError: the table lacks columns, or has cells that cannot be used.
        """
        encoded = self.encode(table)
        problems = encoded.problems
        if problems and allow_odd:
            texts = Counter(problem.column for problem in problems if problem.is_text)
            few = {name: count for name, count in texts.items() if count <= MAX_ODD * len(table)}
            for name, count in few.items():
                encoded.missing[name] += count
                rows = np.array([p.row for p in problems if p.is_text and p.column == name])
                encoded.odd.append(OddCells(name, Oddity.TEXT, rows, cell_texts(table.columns[name], rows)))
            problems = [problem for problem in problems if not (problem.is_text and problem.column in few)]
        if problems:
            raise InputError(describe_problems(problems, table.row_name))
        return encoded

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can represent."""
        values = {"columns": [column_to_dict(c) for c in self.columns], "task": self.task, **self.output_dict()}
        if self.target_styles:
            values["target_styles"] = list(map(style_to_dict, self.target_styles))
        if self.id_names:
            values["id_names"] = list(self.id_names)
        if self.missing:
            values["missing"] = list(self.missing)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TableSpec":
        """Create a TableSpec from the values that `as_dict` returned.

        Args:
            values: the fields.

        Raises:
            InputError: fields are missing or unknown, or a value cannot be used.
        """
        values = _as_lists(values) if isinstance(values, dict) else {}
        expected = {"columns", "task", "class_names", "target_names"}
        if not expected <= set(values) <= {"columns", "target_styles", "id_names", "missing", *OUTPUT_FIELDS}:
            names = sorted(map(str, values))
            raise InputError(
                f"cannot read a TableSpec: expected the fields {', '.join(sorted(expected))}, got "
                f"{', '.join(printable(name)[:40] for name in names[:12]) or 'no fields'}. Use a file saved by skipway."
            )
        try:
            columns = columns_from_dicts(values["columns"])
            styles = tuple(map(style_from_dict, values.get("target_styles", ())))
            id_names = tuple(values.get("id_names", ()))
            missing = tuple(values.get("missing", ()))
            outputs = cls.output_fields(values)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(
                f"cannot read a TableSpec: expected valid columns and numbers, got {printable(error)[:200]}. Use a "
                "file saved by skipway."
            ) from None
        return cls(columns=columns, target_styles=styles, id_names=id_names, missing=missing, **outputs)


def _as_lists(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a file, with the single target of an older version as lists of one."""
    values = dict(values)
    if "target" not in values:
        return values
    values["target_names"] = [str(values.pop("target"))]
    for name in ("target_mean", "target_std"):
        number = values.pop(name, None)
        if values.get("task") == "regression":
            values[name] = [number]
    return values
