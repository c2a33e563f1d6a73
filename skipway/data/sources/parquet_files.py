"""Parquet files of a dataset: finding them, sorting them into splits, and opening them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skipway.data.sources.image_source import SPLITS, split_of, split_of_folder
from skipway.errors import InputError, MissingExtra, printable, reason_of

__all__ = ["files_by_split", "num_rows", "open_parquet", "parquet_files", "read_arrow"]

_PARTIAL = "partial-"  # prefix of the Hub for the folder of a split that it converted in part


def parquet_files(root: Path) -> list[Path]:
    """List `root` if it is a parquet file, or all parquet files in it, in a fixed order; hidden files are skipped."""
    if root.is_file():
        return [root] if root.suffix == ".parquet" else []
    return sorted(path for path in root.rglob("*.parquet") if path.is_file() and not _is_hidden(path, root))


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def files_by_split(root: Path, need_train: bool = True) -> dict[str, list[Path]]:
    """Return {split: files} of a parquet file or of a folder of them, by the names of the files or of their folders.

    A word of the name is enough, as in "train-00000-of-00002", "cifar10-test" and "split_val_2". Numbered files such as
    "0000" or "part-00001" belong to the training set if no file names a split.

    Args:
        root: the file or folder.
        need_train: True to require a training file.

    Raises:
        InputError: a file belongs to no split, there is no training file, or the folder holds several datasets.
    """
    files: dict[str, list[Path]] = {}
    folders = set()
    paths = parquet_files(root)
    parts = {path: path.relative_to(root).parts if path != root else (path.name,) for path in paths}
    splits = {path: _split_of_file(parts[path]) for path in paths}
    unnamed = [path for path in paths if splits[path][0] is None]
    if unnamed and len(unnamed) < len(paths):
        raise InputError(
            f"cannot find the split of {printable(unnamed[0])}: expected a name with train, validation or test, as "
            "other files have. Rename the file."
        )
    for path in paths:
        split, depth = splits[path]
        files.setdefault(split or "train", []).append(path)
        folders.add(parts[path][:depth])
    if len(folders) > 1:
        configurations = ", ".join(sorted(printable("/".join(f) or ".") for f in folders))
        raise InputError(
            f"cannot use {printable(root)}: expected one dataset, got several ({configurations}). Pass one of their "
            f"folders, such as {printable(root)}/{printable('/'.join(max(folders)))} or hf:org/name/folder."
        )
    if need_train and "train" not in files:
        raise InputError(
            f"cannot use {printable(root)}: expected a parquet file whose name contains train. Rename one."
        )
    return {split: files[split] for split in SPLITS if split in files}


def _split_of_file(parts: tuple[str, ...]) -> tuple[str | None, int]:
    """Return the split of a file, or None, and the number of its folders that are above those of the split."""
    *folders, name = parts
    for word in re.split(r"[-._ ]", name)[:-1]:
        if split := split_of(word):
            return split, len(folders)
    for depth in reversed(range(len(folders))):
        folder = folders[depth].removeprefix(_PARTIAL).removeprefix("split=")
        if split := split_of_folder(folder):
            return split, depth
    return None, len(folders)


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """Open a parquet file as a context; errors while it is read name the file.

    Raises:
        InputError: the file cannot be read.
        MissingExtra: pyarrow is not installed.
    """
    with _readable(path, "parquet"):
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            yield file


def read_arrow(path: Path) -> Any:
    """Read a Feather or Arrow file, or a stream of Arrow, as a table of pyarrow.

    Raises:
        InputError: the file cannot be read.
        MissingExtra: pyarrow is not installed.
    """
    with _readable(path, "Arrow"):
        import pyarrow

        with open(path, "rb") as file:
            is_stream = file.read(5) != b"ARROW"
            file.seek(0)
            reader = pyarrow.ipc.open_stream(file) if is_stream else pyarrow.ipc.open_file(file)
            return reader.read_all()


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Convert errors while a file is read to errors that name it."""
    try:
        import pyarrow
    except ImportError:
        raise MissingExtra("parquet", f"reading {printable(path)}") from None
    try:
        yield
    except (InputError, MemoryError):  # the MemoryError of pyarrow is also an ArrowException
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError: names that are not UTF-8
        raise InputError(
            f"cannot read the {kind} file {printable(path)}: {reason_of(error)}. Download it again."
        ) from None


def num_rows(path: Path) -> int:
    """Return the number of rows of a file."""
    with open_parquet(path) as file:
        count: int = file.metadata.num_rows
    return count
