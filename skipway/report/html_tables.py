"""What a report says of a run on a table: its target and columns, the baseline beside it, and numbers in their unit."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from skipway.report.run_reader import number
from skipway.utils.format_text import join_sizes

__all__ = ["growth_lines", "table_facts"]

_SPLITS = {"val": "validation", "test": "test"}
_WORST = 12
_FIGURES = {"mae": "mean absolute error", "rmse": "root mean squared error", "loss": "loss"}


def table_facts(
    metrics: Mapping[str, Any],
    *,
    data: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    predictions: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """Collect what the template shows of a run on a table."""
    table = data.get("kind") == "table"
    baseline = metrics.get("baseline") if isinstance(metrics.get("baseline"), dict) else {}
    columns = data.get("columns") if isinstance(data.get("columns"), dict) else {}
    regression = any("val_r2" in row for row in history)
    return {
        "noun": "rows" if table else "images",
        "one": "row" if table else "image",
        "regression": regression,
        "target": str(data.get("target", "")),
        "columns": {str(kind): number(count) for kind, count in (columns or {}).items()},
        "numbers": _numbers(metrics, history) if regression else [],
        "baseline": _baseline(baseline or {}, "r2" if regression else "accuracy"),
        "far": _farthest(predictions) if regression else [],
    }


def growth_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Where the network of a run grew, a line each."""
    grown = metrics.get("grown")
    lines = []
    for note in grown if isinstance(grown, list) else ():
        try:
            before, after = ((str(note[k]["name"]), join_sizes(note[k]["layers"])) for k in ("from", "to"))
            moved = float(note["difference"])
        except (TypeError, KeyError, ValueError):
            continue
        lines.append(
            f"After epoch {note.get('epoch')} it grew from {before[0]} ({before[1]} blocks) to {after[0]} ({after[1]} "
            f"blocks); its outputs moved by {moved:.2g}."
        )
    return lines


def _numbers(metrics: Mapping[str, Any], history: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Collect R2 and errors of each evaluated split."""
    rows = []
    for split, label in _SPLITS.items():
        value = number(metrics.get(f"{split}_r2"))
        if split == "val" and not math.isfinite(value):
            value = max((number(row.get("val_r2")) for row in history), default=math.nan)
        if math.isfinite(value):
            errors = [(name, number(metrics.get(f"{split}_{key}"))) for key, name in _FIGURES.items()]
            finite = [(name, error) for name, error in errors if math.isfinite(error)]
            rows.append({"split": label, "r2": value, "others": finite})
    return rows


def _baseline(baseline: Mapping[str, Any], metric: str) -> list[tuple[str, str, float]]:
    """Return (name, split, metric) of the baseline."""
    values = [(split, number(baseline.get(f"{key}_{metric}"))) for key, split in _SPLITS.items()]
    return [(str(baseline.get("name", "")), split, value) for split, value in values if math.isfinite(value)]


def _farthest(predictions: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """The rows whose prediction is farthest from the truth."""
    errors = [(abs(number(r.get("error"))), i) for i, r in enumerate(predictions)]
    far = sorted(((error, i) for error, i in errors if math.isfinite(error)), key=lambda pair: -pair[0])[:_WORST]
    chosen = [predictions[i] for _, i in far]
    return [
        {"row": r.get("row", ""), **{k: number(r.get(k)) for k in ("target", "predicted", "error")}} for r in chosen
    ]
