"""Hugging Face parquet files of labelled images: a column `img` or `image` of {bytes, path}, and `label`."""

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
from skipway.errors import InputError, MissingExtra, printable

if TYPE_CHECKING:
    import pyarrow

__all__ = ["open_parquet", "parquet_files", "parquet_source"]

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_ROWS = 128  # rows that become Python's at a time; pyarrow itself holds one row group
_PEEK = 200


def parquet_files(root: Path) -> list[Path]:
    """List the parquet files that `root` is or holds, in a fixed order."""
    if root.is_file():
        return [root] if root.suffix == ".parquet" else []
    return sorted(path for path in root.rglob("*.parquet") if path.is_file() and not _is_hidden(path, root))


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def parquet_source(root: Path, allow_empty_classes: bool = False) -> Source:
    """Open the images of one parquet file, or of a folder of them named by split ('train-00000-of-00002.parquet')."""
    where = printable(root)
    files = _by_split(parquet_files(root), root)
    image, label = _columns(files["train"][0], where)
    read_labels = partial(_labels, label=label)
    columns = {split: list(chain.from_iterable(map(read_labels, paths))) for split, paths in files.items()}
    warnings: list[str] = []
    if columns.get("test") and set(columns["test"]) <= {None, -1}:
        warnings.append("left out: the test set, whose labels are withheld")
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
        labels=labels,
        contents=contents,
        peek=peek,
        warnings=warnings,
    )


def _by_split(paths: list[Path], root: Path) -> dict[str, list[Path]]:
    """Return {split: its files}; a file is of the split that its own name or its folder's name begins with."""
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
                f"cannot tell which split {printable(path)} holds; begin its name with train, validation or test"
            )
        files.setdefault(split, []).append(path)
        folders.add(parts[:-2] if len(parts) > 1 and split_of(parts[-2]) else parts[:-1])
    if len(folders) > 1:
        configurations = ", ".join(sorted(printable("/".join(f) or ".") for f in folders))
        raise InputError(
            f"{printable(root)} holds several data sets ({configurations}); name the folder of one of them, as in "
            f"{printable(root)}/{printable('/'.join(max(folders)))} or hf:org/name/folder"
        )
    if "train" not in files:
        raise InputError(f"{printable(root)}: no parquet file of a train split; begin one name with train")
    return {split: files[split] for split in SPLITS if split in files}


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """Open a parquet file; whatever it turns out to be broken by, now or while it is read, names it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("parquet", f"reading {printable(path)}") from None
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            yield file
    except (InputError, MemoryError):  # pyarrow's own is one of its other errors too
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # names that are not UTF-8 are a ValueError
        reason = printable((str(error).splitlines() or [type(error).__name__])[0])
        raise InputError(f"{printable(path)} is not a whole parquet file: {reason}; download it again") from None


def _columns(path: Path, where: str) -> tuple[str, str]:
    with open_parquet(path) as file:
        schema = file.schema_arrow
    image = next((n for n in _IMAGE_COLUMNS if n in schema.names), None)
    label = next((n for n in _LABEL_COLUMNS if n in schema.names), None)
    if image is None or label is None:
        raise InputError(
            f"{where} has the columns {', '.join(map(printable, schema.names[:12]))}, but images need "
            f"{' or '.join(_IMAGE_COLUMNS)} and {_LABEL_COLUMNS[0]}; rename the columns, or, where this is a "
            "table, name the one to predict with --target"
        )
    kind = str(schema.field(image).type)
    if not re.match(r"struct<(.*, )?bytes: (large_)?binary", kind):
        raise InputError(
            f"{where}: the column {image!r} holds {printable(kind)}, but a struct of bytes and path was expected; "
            "save it with the image feature of Hugging Face datasets"
        )
    return image, label


def _declared_names(file: Any, label: str) -> list[str] | None:
    """Return class names that the file's Hugging Face metadata gives its integer labels."""
    try:
        feature = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"][label]
        names = feature["names"] if feature.get("_type") == "ClassLabel" else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return [str(n) for n in names] if isinstance(names, list) and names else None


