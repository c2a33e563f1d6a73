"""Write the report of a run folder: one HTML file without scripts that loads nothing.

A file that the run lacks (it was interrupted, it has no test set) is named in its section. Every text from the folder
is treated as hostile: it is escaped, its control characters are spelled out, and paths in it are never followed.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from skipway.errors import InputError, StorageError, printable
from skipway.report import classification_plots, learning_curves, plot_style
from skipway.report.calibration import bias, reliability
from skipway.report.checks import run_checks
from skipway.report.embed_images import embed_plots, worst_images
from skipway.report.headline import (
    SPLITS,
    baseline_lead,
    ensemble_note,
    evaluation_note,
    headline,
    kept_epoch,
    metric_table,
)
from skipway.report.label_figures import confused_labels, label_predictions
from skipway.report.palette import css_variables
from skipway.report.report_figures import figures_of
from skipway.report.run_events import growth_lines
from skipway.report.run_reader import UNREADABLE, Reader, history_of, mapping, number, rows_of
from skipway.report.verdicts import metric_of, percent, verdicts
from skipway.utils.atomic_files import write_file
from skipway.utils.best_epoch import FEW_SAMPLES, best_epoch
from skipway.utils.primary_metric import primary_metric_in

__all__ = ["PREDICTIONS", "environment", "target_columns", "write"]

PREDICTIONS = 100_000  # rows read for calibration and for the largest errors
ROWS, PAIRS, SKIPPED, ERRORS = 20, 10, 50, 12  # rows of a table shown before it folds or ends
CLASSES = 40  # bars of a chart
COLUMNS = 300  # columns of a table that are listed
# Files that the report links to, next to it in the run folder.
LINKS = (
    "results.csv",
    "metrics.json",
    "per_class.csv",
    "per_target.csv",
    "confusion_matrix.csv",
    "predictions.csv",
    "submission.csv",
    "splits.csv",
    "skipped.csv",
    "config.yaml",
    "columns.yaml",
    "env.json",
)


def write(folder: Path) -> Path:
    """Draw the plots of a run folder, write its report.html, and return the path of the report.

    Raises:
        InputError: the folder has no usable results.csv.
        StorageError: the report cannot be written.
    """
    folder = Path(folder)
    history = _history(folder)
    facts = _gather(folder, history)
    target = folder / "report.html"
    try:
        _draw(folder, history, facts)
        facts["views"] = embed_plots(folder, drawn=facts["figures"]["diagnostics"])
        page = environment().get_template("report.html").render(facts)
        write_file(target, page.encode("utf-8", "backslashreplace"))
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"cannot write {printable(target)}: {error.strerror or error}. Check that the folder is writable and has "
            "free space."
        ) from error
    return target


def _history(folder: Path) -> list[dict[str, float]]:
    """Return the complete rows of results.csv."""
    fix = "Pass a folder that `skipway train` wrote."
    try:
        rows = list(rows_of(folder / "results.csv"))
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(f"cannot read results.csv of the run folder {printable(folder)}: {reason}. {fix}") from error
    if rows and "epoch" not in rows[0]:
        raise InputError(
            f"cannot read results.csv of the run folder {printable(folder)}: expected a column 'epoch', got "
            f"{', '.join(map(printable, list(rows[0])[:5]))}. {fix}"
        )
    return history_of(rows)


def _counts(value: Any) -> dict[str, int]:
    """Return the finite numbers of a mapping as integers."""
    pairs = ((str(k), number(v)) for k, v in mapping(value).items())
    return {k: int(v) for k, v in pairs if math.isfinite(v)}


def _gather(folder: Path, history: list[dict[str, float]]) -> dict[str, Any]:
    """Return all values that the template shows."""
    reader = Reader(folder)
    metrics, recipe, env = reader.json("metrics.json"), reader.yaml("config.yaml"), reader.json("env.json")
    data = mapping(metrics.get("data"))
    predictions = reader.table("predictions.csv", limit=PREDICTIONS)
    skipped = reader.table("skipped.csv")
    names, matrix = reader.matrix("confusion_matrix.csv")
    multilabel = any("val_map" in row for row in history)
    labels = label_predictions(predictions) if multilabel else None
    facts: dict[str, Any] = {
        "folder": folder.resolve().name,
        "metrics": metrics,
        "recipe": recipe,
        "env": env,
        "history": history,
        "names": names,
        "matrix": matrix,
        "per_class": sorted(reader.table("per_class.csv"), key=lambda row: np.nan_to_num(number(row.get("f1")))),
        "split": _split_of(predictions),
        "pairs": confused_labels(predictions, PAIRS) if multilabel else _pairs(names, matrix),
        "worst": [{**row, **_worst_texts(row)} for row in worst_images(folder)],
        "skipped": skipped[:SKIPPED],
        "skipped_count": None if "skipped.csv" in reader.missing else len(skipped),
        "regression": any("val_r2" in row for row in history),
        "multilabel": multilabel,
        "label_predictions": labels,
        "reliability": labels.reliability() if labels else reliability(predictions),
        "per_target": reader.table("per_target.csv") if (folder / "per_target.csv").is_file() else [],
        "bias": bias(predictions),
        "schedule": _schedule(metrics, recipe, history),
        "model": mapping(metrics.get("resolved")).get("model") or recipe.get("model"),
        "data_name": data.get("name") or recipe.get("data"),
        "missing": reader.missing,
    }
    facts |= _data_facts(reader, data)
    facts["best"] = _best(history, metrics, facts["counts"].get("val", 0))
    key = metric_of(facts).name
    facts["kept_epoch"], facts["lead"] = kept_epoch(metrics), baseline_lead(metrics, key)
    facts["ensemble"] = ensemble_note(metrics, key)
    facts["targets"] = target_columns(predictions, facts["target"])
    facts |= {"largest_errors": _largest_errors(predictions, facts["targets"]), "predictions": predictions}
    facts["headline"] = headline(facts)
    facts["splits"], facts["metric_rows"] = metric_table(facts)
    facts["figures"] = figures_of(facts, reader)
    facts["checks"] = run_checks(facts)
    shown = " ".join(check.text for check in facts["checks"])
    facts["remarks"] = (
        [note for note in (evaluation_note(metrics),) if note]
        + _weight_remarks(facts["weights"])
        + [text for text in verdicts(facts) if text[:-1] not in shown]
        + growth_lines(metrics)
    )
    return facts | _page_facts(folder, facts)


def _weight_remarks(weights: dict[str, Any]) -> list[str]:
    """Return a remark on a run with sample weights."""
    counts = [f"{SPLITS[k]} {v:,}" for k, v in _counts(weights.get("effective_counts")).items() if k in SPLITS]
    if not counts:
        return []
    return [
        f"Loss and metrics are weighted by sample weights. Equally weighted samples with the same variance: "
        f"{', '.join(counts)}."
    ]


def _page_facts(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the values that only the layout of the page needs."""
    metrics, recipe = facts["metrics"], facts["recipe"]
    largest = sorted(facts["classes"].items(), key=lambda row: -sum(row[1].values()))
    return {
        "rows": ROWS,
        "links": [name for name in LINKS if (folder / name).is_file()],
        "network": str(facts["env"].get("network") or "").splitlines(),
        "began_elsewhere": bool(metrics.get("grown")) and not recipe.get("grow"),
        "split_names": SPLITS,
        "class_bars_rows": largest[:CLASSES],
        "most_of_a_class": max((sum(row.values()) for _, row in largest), default=0),
        "class_splits": sorted(set().union(*(row for _, row in largest)), key=_split_order),
        "class_result": "" if facts["multilabel"] else _class_result(largest, facts["noun"]),
        "metric_name": metric_of(facts).title,
        "kind": "label" if facts["multilabel"] else "class",
        "kinds": "labels" if facts["multilabel"] else "classes",
        "light": Markup(css_variables(dark=False)),
        "dark": Markup(css_variables(dark=True)),
    }


