"""Rows that repeat an image: equal ones count once, and several classes of an image become its labels."""

from dataclasses import replace

import numpy as np

from skipway.data.column_roles import ColumnRoles
from skipway.data.image_tables.choose_columns import ImageColumns
from skipway.data.image_tables.row_images import RowImages
from skipway.data.image_tables.targets import ImageTargets
from skipway.data.tables.join_tables import select_rows
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of

__all__ = ["merge_repeated"]

_MANY = 0.1  # share of images with several classes from which a table has one row per label


def merge_repeated(
    rows: dict[str, RowImages], targets: ImageTargets, columns: ImageColumns, roles: ColumnRoles
) -> None:
    """Keep one row for each image of a split, in place.

    Rows of an image with equal targets count once. If many images have rows of several classes, the task becomes
    multilabel.

    Args:
        rows: rows by split.
        targets: targets of the rows; replaced by those of the images.
        columns: roles of the columns.
        roles: the task, if it is set.

    Raises:
        InputError: few images have several classes, or an image has several numbers.
    """
    first_of = {split: _first_rows(part.keys) for split, part in rows.items()}
    if not any((first != np.arange(len(first))).any() for first in first_of.values()):
        return
    conflicts = {split: _conflicts(targets.values[split], first) for split, first in first_of.items()}
    total = sum(len(set(first.tolist())) for first in first_of.values())
    count = sum(len(set(first_of[split][wrong].tolist())) for split, wrong in conflicts.items())
    merges = targets.task == "multilabel" or (
        targets.task == "classification" and roles.task == "auto" and count >= _MANY * total
    )
    if count and not merges:
        _refuse_conflict(rows, targets, first_of, conflicts)
    if count and targets.task == "classification":
        targets.task = "multilabel"
        targets.warnings.append(f"{count:,} of {total:,} images have rows of several classes, which become labels")
        eye = np.eye(len(targets.class_names), dtype=np.float32)
        targets.values = {split: eye[values] for split, values in targets.values.items()}
    repeats = 0
    for split, first in first_of.items():
        values = targets.values[split]
        if targets.task == "multilabel":
            np.maximum.at(values, first, values.copy())
        kept = np.flatnonzero(first == np.arange(len(first)))
        repeats += len(first) - len(kept) - len(conflicts[split])
        targets.values[split] = values[kept]
        rows[split] = _selected(rows[split], kept)
    if repeats:
        targets.warnings.append(f"ignored {count_of(repeats, 'row')} with the image and the target of an earlier row")


def _first_rows(keys: list[str]) -> np.ndarray:
    """Return (R,) the first row of the image of each row."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(key, row) for row, key in enumerate(keys)], np.int64)


def _conflicts(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the rows whose target differs from that of the first row of the image."""
    differs = values != values[first]
    return np.flatnonzero(differs if differs.ndim == 1 else differs.any(axis=1))


def _selected(part: RowImages, kept: np.ndarray) -> RowImages:
    return replace(
        part,
        table=select_rows(part.table, kept),
        keys=[part.keys[row] for row in kept],
        matches=[part.matches[row] for row in kept],
    )


def _refuse_conflict(
    rows: dict[str, RowImages],
    targets: ImageTargets,
    first_of: dict[str, np.ndarray],
    conflicts: dict[str, np.ndarray],
) -> None:
    split = next(split for split, wrong in conflicts.items() if len(wrong))
    part, values = rows[split], targets.values[split]
    row = int(conflicts[split][0])
    first = int(first_of[split][row])
    names = targets.class_names
    texts = [names[values[i]] if names else " ".join(f"{v:g}" for v in values[i]) for i in (first, row)]
    fix = "Correct them, or use --task multilabel if both are true" if names else "Correct them"
    raise InputError(
        f"cannot use {part.table.row_name(first)} and {part.table.row_name(row)}: expected one target for "
        f"{printable(part.keys[row])}, got {printable(texts[0])!r} and {printable(texts[1])!r}. {fix}."
    )
