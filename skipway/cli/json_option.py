"""The option `--json`: a report as one JSON object instead of text."""

from typing import Annotated, Any, Protocol

from skipway.cli.switch_option import switch
from skipway.utils.console import print_json, print_result
from skipway.utils.run_schema import with_schema

__all__ = ["Json", "print_report"]

Json = Annotated[bool, switch(name="--json", help="Print JSON instead of text.")]


class _Report(Protocol):
    def as_dict(self) -> dict[str, Any]: ...


def print_report(report: _Report, *, as_json: bool) -> None:
    """Print a report as text, or its plain values as JSON with the schema number."""
    if as_json:
        print_json(with_schema(report.as_dict()))
    else:
        print_result(str(report))
