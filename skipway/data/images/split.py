"""Validation split, duplicate and leak checks, and the summary of an image dataset."""

from collections import defaultdict
from typing import Any

import numpy as np

from skipway.data.groups import refuse_crossing_groups, refuse_few_groups
from skipway.data.images.decoded_images import DecodedImages
from skipway.data.sample_weights import describe_weights
from skipway.data.sources.image_source import SPLITS
from skipway.data.stratified_split import holdout_mask, units_of
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of, join_names

__all__ = [
    "class_counts",
    "class_warnings",
    "count_classes",
    "describe",
    "describe_targets",
    "duplicates",
    "hold_out",
    "refuse_leaks",
]

IMBALANCED = 5.0
FEW = 20


def hold_out(images: DecodedImages, fraction: float, seed: int) -> None:
    """Hold out a stratified part of the training images for validation, unless a validation set exists.

    Duplicates and groups stay in one split, and every class is in both, unless one group has all of its images; these
    are trained on. The split is a function of (dataset, fraction, seed).

    Args:
        images: decoded images; `images.splits` is replaced.
        fraction: share of the training images to hold out; at most 5,000 images are held out.
        seed: seed of the selection.

    Raises:
        InputError: a class has fewer than 2 distinct images, or there are too few groups.
    """
    if len(images.splits.get("val", ())):
        return
    train, strata, groups = images.splits["train"], images.strata, images.groups
    _refuse_inseparable(images, train, strata)
    in_val = holdout_mask(train, strata, images.digests, fraction=fraction, seed=seed, groups=groups)
    images.splits = {
        "train": train[~in_val],
        "val": train[in_val],
        **{k: v for k, v in images.splits.items() if k == "test"},
    }


def _refuse_inseparable(images: DecodedImages, train: np.ndarray, strata: np.ndarray) -> None:
    """Raise InputError if a class has no images for one of two splits."""
    names = images.class_names if images.task == "classification" else ()
    if images.groups is not None:
        digests, groups = ([values[i] for i in train] for values in (images.digests, images.groups))
        units = units_of(strata[train], digests, groups)
        refuse_few_groups(units, images.targets[train], names, parts=2, name=images.name, noun="images")
        return
    first_of = {images.digests[i]: i for i in reversed(train.tolist())}  # digest -> its first image
    kinds = np.array(sorted(first_of.values()), dtype=np.int64)
    if len(kinds) < 2:
        raise InputError(
            f"cannot split {printable(images.name)}: expected at least 2 distinct images, got {len(kinds)}. Add images."
        )
    counts = np.bincount(strata[kinds], minlength=len(names))
    single = [name for name, count in zip(names, counts, strict=False) if count < 2]
    if single:
        raise InputError(
            f"cannot split {printable(images.name)}: expected at least 2 distinct images per class, got 1 of the class "
            f"{printable(single[0])!r}. Add images of this class, or add a val folder."
        )


