"""Hugging Face parquet files of labeled images: a column of image files as bytes or paths, and one of labels."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain, compress, islice
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.column_roles import NO_ROLES, ColumnRoles
from skipway.data.sources.decode import BadImage
from skipway.data.sources.image_source import Content, Item, Skipped, Source
from skipway.data.sources.lazy_content import FileContent
from skipway.data.sources.parquet_columns import ImageColumn, choose_image_column, choose_target_columns
from skipway.data.sources.parquet_files import files_by_split, open_parquet
from skipway.data.sources.parquet_targets import ParquetTargets, read_targets
from skipway.errors import InputError, printable

__all__ = ["parquet_source"]

_ROWS = 128  # rows converted to Python objects at a time; pyarrow itself holds a row group
_PEEK = 200


def parquet_source(
    root: Path,
    allow_empty_classes: bool = False,
    *,
    roles: ColumnRoles = NO_ROLES,
    follow_links: bool = False,
    known_classes: Collection[str] | None = None,
) -> Source:
    """Open the images of a parquet file, or of a folder of files named by split ("train-00000-of-00002.parquet").

    Args:
        root: a parquet file, or a folder of them.
        allow_empty_classes: True to leave out declared classes without training images instead of raising.
        roles: roles of the columns; unset are the target if one column holds labels, and that of the images.
        follow_links: True to follow symbolic links that lead out of the folder.
        known_classes: classes of a trained model. With them, one class and one split are enough.

    Raises:
        InputError: a file is damaged, lacks a column, or has values that do not fit the task.
        MissingExtra: pyarrow is not installed.
    """
    where = printable(root)
    files = files_by_split(root, need_train=known_classes is None)
    defining = next(iter(files))
    with open_parquet(files[defining][0]) as file:
        schema = file.schema_arrow
    image = choose_image_column(schema, roles.image_column, where)
    names = choose_target_columns(schema, roles.target, image.name, where)
    found = read_targets(
        files, names, roles=roles, allow_empty=allow_empty_classes, is_known=known_classes is not None, where=where
    )
    warnings = list(found.warnings)
    if "test" in files and not found.labeled["test"].any():
        warnings = ["ignored the test set: its labels are withheld", *warnings]
        del files["test"], found.labeled["test"], found.targets["test"]
    keys = {split: list(chain.from_iterable(_keys(path, root) for path in paths)) for split, paths in files.items()}
    reader = _Contents(image, root if root.is_dir() else root.parent, follow_links)

    def contents(split: str) -> Iterator[Item]:
        items = chain.from_iterable(map(reader.items, files[split]))
        return compress(items, found.labeled[split].tolist())

    def peek() -> list[Content]:
        return [item() if callable(item) else item for item in islice(contents(defining), _PEEK)]

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


def _keys(path: Path, root: Path) -> list[str]:
    """Return a name for every row of a file."""
    with open_parquet(path) as file:
        count = file.metadata.num_rows
    name = path.relative_to(root).as_posix() if path != root else path.name
    return [f"{name}:{row}" for row in range(count)]


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