def _split_order(split: str) -> tuple[int, str]:
    return (list(SPLITS).index(split) if split in SPLITS else len(SPLITS)), split


def _class_result(largest: list[tuple[str, dict[str, int]]], noun: str) -> str:
    """Write the sizes of the largest and the smallest class."""
    if not largest:
        return ""
    (most, many), (least, few) = largest[0], largest[-1]
    if sum(many.values()) == sum(few.values()):
        return f"This run: each of the {len(largest):,} classes has {sum(many.values()):,} {noun}."
    return (
        f"This run: the largest class, {plot_style.shorten(most)}, has {sum(many.values()):,} {noun}, the smallest, "
        f"{plot_style.shorten(least)}, {sum(few.values()):,}."
    )


def _data_facts(reader: Reader, data: dict[str, Any]) -> dict[str, Any]:
    """Return the values about the data, from metrics.json or else from splits.csv."""
    splits = reader.table("splits.csv") if not data else []
    by_class: dict[str, Counter[str]] = {}
    for row in splits:
        by_class.setdefault(row.get("class", ""), Counter())[row.get("split", "")] += 1
    classes = {str(name): _counts(row) for name, row in mapping(data.get("classes")).items()}
    table = data.get("kind") == "table"
    return {
        "classes": classes or {name: dict(row) for name, row in by_class.items() if name},
        "counts": _counts(data.get("counts")) or dict(Counter(row.get("split", "") for row in splits)),
        "notes": _counts(data.get("notes")),
        "sizes": data.get("sizes"),
        "warnings": [str(w) for w in data["warnings"]] if isinstance(data.get("warnings"), list) else [],
        "noun": "rows" if table else "images",
        "one": "row" if table else "image",
        "target": str(data.get("target", "")),
        "columns": _counts(data.get("columns")),
        "column_details": _column_details(mapping(data.get("column_details"))),
        "more_columns": max(0, len(mapping(data.get("column_details"))) - COLUMNS),
        "weights": mapping(data.get("weights")),
    }