def duplicates(images: DecodedImages) -> list[list[int]]:
    """Return groups of image indices whose files are identical, byte for byte."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, digest in enumerate(images.digests):
        groups[digest].append(i)
    return [group for group in groups.values() if len(group) > 1]


def refuse_leaks(images: DecodedImages, allow: bool) -> None:
    """Warn of duplicate images, and refuse duplicates and groups across splits, which inflate the validation accuracy.

    Args:
        images: decoded images; `warnings` is extended.
        allow: True to warn of duplicates across splits instead of raising.

    Raises:
        InputError: an image or a group is in more than one split, and `allow` is False.
    """
    if images.groups is not None:
        images.warnings += refuse_crossing_groups(images.groups, images.splits, name=images.name, allow=allow)
    split_of: dict[int, str] = {}
    for split in SPLITS:
        split_of.update(dict.fromkeys(map(int, images.splits.get(split, ())), split))
    groups = duplicates(images)
    across = [g for g in groups if len({split_of[i] for i in g}) > 1]
    crossed = [g for g in groups if len({images.target_text(i) for i in g}) > 1]
    if across:
        example = " and ".join(f"{printable(images.keys[i])} ({split_of[i]})" for i in _unlike(across[0], split_of))
        if not allow:
            raise InputError(
                f"cannot use {printable(images.name)}: expected each image in only one split, got {len(across):,} in "
                f"more than one, such as {example}. Remove the duplicates, or use --allow-duplicates."
            )
        images.warnings.append(
            f"duplicates across splits: {len(across):,}, such as {example}. Validation and test metrics are inflated."
        )
    if crossed:
        names = {i: images.target_text(i) for i in crossed[0]}
        pair = _unlike(crossed[0], names)
        example = " and ".join(f"{printable(images.keys[i])} ({printable(names[i])})" for i in pair)
        images.warnings.append(
            f"duplicates with different labels: {len(crossed):,}, such as {example}. At least one label is wrong."
        )
    copies = sum(len(g) - 1 for g in groups)
    if copies:
        images.warnings.append(f"exact duplicates of other images: {copies:,}")


def _unlike(group: list[int], kind: dict[int, str]) -> tuple[int, int]:
    """Return the first image of a group and the first image of another kind."""
    return group[0], next(i for i in group if kind[i] != kind[group[0]])


def class_counts(images: DecodedImages) -> dict[str, dict[str, int]]:
    """Return {class or label: {split: number of images}}, in the order of the classes; empty for regression."""
    table = {split: count_classes(images, indices) for split, indices in images.splits.items()}
    return {name: {split: int(n[i]) for split, n in table.items()} for i, name in enumerate(images.class_names)}


def count_classes(images: DecodedImages, indices: np.ndarray) -> np.ndarray:
    """Return (K,) numbers of images with each class or label among the images at `indices`."""
    targets = images.targets[indices]
    if images.task == "classification":
        return np.bincount(targets, minlength=len(images.class_names))
    return (targets > 0.5).sum(axis=0)


def describe_targets(images: DecodedImages) -> str:
    """Return the number of classes or labels, or the names of the numbers, in words."""
    if images.task == "classification":
        return count_of(len(images.class_names), "class", "classes")
    if images.task == "multilabel":
        return count_of(len(images.class_names), "label")
    return f"target {join_names(map(printable, images.target_names), limit=8)} (regression)"


def class_warnings(images: DecodedImages) -> list[str]:
    """Return warnings of class imbalance, of classes with few images and of a small validation set."""
    warnings = [*_imbalance_warnings(images)] if images.class_names else []
    validation = len(images.splits.get("val", ()))
    if 0 < validation < 100:
        few_images = count_of(validation, "validation image")
        effect = f"1 image changes the accuracy by {1 / validation:.1%}"
        if images.task != "classification":
            effect = "metrics are uncertain"
        warnings.append(f"only {few_images}: {effect}")
    return warnings


def _imbalance_warnings(images: DecodedImages) -> list[str]:
    """Return warnings of class imbalance and of classes with few images."""
    counts = {name: by_split.get("train", 0) for name, by_split in class_counts(images).items()}
    largest, smallest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    warnings = []
    ratio = counts[largest] / max(1, counts[smallest])
    if ratio >= IMBALANCED and images.task == "classification":
        warnings.append(
            f"class imbalance 1:{ratio:.0f} ({printable(smallest)} {counts[smallest]:,}, {printable(largest)} "
            f"{counts[largest]:,} training images): accuracy favors large classes. See the per-class metrics."
        )
    few = [name for name, count in counts.items() if count < FEW]
    if few:
        names = join_names(map(printable, few), limit=5)
        effect = "accuracy for these classes" if images.task == "classification" else "precision for these labels"
        warnings.append(f"fewer than {FEW} training images: {names}. Expect low {effect}.")
    return warnings


def describe(images: DecodedImages) -> dict[str, Any]:
    """Summarize a dataset as plain values, for the console, the report and `check`.

    Returns:
        A dictionary with the keys name, task, target, counts, classes, skipped, notes, warnings and sizes, and weights
        of weighted images. Regression has no classes; the target is empty if the classes are folders.
    """
    return {
        "name": images.name,
        "task": images.task,
        "target": ", ".join(images.target_names),
        "counts": {split: len(indices) for split, indices in images.splits.items()},
        "classes": class_counts(images),
        "skipped": len(images.skipped),
        "notes": dict(images.notes.most_common()),
        "warnings": images.warnings + class_warnings(images),
        "sizes": images.sizes,
        **describe_weights(images.weights, images.splits, images.targets, images.class_names),
    }
