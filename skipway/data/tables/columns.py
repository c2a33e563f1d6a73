"""Columns: what kind of values a column holds, and how it becomes numbers that a network can be given.

A kind is read off all rows of the training table; centres, scales and categories come from the training rows alone.
Sources: robust scale and smooth clip, Holzmueller et al. 2024, arXiv:2407.04491.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from skipway.data.sources.read_table import Table
from skipway.errors import InputError, printable

__all__ = ["KINDS", "MOST_CATEGORIES", "Column", "Problem", "factor", "fit_column", "kind_of", "read_numbers", "words"]

KINDS = ("number", "boolean", "date", "category")
MOST_CATEGORIES = 1000  # of one column; rarer ones share the slot of those never seen
UNSEEN, ABSENT, FIRST = 0, 1, 2  # slots of a category column: never seen, missing, the first category
_CLIP = 3.0  # scaled values bend here and end at this
_MOSTLY = 0.9  # share of values from which on the others are mistakes, not categories
_FEW = 20  # rows below which all values of a column may well differ by chance
_LARGEST = 1e300  # differences of larger numbers overflow
_MISSING = frozenset(["", "na", "n/a", "#n/a", "nan", "-nan", "null", "<na>", "nat", "?"])
_NO_NUMBER = _MISSING | {"none", "-", "."}
_DIGITS = frozenset("0123456789+-.eE")
_POINT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_COMMA = re.compile(r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?", re.ASCII)
_GROUPS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", re.ASCII)
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.I)
_DATE = re.compile(r"\d{4}([-/])\d\d\1\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII)
_TRUTHS = ({"true": 1.0, "false": 0.0}, {"yes": 1.0, "no": 0.0}, {"t": 1.0, "f": 0.0}, {"y": 1.0, "n": 0.0})
_TRUTH = {word: value for pair in _TRUTHS for word, value in pair.items()}


@dataclass(frozen=True)
class Problem:
    """A cell that cannot be used: its row, its column, and what is wrong with it."""

    row: int
    column: str
    why: str


@dataclass(frozen=True)
class Column:
    """How one column becomes numbers.

    number, boolean, date: (value - center) / scale, bent towards 3 as it grows; a missing value becomes the centre,
        and an `indicator` column says so where training rows lacked some.
    category: the index of a slot: 0 never seen, 1 missing, then `categories` in their order.
    """

    name: str
    kind: str
    center: float = 0.0
    scale: float = 1.0
    indicator: bool = False
    categories: tuple[str, ...] = ()

    @property
    def slots(self) -> int:
        """How many indices a category column has."""
        return FIRST + len(self.categories)

    def numbers(self, raw: np.ndarray) -> tuple[np.ndarray, list[Problem]]:
        """(N,) the values, NaN where one is missing or cannot be used; and what cannot be used."""
        return read_numbers(raw, self.kind, self.name)

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """(N,) values as the network is given them, 0 for NaN."""
        with np.errstate(over="ignore"):
            z = np.clip((values - self.center) / self.scale, -1e6, 1e6)
        return np.nan_to_num(z / np.sqrt(1 + (z / _CLIP) ** 2), nan=0.0).astype(np.float32)

    def places(self, raw: np.ndarray) -> np.ndarray:
        """(N,) slots of a category column."""
        slot = {name: FIRST + i for i, name in enumerate(self.categories)}
        codes, different = factor(words(raw))
        return np.array([*(slot.get(text, UNSEEN) for text in different), ABSENT], np.int64)[codes]


def words(raw: np.ndarray) -> np.ndarray:
    """A column as text, None where nothing stands; the number 1.0 is the word 1."""
    if raw.dtype == object:
        return raw
    different, codes = np.unique(raw, return_inverse=True)
    texts = np.empty(len(different), object)
    texts[:] = [None if np.isnan(value) else _number_text(float(value)) for value in different]
    return texts[codes]


def _number_text(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def factor(texts: np.ndarray, missing: frozenset[str] = _MISSING) -> tuple[np.ndarray, list[str]]:
    """(codes (N,), different texts): what means a missing value has the code -1."""
    import pandas as pd

    codes, different = pd.factorize(texts)
    there = np.array([text.casefold() not in missing for text in different], bool)
    place = np.append(np.where(there, np.cumsum(there) - 1, -1), -1)
    return place[codes], [text for text, keep in zip(different, there, strict=True) if keep]


def read_numbers(raw: np.ndarray, kind: str, name: str) -> tuple[np.ndarray, list[Problem]]:
    """(N,) a column's values as float64, NaN where one is missing or cannot be read; and what cannot be read."""
    if raw.dtype != object:
        bad = np.flatnonzero(np.abs(raw) > _LARGEST)
        values = raw.copy()
        values[bad] = np.nan
        return values, [Problem(int(i), name, _why(str(raw[i]), "number")) for i in bad]
    codes, different = factor(raw, _NO_NUMBER)
    if kind == "number":
        read = _parsed(different)
    else:
        one = _day if kind == "date" else lambda text: _TRUTH.get(text.casefold(), _unit(text))
        read = np.array([one(text) for text in different], np.float64)
    values = np.append(read, np.nan)[codes]
    wrong = np.append(np.isnan(read), False)[codes]
    return values, [Problem(int(i), name, _why(different[codes[i]], kind)) for i in np.flatnonzero(wrong)]


