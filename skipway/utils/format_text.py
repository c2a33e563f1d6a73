"""Text helpers shared by errors, console lines and tables: joined names, sizes and short values."""

import reprlib
from collections.abc import Iterable
from typing import Any

from skipway.errors import printable

__all__ = ["join_names", "join_sizes", "short_repr"]


def join_names(names: Iterable[str], limit: int, separator: str = ", ") -> str:
    """Join the first `limit` names and count the others.

    >>> join_names(["a", "b", "c", "d"], limit=2)
    'a, b and 2 more'
    """
    names = list(names)
    joined = separator.join(names[:limit])
    return f"{joined} and {len(names) - limit:,} more" if len(names) > limit else joined


def join_sizes(sizes: Any) -> str:
    """Write the sizes of a list with dashes, as networks are described; anything else as it is.

    >>> join_sizes([3, 4, 6, 3])
    '3-4-6-3'
    """
    return "-".join(map(str, sizes)) if isinstance(sizes, list | tuple) else str(sizes)


def short_repr(value: Any) -> str:
    """Write any value on one short line, even one that YAML aliases make endless."""
    shortener = reprlib.Repr()
    shortener.maxlevel, shortener.maxstring = 2, 120
    return printable(shortener.repr(value))
