"""Columns: inference of column kinds, and encoding of columns to numbers.

The kind of a column is inferred from all rows of the training table. Centers, scales and categories are fitted to the
training rows only.
Sources: robust scale and smooth clip, Holzmueller et al. 2024, arXiv:2407.04491.
"""

import re
from collections import ChainMap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import numpy as np

from skipway.data.sources.table import Table
from skipway.data.sources.text_column import MISSING, Cells, TextColumn, without_texts
from skipway.data.tables.date_columns import DateEncoder, fit_dates
from skipway.data.tables.date_formats import DateFormat, example_of, infer_date_format, parse_dates
from skipway.errors import InputError, printable

__all__ = [
    "KINDS",
    "MAX_CATEGORIES",
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

ColumnKind = Literal["number", "boolean", "date", "category"]
KINDS: tuple[ColumnKind, ...] = get_args(ColumnKind)
MAX_CATEGORIES = 1000  # per column; rarer categories are encoded as unseen
UNSEEN, ABSENT, FIRST = 0, 1, 2  # indices in a category column: unseen, missing, first category
_CLIP = 3.0  # bound of the smooth clipping
_MOSTLY = 0.9  # share of values of one kind, from which the others are errors rather than categories
_FEW = 20  # in fewer rows, the values of any column may all differ
_LARGEST = 1e300  # differences of larger numbers overflow
_NO_NUMBER = MISSING | {"none", "-", "."}
_DIGITS = frozenset("0123456789+-.eE")
_FIRST_OF_NUMBER = frozenset("0123456789+-.,iI")
_POINT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_COMMA = re.compile(r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?", re.ASCII)
_GROUPS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", re.ASCII)
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.I)
_TRUTHS = ({"true": 1.0, "false": 0.0}, {"yes": 1.0, "no": 0.0}, {"t": 1.0, "f": 0.0}, {"y": 1.0, "n": 0.0})
_TRUTH = dict(ChainMap(*_TRUTHS))


@dataclass(frozen=True)
class Problem:
    """A cell that cannot be used: its row, its column, and the reason."""

    row: int
    column: str
    why: str


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
    dates: DateEncoder | None = field(default=None, repr=False)  # the repr is a part of the fingerprints of runs

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
        return read_numbers(raw, self.kind, self.name, self.dates.date_format if self.dates else "ymd")

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
        return np.array([*(slot.get(text, UNSEEN) for text in texts), ABSENT], np.int64)[codes]


def as_texts(raw: Cells) -> TextColumn:
    """Convert a column to text, with None for missing values; the number 1.0 becomes "1"."""
    import pandas as pd

    if isinstance(raw, TextColumn):
        return raw
    if raw.dtype == object:
        return TextColumn.of(raw)
    codes, values = pd.factorize(raw)
    return TextColumn.of_codes(codes, [_number_as_text(float(value)) for value in values])


def _number_as_text(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def factorize_texts(raw: Cells) -> tuple[np.ndarray, list[str]]:
    """Return (N,) codes, with -1 for missing values, and the distinct texts of a column."""
    return as_texts(raw).factorize_present()


def missing_mask(raw: Cells) -> np.ndarray:
    """Return (N,) booleans: True for missing values."""
    return np.isnan(raw) if isinstance(raw, np.ndarray) and raw.dtype != object else as_texts(raw).missing()


def read_numbers(raw: Cells, kind: ColumnKind, name: str, date_format: str = "ymd") -> tuple[np.ndarray, list[Problem]]:
    """Parse a column as float64.

    Args:
        raw: (N,) cells.
        kind: "number", "boolean" or "date" (parsed as days since 1970).
        name: name of the column, for the problems.
        date_format: format of dates, see `date_formats`.

    Returns:
        (N,) values, with NaN for missing and invalid cells, and a list of the invalid cells.
    """
    if isinstance(raw, np.ndarray) and raw.dtype != object and kind != "date":
        bad = np.flatnonzero(np.abs(raw) > _LARGEST)
        values = raw.copy()
        values[bad] = np.nan
        return values, [Problem(int(i), name, _describe_cell(str(raw[i]), "number")) for i in bad]
    cells = as_texts(raw)
    if kind == "number" and cells.numbers is not None:
        return cells.numbers, []
    codes, texts = without_texts(*cells.factorize(), _NO_NUMBER)
    if kind == "number":
        numbers = _parse_numbers(texts)
    elif kind == "date":
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

    Raises:
        InputError: a number such as 1,234 is ambiguous.
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
    numeric = np.array([text.casefold() in _NO_NUMBER or _is_numeric(text) for text in texts], bool)
    share = counts[numeric].sum() / present
    if share >= _MOSTLY:
        _refuse_ambiguous(texts, codes, table=table, name=name)
        values, _ = read_numbers(raw, "number", name)
        return _infer_kind_of_numbers(values[~np.isnan(values)], len(raw))
    date_format, remark = infer_date_format(as_texts(raw))
    if date_format:
        return "date", remark
    if len(texts) == present and present >= _FEW:
        return "", "identifier: all values differ"
    if share >= 0.5:
        row = int(np.flatnonzero(codes == np.flatnonzero(~numeric)[0])[0])
        return "category", (
            f"{share:.0%} numbers, but also texts such as {printable(texts[codes[row]])[:40]!r} "
            f"({table.row_name(row)}): treated as categories"
        )
    return "category", ""


def fit_column(
    name: str, kind: ColumnKind, raw: Cells, style: DateFormat | None = None
) -> tuple[Column, dict[str, int]]:
    """Fit the encoder of a column to the training rows.

    Args:
        name: name of the column.
        kind: kind of the column.
        raw: (N,) cells of the training rows.
        style: format of the dates of the whole column; None to infer it from `raw`.

    Returns:
        The encoder, and the number of "rare" categories or "missing" values.
    """
    if kind == "category":
        codes, texts = factorize_texts(raw)
        counts = np.bincount(codes[codes >= 0], minlength=len(texts))
        order = sorted(range(len(texts)), key=lambda i: (-counts[i], texts[i]))
        frequent = [texts[i] for i in order if counts[i] > 1][:MAX_CATEGORIES]
        rare = len(texts) - len(frequent)
        return Column(name, kind, categories=tuple(sorted(frequent))), {"rare": rare}
    date_format = style or infer_cell_style(kind, raw) or "ymd"
    values, _ = read_numbers(raw, kind, name, date_format)
    present = values[~np.isnan(values)]
    if not len(present):
        dates = DateEncoder(date_format, 0.0, 0.0, ()) if kind == "date" else None
        return Column(name, kind, indicator=True, dates=dates), {"missing": len(raw)}
    low, center, high = np.quantile(present, (0.25, 0.5, 0.75))
    spread = (high - low) / 1.349  # equals the standard deviation for a normal distribution
    if not spread > 0:  # more than half of the values are equal
        largest = np.abs(present).max()
        spread = float(np.std(present / largest) * largest) if np.ptp(present) > 0 else 1.0
    missing = len(values) - len(present)
    dates = fit_dates(present, date_format) if kind == "date" else None
    column = Column(name, kind, center=float(center), scale=float(spread) or 1.0, indicator=missing > 0, dates=dates)
    return column, {"missing": missing}


def infer_cell_style(kind: ColumnKind, raw: Cells) -> DateFormat | None:
    """Infer the format of a column of dates from the (N,) cells of the whole column; None for other kinds."""
    return (infer_date_format(as_texts(raw))[0] or "ymd") if kind == "date" else None


def _infer_kind_of_numbers(present: np.ndarray, count: int) -> tuple[ColumnKind | Literal[""], str]:
    if not len(present):
        return "", "empty"
    if np.ptp(present) == 0 and len(present) == count:
        return "", "constant"
    if count >= _FEW and len(present) == count and present[0] in (0, 1) and np.all(np.diff(present) == 1):
        return "", "row counter"
    return "number", ""


def _is_numeric(text: str) -> bool:
    return text[:1] in _FIRST_OF_NUMBER and bool(
        _POINT.fullmatch(text) or _COMMA.fullmatch(text) or _INFINITE.fullmatch(text) or _GROUPS.fullmatch(text)
    )


def _parse_numbers(texts: list[str]) -> np.ndarray:
    """Parse texts as numbers, NaN if invalid; commas are decimal if no number of the column has a point."""
    if set("".join(texts)) <= _DIGITS:
        try:
            return _without_largest(np.array(texts, dtype=np.float64))
        except ValueError:
            pass
    commas = any(_COMMA.fullmatch(t) for t in texts) and not any("." in t for t in texts if _POINT.fullmatch(t))
    return _without_largest(np.array([_parse_number(text, commas) for text in texts], dtype=np.float64))


def _parse_number(text: str, commas: bool) -> float:
    if _POINT.fullmatch(text):
        return float(text)
    return float(text.replace(",", ".")) if commas and _COMMA.fullmatch(text) else np.nan


def _without_largest(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) <= _LARGEST, values, np.nan)


def _refuse_ambiguous(texts: list[str], codes: np.ndarray, *, table: Table, name: str) -> None:
    """Raise InputError for numbers such as 1,234 if the table has a comma as separator."""
    groups = [i for i, text in enumerate(texts) if _GROUPS.fullmatch(text)]
    has_decimal_commas = any(_COMMA.fullmatch(t) and not _GROUPS.fullmatch(t) for t in texts)
    if table.thousands and groups and not has_decimal_commas:
        row = int(np.flatnonzero(codes == groups[0])[0])
        text = printable(texts[groups[0]])
        raise InputError(
            f"cannot read {table.row_name(row)}, column {printable(name)!r}: expected an unambiguous number, got "
            f"{text!r} ({text.replace(',', '')} or {text.replace(',', '.')}). Remove the thousands separators."
        )


def _parse_boolean(text: str) -> float:
    """Return 1 for true, 0 for false, NaN for any other text."""
    numbers = {"1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}
    return _TRUTH.get(text.casefold(), numbers.get(text, np.nan))


def _describe_cell(text: str, kind: ColumnKind, date_format: str = "ymd") -> str:
    """Describe an invalid cell in a column of numbers, booleans or dates."""
    shown = repr(printable(text)[:60])
    if kind == "number" and (_COMMA.fullmatch(text) or _GROUPS.fullmatch(text)):
        return f"expected a decimal point as in other rows, got {shown} (write {text.replace(',', '.', 1)})"
    if kind == "number" and (_INFINITE.fullmatch(text) or _POINT.fullmatch(text)):
        return f"expected a finite number up to {_LARGEST:g}, got {shown}"
    nouns = {"number": "a number", "date": f"a date such as {example_of(date_format)}", "boolean": "true or false"}
    noun = nouns[kind]
    return f"expected {noun}, got {shown}"


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
            dates=DateEncoder.from_dict(c["dates"]) if "dates" in c else None,
        )
        for c in values
    )


def column_to_dict(column: Column) -> dict[str, Any]:
    """Return a column as JSON values, without the fields that its kind does not use."""
    if column.kind == "category":
        return {"name": column.name, "kind": column.kind, "categories": list(column.categories)}
    values = {
        "name": column.name,
        "kind": column.kind,
        "center": column.center,
        "scale": column.scale,
        "indicator": column.indicator,
    }
    return values | ({"dates": column.dates.as_dict()} if column.dates else {})
