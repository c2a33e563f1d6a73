"""Hugging Face parquet files of labeled images: a column of image files as bytes or paths, and one of labels."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, compress, islice
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.column_roles import NO_ROLES, ColumnRoles
from skipway.data.output_spec import OutputSpec
from skipway.data.sources.decode import BadImage
from skipway.data.sources.image_source import PEEK, Content, Item, Skipped, Source, read_content
from skipway.data.sources.lazy_content import FileContent
from skipway.data.sources.parquet_columns import ImageColumn, choose_image_column, choose_target_columns
from skipway.data.sources.parquet_files import files_by_split, num_rows, open_parquet
from skipway.data.sources.parquet_targets import ParquetTargets, read_targets
from skipway.errors import InputError, printable

__all__ = ["parquet_source"]

_ROWS = 128  # rows converted to Python objects at a time; pyarrow itself holds a row group
_GROUPS = 4  # row groups in memory for reads in any order


def parquet_source(
    root: Path,
    allow_empty_classes: bool = False,
    *,
    roles: ColumnRoles = NO_ROLES,
    follow_links: bool = False,
    known: OutputSpec | None = None,
) -> Source:
    """Open the images of a parquet file, or of a folder of files named by split ("train-00000-of-00002.parquet").

    Args:
        root: a parquet file, or a folder of them.
        allow_empty_classes: True to leave out declared classes without training images instead of raising.
        roles: roles of the columns; unset are the target if one column holds labels, and that of the images.
        follow_links: True to follow symbolic links that lead out of the folder.
        known: outputs of a trained model, whose target columns are used if the files have them. With them, one class
            and one split are enough.

    Raises:
        InputError: a file is damaged, lacks a column, or has values that do not fit the task.
        MissingExtra: pyarrow is not installed.
    """
    where = printable(root)
    files = files_by_split(root, need_train=known is None)
    defining = next(iter(files))
    with open_parquet(files[defining][0]) as file:
        schema = file.schema_arrow
    image = choose_image_column(schema, roles.image_column, where)
    if known is not None:
        roles = _roles_of_model(roles, known, schema.names)
    names = choose_target_columns(schema, roles.target, image.name, where)
    found = read_targets(
        files, names, roles=roles, allow_empty=allow_empty_classes, is_known=known is not None, where=where
    )
    warnings = list(found.warnings)
    if "test" in files and not found.labeled["test"].any():
        warnings = ["ignored the test set: its labels are withheld", *warnings]
        del files["test"], found.labeled["test"], found.targets["test"]
    keys = {split: list(chain.from_iterable(_keys(path, root) for path in paths)) for split, paths in files.items()}
    reader = _Contents(image, root if root.is_dir() else root.parent, follow_links)

    def contents(split: str) -> Sequence[Item]:
        return _LabeledRows(reader, files[split], found.labeled[split])

    def peek() -> list[Content]:
        return list(map(read_content, islice(contents(defining), PEEK)))

    name = root.stem if root.is_file() else root.resolve().name
    return Source(
        name=name or "data",
        class_names=found.class_names,
        keys={split: list(compress(rows, found.labeled[split].tolist())) for split, rows in keys.items()},
        targets=found.targets,
        contents=contents,
        peek=peek,
        warnings=warnings,
        task=found.task,
        target_names=names,
        label_sep=roles.label_sep or "",
        skipped=list(chain.from_iterable(_unlabeled(split, keys[split], found, names) for split in files)),
    )


def _roles_of_model(roles: ColumnRoles, known: OutputSpec, columns: Sequence[str]) -> ColumnRoles:
    """Return the roles with the targets of a model, their task and their separator, if the columns exist."""
    if not known.target_names or not set(known.target_names) <= set(columns):
        return roles
    if roles.target and roles.target != tuple(known.target_names):
        return roles
    task = known.task if roles.task == "auto" else roles.task
    return replace(roles, target=known.target_names, task=task, label_sep=roles.label_sep or known.label_sep or None)


def _keys(path: Path, root: Path) -> list[str]:
    """Return a name for every row of a file."""
    name = path.relative_to(root).as_posix() if path != root else path.name
    return [f"{name}:{row}" for row in range(num_rows(path))]


def _unlabeled(split: str, keys: list[str], found: ParquetTargets, names: tuple[str, ...]) -> list[Skipped]:
    """List the rows without a target."""
    reason = f"no value in the column {' or '.join(repr(printable(name)) for name in names)}"
    rows = np.flatnonzero(~found.labeled[split])
    return [Skipped(key=keys[row], split=split, class_name="", reason=reason) for row in rows]


@dataclass(frozen=True)
class _Contents:
    """The contents of a column of images; paths are relative to the folder of their parquet file, or to `root`."""

    column: ImageColumn
    root: Path
    follow_links: bool
    _groups: "OrderedDict[tuple[Path, int], Any]" = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def items(self, path: Path) -> Iterator[Item]:
        """Iterate over the images of a file."""
        name, inside = self.column.name, dict[str, bool]()
        with open_parquet(path) as file:
            if name not in file.schema_arrow.names:
                raise InputError(
                    f"cannot read {printable(path)}: expected the column {name!r} as in the train file. Add this "
                    "column."
                )
            for batch in file.iter_batches(batch_size=_ROWS, columns=[name]):
                for data, location in zip(*self._fields(batch.column(0)), strict=True):
                    yield self._item(data.as_py(), location.as_py(), path.parent, inside)

    def item(self, path: Path, row: int) -> Item:
        """Return the image of a row; the row groups that were used last stay in memory."""
        with self._lock:
            with open_parquet(path) as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
                ends = np.cumsum(sizes)
                group = int(np.searchsorted(ends, row, side="right"))
                if (path, group) not in self._groups:
                    cells = file.read_row_group(group, columns=[self.column.name]).column(0).combine_chunks()
                    self._groups[path, group] = cells
            self._groups.move_to_end((path, group))
            while len(self._groups) > _GROUPS:
                self._groups.popitem(last=False)
            cells = self._groups[path, group].slice(row - int(ends[group]) + sizes[group], 1)
        data, location = (cell[0].as_py() for cell in self._fields(cells))
        return self._item(data, location, path.parent, {})

    def _fields(self, cells: Any) -> tuple[Any, Any]:
        """Return the bytes and the paths of a batch of cells."""
        import pyarrow
        from pyarrow import compute

        cells = cells.dictionary_decode() if pyarrow.types.is_dictionary(cells.type) else cells
        none = pyarrow.nulls(len(cells))
        if not self.column.is_struct:
            return cells, none
        parts = [compute.struct_field(cells, f) if f in self.column.fields else none for f in ("bytes", "path")]
        return parts[0], parts[1]

    def _item(self, data: bytes | None, location: str | None, folder: Path, inside: dict[str, bool]) -> Item:
        """Return the bytes of an image, or the file at its path, or the reason why there is neither."""
        if data:
            return data
        if not location:
            return BadImage("empty: the row has no image bytes")
        near = folder / location
        return FileContent(
            near if near.exists() or self.root == folder else self.root / location, self.root, self.follow_links, inside
        )


class _LabeledRows(Sequence[Item]):
    """Images of the rows with a target, in order or by index.

    Args:
        contents: reader of the image column.
        paths: parquet files of a split.
        labeled: True for each row of these files that has a target.
    """

    def __init__(self, contents: _Contents, paths: list[Path], labeled: np.ndarray):
        self._contents, self._paths, self._labeled = contents, paths, labeled
        self._rows = np.flatnonzero(labeled)
        self._ends = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Item]:
        items = chain.from_iterable(map(self._contents.items, self._paths))
        return compress(items, self._labeled.tolist())

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        if not len(self._ends):
            self._ends = np.cumsum([num_rows(path) for path in self._paths])
        row = int(self._rows[index])
        file = int(np.searchsorted(self._ends, row, side="right"))
        first = int(self._ends[file - 1]) if file else 0
        return self._contents.item(self._paths[file], row - first)
