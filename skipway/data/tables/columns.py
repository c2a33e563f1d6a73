"""Columns: inference of column kinds, and encoding of columns to numbers.

The kind of a column is inferred from all rows of the training table. Centers, scales and categories are fitted to the
training rows only.
Sources: robust scale and smooth clip, Holzmueller et al. 2024, arXiv:2407.04491.
"""

import re
from collections import ChainMap, Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import numpy as np

from skipway.data.sources.table import Table
from skipway.data.sources.text_column import MISSING, Cells, TextColumn, value_text, without_texts
from skipway.data.tables.date_columns import DateEncoder, fit_dates
from skipway.data.tables.date_formats import DateFormat, example_of, infer_date_format, parse_dates
from skipway.data.tables.number_cells import CellRole
from skipway.data.tables.number_columns import (
    NumberCells,
    Problem,
    infer_column_style,
    inspect_column,
    read_number_cells,
)
from skipway.data.tables.number_style import NumberStyle, style_from_dict, style_to_dict
from skipway.errors import printable

__all__ = [
    "IDENTIFIER",
    "KINDS",
    "MAX_CATEGORIES",
    "ROW_COUNTER",
    "CellStyle",
    "Column",
    "ColumnKind",
    "Problem",
    "as_texts",
    "column_to_dict",
    "columns_from_dicts",
    "describe_problems",
    "factorize_texts",
    "fit_column",
    "infer_cell_style",
    "infer_kind",
    "missing_mask",
    "read_numbers",
]

CellStyle = NumberStyle | DateFormat
ColumnKind = Literal["number", "boolean", "date", "category"]
IDENTIFIER, ROW_COUNTER = "identifier: all values differ", "row counter"  # reasons for leaving a column out
KINDS: tuple[ColumnKind, ...] = get_args(ColumnKind)
MAX_CATEGORIES = 1000  # per column; rarer categories are encoded as unseen
UNSEEN, ABSENT, FIRST = 0, 1, 2  # indices in a category column: unseen, missing, first category
_CLIP = 3.0  # bound of the smooth clipping
_MOSTLY = 0.9  # share of values of one kind, from which the others are errors rather than categories
_FEW = 20  # in fewer rows, the values of any column may all differ
_NO_VALUE = MISSING | {"none", "-", "."}
_WHOLE = re.compile(r"0*([0-9]+)(?:\.0+)?")
_TRUTHS = ({"true": 1.0, "false": 0.0}, {"yes": 1.0, "no": 0.0}, {"t": 1.0, "f": 0.0}, {"y": 1.0, "n": 0.0})
_TRUTH = dict(ChainMap(*_TRUTHS))


