"""Find and read the tables of a dataset: in a folder, in its split folders, or in an archive."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from skipway.data.image_tables.headerless import read_headerless
from skipway.data.sources.decode import BadImage
from skipway.data.sources.file_tree import FileTree, Folder
from skipway.data.sources.image_source import SPLITS, split_of_folder, words_of
from skipway.data.sources.read_table import is_submission, read_table, sample_of
from skipway.data.sources.table import Table
from skipway.data.sources.table_content import SCANNED, table_stem, table_suffix
from skipway.data.table_layout import DETECTED, TableLayout
from skipway.errors import InputError, printable

__all__ = ["TableFiles", "find_tables", "is_table_file", "read_file", "read_files", "read_sample"]


@dataclass(frozen=True)
class TableFiles:
    """Paths of the tables of one dataset below the root of a tree, by split."""

    paths: dict[str, str]

    def folder(self, split: str) -> str:
        """Return the folder of a table."""
        return self.paths[split].rpartition("/")[0]

    def __str__(self) -> str:
        return " and ".join(map(printable, self.paths.values()))


def is_table_file(name: str) -> bool:
    """Return True if a file in a folder of images is a table by its name."""
    return table_suffix(name) in SCANNED


def find_tables(root: Folder) -> list[TableFiles]:
    """Find the tables in a folder, in its split folders, or in the only folder in it.

    Tables whose names differ only in a split, such as train.csv and test.csv, belong together.
    """
    while True:
        files = list(_by_name(root, [(name, root.below(name)) for name in root.others]))
        if files:
            return files
        splits = {split: inner for inner in root.folders.values() if (split := split_of_folder(inner.name))}
        if splits:
            return list(_in_split_folders(splits))
        if len(root.folders) != 1 or root.images:
            return []
        (root,) = root.folders.values()


def read_sample(files: TableFiles, tree: FileTree, base: Path | None, read: Callable[[Path], Table]) -> Table | None:
    """Read the sample of a submission next to the tables of a folder or an archive, or return None.

    Raises:
        InputError: the sample cannot be read.
    """
    folder = files.folder("train")
    names = [path.rpartition("/")[2] for path in tree.root.other_paths() if path.rpartition("/")[0] == folder]
    name = sample_of(names)
    if name is None:
        return None
    sample = TableFiles({"train": f"{folder}/{name}" if folder else name})
    return read_files(sample, tree, base, read)["train"]


def _by_name(folder: Folder, files: list[tuple[str, str]]) -> Iterator[TableFiles]:
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for name, path in files:
        stem = table_stem(name)
        if not is_table_file(name) or is_submission(stem):
            continue
        words = words_of(stem)
        splits = [split for word in words if (split := split_of_folder(word))]
        rest = tuple(word for word in words if not split_of_folder(word)) if len(splits) == 1 else (name,)
        group = groups.setdefault(rest, {})
        split = splits[0] if len(splits) == 1 else "train"
        if split in group:
            raise InputError(
                f"cannot use {printable(folder.path) or 'the folder'}: expected one {split} table, got "
                f"{printable(group[split])} and {printable(path)}. Remove one."
            )
        group[split] = path
    for group in groups.values():
        if "train" in group:
            yield TableFiles({split: group[split] for split in SPLITS if split in group})


def _in_split_folders(splits: dict[str, Folder]) -> Iterator[TableFiles]:
    """Yield the tables of the same name in the split folders."""
    if "train" not in splits:
        return
    for name in splits["train"].others:
        if is_table_file(name):
            yield TableFiles(
                {
                    split: splits[split].below(name)
                    for split in SPLITS
                    if split in splits and name in splits[split].others
                }
            )


def read_files(files: TableFiles, tree: FileTree, base: Path | None, read: Callable[[Path], Table]) -> dict[str, Table]:
    """Read the tables of a folder with `read`, or those of an archive if `base` is None.

    Raises:
        InputError: a table cannot be read.
    """
    if base is not None:
        return {split: read(base / path) for split, path in files.paths.items()}
    with tempfile.TemporaryDirectory() as folder:
        return {split: _read_packed(path, tree, Path(folder), read) for split, path in files.paths.items()}


def _read_packed(path: str, tree: FileTree, folder: Path, read: Callable[[Path], Table]) -> Table:
    """Read a table in an archive, unpacked to a temporary folder."""
    content = tree.contents([path])[0]()
    where = f"{tree.where}/{printable(path)}"
    if isinstance(content, BadImage):
        raise InputError(f"cannot read the table {where}: {content}. Unpack the archive.")
    file = folder / path.rpartition("/")[2]
    file.write_bytes(content)
    try:
        return replace(read(file), name=where)
    except InputError as error:
        raise InputError(str(error).replace(printable(file), where)) from None


def read_file(path: Path, layout: TableLayout = DETECTED) -> Table:
    """Read a table file, also a CSV file of images without a header.

    Args:
        path: the file.
        layout: lines of text and of workbooks that are set; the others are detected.

    Raises:
        InputError: the file cannot be read as a table.
    """
    may_lack_header = path.suffix.lower() in (".csv", ".tsv", ".tab") and layout == DETECTED
    return (read_headerless(path) if may_lack_header else None) or read_table(path, layout)
