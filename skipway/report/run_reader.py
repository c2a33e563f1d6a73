"""Read the files of a run folder, however damaged or hostile: none is trusted, and one that is unreadable is named."""

import csv
import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from skipway.errors import InputError, printable
from skipway.utils.run_schema import refuse_unknown_schema

__all__ = ["IMAGE_ERRORS", "UNREADABLE", "Reader", "history_of", "mapping", "number", "rows_of"]

IMAGE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
UNREADABLE = (*IMAGE_ERRORS, csv.Error, yaml.YAMLError, RecursionError)


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file as text, so that a class named `null` or `007` keeps its name."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for row in csv.DictReader(file):
            yield {str(k): str(v) for k, v in row.items() if k is not None and v is not None}


def number(value: Any) -> float:
    """Return `value` as a number, NaN if it is not one."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def mapping(value: Any) -> dict[str, Any]:
    """Return `value` if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def history_of(rows: Iterable[dict[str, str]]) -> list[dict[str, float]]:
    """Return the rows of results.csv as numbers, without a row that an interruption left incomplete."""
    history = [{key: number(value) for key, value in row.items()} for row in rows]
    return [row for row in history if math.isfinite(row.get("epoch", math.nan))]


class Reader:
    """Read files of a run folder, and keep in `missing` one sentence for each file that cannot be read."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.missing: dict[str, str] = {}

    def _try(self, name: str, read: Any, nothing: Any) -> Any:
        """Return the content of a file by `read`, or `nothing` if the file is missing or unreadable."""
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
        """Return the mapping in a JSON file, without its schema number.

        Raises:
            InputError: the file is readable and has an unknown schema.
        """
        return self._of_schema(name, self._try(name, lambda path: json.loads(path.read_text(encoding="utf-8")), {}))

    def optional_json(self, name: str) -> dict[str, Any]:
        """Return the mapping in a JSON file that only some runs have, an empty one if it cannot be used."""
        try:
            return self.json(name)
        except InputError:
            return {}

    def yaml(self, name: str) -> dict[str, Any]:
        """Return the mapping in a YAML file, without its schema number.

        Raises:
            InputError: the file is readable and has an unknown schema.
        """
        return self._of_schema(name, self._try(name, lambda path: yaml.safe_load(path.read_text(encoding="utf-8")), {}))

    def _of_schema(self, name: str, content: Any) -> dict[str, Any]:
        """Return a mapping without its schema number; an empty one if the content is not a mapping."""
        if name in self.missing or not isinstance(content, dict):
            return {}
        refuse_unknown_schema(printable(self.folder / name), content.get("schema"))
        return {key: value for key, value in content.items() if key != "schema"}

    def matrix(self, name: str) -> tuple[list[str], np.ndarray | None]:
        """Return class names (K,) and counts (K, K); two columns may have the same name."""

        def read(path: Path) -> tuple[list[str], np.ndarray | None]:
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                head, *body = list(csv.reader(file)) or [[]]
            counts = np.array([[float(cell) for cell in row[1:]] for row in body])
            if len(head) < 2 or counts.shape != (len(head) - 1, len(head) - 1) or not np.isfinite(counts).all():
                raise ValueError
            return head[1:], counts

        return self._try(name, read, ([], None))
