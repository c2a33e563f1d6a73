"""TableLayout: which lines of a text table or worksheet hold the column names and the rows."""

from dataclasses import dataclass

from skipway.errors import InputError, printable

__all__ = ["DETECTED", "TableLayout"]


@dataclass(frozen=True, kw_only=True)
class TableLayout:
    """Lines of a text table, as the options of a run set them; None is detected.

    Attributes:
        skip_rows: number of lines above the header.
        header: True if the first of the other lines holds the column names, False if it is a row.
    """

    skip_rows: int | None = None
    header: bool | None = None

    def refuse_unused(self, data: object, kind: str) -> None:
        """Raise InputError if an option is set that has no effect on `data`, which is of another kind."""
        flags = ["--skip-rows"] if self.skip_rows is not None else []
        if self.header is not None:
            flags.append("--header" if self.header else "--no-header")
        if flags:
            raise InputError(
                f"cannot use {' and '.join(flags)} with {printable(data)}: expected a text table or a workbook, got "
                f"{kind}. Drop {' and '.join(flags)}."
            )


DETECTED = TableLayout()
