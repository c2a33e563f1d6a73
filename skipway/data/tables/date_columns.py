"""Encoding of dates: their trend, and the parts of the calendar that vary in the training rows.

The trend and the year are numbers. The other parts are periodic: a part with H harmonics is encoded as the sine and
cosine of 1, ..., H full turns per period, so that December and January are neighbors.

Shapes: N cells; I inputs of the network.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from skipway.data.tables.date_formats import FORMATS, DateFormat, describe_order

__all__ = ["DateEncoder", "fit_dates"]

# With 3 harmonics, every function of the weekday is linear in the inputs. The daily cycle of traffic has two peaks.
_HARMONICS = {"month": 3, "day of year": 1, "day of month": 2, "weekday": 3, "hour": 4, "minute": 2}
_MAX_HARMONICS = 30
_SECONDS_A_DAY = 86_400
_MONDAY = 4  # 1970-01-05, in days since 1970


@dataclass(frozen=True)
class DateEncoder:
    """Format, range and parts of a column of dates.

    Args:
        date_format: format of the cells, see `date_formats`.
        first: earliest date of the training rows, in days since 1970.
        last: latest date of the training rows.
        parts: (name, harmonics) of the parts that vary; the year has no harmonics.

    Raises:
        ValueError: a value is out of range.

    >>> DateEncoder("ymd", 0.0, 400.0, (("year", 0), ("weekday", 3))).num_inputs
    7
    """

    date_format: DateFormat
    first: float
    last: float
    parts: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        limits = {"year": (0, 0), **dict.fromkeys(_HARMONICS, (1, _MAX_HARMONICS))}
        names = [name for name, _ in self.parts]
        is_known = len(set(names)) == len(names) and all(name in limits for name in names)
        if self.date_format not in FORMATS or not is_known:
            raise ValueError(f"unknown date format {self.date_format!r} or parts {names!r}")
        for name, harmonics in self.parts:
            low, high = limits[name]
            if not low <= harmonics <= high:
                raise ValueError(f"{harmonics} harmonics of the {name}")
        if not (math.isfinite(self.first) and math.isfinite(self.last)):
            raise ValueError(f"dates from {self.first} to {self.last}")

    @property
    def num_inputs(self) -> int:
        """Number of inputs of the parts."""
        return sum(2 * harmonics or 1 for _, harmonics in self.parts)

    def year_starts(self, days: np.ndarray) -> np.ndarray:
        """Return (N,) days since 1970 of the first day of each year, NaN for NaN."""
        return np.where(np.isnan(days), np.nan, _Calendar(days).year_start)

    def cycles(self, days: np.ndarray) -> np.ndarray:
        """Return the sines and cosines (N, I) of the periodic parts as float32, 0 for NaN."""
        calendar = _Calendar(days)
        waves = [np.empty((len(days), 0))]
        for name, harmonics in self.parts:
            if harmonics:
                angles = 2 * math.pi * np.outer(calendar.position(name), np.arange(1, harmonics + 1))
                waves += [np.sin(angles), np.cos(angles)]
        inputs = np.concatenate(waves, axis=1)
        inputs[np.isnan(days)] = 0
        return inputs.astype(np.float32)

    @property
    def has_year(self) -> bool:
        """True if the year is an input."""
        return any(name == "year" for name, _ in self.parts)

    def describe(self) -> str:
        """Describe the order of day and month, the range and the parts in words."""
        order, parts = describe_order(self.date_format), ", ".join(name for name, _ in self.parts)
        inputs = f"; inputs: trend, {parts}" if parts else ""
        return (f"{order}; " if order else "") + self.describe_range() + inputs

    def describe_range(self) -> str:
        """Describe the range of the training rows."""
        return f"{self._show(self.first)} to {self._show(self.last)}"

    def _show(self, days: float) -> str:
        text = str(np.datetime64(round(days * _SECONDS_A_DAY), "s"))  # such as 2024-12-31T12:30:00
        if self.date_format == "time":
            return text[11:16]
        if any(name in ("hour", "minute") for name, _ in self.parts):
            return text[:16].replace("T", " ")
        return text[:7] if self.date_format in ("ym", "yyyymm") else text[:10]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"format": self.date_format, "first": self.first, "last": self.last, "parts": dict(self.parts)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DateEncoder":
        """Create an encoder from the values of `as_dict`.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: a value is missing or cannot be used.
        """
        parts = tuple((str(name), int(harmonics)) for name, harmonics in values["parts"].items())
        return cls(cast(DateFormat, str(values["format"])), float(values["first"]), float(values["last"]), parts)


def fit_dates(days: np.ndarray, date_format: DateFormat) -> DateEncoder:
    """Fit the encoder of a column of dates to the training rows.

    Args:
        days: (N,) days since 1970 without NaN, at least one.
        date_format: format of the cells.
    """
    calendar = _Calendar(days)
    varies = {name: len(np.unique(values)) > 1 for name, values in calendar.numbers().items()}
    # On the same day of every month, the weekday depends on the month alone.
    wanted = {
        "month": varies["month"],
        "day of year": varies["year"] and varies["month"] and varies["day of month"],
        "day of month": varies["day of month"],
        "weekday": varies["weekday"] and varies["day of month"],
        "hour": varies["hour"],
        "minute": varies["minute"],
    }
    parts = [("year", 0)] if varies["year"] else []
    parts += [(name, harmonics) for name, harmonics in _HARMONICS.items() if wanted[name]]
    return DateEncoder(date_format, float(days.min()), float(days.max()), tuple(parts))


class _Calendar:
    """Parts of (N,) days since 1970; those of NaN have no meaning."""

    def __init__(self, days: np.ndarray):
        seconds = np.round(np.nan_to_num(days) * _SECONDS_A_DAY).astype(np.int64)
        self.day, self.second = np.divmod(seconds, _SECONDS_A_DAY)
        dates = self.day.astype("datetime64[D]")
        months, years = dates.astype("datetime64[M]"), dates.astype("datetime64[Y]")
        self.month, self.year = months.astype(np.int64) % 12, years.astype(np.int64)
        self.month_start, self.year_start = _first_days(months), _first_days(years)
        self.month_length = _first_days(months + 1) - self.month_start
        self.year_length = _first_days(years + 1) - self.year_start

    def numbers(self) -> dict[str, np.ndarray]:
        """Return (N,) whole numbers of each part."""
        return {
            "year": self.year,
            "month": self.month,
            "day of month": self.day - self.month_start,
            "weekday": (self.day - _MONDAY) % 7,
            "hour": self.second // 3600,
            "minute": self.second % 3600 // 60,
        }

    def position(self, part: str) -> np.ndarray:
        """Return the (N,) positions in the period of a part, from 0 to 1."""
        periods = {
            "month": (self.month, 12),
            "day of year": (self.day - self.year_start, self.year_length),
            "day of month": (self.day - self.month_start, self.month_length),
            "weekday": ((self.day - _MONDAY) % 7, 7),
            "hour": (self.second, _SECONDS_A_DAY),
            "minute": (self.second % 3600, 3600),
        }
        elapsed, period = periods[part]
        return elapsed / period


def _first_days(periods: np.ndarray) -> np.ndarray:
    """Return the (N,) first days of months or years, in days since 1970."""
    return periods.astype("datetime64[D]").astype(np.int64)
