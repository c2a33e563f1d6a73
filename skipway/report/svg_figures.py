"""Charts of a training for its report: inline SVG, each with a caption of two lines."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from skipway.report.calibration import Reliability
from skipway.report.plot_style import finite_or_nan, shorten
from skipway.report.run_events import Event
from skipway.report.svg_chart import Axis, Line, Mark, label_width, line_chart, svg, svg_text
from skipway.utils.primary_metric import PRIMARY_METRICS
from skipway.utils.uncertainty import wilson_interval

__all__ = [
    "Figure",
    "confusion_matrix",
    "learning_curves",
    "predicted_over_true",
    "reliability_diagram",
    "schedule",
]

_STEEP = 30.0  # largest loss over the median, from which on the axis is logarithmic
_MOST_POINTS = 1500  # of a scatter plot
_MOST_PANELS = 6  # targets with a scatter plot
_NUMBERED = 25  # classes up to which the cells of a confusion matrix have their counts
_LABELED = 50  # rows and columns that have their name
_MOST_CELLS = 6000  # of a confusion matrix, those with the largest shares
_SHORT_LABEL = 21.0  # width of a class name that fits below its column without turning it
_LEVELS, _FAINTEST = 12, 0.15  # of the color of its cells, and the opacity that all levels exceed


@dataclass(frozen=True)
class Figure:
    """Panels that stack on a narrow screen, and two lines of caption: their content, and the result of this run."""

    panels: tuple[Markup, ...]
    shows: str
    result: str


def learning_curves(
    history: Sequence[Mapping[str, Any]], metric: str, *, best: float, events: Sequence[Event], kept: str = "best"
) -> Figure | None:
    """Draw loss and metric ("accuracy", "map" or "r2") over the epochs; None if there is no epoch.

    The run kept the weights of the epoch `best`, the "best" or the "last" one, as `kept` names it.
    """
    if not history:
        return None
    epochs = [finite_or_nan(row.get("epoch")) for row in history]
    marks = [Mark(event.epoch, event.text) for event in events]
    name = PRIMARY_METRICS[metric].title
    factor = 100.0 if PRIMARY_METRICS[metric].is_share else 1.0
    score_axis = Axis("R2", least=0.05, low=None, bounds=(-0.5, 1.0))
    if PRIMARY_METRICS[metric].is_share:
        score_axis = Axis(name, least=5.0, bounds=(0.0, 100.0), unit="%")
    panels, courses = [], []
    for key, title, scale in (("loss", "Loss", 1.0), (metric, PRIMARY_METRICS[metric].heading, factor)):
        values = {part: [finite_or_nan(row.get(f"{part}_{key}")) * scale for row in history] for part in _PARTS}
        courses.append(values)
        y = score_axis if key == metric else _loss_axis([*values["train"], *values["val"]], metric)
        lines = [Line(word, epochs, values[part], color) for part, (word, color) in _PARTS.items()]
        lines = [line for line in lines if any(map(math.isfinite, line.ys))]  # mAP is measured in validation alone
        extra = [Mark(e, f"{kept} epoch {e:g}", v) for e, v in zip(epochs, values["val"], strict=True) if e == best]
        ordered = sorted([*marks, *extra], key=lambda mark: mark.x)
        panels.append(line_chart(title, lines, x=Axis("epoch", whole=True), y=y, marks=ordered))
    shows = f"Loss and {name} after each epoch, on training and validation data."
    if events:
        shows += " Dashed lines mark changes of the network or of its learning rate."
    return Figure(tuple(panels), shows, _describe_courses(courses, epochs, name, best=best, kept=kept))


_PARTS = {"train": ("training", "blue"), "val": ("validation", "orange")}


def _loss_axis(values: Sequence[float], metric: str) -> Axis:
    finite = [value for value in values if math.isfinite(value)]
    label = "loss of scaled errors" if metric == "r2" else "loss, nats"
    if finite and min(finite) > 0 and max(finite) > _STEEP * float(np.median(finite)):
        return Axis(f"{label}, log scale", log=True)
    return Axis(label, bounds=(0.0, math.inf), least=0.2 * max(map(abs, finite), default=1.0))


def _describe_courses(
    courses: Sequence[Mapping[str, list[float]]], epochs: list[float], name: str, *, best: float, kept: str
) -> str:
    """Write how both losses moved, and the metrics of the epoch `best`."""
    losses = [f"{word} loss {_course(courses[0][part])}" for part, (word, _) in _PARTS.items()]
    losses = [text for text in losses if not text.endswith(" ")]
    text = f"This run: {' and '.join(losses)}." if losses else "This run: no loss is finite."
    if best not in epochs:
        return text
    row = epochs.index(best)
    unit, form = ("", ".3f") if name == "R2" else ("%", ".1f")
    scores = [(word, courses[1][part][row]) for part, (word, _) in _PARTS.items()]
    parts = [f"{value:{form}}{unit} in {word}" for word, value in scores if math.isfinite(value)]
    return f"{text} In its {kept} epoch, {best:g}, {name} was {' and '.join(parts)}." if parts else text


def _course(values: Sequence[float]) -> str:
    """Write how a series moved from its first to its last finite value; nothing if it has none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    first, last = f"{finite[0]:.3g}", f"{finite[-1]:.3g}"
    if len(finite) == 1 or first == last:
        return f"was {last}" if len(finite) == 1 else f"was {last} at the end, as at the start"
    return f"{'fell' if finite[-1] < finite[0] else 'rose'} from {first} to {last}"