def kind_of(name: str, table: Table) -> tuple[str, str]:
    """(kind, remark): a kind of KINDS, or "" where the column is left out; the remark says why, or what is odd."""
    raw = table.columns[name]
    if raw.dtype != object:
        there = raw[~np.isnan(raw)]
        return _kind_of_numbers(there, len(raw))
    codes, different = factor(raw)
    counts = np.bincount(codes[codes >= 0], minlength=len(different))
    present = int(counts.sum())
    if not present:
        return "", "empty"
    if len(different) == 1 and present == len(raw):
        return "", "constant"
    folded = {text.casefold() for text in different}
    if len(folded) == 2 and any(folded == set(pair) for pair in _TRUTHS):
        return "boolean", ""
    number = np.array([text.casefold() in _NO_NUMBER or _numeric(text) for text in different], bool)
    share = counts[number].sum() / present
    if share >= _MOSTLY:
        _refuse_ambiguous(different, codes, table, name)
        values, _ = read_numbers(raw, "number", name)
        return _kind_of_numbers(values[~np.isnan(values)], len(raw))
    if counts[[bool(_DATE.fullmatch(text)) for text in different]].sum() / present >= _MOSTLY:
        return "date", ""
    if len(different) == present and present >= _FEW:
        return "", "identifier: every value differs"
    if share >= 0.5:
        odd = int(np.flatnonzero(codes == np.flatnonzero(~number)[0])[0])
        return "category", (
            f"{share:.0%} numbers, but {printable(different[codes[odd]])[:40]!r} ({table.at(odd)}) and others are "
            "not: taken as categories"
        )
    return "category", ""


def fit_column(name: str, kind: str, raw: np.ndarray) -> tuple[Column, dict[str, int]]:
    """The column of this kind as the training rows `raw` have it, and how often something was noted of it."""
    if kind == "category":
        codes, different = factor(words(raw))
        counts = np.bincount(codes[codes >= 0], minlength=len(different))
        order = sorted(range(len(different)), key=lambda i: (-counts[i], different[i]))
        often = [different[i] for i in order if counts[i] > 1][:MOST_CATEGORIES]
        rare = len(different) - len(often)
        return Column(name, kind, categories=tuple(sorted(often))), {"rare": rare}
    values, _ = read_numbers(raw, kind, name)
    there = values[~np.isnan(values)]
    if not len(there):
        return Column(name, kind, indicator=True), {"missing": len(raw)}
    low, center, high = np.quantile(there, (0.25, 0.5, 0.75))
    spread = (high - low) / 1.349  # of a normal distribution, its standard deviation
    if not spread > 0:  # one value dominates
        spread = float(np.std(there / np.abs(there).max()) * np.abs(there).max()) if np.ptp(there) > 0 else 1.0
    missing = len(values) - len(there)
    return Column(name, kind, float(center), float(spread) or 1.0, missing > 0), {"missing": missing}


