"""ColumnRoles: what the columns of a table mean, of rows with features or of images."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from skipway.errors import InputError, printable

__all__ = ["COLUMN_OPTIONS", "KIND_OPTIONS", "LISTS", "NO_ROLES", "ColumnRoles", "names_as_text"]

KIND_OPTIONS = ("categorical", "numeric", "date")
COLUMN_OPTIONS = (*KIND_OPTIONS, "missing", "columns")  # on how the columns of a table of rows are read
LISTS = ("target", "features", "ignore", *KIND_OPTIONS, "missing")


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
        categorical: columns to read as categories.
        numeric: columns to read as numbers.
        date: columns to read as dates.
        missing: texts that mean a missing value, in all columns, or as COLUMN=TEXT in one.
        columns: YAML file with the kinds of columns.
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
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    date: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    columns: str | None = None

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
        for name in LISTS:
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
        lists = ("target", "features", "ignore", *KIND_OPTIONS)
        names |= {name: tuple(map(name_of, getattr(self, name))) for name in lists}
        return replace(self, **names)

    def kind_options(self) -> dict[str, str]:
        """Return the option that sets the kind of each column, such as "--numeric"."""
        options: dict[str, str] = {}
        for option in KIND_OPTIONS:
            options |= dict.fromkeys(getattr(self, option), f"--{option}")
        return options

    def unused(self) -> dict[str, str]:
        """Return the columns that options leave out, with the option."""
        left_out = {name: _flag(option) for option, name in self.single().items() if name not in self.features}
        return left_out | dict.fromkeys(self.ignore, "--ignore")

    def used_of(self, names: Iterable[str]) -> list[str]:
        """Return the columns that no option leaves out: the targets and the inputs."""
        unused, features = self.unused(), (*self.features, *self.target)
        return [name for name in names if name not in unused and (not self.features or name in features)]

    def _refuse_contradictions(self) -> None:
        self._refuse_two_kinds()
        for other in ("ignore", "features"):
            if twice := [name for name in self.target if name in getattr(self, other)]:
                raise InputError(
                    f"cannot use the column {printable(twice[0])!r} as --{other}: expected another column, got one "
                    f"that is also --target. Remove it from --{other}."
                )
        for option, name in self.single().items():
            if name in self.target:
                raise InputError(
                    f"cannot use {_flag(option)} {printable(name)}: expected another column than --target. Change one "
                    "of them."
                )

    def _refuse_two_kinds(self) -> None:
        """Raise InputError if an option sets the kind of a column that another option has, too, or leaves out."""
        others = dict.fromkeys(self.target, "--target") | self.unused()
        for option in KIND_OPTIONS:
            for name in dict.fromkeys(getattr(self, option)):
                if self.features and name not in self.features:
                    others.setdefault(name, "missing from --features")
                if name in others:
                    raise InputError(
                        f"cannot use the column {printable(name)!r} as --{option}: expected a column without another "
                        f"role, got one that is {others[name]}. Remove it from one of them."
                    )
                others[name] = f"--{option}"


NO_ROLES = ColumnRoles()


def names_as_text(names: Any, option: str) -> Any:
    """Return a list of column names or values as one text, which `ColumnRoles.of` splits; other values unchanged.

    An empty list is None.

    Args:
        names: value of an option of `LISTS`.
        option: its name; a missing marker may also be a single number.

    >>> names_as_text(["zip", "width, in cm"], "ignore")
    'zip,"width, in cm"'
    """
    if option == "missing" and isinstance(names, int | float):
        return str(names)
    if not isinstance(names, list | tuple):
        return names
    if not names:
        return None
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(names)
    return text.getvalue()


def _names_in(names: str | tuple[str, ...] | list[str], option: str) -> tuple[str, ...]:
    """Return the column names in a line of CSV text; a list of names is used as it is."""
    if not isinstance(names, str):
        return tuple(names)
    try:
        cells = next(csv.reader([names], skipinitialspace=True, strict=True), [])
    except csv.Error:
        noun = "values" if option == "missing" else "column names"
        raise InputError(
            f"cannot read --{option} {printable(names)}: expected {noun} separated by commas, got quotes in the wrong "
            "place. Quote only whole names."
        ) from None
    return tuple(name.strip() for name in cells if name.strip())


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
