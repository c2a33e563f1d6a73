"""Hugging Face parquet files of labeled images: a column `image` or `img` of {bytes, path}, and `label`."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skipway.data.sources.decode import BadImage
from skipway.data.sources.image_source import SPLITS, Content, Source, split_of
from skipway.errors import InputError, MissingExtra, printable, reason_of

if TYPE_CHECKING:
    import pyarrow

__all__ = ["open_parquet", "parquet_files", "parquet_source"]

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_ROWS = 128  # rows converted to Python objects at a time; pyarrow itself holds a row group
_PEEK = 200


def parquet_files(root: Path) -> list[Path]:
    """List `root` if it is a parquet file, or all parquet files in it, in a fixed order; hidden files are skipped."""
    if root.is_file():
        return [root] if root.suffix == ".parquet" else []
    return sorted(path for path in root.rglob("*.parquet") if path.is_file() and not _is_hidden(path, root))


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def parquet_source(root: Path, allow_empty_classes: bool = False) -> Source:
    """Open the images of a parquet file, or of a folder of files named by split ("train-00000-of-00002.parquet").

    Args:
        root: a parquet file, or a folder of them.
        allow_empty_classes: True to leave out declared classes without training images instead of raising.

    Raises:
        InputError: a file is damaged, lacks a column, or has labels that are not classes of the training set.
        MissingExtra: pyarrow is not installed.
    """
    where = printable(root)
    files = _by_split(parquet_files(root), root)
    image, label = _columns(files["train"][0], where)
    read_labels = partial(_labels, label=label)
    columns = {split: list(chain.from_iterable(map(read_labels, paths))) for split, paths in files.items()}
    warnings: list[str] = []
    if columns.get("test") and set(columns["test"]) <= {None, -1}:
        warnings.append("ignored the test set: its labels are withheld")
        del files["test"], columns["test"]
    with open_parquet(files["train"][0]) as file:
        declared = _declared_names(file, label)
    column = _LabelColumn(where, label)
    class_names = column.class_names(columns["train"], declared, allow_empty=allow_empty_classes, warnings=warnings)
    labels = {split: column.indices(split, values, class_names) for split, values in columns.items()}
    for split in set(labels) - {"train"}:
        absent = sorted(set(range(len(class_names))) - set(labels[split].tolist()))
        if absent:
            missing = ", ".join(printable(class_names[i]) for i in absent[:20])
            warnings.append(f"the {split} set has no images of: {missing}")
    keys = {split: list(chain.from_iterable(_keys(path, root) for path in paths)) for split, paths in files.items()}

    def contents(split: str) -> Iterator[Content]:
        for path in files[split]:
            yield from _images(path, image)

    def peek() -> list[Content]:
        return [content for content, _ in zip(contents("train"), range(_PEEK), strict=False)]

    name = root.stem if root.is_file() else root.resolve().name
    return Source(
        name=name or "data",
        class_names=class_names,
        keys=keys,
        targets=labels,
        contents=contents,
        peek=peek,
        warnings=warnings,
    )


def _by_split(paths: list[Path], root: Path) -> dict[str, list[Path]]:
    """Return {split: files}, by the prefix of the file name or the name of its folder."""
    files: dict[str, list[Path]] = {}
    folders = set()
    for path in paths:
        parts = path.relative_to(root).parts if path != root else (path.name,)
        split = split_of(re.split(r"[-._]", path.name)[0])
        if split is None and len(parts) > 1:
            split = split_of(parts[-2])
        if split is None and len(paths) == 1:
            split = "train"
        if split is None:
            raise InputError(
                f"cannot find the split of {printable(path)}: expected a name that begins with train, validation or "
                "test. Rename the file."
            )
        files.setdefault(split, []).append(path)
        folders.add(parts[:-2] if len(parts) > 1 and split_of(parts[-2]) else parts[:-1])
    if len(folders) > 1:
        configurations = ", ".join(sorted(printable("/".join(f) or ".") for f in folders))
        raise InputError(
            f"cannot use {printable(root)}: expected one dataset, got several ({configurations}). Pass one of their "
            f"folders, such as {printable(root)}/{printable('/'.join(max(folders)))} or hf:org/name/folder."
        )
    if "train" not in files:
        raise InputError(
            f"cannot use {printable(root)}: expected a parquet file whose name begins with train. Rename one."
        )
    return {split: files[split] for split in SPLITS if split in files}


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """Open a parquet file as a context; errors while it is read name the file.

    Raises:
        InputError: the file cannot be read.
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("parquet", f"reading {printable(path)}") from None
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            yield file
    except (InputError, MemoryError):  # the MemoryError of pyarrow is also an ArrowException
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError: names that are not UTF-8
        raise InputError(
            f"cannot read the parquet file {printable(path)}: {reason_of(error)}. Download it again."
        ) from None


