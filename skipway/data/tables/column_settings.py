"""Kinds of columns that the user sets: with options, or with a YAML file of `check` or of a run.

An option takes precedence over the file, and the file over the inference. The file has one line for each column:

    zip: {kind: category, why: 5 codes with leading zeros, missing: 0.0, odd: 0.0, example: '00137'}

Its keys `why`, `missing`, `odd` and `example` are for readers only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

from skipway.data.column_roles import ColumnRoles, names_as_text
from skipway.data.sources.csv_parser import MAX_COLUMNS
from skipway.data.sources.table import Table
from skipway.data.tables.columns import KINDS, CellStyle, ColumnKind
from skipway.data.tables.date_formats import FORMATS
from skipway.data.tables.number_style import NumberStyle, style_from_dict
from skipway.errors import InputError, did_you_mean, printable
from skipway.utils.read_yaml import read_yaml
from skipway.utils.run_schema import refuse_unknown_schema

__all__ = ["LEFT_OUT", "NO_SETTINGS", "TARGET", "ColumnSetting", "ColumnSettings", "SettingKind"]

SettingKind = ColumnKind | Literal["left out", "target"]
LEFT_OUT, TARGET = "left out", "target"
_KINDS: tuple[str, ...] = (*KINDS, LEFT_OUT, TARGET)
_OF_OPTIONS: dict[str, ColumnKind] = {"--categorical": "category", "--numeric": "number", "--date": "date"}
_STYLE = tuple(f.name for f in fields(NumberStyle))
_FOR_READERS = ("why", "missing", "odd", "example")
_KEYS = ("kind", "format", *_STYLE, *_FOR_READERS)
_MAX_CHARACTERS = 1000 * MAX_COLUMNS


@dataclass(frozen=True)
class ColumnSetting:
    """Kind of one column, the option or file that sets it, and how its cells are written; None to infer that."""

    kind: SettingKind
    origin: str
    style: CellStyle | None = None


@dataclass(frozen=True)
class ColumnSettings:
    """Settings of columns by name, and texts that mean a missing value; see `missing_markers`."""

    columns: Mapping[str, ColumnSetting] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, roles: ColumnRoles, table: Table) -> "ColumnSettings":
        """Return the settings of the options and of the file that they name.

        Args:
            roles: roles of the columns, with the options.
            table: the training table.

        Raises:
            InputError: the file cannot be read, or does not match the table or the target.
        """
        settings, missing = dict[str, ColumnSetting](), list[str]()
        if roles.columns is not None:
            file = _ColumnsFile(roles.columns)
            settings, missing = file.settings(), file.missing()
            if not roles.target:  # the estimators have no target among their columns
                settings = {name: setting for name, setting in settings.items() if setting.kind != TARGET}
            _refuse_other_columns(settings, table, roles)
        unused = roles.unused()
        settings = {name: setting for name, setting in settings.items() if name not in unused}
        options = roles.kind_options()
        settings |= {name: ColumnSetting(_OF_OPTIONS[option], option) for name, option in options.items()}
        return cls(settings, tuple(dict.fromkeys([*missing, *roles.missing])))

    def kind_of(self, name: str) -> SettingKind | None:
        """Return the kind that is set for a column, or None."""
        setting = self.columns.get(name)
        return setting.kind if setting else None


NO_SETTINGS = ColumnSettings()


class _ColumnsFile:
    """A YAML file with the kinds of columns."""

    def __init__(self, path: str):
        self.where = printable(path)
        example = "zip: {kind: category}"
        values = read_yaml(
            Path(path).expanduser(),
            "file of columns",
            lines="the key columns with a line for each column",
            example=example,
            limit=_MAX_CHARACTERS,
        )
        number = values.pop("schema", None)
        if number is not None:
            refuse_unknown_schema(self.where, number)
        unknown = [str(key) for key in values if key not in ("columns", "missing")]
        if unknown or not isinstance(values.get("columns"), dict):
            raise self._error(
                "the file",
                "the keys columns and missing, and columns with a line for each column",
                unknown[0] if unknown else "no columns",
                f"Write {example} below columns",
            )
        self._values = values

    def missing(self) -> list[str]:
        """Return the missing markers of the file."""
        markers = names_as_text(self._values.get("missing"), "missing")
        return list(ColumnRoles.of({"missing": markers}).missing)

    def settings(self) -> dict[str, ColumnSetting]:
        """Return the setting of each column of the file."""
        return {str(name): self._setting(str(name), row) for name, row in self._values["columns"].items()}

    def _setting(self, name: str, row: Any) -> ColumnSetting:
        row = {"kind": row} if isinstance(row, str) else row
        if not isinstance(row, dict) or "kind" not in row:
            raise self._error(name, "a kind, as in {kind: number}", row, "Add the kind")
        if unknown := [str(key) for key in row if key not in _KEYS]:
            suggestion = did_you_mean(unknown[0], _KEYS)
            raise self._error(name, f"the keys {', '.join(_KEYS)}", f"{unknown[0]}{suggestion}", "Remove the key")
        kind = row["kind"]
        if kind not in _KINDS:
            suggestion = did_you_mean(str(kind), _KINDS)
            raise self._error(name, f"a kind of {', '.join(_KINDS)}", f"{kind}{suggestion}", "Choose one of these")
        return ColumnSetting(cast(SettingKind, kind), "--columns", self._style(name, kind, row))

    def _style(self, name: str, kind: str, row: dict[str, Any]) -> CellStyle | None:
        """Return the style that a line sets: of numbers, or of dates; a style of another kind has no effect."""
        if kind == "date" and "format" in row:
            if row["format"] not in FORMATS:
                raise self._error(name, f"a format of {', '.join(FORMATS)}", row["format"], "Choose one of these")
            return cast(CellStyle, row["format"])
        style = {key: row[key] for key in _STYLE if key in row}
        if kind != "number" or not style:
            return None
        try:
            return style_from_dict(style)
        except InputError:
            raise self._error(
                name, "different marks: decimal . or , and thousands , . ' or a space", style, "Fix them"
            ) from None

    def _error(self, column: str, expected: str, value: Any, remedy: str) -> InputError:
        return InputError(
            f"cannot read {self.where}, {printable(column)}: expected {expected}, got {printable(str(value))[:80]}. "
            f"{remedy}."
        )


def _refuse_other_columns(settings: Mapping[str, ColumnSetting], table: Table, roles: ColumnRoles) -> None:
    """Raise InputError if a file names columns that the table does not have, or another target than the run."""
    where = printable(roles.columns)
    for name, setting in settings.items():
        if name not in table.columns:
            raise InputError(
                f"cannot use {where}: expected columns of {printable(table.name)}, got "
                f"{printable(name)!r}{did_you_mean(name, table.columns)}. Correct or remove its line."
            )
        if (name in roles.target) != (setting.kind == TARGET):
            raise InputError(
                f"cannot use {where}: expected the kind target for {printable(', '.join(roles.target))!r} alone, got "
                f"{setting.kind} for {printable(name)!r}. Correct the line, or pass another --target."
            )
