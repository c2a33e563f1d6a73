"""Groups of samples that stay in one split, such as the images of a patient, a site, a camera or a burst.

A model that was trained on other samples of a group is validated on what it has seen, so its metrics are too high.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from skipway.data.sources.table import Table
from skipway.data.sources.text_column import Cells
from skipway.data.stratified_split import Units
from skipway.data.tables.columns import factorize_texts
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of

__all__ = [
    "groups_by_regex",
    "groups_of_column",
    "hint_at_columns",
    "hint_at_names",
    "refuse_crossing_groups",
    "refuse_few_groups",
]

# Patterns of names of image files that suggest a group, as --group-regex takes them.
_FOLDER = r"([^/]+)/[^/]+$"  # class/patient/1.png
_IDENTIFIER = r"(?:^|/)((?!\d{4}-\d\d-)[A-Za-z]*[-_]?\d{1,7})[-_ ][^/]*$"  # patient_12_3.jpg, P0012_left.png
_NUMBERED = r"([^/]*\d[^/]*?)[-_ (]+\d{1,4}\)?\.\w+$"  # cam1_burst_7_03.jpg
_GROUP_COLUMN = re.compile(
    r"(patient|subject|lesion|case|site|camera|burst|person|animal|session|speaker|video|scene|slide|family|household)"
    r"s?([-_ ]?(id|no|nr|name|number|uid|code))?"
)
_SAMPLED = 1000  # names that decide if a pattern is tried on all of them
_MATCHED = 0.9  # share of the names that a pattern must match
_SAME = 1.1  # most pairs of group and target, relative to the targets, of groups that are the target itself


def groups_of_column(raw: Cells) -> list[str]:
    """Return the group of each row as text; "" if the cell is empty, so that the row is a group of its own."""
    codes, texts = factorize_texts(raw)
    names = [*texts, ""]
    return [names[code] for code in codes]


def groups_by_regex(names: Sequence[str], pattern: str) -> list[str]:
    """Return the group of each file: the first group of the pattern in its name.

    Args:
        names: paths of the files.
        pattern: regular expression with a group, which is searched in the path.

    Raises:
        InputError: the pattern is invalid or has no group, or a name does not match.

    >>> groups_by_regex(["cat/p12_3.jpg"], "p([0-9]+)_")
    ['12']
    """
    try:
        expression = re.compile(pattern)
        problem = "" if expression.groups else "one without a group in parentheses"
    except re.error as error:
        problem = f"an invalid one ({error})"
    if problem:
        raise InputError(
            f"cannot use --group-regex {printable(pattern)}: expected a regular expression with a group, got "
            f"{problem}. Put the part that names the group in parentheses."
        )
    matches = [expression.search(name) for name in names]
    others = [name for name, match in zip(names, matches, strict=True) if match is None or not match[1]]
    if others:
        raise InputError(
            f"cannot use --group-regex {printable(pattern)}: expected a group in every file name, got none in "
            f"{len(others):,} of {len(names):,}, such as {printable(others[0])}. Change the pattern."
        )
    return [match[1] for match in matches if match is not None]


def refuse_crossing_groups(
    groups: Sequence[str], splits: Mapping[str, np.ndarray], *, name: str, allow: bool
) -> list[str]:
    """Refuse groups in more than one of the given splits, which inflate the validation metrics.

    Args:
        groups: N names of groups, "" for samples without one.
        splits: indices of the samples of each split.
        name: name of the dataset, for the error.
        allow: True to return a warning instead of raising.

    Returns:
        Warnings.

    Raises:
        InputError: a group is in more than one split, and `allow` is False.
    """
    homes: dict[str, list[str]] = {}
    for split, rows in splits.items():
        for group in {groups[i] for i in rows} - {""}:
            homes.setdefault(group, []).append(split)
    crossing = sorted(group for group, names in homes.items() if len(names) > 1)
    if not crossing:
        return []
    example = f"{printable(crossing[0])} ({', '.join(homes[crossing[0]])})"
    if not allow:
        raise InputError(
            f"cannot use {printable(name)}: expected each group in only one split, got {len(crossing):,} in more than "
            f"one, such as {example}. Move each group into one split, or use --allow-duplicates."
        )
    count = count_of(len(crossing), "group")
    return [f"{count} in more than one split, such as {example}. Validation and test metrics are inflated."]


def refuse_few_groups(
    units: Units,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    parts: int,
    name: str,
    noun: str,
    are_folds: bool = False,
) -> None:
    """Check that there are enough groups for a split into parts, and for training on every class.

    Args:
        units: groups of N samples, joined with duplicates.
        labels: (N,) classes; not used if there are no class names.
        class_names: names of the classes; empty for labels and numbers.
        parts: number of folds, or 2 for one held-out part.
        name: name of the dataset, for the error.
        noun: "images" or "rows".
        are_folds: True for folds, each of which validates once.

    Raises:
        InputError: there are too few groups, or a training set would lack a class.
    """
    folds = f"make {parts} folds of" if are_folds else "split"
    if len(units) < parts:
        fix = f"Use --folds {len(units)}, add groups" if len(units) > 1 else "Add groups"
        raise InputError(
            f"cannot {folds} {printable(name)}: expected at least {parts} groups, got {len(units)}. {fix}, or use "
            "another --group-column."
        )
    if not class_names:
        return
    homes = [np.unique(units.of[labels == k]) for k in range(len(class_names))]
    lone = [k for k, numbers in enumerate(homes) if len(numbers) == 1]
    occupied = {int(homes[k][0]) for k in lone}
    if lone and (are_folds or len(occupied) == len(units)):
        raise InputError(
            f"cannot {folds} {printable(name)}: expected {noun} of each class in at least 2 groups, got 1 group of "
            f"{printable(class_names[lone[0]])!r}. Add groups with this class, or use another --group-column."
        )


def hint_at_names(names: Sequence[str], classes: Sequence[str], splits: Sequence[np.ndarray], noun: str) -> list[str]:
    """Return a warning if names of files suggest groups that would be, or are, in more than one split.

    Args:
        names: N paths of files.
        classes: N classes or other targets as text.
        splits: indices of the files of each given split; one for files that will be split.
        noun: noun for the files, such as "images".

    Returns:
        At most one warning, with a pattern for --group-regex.
    """
    if any(":" in name for name in names[:1]):  # rows of a Parquet file
        return []
    parents = {name.rpartition("/")[0] for name in names}
    num_classes = len(set(classes))
    has_subfolders = len(parents) > (num_classes if 2 * num_classes <= len(names) else 1) * len(splits)
    for pattern in (_FOLDER,) * has_subfolders + (_IDENTIFIER, _NUMBERED):
        groups = _suggested(pattern, names, classes)
        if not groups:
            continue
        count, example = len(set(groups)), Counter(groups).most_common(1)[0]
        if len(splits) > 1:
            count = len(set.intersection(*({groups[i] for i in rows} for rows in splits[:2])))
        if count:
            where = "folders" if pattern == _FOLDER else "file names"
            crossing = " in both training and validation set" if len(splits) > 1 else ""
            return [
                f"{where} suggest {count:,} groups{crossing}, such as {printable(example[0])} ({example[1]:,} {noun}): "
                f"use --group-regex '{pattern}' to keep each in one split"
            ]
    return []


def _suggested(pattern: str, names: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return the groups that a pattern suggests, "" for names that do not match; an empty list if it suggests none."""
    expression = re.compile(pattern)
    sample = names[:: max(1, len(names) // _SAMPLED)]
    if sum(expression.search(name) is not None for name in sample) < _MATCHED * len(sample):
        return []
    groups = [match[1] if (match := expression.search(name)) else "" for name in names]
    sizes = Counter(groups)
    sizes.pop("", None)
    repeated = sum(size for size in sizes.values() if size > 1)
    num_classes = len(set(classes))
    pairs = len(set(zip(groups, classes, strict=True)) if classes else set())
    if pairs and pairs <= _SAME * min(num_classes, len(set(groups))):
        return []  # the names spell the target
    most = len(names) / 2
    is_grouped = len(sizes) <= most and repeated >= _MATCHED * len(names)
    is_grouped = is_grouped and (num_classes < len(sizes) or num_classes > most)
    return groups if is_grouped and len(sizes) > 1 else []


def hint_at_columns(table: Table, used: Sequence[str]) -> list[str]:
    """Return warnings about columns that are named like groups and have repeated values.

    Args:
        table: the training table.
        used: names of the columns with another role.
    """
    warnings = []
    for name, raw in table.columns.items():
        if name in used or not _GROUP_COLUMN.fullmatch(name.strip().casefold()):
            continue
        count = len(set(groups_of_column(raw)) - {""})
        if 2 <= count < len(raw):
            warnings.append(
                f"column {printable(name)!r} suggests {count:,} groups: use --group-column to keep each in one split"
            )
    return warnings