def _kind_of_numbers(there: np.ndarray, count: int) -> tuple[str, str]:
    if not len(there):
        return "", "empty"
    if np.ptp(there) == 0 and len(there) == count:
        return "", "constant"
    if count >= _FEW and len(there) == count and there[0] in (0, 1) and np.all(np.diff(there) == 1):
        return "", "a counter of the rows"
    return "number", ""


def _numeric(text: str) -> bool:
    return bool(
        _POINT.fullmatch(text) or _COMMA.fullmatch(text) or _INFINITE.fullmatch(text) or _GROUPS.fullmatch(text)
    )


def _parsed(texts: list[str]) -> np.ndarray:
    """Texts as numbers, NaN for what is none; decimal commas where no number of the column has a point."""
    if set("".join(texts)) <= _DIGITS:
        try:
            return _kept(np.array(texts, dtype=np.float64))
        except ValueError:
            pass
    commas = any(_COMMA.fullmatch(t) for t in texts) and not any("." in t for t in texts if _POINT.fullmatch(t))
    return _kept(np.array([_number(text, commas) for text in texts], dtype=np.float64))


def _number(text: str, commas: bool) -> float:
    """Return the number that `text` is, NaN if it is none; `commas` part decimals if it is set."""
    if _POINT.fullmatch(text):
        return float(text)
    return float(text.replace(",", ".")) if commas and _COMMA.fullmatch(text) else np.nan


def _kept(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) <= _LARGEST, values, np.nan)


def _refuse_ambiguous(different: list[str], codes: np.ndarray, table: Table, name: str) -> None:
    """1,234 in a table that commas part may be 1234: refuse to guess."""
    groups = [i for i, text in enumerate(different) if _GROUPS.fullmatch(text)]
    plain = any(_COMMA.fullmatch(t) and not _GROUPS.fullmatch(t) for t in different)
    if table.thousands and groups and not plain:
        row = int(np.flatnonzero(codes == groups[0])[0])
        text = printable(different[groups[0]])
        raise InputError(
            f"{table.at(row)}, column {printable(name)!r}: {text!r} may mean {text.replace(',', '')} or "
            f"{text.replace(',', '.')}; write numbers without thousands separators"
        )


def _unit(text: str) -> float:
    """1 or 0 for numbers that mean true or false."""
    return {"1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}.get(text, np.nan)


def _day(text: str) -> float:
    """Days since 1970 of an ISO date; NaN for anything else."""
    if not _DATE.fullmatch(text):
        return np.nan
    try:
        moment = datetime.fromisoformat(text.replace("/", "-"))
    except ValueError:
        return np.nan
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() / 86_400


def _why(text: str, kind: str) -> str:
    """What is wrong with a cell of a column of numbers, booleans or dates."""
    shown = repr(printable(text)[:60])
    if kind == "number" and (_COMMA.fullmatch(text) or _GROUPS.fullmatch(text)):
        return f"{shown} has a comma, which other numbers of the column do not: write {text.replace(',', '.', 1)}"
    if kind == "number" and (_INFINITE.fullmatch(text) or _POINT.fullmatch(text)):
        return f"{shown} is not a finite number that can be computed with"
    noun = {"number": "a number", "date": "a date such as 2024-12-31", "boolean": "true or false"}[kind]
    return f"{shown} is not {noun}, unlike the rest of the column"


def refusal(problems: Iterable[Problem], at: Callable[[int], str]) -> str:
    """The text of an error about the first of some cells that cannot be used."""
    first, *more = sorted(problems, key=lambda p: (p.row, p.column))
    others = f" (and {len(more):,} more such cells)" if more else ""
    return (
        f"{at(first.row)}, column {printable(first.column)!r}: {first.why}{others}; correct it, or leave the cell "
        "empty where the value is missing"
    )


def plain(column: Column) -> dict[str, Any]:
    """A column as JSON values, without what its kind does not use."""
    if column.kind == "category":
        return {"name": column.name, "kind": column.kind, "categories": list(column.categories)}
    return {
        "name": column.name,
        "kind": column.kind,
        "center": column.center,
        "scale": column.scale,
        "indicator": column.indicator,
    }
