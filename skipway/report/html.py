"""A run folder becomes one HTML file that stands alone: no scripts, nothing loaded from elsewhere, images inside.

What a run lacks (it was interrupted, it has no test set) is said in its place. Every text from the folder is hostile
until proven otherwise: autoescaped, its control characters spelt out, and paths in it are never followed.
"""

import math
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from skipway.errors import InputError, StorageError, printable
from skipway.report import classification_plots, learning_curves, plot_style
from skipway.report.embed_images import embed_image, embed_plots
from skipway.report.html_tables import growth_lines, table_facts
from skipway.report.run_reader import UNREADABLE, Reader, history_of, mapping, number, rows_of
from skipway.report.verdicts import percent, verdicts
from skipway.utils.atomic_files import write_file
from skipway.utils.best_epoch import FEW_SAMPLES, best_epoch
from skipway.utils.uncertainty import wilson_interval

__all__ = ["write"]

PREDICTIONS = 100_000  # looked through for the rows that are farthest from the truth
WORST, WORST_SIDE = 24, 256  # images; pixels of a side
ROWS, PAIRS, SKIPPED = 20, 10, 50  # rows of a table shown before it folds or ends
SPLITS = {"train": "training", "val": "validation", "test": "test"}
# Figures of metrics.json that stand beside the accuracy, and their words.
FIGURES = {
    "top5_accuracy": "top-5",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "ece": "calibration error",
}


def write(folder: Path) -> Path:
    """Draw the plots of a run folder and write its `report.html`; returns the report's path."""
    folder = Path(folder)
    history = _history(folder)
    facts = _gather(folder, history)
    target = folder / "report.html"
    try:
        _draw(folder, history, facts)
        facts["views"] = embed_plots(folder)
        page = _environment().get_template("report.html").render(facts)
        write_file(target, page.encode("utf-8", "backslashreplace"))
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"the report could not be written to {printable(target)}: {error.strerror or error}; "
            "expected a folder with free space that may be written to"
        ) from error
    return target


def _history(folder: Path) -> list[dict[str, float]]:
    """The rows of results.csv that are whole."""
    expected = "expected one that `skipway train` wrote; name the folder that holds results.csv"
    try:
        rows = list(rows_of(folder / "results.csv"))
    except UNREADABLE as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(
            f"{printable(folder)} is not a run folder: its results.csv cannot be read ({why}), {expected}"
        ) from error
    if rows and "epoch" not in rows[0]:
        raise InputError(f"{printable(folder)} is not a run folder: its results.csv has no column 'epoch', {expected}")
    return history_of(rows)


def _counts(value: Any) -> dict[str, int]:
    """A mapping of names to whole numbers, without what is neither."""
    pairs = ((str(k), number(v)) for k, v in mapping(value).items())
    return {k: int(v) for k, v in pairs if math.isfinite(v)}


def _gather(folder: Path, history: list[dict[str, float]]) -> dict[str, Any]:
    """Everything that the template shows, as plain values."""
    reader = Reader(folder)
    metrics, recipe, env = reader.json("metrics.json"), reader.yaml("config.yaml"), reader.json("env.json")
    data = mapping(metrics.get("data"))
    splits = reader.table("splits.csv") if not data else []
    by_class: dict[str, Counter[str]] = {}
    for row in splits:
        by_class.setdefault(row.get("class", ""), Counter())[row.get("split", "")] += 1
    class_counts = {str(name): _counts(row) for name, row in mapping(data.get("classes")).items()}
    per_class = sorted(reader.table("per_class.csv"), key=lambda row: np.nan_to_num(number(row.get("f1"))))
    names, matrix = reader.matrix("confusion_matrix.csv")
    first_prediction = reader.table("predictions.csv", limit=1)
    skipped = reader.table("skipped.csv")
    counts = _counts(data.get("counts")) or dict(Counter(row.get("split", "") for row in splits))
    best = _best(history, metrics, counts.get("val", 0))
    facts = {
        "folder": folder.resolve().name,
        "missing": reader.missing,
        "metrics": metrics,
        "recipe": recipe,
        "env": env,
        "history": history,
        "best": best,
        "names": names,
        "matrix": matrix,
        "per_class": per_class,
        "rows": ROWS,
        "split": _split_of(first_prediction),
        "pairs": _pairs(names, matrix),
        "worst": _worst(folder),
        "skipped": skipped[:SKIPPED],
        "num_skipped": len(skipped),
        "classes": class_counts or {name: dict(row) for name, row in by_class.items() if name},
        "counts": counts,
        "notes": _counts(data.get("notes")),
        "sizes": data.get("sizes"),
        "warnings": [str(w) for w in data["warnings"]] if isinstance(data.get("warnings"), list) else [],
        "network": str(env.get("network") or "").splitlines(),
        "split_names": SPLITS,
        "schedule": _schedule(metrics, recipe, history),
        "grown": growth_lines(metrics),
        "began_elsewhere": bool(metrics.get("grown")) and not recipe.get("grow"),
        "model": mapping(metrics.get("resolved")).get("model") or recipe.get("model"),
        "data_name": data.get("name") or recipe.get("data"),
    } | table_facts(metrics, data=data, history=history, predictions=reader.table("predictions.csv", limit=PREDICTIONS))
    facts["results"] = _results(facts)
    facts["reading"] = verdicts(facts)
    return facts


