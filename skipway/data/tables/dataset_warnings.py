"""Warnings about tables: duplicate rows, target leakage and identifiers."""

import numpy as np

from skipway.data.images.split import FEW, IMBALANCED
from skipway.data.sources.table import Table, join_quoted
from skipway.data.sources.text_column import Cells, TextColumn
from skipway.data.tables.columns import factorize_texts, read_numbers
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import printable
from skipway.utils.format_text import count_of

__all__ = ["warn_of_copies", "warn_of_leaks", "warn_of_splits"]

_MAX_LEAK_VALUES = 50  # a column with more distinct values may determine the class without leakage
_SAMPLED = 1000  # rows of a column of numbers that show that it has many values
_IDENTIFIERS = ("id", "uuid", "guid", "index", "key", "rowid")


def warn_of_copies(digests: list[str], splits: dict[str, np.ndarray]) -> list[str]:
    """Return warnings about duplicate rows, within and across splits.

    Args:
        digests: N digests of the rows' contents.
        splits: row indices of each split.
    """
    import pandas as pd

    codes, distinct = pd.factorize(np.array(digests, object))
    homes = np.zeros(len(distinct), np.int64)  # number of splits with this content
    for indices in splits.values():
        homes[np.unique(codes[indices])] += 1
    across = sum(int((homes[codes[indices]] > 1).sum()) for split, indices in splits.items() if split != "train")
    warnings = []
    if across:
        warnings.append(f"duplicates across splits: {across:,}. Validation and test metrics are inflated.")
    if copies := len(codes) - len(distinct):
        warnings.append(f"exact duplicates of other rows: {copies:,}")
    return warnings


def warn_of_leaks(train: Table, names: list[str], *, spec: TableSpec, y: np.ndarray) -> list[str]:
    """Return warnings about columns that determine the target or look like identifiers.

    Args:
        train: the training table.
        names: names of the columns to check.
        spec: encoders of the table, with its target and task.
        y: (N,) targets; the rows of `train` come first.
    """
    warnings = []
    y = y[: len(train)]
    kinds = {column.name: column.kind for column in spec.columns}
    for name in names:
        raw = train.columns[name]
        numbers = read_numbers(raw, "number", name)[0] if kinds[name] == "number" else None
        if spec.task == "classification" and _determines_class(
            raw if numbers is None else numbers, y, spec.num_classes
        ):
            warnings.append(_leak(name, spec.target))
        if numbers is None:
            continue
        if spec.task == "regression" and _is_linear(numbers, y):
            warnings.append(_leak(name, spec.target))
        if _is_named_as_identifier(name) and len(raw) >= 20 and _are_distinct_integers(numbers):
            warnings.append(
                f"column {printable(name)!r} looks like an identifier: all values differ. Exclude it with --ignore."
            )
    return warnings


def warn_of_splits(
    spec: TableSpec, y: np.ndarray, splits: dict[str, np.ndarray], left_out: dict[str, str]
) -> list[str]:
    """Return warnings about unused columns, class imbalance, small classes and few validation rows.

    Args:
        spec: encoders of the table, with its class names.
        y: (N,) targets.
        splits: row indices of each split.
        left_out: {unused column: reason}.
    """
    warnings = []
    if left_out:
        warnings.append(f"unused columns: {join_quoted([f'{name} ({why})' for name, why in left_out.items()], 12)}")
    if names := spec.class_names:
        counts = np.bincount(y[splits["train"]], minlength=len(names))
        if counts.max() >= IMBALANCED * max(1, counts.min()):
            low, high = printable(names[int(counts.argmin())]), printable(names[int(counts.argmax())])
            warnings.append(
                f"class imbalance ({low} {counts.min():,}, {high} {counts.max():,} training rows): accuracy favors "
                "large classes. See the per-class metrics."
            )
        if few := [names[k] for k in np.flatnonzero(counts < FEW)]:
            warnings.append(
                f"fewer than {FEW} training rows: {join_quoted(few, 5)}. Expect low accuracy for these classes."
            )
    validation = len(splits.get("val", ()))
    if 0 < validation < 100:
        warnings.append(f"only {count_of(validation, 'validation row')}: metrics are uncertain")
    return warnings


def _determines_class(raw: Cells, y: np.ndarray, num_classes: int) -> bool:
    """Return True if each of a few distinct values of a column occurs with one class only."""
    codes, values = _few_values(raw)
    if not 2 <= values <= _MAX_LEAK_VALUES or len(codes) < 3 * values:
        return False
    counts = np.zeros((values + 1, num_classes), np.int64)
    np.add.at(counts, (codes, y), 1)
    return bool(counts.max(axis=1).sum() == len(codes))


def _few_values(raw: Cells) -> tuple[np.ndarray, int]:
    """Return (N,) codes, -1 for missing values, and the number of distinct values.

    For a column of many numbers, only some rows are used.
    """
    import pandas as pd

    if isinstance(raw, TextColumn):
        codes, texts = factorize_texts(raw)
        return codes, len(texts)
    some = raw[:_SAMPLED]
    codes, values = pd.factorize(some if len(np.unique(some)) > _MAX_LEAK_VALUES + 1 else raw)
    return codes, len(values)


def _are_distinct_integers(numbers: np.ndarray) -> bool:
    return bool(np.all(numbers == np.round(numbers))) and len(np.unique(numbers)) == len(numbers)


def _is_linear(numbers: np.ndarray, y: np.ndarray) -> bool:
    """Return True if the target is a linear function of a column."""
    known = ~np.isnan(numbers)
    if known.sum() <= 2 or not np.ptp(numbers[known]) > 0 or not np.ptp(y[known]) > 0:
        return False
    with np.errstate(all="ignore"):
        return bool(abs(np.corrcoef(numbers[known], y[known])[0, 1]) > 0.99999)


def _leak(name: str, target: str) -> str:
    return (
        f"column {printable(name)!r} determines the target {printable(target)!r}, which may be target leakage. If it "
        "is not known at prediction time, exclude it with --ignore."
    )


def _is_named_as_identifier(name: str) -> bool:
    plain = name.casefold().replace("-", "_").replace(" ", "_")
    return plain in _IDENTIFIERS or plain.endswith(("_id", "_key", "_no", "_nr")) or name.endswith(("Id", "ID"))
