"""Results of cross-validation: the pooled metric of all held-out samples, and the metric of each fold.

Source: Stone, Cross-validatory choice and assessment of statistical predictions, 1974. The interval of the pooled
accuracy assumes independent predictions, which is only approximate: Bengio and Grandvalet, No unbiased estimator of the
variance of k-fold cross-validation, 2004.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from skipway.errors import InputError, printable
from skipway.report import cross_validation_page
from skipway.report.headline import folds_lead, kept_epoch
from skipway.report.run_reader import UNREADABLE, rows_of
from skipway.runs.finished_run import Run
from skipway.runs.headline import describe_uncertainty, format_metric
from skipway.runs.pooled_metrics import NUMERIC, pool_metrics
from skipway.runs.run_csv_tables import write_records
from skipway.utils.atomic_files import write_json
from skipway.utils.format_text import count_of, in_sentence
from skipway.utils.natural_order import natural_key
from skipway.utils.primary_metric import PRIMARY_METRICS, primary_metric_in
from skipway.utils.run_schema import with_schema

__all__ = ["describe_fold", "describe_folds", "fold_row", "is_evaluated", "samples_of_run", "write_folds"]

_FOLD_METRICS = {
    "accuracy": ("accuracy", "loss"),
    "map": ("map", "macro_f1", "micro_f1", "loss"),
    "r2": ("r2", "rmse", "mae"),
}


def write_folds(
    folder: Path, runs: Sequence[Run], *, data: str, counts: Mapping[str, int], noun: str
) -> dict[str, Any]:
    """Write folds.json, folds.csv, predictions.csv, tables of their metrics, and report.html.

    Args:
        folder: folder of the cross-validation.
        runs: runs of the folds in order.
        data: name of the dataset.
        counts: samples in each split of the dataset.
        noun: "images" or "rows".

    Returns:
        The values of folds.json.

    Raises:
        InputError: a fold's predictions.csv is damaged.
    """
    rows = _pooled_predictions(runs)
    write_records(folder / "predictions.csv", rows)
    folds = [fold_row(run) for run in runs]
    write_records(folder / "folds.csv", folds)
    metric = _metric_of(runs[0])
    values = [fold[metric] for fold in folds]
    target = str(runs[0].metrics["data"].get("target", ""))
    facts = {
        "data": data,
        "noun": noun,
        "target": target,
        "metric": metric,
        "counts": dict(counts),
        "count": len(rows),
        **pool_metrics(folder, rows, metric, target),
        "mean": mean(values),
        "standard_deviation": stdev(values),
        "kept_epoch": "last" if all(kept_epoch(run.metrics) == "last" for run in runs) else "best",
        **_baseline(runs, metric),
        "seconds": round(sum(fold["seconds"] for fold in folds), 2),
        "folds": folds,
    }
    write_json(folder / "folds.json", with_schema(facts))
    cross_validation_page.write(folder)
    return facts


def _baseline(runs: Sequence[Run], metric: str) -> dict[str, Any]:
    """Return the name and the mean metric of the baseline as "baseline"; empty if a fold has none."""
    baselines = [run.metrics.get("baseline", {}) for run in runs]
    values = [baseline[f"val_{metric}"] for baseline in baselines if f"val_{metric}" in baseline]
    if len(values) < len(runs):
        return {}
    return {"baseline": {"name": baselines[0]["name"], "mean": mean(values)}}


def _metric_of(run: Run) -> str:
    return primary_metric_in(run.metrics).name


def fold_row(run: Run) -> dict[str, Any]:
    """Return the row of a fold in folds.csv."""
    metrics = run.metrics
    names = _FOLD_METRICS[_metric_of(run)]
    return {
        "fold": int(run.path.name.rpartition("-")[2]),
        "folder": run.path.name,
        "train": metrics["data"]["counts"]["train"],
        "val": metrics["data"]["counts"]["val"],
        **{name: metrics[f"val_{name}"] for name in names},
        "epochs": metrics["epochs"],
        "best_epoch": metrics["best_epoch"],
        "seconds": metrics["seconds"],
    }


def is_evaluated(run: Run) -> bool:
    """Return True if the metrics of a fold are complete and finite."""
    try:
        row = {**fold_row(run), "folder": 0}
        return isinstance(run.metrics["resolved"]["model"], str) and all(
            type(value) in (int, float) and math.isfinite(value) for value in row.values()
        )
    except (LookupError, TypeError):
        return False


def samples_of_run(folder: Path) -> dict[str, str]:
    """Return {name: fingerprint} of the samples in the splits.csv of a run; empty if the file is damaged."""
    try:
        with open(folder / "splits.csv", encoding="utf-8", newline="") as file:
            return {row[0]: row[-1] for row in csv.reader(file) if row}
    except UNREADABLE:
        return {}


def _pooled_predictions(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the rows of predictions.csv of all folds, each with its fold, sorted by name.

    Raises:
        InputError: a table is damaged, or a sample is missing.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        number = int(run.path.name.rpartition("-")[2])
        try:
            rows += [
                {**_with_numbers(row, _metric_of(run)), "fold": number} for row in rows_of(run.path / "predictions.csv")
            ]
        except (*UNREADABLE, KeyError) as error:
            raise _damaged(run.path) from error
        if len(rows) != sum(r.metrics["data"]["counts"]["val"] for r in runs[:number]):
            raise _damaged(run.path)
    return sorted(rows, key=lambda row: natural_key(next(iter(row.values()))))


def _with_numbers(row: Mapping[str, str], metric: str) -> dict[str, Any]:
    """Return a row of predictions.csv with its numeric columns as floats.

    Raises:
        KeyError: the row lacks a column.
        ValueError: a value is not a finite number.
    """
    texts = () if metric == "r2" else ("label", "predicted")
    if metric == "map" and "probability" in row:  # of several labels, joined
        texts = (*texts, "probability", "label_probability")
    needed = {"accuracy": ("loss", "label", "predicted"), "map": ("loss", "label", "predicted"), "r2": ()}[metric]
    if missing := [name for name in needed if name not in row]:
        raise KeyError(missing[0])
    numbers = {
        name: float(value)
        for name, value in row.items()
        if name not in texts and (name in NUMERIC or name.partition("_")[0] in NUMERIC)
    }
    if not numbers or not all(map(math.isfinite, numbers.values())):
        raise ValueError("a number is missing or not finite")
    return {**row, **numbers}


def _damaged(folder: Path) -> InputError:
    return InputError(
        f"cannot read {printable(folder / 'predictions.csv')}: expected one row for each validation sample. Remove "
        f"{printable(folder)}, and resume the cross-validation."
    )


def describe_fold(run: Run, noun: str) -> str:
    """Return the metric of a fold, its model and its best epoch in words.

    Args:
        run: run of the fold.
        noun: "images" or "rows".
    """
    row, metric = fold_row(run), _metric_of(run)
    model = run.metrics["resolved"]["model"]
    epochs = f"{kept_epoch(run.metrics)} epoch {row['best_epoch']} of {row['epochs']}"
    return f"{metric} {format_metric(row[metric], metric)} on {count_of(row['val'], noun[:-1])}, {model}, {epochs}"


def describe_folds(values: dict[str, Any], noun: str, folder: Path) -> str:
    """Return the last lines of a cross-validation: the pooled metric, its meaning, and the files.

    Args:
        values: values of folds.json.
        noun: "images" or "rows".
        folder: folder of the cross-validation.
    """
    metric, folds, count = values["metric"], values["folds"], len(values["folds"])
    primary = PRIMARY_METRICS[metric]
    named = {f"val_{name}": value for name, value in values.items()}
    pooled = f"mean of folds {format_metric(values['mean'], metric)}"
    if metric in values:  # more than 100 labels have no pooled mAP
        interval = printable(describe_uncertainty(named, metric, "val", values["count"]))
        rmse = f", RMSE {values['rmse']:.4g}" if metric == "r2" else ""
        pooled = f"{format_metric(values[metric], metric)} on {values['count']:,} {noun}{interval}{rmse}; {pooled}"
    spread = values["standard_deviation"]
    deviation = f"{100 * spread:.2f} points" if primary.is_share else f"{spread:.4f}"
    lines = [
        f"cross-validation {primary.title if metric == 'map' else metric}: {pooled}, standard deviation {deviation}",
        f"note: each of the {count} models was trained on {(count - 1) / count:.0%} of the {noun} and evaluated on the "
        "rest. To train a model for use, run the same command without --folds.",
    ]
    if lead := folds_lead(values, primary):
        lines.append(f"{lead.kind}: {in_sentence(lead.text)}")
    if values["kept_epoch"] == "best" and any(fold["epochs"] > 1 for fold in folds):
        lines.append(
            f"note: the best epoch of each model was selected on the {noun} that evaluate it, so the result is "
            "slightly optimistic."
        )
    return "\n".join([*lines, f"predictions: {folder}/predictions.csv\nreport: {folder}/report.html"])
