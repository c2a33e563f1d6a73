"""ColumnRoles: what the columns of a table mean, of rows with features or of images."""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from skipway.errors import InputError, printable

__all__ = ["NO_ROLES", "ColumnRoles"]


@dataclass(frozen=True, kw_only=True)
class ColumnRoles:
    """Roles of the columns of a table, as the options of a run set them; None and () are unset.

    Attributes:
        target: columns to predict.
        task: "auto", "classification", "multilabel" or "regression".
        label_sep: text between several labels in the target column.
        image_column: column with names of image files.
        image_root: folder of the image files.
        split_column: column with the split of each row.
        split_by: column of times or numbers whose last rows are the validation set.
        group_column: column of groups that stay in one split.
        weight_column: column of sample weights.
        features: columns to learn from.
        ignore: columns to leave out.
        label_regex: pattern in file names whose first group is the class.
    """

    target: tuple[str, ...] = ()
    task: Literal["auto", "classification", "multilabel", "regression"] = "auto"
    label_sep: str | None = None
    image_column: str | None = None
    image_root: str | None = None
    split_column: str | None = None
    split_by: str | None = None
    group_column: str | None = None
    weight_column: str | None = None
    features: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    label_regex: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "ColumnRoles":
        """Create roles from options as text: lists of names are separated by commas, as in a line of a CSV file.

        Args:
            options: values by the names of the attributes; others are ignored.

        Raises:
            InputError: a list of names has an open quote, or a column has two roles that exclude each other.

        >>> ColumnRoles.of({"target": 'height, "width, in cm"', "epochs": 3}).target
        ('height', 'width, in cm')
        """
        values = {name: options[name] for name in cls.__dataclass_fields__ if options.get(name) is not None}
        for name in ("target", "features", "ignore"):
            if name in values:
                values[name] = _names_in(values[name], name)
        roles = cls(**values)
        roles._refuse_contradictions()
        return roles

    def single(self) -> dict[str, str]:
        """Return the columns with one role other than the target, by the name of their option."""
        names = ("image_column", "split_column", "split_by", "group_column", "weight_column")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def renamed(self, name_of: Callable[[str], str]) -> "ColumnRoles":
        """Return the roles with `name_of` applied to the name of each column."""
        names: dict[str, Any] = {name: name_of(column) for name, column in self.single().items()}
        names |= {name: tuple(map(name_of, getattr(self, name))) for name in ("target", "features", "ignore")}
        return replace(self, **names)

    def _refuse_contradictions(self) -> None:
        for other in ("ignore", "features"):
            if twice := [name for name in self.target if name in getattr(self, other)]:
                raise InputError(
                    f"cannot use the column {printable(twice[0])!r} as --{other}: expected another column, got one "
                    f"that is also --target. Remove it from --{other}."
                )
        for option, name in self.single().items():
            if name in self.target:
                flag = "--" + option.replace("_", "-")
                raise InputError(
                    f"cannot use {flag} {printable(name)}: expected another column than --target. Change one of them."
                )


NO_ROLES = ColumnRoles()


def _names_in(names: str | tuple[str, ...] | list[str], option: str) -> tuple[str, ...]:
    """Return the column names in a line of CSV text; a list of names is used as it is."""
    if not isinstance(names, str):
        return tuple(names)
    try:
        cells = next(csv.reader([names], skipinitialspace=True, strict=True), [])
    except csv.Error:
        raise InputError(
            f"cannot read --{option} {printable(names)}: expected column names separated by commas, got quotes in the "
            "wrong place. Quote only whole names."
        ) from None
    return tuple(name.strip() for name in cells if name.strip())
