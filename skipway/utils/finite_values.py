"""Plain values for JSON, which has no NaN and no infinity."""

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["finite_values"]


def finite_values(value: Any) -> Any:
    """Return nested plain values with None for each number that is not finite, and lists for tuples.

    >>> finite_values({"a": (1.5, math.nan), "b": {"c": -math.inf}})
    {'a': [1.5, None], 'b': {'c': None}}
    """
    if isinstance(value, Mapping):
        return {key: finite_values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite_values(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
