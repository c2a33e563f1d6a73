"""Images that a table names, without targets, for predictions."""

from dataclasses import dataclass
from pathlib import Path

from skipway.data.column_roles import NO_ROLES, ColumnRoles
from skipway.data.image_tables.choose_columns import image_column
from skipway.data.image_tables.file_index import FileIndex
from skipway.data.image_tables.near_tree import NearTree
from skipway.data.image_tables.row_images import REASONS
from skipway.data.sources.decode import BadImage
from skipway.data.sources.image_source import Item
from skipway.data.sources.table import Table, join_quoted
from skipway.data.tables.columns import as_texts
from skipway.errors import InputError, printable

__all__ = ["NamedImage", "unlabeled_images"]

_DEPTH = 8  # of the folders in which the files are looked for


@dataclass(frozen=True)
class NamedImage:
    """The image of one row: its path, or the text of the row, and its content or the reason why there is none."""

    name: str
    content: Item


def unlabeled_images(table: Table, root: Path, roles: ColumnRoles = NO_ROLES) -> list[NamedImage]:
    """Return the image of each row of a table.

    Args:
        table: N rows.
        root: folder of the files, such as that of the table.
        roles: roles of the columns; the column of names is detected if it is not set.

    Returns:
        N images; a missing file is an image with a reason.

    Raises:
        InputError: no column names images, or several do.
    """
    index = FileIndex(NearTree(root, depth=_DEPTH), root)
    column = image_column(table, index, roles)
    if not column:
        raise InputError(
            f"cannot find the images of {printable(table.name)}: expected a column with names of image files in "
            f"{printable(root)}, got {join_quoted(list(table.columns))}. Move the table next to its images."
        )
    texts = list(as_texts(table.column(column)))
    present = [text for text in texts if text]
    matches = dict(zip(present, index.matches(present), strict=True))
    paths = [matches[text].path for text in texts if text and matches[text].path]
    files = iter(index.tree.contents(paths))
    images = []
    for row, text in enumerate(texts):
        match = matches.get(text) if text else None
        if match is not None and match.path:
            images.append(NamedImage(str(root / match.path), next(files)))
            continue
        where = table.row_name(row)
        problem = f"no name in {column!r}"
        if match is not None:
            problem = REASONS.get(match.problem, "several files of this name")
        images.append(NamedImage(printable(text)[:200] if text else where, BadImage(f"{problem} ({where})")))
    return images
