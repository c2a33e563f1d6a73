"""Roles of the columns of a table of images: which column names the files, which ones are targets and splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from skipway.data.column_roles import ColumnRoles
from skipway.data.image_tables.file_index import FileIndex, is_url, looks_like_image
from skipway.data.output_spec import OutputSpec
from skipway.data.sources.image_source import split_of, words_of
from skipway.data.sources.table import Table, join_quoted
from skipway.data.tables.columns import as_texts, factorize_texts, read_numbers
from skipway.errors import InputError, printable

__all__ = ["ImageColumns", "choose_columns", "column_of_names", "find_image_column", "has_target"]

_SAMPLE = 200  # distinct texts of a column that are looked up
_ENOUGH = 0.5  # share of them that must name files
_ENOUGH_STEMS = 0.8  # the same for names without suffix, which may be anything
_MIN_DISTINCT = 0.2  # distinct names per row of a column without suffixes; classes repeat more often
_MIN_DISTINCT_NUMBERS = 0.5  # the same for numbers
_IMAGE_WORDS = frozenset(("image", "img", "file", "filename", "photo", "picture", "path", "id"))
_TARGETS = (
    *("label", "labels", "class", "class_name", "classname", "category", "target", "targets", "choice", "choices"),
    *("tag", "tags", "dx", "diagnosis", "species", "breed", "y"),
)
_SPLITS = ("split", "set", "subset", "partition", "ml_use", "usage", "phase", "fold", "data_set", "data set", "dataset")
_VALIDATES = ("is_valid", "is_val", "is_validation", "valid")


@dataclass(frozen=True)
class ImageColumns:
    """Chosen columns of a table of images; "" for no column.

    `validates` is True if the split column has 1 for the rows of the validation set.
    """

    image: str
    targets: tuple[str, ...]
    split: str = ""
    validates: bool = False

    def used(self) -> list[str]:
        """Return the names of the chosen columns."""
        return [self.image, *self.targets, self.split]

    def describe(self, roles: ColumnRoles) -> str:
        """Describe the roles in one line, such as "columns: image 'file', target 'label'"."""
        named = [("image", (self.image,)), ("target", self.targets), ("split", (self.split,) if self.split else ())]
        named += [("group", (roles.group_column,))] if roles.group_column else []
        named += [("features", roles.features)]
        named += [("weight", (roles.weight_column,))] if roles.weight_column else []
        return "columns: " + ", ".join(f"{role} {join_quoted(list(names), 6)}" for role, names in named if names)


def find_image_column(
    table: Table, index: FileIndex, roles: ColumnRoles, *, folder: str = "", split: str | None = None
) -> str:
    """Return the column whose texts name files of `index`, or "" if there is none.

    Args:
        table: the table.
        index: the files.
        roles: roles that are set.
        folder: folder of the table below the root of the files.
        split: split of the table, or None.

    Raises:
        InputError: several columns name different files, or --image-column does not exist.
    """
    if roles.image_column is not None:
        table.column(roles.image_column)
        return roles.image_column
    if not index.has_images:
        return ""
    for is_named in (True, False):  # names with the suffix of an image go before others, such as numbers of rows
        found: dict[str, tuple[str, ...]] = {}
        for name in _candidates(table, roles, is_named):
            texts = _sample(table, name)
            matches = index.matches(texts, folder, split)
            share = sum(bool(match.path or match.others) for match in matches) / len(texts)
            if share >= (_ENOUGH if is_named else _ENOUGH_STEMS):
                found.setdefault(name, tuple(match.path for match in matches))
        usual = [name for name in found if _IMAGE_WORDS.intersection(words_of(name))]
        if len(set(found.values())) > 1 and len(usual) != 1:
            raise InputError(
                f"cannot choose the images of {printable(table.name)}: expected one column with names of images, got "
                f"{join_quoted(list(found))}. Name it with --image-column."
            )
        if found:
            return usual[0] if len(usual) == 1 else next(iter(found))
    return ""


def image_column(table: Table, index: FileIndex, roles: ColumnRoles) -> str:
    """Return the column whose texts name files of `index`, else one of names of images, else ""."""
    return find_image_column(table, index, roles) or column_of_names(table, roles)


def column_of_names(table: Table, roles: ColumnRoles) -> str:
    """Return the first column whose texts are names of images, whether or not the files exist, or ""."""
    for name in _open_columns(table, roles):
        if not _holds_numbers(table, name) and _names_images(_sample(table, name)):
            return name
    return ""


def _names_images(texts: Sequence[str]) -> bool:
    """Return True if most of the texts end with the suffix of an image, or are URLs."""
    return sum(looks_like_image(text) or is_url(text) for text in texts) >= _ENOUGH * len(texts) > 0


def _candidates(table: Table, roles: ColumnRoles, is_named: bool) -> list[str]:
    """Return the columns of names of images, or those of other texts or integers that hardly repeat."""
    names = []
    for name in _open_columns(table, roles):
        _, texts = factorize_texts(table.columns[name])
        if not texts or _names_images(texts[:_SAMPLE]) != is_named:
            continue
        least = _MIN_DISTINCT_NUMBERS if _holds_numbers(table, name) else _MIN_DISTINCT
        if is_named or len(texts) >= max(2, least * len(table)):
            names.append(name)
    return names


def _holds_numbers(table: Table, name: str) -> bool:
    cells = table.columns[name]
    return isinstance(cells, np.ndarray) or cells.numbers is not None


def _open_columns(table: Table, roles: ColumnRoles) -> list[str]:
    """Return the columns without a role."""
    taken = {*roles.target, *roles.ignore, *roles.features, *roles.single().values()}
    return [name for name in table.columns if name not in taken]


def _sample(table: Table, name: str) -> list[str]:
    _, texts = factorize_texts(table.columns[name])
    return texts[:: max(1, len(texts) // _SAMPLE)][:_SAMPLE]


def choose_columns(table: Table, image: str, roles: ColumnRoles, known: OutputSpec | None = None) -> ImageColumns:
    """Choose the target and the split column of a table whose column `image` names the images.

    Args:
        table: the table.
        image: column that names the images.
        roles: roles that are set.
        known: outputs of a trained model, whose target columns are used if the table has them.

    Raises:
        InputError: a column does not exist, or the target is open.
    """
    for name in (*roles.target, *roles.ignore, *roles.features, *roles.single().values()):
        table.column(name)
    split, validates = roles.split_column or "", False
    taken = {image, *roles.ignore, *roles.features, *roles.single().values()}
    others = [name for name in table.columns if name not in taken]
    if not split:
        split, validates = _split_column(table, [name for name in others if name not in roles.target])
    if roles.target:
        return ImageColumns(image, roles.target, split, validates)
    if known is not None and known.target_names and set(known.target_names) <= set(others):
        return ImageColumns(image, known.target_names, split, validates)
    others = [name for name in others if name != split]
    targets = _targets(table, others)
    if not targets:
        _refuse_open_target(table, image, others, known)
    return ImageColumns(image, targets, split, validates)


def has_target(table: Table, image: str, roles: ColumnRoles, known: OutputSpec | None) -> bool:
    """Return True if the target columns of a table of images are set or can be detected."""
    try:
        choose_columns(table, image, roles, known)
    except InputError:
        return False
    return True


def _split_column(table: Table, names: list[str]) -> tuple[str, bool]:
    """Return the column of splits, and True if it marks the validation set; "" if there is none."""
    for name in names:
        _, texts = factorize_texts(table.columns[name])
        if name.lower() in _SPLITS:
            splits = {split_of(text) for text in texts if text.lower() != "unassigned"}
            if "train" in splits and None not in splits and len(splits) > 1:
                return name, False
        if name.lower() in _VALIDATES and len(texts) == 2:
            _, problems = read_numbers(as_texts(table.columns[name]), "boolean", name)
            if not problems:
                return name, True
    return "", False


def _targets(table: Table, names: list[str]) -> tuple[str, ...]:
    """Choose the target columns: those with a usual name, the only one, or columns of 0 and 1; () if it is open."""
    usual = _usual_targets(names)
    if len(usual) == 1 or len(names) == 1:
        return ((usual or names)[0],)
    return tuple(names) if all(_is_binary(table, name) for name in names) else ()


def _usual_targets(names: list[str]) -> list[str]:
    return [name for name in names if name.lower() in _TARGETS]


def _refuse_open_target(table: Table, image: str, names: list[str], known: OutputSpec | None) -> NoReturn:
    where = f"{printable(table.name)} ({printable(image)!r})"
    if known is not None and known.target_names:
        raise InputError(
            f"cannot evaluate on the images of {where}: expected the target {join_quoted(list(known.target_names))} of "
            f"the model, got {join_quoted(names) or 'no other columns'}. Choose the target with --target."
        )
    if not names:
        raise InputError(
            f"cannot use the images of {where}: expected a column with the target, got only names. Add a column of "
            "labels."
        )
    raise InputError(
        f"cannot use the images of {where}: expected --target, got none. Choose one of "
        f"{join_quoted(_usual_targets(names) or names)}."
    )


def _is_binary(table: Table, name: str) -> bool:
    _, texts = factorize_texts(table.columns[name])
    return set(texts) <= {"0", "1", "0.0", "1.0"}
