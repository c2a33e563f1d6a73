"""Images whose file names hold their class or numbers, such as cat_12.jpg: a table made from the names."""

import re

from skipway.data.sources.file_tree import FileTree
from skipway.data.sources.image_source import split_of_folder
from skipway.data.sources.table import Table
from skipway.data.sources.text_column import TextColumn
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of

__all__ = ["FILE", "table_of_names"]

FILE = "file"  # column of the paths
_LABEL, _SPLIT = "label", "split"


def table_of_names(tree: FileTree, pattern: str) -> tuple[Table, tuple[str, ...]]:
    """Return a table of the images of a tree, with what a pattern finds in their names.

    The pattern is searched in the name of a file, or in its path if the pattern has a "/".

    Args:
        tree: the files.
        pattern: regular expression with one group for the class, or with named groups for several targets.

    Returns:
        The table, with a column of splits if there are split folders, and its target columns.

    Raises:
        InputError: the pattern is invalid, has no group, or matches no image.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(
            f"cannot use --label-regex {printable(pattern)}: expected a regular expression, got an error ({error}). "
            "Correct it."
        ) from None
    if not compiled.groups:
        raise InputError(
            f"cannot use --label-regex {printable(pattern)}: expected a group in parentheses for the class, got none. "
            f"Use a pattern such as '^([a-z]+)_'."
        )
    names = tuple(compiled.groupindex) or (_LABEL,)
    paths = tree.root.image_paths()
    texts = paths if "/" in pattern else [path.rpartition("/")[2] for path in paths]
    matches = [compiled.search(text) for text in texts]
    if not any(matches):
        example = f", such as {printable(texts[0])!r}" if texts else ""
        raise InputError(
            f"cannot use --label-regex {printable(pattern)}: expected a match in the names of {tree.where}, got "
            f"{count_of(len(paths), 'image')} without one{example}. Correct the pattern."
        )
    columns = {FILE: TextColumn.of(paths)}
    for i, name in enumerate(names):
        group = name if compiled.groupindex else i + 1
        columns[name] = TextColumn.of([match[group] if match else None for match in matches])
    splits = [split_of_folder(path.partition("/")[0]) if "/" in path else None for path in paths]
    if "train" in splits and len(set(splits)) > 1:
        columns[_SPLIT] = TextColumn.of(splits)
    return Table(tree.where, {**columns}, lambda i: printable(paths[i])), names
