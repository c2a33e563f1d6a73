"""K-fold cross-validation: each sample is in the validation set of 1 fold and in the training set of all others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from skipway.data.groups import refuse_few_groups
from skipway.data.images.decoded_images import DecodedImages
from skipway.data.sources.image_source import Item, Source
from skipway.data.sources.table import Table
from skipway.data.stratified_split import fold_numbers, units_of
from skipway.data.tables.join_tables import join_tables
from skipway.errors import InputError, printable

__all__ = [
    "Fold",
    "describe_pool",
    "groups_of_copies",
    "pool_images",
    "pool_tables",
    "refuse_too_many_folds",
    "split_fold",
    "split_rows",
]


@dataclass(frozen=True)
class Fold:
    """One fold of a k-fold cross-validation.

    Attributes:
        number: index of the fold, counted from 1.
        count: number of folds.
    """

    number: int
    count: int


def refuse_too_many_folds(
    labels: np.ndarray, groups: Sequence[str], class_names: Sequence[str], *, count: int, name: str, noun: str
) -> None:
    """Check that every class has at least one distinct sample per fold.

    Args:
        labels: (N,) class of each sample, or zeros if there are no classes.
        groups: N identifiers of the samples' contents; duplicates count once.
        class_names: names of the classes; empty for labels and numbers.
        count: number of folds.
        name: name of the dataset, for the error.
        noun: "images" or "rows".

    Raises:
        InputError: a class has fewer distinct samples than `count`.
    """
    first_of = {group: i for i, group in reversed(list(enumerate(groups)))}
    counts = np.bincount(labels[list(first_of.values())], minlength=max(len(class_names), 1))
    fewest = int(counts.min())
    if fewest >= count:
        return
    of_class = f" of {printable(class_names[int(counts.argmin())])!r}" if len(class_names) else ""
    fix = f"Use --folds {fewest}, or add {noun}" if fewest > 1 else f"Add {noun}"
    raise InputError(
        f"cannot make {count} folds of {printable(name)}: expected at least {count} different {noun}"
        f"{' of each class' if of_class else ''}, got {fewest}{of_class}. {fix}."
    )


def split_fold(images: DecodedImages, fold: Fold, seed: int) -> None:
    """Split the training images in place: one fold for validation, all others for training.

    Duplicates and groups stay in one fold.

    Args:
        images: decoded images; `images.splits` is replaced.
        fold: the fold to hold out.
        seed: seed of the assignment to folds.

    Raises:
        InputError: a class has fewer images than there are folds, or there are too few groups.
    """
    pooled = images.splits["train"]
    digests = [images.digests[i] for i in pooled]
    in_val = _in_fold(
        images.strata[pooled],
        digests,
        images.class_names if images.task == "classification" else (),
        groups=None if images.groups is None else [images.groups[i] for i in pooled],
        fold=fold,
        seed=seed,
        name=images.name,
        noun="images",
    )
    images.splits = {"train": pooled[~in_val], "val": pooled[in_val]}


def _in_fold(
    strata: np.ndarray,
    digests: Sequence[str],
    class_names: Sequence[str],
    *,
    groups: Sequence[str] | None,
    fold: Fold,
    seed: int,
    name: str,
    noun: str,
) -> np.ndarray:
    """Return (N,) booleans, True for the samples of a fold; too few samples or groups raise InputError."""
    labels = strata if len(class_names) else np.zeros(len(strata), np.int64)
    if groups is None:
        refuse_too_many_folds(labels, digests, class_names, count=fold.count, name=name, noun=noun)
    else:
        units = units_of(strata, digests, groups)
        refuse_few_groups(units, labels, class_names, parts=fold.count, name=name, noun=noun, are_folds=True)
    return fold_numbers(strata, digests, fold.count, seed, groups) == fold.number


def split_rows(
    labels: np.ndarray,
    digests: list[str],
    class_names: Sequence[str],
    *,
    fold: Fold,
    seed: int,
    name: str,
    groups: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Split the rows of a table: one fold for validation, all others for training.

    Args:
        labels: (N,) stratum of each row, its class for a classification.
        digests: N digests of the rows' contents.
        class_names: names of the classes; empty for labels and numbers.
        fold: the fold to hold out.
        seed: seed of the assignment to folds.
        name: name of the table, for the error.
        groups: N names of groups, or None.

    Returns:
        Row indices of "train" and "val".

    Raises:
        InputError: there are fewer rows than folds, or too few groups.
    """
    rows = np.arange(len(digests))
    kinds = labels if len(class_names) else np.zeros(len(labels), np.int64)
    copies = groups_of_copies(rows, kinds, digests, least=fold.count)
    names = class_names if groups is not None else ()
    in_val = _in_fold(labels, copies, names, groups=groups, fold=fold, seed=seed, name=name, noun="rows")
    if len(class_names):
        in_val &= np.bincount(labels)[labels] > 1  # a class with one row is always trained on
    return {"train": rows[~in_val], "val": rows[in_val]}


