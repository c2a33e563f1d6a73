"""Facts about the columns that a model uses, for the console, the report and `check`: how each was read.

Shapes: N rows.
"""

from typing import Any

import numpy as np

from skipway.data.sources.text_column import Cells, TextColumn
from skipway.data.tables.columns import Column
from skipway.data.tables.number_cells import CellRole, read_texts
from skipway.errors import printable

__all__ = ["column_facts", "describe_reading"]

_SAMPLED = 100  # distinct texts of which the longest number is the example
_LONGEST = 40  # characters of an example


def column_facts(column: Column, raw: Cells, missing: int, count: int) -> dict[str, Any]:
    """Return how a column was read, as plain values.

    Args:
        column: its encoder.
        raw: (N,) cells of the training table.
        missing: number of missing values in all tables.
        count: number of rows in all tables.

    Returns:
        The kind, the style of numbers that are not plain, the share of missing values, and an example.
    """
    return {
        "kind": column.kind,
        "style": style.describe() if (style := column.dates or column.style) else "",
        "missing": round(missing / count, 6),
        "example": printable(_example(column, raw))[:_LONGEST],
    }


def describe_reading(facts: dict[str, Any]) -> str:
    """Describe the style, the missing values and an example of a column in words."""
    parts = [facts["style"]] if facts["style"] else []
    if facts["missing"]:
        parts.append(f"{max(facts['missing'], 0.001):.1%} missing")
    return ", ".join([*parts, f"such as {facts['example']!r}"])


def _example(column: Column, raw: Cells) -> str:
    """Return a cell: the longest number of some, which shows the style, or the first text."""
    numbers = raw.numbers if isinstance(raw, TextColumn) else raw
    if numbers is not None and numbers.dtype != object:
        present = numbers[np.isfinite(numbers)][:1].tolist()
        return f"{present[0]:.15g}" if present else ""
    assert isinstance(raw, TextColumn)
    texts = raw.factorize_present()[1][:_SAMPLED]
    if column.style is not None:
        _, roles = read_texts(texts, column.style)
        texts = [text for text, role in zip(texts, roles, strict=True) if role == CellRole.NUMBER]
        return max(texts, key=len, default="")
    return texts[0] if texts else ""
