"""Targets that are passed in Python: classes, labels or numbers of each split, from arrays, lists and DataFrames.

Shapes: N samples of a split, K labels or columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from skipway.data.output_spec import TASKS, TaskName
from skipway.data.sources.image_source import refuse_near_equal
from skipway.errors import InputError, printable
from skipway.utils.format_text import join_names

__all__ = ["PlainTargets", "plain_targets"]


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
    y: Mapping[str, Any], task: str = "auto", names: tuple[str, ...] = (), min_classes: int = 2
) -> PlainTargets:
    """Convert targets to classes, labels or numbers.

    Text, booleans and integers are classes; numbers with a fraction are a regression target. Several columns of 0 and
    1, and lists of labels, are labels; several columns of other numbers are a regression target each.

    Args:
        y: {split: N targets}, with "train".
        task: "auto", "classification", "multilabel" or "regression".
        names: names of the classes that integers mean, or ().
        min_classes: smallest number of classes of a classification.

    Raises:
        InputError: the targets do not fit each other or the task.
    """
    if task not in ("auto", *TASKS):
        raise InputError(
            f"cannot set task: expected one of auto, {', '.join(TASKS)}, got {printable(task)!r}. Use one."
        )
    columns = [str(name) for name in y["train"].columns] if hasattr(y["train"], "columns") else []
    values = {split: _as_array(targets) for split, targets in y.items()}
    train = values["train"]
    if train.dtype == object and any(isinstance(v, list | tuple | set | frozenset | np.ndarray) for v in train):
        return _labels_of_lists(values, task)
    if any(v.shape[1:] != train.shape[1:] for v in values.values()):
        shapes = ", ".join(f"{split} {v.shape}" for split, v in values.items())
        raise InputError(f"cannot use y: expected as many columns in each split, got {shapes}. Reshape the targets.")
    if train.ndim == 2 and train.shape[1] == 1:
        values, train = {split: v[:, 0] for split, v in values.items()}, train[:, 0]
    if train.ndim == 2:
        return _columns(values, task, columns)
    if train.ndim != 1:
        raise InputError(f"cannot use y: expected one or two axes (N,) or (N, K), got {train.shape}. Reshape it.")
    is_fractional = train.dtype.kind == "f" and bool(np.any(train[np.isfinite(train)] % 1))
    if task == "regression" or (task == "auto" and is_fractional):
        return _numbers({split: v[:, None] for split, v in values.items()}, columns[:1] or ["y"])
    if task == "multilabel":
        raise InputError(
            "cannot use y for task multilabel: expected lists of labels or a matrix (N, K) of 0 and 1, got an array "
            f"{train.shape} of {train.dtype}. Pass one of these."
        )
    return _classes(values, names, min_classes)


def _as_array(targets: Any) -> np.ndarray:
    """Return targets as an array; lists of different lengths become an array of objects."""
    if hasattr(targets, "detach"):
        return np.asarray(targets.detach().cpu().numpy())
    if hasattr(targets, "to_numpy"):
        return np.asarray(targets.to_numpy())
    if isinstance(targets, np.ndarray):
        return targets
    rows = [t.item() if hasattr(t, "item") and np.ndim(t) == 0 else t for t in targets]
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


def _classes(values: dict[str, np.ndarray], names: tuple[str, ...], min_classes: int) -> PlainTargets:
    texts = {split: [_class_text(value, names) for value in targets.tolist()] for split, targets in values.items()}
    present = {text for text in texts["train"] if text is not None}
    class_names = tuple(name for name in names if name in present) or tuple(sorted(present, key=_natural))
    refuse_near_equal(list(class_names), "y")
    if len(class_names) < min_classes:
        got = f"only {printable(class_names[0])!r}" if class_names else "none"
        raise InputError(f"cannot use y: expected at least 2 classes, got {got}. Add samples of another class.")
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


def _class_text(value: Any, names: tuple[str, ...]) -> str | None:
    """Return the name of a class, or None for a missing value."""
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
        return names[value]
    return str(value)


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
    present = {str(label) for row in values["train"] for label in _labels(row)}
    class_names = tuple(sorted(present, key=_natural))
    refuse_near_equal(list(class_names), "y")
    if not class_names:
        raise InputError("cannot use y: expected labels in the training set, got none. Add labels.")
    index, matrices, kept = {name: i for i, name in enumerate(class_names)}, {}, {}
    for split, rows in values.items():
        kept[split] = np.flatnonzero([row is not None for row in rows])
        matrices[split] = np.zeros((len(kept[split]), len(class_names)), np.float32)
        for i, row in enumerate(rows[kept[split]]):
            unknown = [label for label in map(str, _labels(row)) if label not in index]
            if unknown:
                raise InputError(
                    f"cannot use y of {split}: expected the labels of the training set, got {printable(unknown[0])!r}. "
                    "Correct it, or add training samples with this label."
                )
            matrices[split][i, [index[str(label)] for label in _labels(row)]] = 1
    return PlainTargets("multilabel", class_names, (), matrices, kept)


def _labels(row: Any) -> list[Any]:
    if row is None:
        return []
    return list(row) if isinstance(row, list | tuple | set | frozenset | np.ndarray) else [row]


def _columns(values: dict[str, np.ndarray], task: str, columns: list[str]) -> PlainTargets:
    """Return labels from columns of 0 and 1, or numbers from other columns."""
    numbers = {split: _as_numbers(v, split) for split, v in values.items()}
    names = columns or [str(k) for k in range(numbers["train"].shape[1])]
    is_binary = all(np.isin(v, (0, 1)).all() for v in numbers.values())
    if task == "classification":
        raise InputError("cannot use y for task classification: expected one class per sample, got several columns.")
    if task == "regression" or (task == "auto" and not is_binary):
        return _numbers(numbers, columns or [f"y{k}" for k in range(len(names))])
    if not is_binary:
        raise InputError("cannot use y for task multilabel: expected only 0 and 1, got other numbers. Correct them.")
    kept = {split: np.arange(len(v)) for split, v in numbers.items()}
    return PlainTargets("multilabel", tuple(names), (), {s: v.astype(np.float32) for s, v in numbers.items()}, kept)


def _numbers(values: dict[str, np.ndarray], names: list[str]) -> PlainTargets:
    """Return regression targets; a sample with a missing number is left out."""
    numbers = {split: _as_numbers(v, split) for split, v in values.items()}
    kept = {split: np.flatnonzero(~np.isnan(v).any(axis=1)) for split, v in numbers.items()}
    values = {split: v[kept[split]] for split, v in numbers.items()}
    if len(values["train"]) < 2 or not np.ptp(values["train"], axis=0).all():
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