def _keys(path: Path, root: Path) -> list[str]:
    """Name every row of a file."""
    with open_parquet(path) as file:
        count = file.metadata.num_rows
    name = path.relative_to(root).as_posix() if path != root else path.name
    return [f"{name}:{row}" for row in range(count)]


def _labels(path: Path, label: str) -> list[Any]:
    """Read the labels of a file: class names where it declares them, else what stands in the column."""
    with open_parquet(path) as file:
        if label not in file.schema_arrow.names:
            raise InputError(f"{printable(path)} lacks the column {label!r} that the train file has; add it")
        column = file.read(columns=[label]).column(0)
        _refuse_nested(column.type, f"{printable(path)}: the column {label!r}")
        values = [None if value != value else value for value in column.to_pylist()]  # NaN is no class
        declared = _declared_names(file, label)
    if declared is None:
        return values
    return [declared[v] if isinstance(v, int) and 0 <= v < len(declared) else v for v in values]


def _refuse_nested(kind: Any, where: str) -> None:
    """Raise InputError if the values of a column are lists, structs or maps, themselves or behind a dictionary."""
    from pyarrow import types

    inner = getattr(kind, "storage_type", kind)
    inner = inner.value_type if types.is_dictionary(inner) else inner
    if types.is_nested(inner):
        raise InputError(
            f"{where}: expected texts or whole numbers as labels, got {printable(kind)[:80]}. Give each "
            "image one class."
        )


@dataclass(frozen=True)
class _LabelColumn:
    """The column of labels: where it is, for errors, and its name."""

    where: str
    name: str

    def class_names(
        self, values: list[Any], declared: list[str] | None, *, allow_empty: bool, warnings: list[str]
    ) -> tuple[str, ...]:
        """Return the training set's classes in the order in which the file declares them, else sorted."""
        where, label = self.where, self.name
        present = {value for value in values if value is not None}
        names = declared or [str(v) for v in sorted(present, key=lambda v: (isinstance(v, str), v))]
        if len(set(names)) != len(names):
            raise InputError(
                f"{where}: the class names of the column {label!r} repeat; each class needs a name of its own"
            )
        unused = [name for name in names if declared and name not in present]
        if unused and not allow_empty:
            raise InputError(
                f"{where}: the training set has no image of the class {printable(unused[0])!r}"
                + (f" (nor of {len(unused) - 1} others)" if len(unused) > 1 else "")
                + "; add some, or leave it out with --allow-empty-classes"
            )
        if unused:
            warnings.append(f"left out: classes without training images: {', '.join(map(printable, unused[:20]))}")
        names = [name for name in names if name not in set(unused)]
        if len(names) < 2:
            raise InputError(
                f"{where}: the column {label!r} has fewer than two classes; a classifier needs at least two"
            )
        return tuple(names)

    def indices(self, split: str, values: list[Any], class_names: tuple[str, ...]) -> np.ndarray:
        """Return the labels of a split as indices into the training set's names, matched by name."""
        index = {name: i for i, name in enumerate(class_names)}
        indices = np.empty(len(values), dtype=np.int64)
        for row, value in enumerate(values):
            if value is None or str(value) not in index:
                text = "none" if value is None else printable(value)
                raise InputError(
                    f"{self.where}: row {row} of the {split} set has the label {text}, which is no class of the "
                    f"training set; correct the column {self.name!r} or leave the row out"
                )
            indices[row] = index[str(value)]
        return indices


def _images(path: Path, column: str) -> Iterator[Content]:
    with open_parquet(path) as file:
        if column not in file.schema_arrow.names:
            raise InputError(f"{printable(path)} lacks the column {column!r} that the train file has; add it")
        for batch in file.iter_batches(batch_size=_ROWS, columns=[column]):
            yield from _values(batch.column(0))


def _values(structs: "pyarrow.StructArray") -> Iterator[Content]:
    for value in structs.field("bytes"):
        data = value.as_py()
        yield data if data else BadImage("empty: the row holds no bytes")
