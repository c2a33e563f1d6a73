"""Source of images from a table: a column names the files, others hold targets, splits, groups and weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from skipway.data.column_roles import ColumnRoles
from skipway.data.groups import groups_of_column, hint_at_columns
from skipway.data.image_tables.choose_columns import ImageColumns, choose_columns
from skipway.data.image_tables.file_index import FileIndex
from skipway.data.image_tables.repeated_images import merge_repeated
from skipway.data.image_tables.row_images import RowImages, read_rows, refuse_wrong_root, split_table
from skipway.data.image_tables.targets import read_image_targets
from skipway.data.output_spec import OutputSpec
from skipway.data.sample_weights import read_weights
from skipway.data.sources.decode import BadImage
from skipway.data.sources.file_tree import FileTree
from skipway.data.sources.image_source import SPLITS, Content, Item, Source, peeked, read_content
from skipway.data.sources.table import Table
from skipway.errors import InputError, printable
from skipway.utils.format_text import join_names

__all__ = ["ImageTable", "image_table_source"]

Value = TypeVar("Value")


@dataclass
class ImageTable:
    """Tables of one dataset and the files around them.

    Attributes:
        name: name of the dataset.
        tables: {split: table}.
        folders: {split: folder of the table below the root of the files}.
        index: the files.
        image: column that names the images.
        warnings: remarks about the files.
        nearby: function that returns the folder of texts that name no file, for an error; "" if unknown.
    """

    name: str
    tables: dict[str, Table]
    folders: dict[str, str]
    index: FileIndex
    image: str
    warnings: list[str] = field(default_factory=list)
    nearby: Callable[[list[str]], str] = lambda texts: ""


def image_table_source(images: ImageTable, roles: ColumnRoles, known: OutputSpec | None = None) -> Source:
    """Open the images of a table.

    Args:
        images: the tables, with the column that names the images.
        roles: roles of the columns that are set; others are detected.
        known: outputs of a trained model, with which one split is enough.

    Raises:
        InputError: a column or a value cannot be used, or most files are missing.
    """
    defining = images.tables.get("train") or next(iter(images.tables.values()))
    features = roles.features or tuple(column.name for column in getattr(known, "feature_columns", ()))
    columns = choose_columns(defining, images.image, roles, known)
    is_split_later = known is None and not roles.group_column
    warnings = [*images.warnings, *(hint_at_columns(defining, columns.used()) if is_split_later else [])]
    tables, folders = _tables_by_split(images, columns, roles, warnings)
    if known is None and "train" not in tables:
        raise InputError(
            f"cannot train on {printable(images.name)}: expected training rows, got only {join_names(tables, 3)} in "
            f"the column {printable(columns.split)!r}. Correct the values."
        )
    prefer_split = len(images.tables) > 1
    rows = {
        split: read_rows(
            table,
            columns,
            images.index,
            folder=folders[split],
            split=split,
            label_sep=roles.label_sep or (known.label_sep if known is not None else None),
            prefer_split=prefer_split,
        )
        for split, table in tables.items()
    }
    refuse_wrong_root(list(rows.values()), columns, images.index, images.nearby)
    rows = {split: part for split, part in rows.items() if part.keys}
    if known is None and "train" not in rows:
        raise InputError(
            f"cannot train on {printable(images.name)}: expected training rows with a target, got none. Fill in the "
            "target."
        )
    targets = read_image_targets({split: part.table for split, part in rows.items()}, columns.targets, roles, known)
    merge_repeated(rows, targets, columns, roles)
    for table in images.tables.values():
        warnings += [f"{printable(Path(table.name).name)}: {note}" for note in table.notes]

    def contents(split: str) -> Sequence[Item]:
        return _Contents(images.index.tree, rows[split])

    def peek() -> list[Content]:
        part = rows.get("train") or next(iter(rows.values()))
        sample = peeked(range(len(part.keys)))
        return [read_content(item) for item in _Contents(images.index.tree, part, sample)]

    return Source(
        name=images.name,
        class_names=targets.class_names,
        keys={split: part.keys for split, part in rows.items()},
        targets=targets.values,
        contents=contents,
        peek=peek,
        warnings=[*warnings, *targets.warnings, *_absent(targets.values, targets.class_names)],
        task=targets.task,
        target_names=columns.targets,
        label_sep=targets.label_sep,
        groups=_by_split(rows, roles.group_column, lambda table, name: groups_of_column(table.column(name))),
        weights=_by_split(rows, roles.weight_column, read_weights),
        columns={split: _chosen_columns(part.table, features) for split, part in rows.items()} if features else {},
        order=_by_split(rows, roles.split_by, lambda table, name: _chosen_columns(table, (name,))),
        skipped=list(chain.from_iterable(part.skipped for part in rows.values())),
        roles=columns.describe(roles),
    )


def _tables_by_split(
    images: ImageTable, columns: ImageColumns, roles: ColumnRoles, warnings: list[str]
) -> tuple[dict[str, Table], dict[str, str]]:
    """Return the tables and folders by split: those of the files, or of a split column."""
    tables = dict(images.tables)
    if len(tables) > 1:
        if roles.split_column:
            raise InputError(
                f"cannot use --split-column {printable(roles.split_column)}: expected one table, got "
                f"{join_names((printable(Path(t.name).name) for t in tables.values()), 3)}. Drop --split-column."
            )
        missing = [name for name in columns.targets if name not in tables.get("test", tables["train"]).columns]
        if missing:
            test = tables.pop("test")
            warnings.append(f"ignored {printable(Path(test.name).name)}: it has no column {printable(missing[0])!r}")
        return tables, images.folders
    ((split, table),) = tables.items()
    parts = split_table(table, columns, roles) if columns.split else {split: table}
    return parts, dict.fromkeys(parts, images.folders[split])


class _Contents(Sequence[Item]):
    """Images of rows, each read when it is called; a missing file is an error."""

    def __init__(self, tree: FileTree, rows: RowImages, chosen: Sequence[int] | None = None) -> None:
        self._rows = rows
        self._chosen = range(len(rows.keys)) if chosen is None else chosen
        paths = [rows.matches[row].path for row in self._chosen]
        self._files = tree.contents([path for path in paths if path])
        self._places = np.cumsum([bool(path) for path in paths], dtype=np.int64) - 1

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self._chosen[index]
        return self._files[self._places[index]] if self._rows.matches[row].path else BadImage(self._rows.reason(row))


def _by_split(rows: dict[str, RowImages], name: str | None, read: Callable[[Table, str], Value]) -> dict[str, Value]:
    """Read a column of the tables of all splits; return {} if there is no such column."""
    return {} if name is None else {split: read(part.table, name) for split, part in rows.items()}


def _chosen_columns(table: Table, names: Sequence[str]) -> Table:
    return replace(table, columns={name: table.column(name) for name in names})


def _absent(values: dict[str, np.ndarray], class_names: tuple[str, ...]) -> list[str]:
    """Return warnings about classes or labels without images in a split."""
    warnings = []
    for split in SPLITS[1:]:
        if split not in values or not class_names:
            continue
        present = values[split]
        counts = np.bincount(present, minlength=len(class_names)) if present.ndim == 1 else present.sum(axis=0)
        names = [printable(class_names[i]) for i in np.flatnonzero(counts == 0)]
        if names:
            warnings.append(f"the {split} set has no images of: {join_names(names, limit=20)}")
    return warnings
