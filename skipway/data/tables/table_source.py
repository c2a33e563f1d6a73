"""TableSource: the tables of a dataset by split, before they are encoded, with the roles of their columns."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from skipway.data.column_roles import NO_ROLES, ColumnRoles
from skipway.data.sources.image_source import SPLITS
from skipway.data.sources.in_memory import held_data
from skipway.data.sources.in_memory_source import held_tables
from skipway.data.sources.parquet_columns import packs_images
from skipway.data.sources.read_table import BUILT_IN_TABLES, bundled_table, read_table, sample_of, table_files
from skipway.data.sources.table import Table, join_quoted
from skipway.data.sources.table_content import table_stem
from skipway.data.sources.text_column import MISSING
from skipway.data.tables.column_settings import LEFT_OUT, NO_SETTINGS, ColumnSettings
from skipway.data.tables.missing_markers import mark_missing
from skipway.data.tables.rows_to_predict import RowsToPredict, find_targets, lacks_target, separate_rows
from skipway.errors import InputError, printable

__all__ = ["TableSource", "open_table_source", "table_source"]


@dataclass
class TableSource:
    """Tables by split before encoding, with the roles of their columns; `roles.target` is set.

    `settings` has the kinds that options set. Its missing markers are missing values in the tables already; those that
    no cell has are in `unused_markers`. `to_predict` is a test table without the target, or None.
    """

    name: str
    splits: dict[str, Table]
    roles: ColumnRoles
    settings: ColumnSettings = NO_SETTINGS
    unused_markers: tuple[str, ...] = ()
    to_predict: RowsToPredict | None = None


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
    name = table_stem(path.name) if path.is_file() else path.resolve().name

    def read_sample() -> Table | None:
        sample = sample_of(entry.name for entry in path.iterdir())
        return None if sample is None else read(path / sample)

    return table_source(name, tables, roles, read_sample)


def table_source(
    name: str, tables: dict[str, Table], roles: ColumnRoles, read_sample: Callable[[], Table | None] = lambda: None
) -> TableSource:
    """Return the tables of a dataset with the roles of their columns, which must exist.

    The target of a folder with a test table may be open: it is the column that only the training table has.

    Args:
        name: name of the dataset.
        tables: {split: table}.
        roles: roles of the columns.
        read_sample: function that reads the sample of a submission; it is called if the test table lacks the target.

    Raises:
        InputError: a column does not exist, there is no target, or the file of column kinds cannot be used.
    """
    roles = roles.renamed(tables["train"].name_of)
    sample = read_sample() if lacks_target(tables, roles) else None
    roles = roles if roles.target else replace(roles, target=_target_of(tables, sample))
    for column in (*roles.target, *roles.ignore, *roles.id, *roles.features, *roles.single().values()):
        tables["train"].column(column)
    for column in roles.kind_options():
        tables["train"].column(column)
    tables, roles, to_predict = separate_rows(tables, roles, sample)
    settings = ColumnSettings.of(roles, tables["train"])
    read = [name for name in roles.used_of(tables["train"].columns) if settings.kind_of(name) != LEFT_OUT]
    marked = {split: mark_missing(table, settings.missing, read) for split, table in tables.items()}
    unused = set(settings.missing).intersection(*(unused for _, unused in marked.values()))
    tables = {split: table for split, (table, _) in marked.items()}
    unused = {marker for marker in unused if marker.rpartition("=")[2].strip().casefold() not in MISSING}
    unused_markers = tuple(marker for marker in settings.missing if marker in unused)
    return TableSource(name, tables, roles, settings, unused_markers, to_predict)


def _target_of(tables: dict[str, Table], sample: Table | None) -> tuple[str, ...]:
    """Return the columns that the test table lacks if they are the target."""
    targets, train = find_targets(tables, sample), tables["train"]
    is_in_sample = sample is not None and set(targets) <= set(sample.columns)
    if not targets or (len(targets) > 1 and not is_in_sample):
        raise InputError(
            f"cannot use the table {printable(train.name)}: expected --target, got none. Choose one of "
            f"{join_quoted(list(targets or train.columns))}."
        )
    return targets