def schedule(points: Sequence[Sequence[float]], rates_used: Sequence[float]) -> Figure | None:
    """Draw the learning rate over the position in a run, and the momentum if every point has it.

    Args:
        points: (position from 0 to 1, learning rate, momentum) of a run.
        rates_used: the learning rate of each epoch; 0 for one that fitted the head without gradient steps.

    Returns:
        None if there are no points, or if no epoch had gradient steps.
    """
    if rates_used and not any(rates_used):
        return None
    rows = [[finite_or_nan(value) for value in point] for point in points]
    rows = [row for row in rows if all(map(math.isfinite, row))]
    if not rows:
        return None
    xs, rates = [100 * row[0] for row in rows], [row[1] for row in rows]
    x = Axis("position in the run", low=0.0, high=100.0, unit="%")
    y = Axis("learning rate", low=0.0 if min(rates) >= 0 else None)
    panels = [line_chart("Learning rate", [Line("", xs, rates, "blue")], x=x, y=y)]
    top = max(range(len(rates)), key=rates.__getitem__)
    shows = "Learning rate of each step"
    result = f"This run: the learning rate peaks at {rates[top]:.3g}, {xs[top]:.0f}% into the run"
    if max(rates) == min(rates):
        result = f"This run: the learning rate is {rates[0]:.3g} throughout"
    if min(map(len, rows)) > 2:
        momenta = [row[2] for row in rows]
        panels.append(line_chart("Momentum", [Line("", xs, momenta, "orange")], x=x, y=Axis("momentum", least=0.1)))
        shows += ", and momentum"
        low, high = f"{min(momenta):.3g}", f"{max(momenta):.3g}"
        result += f"; momentum is {low}" if low == high else f"; momentum is between {low} and {high}"
    if rates_used and rates_used[0] == 0:
        result += "; the first epoch fitted the head without gradient steps"
    return Figure(tuple(panels), f"{shows}, over the planned length of the run.", f"{result}.")


