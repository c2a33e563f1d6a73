"""Charts and tables of a run with several labels per sample: precision and recall, calibration, confused labels.

Shapes: N samples, K labels.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skipway.report.calibration import Reliability, reliability_of
from skipway.report.palette import SERIES
from skipway.report.plot_style import shorten
from skipway.report.run_reader import number
from skipway.report.svg_chart import Axis, Line, line_chart
from skipway.report.svg_figures import Figure

__all__ = ["LabelPredictions", "confused_labels", "label_predictions", "precision_recall"]

_COLUMN = "probability_"
_CURVES = 6  # labels with a curve
_POINTS = 120  # of a curve


@dataclass(frozen=True)
class LabelPredictions:
    """Names (K,), true labels (N, K) and probabilities (N, K) of predictions.csv."""

    names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray

    def reliability(self) -> Reliability | None:
        """Compare the probabilities of all pairs of a sample and a label with the frequency of the label."""
        return reliability_of(self.probabilities.ravel(), self.labels.ravel().astype(float))


def label_predictions(rows: Sequence[Mapping[str, str]]) -> LabelPredictions | None:
    """Return the labels and probabilities in rows of predictions.csv; None without a column for each label."""
    columns = [name for name in rows[0] if name.startswith(_COLUMN)] if rows else []
    if not columns:
        return None
    probabilities = np.array([[number(row.get(column)) for column in columns] for row in rows])
    names = tuple(column.removeprefix(_COLUMN) for column in columns)
    true = [set(str(row.get("label") or "").split("|")) for row in rows]
    labels = np.array([[name in present for name in names] for present in true])
    usable = ((probabilities >= 0) & (probabilities <= 1)).all(axis=1)
    return LabelPredictions(names, labels[usable], probabilities[usable]) if usable.any() else None


def precision_recall(
    predictions: LabelPredictions, rows: Sequence[Mapping[str, str]], split: str, noun: str
) -> Figure | None:
    """Draw the precision over the recall of the most frequent labels.

    Args:
        predictions: labels and probabilities.
        rows: rows of per_class.csv, for the thresholds.
        split: name of the split.
        noun: noun of the samples.
    """
    counts = predictions.labels.sum(axis=0)
    shown = [int(k) for k in np.argsort(-counts, kind="stable")[:_CURVES] if counts[k]]
    if not shown:
        return None
    thresholds = {row.get("class"): number(row.get("threshold")) for row in rows}
    lines = []
    for k, color in zip(shown, SERIES, strict=False):
        positive, scores = predictions.labels[:, k], predictions.probabilities[:, k]
        hits = np.cumsum(positive[np.argsort(-scores, kind="stable")])
        chosen = np.unique(np.linspace(0, len(hits) - 1, _POINTS).round().astype(int))
        chosen = chosen[hits[chosen] > 0]
        recall, precision = 100 * hits[chosen] / hits[-1], 100 * hits[chosen] / (chosen + 1)
        lines.append(Line(shorten(predictions.names[k], 24), recall.tolist(), precision.tolist(), color, dots="none"))
        at = scores >= thresholds.get(predictions.names[k], math.nan)
        if at.any() and (positive & at).any():
            place = 100 * (positive & at).sum() / positive.sum(), 100 * (positive & at).sum() / at.sum()
            lines.append(Line("", [float(place[0])], [float(place[1])], color, dots="only"))
    x, y = (Axis(word, low=0.0, high=100.0, unit="%") for word in ("recall", "precision"))
    some = f"the {len(shown)} most frequent of {len(counts):,} labels" if len(shown) < len(counts) else "each label"
    shows = f"Precision over recall of {some} for all thresholds. Dots are at the thresholds of the model."
    empty = int((~predictions.labels.any(axis=1)).sum())
    result = (
        f"This run: {len(predictions.labels):,} {split} {noun} with {predictions.labels.sum(axis=1).mean():.2g} labels "
        f"on average, {empty:,} of them without any."
    )
    return Figure((line_chart("Precision and recall", lines, x=x, y=y),), shows, result)


def confused_labels(rows: Sequence[Mapping[str, str]], most: int) -> list[dict[str, Any]]:
    """Return the labels that are most often missed while another one is predicted wrongly.

    Args:
        rows: rows of predictions.csv with label and predicted, joined by "|".
        most: number of pairs.

    Returns:
        Pairs as dicts: true, predicted, count, and the share of the samples with the true label.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    having: Counter[str] = Counter()
    for row in rows:
        true, predicted = (set(str(row.get(key) or "").split("|")) - {""} for key in ("label", "predicted"))
        having.update(true)
        wrong = sorted(predicted - true)
        for missed in sorted(true - predicted):
            pairs.update((missed, other) for other in wrong)
    return [
        {"true": true, "predicted": other, "count": count, "share": count / having[true]}
        for (true, other), count in sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))[:most]
    ]
