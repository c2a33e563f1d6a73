"""Text formatting for errors, console lines and tables: names, sizes and short values."""

import reprlib
from collections.abc import Iterable
from typing import Any

from skipway.errors import printable

__all__ = ["join_names", "join_sizes", "short_repr"]


def join_names(names: Iterable[str], limit: int, separator: str = ", ") -> str:
    """Join the first `limit` names, and append the number of the others.

    >>> join_names(["a", "b", "c", "d"], limit=2)
    'a, b and 2 more'
    """
    names = list(names)
    joined = separator.join(names[:limit])
    return f"{joined} and {len(names) - limit:,} more" if len(names) > limit else joined


def join_sizes(sizes: Any) -> str:
    """Join a list of sizes with dashes, as in "ResNet 3-4-6-3"; convert other values to str.

    >>> join_sizes([3, 4, 6, 3])
    '3-4-6-3'
    """
    return "-".join(map(str, sizes)) if isinstance(sizes, list | tuple) else str(sizes)


def short_repr(value: Any) -> str:
    """Format any value as one short line, also nested values with cycles, which YAML aliases allow.

    >>> short_repr(list(range(100)))
    '[0, 1, 2, 3, 4, 5, ...]'
    """
    shortener = reprlib.Repr()
    shortener.maxlevel, shortener.maxstring = 2, 120
    return printable(shortener.repr(value))
