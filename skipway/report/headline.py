"""The first screen of a report: the metric of each split with its interval, the references, and a table of metrics."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skipway.report.run_reader import mapping, number
from skipway.report.verdicts import majority, metric_of, percent
from skipway.utils.primary_metric import PRIMARY_METRICS, PrimaryMetric
from skipway.utils.uncertainty import exceeds_share, r2_interval, wilson_interval

__all__ = [
    "SPLITS",
    "Lead",
    "baseline_lead",
    "ensemble_note",
    "evaluation_note",
    "folds_lead",
    "headline",
    "kept_epoch",
    "metric_table",
]

SPLITS = {"train": "training", "val": "validation", "test": "test"}
_LOSSES = {
    "accuracy": "Loss (cross-entropy, nats)",
    "map": "Loss (binary cross-entropy, nats)",
    "r2": "Loss (of scaled errors)",
}
_SHARES = {  # metrics of a classification that are shares, and their labels
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "top5_accuracy": "Top-5 accuracy",
    "auroc": "AUROC",
    "ece": "Calibration error (ECE, lower is better)",
}
_LABELS = {
    "macro_f1": "Macro F1 at the thresholds",
    "micro_f1": "Micro F1 at the thresholds",
    "subset_accuracy": "Subset accuracy (all labels right)",
    "auroc": "AUROC",
}
_REGRESSION = {"mae": "Mean absolute error", "rmse": "Root mean squared error"}


def headline(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the metric of each evaluated split.

    Args:
        facts: regression, multilabel (default: False), metrics, best, counts and classes of a run.

    Returns:
        A dict for each split: split, metric (its name), value, text, count, interval (two numbers or None), exceeded
        (True if it is clearly above a constant prediction; None if unknown), comparison (with the best reference) and
        bars (name, value, text): the run, then the references.
    """
    key = metric_of(facts).name
    rows = []
    for split in ("val", "test"):
        value = number(facts["metrics"].get(f"{split}_{key}"))
        if split == "val" and not math.isfinite(value):
            value = number(facts["best"].get(f"val_{key}"))
        if math.isfinite(value) and (key == "r2" or 0 <= value <= 1):
            rows.append(_row(facts, split, key, value))
    return rows


def _row(facts: Mapping[str, Any], split: str, key: str, value: float) -> dict[str, Any]:
    count = max(0, facts["counts"].get(split, 0))
    effective = number(mapping(facts.get("weights", {}).get("effective_counts")).get(split, count))
    interval, independent = None, int(effective) if math.isfinite(effective) else count
    if key == "map":
        interval = _stored_interval(facts["metrics"].get(f"{split}_map_interval"))
    elif independent > 0:
        interval = r2_interval(value, independent) if key == "r2" else wilson_interval(value, independent)
    constant, share = _constant_prediction(facts, split, key)
    exceeded = None
    if key == "map" and constant:
        exceeded = bool(mapping(facts["metrics"].get(f"{split}_constant_answer")).get("exceeded"))
    elif interval is not None and constant:
        exceeded = interval[0] > 0 if key == "r2" else exceeds_share(value, independent, share)
    bars = [("This run", value)]
    baseline = mapping(facts["metrics"].get("baseline"))
    measured = number(baseline.get(f"{split}_{key}"))
    if math.isfinite(measured):
        bars.append((f"{str(baseline.get('name', 'baseline')).capitalize()} (scikit-learn defaults)", measured))
    if constant:
        bars.append((constant, share))
    return {
        "split": SPLITS[split],
        "metric": PRIMARY_METRICS[key].title,
        "value": value,
        "text": _format(value, key),
        "count": count,
        "interval": interval,
        "interval_text": f"{_format(interval[0], key)} to {_format(interval[1], key)}" if interval else "",
        "exceeded": exceeded,
        "comparison": _comparison(bars, exceeded, key),
        "bars": [(name, min(max(bar, 0.0), 1.0), _format(bar, key)) for name, bar in bars],
    }


def _comparison(bars: list[tuple[str, float]], exceeded: bool | None, key: str) -> str:
    """Compare the run with the best reference, the strongest one first."""
    if len(bars) < 2:
        return ""
    name, value = max(bars[1:], key=lambda bar: bar[1])
    name = f"{'' if 'scikit' in name else 'the '}{name[:1].lower()}{name[1:]}"
    difference = bars[0][1] - value
    text = f"{abs(difference):.3f}" if key == "r2" else f"{100 * abs(difference):.1f} points"
    clear = "; this is not clearly better than a constant prediction" if exceeded is False else ""
    return f"{text} {'below' if difference < 0 else 'above'} {name}{clear}"


