"""Digests of rows: equal for equal cells and targets, to detect duplicates within and across tables.

A digest is the sum of the hashes of a row's cells, so that the order of the columns does not matter. Numbers are hashed
by their value, all other cells by their text.
Sources: the mixing function of SplitMix64, Steele et al. 2014, doi:10.1145/2660193.2660195.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from skipway.data.sources.table import Table
from skipway.data.sources.text_column import Cells
from skipway.data.tables.columns import CellStyle, Column, ColumnKind, factorize_texts, read_numbers

__all__ = ["DIGEST_PREFIX", "digest_encoded", "digest_rows"]

_MISSING = np.uint64(0x7FF8DEAD00000000)  # a NaN that no computation returns
_HEX = 32  # characters of a digest: two hashes of 64 bits
DIGEST_PREFIX = "2:"  # version of these digests; those of earlier versions have no prefix and differ


def digest_rows(
    tables: Sequence[Table],
    kinds: Mapping[str, ColumnKind],
    y: np.ndarray,
    styles: Mapping[str, CellStyle | None] | None = None,
) -> list[str]:
    """Return a digest of each row's cells and target, independent of the order of the columns.

    Args:
        tables: tables whose rows are digested one after the other.
        kinds: {name: kind} of the columns to include.
        y: (N,) or (N, T) targets of all rows.
        styles: {name: style} of the columns of numbers; others are ignored.

    Returns:
        N digests: `DIGEST_PREFIX` and 32 hex digits.
    """
    parts = [_sum_cells(table, kinds, styles or {}) for table in tables]
    sums = np.concatenate(parts)
    for i, values in enumerate(y.reshape(len(y), -1).T):
        _add(sums, _hash_numbers(values.astype(np.float64)), f"\0target {i}")
    text = np.ascontiguousarray(sums, "<u8").tobytes().hex()
    return [DIGEST_PREFIX + text[begin : begin + _HEX] for begin in range(0, len(text), _HEX)]


def digest_encoded(table: Table, columns: Sequence[Column], y: np.ndarray) -> list[str]:
    """Return the digests of `digest_rows` for the rows of one table and the columns of their encoders."""
    kinds, styles = ({c.name: getattr(c, name) for c in columns} for name in ("kind", "cell_style"))
    return digest_rows([table], kinds, y, styles)


def _sum_cells(table: Table, kinds: Mapping[str, ColumnKind], styles: Mapping[str, CellStyle | None]) -> np.ndarray:
    """Return (N, 2) sums of the hashes of each row's cells."""
    sums = np.zeros((len(table), 2), np.uint64)
    for name, kind in kinds.items():
        if name in table.columns:
            cells = table.columns[name]
            is_number = kind == "number"
            numbers = read_numbers(cells, kind, name, styles.get(name))[0] if is_number else None
            _add(sums, _hash(cells) if numbers is None else _hash_numbers(numbers), name)
    return sums


def _add(sums: np.ndarray, cells: np.ndarray, name: str) -> None:
    """Add two hashes of each cell of a column to the sums (N, 2)."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    for lane, seed in enumerate(np.frombuffer(digest, "<u8")):
        sums[:, lane] += _mix(cells + seed)


def _mix(values: np.ndarray) -> np.ndarray:
    """Hash (N,) integers in place."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _hash_numbers(values: np.ndarray) -> np.ndarray:
    """Return the bits of (N,) float64 numbers; 0 and -0 are equal, and so are all missing values."""
    bits = (values + 0.0).view(np.uint64)
    bits[np.isnan(values)] = _MISSING
    return bits


def _hash(raw: Cells) -> np.ndarray:
    """Return (N,) hashes of a column's texts."""
    codes, texts = factorize_texts(raw)
    digests = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts]
    hashes = np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
    return np.append(hashes, _MISSING)[codes]
