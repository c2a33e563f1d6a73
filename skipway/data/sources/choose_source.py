"""What DATA means: a built-in name, a set of the Hub, a folder of class folders, or parquet files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from skipway.data.sources.hub import HUB_NAMES, hub_folder
from skipway.data.sources.image_folder import describe_other_files, folder_source, has_class_folders, image_files
from skipway.data.sources.image_parquet import parquet_files, parquet_source
from skipway.data.sources.image_source import Content, Source
from skipway.data.sources.read_table import BUILT_IN_TABLES, SUFFIXES
from skipway.errors import InputError, did_you_mean, printable

__all__ = ["BUILT_IN", "open_source"]

BUILT_IN = ("digits", *BUILT_IN_TABLES)
_HANDWRITTEN = {"mnist", "emnist", "kmnist", "qmnist", "svhn"}  # sets of the Hub that a mirror would spoil


def open_source(data: str, follow_links: bool = False, allow_empty_classes: bool = False) -> Source:
    """Open the labelled images that `data` names; a folder or file that exists goes before a name of the Hub."""
    if data == "digits":
        return digits()
    if data in BUILT_IN_TABLES or Path(data).suffix.lower() in SUFFIXES[:-1]:
        raise InputError(f"{printable(data)} is a table, but images were expected; give a folder of class folders")
    path = Path(data)
    try:
        path = path.expanduser()
        exists = bool(data) and path.exists()
    except (OSError, RuntimeError):  # a folder that may not be looked into, a home of nobody
        exists = False
    if not exists and (data in HUB_NAMES or data.startswith("hf:")):
        source = parquet_source(hub_folder(data), allow_empty_classes)
        source.name = data.removeprefix("hf:").rpartition("/")[2]
        source.mirrored = not _HANDWRITTEN & set(data.lower().removeprefix("hf:").split("/"))
        return source
    if not exists:
        names = (*BUILT_IN, *HUB_NAMES)
        raise InputError(
            f"there is no data at {printable(data)!r}{did_you_mean(data, names)}; give a folder with one sub-folder "
            f"per class, parquet files, hf:org/name, or one of {', '.join(names)}"
        )
    if parquet_files(path):
        if path.is_dir() and image_files(path):
            raise InputError(
                f"{printable(data)} holds both images and parquet files; keep the images or the parquet files in a "
                "folder of their own, and name that"
            )
        return parquet_source(path, allow_empty_classes)
    if path.is_file():
        raise InputError(
            f"{printable(data)} is a {printable(path.suffix) or 'nameless'} file; images to learn from come as a "
            "folder with one sub-folder per class, or as .parquet, and tables as .csv or .parquet"
        )
    if not has_class_folders(path):
        loose, others = len(image_files(path)), describe_other_files(path)
        contents = f"no images and no class folders{others}" if others else "nothing but no class folders"
        raise InputError(
            f"{printable(data)} holds {f'{loose} images but no class folders' if loose else contents}; put the "
            "images of each class into a folder of its own, named as the class"
        )
    return folder_source(path, follow_links, allow_empty_classes)


def digits() -> Source:
    """Open 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn (Alpaydin and Kaynak 1998)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)

    def contents(split: str) -> Iterator[Content]:
        return iter(pixels)

    return Source(
        name="digits",
        class_names=tuple(str(n) for n in bunch.target_names),
        keys={"train": [f"digits:{i}" for i in range(len(pixels))]},
        labels={"train": bunch.target.astype(np.int64)},
        contents=contents,
        peek=lambda: list(pixels[:200]),
        mirrored=False,
    )