def _constant_prediction(facts: Mapping[str, Any], split: str, key: str) -> tuple[str, float]:
    """Return the name and the metric of the best constant prediction; no name if it is not known."""
    if key == "r2":
        return "Mean of the target", 0.0
    if key == "map":
        share = number(mapping(facts["metrics"].get(f"{split}_constant_answer")).get("map"))
        return ("Frequency of each label", share) if 0 <= share <= 1 else ("", 0.0)
    name, share = majority(_weighted(facts.get("weights", {})) or facts["classes"], split)
    return (f"Majority class ({name})", share) if share else ("", 0.0)


def _stored_interval(value: Any) -> tuple[float, float] | None:
    """Return the interval of metrics.json if it has two finite ends, else None."""
    ends = [number(end) for end in value] if isinstance(value, list) else []
    return (ends[0], ends[1]) if len(ends) == 2 and all(map(math.isfinite, ends)) else None


def _weighted(weights: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the sums of sample weights by class and split, of the "weights" of a run's data."""
    rows = {str(name): mapping(row) for name, row in mapping(weights.get("classes")).items()}
    return {name: {split: value for split, v in row.items() if (value := number(v)) >= 0} for name, row in rows.items()}


def _format(value: float, key: str) -> str:
    return f"{value:.3f}" if key == "r2" else percent(value)


def metric_table(facts: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the splits, and rows (label, a text for each split) of all metrics: shares in percent, losses in nats."""
    metrics, rows = facts["metrics"], facts["headline"]
    keys = {SPLITS[split]: split for split in ("val", "test")}
    names = [row["split"] for row in rows]

    def values(name: str) -> list[float]:
        return [number(metrics.get(f"{keys[split]}_{name}")) for split in names]

    table = []
    if rows:
        table.append((metric_of(facts).heading, [row["text"] for row in rows]))
    if any(row["interval"] for row in rows):
        table.append(("95% interval", [row["interval_text"] or "–" for row in rows]))
    key = metric_of(facts).name
    shown = {"r2": _REGRESSION, "map": _LABELS}.get(key, {k: v for k, v in _SHARES.items() if k != "accuracy"})
    for name, label in shown.items():
        numbers = values(name)
        if any(map(math.isfinite, numbers)):
            unit = ""
            if facts["regression"] and facts["target"]:
                words = "mean over" if len(facts.get("targets", ())) > 1 else "in units of"
                unit = f" ({words} {facts['target']})"
            texts = [f"{v:,.4g}" if facts["regression"] else percent(v) for v in numbers]
            table.append((label + unit, [text if v == v else "–" for text, v in zip(texts, numbers, strict=True)]))
    losses = values("loss")
    if any(map(math.isfinite, losses)):
        table.append((_LOSSES[key], [f"{loss:.3f}" if math.isfinite(loss) else "–" for loss in losses]))
    if rows:
        table.append((f"{facts['noun'].capitalize()}", [f"{row['count']:,}" if row["count"] else "–" for row in rows]))
    return names, table


def kept_epoch(metrics: Mapping[str, Any]) -> str:
    """Return the epoch of the weights that a run kept, "best" or "last", by the values of its metrics.json."""
    return "last" if mapping(metrics.get("resolved")).get("kept_epoch") == "last" else "best"


def evaluation_note(metrics: Mapping[str, Any]) -> str:
    """Return which rows of a table evaluate the model, and what else they were used for; empty for images.

    Args:
        metrics: values of metrics.json.
    """
    data = mapping(metrics.get("data"))
    if data.get("kind") != "table":
        return ""
    split = "test" if "test_loss" in metrics else "val"
    count, temperature = number(mapping(data.get("counts")).get(split)), number(metrics.get("temperature"))
    is_compared = "reason" not in mapping(metrics.get("baseline"))
    subject = "Model and baseline are evaluated on the same" if is_compared else "The model is evaluated on"
    rows = f"{subject} {count:,.0f} {SPLITS[split]} rows"
    if split == "test":
        return f"{rows}, which selected nothing."
    if kept_epoch(metrics) == "best":
        or_else = ", or drop --patience" if mapping(metrics.get("resolved")).get("patience") else ""
        return f"{rows}, which also selected the epoch: the result is optimistic. Add a test table{or_else}."
    end = "the weights are those of the last epoch"
    if math.isfinite(temperature):
        only = f"which selected nothing but the temperature of the probabilities ({temperature:.3g})"
        return f"{rows}, {only}: {end}. The loss is slightly optimistic."
    if data.get("task") == "multilabel":
        return f"{rows}, which selected nothing but the thresholds of the labels: {end}. F1 is slightly optimistic."
    return f"{rows}, which selected nothing: {end}."


def ensemble_note(metrics: Mapping[str, Any], metric: str) -> str:
    """Return the weight of boosting in the model, and the metric of each part; empty for a network alone.

    Args:
        metrics: values of metrics.json.
        metric: "accuracy", "map" or "r2".
    """
    ensemble = mapping(metrics.get("ensemble"))
    weight, rows = number(ensemble.get("weight")), number(ensemble.get("rows"))
    if not math.isfinite(weight):
        return ""
    if not weight:
        return f"Boosting brought nothing on {rows:,.0f} held-out training rows: the model is the network alone."
    split = "test" if f"test_{metric}" in metrics else "val"
    sources = {
        "the network": mapping(ensemble.get("network")),
        "boosting": mapping(ensemble.get("boosting")),
        "both": metrics,
    }
    text = PRIMARY_METRICS[metric].text
    values = [f"{text(number(of.get(f'{split}_{metric}')), 2)} of {name}" for name, of in sources.items()]
    title = f"{SPLITS[split]} {PRIMARY_METRICS[metric].title}"
    shares = f"The model is {1 - weight:.0%} network and {weight:.0%} boosting"
    return f"{shares}: {title} {values[0]}, {values[1]}, {values[2]}."


@dataclass(frozen=True)
class Lead:
    """Lead of the baseline over the model: a sentence, and True unless it is within the interval of the model."""

    text: str
    is_clear: bool

    @property
    def kind(self) -> str:
        """The first word of a console line about it."""
        return "warning" if self.is_clear else "note"


def baseline_lead(metrics: Mapping[str, Any], metric: str) -> Lead | None:
    """Return the lead of the baseline over the model on the rows that evaluate both, or None.

    Args:
        metrics: values of metrics.json.
        metric: "accuracy", "map" or "r2".
    """
    baseline = mapping(metrics.get("baseline"))
    split = "test" if f"test_{metric}" in metrics else "val"
    scores = [number(source.get(f"{split}_{metric}")) for source in (baseline, metrics)]
    interval = _stored_interval(metrics.get(f"{split}_{metric}_interval"))
    count = number(mapping(mapping(metrics.get("data")).get("counts")).get(split))
    where = f"on the {count:,.0f} {SPLITS[split]} rows"
    return _lead(baseline, scores, interval, PRIMARY_METRICS[metric], where=where)


def folds_lead(values: Mapping[str, Any], metric: PrimaryMetric) -> Lead | None:
    """Return the lead of the baseline in the mean over the folds, or None.

    Args:
        values: values of folds.json.
        metric: primary metric.
    """
    baseline = mapping(values.get("baseline"))
    scores = [number(source.get("mean")) for source in (baseline, values)]
    interval = _stored_interval(values.get(f"{metric.name}_interval"))
    return _lead(baseline, scores, interval, metric, where="in the mean over the folds")


def _lead(
    baseline: Mapping[str, Any],
    scores: list[float],
    interval: tuple[float, float] | None,
    metric: PrimaryMetric,
    *,
    where: str,
) -> Lead | None:
    """Return the lead by the scores of the baseline and of the model, and the interval of the latter."""
    value, of_model = scores
    texts = [metric.text(score, 2) for score in scores]
    if not value > of_model or texts[0] == texts[1]:
        return None
    name = str(baseline.get("name", "the baseline")).capitalize()
    compared = f"{where}: {metric.title} {texts[0]} against {texts[1]}"
    if interval is not None and value <= interval[1]:
        return Lead(f"{name} is level, within the 95% interval of the model, {compared}.", is_clear=False)
    gap = f"{100 * (value - of_model):.1f} points" if metric.is_share else f"{value - of_model:.3f}"
    beyond = ", above the 95% interval of the model" if interval is not None else ""
    return Lead(f"{name} is ahead by {gap} {compared}{beyond}.", is_clear=True)
