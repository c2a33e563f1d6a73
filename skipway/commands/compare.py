"""Several runs beside each other: what they were told, how they did, and their curves in one picture."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipway.errors import InputError, StorageError, printable
from skipway.report import compare_plot
from skipway.report.run_reader import Reader, history_of, mapping
from skipway.runs.recipe import Recipe
from skipway.runs.resume import run_folder
from skipway.runs.run_folder import unique_names
from skipway.utils.console import duration

__all__ = ["Comparison", "compare"]

_NOT_TOLD = ("output", "name", "threads", "save_every", "watch")  # what makes no other network
_FIGURES = ("val_accuracy", "test_accuracy", "val_r2", "test_r2", "val_loss")
_WIDEST = 40


@dataclass(frozen=True)
class Comparison:
    """One row of figures a run, and the fields in which their recipes differ, as they were told or decided."""

    names: list[str]
    figures: list[dict[str, Any]]
    differences: dict[str, list[Any]]
    plot: Path

    def __str__(self) -> str:
        columns = list(dict.fromkeys(key for row in self.figures for key in row))
        rows = [["run", *(c.replace("_", " ") for c in columns)]]
        rows += [[n, *(_shown(r.get(c), c) for c in columns)] for n, r in zip(self.names, self.figures, strict=True)]
        lines = _aligned(rows)
        if self.differences:
            told = [["told", *self.names], *([f, *map(_cell, values)] for f, values in self.differences.items())]
            lines += ["", *_aligned(told)]
        else:
            lines += ["", "they were told the same"]
        return "\n".join([*lines, "", f"drawn: {printable(self.plot)}"])


def compare(runs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str] = "compare.png") -> Comparison:
    """Recipes' differences, metrics and curves of two or more run folders; the curves are drawn into `output`.

    Raises:
        InputError: fewer than two runs were given, or one of them is no run folder. StorageError: the disk.
    """
    if len(runs) < 2:
        raise InputError("compare takes two or more run folders; give another one")
    folders = [run_folder(Path(run)) for run in runs]
    names = unique_names(folders)
    histories = {name: _history(folder) for name, folder in zip(names, folders, strict=True)}
    target = Path(output)
    try:
        compare_plot.plot_run_comparison(histories, target)
    except OSError as error:
        raise StorageError(f"{printable(target)}: cannot be drawn: {error.strerror}; give another --output") from error
    return Comparison(
        names, [_figures(f, histories[n]) for n, f in zip(names, folders, strict=True)], _differences(folders), target
    )


def _differences(folders: Sequence[Path]) -> dict[str, list[Any]]:
    """The fields in which runs differ, with what each has: as told, or as decided where it was left open.

    What is still open in a run that has not ended differs from nothing.
    """
    told = [Recipe.of(Recipe.read(folder / "config.yaml")).as_dict() for folder in folders]
    decided = [mapping(Reader(folder).json("metrics.json").get("resolved")) for folder in folders]
    found = {}
    for name in (name for name in Recipe.names() if name not in _NOT_TOLD):
        settles = any(name in one for one in decided)
        values = [
            d.get(name, t[name]) if t[name] in (None, "auto") else t[name] for t, d in zip(told, decided, strict=True)
        ]
        if len({str(v) for v in values if not settles or v not in (None, "auto")}) > 1:
            found[name] = values
    return found


def _figures(folder: Path, history: Sequence[dict[str, float]]) -> dict[str, Any]:
    metrics = Reader(folder).json("metrics.json")
    told = Recipe.of(Recipe.read(folder / "config.yaml")).model
    found: dict[str, Any] = {"network": mapping(metrics.get("resolved")).get("model", told)}
    found |= {key: metrics.get(key) for key in ("parameters", *_FIGURES) if metrics.get(key) is not None}
    if not metrics and history:  # it has not ended yet: what its best epoch says
        best = max(history, key=lambda row: row.get("val_accuracy", row.get("val_r2", -row.get("val_loss", math.inf))))
        found |= {key: best[key] for key in _FIGURES if key in best}
    seconds = [row.get("seconds", math.nan) for row in history]
    return {
        **found,
        "epochs": len(history),
        "seconds": sum(value for value in seconds if math.isfinite(value)),
        "status": metrics.get("status", "not finished"),
    }


def _history(folder: Path) -> list[dict[str, float]]:
    """The rows of results.csv as numbers, without those that were torn."""
    rows = history_of(Reader(folder).table("results.csv"))
    return [row for row in rows if len(row) == max(map(len, rows))]


def _shown(value: Any, column: str) -> str:
    if value is None:
        return "-"
    if column == "seconds":
        return duration(value)
    if "accuracy" in column and isinstance(value, float):
        return f"{value:.2%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else _cell(value)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else printable("-" if value is None else str(value))
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
