"""Targets that are passed in Python: classes, labels or numbers of each split, from arrays, lists and DataFrames.

Shapes: N samples of a split, K labels or columns.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from skipway.data.output_spec import TaskName
from skipway.data.sources.image_source import refuse_near_equal
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of, join_names

__all__ = ["PlainTargets", "as_array", "plain_targets"]

_MOST_INTEGERS = 20  # distinct integers up to which few samples of each are classes, too


@dataclass(frozen=True)
class PlainTargets:
    """Targets of all splits, as in a Source, without the samples that have none.

    Attributes:
        task: inferred or requested task.
        class_names: names of the classes or labels; empty for regression.
        target_names: names of the numbers; empty for classes and labels.
        values: {split: targets}.
        kept: {split: indices of the samples with a target}.
    """

    task: TaskName
    class_names: tuple[str, ...]
    target_names: tuple[str, ...]
    values: dict[str, np.ndarray]
    kept: dict[str, np.ndarray]


def plain_targets(
    y: Mapping[str, Any], task: str = "auto", names: tuple[str, ...] = (), *, is_known: bool = False
) -> PlainTargets:
    """Convert targets to classes, labels or numbers.

    Text, booleans and integers are classes; numbers with a fraction are a regression target. Several columns of 0 and
    1, and lists of labels, are labels; several columns of other numbers are a regression target each. None, NaN, NA of
    pandas and blank text are missing targets.

    Args:
        y: {split: N targets}, with "train".
        task: "auto", "classification", "multilabel" or "regression".
        names: names of the classes that integers mean, or ().
        is_known: True if a trained model has the classes or targets, so that one class or constant numbers are enough.

    Raises:
        InputError: the targets do not fit each other or the task.
    """
    columns = [str(name) for name in y["train"].columns] if hasattr(y["train"], "columns") else []
    values = {split: _one_axis(as_array(targets)) for split, targets in y.items()}
    if any(targets.dtype.kind == "c" for targets in values.values()):
        raise InputError("cannot use y: expected real numbers, got complex ones. Store the two parts separately.")
    train = values["train"]
    if train.dtype == object and train.ndim == 1 and any(map(_is_list, train)):
        return _labels_of_lists(values, task)
    if any(v.shape[1:] != train.shape[1:] for v in values.values()):
        shapes = ", ".join(f"{split} {v.shape}" for split, v in values.items())
        raise InputError(f"cannot use y: expected as many columns in each split, got {shapes}. Reshape the targets.")
    if train.ndim == 2:
        return _columns(values, task, columns, is_known)
    if train.ndim != 1:
        raise InputError(f"cannot use y: expected one or two axes (N,) or (N, K), got {train.shape}. Reshape it.")
    is_fractional = train.dtype.kind == "f" and bool(np.any(train[np.isfinite(train)] % 1))
    if task == "regression" or (task == "auto" and is_fractional):
        return _numbers({split: v[:, None] for split, v in values.items()}, columns[:1] or ["y"], is_known)
    if task == "multilabel":
        raise InputError(
            "cannot use y for task multilabel: expected lists of labels or a matrix (N, K) of 0 and 1, got an array "
            f"{train.shape} of {train.dtype}. Pass one of these."
        )
    classes = _classes(values, names, least=1 if is_known else 2)
    if task == "auto" and train.dtype.kind in "iuf" and not names and not is_known:
        _refuse_counts(len(classes.class_names), len(train))
    return classes


def _refuse_counts(classes: int, samples: int) -> None:
    """Raise InputError for integers that hardly repeat, such as prices or ages, if no task is set."""
    if classes > max(_MOST_INTEGERS, samples // 2):
        raise InputError(
            f"cannot infer the task of y: expected classes that repeat, got {classes:,} distinct integers in "
            f"{samples:,} samples. Set task to regression or classification."
        )


def _one_axis(targets: np.ndarray) -> np.ndarray:
    """Return a single column (N, 1) as (N,), and numbers with missing ones among them as floats with NaN."""
    targets = targets[:, 0] if targets.ndim == 2 and targets.shape[1] == 1 else targets
    if targets.dtype != object:
        return targets
    flat = [None if _is_missing(value) else value for value in targets.ravel().tolist()]
    present = [value for value in flat if value is not None]
    is_boolean = targets.ndim == 1 and any(isinstance(value, bool | np.bool_) for value in present)
    if not is_boolean and all(isinstance(value, int | float | np.number | np.bool_) for value in present):
        return np.array([np.nan if value is None else value for value in flat], np.float64).reshape(targets.shape)
    return targets


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset | np.ndarray)


def _is_missing(value: Any) -> bool:
    """Return True for None, NaN, NaT, NA of pandas and blank text."""
    if value is None or _is_list(value):
        return value is None
    if isinstance(value, str):
        return not value.strip()
    is_equal = value == value  # False for NaN and NaT; NA, which has no truth value, for NA
    return not isinstance(is_equal, bool | np.bool_) or not is_equal


def as_array(targets: Any) -> np.ndarray:
    """Return targets as an array; lists of different lengths become an array of objects."""
    if hasattr(targets, "detach"):
        return np.asarray(targets.detach().cpu().numpy())
    if hasattr(targets, "to_numpy"):
        return np.asarray(targets.to_numpy())
    if isinstance(targets, np.ndarray):
        return targets
    rows = [t.tolist() if hasattr(t, "tolist") else t for t in targets]  # scalars and arrays of numpy and torch
    lengths = {len(row) if isinstance(row, list | tuple | set | frozenset) else -1 for row in rows}
    is_matrix = len(lengths) == 1 and not lengths & {-1, 0} and all(_are_numbers(row) for row in rows)
    if is_matrix:
        return np.array([list(row) for row in rows])
    if lengths == {-1} and all(isinstance(row, int | float) for row in rows):
        return np.array(rows)
    array = np.empty(len(rows), object)
    array[:] = rows
    return array


def _are_numbers(row: Any) -> bool:
    return isinstance(row, list | tuple) and all(isinstance(v, int | float) for v in row)


def _classes(values: dict[str, np.ndarray], names: tuple[str, ...], least: int) -> PlainTargets:
    texts = {}
    for split, targets in values.items():
        _refuse_fractions(targets, split)
        texts[split] = [_class_text(value, names) for value in targets.tolist()]
    present = {text for text in texts["train"] if text is not None}
    class_names = tuple(name for name in names if name in present) or tuple(sorted(present, key=_natural))
    refuse_near_equal(list(class_names), "y")
    if len(class_names) < least:
        got = f"only {printable(class_names[0])!r}" if class_names else "none"
        classes = count_of(least, "class", "classes")
        raise InputError(f"cannot use y: expected at least {classes}, got {got}. Add samples of another class.")
    index = {name: i for i, name in enumerate(class_names)}
    kept = {split: np.flatnonzero([text is not None for text in of]) for split, of in texts.items()}
    indices = {}
    for split, of in texts.items():
        unknown = [text for text in of if text is not None and text not in index]
        if unknown:
            raise InputError(
                f"cannot use y of {split}: expected the classes of the training set "
                f"({join_names(map(printable, class_names), limit=8)}), got {printable(unknown[0])!r}. Correct it."
            )
        indices[split] = np.array([index[text] for text in of if text is not None], np.int64)
    return PlainTargets("classification", class_names, (), indices, kept)


def _refuse_fractions(targets: np.ndarray, split: str) -> None:
    """Raise InputError for a number among classes that is no integer."""
    if targets.dtype.kind != "f":
        return
    present = targets[~np.isnan(targets)]
    if (fractions := present[~np.isfinite(present) | (present != np.round(present))]).size:
        raise InputError(
            f"cannot use y of {split}: expected classes as text or integers, got {fractions[0]:g}. Correct it, or use "
            "task regression."
        )


def _class_text(value: Any, names: tuple[str, ...]) -> str | None:
    """Return the name of a class, or None for a missing value."""
    if _is_missing(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
        return names[value]
    return unicodedata.normalize("NFC", str(value))


def _natural(text: str) -> tuple[float, str]:
    """Return a key that sorts integers by value, before other names."""
    try:
        return int(text), text
    except ValueError:
        return float("inf"), text


def _labels_of_lists(values: dict[str, np.ndarray], task: str) -> PlainTargets:
    """Return the labels of samples that each have a list of labels, also an empty one."""
    if task not in ("auto", "multilabel"):
        raise InputError(
            f"cannot use y for task {task}: expected one value per sample, got lists. Use task multilabel."
        )
    present = {label for row in values["train"] for label in _labels(row)}
    class_names = tuple(sorted(present, key=_natural))
    refuse_near_equal(list(class_names), "y")
    if not class_names:
        raise InputError("cannot use y: expected labels in the training set, got none. Add labels.")
    index, matrices, kept = {name: i for i, name in enumerate(class_names)}, {}, {}
    for split, rows in values.items():
        kept[split] = np.flatnonzero([not _is_missing(row) for row in rows])
        matrices[split] = np.zeros((len(kept[split]), len(class_names)), np.float32)
        for i, row in enumerate(rows[kept[split]]):
            unknown = [label for label in _labels(row) if label not in index]
            if unknown:
                raise InputError(
                    f"cannot use y of {split}: expected the labels of the training set, got {printable(unknown[0])!r}. "
                    "Correct it, or add training samples with this label."
                )
            matrices[split][i, [index[label] for label in _labels(row)]] = 1
    return PlainTargets("multilabel", class_names, (), matrices, kept)


def _labels(row: Any) -> list[str]:
    """Return the names of the labels of a sample, without missing ones."""
    names = [_class_text(label, ()) for label in (row if _is_list(row) else [row])]
    return [name for name in names if name is not None]


def _columns(values: dict[str, np.ndarray], task: str, columns: list[str], is_known: bool) -> PlainTargets:
    """Return labels from columns of 0 and 1, or numbers from other columns."""
    numbers = {split: _as_numbers(v, split) for split, v in values.items()}
    names = columns or [str(k) for k in range(numbers["train"].shape[1])]
    is_binary = all(np.isin(v, (0, 1)).all() for v in numbers.values())
    if task == "classification":
        raise InputError("cannot use y for task classification: expected one class per sample, got several columns.")
    if task == "regression" or (task == "auto" and not is_binary):
        return _numbers(numbers, columns or [f"y{k}" for k in range(len(names))], is_known)
    if not is_binary:
        raise InputError("cannot use y for task multilabel: expected only 0 and 1, got other numbers. Correct them.")
    kept = {split: np.arange(len(v)) for split, v in numbers.items()}
    return PlainTargets("multilabel", tuple(names), (), {s: v.astype(np.float32) for s, v in numbers.items()}, kept)


def _numbers(values: dict[str, np.ndarray], names: list[str], is_known: bool) -> PlainTargets:
    """Return regression targets; a sample with a missing number is left out."""
    numbers = {split: _as_numbers(v, split) for split, v in values.items()}
    kept = {split: np.flatnonzero(~np.isnan(v).any(axis=1)) for split, v in numbers.items()}
    values = {split: v[kept[split]] for split, v in numbers.items()}
    if not is_known and (len(values["train"]) < 2 or not np.ptp(values["train"], axis=0).all()):
        raise InputError("cannot learn y: expected at least 2 distinct numbers, got a constant. Pass other targets.")
    return PlainTargets("regression", (), tuple(names), values, kept)


def _as_numbers(values: np.ndarray, split: str) -> np.ndarray:
    try:
        numbers = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"cannot use y of {split}: expected numbers: {printable(error)[:100]}. Correct it.") from None
    if np.isinf(numbers).any():
        raise InputError(f"cannot use y of {split}: expected finite numbers, got infinity. Correct it.")
    return numbers
