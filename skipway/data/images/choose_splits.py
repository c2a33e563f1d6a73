"""Splits of decoded images: given, by folds, by time, or held out; and the groups that stay in one split."""

from dataclasses import dataclass

import numpy as np

from skipway.data.folds import Fold, split_fold
from skipway.data.groups import groups_by_regex, hint_at_names
from skipway.data.images.decoded_images import DecodedImages
from skipway.data.images.split import hold_out, refuse_leaks
from skipway.data.sample_weights import refuse_zero_weights
from skipway.data.time_order import last_part, read_order
from skipway.errors import InputError, printable

__all__ = ["SplitOptions", "split_images"]


@dataclass(frozen=True)
class SplitOptions:
    """Options of the splits of a dataset.

    Attributes:
        fraction: share of the training images to hold out.
        seed: seed of the split.
        fold: fold of a cross-validation to hold out instead, or None.
        allow_duplicates: accept duplicates and groups in more than one split.
        group_regex: pattern in file names whose first group is the group of an image, or None.
    """

    fraction: float
    seed: int
    fold: Fold | None = None
    allow_duplicates: bool = False
    group_regex: str | None = None


def split_images(images: DecodedImages, options: SplitOptions) -> None:
    """Split off the validation images in place, and reject duplicates and groups in more than one split.

    Args:
        images: decoded images; `images.splits` is replaced, notes and warnings are extended.
        options: options of the splits.

    Raises:
        InputError: there are too few images or groups, or some are in more than one given split.
    """
    if options.group_regex is not None:
        if images.groups is not None:
            raise InputError("cannot use --group-regex: expected no --group-column, got both. Drop one of them.")
        images.groups = groups_by_regex(images.keys, options.group_regex)
    elif images.groups is None:
        given = [rows for split, rows in images.splits.items() if split != "test" and len(rows)]
        targets = [images.target_text(i) for i in range(len(images.keys))]
        images.warnings += hint_at_names(images.keys, targets, given, "images")
    if images.order is not None:
        _split_by_order(images, options.fraction)
    refuse_leaks(images, options.allow_duplicates)
    if options.fold is not None:
        split_fold(images, options.fold, options.seed)
    else:
        hold_out(images, options.fraction, options.seed)
    images.weights = refuse_zero_weights(images.weights, images.splits, images.name)
    if images.weights is not None:
        images.notes["images with sample weights, of the loss and the metrics"] = len(images.weights)


def _split_by_order(images: DecodedImages, fraction: float) -> None:
    """Move the last training images by the column of `images.order` to validation."""
    assert images.order is not None
    if len(images.splits.get("val", ())):
        raise InputError(
            f"cannot use --split-by with {printable(images.name)}: expected no validation images, got "
            f"{len(images.splits['val']):,}. Drop --split-by."
        )
    (column,) = images.order.columns
    train: np.ndarray = images.splits["train"]
    values, raw = read_order(images.order, column)[train], images.order.columns[column][train]
    in_val, boundary = last_part(values, raw, fraction=fraction, name=images.name, column=column)
    images.splits = {**images.splits, "train": train[~in_val], "val": train[in_val]}
    images.notes[f"validation images {boundary}"] = int(in_val.sum())