def groups_of_copies(rows: np.ndarray, labels: np.ndarray, digests: list[str], *, least: int) -> list[str]:
    """Return a group identifier per row, so that duplicate rows can be kept in one split.

    Every row is a group by itself if fewer than half of `rows` are distinct, or fewer than `least` of a class that has
    as many rows.

    Args:
        rows: indices of the rows to group.
        labels: (N,) stratum of each row.
        digests: N digests of the rows' contents.
        least: minimum number of distinct rows per class.

    Returns:
        N group identifiers.
    """
    classes = [rows[labels[rows] == label] for label in np.unique(labels[rows])]
    distinct = [len({digests[i] for i in members}) for members in classes]
    is_short = any(count < least <= len(members) for count, members in zip(distinct, classes, strict=True))
    separate = 2 * sum(distinct) < len(rows) or is_short
    return [str(i) for i in range(len(digests))] if separate else digests


def describe_pool(counts: Mapping[str, int], noun: str) -> str:
    """Describe how cross-validation uses existing splits; return "" if the data has none.

    >>> describe_pool({"train": 80, "val": 20, "test": 10}, "images")
    'the 80 train and 20 val images are pooled, the 10 test images are left out'
    """
    parts = []
    if counts.get("val"):
        parts.append(f"the {counts['train']:,} train and {counts['val']:,} val {noun} are pooled")
    if counts.get("test"):
        parts.append(f"the {counts['test']:,} test {noun} are left out")
    return ", ".join(parts)


def pool_images(source: Source) -> Source:
    """Return a source that merges the training and validation images into one training set, without test images."""
    splits = [split for split in ("train", "val") if source.count(split)]

    def contents(split: str) -> Iterator[Item]:
        return chain.from_iterable(map(source.contents, splits if split == "train" else ()))

    return replace(
        source,
        keys={"train": list(chain.from_iterable(source.keys[split] for split in splits))},
        targets={"train": np.concatenate([source.targets[split] for split in splits])},
        groups={"train": list(chain.from_iterable(source.groups[split] for split in splits))} if source.groups else {},
        weights={"train": np.concatenate([source.weights[split] for split in splits])} if source.weights else {},
        columns={"train": join_tables([source.columns[split] for split in splits])} if source.columns else {},
        contents=contents,
    )


def pool_tables(splits: Mapping[str, Table], ignored: Sequence[str]) -> dict[str, Table]:
    """Merge the training and validation tables into one training table, without test rows.

    Args:
        splits: tables by split; "train" is required.
        ignored: names of columns to leave out.

    Raises:
        InputError: the validation table lacks a column.
    """
    train = splits["train"]
    if "val" not in splits:
        return {"train": train}
    kept = {name: column for name, column in train.columns.items() if name not in ignored}
    return {"train": join_tables([replace(train, columns=kept), splits["val"]])}
