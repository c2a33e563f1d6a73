"""Columns of Parquet files of images: which one holds the images, and which ones the targets."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipway.data.sources.parquet_files import open_parquet
from skipway.data.sources.table import join_quoted
from skipway.errors import InputError, did_you_mean, printable

__all__ = [
    "ImageColumn",
    "choose_image_column",
    "choose_target_columns",
    "declared_names",
    "holds_images",
    "packs_images",
]

_IMAGE_COLUMNS = ("image", "img")
_TARGET_COLUMNS = ("label", "labels", "fine_label")


@dataclass(frozen=True)
class ImageColumn:
    """Column of images: "bytes" of image files, a struct with "bytes", "path" or both, or "other" values."""

    name: str
    fields: frozenset[str]

    @property
    def is_struct(self) -> bool:
        """True for a struct of bytes and path."""
        return self.fields != {""}


def holds_images(schema: Any) -> bool:
    """Return True if a column of a schema holds image files as bytes, or in a struct of bytes and path."""
    return bool(_image_columns(schema))


def packs_images(path: Path) -> bool:
    """Return True for a Parquet file whose cells are image files."""
    if path.suffix.lower() != ".parquet":
        return False
    with open_parquet(path) as file:
        return holds_images(file.schema_arrow)


def choose_image_column(schema: Any, name: str | None, where: str) -> ImageColumn:
    """Choose the column of images.

    Args:
        schema: schema of the training file.
        name: name of the column; None for `image`, `img`, or the only one that holds images.
        where: name of the dataset, for errors.

    Raises:
        InputError: no column or several columns hold images, or the named one does not.
    """
    columns = _image_columns(schema)
    if name is None:
        name = next((n for n in _IMAGE_COLUMNS if n in schema.names), None)
        if name is None and len(columns) == 1:
            name = next(iter(columns))
    if name is None and columns:
        raise InputError(
            f"cannot read images from {where}: expected one column of images, got {join_quoted(list(columns))}. Choose "
            "one with --image-column."
        )
    if name is None:
        raise InputError(
            f"cannot read images from {where}: expected a column of images, got {join_quoted(schema.names, 12)}. Save "
            "them with the Image feature of Hugging Face datasets, or use --target if this is a table."
        )
    if name not in schema.names:
        raise InputError(
            f"cannot find the image column {printable(name)!r} in {where}: expected one of "
            f"{join_quoted(list(columns) or schema.names)}{did_you_mean(name, schema.names)}. Correct --image-column."
        )
    if name not in columns:
        raise InputError(
            f"cannot read the column {printable(name)!r} of {where}: expected bytes, or a struct of bytes and path, "
            f"got {printable(schema.field(name).type)[:80]}. Save it with the Image feature of Hugging Face datasets."
        )
    return columns[name]


def choose_target_columns(schema: Any, names: tuple[str, ...], image: str, where: str) -> tuple[str, ...]:
    """Choose the columns of the targets.

    Args:
        schema: schema of the training file.
        names: names of the columns; empty for `label`, `labels`, `fine_label`, the only ClassLabel,
            or the only column that can hold labels.
        image: name of the column of images.
        where: name of the dataset, for errors.

    Raises:
        InputError: a column does not exist, or the choice is open.
    """
    if names:
        for name in names:
            if name not in schema.names or name == image:
                others = [other for other in schema.names if other != image]
                raise InputError(
                    f"cannot find the target {printable(name)!r} in {where}: expected one of "
                    f"{join_quoted(others)}{did_you_mean(name, others)}. Correct --target."
                )
        return tuple(dict.fromkeys(names))
    usual = [name for name in _TARGET_COLUMNS if name in schema.names]
    images = _image_columns(schema)
    fitting = [name for name in schema.names if name not in images and _holds_labels(schema.field(name).type)]
    declared = [name for name in fitting if declared_names(schema, name)]
    others = [name for name in schema.names if name not in images]
    for choice in (usual[:1], declared, fitting, others):
        if len(choice) == 1:
            return (choice[0],)
    raise InputError(
        f"cannot choose the target of {where}: expected a column label, or one other column of labels, got "
        f"{join_quoted(declared or fitting or schema.names)}. Choose one with --target."
    )


def declared_names(schema: Any, column: str) -> list[str] | None:
    """Return the class names of a column in the metadata of Hugging Face datasets, or None."""
    try:
        feature = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]
        while True:  # a feature of lists holds that of their elements
            inner = feature[0] if isinstance(feature, list) else feature
            if inner.get("_type") == "ClassLabel":
                names = inner["names"]
                break
            feature = inner["feature"]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return None
    return [str(n) for n in names] if isinstance(names, list) and names else None


def _image_columns(schema: Any) -> dict[str, ImageColumn]:
    """Return the columns that can hold images, by name."""
    from pyarrow import types

    columns: dict[str, ImageColumn] = {}
    for field in schema:
        kind = _value_type(field.type)
        if _is_binary(kind):
            columns[field.name] = ImageColumn(field.name, frozenset([""]))
        elif types.is_struct(kind):
            inner = {kind.field(i).name: _value_type(kind.field(i).type) for i in range(kind.num_fields)}
            names = {name for name in ("bytes",) if name in inner and _is_binary(inner[name])}
            names |= {name for name in ("path",) if name in inner and _is_text(inner[name])}
            if names and set(inner) <= {"bytes", "path"}:
                columns[field.name] = ImageColumn(field.name, frozenset(names))
    return columns


def _holds_labels(kind: Any) -> bool:
    """Return True for a type of strings, integers or booleans, or of lists of them."""
    from pyarrow import types

    kind = _value_type(kind)
    if is_list(kind):
        kind = _value_type(kind.value_type)
    return bool(_is_text(kind) or types.is_integer(kind) or types.is_boolean(kind))


def is_list(kind: Any) -> bool:
    """Return True for a type of lists, of any and of fixed length."""
    from pyarrow import types

    views = any(getattr(types, name, lambda _: False)(kind) for name in ("is_list_view", "is_large_list_view"))
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or views)


def _value_type(kind: Any) -> Any:
    """Return the type of the values of a dictionary or of an extension type."""
    from pyarrow import types

    kind = getattr(kind, "storage_type", kind)
    return kind.value_type if types.is_dictionary(kind) else kind


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))
