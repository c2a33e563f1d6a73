"""Reads what a run folder has, however torn or hostile: nothing in it is trusted, and what cannot be read is said."""

import csv
import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from skipway.errors import printable
from skipway.report.embed_images import IMAGE_ERRORS
from skipway.utils.run_schema import refuse_unknown_schema

__all__ = ["UNREADABLE", "Reader", "history_of", "mapping", "number", "rows_of"]

UNREADABLE = (*IMAGE_ERRORS, csv.Error, yaml.YAMLError, RecursionError)


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a CSV file as text, so that a class named `null` or `007` stays what it is."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for row in csv.DictReader(file):
            yield {str(k): str(v) for k, v in row.items() if k is not None and v is not None}


def number(value: Any) -> float:
    """`value` as a number, NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def mapping(value: Any) -> dict[str, Any]:
    """`value` where it is a mapping, else nothing."""
    return value if isinstance(value, dict) else {}


def history_of(rows: Iterable[dict[str, str]]) -> list[dict[str, float]]:
    """Rows of results.csv with a number for their epoch, so without one torn by an interruption."""
    history = [{key: number(value) for key, value in row.items()} for row in rows]
    return [row for row in history if math.isfinite(row.get("epoch", math.nan))]


class Reader:
    """Reads what a run folder has, and remembers in one sentence per file why something is not there."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.missing: dict[str, str] = {}

    def _try(self, name: str, read: Any, nothing: Any) -> Any:
        try:
            return read(self.folder / name)
        except FileNotFoundError:
            self.missing[name] = f"This run has no {name}."
        except UNREADABLE as error:
            self.missing[name] = f"This run's {name} cannot be read ({type(error).__name__})."
        return nothing

    def table(self, name: str, limit: int | None = None) -> list[dict[str, str]]:
        """Read the first `limit` rows of a CSV file."""
        return self._try(name, lambda path: list(islice(rows_of(path), limit)), [])

    def json(self, name: str) -> dict[str, Any]:
        """Return what a JSON file maps, without its schema number.

        Raises:
            InputError: the file is whole and has an unknown schema.
        """
        return self._of_schema(name, self._try(name, lambda path: json.loads(path.read_text(encoding="utf-8")), {}))

    def yaml(self, name: str) -> dict[str, Any]:
        """Return what a YAML file maps, without its schema number.

        Raises:
            InputError: the file is whole and has an unknown schema.
        """
        return self._of_schema(name, self._try(name, lambda path: yaml.safe_load(path.read_text(encoding="utf-8")), {}))

    def _of_schema(self, name: str, content: Any) -> dict[str, Any]:
        """Return what the file `name` maps without its schema number; nothing if it maps nothing."""
        if name in self.missing or not isinstance(content, dict):
            return {}
        refuse_unknown_schema(printable(self.folder / name), content.get("schema"))
        return {key: value for key, value in content.items() if key != "schema"}

    def matrix(self, name: str) -> tuple[list[str], np.ndarray | None]:
        """Class names and counts; the names are read as a plain row, since two columns might share one."""

        def read(path: Path) -> tuple[list[str], np.ndarray | None]:
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                head, *body = list(csv.reader(file)) or [[]]
            counts = np.array([[float(cell) for cell in row[1:]] for row in body])
            if len(head) < 2 or counts.shape != (len(head) - 1, len(head) - 1) or not np.isfinite(counts).all():
                raise ValueError
            return head[1:], counts

        return self._try(name, read, ([], None))
