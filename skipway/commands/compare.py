"""Compare runs: their metrics, the options in which they differ, and their curves in one plot."""

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
from skipway.runs.run_folder import read_recipe, resolve_run_folder, unique_names
from skipway.utils.console import duration
from skipway.utils.output_files import refuse_output

__all__ = ["Comparison", "compare"]

_IGNORED = ("output", "name", "threads", "save_every", "watch")  # options that do not change the trained model
_PRIMARY = ("accuracy", "map", "r2")  # of classification, multilabel and regression; higher is better
_METRICS = (*(f"{split}_{name}" for name in _PRIMARY for split in ("val", "test")), "val_loss")
_MAX_WIDTH = 40
_OPEN = (None, "auto")  # values that a run resolves when it starts


@dataclass(frozen=True)
class Comparison:
    """Comparison of runs; prints as two tables.

    Attributes:
        names: unique names of the runs.
        metrics: one row of metrics per run.
        differences: values per run of each option in which they differ, as set or as resolved.
        plot: file with the curves.
    """

    names: list[str]
    metrics: list[dict[str, Any]]
    differences: dict[str, list[Any]]
    plot: Path

    def as_dict(self) -> dict[str, Any]:
        """Return the metrics of each run, the options that differ and the path of the plot as plain values."""
        runs = [{"run": name, **row} for name, row in zip(self.names, self.metrics, strict=True)]
        return {"runs": runs, "differences": self.differences, "plot": str(self.plot)}

    def __str__(self) -> str:
        columns: dict[str, None] = {}  # an ordered set
        for row in self.metrics:
            columns |= dict.fromkeys(row)
        rows = [["run", *(column.replace("_", " ") for column in columns)]]
        for name, metrics in zip(self.names, self.metrics, strict=True):
            rows.append([name, *(_metric_cell(metrics.get(column), column) for column in columns)])
        lines = [*_aligned(rows), ""]
        if self.differences:
            options = [["option", *self.names]]
            options += [[name, *map(_cell, values)] for name, values in self.differences.items()]
            lines += _aligned(options)
        else:
            lines.append("all options are equal")
        return "\n".join([*lines, "", f"plot: {printable(self.plot)}"])


def compare(runs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str] = "compare.png") -> Comparison:
    """Compare the options, metrics and curves of two or more runs, and plot the curves.

    Args:
        runs: two or more run folders.
        output: image file for the plot.

    Returns:
        A `Comparison`, which prints as two tables.

    Raises:
        InputError: there are fewer than two runs, or one of them is not a run folder.
        StorageError: the plot cannot be written.

    >>> import tempfile, skipway as sw
    >>> run = sw.train("wine", epochs=1, output=tempfile.mkdtemp())
    >>> other = sw.train("wine", epochs=1, seed=1, output=tempfile.mkdtemp())
    >>> compare([run.path, other.path], run.path.parent / "compare.png").differences["seed"]
    [0, 1]
    """
    refuse_output(output, runs)
    if len(runs) < 2:
        raise InputError(f"cannot compare runs: expected at least 2 run folders, got {len(runs)}. Add a run folder.")
    folders = [resolve_run_folder(Path(run)) for run in runs]
    names = unique_names(folders)
    histories = [_history(folder) for folder in folders]
    metrics = [_metrics(folder, history) for folder, history in zip(folders, histories, strict=True)]
    differences = _differences(folders)
    target = Path(output)
    try:
        compare_plot.plot_run_comparison(dict(zip(names, histories, strict=True)), target)
    except OSError as error:
        raise StorageError(f"cannot write the plot {printable(target)}: {error}. Choose another --output.") from error
    return Comparison(names=names, metrics=metrics, differences=differences, plot=target)


def _differences(folders: Sequence[Path]) -> dict[str, list[Any]]:
    """Return the options in which runs differ, with the value of each run, as set or as resolved.

    An option that an unfinished run has not resolved yet counts as equal.
    """
    recipes = [read_recipe(folder).as_dict() for folder in folders]
    resolved = [mapping(Reader(folder).json("metrics.json").get("resolved")) for folder in folders]
    differences = {}
    for name in (name for name in Recipe.names() if name not in _IGNORED):
        values = [
            settings.get(name, recipe[name]) if recipe[name] in _OPEN else recipe[name]
            for recipe, settings in zip(recipes, resolved, strict=True)
        ]
        is_resolved = any(name in settings for settings in resolved)
        compared = {str(value) for value in values if not is_resolved or value not in _OPEN}
        if len(compared) > 1:
            differences[name] = values
    return differences


def _metrics(folder: Path, history: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return the row of a run: architecture, parameters, metrics, epochs, training time and status."""
    metrics = Reader(folder).json("metrics.json")
    model = read_recipe(folder).model
    row: dict[str, Any] = {"network": mapping(metrics.get("resolved")).get("model", model)}
    row |= {key: metrics.get(key) for key in ("parameters", *_METRICS) if metrics.get(key) is not None}
    if not metrics and history:  # an unfinished run
        best = max(history, key=_goodness)
        row |= {key: best[key] for key in _METRICS if key in best}
    seconds = [epoch.get("seconds", math.nan) for epoch in history]
    return {
        **row,
        "epochs": len(history),
        "seconds": sum(value for value in seconds if math.isfinite(value)),
        "status": metrics.get("status", "not finished"),
    }


def _goodness(epoch: dict[str, float]) -> float:
    """Return the validation metric of an epoch, where higher is better."""
    metrics = [epoch[f"val_{name}"] for name in _PRIMARY if f"val_{name}" in epoch]
    return metrics[0] if metrics else -epoch.get("val_loss", math.inf)


def _history(folder: Path) -> list[dict[str, float]]:
    """Return the rows of results.csv as numbers, without incomplete rows."""
    rows = history_of(Reader(folder).table("results.csv"))
    return [row for row in rows if len(row) == max(map(len, rows))]


def _metric_cell(value: Any, column: str) -> str:
    if value is None:
        return "-"
    if column == "seconds":
        return duration(value)
    if "accuracy" in column and isinstance(value, float):
        return f"{value:.2%}"
    return f"{value:,}" if isinstance(value, int) else _cell(value)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "-" if value is None else printable(str(value))
    return text if len(text) <= _MAX_WIDTH else f"{text[: _MAX_WIDTH - 1]}…"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
