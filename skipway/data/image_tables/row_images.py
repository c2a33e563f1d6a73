"""Rows of a table of images: their files, without rows that repeat an image or have no target.

Shapes: R rows of a table, N images.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np

from skipway.data.column_roles import ColumnRoles
from skipway.data.image_tables.choose_columns import ImageColumns
from skipway.data.image_tables.file_index import FileIndex, Match, is_url
from skipway.data.sources.image_source import SPLITS, Skipped, split_of
from skipway.data.sources.table import Table
from skipway.data.tables.columns import as_texts, read_numbers
from skipway.data.tables.join_tables import select_rows
from skipway.data.tables.target import missing_targets
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of, join_names

__all__ = ["REASONS", "RowImages", "read_rows", "refuse_wrong_root", "split_table"]

_ENOUGH = 0.5  # share of the images that must be found
_SAMPLE = 20  # missing files that are looked for elsewhere
_LONGEST_KEY = 200  # characters of a name that is no file
REASONS = {
    "missing": "no such file",
    "outside": "outside of the data folder (allow it with --follow-links, or use --image-root)",
}


@dataclass
class RowImages:
    """Rows of one split that have a target and name an image.

    Attributes:
        table: the R rows.
        keys: R paths of the files, or the texts of the rows whose file is missing.
        matches: R files.
        skipped: rows that are left out.
    """

    table: Table
    keys: list[str]
    matches: list[Match]
    skipped: list[Skipped] = field(default_factory=list)

    def reason(self, row: int) -> str:
        """Return why the file of a row cannot be read, or ""."""
        problem = self.matches[row].problem
        return f"{REASONS[problem]} ({self.table.row_name(row)})" if problem else ""


def split_table(table: Table, columns: ImageColumns, roles: ColumnRoles) -> dict[str, Table]:
    """Split the rows of a table by its split column; rows without a split are training rows.

    Raises:
        InputError: a value is not the name of a split, or no row is a training row.
    """
    if not columns.split:
        return {"train": table}
    name = columns.split
    codes, texts = as_texts(table.column(name)).factorize()
    if columns.validates:
        values, _ = read_numbers(as_texts(table.columns[name]), "boolean", name)
        splits = np.where(values > 0.5, "val", "train")
    else:
        named = [split_of(text) if text.lower() not in ("", "unassigned") else "train" for text in texts]
        if wrong := [text for text, split in zip(texts, named, strict=True) if split is None]:
            raise InputError(
                f"cannot split {printable(table.name)} by the column {printable(name)!r}: expected train, val and "
                f"test, got {join_names((repr(printable(text)[:60]) for text in wrong), limit=5)}. Correct the values, "
                "or use another --split-column."
            )
        splits = np.array([*map(str, named), "train"])[codes]
    return {split: select_rows(table, np.flatnonzero(splits == split)) for split in SPLITS if (splits == split).any()}


def read_rows(
    table: Table,
    columns: ImageColumns,
    index: FileIndex,
    *,
    folder: str,
    split: str,
    label_sep: str | None,
    prefer_split: bool,
) -> RowImages:
    """Find the images of the rows of a split, and leave out rows without a target or without a name.

    Args:
        table: the rows.
        columns: roles of the columns.
        index: the files.
        folder: folder of the table.
        split: name of the split.
        label_sep: text between several labels in the target column.
        prefer_split: True to use a file in a folder of the split if a name is that of several files.

    Raises:
        InputError: a name is that of several files.
    """
    texts = as_texts(table.column(columns.image))
    codes, distinct = texts.factorize_present()
    labeled = ~missing_targets(table, columns.targets, label_sep)
    target = " or ".join(repr(printable(name)) for name in columns.targets[:3])
    skipped = []
    for row in np.flatnonzero(~labeled | (codes < 0)).tolist():
        reason = f"no value in the target {target}" if codes[row] >= 0 else f"no name in {printable(columns.image)!r}"
        skipped.append(Skipped(key=table.row_name(row), split=split, class_name="", reason=reason))
    rows = np.flatnonzero(labeled & (codes >= 0))
    found = index.matches(distinct, folder, split if prefer_split else None)
    for text, match in zip(distinct, found, strict=True):
        if match.problem == "ambiguous":
            raise InputError(
                f"cannot choose the file of {printable(text)[:100]!r} in {printable(table.name)}: expected one file of "
                f"this name, got {join_names(map(printable, match.others), limit=3)}. Choose a folder with "
                "--image-root."
            )
    used = codes[rows]
    keys = [match.path or printable(text)[:_LONGEST_KEY] for text, match in zip(distinct, found, strict=True)]
    return RowImages(
        table=select_rows(table, rows),
        keys=[keys[code] for code in used],
        matches=[found[code] for code in used],
        skipped=skipped,
    )


def refuse_wrong_root(
    rows: list[RowImages], columns: ImageColumns, index: FileIndex, nearby: Callable[[list[str]], str]
) -> None:
    """Check that most of the images are found.

    Args:
        rows: the rows of all splits.
        columns: roles of the columns.
        index: the files.
        nearby: function that returns the folder of the files that texts name; "" if unknown.

    Raises:
        InputError: fewer than half of the images are found.
    """
    problems = Counter[str]()
    first: dict[str, str] = {}
    for part in rows:
        for key, match in zip(part.keys, part.matches, strict=True):
            problems[match.problem] += 1
            first.setdefault(match.problem, key)
    total = problems.total()
    if problems[""] >= _ENOUGH * total and total:
        return
    where = f"{printable(rows[0].table.name)}, column {printable(columns.image)!r}" if rows else ""
    if not total:
        raise InputError(f"cannot use {where}: expected rows with an image and a target, got none. Fill in the values.")
    if problems["outside"] > problems["missing"]:
        folder = first["outside"].replace("\\", "/").rpartition("/")[0] or "FOLDER"
        raise InputError(
            f"cannot use {where}: expected images inside of {index.tree.where}, got {first['outside']!r}. Use "
            f"--image-root {folder}, or --follow-links."
        )
    example = first["missing"]
    found = f"found {problems['']:,} of {count_of(total, 'file')} in {index.tree.where} and its subfolders"
    if is_url(example):
        raise InputError(
            f"cannot use {where}: expected image files, got URLs such as {example!r} ({found}). Download the images, "
            "and pass their folder as --image-root."
        )
    missing = list(islice(chain.from_iterable(part.keys for part in rows), _SAMPLE))
    folder = nearby(missing)
    fix = f"Did you mean --image-root {printable(folder)}?" if folder else "Pass their folder as --image-root."
    raise InputError(
        f"cannot find the images of {where}: expected the files that it names, {found}; {example!r} is missing. {fix} "
        f"To learn from the other columns, add --ignore {printable(columns.image)}."
    )