def _columns(path: Path, where: str) -> tuple[str, str]:
    with open_parquet(path) as file:
        schema = file.schema_arrow
    image = next((n for n in _IMAGE_COLUMNS if n in schema.names), None)
    label = next((n for n in _LABEL_COLUMNS if n in schema.names), None)
    if image is None or label is None:
        raise InputError(
            f"cannot read images from {where}: expected the columns {' or '.join(_IMAGE_COLUMNS)} and "
            f"{_LABEL_COLUMNS[0]}, got {', '.join(map(printable, schema.names[:12]))}. Rename the columns, or use "
            "--target if this is a table."
        )
    kind = str(schema.field(image).type)
    if not re.match(r"struct<(.*, )?bytes: (large_)?binary", kind):
        raise InputError(
            f"cannot read the column {image!r} of {where}: expected a struct of bytes and path, got "
            f"{printable(kind)[:80]}. Save it with the Image feature of Hugging Face datasets."
        )
    return image, label


def _declared_names(file: Any, label: str) -> list[str] | None:
    """Return the class names in the Hugging Face metadata of a file, or None."""
    try:
        feature = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"][label]
        names = feature["names"] if feature.get("_type") == "ClassLabel" else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return [str(n) for n in names] if isinstance(names, list) and names else None


def _keys(path: Path, root: Path) -> list[str]:
    """Return a name for every row of a file."""
    with open_parquet(path) as file:
        count = file.metadata.num_rows
    name = path.relative_to(root).as_posix() if path != root else path.name
    return [f"{name}:{row}" for row in range(count)]


def _labels(path: Path, label: str) -> list[Any]:
    """Read the labels of a file: class names if the file declares them, else the values of the column."""
    with open_parquet(path) as file:
        if label not in file.schema_arrow.names:
            raise _missing_column(path, label)
        column = file.read(columns=[label]).column(0)
        _refuse_nested(column.type, f"the column {label!r} of {printable(path)}")
        values = [None if value != value else value for value in column.to_pylist()]  # NaN is a missing label
        declared = _declared_names(file, label)
    if declared is None:
        return values
    return [declared[v] if isinstance(v, int) and 0 <= v < len(declared) else v for v in values]


def _missing_column(path: Path, column: str) -> InputError:
    text = printable(path)
    return InputError(f"cannot read {text}: expected the column {column!r} as in the train file. Add this column.")


def _refuse_nested(kind: Any, where: str) -> None:
    """Raise InputError if the values of a column are lists, structs or maps, also if dictionary-encoded."""
    from pyarrow import types

    inner = getattr(kind, "storage_type", kind)
    inner = inner.value_type if types.is_dictionary(inner) else inner
    if types.is_nested(inner):
        raise InputError(
            f"cannot read {where}: expected labels as strings or integers, got {printable(kind)[:80]}. Store one class "
            "per image."
        )


@dataclass(frozen=True)
class _LabelColumn:
    """The label column: the name of its file or folder, for errors, and the name of the column."""

    where: str
    name: str

    def class_names(
        self, values: list[Any], declared: list[str] | None, *, allow_empty: bool, warnings: list[str]
    ) -> tuple[str, ...]:
        """Return the classes of the training set, in the declared order if there is one, else sorted."""
        where, label = self.where, self.name
        present = {value for value in values if value is not None}
        names = declared or [str(v) for v in sorted(present, key=lambda v: (isinstance(v, str), v))]
        if len(set(names)) != len(names):
            raise InputError(
                f"cannot use the column {label!r} of {where}: expected unique class names, got duplicates. Rename them."
            )
        unused = [name for name in names if declared and name not in present]
        if unused and not allow_empty:
            raise InputError(
                f"cannot use {where}: expected training images of every class, found none of {printable(unused[0])!r}"
                + (f" and {len(unused) - 1} more" if len(unused) > 1 else "")
                + ". Add images, or use --allow-empty-classes."
            )
        if unused:
            warnings.append(f"ignored classes without training images: {', '.join(map(printable, unused[:20]))}")
        names = [name for name in names if name not in set(unused)]
        if len(names) < 2:
            raise InputError(
                f"cannot use the column {label!r} of {where}: expected at least 2 classes, got {len(names)}. Add "
                "images of other classes."
            )
        return tuple(names)

    def indices(self, split: str, values: list[Any], class_names: tuple[str, ...]) -> np.ndarray:
        """Return the labels of a split as (N,) indices into `class_names`."""
        index = {name: i for i, name in enumerate(class_names)}
        indices = np.empty(len(values), dtype=np.int64)
        for row, value in enumerate(values):
            if value is None or str(value) not in index:
                text = "no label" if value is None else printable(value)
                raise InputError(
                    f"cannot use row {row} of the {split} set of {self.where}: expected a class of the training set, "
                    f"got {text}. Correct the column {self.name!r}, or remove the row."
                )
            indices[row] = index[str(value)]
        return indices


def _images(path: Path, column: str) -> Iterator[Content]:
    with open_parquet(path) as file:
        if column not in file.schema_arrow.names:
            raise _missing_column(path, column)
        for batch in file.iter_batches(batch_size=_ROWS, columns=[column]):
            yield from _values(batch.column(0))


def _values(structs: "pyarrow.StructArray") -> Iterator[Content]:
    for value in structs.field("bytes"):
        data = value.as_py()
        yield data if data else BadImage("empty: the row has no image bytes")
