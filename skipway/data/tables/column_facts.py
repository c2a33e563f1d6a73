"""Facts about all columns of a table, for the console, the report, `check` and columns.yaml: how and why each was read.

Shapes: N rows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from skipway.data.sources.table import Table
from skipway.data.sources.text_column import Cells, TextColumn
from skipway.data.tables.column_choice import ColumnChoice
from skipway.data.tables.column_settings import LEFT_OUT, TARGET
from skipway.data.tables.columns import Column, factorize_texts, missing_mask
from skipway.data.tables.number_cells import CellRole, read_texts
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import printable
from skipway.utils.format_text import count_of

__all__ = ["CellCounts", "column_lines", "describe_columns", "describe_reading"]

_SAMPLED = 100  # distinct texts of which the longest number is the example
_LONGEST = 40  # characters of an example
_HEADER = ("column", "kind", "missing", "odd", "example", "why")
_SHOWN = {"column": 40, "example": 24}  # characters of a cell of the printed table

CellCounts = Mapping[str, int]


def describe_columns(
    train: Table, spec: TableSpec, choice: ColumnChoice, *, missing: CellCounts, unseen: CellCounts, count: int
) -> dict[str, dict[str, Any]]:
    """Return how each column of a table was read, as plain values by name, in the order of the table.

    Args:
        train: the training table.
        spec: encoders of the used columns.
        choice: the reasons for kinds and for unused columns.
        missing: {column: number of missing values in all tables}.
        unseen: {column: number of values that are rare or unseen categories, in all tables}.
        count: number of rows in all tables.

    Returns:
        For each column its kind, why it has this kind, the style of numbers that are not plain, the shares of missing
        and odd values, and an example. Odd values are read as missing, as a bound, or as a rare category. The shares of
        a column that an option leaves out are None, because its cells are not read.
    """
    used = {column.name: column for column in spec.columns}
    facts = {}
    for name, raw in train.columns.items():
        if name in used:
            column = used[name]
            odd = unseen.get(name, 0) / count if column.kind == "category" else _odd_share(column, raw)
            facts[name] = {
                "kind": column.kind,
                "why": _reason(column, raw, choice),
                "style": style.describe() if (style := column.dates or column.style) else "",
                "missing": round(missing.get(name, 0) / count, 6),
                "odd": round(odd, 6),
                "example": printable(_example(column, raw))[:_LONGEST],
            }
        elif name in spec.target_names:
            facts[name] = _unread(TARGET, spec.task, raw)
        elif name in choice.left_out:
            why = choice.left_out[name]
            facts[name] = _unread(LEFT_OUT, why, raw, is_read=not why.startswith(("--", "not in --")))
    return facts


def describe_reading(facts: Mapping[str, Any]) -> str:
    """Describe the style, the missing values and an example of a column in words."""
    parts = [facts["style"]] if facts["style"] else []
    if facts["missing"]:
        parts.append(f"{max(facts['missing'], 0.001):.1%} missing")
    return ", ".join([*parts, f"such as {facts['example']!r}"])


def column_lines(details: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the facts of `describe_columns` as the lines of a table."""
    rows: list[tuple[str, ...]] = [_HEADER]
    for name, facts in details.items():
        why = "; ".join(filter(None, (facts["why"], facts["style"])))
        shares = (_share(facts["missing"]), _share(facts["odd"]))
        rows.append((printable(name), facts["kind"], *shares, facts["example"], why))
    rows = [tuple(cell[: _SHOWN.get(head, len(cell))] for head, cell in zip(_HEADER, row, strict=True)) for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _share(share: float | None) -> str:
    if not share:
        return "-" if share is None else "0%"
    return f"{max(share, 0.001):.1%}"


def _unread(kind: str, why: str, raw: Cells, *, is_read: bool = True) -> dict[str, Any]:
    """Return the facts of a column that is no input; its cells are read only if `is_read` is set."""
    missing, example = None, ""
    if is_read:
        missing = round(float(missing_mask(raw).mean()), 6)
        example = printable(_first(raw))[:_LONGEST]
    return {"kind": kind, "why": why, "style": "", "missing": missing, "odd": None, "example": example}


def _reason(column: Column, raw: Cells, choice: ColumnChoice) -> str:
    """Return why a column has its kind: the rule that decided, or else what its cells show, and who set it."""
    origin = choice.origins.get(column.name)
    reason = choice.reasons.get(column.name) or _evidence(column, raw)
    return f"{reason}; set by {origin}" if origin else reason


def _evidence(column: Column, raw: Cells) -> str:
    """Return what the cells of a column show about its kind, in a few words."""
    if column.kind == "number":
        odd = _odd_share(column, raw)
        share = f"{1 - odd:.1%} " if odd else ""
        return f"{share}numbers around {column.center:.4g}"
    if column.kind == "date":
        return "dates"
    texts = factorize_texts(raw)[1]
    if column.kind == "boolean":
        return f"only {' and '.join(repr(printable(text)) for text in sorted(texts)[:2])}"
    declared = "declared as a category, " if isinstance(raw, TextColumn) and raw.is_category else ""
    return f"{declared}{count_of(len(texts), 'distinct value')}"


def _odd_share(column: Column, raw: Cells) -> float:
    """Return the share of the present cells of a column of numbers that are not read as a number."""
    if column.style is None or not isinstance(raw, TextColumn) or raw.numbers is not None:
        return 0.0
    codes, texts = raw.factorize_present()
    style = column.style
    roles = raw.parse_once(style, lambda: read_texts(texts, style))[1]
    counts = np.bincount(codes[codes >= 0], minlength=len(texts))
    return float(counts[roles != CellRole.NUMBER].sum() / max(1, counts.sum()))


def _first(raw: Cells) -> str:
    """Return the first number or text of a column."""
    numbers = raw.numbers if isinstance(raw, TextColumn) else raw
    if numbers is not None and numbers.dtype != object:
        present = numbers[np.isfinite(numbers)][:1].tolist()
        return f"{present[0]:.15g}" if present else ""
    assert isinstance(raw, TextColumn)
    texts = raw.factorize_present()[1]
    return texts[0].replace("\0", ", ") if texts else ""


def _example(column: Column, raw: Cells) -> str:
    """Return a cell: the longest number of some, which shows the style, the first category, or the first text."""
    if column.kind == "category":
        texts = factorize_texts(raw)[1][:_SAMPLED]
        return max(texts, key=lambda text: (text.startswith("0"), -texts.index(text)), default="")
    if column.style is None or not isinstance(raw, TextColumn) or raw.numbers is not None:
        return _first(raw)
    texts = raw.factorize_present()[1][:_SAMPLED]
    _, roles = read_texts(texts, column.style)
    texts = [text for text, role in zip(texts, roles, strict=True) if role == CellRole.NUMBER]
    return max(texts, key=len, default="")
