"""TableSource: tables of one to three splits before they are encoded, with the target to predict."""

from dataclasses import dataclass
from pathlib import Path

from skipway.data.column_roles import NO_ROLES, ColumnRoles
from skipway.data.sources.image_source import SPLITS
from skipway.data.sources.in_memory import held_data
from skipway.data.sources.in_memory_source import held_tables
from skipway.data.sources.parquet_columns import holds_images
from skipway.data.sources.parquet_files import open_parquet
from skipway.data.sources.read_table import BUILT_IN_TABLES, bundled_table, read_table, table_files
from skipway.data.sources.table import Table, join_quoted
from skipway.errors import InputError, printable

__all__ = ["TableSource", "open_table_source"]


@dataclass
class TableSource:
    """Tables by split before encoding, with the target and the columns to ignore."""

    name: str
    splits: dict[str, Table]
    target: str
    task: str = "auto"
    ignored: tuple[str, ...] = ()
    roles: ColumnRoles = NO_ROLES


def open_table_source(data: str, roles: ColumnRoles = NO_ROLES) -> TableSource | None:
    """Open a bundled table, a table file, or a folder with train, val and test tables.

    Args:
        data: name, file or folder.
        roles: roles of the columns; a bundled table has a default target.

    Returns:
        The tables, or None if `data` is not a table.

    Raises:
        InputError: a table cannot be read, or a column does not exist.
    """
    if (held := held_data(data)) is not None:
        if held.are_images:
            return None
        tables, names = held_tables(held, roles.target)
        source = TableSource("rows", tables, ", ".join(names), roles.task, ignored=roles.ignore, roles=roles)
    elif data in BUILT_IN_TABLES:
        table, usual_target, usual_task = bundled_table(data)
        source = TableSource(
            name=data,
            splits={"train": table},
            target=", ".join(roles.target) or usual_target,
            task=usual_task if roles.task == "auto" and not roles.target else roles.task,
            ignored=roles.ignore,
            roles=roles,
        )
    else:
        path = Path(data).expanduser()
        files = table_files(path) if path.exists() and (path.is_file() or path.is_dir()) else {}
        parquet = [file for file in files.values() if file.suffix.lower() == ".parquet"]
        if not files or (parquet and (not roles.target or _holds_images(parquet[0]))):
            return None  # parquet files of images need no --target
        tables = {split: read_table(files[split]) for split in SPLITS if split in files}
        if not roles.target:
            columns = join_quoted(list(tables["train"].columns))
            raise InputError(
                f"cannot use the table {printable(data)}: expected --target, got none. Choose one of {columns}."
            )
        name = path.stem if path.is_file() else path.resolve().name
        source = TableSource(
            name=name,
            splits=tables,
            target=", ".join(roles.target),
            task=roles.task,
            ignored=roles.ignore,
            roles=roles,
        )
    train = source.splits["train"]
    for name in (source.target, *roles.ignore, *roles.single().values()):
        train.column(name)
    return source


def _holds_images(file: Path) -> bool:
    with open_parquet(file) as parquet:
        return holds_images(parquet.schema_arrow)
