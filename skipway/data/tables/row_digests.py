"""Digests of rows: equal for equal cells and targets, to detect duplicates within and across tables."""

import hashlib
from collections.abc import Sequence

import numpy as np

from skipway.data.sources.read_table import Table
from skipway.data.tables.columns import as_texts, factorize_texts

__all__ = ["digest_rows"]


def digest_rows(tables: Sequence[Table], names: list[str], y: np.ndarray) -> list[str]:
    """Return a digest of each row's cells and target, independent of the order of the columns.

    Args:
        tables: tables whose rows are digested one after the other.
        names: names of the columns to include.
        y: (N,) targets of all rows.

    Returns:
        N hex digests.
    """
    parts = []
    for table in tables:
        columns = [_digest_cells(table.columns[name]) for name in sorted(names) if name in table.columns]
        parts.append(np.stack(columns, axis=1) if columns else np.zeros((len(table), 0), np.uint64))
    cells = np.concatenate([np.concatenate(parts), y.astype(np.float64).view(np.uint64)[:, None]], axis=1)
    return [hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in np.ascontiguousarray(cells)]


def _digest_cells(raw: np.ndarray) -> np.ndarray:
    """Return (N,) digests of a column's cells, 0 for missing values."""
    codes, values = factorize_texts(as_texts(raw))
    digests = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in values]
    return np.array([*(int.from_bytes(digest, "little") for digest in digests), 0], np.uint64)[codes]
