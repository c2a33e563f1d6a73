"""Formats of dates and times: inference over a whole column, and parsing to days since 1970.

A format is the order of the parts of a date. Separators, a time of day and an offset from UTC may differ between cells.
Dates with an offset are converted to UTC; dates without one are used as they are.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Literal, get_args

import numpy as np

from skipway.data.sources.text_column import TextColumn
from skipway.errors import printable

__all__ = [
    "FORMATS",
    "DateFormat",
    "best_date_format",
    "describe_order",
    "example_of",
    "infer_date_format",
    "parse_dates",
]

DateFormat = Literal["ymd", "dmy", "mdy", "d mon y", "mon d y", "ym", "time", "yyyymmdd", "yyyymm"]
FORMATS: tuple[DateFormat, ...] = get_args(DateFormat)
_COMPACT: tuple[DateFormat, ...] = ("yyyymmdd", "yyyymm")  # they are numbers too, so that every cell has to fit
_MOSTLY = 0.9  # share of cells of one format, from which the others are errors
_SAMPLED = 50  # texts that show which formats are possible
_MIN_COMPACT = 6  # distinct cells that show that numbers such as 202412 are months
_COMPACT_YEARS = range(1900, 2101)
_FIRST_OF_19XX = 69  # two digits from 69 on are a year of the 20th century, as in POSIX
_SECONDS_A_DAY = 86_400
_ISO, _ISO_LENGTHS = "0000-00-00 00:00:00", (10, 16, 19)  # a date, or one with a time up to minutes or seconds
_YEAR_1 = int(np.datetime64("0001-01-01", "s").astype(np.int64))
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)

_TIME = (
    r"(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d{1,9}))?)?(?: ?(?P<half>[AP]M))?"
    r"(?: ?(?P<zone>Z|UTC|GMT|[+-]\d\d(?::?\d\d)?))?"
)
_AFTER_DATE = rf"(?:(?:T|,? +){_TIME})?"
_SHORT = r"(?P<{0}>\d{{1,2}})(?P<sep>[-/.]) ?(?P<{1}>\d{{1,2}})(?P=sep) ?(?P<year>\d{{4}}|\d\d)"
_DAY, _NAME = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?", r"(?P<name>[a-z]{3,9})\.?"
_WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*,? +)?"
_PATTERNS = {
    "ymd": r"(?P<year>\d{4})(?P<sep>[-/.])(?P<month>\d{1,2})(?P=sep)(?P<day>\d{1,2})" + _AFTER_DATE,
    "dmy": _SHORT.format("day", "month") + _AFTER_DATE,
    "mdy": _SHORT.format("month", "day") + _AFTER_DATE,
    "d mon y": rf"{_WEEKDAY}{_DAY}\.?[ -/]{_NAME},?[ -/](?P<year>\d{{4}}|\d\d)" + _AFTER_DATE,
    "mon d y": rf"{_WEEKDAY}{_NAME} +{_DAY},? +(?P<year>\d{{4}})" + _AFTER_DATE,
    "ym": r"(?P<year>(?:19|20)\d\d)[-/](?P<month>\d\d)",
    "time": _TIME,
    "yyyymmdd": r"(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)",
    "yyyymm": r"(?P<year>\d{4})(?P<month>\d\d)",
}
_REGEXES = {name: re.compile(pattern, re.ASCII | re.I) for name, pattern in _PATTERNS.items()}
# A version such as 1.2.10 is no date: two digits of a year need two of the day and the month, unless they have slashes.
_VERSION = re.compile(r"(?!\d\d([-.])\d\d\1)\d{1,2}([-.])\d{1,2}\2\d\d\b(?!\d)", re.ASCII)
_EXAMPLES = {
    "ymd": "2024-12-31",
    "dmy": "31/12/2024",
    "mdy": "12/31/2024",
    "d mon y": "31 Dec 2024",
    "mon d y": "Dec 31, 2024",
    "ym": "2024-12",
    "time": "12:30",
    "yyyymmdd": "20241231",
    "yyyymm": "202412",
}
_WORDS = {"dmy": "day first", "mdy": "month first"}


@dataclass(frozen=True)
class _Parsed:
    """Values (N,) of distinct texts in a format, NaN for those that do not fit, and the offsets from UTC."""

    values: np.ndarray
    offsets: set[timedelta | None]


def example_of(date_format: str) -> str:
    """Return a date in a format.

    >>> example_of("dmy")
    '31/12/2024'
    """
    return _EXAMPLES[date_format]


def describe_order(date_format: str) -> str:
    """Describe the order of day and month in words, or return "" for a format that shows it.

    >>> describe_order("dmy")
    'day first'
    """
    return _WORDS.get(date_format, "")


def parse_dates(texts: Sequence[str], date_format: str) -> np.ndarray:
    """Return (N,) days since 1970 in UTC, NaN for a text that does not fit the format.

    >>> parse_dates(["02/01/1970", "1970-01-02"], "dmy").tolist()
    [1.0, nan]
    """
    return _parse(texts, date_format).values


def infer_date_format(cells: TextColumn) -> tuple[DateFormat | None, str]:
    """Infer the format of a column of dates from all of its cells.

    The day is first if some cells only fit this order, and likewise the month. If all cells fit both, the order is that
    in which the rows are in time order. If both are, the part that is always 1 is the day. Else the month is first for
    slashes, and the day for dots and hyphens. Numbers are days such as 20241231, or months such as 202412, if every one
    of at least six different ones fits.

    Args:
        cells: (N,) cells.

    Returns:
        The format, or None if fewer than 90% of the cells fit any, and a remark on an order that stays ambiguous, on
        different offsets from UTC, or on the cells that do not fit if at least half do.
    """
    _, texts = cells.factorize_present()
    if compact := _infer_compact(texts):
        return compact, ""
    some = texts[:: max(1, len(texts) // _SAMPLED)]
    possible = [f for f in FORMATS if f not in _COMPACT and 2 * _count_fitting(some, f) >= len(some)]
    parsed, shares = _shares(cells, possible)
    best = max(shares, key=lambda f: shares[f], default=None)
    if best is None or shares[best] < _MOSTLY:
        return None, _describe_others(parsed[best], texts, shares[best]) if best else ""
    remarks = []
    if shares.get("dmy") == shares.get("mdy") == shares[best] and _differ(parsed["dmy"], parsed["mdy"]):
        best, reason = _order_by_rule(texts, parsed)
        words = "day" if best == "dmy" else "month"
        remarks.append(
            f"dates such as {texts[0]} do not show whether the day or the month is first: read as {words} first, "
            f"because {reason}. If this is wrong, set their format in a file for --columns"
        )
    if len(parsed[best].offsets) > 1:
        remarks.append("different offsets from UTC: converted to UTC")
    return best, "; ".join(remarks)


def best_date_format(cells: TextColumn) -> DateFormat:
    """Return the format of a column that holds dates: the inferred one, or else that of most cells.

    Args:
        cells: (N,) cells, at least one with a value.
    """
    if (inferred := infer_date_format(cells)[0]) is not None:
        return inferred
    _, shares = _shares(cells, FORMATS)
    return max(shares, key=lambda f: shares[f])


def _shares(
    cells: TextColumn, formats: Sequence[DateFormat]
) -> tuple[dict[DateFormat, _Parsed], dict[DateFormat, float]]:
    """Return the distinct texts of a column in each format, and the shares of the cells that fit."""
    codes, texts = cells.factorize_present()
    counts = np.bincount(codes[codes >= 0], minlength=len(texts))
    parsed = {f: _parse(texts, f) for f in formats}
    total = max(1, int(counts.sum()))
    return parsed, {f: int(counts[~np.isnan(p.values)].sum()) / total for f, p in parsed.items()}


def _infer_compact(texts: Sequence[str]) -> DateFormat | None:
    """Infer whether distinct numbers are days such as 20241231 or months such as 202412."""
    if len(texts) < _MIN_COMPACT:
        return None
    for date_format in _COMPACT:
        length = len(_EXAMPLES[date_format])
        if all(len(text) == length and text[:4].isdecimal() and int(text[:4]) in _COMPACT_YEARS for text in texts):
            return None if np.isnan(parse_dates(texts, date_format)).any() else date_format
    return None


def _count_fitting(texts: Sequence[str], date_format: str) -> int:
    return sum(bool(_REGEXES[date_format].fullmatch(text)) for text in texts)


def _describe_others(dates: _Parsed, texts: Sequence[str], share: float) -> str:
    """Describe the cells that are no dates, if at least half of the cells are."""
    if share < 0.5:
        return ""
    other = printable(texts[int(np.flatnonzero(np.isnan(dates.values))[0])])[:40]
    return (
        f"{share:.0%} dates, but also texts such as {other!r}: treated as categories. See --missing if they mean a "
        "missing value"
    )


def _differ(one: _Parsed, other: _Parsed) -> bool:
    return not np.array_equal(one.values, other.values, equal_nan=True)


def _order_by_rule(texts: Sequence[str], parsed: dict[DateFormat, _Parsed]) -> tuple[DateFormat, str]:
    """Return "dmy" or "mdy" for dates that fit both, and the reason."""
    orders: tuple[DateFormat, DateFormat] = ("dmy", "mdy")
    sorted_in = [order for order in orders if _is_sorted(parsed[order].values)]
    if len(sorted_in) == 1:
        return sorted_in[0], "the rows are in time order then"
    first_days = [order for order in orders if _are_first_days(parsed[order].values)]
    if len(first_days) == 1:
        return first_days[0], "all dates are the first day of a month then"
    is_month_first = "/" in texts[0]
    return (
        "mdy" if is_month_first else "dmy"
    ), f"{'slashes' if is_month_first else 'dots and hyphens'} are usual for it"


def _is_sorted(values: np.ndarray) -> bool:
    steps = np.diff(values[~np.isnan(values)])
    return len(steps) > 1 and bool(np.all(steps >= 0) or np.all(steps <= 0))


def _are_first_days(values: np.ndarray) -> bool:
    days = np.floor(values[~np.isnan(values)]).astype("datetime64[D]")
    return bool(np.all(days == days.astype("datetime64[M]")))


def _parse(texts: Sequence[str], date_format: str) -> _Parsed:
    regex, offsets = _REGEXES[date_format], set[timedelta | None]()
    values = _parse_iso(texts) if date_format == "ymd" else np.full(len(texts), np.nan)
    others = np.flatnonzero(np.isnan(values))
    if len(others) < len(texts):
        offsets.add(None)
    for i in others.tolist():
        match = regex.fullmatch(texts[i])
        if match is None or (date_format in ("dmy", "mdy") and _VERSION.match(texts[i])):
            continue
        try:
            moment = _moment(match.groupdict())
        except ValueError:
            continue
        offsets.add(moment.utcoffset())
        values[i] = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() / _SECONDS_A_DAY
    return _Parsed(values, offsets)


def _parse_iso(texts: Sequence[str]) -> np.ndarray:
    """Return the days (N,) of usual ISO texts, NaN for others: numpy is many times as fast as a regular expression."""
    values = np.full(len(texts), np.nan)
    for length in _ISO_LENGTHS:
        rows = np.array([i for i, text in enumerate(texts) if len(text) == length], dtype=np.int64)
        if not len(rows):
            continue
        usual = np.array([texts[i] for i in rows])
        letters = usual.view(np.uint32).reshape(len(rows), length)
        fits = np.ones(len(rows), bool)
        for letter, wanted in zip(letters.T, _ISO[:length], strict=True):
            is_digit = (letter >= ord("0")) & (letter <= ord("9"))
            is_mark = (letter == ord(wanted)) | ((letter == ord("T")) & (wanted == " "))
            fits &= is_digit if wanted == "0" else is_mark
        with suppress(ValueError):  # such as 2024-02-30: the caller finds out which
            moments = usual[fits].astype("datetime64[s]").astype(np.int64)
            values[rows[fits]] = np.where(moments >= _YEAR_1, moments / _SECONDS_A_DAY, np.nan)
    return values


def _moment(parts: dict[str, str | None]) -> datetime:
    """Return the moment of the parts of a date; a time alone is on the first day of 1970.

    Raises:
        ValueError: a part is out of range.
    """
    hour = int(parts.get("hour") or 0)
    if half := parts.get("half"):
        if not 1 <= hour <= 12:
            raise ValueError
        hour = hour % 12 + 12 * (half.casefold() == "pm")
    return datetime(
        _year(parts.get("year")),
        _month_of_name(name) if (name := parts.get("name")) else int(parts.get("month") or 1),
        int(parts.get("day") or 1),
        hour,
        int(parts.get("minute") or 0),
        int(parts.get("second") or 0),
        int((parts.get("fraction") or "0").ljust(6, "0")[:6]),
        _zone(parts.get("zone")),
    )


def _year(text: str | None) -> int:
    if text is None:
        return 1970
    year = int(text)
    if len(text) > 2:
        return year
    return year + (1900 if year >= _FIRST_OF_19XX else 2000)


def _month_of_name(name: str) -> int:
    name = name.casefold()
    for number, month in enumerate(_MONTHS, 1):
        if name == "sept" or month.startswith(name):
            return 9 if name == "sept" else number
    raise ValueError


def _zone(text: str | None) -> timezone | None:
    if text is None:
        return None
    if text[0] not in "+-":
        return UTC
    digits = text[1:].replace(":", "").ljust(4, "0")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(offset if text[0] == "+" else -offset)
