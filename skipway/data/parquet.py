"""Hugging Face parquet files of labelled pictures: a column `img` or `image` of {bytes, path}, and `label`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skipway.data.images import BadPicture
from skipway.data.source import SPLITS, Content, Source, split_of
from skipway.errors import InputError, MissingExtra, printable

if TYPE_CHECKING:
    import pyarrow

__all__ = ["parquet_files", "parquet_source"]

_PICTURE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_ROWS = 1024  # rows that are in memory at a time
_PEEK = 200


def parquet_files(root: Path) -> list[Path]:
    """The parquet files that `root` is or holds, in a fixed order."""
    if root.is_file():
        return [root] if root.suffix == ".parquet" else []
    return sorted(
        p for p in root.rglob("*.parquet") if not any(part.startswith(".") for part in p.relative_to(root).parts)
    )


def parquet_source(root: Path) -> Source:
    """The pictures of one parquet file, or of a folder of them named by split ('train-00000-of-00002.parquet')."""
    where = printable(root)
    files = _by_split(parquet_files(root), root)
    picture, label = _columns(files["train"][0], where)
    names = {split: _declared_names(paths[0], label) for split, paths in files.items()}
    columns = {split: _label_column(paths, label) for split, paths in files.items()}
    class_names = names["train"] or _distinct(columns["train"])
    if len(class_names) < 2:
        raise InputError(f"{where}: the column {label!r} has fewer than two classes; a classifier needs at least two")
    if len(set(class_names)) != len(class_names):
        raise InputError(f"{where}: the class names of the column {label!r} repeat; each class needs a name of its own")
    warnings: list[str] = []
    labels = {
        split: _indices(split, column, names[split], class_names, (where, label)) for split, column in columns.items()
    }
    for split in set(labels) - {"train"}:
        absent = sorted(set(range(len(class_names))) - set(labels[split].tolist()))
        if absent:
            missing = ", ".join(printable(class_names[i]) for i in absent[:20])
            warnings.append(f"the {split} set has no pictures of: {missing}")
    keys = {split: [f"{p.name}:{row}" for p in paths for row in range(_rows(p))] for split, paths in files.items()}

    def contents(split: str) -> Iterator[Content]:
        for path in files[split]:
            yield from _pictures(path, picture)

    def peek() -> list[Content]:
        return [content for content, _ in zip(_pictures(files["train"][0], picture), range(_PEEK), strict=False)]

    name = root.stem if root.is_file() else root.resolve().name
    return Source(name or "data", tuple(class_names), keys, labels, contents, peek, warnings=warnings)


def _by_split(paths: list[Path], root: Path) -> dict[str, list[Path]]:
    """{split: its files}; a file is of the split that its own name or its folder's name begins with."""
    found: dict[str, list[Path]] = {}
    folders = set()
    for path in paths:
        parts = path.relative_to(root).parts if path != root else (path.name,)
        split = split_of(path.stem.split("-")[0].split(".")[0].split("_")[0])
        if split is None and len(parts) > 1:
            split = split_of(parts[-2])
        if split is None and len(paths) == 1:
            split = "train"
        if split is None:
            raise InputError(
                f"cannot tell which split {printable(path)} holds; begin its name with train, validation or test"
            )
        found.setdefault(split, []).append(path)
        folders.add(parts[:-2] if len(parts) > 1 and split_of(parts[-2]) else parts[:-1])
    if len(folders) > 1:
        configurations = ", ".join(sorted(printable("/".join(f) or ".") for f in folders))
        raise InputError(
            f"{printable(root)} holds several data sets ({configurations}); name the folder of one of them"
        )
    if "train" not in found:
        raise InputError(f"{printable(root)}: no parquet file of a train split; begin one name with train")
    return {split: found[split] for split in SPLITS if split in found}


def _open(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("parquet", f"reading {printable(path)}") from None
    try:
        return pyarrow.parquet.ParquetFile(path, memory_map=True)
    except (OSError, pyarrow.ArrowException) as error:
        reason = printable(str(error).splitlines()[0])
        raise InputError(f"{printable(path)} is not a whole parquet file: {reason}; download it again") from None


def _columns(path: Path, where: str) -> tuple[str, str]:
    with _open(path) as file:
        schema = file.schema_arrow
    picture = next((n for n in _PICTURE_COLUMNS if n in schema.names), None)
    label = next((n for n in _LABEL_COLUMNS if n in schema.names), None)
    if picture is None or label is None:
        raise InputError(
            f"{where} has the columns {', '.join(map(printable, schema.names[:12]))}, but pictures need "
            f"{' or '.join(_PICTURE_COLUMNS)} and {_LABEL_COLUMNS[0]}; rename the columns"
        )
    kind = str(schema.field(picture).type)
    if not kind.startswith("struct<") or "bytes: binary" not in kind:
        raise InputError(
            f"{where}: the column {picture!r} holds {printable(kind)}, but a struct of bytes and path was expected; "
            "save it with the picture feature of Hugging Face datasets"
        )
    return picture, label


def _declared_names(path: Path, label: str) -> list[str] | None:
    """Class names that the file's Hugging Face metadata gives its integer labels."""
    with _open(path) as file:
        metadata = file.schema_arrow.metadata or {}
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][label]
        names = feature["names"] if feature.get("_type") == "ClassLabel" else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return [str(n) for n in names] if isinstance(names, list) and names else None


def _rows(path: Path) -> int:
    with _open(path) as file:
        return int(file.metadata.num_rows)


def _label_column(paths: list[Path], label: str) -> list[Any]:
    values: list[Any] = []
    for path in paths:
        with _open(path) as file:
            values += file.read(columns=[label]).column(0).to_pylist()
    return values


def _distinct(column: list[Any]) -> list[str]:
    return [str(v) for v in sorted({v for v in column if v is not None}, key=lambda v: (isinstance(v, str), v))]


def _indices(
    split: str, column: list[Any], declared: list[str] | None, class_names: list[str], at: tuple[str, str]
) -> np.ndarray:
    """The labels of a split as indices into the training set's names, matched by name."""
    where, label = at
    known = {name: i for i, name in enumerate(class_names)}
    indices = np.empty(len(column), dtype=np.int64)
    for row, value in enumerate(column):
        if declared and isinstance(value, int):
            name = declared[value] if 0 <= value < len(declared) else None
        else:
            name = None if value is None else str(value)
        if name is None or name not in known:
            said = "none" if value is None else printable(value)
            raise InputError(
                f"{where}: row {row} of the {split} set has the label {said}, which is no class of the training set; "
                f"correct the column {label!r} or leave the row out"
            )
        indices[row] = known[name]
    return indices


def _pictures(path: Path, column: str) -> Iterator[Content]:
    with _open(path) as file:
        for batch in file.iter_batches(batch_size=_ROWS, columns=[column]):
            yield from _values(batch.column(0))


def _values(structs: "pyarrow.StructArray") -> Iterator[Content]:
    for value in structs.field("bytes"):
        data = value.as_py()
        yield data if data else BadPicture("empty: the row holds no bytes")
