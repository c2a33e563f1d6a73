"""Whole numbers: counts in options, of Python or NumPy."""

import operator
from typing import Any

__all__ = ["whole_number"]


def whole_number(value: Any) -> int:
    """Return an integer of Python or NumPy as an int; a bool is none, although Python counts with it.

    Raises:
        TypeError: the value is no integer.

    >>> whole_number(7)
    7
    """
    if isinstance(value, bool):
        raise TypeError("a bool is no count")
    return operator.index(value)
