"""Which images are for training, validation and test; what stands twice; what a careful eye says of a set."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipway.data.images.decoded_cache import DecodedImages
from skipway.data.sources.image_source import SPLITS
from skipway.errors import InputError, printable
from skipway.utils.format_text import join_names

__all__ = ["class_counts", "describe", "hold_out", "holdout_mask", "refuse_leaks", "class_warnings", "duplicates"]

MAX_HELD_OUT = 5000  # more images than that make a validation accuracy no more certain than half a point
IMBALANCED = 5.0
FEW = 20


def hold_out(images: DecodedImages, fraction: float, seed: int) -> None:
    """Give a set without validation images some of its training images for that, of every class its share.

    Images with the same content stay on the same side; every class stands on both sides. Which ones are held out is
    a function of (set, fraction, seed).
    """
    if len(images.splits.get("val", ())):
        return
    train = images.splits["train"]
    first_of = {images.digests[i]: i for i in reversed(train.tolist())}  # digest -> its first image
    kinds = np.array(sorted(first_of.values()), dtype=np.int64)
    labels = images.labels[kinds]
    counts = np.bincount(labels, minlength=len(images.class_names))
    single = [name for name, count in zip(images.class_names, counts, strict=True) if count < 2]
    if single:
        raise InputError(
            f"{printable(images.name)}: the class {printable(single[0])!r} has one image (copies not counted), too "
            "few to train on some and validate on others; add at least one more, or a val folder"
        )
    in_val = holdout_mask(train, images.labels, images.digests, fraction=fraction, seed=seed)
    images.splits = {
        "train": train[~in_val],
        "val": train[in_val],
        **{k: v for k, v in images.splits.items() if k == "test"},
    }


def holdout_mask(
    train: np.ndarray, labels: np.ndarray, digests: Sequence[str], *, fraction: float, seed: int
) -> np.ndarray:
    """Choose which of the samples `train` are held out, as (len(train),) booleans.

    Of every label its share is held out, copies together.

    Every label stands on both sides where two different samples have it.
    """
    first_of = {digests[i]: i for i in reversed(train.tolist())}  # digest -> its first sample
    kinds = np.array(sorted(first_of.values()), dtype=np.int64)
    counts = np.bincount(labels[kinds])
    shares = _shares(counts, min(round(len(kinds) * fraction), MAX_HELD_OUT))
    drawn = np.random.Generator(np.random.PCG64(seed)).permutation(len(kinds))
    by_class = drawn[np.argsort(labels[kinds][drawn], kind="stable")]
    rank = np.arange(len(kinds)) - np.repeat(np.cumsum(counts) - counts, counts)  # place within its class
    held_digests = {digests[i] for i in kinds[by_class[rank < np.repeat(shares, counts)]]}
    return np.array([digests[i] in held_digests for i in train])


def _shares(counts: np.ndarray, total: int) -> np.ndarray:
    """Return how many of each class to hold out: within one of its exact share, at least one, never all.

    >>> _shares(np.array([70, 30, 2]), 10).tolist()
    [6, 3, 1]
    """
    exact = counts * (total / counts.sum())
    shares = np.clip(np.floor(exact).astype(np.int64), 1, counts - 1)
    room = np.flatnonzero((shares < exact) & (shares < counts - 1))
    largest_first = room[np.argsort(shares[room] - exact[room], kind="stable")]
    shares[largest_first[: max(0, total - int(shares.sum()))]] += 1
    return shares


def duplicates(images: DecodedImages) -> list[list[int]]:
    """Return groups of images with the same content, byte for byte."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, digest in enumerate(images.digests):
        groups[digest].append(i)
    return [group for group in groups.values() if len(group) > 1]


def refuse_leaks(images: DecodedImages, allow: bool) -> None:
    """Say which images stand twice; where copies stand in two splits, validation would be flattered: refuse."""
    split_of: dict[int, str] = {}
    for split in SPLITS:
        split_of.update(dict.fromkeys(map(int, images.splits.get(split, ())), split))
    groups = duplicates(images)
    across = [g for g in groups if len({split_of[i] for i in g}) > 1]
    crossed = [g for g in groups if len({int(images.labels[i]) for i in g}) > 1]
    if across:
        example = " and ".join(f"{printable(images.keys[i])} ({split_of[i]})" for i in _unlike(across[0], split_of))
        message = f"{len(across):,} images stand in more than one split, such as {example}"
        if not allow:
            raise InputError(
                f"{printable(images.name)}: {message}; remove the copies from one side, or go on with "
                "--allow-duplicates"
            )
        images.warnings.append(f"{message}: accuracies are flattered by them")
    if crossed:
        names = {i: images.class_names[images.labels[i]] for i in crossed[0]}
        pair = _unlike(crossed[0], names)
        example = " and ".join(f"{printable(images.keys[i])} ({printable(names[i])})" for i in pair)
        images.warnings.append(
            f"{len(crossed):,} images stand under two classes, such as {example}: one label is wrong"
        )
    copies = sum(len(g) - 1 for g in groups)
    if copies:
        images.warnings.append(f"{copies:,} images are exact copies of others")


def _unlike(group: list[int], kind: dict[int, str]) -> tuple[int, int]:
    """Return the first of a group and the first that is of another kind."""
    return group[0], next(i for i in group if kind[i] != kind[group[0]])


def class_counts(images: DecodedImages) -> dict[str, dict[str, int]]:
    """Return {class: {split: images}}, classes in their order."""
    table = {
        split: np.bincount(images.labels[indices], minlength=len(images.class_names))
        for split, indices in images.splits.items()
    }
    return {name: {split: int(n[i]) for split, n in table.items()} for i, name in enumerate(images.class_names)}


def class_warnings(images: DecodedImages) -> list[str]:
    """Warn of what is odd in a set: imbalance, classes with few images, unreadable and converted files."""
    counts = {name: by_split.get("train", 0) for name, by_split in class_counts(images).items()}
    largest, smallest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    warnings = []
    ratio = counts[largest] / max(1, counts[smallest])
    if ratio >= IMBALANCED:
        warnings.append(
            f"classes are imbalanced 1:{ratio:.0f} ({printable(smallest)} {counts[smallest]:,}, {printable(largest)} "
            f"{counts[largest]:,} training images): accuracy favours the large ones, read the per-class table"
        )
    few = [name for name, count in counts.items() if count < FEW]
    if few:
        names = join_names(map(printable, few), limit=5)
        warnings.append(f"fewer than {FEW} training images: {names}; expect weak results there")
    validation = len(images.splits.get("val", ()))
    if 0 < validation < 100:
        warnings.append(f"{validation} validation images: one image is {1 / validation:.1%} of accuracy")
    return warnings


def describe(images: DecodedImages) -> dict[str, Any]:
    """What a run or `check` reports of its data, as plain values."""
    return {
        "name": images.name,
        "counts": {split: len(indices) for split, indices in images.splits.items()},
        "classes": class_counts(images),
        "skipped": len(images.skipped),
        "notes": dict(images.notes.most_common()),
        "warnings": images.warnings + class_warnings(images),
        "sizes": images.sizes,
    }
