"""SeenValues: what the training rows of a column hold, so that other values are recognized.

Shapes: N cells.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["SeenValues"]


@dataclass(frozen=True)
class SeenValues:
    """Values of a column in the training rows.

    Attributes:
        has_missing: True if values are missing.
        span: smallest and largest number, of dates in days since 1970; None for other kinds.

    >>> SeenValues(False, (500.0, 9000.0)).is_far(np.array([12_000.0, 80_000.0, np.nan])).tolist()
    [False, True, False]
    """

    has_missing: bool
    span: tuple[float, float] | None = None

    def is_far(self, values: np.ndarray) -> np.ndarray:
        """Return (N,) booleans: True for numbers further outside of the span than it is wide."""
        if self.span is None:
            return np.zeros(len(values), bool)
        low, high = self.span
        return (values < low - (high - low)) | (values > high + (high - low))

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes that are set, as JSON values."""
        return {"has_missing": self.has_missing} | ({"span": list(self.span)} if self.span else {})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SeenValues":
        """Return the values that `as_dict` returned.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: a value is missing or has another type.
        """
        span = None
        if values.get("span") is not None:
            low, high = map(float, values["span"])
            span = (low, high)
        return cls(values["has_missing"] is True, span)