def reliability_diagram(result: Reliability, split: str, noun: str, *, of_labels: bool = False) -> Figure:
    """Draw accuracy over confidence with 95% intervals, next to the diagonal of a calibrated model.

    `of_labels` names both for the probabilities of labels: the frequency of a label over its probability.
    """
    lines = [Line("calibrated", [0, 100], [0, 100], "ink", dashed=True, dots="none")]
    lines.append(Line("this run", [100 * b[0] for b in result.bins], [100 * b[1] for b in result.bins], "blue"))
    for confidence, accuracy, count in result.bins:
        low, high = wilson_interval(accuracy, count)
        lines.append(Line("", [100 * confidence] * 2, [100 * low, 100 * high], "blue", dots="none", opacity=0.5))
    label = "probability of the label" if of_labels else "confidence (probability of the prediction)"
    x, y = (Axis(text, low=0.0, high=100.0, unit="%") for text in (label, "frequency" if of_labels else "accuracy"))
    panels = (line_chart("Reliability", lines, x=x, y=y),)
    count = max(row[2] for row in result.bins)
    share = count / result.count
    shows = "Accuracy of predictions by confidence, in ten bins with 95% intervals. Below the diagonal: overconfident."
    means = f"mean confidence {result.confidence:.1%}, accuracy {result.accuracy:.1%}"
    if of_labels:
        shows = "Frequency of labels by their probability, in ten bins with 95% intervals, over all pairs of both."
        means = f"mean probability {result.confidence:.1%}, frequency {result.accuracy:.1%}"
        noun = f"pairs of {noun} and labels"
    text = f"This run: {means}, on {result.count:,} {split} {noun}; the largest bin holds {count:,} ({share:.1%})."
    return Figure(panels, shows, text)


