"""TableSource: the tables of a dataset by split, before they are encoded, with the roles of their columns."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from skipway.data.column_roles import NO_ROLES, ColumnRoles
from skipway.data.sources.image_source import SPLITS
from skipway.data.sources.in_memory import held_data
from skipway.data.sources.in_memory_source import held_tables
from skipway.data.sources.parquet_columns import packs_images
from skipway.data.sources.read_table import BUILT_IN_TABLES, bundled_table, read_table, table_files
from skipway.data.sources.table import Table, join_quoted
from skipway.data.sources.table_content import table_stem
from skipway.data.sources.text_column import MISSING
from skipway.data.tables.column_settings import LEFT_OUT, NO_SETTINGS, ColumnSettings
from skipway.data.tables.missing_markers import mark_missing
from skipway.errors import InputError, printable

__all__ = ["TableSource", "open_table_source", "table_source"]


@dataclass
class TableSource:
    """Tables by split before encoding, with the roles of their columns; `roles.target` is set.

    `settings` has the kinds that options set. Its missing markers are missing values in the tables already; those that
    no cell has are in `unused_markers`.
    """

    name: str
    splits: dict[str, Table]
    roles: ColumnRoles
    settings: ColumnSettings = NO_SETTINGS
    unused_markers: tuple[str, ...] = ()


def open_table_source(
    data: str, roles: ColumnRoles = NO_ROLES, read: Callable[[Path], Table] = read_table
) -> TableSource | None:
    """Open a bundled table, a table file, or a folder with train, val and test tables.

    Args:
        data: name, file or folder.
        roles: roles of the columns; a bundled table has a default target.
        read: function that reads a file.

    Returns:
        The tables, or None if `data` is not a table.

    Raises:
        InputError: a table cannot be read, or a column does not exist.
    """
    if (held := held_data(data)) is not None:
        if held.are_images:
            return None
        tables, names = held_tables(held, roles.target)
        return table_source("rows", tables, replace(roles, target=names))
    if data in BUILT_IN_TABLES:
        table, usual_target, usual_task = bundled_table(data)
        if not roles.target:
            roles = replace(roles, target=(usual_target,))
            if roles.task == "auto":
                roles = replace(roles, task=usual_task)
        return table_source(data, {"train": table}, roles)
    path = Path(data).expanduser()
    has_files = path.exists() and (path.is_file() or path.is_dir())
    files = table_files(path, any_kind=bool(roles.target)) if has_files else {}
    parquet = [file for file in files.values() if file.suffix.lower() == ".parquet"]
    if not files or (parquet and (not roles.target or packs_images(parquet[0]))):
        return None  # parquet files of images need no --target
    tables = {split: read(files[split]) for split in SPLITS if split in files}
    if not roles.target:
        columns = join_quoted(list(tables["train"].columns))
        raise InputError(
            f"cannot use the table {printable(data)}: expected --target, got none. Choose one of {columns}."
        )
    return table_source(table_stem(path.name) if path.is_file() else path.resolve().name, tables, roles)


def table_source(name: str, tables: dict[str, Table], roles: ColumnRoles) -> TableSource:
    """Return the tables of a dataset with the roles of their columns, which must exist.

    Args:
        name: name of the dataset.
        tables: {split: table}.
        roles: roles of the columns, with a target.

    Raises:
        InputError: a column does not exist, or the file of column kinds cannot be used.
    """
    roles = roles.renamed(tables["train"].name_of)
    for column in (*roles.target, *roles.ignore, *roles.features, *roles.single().values(), *roles.kind_options()):
        tables["train"].column(column)
    settings = ColumnSettings.of(roles, tables["train"])
    read = [name for name in roles.used_of(tables["train"].columns) if settings.kind_of(name) != LEFT_OUT]
    marked = {split: mark_missing(table, settings.missing, read) for split, table in tables.items()}
    unused = set(settings.missing).intersection(*(unused for _, unused in marked.values()))
    tables = {split: table for split, (table, _) in marked.items()}
    unused = {marker for marker in unused if marker.rpartition("=")[2].strip().casefold() not in MISSING}
    return TableSource(name, tables, roles, settings, tuple(m for m in settings.missing if m in unused))
