"""Warnings about tables: duplicate rows, target leakage and identifiers."""

import numpy as np

from skipway.data.images.split import FEW, IMBALANCED
from skipway.data.sources.table import Table, join_quoted
from skipway.data.sources.text_column import Cells, TextColumn
from skipway.data.tables.columns import ABSENT, UNSEEN, factorize_texts
from skipway.data.tables.input_kinds import LONG_TEXT
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import printable
from skipway.utils.format_text import count_of

__all__ = ["count_rows", "describe_rare", "warn_of_copies", "warn_of_leaks", "warn_of_rare", "warn_of_splits"]

_MAX_LEAK_VALUES = 50  # a column with more distinct values may determine the class without leakage
_SAMPLED = 1000  # rows of a column of numbers that show that it has many values
_MAX_RARE = 0.3  # share of rows with rare categories above which a column is of little use
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
        y: targets as in a TableDataset, but numbers in their units; the rows of `train` come first.
    """
    warnings = []
    y = y[: len(train)]
    columns = {column.name: column for column in spec.columns}
    for name in names:
        raw = train.columns[name]
        numbers = columns[name].read_numbers(raw)[0] if columns[name].kind == "number" else None
        cells = raw if numbers is None else numbers
        warnings += [_leak(name, target) for target in _determined(cells, spec, y)]
        if numbers is None:
            continue
        if _is_named_as_identifier(name) and len(raw) >= 20 and _are_distinct_integers(numbers):
            warnings.append(
                f"column {printable(name)!r} looks like an identifier: all values differ. Exclude it with --ignore."
            )
    return warnings


def warn_of_rare(spec: TableSpec, x: np.ndarray) -> list[str]:
    """Return warnings about columns in which many training rows have a rare category.

    Args:
        spec: encoders of the table.
        x: (N, F + K) encoded training rows.
    """
    warnings = []
    slots = x[:, spec.input_shape[0] - len(spec.category_columns) :]
    for column, indices in zip(spec.category_columns, slots.T, strict=True):
        warnings += describe_rare(column.name, (indices == UNSEEN).sum() / max(1, (indices != ABSENT).sum()))
    return warnings


def describe_rare(name: str, share: float) -> list[str]:
    """Return a warning about a column if the share of its training cells with a rare category is high."""
    if share <= _MAX_RARE:
        return []
    return [
        f"column {printable(name)!r}: {share:.0%} of the training rows have a rare category, and all of these are "
        "encoded alike. Group rare values, or leave the column out."
    ]


def count_rows(y: np.ndarray, count: int) -> np.ndarray:
    """Return the number of rows of each class, from (N,) indices, or with each label, from (N, K) labels of 0 and 1."""
    return (y > 0.5).sum(axis=0) if y.ndim == 2 else np.bincount(y, minlength=count)


def warn_of_splits(
    spec: TableSpec, y: np.ndarray, splits: dict[str, np.ndarray], left_out: dict[str, str]
) -> list[str]:
    """Return warnings about unused columns, class imbalance, small classes and few validation rows.

    Args:
        spec: encoders of the table, with its class names.
        y: targets as in a TableDataset.
        splits: row indices of each split.
        left_out: {unused column: reason}.
    """
    warnings = []
    if unused := [f"{name} ({why})" for name, why in left_out.items() if not why.startswith(LONG_TEXT)]:
        warnings.append(f"unused columns: {join_quoted(unused, 12)}")
    if names := spec.class_names:
        counts = count_rows(y[splits["train"]], len(names))
        if spec.task == "classification" and counts.max() >= IMBALANCED * max(1, counts.min()):
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


def _determined(cells: Cells, spec: TableSpec, y: np.ndarray) -> list[str]:
    """Return the targets, or labels, that a column determines by itself."""
    if spec.task == "regression":
        return [name for name, values in zip(spec.target_names, y.T, strict=True) if _is_linear(cells, values)]
    codes, values = _few_values(cells)
    if not 2 <= values <= _MAX_LEAK_VALUES or len(codes) < 3 * values:
        return []
    if spec.task == "classification":
        return [spec.target] if _determines(codes, y, spec.num_outputs) else []
    labels = zip(spec.class_names, y.T, strict=True)
    return [name for name, label in labels if 0 < label.sum() < len(label) and _determines(codes, label > 0.5, 2)]


def _determines(codes: np.ndarray, y: np.ndarray, num_classes: int) -> bool:
    """Return True if each value of a column, as codes of which -1 is missing, occurs with one class only."""
    counts = np.bincount((codes + 1) * num_classes + y, minlength=(codes.max() + 2) * num_classes)
    return bool(counts.reshape(-1, num_classes).max(axis=1).sum() == len(codes))


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


def _is_linear(numbers: Cells, y: np.ndarray) -> bool:
    """Return True if the target is a linear function of a column of numbers."""
    if not isinstance(numbers, np.ndarray):
        return False
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
