"""Choice of the input columns of a table: their kinds and styles, by the settings of the user or by inference."""

from dataclasses import dataclass, field
from typing import cast

from skipway.data.sources.table import Table, join_quoted
from skipway.data.sources.text_column import TextColumn
from skipway.data.tables.column_settings import LEFT_OUT, ColumnSetting
from skipway.data.tables.columns import (
    ROW_COUNTER,
    CellStyle,
    ColumnKind,
    as_texts,
    infer_cell_style,
    missing_mask,
    read_numbers,
)
from skipway.data.tables.date_formats import best_date_format, example_of
from skipway.data.tables.input_kinds import LONG_TEXT, infer_input_kind
from skipway.data.tables.number_inference import MAX_ODD
from skipway.data.tables.table_source import TableSource
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError, printable

__all__ = ["ColumnChoice", "choose_columns", "set_style"]

_NOUNS = {"number": "numbers", "date": f"dates such as {example_of('ymd')}", "boolean": "true or false"}


@dataclass(frozen=True)
class ColumnChoice:
    """The columns to use with their kinds and styles, the unused columns with the reason, and warnings.

    `reasons` has the rules that decided on kinds, for columns whose cells alone do not show it, and `origins` the
    options that set kinds.
    """

    kinds: dict[str, ColumnKind]
    styles: dict[str, CellStyle | None]
    left_out: dict[str, str]
    warnings: list[str]
    reasons: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: TableSpec) -> "ColumnChoice":
        """Return the columns of a trained model."""
        styles = {column.name: column.cell_style for column in spec.columns}
        return cls({column.name: column.kind for column in spec.columns}, styles, {}, [])


def choose_columns(source: TableSource, keep_counter: bool) -> ColumnChoice:
    """Choose the input columns of the training table.

    Args:
        source: the tables, with their settings.
        keep_counter: True to use a running index as a number.

    Raises:
        InputError: no column can be used, or one cannot be read as the kind that is set for it.
    """
    train, settings = source.splits["train"], source.settings
    choice = ColumnChoice({}, {}, _left_out_by_options(source), [])
    for marker in source.unused_markers:
        choice.warnings.append(f"--missing {printable(marker)}: no cell of a used column has this value")
    for name in train.columns:
        if name in source.roles.target or name in choice.left_out:
            continue
        setting = settings.columns.get(name)
        if setting is not None and setting.kind == LEFT_OUT:
            choice.left_out[name] = setting.origin
        elif setting is not None:
            # The style is that of all rows, as is the kind, so that folds and splits cannot differ in it.
            choice.styles[name] = set_style(name, setting, train)
            choice.kinds[name], choice.origins[name] = cast(ColumnKind, setting.kind), setting.origin
        elif name == train.row_names and name not in source.roles.features:
            choice.left_out[name] = "row names"
        else:
            _infer(name, train, choice, keep_counter=keep_counter)
    if not choice.kinds:
        unused = join_quoted([f"{name} ({why})" for name, why in choice.left_out.items()])
        raise InputError(
            f"cannot train on {printable(train.name)}: expected columns other than the target "
            f"{printable(', '.join(source.roles.target))!r}, got none"
            + (f" (unused: {unused})" if choice.left_out else "")
            + ". Add columns whose values vary."
        )
    return choice


def set_style(name: str, setting: ColumnSetting, table: Table) -> CellStyle | None:
    """Return how the cells of a column are written whose kind is set.

    Args:
        name: name of the column.
        setting: its kind, with or without a style.
        table: the training table.

    Raises:
        InputError: the cells cannot be read as this kind.
    """
    raw, kind = table.columns[name], cast(ColumnKind, setting.kind)
    if isinstance(raw, TextColumn) and raw.separator:
        raise InputError(
            f"cannot read the column {printable(name)!r} as set by {setting.origin}: expected single values, got "
            f"lists. Remove it from {setting.origin}."
        )
    missing = missing_mask(raw)
    if missing.all():
        raise InputError(
            f"cannot read the column {printable(name)!r} as set by {setting.origin}: expected values, got only missing "
            f"ones. Remove it from {setting.origin}."
        )
    if kind == "category":
        return None
    style = setting.style
    if style is None:
        style = best_date_format(as_texts(raw)) if kind == "date" else infer_cell_style(kind, raw, table)
    problems = read_numbers(raw, kind, name, style)[1]
    share = len(problems) / int((~missing).sum())
    if share > (MAX_ODD if kind == "number" else 0):
        row = problems[0].row
        least = f"at least {1 - MAX_ODD:.0%} of its values" if kind == "number" else "all of its values"
        raise InputError(
            f"cannot read the column {printable(name)!r} as set by {setting.origin}: expected {_NOUNS[kind]} in "
            f"{least}, got {max(share, 0.001):.1%} others, such as {printable(str(as_texts(raw)[row]))[:40]!r} "
            f"({table.row_name(row)}). Choose another kind, or use --missing for texts that mean a missing value."
        )
    return style


def _left_out_by_options(source: TableSource) -> dict[str, str]:
    """Return the columns that options leave out, with the option."""
    unused, used = source.roles.unused(), set(source.roles.used_of(source.splits["train"].columns))
    others = [name for name in source.splits["train"].columns if name not in used]
    return {name: unused.get(name, "not in --features") for name in [*unused, *others]}


def _infer(name: str, train: Table, choice: ColumnChoice, *, keep_counter: bool) -> None:
    """Infer the kind and the style of a column, and add it to a choice."""
    kind, remark = infer_input_kind(name, train)
    if remark == ROW_COUNTER and keep_counter:
        kind, remark = "number", f"a {ROW_COUNTER} that the target follows: used as a number. See --split-by"
    if not kind:
        choice.left_out[name] = remark
        if remark.startswith(LONG_TEXT):
            choice.warnings.append(
                f"column {printable(name)!r} is left out: {remark}. Add columns that describe it by numbers or "
                "categories, or use --categorical."
            )
        return
    choice.kinds[name] = kind
    choice.styles[name] = infer_cell_style(kind, train.columns[name], train)
    if kind in ("category", "date") or ROW_COUNTER in remark:
        choice.reasons[name] = remark.partition(" (--")[0].partition(". If")[0]
    if remark:
        choice.warnings.append(f"column {printable(name)!r}: {remark}")
