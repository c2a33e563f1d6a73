"""Warnings of a table's rows and columns: copies, columns that tell the target, identifiers."""

import numpy as np

from skipway.data.sources.read_table import Table
from skipway.data.tables.columns import as_texts, factorize_texts, read_numbers
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import printable

__all__ = ["warn_of_copies", "warn_of_leaks"]

_MAX_LEAK_VALUES = 50  # different values up to which a column that tells the target is a leak, not a fine measure
_IDENTIFIERS = ("id", "uuid", "guid", "index", "key", "rowid")


def warn_of_copies(digests: list[str], splits: dict[str, np.ndarray]) -> list[str]:
    """Count the rows that come more than once."""
    home: dict[str, set[str]] = {}
    for split, indices in splits.items():
        for i in indices:
            home.setdefault(digests[i], set()).add(split)
    across = 0
    for split in splits.keys() - {"train"}:
        across += sum(len({split} | home[digests[i]]) > 1 for i in splits[split])
    warnings = []
    if across:
        warnings.append(f"{across:,} rows stand in more than one split, target and all: figures are flattered by them")
    if copies := len(digests) - len(home):
        warnings.append(f"{copies:,} rows are exact copies of others")
    return warnings


def warn_of_leaks(train: Table, names: list[str], *, spec: TableSpec, y: np.ndarray) -> list[str]:
    """Find columns that tell the target by themselves, and those that look like identifiers."""
    warnings = []
    y = y[: len(train)]
    kinds = {column.name: column.kind for column in spec.columns}
    for name in names:
        raw = train.columns[name]
        codes, values = factorize_texts(as_texts(raw))
        if spec.task == "classification" and _determines_class(codes, y, len(values), spec.num_classes):
            warnings.append(_leak(name, spec.target))
        if kinds[name] != "number":
            continue
        numbers = read_numbers(raw, "number", name)[0] if raw.dtype == object else raw
        if spec.task == "regression" and _is_linear(numbers, y):
            warnings.append(_leak(name, spec.target))
        all_differ = len(values) == len(raw) >= 20
        if all_differ and np.all(numbers == np.round(numbers)) and _is_named_as_identifier(name):
            warnings.append(
                f"column {printable(name)!r} looks like an identifier: every value differs; leave it out with --ignore"
            )
    return warnings


def _determines_class(codes: np.ndarray, y: np.ndarray, num_values: int, num_classes: int) -> bool:
    """Tell whether a column of few different values has one class for each of them."""
    if not 2 <= num_values <= _MAX_LEAK_VALUES or len(codes) < 3 * num_values:
        return False
    counts = np.zeros((num_values + 1, num_classes), np.int64)
    np.add.at(counts, (codes, y), 1)
    return bool(counts.max(axis=1).sum() == len(codes))


def _is_linear(numbers: np.ndarray, y: np.ndarray) -> bool:
    """Tell whether the target is a linear function of a column."""
    known = ~np.isnan(numbers)
    if known.sum() <= 2 or not np.ptp(numbers[known]) > 0 or not np.ptp(y[known]) > 0:
        return False
    with np.errstate(all="ignore"):
        return bool(abs(np.corrcoef(numbers[known], y[known])[0, 1]) > 0.99999)


def _leak(name: str, target: str) -> str:
    return (
        f"column {printable(name)!r} tells the target {printable(target)!r} by itself: a leak, unless it is known "
        "before the target is; leave it out with --ignore"
    )


def _is_named_as_identifier(name: str) -> bool:
    plain = name.casefold().replace("-", "_").replace(" ", "_")
    return plain in _IDENTIFIERS or plain.endswith(("_id", "_key", "_no", "_nr")) or name.endswith(("Id", "ID"))