def _column_details(details: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each of the first columns of a table."""
    rows = [{"name": name, **mapping(facts)} for name, facts in list(details.items())[:COLUMNS]]
    return [{**row, "missing": number(row.get("missing")), "odd": number(row.get("odd"))} for row in rows]


def _split_of(predictions: list[dict[str, str]]) -> str:
    """Name the split that was predicted, by the first row of its predictions."""
    if not predictions:
        return "evaluated"
    split = predictions[0].get("split", "")
    return SPLITS.get(split, split)


def _best(history: list[dict[str, float]], metrics: dict[str, Any], count: int) -> dict[str, float]:
    """Return the row of the best epoch: the one that metrics.json names, else the one that the same rule chooses."""
    named = [row for row in history if row["epoch"] == number(metrics.get("best_epoch"))]
    metric = primary_metric_in(set().union(*history)).name
    needed = ("val_loss", f"val_{metric}")
    validated = [row for row in history if all(math.isfinite(row.get(key, math.nan)) for key in needed)]
    if named or not validated:
        return named[0] if named else {}
    rows = [{**row, "epoch": i + 1} for i, row in enumerate(validated)]
    return validated[best_epoch(rows, metric, count or FEW_SAMPLES) - 1]


def _schedule(metrics: dict[str, Any], recipe: dict[str, Any], history: list[dict[str, float]]) -> list[Any]:
    """Return (position, learning rate, ...) of a run: from metrics.json, else from its epochs."""
    points = metrics.get("schedule")
    if isinstance(points, list) and all(isinstance(p, list | tuple) and len(p) in (2, 3) for p in points) and points:
        return points
    total = number(recipe.get("epochs"))
    total = total if total > 0 else max((row["epoch"] for row in history), default=1.0)
    return [(row["epoch"] / total, row["lr"]) for row in history if math.isfinite(row.get("lr", math.nan))]


def _pairs(names: list[str], matrix: np.ndarray | None) -> list[dict[str, Any]]:
    """Return the most frequent confusions: true class, predicted class, count and share of the true class."""
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


def _worst_texts(row: dict[str, Any]) -> dict[str, str]:
    """Return the true and the predicted class, labels or numbers of a row of plots/worst.csv as text."""
    if "label" in row or not any(name.startswith("target") for name in row):
        texts = [str(row.get(name, "?")).replace("|", ", ") or "no label" for name in ("label", "predicted")]
    else:
        endings = [name.removeprefix("target") for name in row if name.startswith("target")]
        texts = [
            ", ".join(f"{ending[1:]} {number(row.get(f'{name}{ending}')):.4g}".strip() for ending in endings)
            for name in ("target", "predicted")
        ]
    return {"true_text": texts[0], "predicted_text": texts[1]}


def target_columns(predictions: list[dict[str, str]], target: str) -> list[tuple[str, str]]:
    """Return the name, and the ending of the columns of predictions.csv, of each target."""
    columns = list(predictions[0]) if predictions else []
    endings = [name.removeprefix("error") for name in columns if name.startswith("error_")]
    return [(ending[1:], ending) for ending in endings] or [(target, "")]


def _largest_errors(predictions: list[dict[str, str]], targets: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the predicted numbers with the largest errors, of several targets relative to their typical errors."""
    errors: list[tuple[float, int, tuple[str, str]]] = []
    for target in targets:
        sizes = [abs(number(row.get(f"error{target[1]}"))) for row in predictions]
        finite = [size for size in sizes if math.isfinite(size)]
        scale = (sum(size * size for size in finite) / max(len(finite), 1)) ** 0.5 or 1.0
        errors += [(size / scale, i, target) for i, size in enumerate(sizes) if math.isfinite(size)]
    rows = []
    for _, i, (name, ending) in sorted(errors, key=lambda error: -error[0])[:ERRORS]:
        values = {key: number(predictions[i].get(f"{key}{ending}")) for key in ("target", "predicted", "error")}
        rows.append({"row": predictions[i].get("row") or predictions[i].get("file") or "", "name": name, **values})
    return rows


def _draw(folder: Path, history: list[dict[str, float]], facts: dict[str, Any]) -> None:
    """Write the plots of a run as PNG files, for slides and papers."""
    home = folder / "plots"
    epoch = int(facts["best"].get("epoch", 0)) or None
    learning_curves.plot_learning_curves(history, home / "curves.png", best=epoch, kept=facts["kept_epoch"])
    learning_curves.plot_schedule(facts["schedule"], home / "schedule.png")
    classification_plots.plot_class_counts(facts["classes"], home / "classes.png")
    if facts["matrix"] is not None:
        classification_plots.plot_confusion_matrix(facts["matrix"], facts["names"], home / "confusion_matrix.png")


def _metric(value: Any, form: str = ",.0f") -> str:
    """Format a number, or a dash if it is not finite."""
    metric = number(value)
    return format(metric, form) if math.isfinite(metric) else "–"


def _duration(value: Any) -> str:
    """Write seconds in their two largest units."""
    seconds = number(value)
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def environment() -> Environment:
    """Return the environment of the templates, with escaping and the filters of numbers."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    templates.filters.update(
        percent=percent, metric=_metric, duration=_duration, short=plot_style.shorten, number=number
    )
    return templates