def _split_of(predictions: list[dict[str, str]]) -> str:
    """Name the split that was predicted, by the first row of its predictions."""
    if not predictions:
        return "evaluated"
    split = predictions[0].get("split", "")
    return SPLITS.get(split, split)


def _best(history: list[dict[str, float]], metrics: dict[str, Any], count: int) -> dict[str, float]:
    """Return the row of the best epoch: the one that the run named, else the one that its rule chooses."""
    named = [row for row in history if row["epoch"] == number(metrics.get("best_epoch"))]
    metric = "r2" if any("val_r2" in row for row in history) else "accuracy"
    needed = ("val_loss", f"val_{metric}")
    validated = [row for row in history if all(math.isfinite(row.get(key, math.nan)) for key in needed)]
    if named or not validated:
        return named[0] if named else {}
    rows = [{**row, "epoch": i + 1} for i, row in enumerate(validated)]
    return validated[best_epoch(rows, metric, count or FEW_SAMPLES) - 1]


def _schedule(metrics: dict[str, Any], recipe: dict[str, Any], history: list[dict[str, float]]) -> list[Any]:
    points = metrics.get("schedule")
    if isinstance(points, list) and all(isinstance(p, list | tuple) and len(p) in (2, 3) for p in points) and points:
        return points
    total = number(recipe.get("epochs"))
    total = total if total > 0 else max((row["epoch"] for row in history), default=1.0)
    return [(row["epoch"] / total, row["lr"]) for row in history if math.isfinite(row.get("lr", math.nan))]


def _results(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracy on validation and test images, each with its interval where the number of images is known."""
    results = []
    for split in ("val", "test"):
        accuracy = number(facts["metrics"].get(f"{split}_accuracy"))
        if split == "val" and not math.isfinite(accuracy):
            accuracy = facts["best"].get("val_accuracy", math.nan)
        if not 0 <= accuracy <= 1:
            continue
        count = facts["counts"].get(split, 0)
        interval = wilson_interval(accuracy, count) if count > 0 else None
        loss = number(facts["metrics"].get(f"{split}_loss"))
        metrics = [(label, number(facts["metrics"].get(f"{split}_{name}"))) for name, label in FIGURES.items()]
        results.append(
            {
                "split": SPLITS[split],
                "accuracy": accuracy,
                "count": count,
                "interval": interval,
                "loss": loss,
                "others": [(label, value) for label, value in metrics if math.isfinite(value)],
            }
        )
    return results


def _pairs(names: list[str], matrix: np.ndarray | None) -> list[dict[str, Any]]:
    """The most frequent mistakes, true class and predicted class in this order."""
    if matrix is None:
        return []
    wrong = matrix * (1 - np.eye(len(names)))
    share = wrong / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    order = np.lexsort((-share.ravel(), -wrong.ravel()))[:PAIRS]
    cells = [divmod(int(i), len(names)) for i in order]
    return [
        {"true": names[i], "predicted": names[j], "count": int(wrong[i, j]), "share": share[i, j]}
        for i, j in cells
        if wrong[i, j] > 0
    ]


def _worst(folder: Path) -> list[dict[str, Any]]:
    """The images of plots/worst.csv that lie in plots/worst, made small."""
    try:
        rows = list(islice(rows_of(folder / "plots" / "worst.csv"), WORST))
    except UNREADABLE:
        return []
    images = [embed_image(folder / "plots" / "worst" / Path(row.get("image", "")).name, WORST_SIDE) for row in rows]
    return [{**row, **image} for row, image in zip(rows, images, strict=True) if image]


def _draw(folder: Path, history: list[dict[str, float]], facts: dict[str, Any]) -> None:
    """The four figures that only need what is in the folder."""
    home = folder / "plots"
    learning_curves.plot_learning_curves(history, home / "curves.png", best=int(facts["best"].get("epoch", 0)) or None)
    learning_curves.plot_schedule(facts["schedule"], home / "schedule.png")
    classification_plots.plot_class_counts(facts["classes"], home / "classes.png")
    if facts["matrix"] is not None:
        classification_plots.plot_confusion_matrix(facts["matrix"], facts["names"], home / "confusion_matrix.png")


def _figure(value: Any, form: str = ",.0f") -> str:
    figure = number(value)
    return format(figure, form) if math.isfinite(figure) else "–"


def _duration(value: Any) -> str:
    """Seconds in the two largest units that matter."""
    seconds = number(value)
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters.update(
        percent=percent, figure=_figure, duration=_duration, short=plot_style.shorten, number=number
    )
    return environment