def predicted_over_true(
    rows: Sequence[Mapping[str, Any]], targets: Sequence[tuple[str, str]], split: str, noun: str
) -> Figure | None:
    """Draw predicted over true numbers; None if there is no pair of finite numbers.

    Args:
        rows: rows of predictions.csv.
        targets: name, and ending of the columns, of each target; the first six are drawn.
        split: name of the split.
        noun: noun of the samples.
    """
    panels, above, total, most = [], 0, 0, 0
    for target, ending in targets[:_MOST_PANELS]:
        pairs = [
            (finite_or_nan(row.get(f"target{ending}")), finite_or_nan(row.get(f"predicted{ending}"))) for row in rows
        ]
        pairs = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
        if pairs:
            shown = pairs[:: -(-len(pairs) // _MOST_POINTS)]
            panels.append(_scatter(shown, target, several=len(targets) > 1))
            above, total, most = above + sum(b > a for a, b in pairs), total + len(pairs), max(most, len(shown))
    if not panels:
        return None
    name = shorten(targets[0][0], 24) if len(targets) == 1 else "numbers"
    shows = f"Predicted over true {name} of {most:,} {split} {noun}. Points on the line are exact."
    result = f"This run: {above:,} of {total:,} predictions are above the true value, {above / total:.0%}."
    return Figure(tuple(panels), shows, result)


def _scatter(pairs: Sequence[tuple[float, float]], target: str, *, several: bool) -> Markup:
    """Draw predicted over true values of one target."""
    values = [value for pair in pairs for value in pair]
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 1.0
    opacity = min(0.9, max(0.25, 12 / math.sqrt(len(pairs))))
    dots = Line("this run", [a for a, _ in pairs], [b for _, b in pairs], "blue", dots="only", opacity=opacity)
    diagonal = Line("equal", [low, high], [low, high], "ink", dashed=True, dots="none")
    name = shorten(target, 24)
    x, y = (Axis(f"{word} {name}", low=low - margin, high=high + margin) for word in ("true", "predicted"))
    title = f"Predicted and true {name}" if several else "Predicted and true values"
    return line_chart(title, [diagonal, dots], x=x, y=y)


def confusion_matrix(matrix: np.ndarray, names: Sequence[str], split: str, noun: str) -> Figure | None:
    """Draw counts (K, K) of true and predicted classes; the color is the share of the true class."""
    counts, n = np.asarray(matrix, dtype=float), len(names)
    if not n or not counts.sum():
        return None
    cell = 34.0 if n <= 12 else max(480.0 / n, 1.0)
    step = -(-n // _LABELED)
    labels = {i: shorten(names[i], 18) for i in range(0, n, step)}
    size = 12.0 if n <= _NUMBERED else min(11.0, cell * step)
    widest = max(map(label_width, labels.values())) * size / 12
    left, top, side = widest + 34, 30.0, cell * n
    turned, slope = (-45, 0.75) if n <= 12 else (-90, 1.0)
    below = 34 + (slope * widest if widest > _SHORT_LABEL else 14.0)
    body = [svg_text(0, 15, "Confusion matrix", kind="t"), *_cells(counts, left, top, cell=cell)]
    middle = cell / 2
    for i, label in labels.items():
        body.append(svg_text(left - 6, top + cell * i + middle + size / 3, label, anchor="e", size=size))
        x, y = left + cell * i + middle + size / 4, top + side + 12
        if widest > _SHORT_LABEL:
            body.append(svg_text(x, y, label, anchor="e", turned=turned, size=size))
        else:
            body.append(svg_text(left + cell * i + middle, y + 3, label, anchor="m", size=size))
    if n <= _NUMBERED:
        for (i, j), count in np.ndenumerate(counts):
            if count or i == j:
                x, y = left + cell * j + middle, top + cell * i + middle + 4
                fit = min(12.0, cell * 0.92 / (0.6 * len(f"{count:.0f}")))
                body.append(svg_text(x, y, f"{count:.0f}", kind="k", anchor="m", size=fit))
    body.append(svg_text(left + side / 2, top + side + below - 4, "predicted class", anchor="m"))
    body.append(svg_text(12, top + side / 2, "true class", anchor="m", turned=-90))
    right = int(round(np.trace(counts)))
    total = int(round(counts.sum()))
    shows = "Rows: true classes; columns: predicted classes. Blue is right, orange wrong, by the share of the row."
    result = f"This run: {right:,} of {total:,} {split} {noun} are on the diagonal ({right / total:.1%})."
    if (counts > 0).sum() > _MOST_CELLS:
        shows += f" Only the {_MOST_CELLS:,} cells with the largest shares are drawn."
    panel = svg(left + side + 18, top + side + below, body, f"Confusion matrix of {n} classes")
    return Figure((panel,), shows, result)


def cell_opacity(step: int) -> float:
    """Return the opacity of a cell on level 1 to `_LEVELS`."""
    return _FAINTEST + (1 - _FAINTEST) * step / _LEVELS


def _cells(counts: np.ndarray, left: float, top: float, *, cell: float) -> list[str]:
    """Draw the cells of a confusion matrix: one path for each color and level, so that many classes stay small."""
    n = len(counts)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    level = np.ceil(share**0.6 * _LEVELS).astype(int)  # the exponent shows one mistake in thirty
    level.ravel()[np.argsort(-share, axis=None, kind="stable")[_MOST_CELLS:]] = 0
    gap = 1.0 if n <= _LABELED else 0.0
    size = cell - gap
    body = [f'<rect class="empty" x="{left:.1f}" y="{top:.1f}" width="{cell * n:.1f}" height="{cell * n:.1f}"/>']
    on_diagonal = np.eye(n, dtype=bool)
    # Counts have to be readable on their cells; cells without counts are small, and need stronger colors.
    right, wrong = ("right", "wrong") if n <= _NUMBERED else ("blue", "orange")
    for color, chosen in ((right, on_diagonal), (wrong, ~on_diagonal)):
        for step in range(1, _LEVELS + 1):
            places = np.argwhere(chosen & (level == step))
            if len(places):
                square = f"h{size:.3g}v{size:.3g}h-{size:.3g}z"
                parts = [f"M{left + cell * j:.1f} {top + cell * i:.1f}{square}" for i, j in places]
                opacity = "" if step == _LEVELS else f' opacity="{cell_opacity(step):.2f}"'
                body.append(f'<path class="f-{color}"{opacity} d="{"".join(parts)}"/>')
    return body
