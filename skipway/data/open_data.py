"""Resolution of DATA: labeled images, a table of images, or a table of rows."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from skipway.data.column_roles import COLUMN_OPTIONS, NO_ROLES, ColumnRoles
from skipway.data.image_tables.choose_columns import column_of_names, find_image_column, has_target, image_column
from skipway.data.image_tables.class_folders import class_folders, refuse_two_readings, warn_of_unnamed
from skipway.data.image_tables.file_index import FileIndex, looks_like_image
from skipway.data.image_tables.image_table import ImageTable, image_table_source
from skipway.data.image_tables.named_images import FILE, table_of_names
from skipway.data.image_tables.near_tree import NearTree
from skipway.data.image_tables.read_tables import find_tables, read_file, read_files, read_sample
from skipway.data.output_spec import OutputSpec
from skipway.data.sources.archive_tree import is_archive, open_archive
from skipway.data.sources.choose_source import open_source
from skipway.data.sources.file_tree import DiskTree, FileTree
from skipway.data.sources.image_source import Source
from skipway.data.sources.in_memory import Held, held_data, is_frame
from skipway.data.sources.in_memory_source import held_tables
from skipway.data.sources.parquet_columns import packs_images
from skipway.data.sources.read_table import BUILT_IN_TABLES
from skipway.data.sources.table import Table
from skipway.data.sources.table_content import table_suffix
from skipway.data.table_layout import DETECTED, TableLayout
from skipway.data.tables.table_source import TableSource, open_table_source, table_source
from skipway.errors import InputError, printable
from skipway.utils.format_text import join_names

__all__ = ["open_data"]

# Options that need a table, and those of them that images in Parquet files have, too.
_OF_TABLES = (
    *("target", "label_sep", "image_column", "image_root", "split_column", "split_by", "group_column", "weight_column"),
    *("features", "ignore"),
)
_OF_PARQUET = ("target", "label_sep", "image_column")
_FIRST = 20  # rows of a DataFrame that decide if a column names images


def open_data(
    data: str,
    roles: ColumnRoles = NO_ROLES,
    *,
    follow_links: bool = False,
    allow_empty_classes: bool = False,
    known: OutputSpec | None = None,
    layout: TableLayout = DETECTED,
) -> Source | TableSource:
    """Open labeled images, or a table of rows.

    Args:
        data: folder, archive or file, or the name of a bundled or Hub dataset.
        roles: roles of the columns of a table.
        follow_links: True to read files outside of the folder.
        allow_empty_classes: True to leave out classes without images instead of raising.
        known: outputs of a trained model, whose classes and targets the data must have.
        layout: lines of text tables and workbooks that are set; the others are detected.

    Returns:
        A Source for images, and a TableSource for a table that names no images.

    Raises:
        InputError: the data cannot be found or read, or could mean two datasets.
    """
    source = _open(_Opening(data, roles, follow_links, allow_empty_classes, known, layout), data, roles)
    if isinstance(source, Source):
        _refuse_column_options(data, roles)
        _refuse_ids(data, roles)
    return source


def _refuse_ids(data: str, roles: ColumnRoles) -> None:
    if roles.id:
        raise InputError(
            f"cannot use --id with {printable(data)}: expected a table of rows, got images, whose predictions have the "
            "names of their files. Drop --id."
        )


def _open(opening: "_Opening", data: str, roles: ColumnRoles) -> Source | TableSource:
    path = _existing_path(data)
    if path is not None and data not in BUILT_IN_TABLES and (path.is_dir() or is_archive(path)):
        return opening.folder(path)
    if opening.roles.label_regex is not None:
        raise InputError(
            f"cannot use --label-regex with {printable(data)}: expected a folder or an archive of images, got other "
            "data. Pass the folder."
        )
    held = held_data(data)
    if held is not None or data in BUILT_IN_TABLES:
        opening.layout.refuse_unused("this data", "objects" if held else "a dataset of scikit-learn")
    if held is not None and not held.are_images:
        return opening.frame(held)
    if path is None or data in BUILT_IN_TABLES:
        return opening.other()
    return opening.table_file(path) if table_suffix(path) and not packs_images(path) else opening.other()


def _refuse_column_options(data: str, roles: ColumnRoles) -> None:
    """Raise InputError if an option on the columns of a table of rows is set for images."""
    if unused := [name for name in COLUMN_OPTIONS if getattr(roles, name)]:
        flags = " and ".join(f"--{name}" for name in unused)
        raise InputError(
            f"cannot use {flags} with {printable(data)}: expected a table of rows, got images. Drop {flags}."
        )


def _existing_path(data: str) -> Path | None:
    try:
        path = Path(data).expanduser()
        return path if data and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # no permission, an unknown home directory, or a NUL byte
        return None


@dataclass
class _Opening:
    """The arguments of `open_data`, the tables that have been read, and the files that have been listed."""

    data: str
    roles: ColumnRoles
    follow_links: bool
    allow_empty_classes: bool
    known: OutputSpec | None
    layout: TableLayout
    tables: dict[Path, Table] = field(default_factory=dict)
    tree: FileTree | None = None

    def other(self) -> Source | TableSource:
        """Open a plain table, class folders, images in Parquet files, or a dataset by its name."""
        rows = open_table_source(self.data, self.roles, self.read)
        return self.images() if rows is None else rows

    def images(self) -> Source:
        """Open images that no table of names describes."""
        source = open_source(
            self.data,
            self.follow_links,
            self.allow_empty_classes,
            known=self.known,
            roles=self.roles if self.known is None else replace(self.roles, task=self.known.task),
            tree=self.tree,
        )
        self._refuse_unused(source)
        return source

    def _refuse_unused(self, source: Source) -> None:
        """Raise InputError if an option is set that has no effect on images without a table of names."""
        is_held = held_data(self.data) is not None
        in_parquet = bool(source.target_names) and not is_held
        unused = [name for name in _OF_TABLES if getattr(self.roles, name) and not (in_parquet and name in _OF_PARQUET)]
        if unused:
            flags = " and ".join("--" + name.replace("_", "-") for name in unused)
            kind = "a Parquet file of images" if in_parquet else "images without one"
            raise InputError(
                f"cannot use {flags} with {printable(self.data)}: expected a table that names images, got {kind}. Drop "
                f"{flags}."
            )
        self.layout.refuse_unused(self.data, "images without a table of text")
        if not (in_parquet or is_held) and self.roles.task not in ("auto", source.task):
            raise InputError(
                f"cannot use --task {self.roles.task} with {printable(self.data)}: expected a table of images, or "
                "Parquet files, got images with one class each. Drop --task."
            )

    def read(self, path: Path) -> Table:
        """Read a table once."""
        if path not in self.tables:
            self.tables[path] = read_file(path, self.layout)
        return self.tables[path]

    def table_file(self, path: Path) -> Source | TableSource:
        """Open a table file, of images or of rows."""
        table = self.read(path)
        root = self._root(path.parent)
        is_deep = self.roles.image_column or self.roles.image_root or column_of_names(table, self.roles)
        index = FileIndex(NearTree(root, self.follow_links, depth=8 if is_deep else 1), root, self.follow_links)
        images = ImageTable(path.stem, {"train": table}, {"train": ""}, index, "", nearby=self._nearby(path.parent))
        images.image = image_column(table, index, self.roles)
        return image_table_source(images, self.roles, self.known) if images.image else self.other()

    def frame(self, held: Held) -> Source | TableSource:
        """Open a DataFrame, of images whose files are in --image-root or in the current folder, or of rows."""
        frame = held.splits["train"].x
        if not is_frame(frame) or not (self.roles.image_column or _names_files(frame)):
            return self.other()
        tables, names = held_tables(held, self.roles.target)
        roles, root = replace(self.roles, target=names), self._root(Path())
        index = FileIndex(NearTree(root, self.follow_links), root, self.follow_links)
        images = ImageTable("rows", tables, dict.fromkeys(tables, ""), index, "")
        images.image = image_column(tables["train"], index, roles)
        return image_table_source(images, roles, self.known) if images.image else self.other()

    def folder(self, path: Path) -> Source | TableSource:
        """Open a folder or an archive, of images with or without a table, or of tables of rows."""
        tree = DiskTree(path, self.follow_links) if path.is_dir() else open_archive(path)
        base = path if path.is_dir() else None
        self.tree = tree
        if self.roles.label_regex is not None:
            return self._by_name(tree, base, self.roles.label_regex)
        candidates, unread = self._candidates(tree, base)
        images = [candidate for candidate in candidates if candidate.image]
        if len(images) > 1 and len({table.name for table in _tables_of(images)}) > 1:
            names = join_names((printable(one.tables["train"].name) for one in images), 3)
            raise InputError(
                f"cannot choose the table of {tree.where}: expected one table of images, got {names}. Pass one of them "
                "as DATA."
            )
        if images:
            return self._folder_with_table(images[0], tree)
        folders = class_folders(tree)
        for candidate in candidates if self.roles.target or not folders else ():
            candidate.image = column_of_names(candidate.tables["train"], self.roles)
            if candidate.image:  # its images are missing
                return image_table_source(candidate, self.roles, self.known)
        if self.roles.target or not folders:
            if unread:
                raise unread[0]
            if base is None and candidates:  # an archive has no files to open by their names
                return self._packed_rows(tree, [candidate.tables for candidate in candidates])
            return self.other()
        source = self.images()
        ignored = [printable(table.name) for table in _tables_of(candidates)]
        if ignored:
            source.warnings.append(
                f"ignored {join_names(ignored, 3)}, which names no images; pass a table as DATA with --target to learn "
                "from its rows"
            )
        source.warnings += [f"ignored a table: {error}" for error in unread]
        return source

    def _packed_rows(self, tree: FileTree, candidates: list[dict[str, Table]]) -> TableSource:
        """Return the rows of the tables in an archive: the first ones with the most splits."""
        chosen = max(range(len(candidates)), key=lambda i: len(candidates[i]))
        files = find_tables(tree.root)[chosen]
        return table_source(
            tree.name, candidates[chosen], self.roles, lambda: read_sample(files, tree, None, self.read)
        )

    def _candidates(self, tree: FileTree, base: Path | None) -> tuple[list[ImageTable], list[InputError]]:
        """Return the tables of a tree with the columns that name images, and the errors of unreadable ones."""
        candidates: list[ImageTable] = []
        unread: list[InputError] = []
        index: FileIndex | None = None
        for files in find_tables(tree.root):
            if base is not None and any(packs_images(base / path) for path in files.paths.values()):
                continue
            try:
                tables = read_files(files, tree, base, self.read)
            except InputError as error:
                unread.append(error)
                continue
            index = index or self._index(tree, base)
            folders = {split: files.folder(split) for split in tables}
            candidate = ImageTable(tree.name, tables, folders, index, "", warnings=list(tree.warnings))
            candidate.image = find_image_column(
                tables["train"], index, self.roles, folder=folders["train"], split="train" if len(tables) > 1 else None
            )
            candidates.append(candidate)
        return candidates, unread

    def _index(self, tree: FileTree, base: Path | None) -> FileIndex:
        if self.roles.image_root is None or base is None:
            return FileIndex(tree, base, self.follow_links)
        root = self._root(base)
        return FileIndex(NearTree(root, self.follow_links), root, self.follow_links)

    def _folder_with_table(self, images: ImageTable, tree: FileTree) -> Source:
        """Open the images of a table; class folders of other classes next to it raise an error."""
        folders = class_folders(tree)
        asked = bool(self.roles.target)
        if folders and not asked:
            table = images.tables["train"]
            if list(table.columns) == [images.image]:
                source = self.images()
                source.warnings.append(f"ignored {printable(table.name)}, which only lists images")
                return source
            if not has_target(table, images.image, self.roles, self.known):
                refuse_two_readings(images, None, folders, asked)
        source = image_table_source(images, self.roles, self.known)
        refuse_two_readings(images, source, folders, asked)
        if folders:
            warn_of_unnamed(source, tree)
        return source

    def _by_name(self, tree: FileTree, base: Path | None, pattern: str) -> Source:
        """Open images whose names hold their targets."""
        table, names = table_of_names(tree, pattern)
        roles = replace(self.roles, target=self.roles.target or names, image_column=FILE)
        index = FileIndex(tree, base, self.follow_links)
        images = ImageTable(tree.name, {"train": table}, {"train": ""}, index, FILE, warnings=list(tree.warnings))
        source = image_table_source(images, roles, self.known)
        if source.task != "regression":
            source.target_names = ()  # no table has these columns
        return source

    def _root(self, folder: Path) -> Path:
        """Return the folder of the images: --image-root, or that of the table."""
        if self.roles.image_root is None:
            return folder
        path = Path(self.roles.image_root).expanduser()
        for root in (path, folder / path):
            if root.is_dir():
                return root
        raise InputError(
            f"cannot find --image-root {printable(self.roles.image_root)}: expected a folder, relative to the current "
            f"folder or to {printable(folder)}. Correct the path."
        )

    def _nearby(self, folder: Path) -> Callable[[list[str]], str]:
        """Return a function that looks for files in other folders than that of the images, for an error."""

        def look(texts: list[str]) -> str:
            for place in (folder, folder.absolute().parent):
                index = FileIndex(NearTree(place, depth=2))
                paths = [match.path for match in index.matches(texts) if match.path]
                if 2 * len(paths) > len(texts):
                    return os.path.relpath(place / paths[0].rpartition("/")[0])
            return ""

        return look


def _names_files(frame: Any) -> bool:
    """Return True if the first texts of a column of a DataFrame are names of images."""
    for i in range(frame.shape[1]):
        texts = [text for text in frame.iloc[:_FIRST, i].tolist() if isinstance(text, str)]
        if 2 * sum(map(looks_like_image, texts)) > len(texts):
            return True
    return False


def _tables_of(candidates: Iterable[ImageTable]) -> Iterator[Table]:
    """Iterate over the tables of all candidates."""
    return chain.from_iterable(candidate.tables.values() for candidate in candidates)
