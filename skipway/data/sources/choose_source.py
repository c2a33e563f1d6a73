"""Resolution of DATA: a bundled dataset, a dataset of the Hub, a folder of class folders, or parquet files."""

from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from skipway.data.column_roles import NO_ROLES, ColumnRoles
from skipway.data.output_spec import OutputSpec
from skipway.data.sources.annotation_exports import refuse_exports
from skipway.data.sources.archive_tree import is_archive, open_archive
from skipway.data.sources.file_tree import DiskTree, FileTree
from skipway.data.sources.hub import HUB_NAMES, hub_folder
from skipway.data.sources.image_folder import describe_content, labeled_source
from skipway.data.sources.image_parquet import parquet_source
from skipway.data.sources.image_source import Content, Source
from skipway.data.sources.in_memory import held_data
from skipway.data.sources.in_memory_source import held_images
from skipway.data.sources.missing_file import missing_file
from skipway.data.sources.read_table import BUILT_IN_TABLES
from skipway.data.sources.table_content import table_suffix
from skipway.errors import InputError, did_you_mean, printable
from skipway.utils.format_text import count_of

__all__ = ["BUILT_IN", "open_source"]

BUILT_IN = ("digits", *BUILT_IN_TABLES)
_HANDWRITTEN = {"mnist", "emnist", "kmnist", "qmnist", "svhn"}  # Hub datasets whose classes change under a flip


def open_source(
    data: str,
    follow_links: bool = False,
    allow_empty_classes: bool = False,
    *,
    known: OutputSpec | None = None,
    roles: ColumnRoles = NO_ROLES,
    tree: FileTree | None = None,
) -> Source:
    """Open labeled images; an existing folder or file takes precedence over a name on the Hub.

    Args:
        data: a bundled dataset, a name of `hold_data`, a folder, an archive, a parquet file, a name of `HUB_NAMES`, or
            "hf:org/name".
        follow_links: True to follow symbolic links that lead out of a folder.
        allow_empty_classes: True to leave out classes without images instead of raising.
        known: outputs of a trained model, with which one class and one split are enough.
        roles: the task of objects, and the roles of the columns of parquet files.
        tree: files of the folder or archive if they are already listed.

    Raises:
        InputError: there are no labeled images at `data`, or they cannot be read.
    """
    if (held := held_data(data)) is not None:
        return held_images(held, roles.task, is_known=known is not None)
    if data == "digits":
        _refuse_target(data, roles)
        return digits()
    path = Path(data)
    try:
        path = path.expanduser()
        exists = bool(data) and path.exists()
    except (OSError, RuntimeError):  # no permission, or an unknown home directory
        exists = False
    if not exists and table_suffix(path) and not data.startswith("hf:"):
        raise missing_file(path)
    if data in BUILT_IN_TABLES or table_suffix(path) not in ("", ".parquet"):
        raise InputError(f"cannot use {printable(data)}: expected images, got a table. Pass a folder of class folders.")
    parquet = partial(
        parquet_source,
        allow_empty_classes=allow_empty_classes,
        roles=roles,
        follow_links=follow_links,
        known=known,
    )
    if not exists and (data in HUB_NAMES or data.startswith("hf:")):
        source = parquet(hub_folder(data))
        source.name = data.removeprefix("hf:").rpartition("/")[2]
        source.mirrored = not _HANDWRITTEN & set(data.lower().removeprefix("hf:").split("/"))
        return source
    if not exists:
        names = (*BUILT_IN, *HUB_NAMES)
        raise InputError(
            f"cannot find the data {printable(data)!r}{did_you_mean(data, names)}. Pass a folder with one subfolder "
            f"per class, parquet files, hf:org/name, or one of {', '.join(names)}."
        )
    if path.is_file() and path.suffix == ".parquet":
        return parquet(path)
    if not path.is_dir() and not is_archive(path):
        kind = f"a {printable(path.suffix)} file" if path.suffix else "a file without extension"
        kind = kind if path.is_file() else "a pipe, a socket or a device"
        raise InputError(
            f"cannot use {printable(data)}: expected a folder with one subfolder per class, an archive of it, or a "
            f".parquet, .csv or .tsv file, got {kind}. Convert the data."
        )
    if tree is None:
        tree = DiskTree(path, follow_links) if path.is_dir() else open_archive(path)
    if any(name.endswith(".parquet") for name in tree.root.other_paths()):
        if path.is_file():
            raise InputError(f"cannot use {tree.where}: expected images, got parquet files. Unpack the archive.")
        if tree.root.has_images():
            raise InputError(
                f"cannot use {tree.where}: expected either images or parquet files, got both. Move one of them to "
                "another folder."
            )
        return parquet(path)
    _refuse_target(data, roles)
    return _class_folders(tree, allow_empty_classes, None if known is None else known.class_names)


def _refuse_target(data: str, roles: ColumnRoles) -> None:
    if roles.target:
        raise InputError(
            f"cannot use --target with {printable(data)}: expected a table or parquet files, got images. Drop "
            "--target, or pass a .csv, .tsv or .parquet file or a folder with train.csv and val.csv."
        )


def _class_folders(tree: FileTree, allow_empty_classes: bool, known_classes: Collection[str] | None) -> Source:
    """Open the class folders of a tree; a tree without folders raises an error that describes its files."""
    root = tree.root
    refuse_exports(root, tree)
    if not root.folders and not tree.outside:
        loose, others = len(root.images), describe_content(root)
        contents = f"{count_of(loose, 'image')} without subfolders" if loose else f"no images{others}"
        raise InputError(
            f"cannot use {tree.where}: expected one subfolder of images per class, got {contents}. Put the images "
            "of each class into a subfolder named after the class."
        )
    return labeled_source(tree, allow_empty_classes, known_classes)


def digits() -> Source:
    """Open the 1,797 handwritten digits of 8 x 8 pixels bundled with scikit-learn (Alpaydin and Kaynak 1998)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)

    def contents(split: str) -> Iterator[Content]:
        return iter(pixels)

    return Source(
        name="digits",
        class_names=tuple(str(n) for n in bunch.target_names),
        keys={"train": [f"digits:{i}" for i in range(len(pixels))]},
        targets={"train": bunch.target.astype(np.int64)},
        contents=contents,
        peek=lambda: list(pixels[:200]),
        mirrored=False,
    )