@dataclass(frozen=True)
class Column:
    """Encoder of one column.

    Numbers, booleans and dates are encoded as (value - center) / scale, smoothly clipped to [-3, 3]. Missing values are
    encoded as 0. Dates have further inputs: the parts of the calendar that vary in the training rows. Categories are
    encoded as indices: 0 for unseen, 1 for missing, then `categories` in their order.

    Args:
        name: name of the column.
        kind: "number", "boolean", "date" or "category".
        center: median of the training rows.
        scale: robust standard deviation of the training rows.
        indicator: True if an additional input marks missing values.
        categories: categories that occur at least twice in the training rows.
        are_codes: True if all categories are digits, such as zip codes: 00137 is also found as 137 or 137.0, as other
            programs write it.
        style: how the numbers are written; None for other kinds, and for models of earlier versions, which read the
            numbers of each table in a style of its own.
        dates: format and parts of a column of dates; None for dates of earlier versions, whose only input is the trend.

    >>> Column("city", "category", categories=("Bonn", "Trier")).num_slots
    4
    """

    name: str
    kind: ColumnKind
    center: float = 0.0
    scale: float = 1.0
    indicator: bool = False
    categories: tuple[str, ...] = ()
    style: NumberStyle | None = field(default=None, repr=False)  # fingerprints of earlier runs have the repr without it
    dates: DateEncoder | None = field(default=None, repr=False)  # likewise
    are_codes: bool = field(default=False, repr=False)  # likewise

    @property
    def cell_style(self) -> CellStyle | None:
        """Style of the numbers or format of the dates of the column."""
        return self.dates.date_format if self.dates else self.style

    @property
    def num_inputs(self) -> int:
        """Number of inputs of a column that is no category column, without the indicator."""
        return 1 + (self.dates.num_inputs if self.dates else 0)

    @property
    def num_slots(self) -> int:
        """Number of indices of a category column, with those for unseen and missing values."""
        return FIRST + len(self.categories)

    def read_numbers(self, raw: Cells) -> tuple[np.ndarray, list[Problem]]:
        """Parse (N,) values as float64; see the function `read_numbers`."""
        return read_numbers(raw, self.kind, self.name, self.cell_style)

    def read_cells(self, raw: Cells) -> NumberCells:
        """Parse (N,) values as float64, with remarks."""
        if self.kind == "number":
            return read_number_cells(raw, self.name, self.style)
        return NumberCells(*self.read_numbers(raw))

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Encode (N,) numbers as float32, with 0 for NaN."""
        with np.errstate(over="ignore"):
            z = np.clip((values - self.center) / self.scale, -1e6, 1e6)
        return np.nan_to_num(z / np.sqrt(1 + (z / _CLIP) ** 2), nan=0.0).astype(np.float32)

    def encoded(self, values: np.ndarray) -> np.ndarray:
        """Encode (N,) numbers as inputs (N, `num_inputs`) float32, with 0 for NaN."""
        inputs = [self.scaled(values)[:, None]]
        if self.dates:
            if self.dates.has_year:
                inputs.append(self.scaled(self.dates.year_starts(values))[:, None])
            inputs.append(self.dates.cycles(values))
        return np.concatenate(inputs, axis=1)

    def slot_indices(self, raw: Cells) -> np.ndarray:
        """Encode (N,) categories as indices."""
        slot = {name: FIRST + i for i, name in enumerate(self.categories)}
        codes, texts = factorize_texts(raw)
        slots = [slot.get(text, UNSEEN) for text in texts]
        if self.are_codes and UNSEEN in slots:
            values = Counter(map(_code_value, self.categories))
            by_value = {_code_value(name): index for name, index in slot.items() if values[_code_value(name)] == 1}
            slots = [index or by_value.get(_code_value(text), UNSEEN) for text, index in zip(texts, slots, strict=True)]
        return np.array([*slots, ABSENT], np.int64)[codes]


def as_texts(raw: Cells) -> TextColumn:
    """Convert a column to text, with None for missing values; the number 1.0 becomes "1"."""
    import pandas as pd

    if isinstance(raw, TextColumn):
        return raw
    if raw.dtype == object:
        return TextColumn.of(raw)
    codes, values = pd.factorize(raw)
    return TextColumn.of_codes(codes, [value_text(float(value)) for value in values])


def factorize_texts(raw: Cells) -> tuple[np.ndarray, list[str]]:
    """Return (N,) codes, with -1 for missing values, and the distinct texts of a column."""
    return as_texts(raw).factorize_present()


def missing_mask(raw: Cells) -> np.ndarray:
    """Return (N,) booleans: True for missing values."""
    return np.isnan(raw) if isinstance(raw, np.ndarray) and raw.dtype != object else as_texts(raw).missing()


def read_numbers(
    raw: Cells, kind: ColumnKind, name: str, style: CellStyle | None = None
) -> tuple[np.ndarray, list[Problem]]:
    """Parse a column as float64.

    Args:
        raw: (N,) cells.
        kind: "number", "boolean" or "date" (parsed as days since 1970).
        name: name of the column, for the problems.
        style: how the cells are written; None to infer it from them for numbers, and for dates with the year first.

    Returns:
        (N,) values, with NaN for missing and invalid cells, and a list of the invalid cells.
    """
    is_numeric = isinstance(raw, np.ndarray) and raw.dtype != object
    if kind == "number" or (is_numeric and kind == "boolean"):
        cells = read_number_cells(raw, name, style if isinstance(style, NumberStyle) else None)
        return cells.values, cells.problems
    date_format = style if isinstance(style, str) else "ymd"
    codes, texts = without_texts(*as_texts(raw).factorize(), _NO_VALUE)
    if kind == "date":
        numbers = parse_dates(texts, date_format)
    else:
        numbers = np.array([_parse_boolean(text) for text in texts], np.float64)
    values = np.append(numbers, np.nan)[codes]
    wrong = np.append(np.isnan(numbers), False)[codes]
    return values, [
        Problem(int(i), name, _describe_cell(texts[codes[i]], kind, date_format)) for i in np.flatnonzero(wrong)
    ]


def infer_kind(name: str, table: Table) -> tuple[ColumnKind | Literal[""], str]:
    """Infer the kind of a column from all rows of a table.

    Returns:
        The kind, or "" for a column without information, and a remark: the reason for leaving it out, or an oddity.
    """
    raw = table.columns[name]
    if isinstance(raw, TextColumn) and raw.separator:
        return "", "lists"
    if isinstance(raw, TextColumn) and raw.numbers is not None:
        raw = raw.numbers
    if isinstance(raw, np.ndarray):
        return _infer_kind_of_numbers(raw[~np.isnan(raw)], len(raw))
    codes, texts = factorize_texts(raw)
    counts = np.bincount(codes[codes >= 0], minlength=len(texts))
    present = int(counts.sum())
    if not present:
        return "", "empty"
    if len(texts) == 1 and present == len(raw):
        return "", "constant"
    folded = {text.casefold() for text in texts}
    if len(folded) == 2 and any(folded == set(pair) for pair in _TRUTHS):
        return "boolean", ""
    numbers = inspect_column(codes, texts, table)
    share, is_text = numbers.share, numbers.roles == CellRole.TEXT
    if numbers.count(CellRole.MISSING) == present:
        return "", "empty"
    if share >= _MOSTLY and not numbers.has_grades:
        values = np.append(numbers.values, np.nan)[codes]
        kind, remark = _infer_kind_of_numbers(values[~np.isnan(values)], len(raw))
        return kind, remark or "; ".join(numbers.remarks)
    date_format, remark = infer_date_format(as_texts(raw))
    if date_format:
        return "date", remark
    if len(texts) == present and present >= _FEW:
        return "", IDENTIFIER
    if remark:
        return "category", remark
    if share >= 0.5:
        row = int(np.flatnonzero(codes == np.flatnonzero(is_text)[0])[0])
        return "category", (
            f"{share:.0%} numbers, but also texts such as {printable(texts[codes[row]])[:40]!r} "
            f"({table.row_name(row)}): treated as categories"
            + ("" if numbers.has_grades else ". See --missing if they mean a missing value")
        )
    return "category", ""


def fit_column(
    name: str, kind: ColumnKind, raw: Cells, style: CellStyle | None = None
) -> tuple[Column, dict[str, int]]:
    """Fit the encoder of a column to the training rows.

    Args:
        name: name of the column.
        kind: kind of the column.
        raw: (N,) cells of the training rows.
        style: how the cells of the whole column are written; None to infer it from `raw`.

    Returns:
        The encoder, and the number of "rare" categories and of "rare_cells", or of "missing" values.
    """
    if kind == "category":
        codes, texts = factorize_texts(raw)
        counts = np.bincount(codes[codes >= 0], minlength=len(texts))
        order = sorted(range(len(texts)), key=lambda i: (-counts[i], texts[i]))
        kept = [i for i in order if counts[i] > 1][:MAX_CATEGORIES]
        frequent = [texts[i] for i in kept]
        rare = {"rare": len(texts) - len(kept), "rare_cells": int(counts.sum() - counts[kept].sum())}
        are_codes = bool(frequent) and all(map(_code_value, frequent))
        return Column(name, kind, categories=tuple(sorted(frequent)), are_codes=are_codes), rare
    style = style or infer_cell_style(kind, raw)
    values, _ = read_numbers(raw, kind, name, style)
    present = values[~np.isnan(values)]
    of_numbers = style if isinstance(style, NumberStyle) else None
    if not len(present):
        dates = DateEncoder(style, 0.0, 0.0, ()) if isinstance(style, str) else None
        return Column(name, kind, indicator=True, style=of_numbers, dates=dates), {"missing": len(raw)}
    low, center, high = np.quantile(present, (0.25, 0.5, 0.75))
    spread = (high - low) / 1.349  # equals the standard deviation for a normal distribution
    if not spread > 0:  # more than half of the values are equal
        largest = np.abs(present).max()
        spread = float(np.std(present / largest) * largest) if np.ptp(present) > 0 else 1.0
    missing = len(values) - len(present)
    column = Column(
        name,
        kind,
        center=float(center),
        scale=float(spread) or 1.0,
        indicator=missing > 0,
        style=of_numbers,
        dates=fit_dates(present, style) if isinstance(style, str) else None,
    )
    return column, {"missing": missing}


def infer_cell_style(kind: ColumnKind, raw: Cells, table: Table | None = None) -> CellStyle | None:
    """Infer how the cells of a column of numbers or dates are written; None for other kinds.

    Args:
        kind: kind of the column.
        raw: (N,) cells of the whole column.
        table: its table, whose other columns are evidence for numbers with two meanings.
    """
    if kind == "number":
        return infer_column_style(raw, table)
    return (infer_date_format(as_texts(raw))[0] or "ymd") if kind == "date" else None


def _infer_kind_of_numbers(present: np.ndarray, count: int) -> tuple[ColumnKind | Literal[""], str]:
    if not len(present):
        return "", "empty"
    if np.ptp(present) == 0 and len(present) == count:
        return "", "constant"
    if count >= _FEW and len(present) == count and present[0] in (0, 1) and np.all(np.diff(present) == 1):
        return "", ROW_COUNTER
    return "number", ""


def _code_value(text: str) -> str:
    """Return the digits of a whole number without leading zeros and decimals, or "" for any other text."""
    match = _WHOLE.fullmatch(text)
    return match[1] if match else ""


def _parse_boolean(text: str) -> float:
    """Return 1 for true, 0 for false, NaN for any other text."""
    numbers = {"1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}
    return _TRUTH.get(text.casefold(), numbers.get(text, np.nan))


def _describe_cell(text: str, kind: ColumnKind, date_format: str) -> str:
    """Describe an invalid cell in a column of booleans or dates."""
    noun = f"a date such as {example_of(date_format)}" if kind == "date" else "true or false"
    return f"expected {noun}, got {printable(text)[:60]!r}"


def describe_problems(problems: Iterable[Problem], row_name: Callable[[int], str]) -> str:
    """Return an error message about the first invalid cell.

    Args:
        problems: at least 1 invalid cell.
        row_name: function that returns the name of a row.
    """
    first, *rest = sorted(problems, key=lambda p: (p.row, p.column))
    others = f" (and {len(rest):,} more such cells)" if rest else ""
    return (
        f"cannot use {row_name(first.row)}, column {printable(first.column)!r}: {first.why}{others}. Correct the cell, "
        "or leave it empty if the value is missing."
    )


def columns_from_dicts(values: Iterable[Any]) -> "tuple[Column, ...]":
    """Create columns from the dictionaries of `column_to_dict`; a Spec checks their values.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, OverflowError: a value is missing or has another type.
    """
    return tuple(
        Column(
            name=str(c["name"]),
            kind=cast(ColumnKind, str(c["kind"])),
            center=float(c.get("center", 0)),
            scale=float(c.get("scale", 1)),
            indicator=bool(c.get("indicator", False)),
            categories=tuple(c.get("categories", ())),
            style=style_from_dict(c["style"]) if "style" in c else None,
            dates=DateEncoder.from_dict(c["dates"]) if "dates" in c else None,
            are_codes=bool(c.get("are_codes", False)),
        )
        for c in values
    )


def column_to_dict(column: Column) -> dict[str, Any]:
    """Return a column as JSON values, without the fields that its kind does not use."""
    if column.kind == "category":
        codes = {"are_codes": True} if column.are_codes else {}
        return {"name": column.name, "kind": column.kind, "categories": list(column.categories), **codes}
    values = {
        "name": column.name,
        "kind": column.kind,
        "center": column.center,
        "scale": column.scale,
        "indicator": column.indicator,
    }
    values |= {"style": style_to_dict(column.style)} if column.style else {}
    return values | ({"dates": column.dates.as_dict()} if column.dates else {})
