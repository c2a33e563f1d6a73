"""Charts of the diagnostics of a run: signal flow, ablation, loss landscape and the learning-rate range test.

They are drawn from flow.json, depth.json and find_lr.json. A file with other content raises one of `MALFORMED`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from skipway.report.palette import SERIES
from skipway.report.plot_style import finite_or_nan, shorten
from skipway.report.run_reader import number
from skipway.report.svg_chart import Axis, Line, Mark, bar_chart, line_chart, svg, svg_text
from skipway.report.svg_figures import Figure

__all__ = ["MALFORMED", "ablation", "loss_landscape", "loss_square", "lr_range_test", "signal_flow"]

MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, ZeroDivisionError)

_MOST_FLOWS = 4  # lines of a panel
_MOST_CELLS = 2500  # of a square of losses
_DEEPEST = 1e3  # a color scale spans no more than this, from the smallest loss up
_FLOW_PANELS = (  # entries, their key, title, unit
    ("blocks", "out", "Output of each block", "root mean square"),
    ("blocks", "ratio", "Branch over shortcut", "ratio of RMS"),
    ("blocks", "gradient_in", "Gradient by block input", "norm of a batch"),
    ("layers", "gradient", "Gradient by weights", "root mean square"),
)
_REMAINDERS = {"identity": "blue", "shortcut": "orange", "nothing": "purple"}
_Rows = Sequence[Mapping[str, Any]]


def signal_flow(flows: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Draw activations and gradients along the depth, a line for each of at most four flows."""
    names = _evenly_chosen(list(flows))
    panels = []
    for entries, key, title, unit in _FLOW_PANELS:
        lines = []
        for name, color in zip(names, SERIES, strict=False):
            values = [finite_or_nan(row.get(key)) for row in flows[name][entries]]
            if any(map(math.isfinite, values)):
                lines.append(Line(shorten(name, 30), range(1, len(values) + 1), values, color))
        if lines:
            x = Axis(f"{entries[:-1]}, in the order of calls", whole=True)
            panels.append(line_chart(title, lines, x=x, y=Axis(f"{unit}, log scale", log=True)))
    if not panels:
        return None
    shows = "Activations and gradients along the depth, on a log scale. Zeros are drawn at the lower edge."
    return Figure(tuple(panels), shows, _describe_flow(names, flows))


def _describe_flow(names: Sequence[str], flows: Mapping[str, Mapping[str, Any]]) -> str:
    """Write how far the outputs of the blocks spread in the last flow, and how many branches are zero in the first."""
    first, last = names[0], names[-1]
    outputs = [value for value in _column(flows[last]["blocks"], "out") if value > 0]
    text = f"{_title(last)}: the network has no block outputs."
    if outputs:
        text = f"{_title(last)}: block outputs are between {min(outputs):.2g} and {max(outputs):.2g}."
    added = _column(flows[first]["blocks"], "added")
    zeros = added.count(0.0)
    if zeros:
        text += f" {_title(first)}: {zeros} of {len(added)} branches add exactly zero"
        text += ", as zero initialization intends." if zeros == len(added) else "."
    return text


def _title(name: str) -> str:
    return f"{shorten(name, 40)[:1].upper()}{shorten(name, 40)[1:]}"


def _column(rows: _Rows, key: str) -> list[float]:
    return [value for value in (finite_or_nan(row.get(key)) for row in rows) if math.isfinite(value)]


def _evenly_chosen(names: list[str]) -> list[str]:
    """Choose at most `_MOST_FLOWS` of the names, evenly spread from the first to the last."""
    if len(names) <= _MOST_FLOWS:
        return names
    return [names[round(i * (len(names) - 1) / (_MOST_FLOWS - 1))] for i in range(_MOST_FLOWS)]


def ablation(lesions: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Draw the score without each block, without several, and with blocks in another order."""
    shown = {name: lesion for name, lesion in lesions.items() if lesion["dropped"] or lesion["shuffled"]}
    if not shown:
        return None
    measure = str(next(iter(shown.values()))["measure"])
    factor, unit = (100.0, "%") if measure == "accuracy" else (1.0, "")
    high = 100.0 if measure == "accuracy" else None
    y = Axis(shorten(measure), low=0.0, high=high, unit=unit)
    panels, sentences = [], []
    for name, lesion in shown.items():
        scores = [factor * finite_or_nan(row["score"]) for row in lesion["dropped"]]
        colors = [_REMAINDERS.get(row["remainder"], "purple") for row in lesion["dropped"]]
        whole = factor * finite_or_nan(lesion["score"])
        title = "Without one block" + (f": {shorten(name, 24)}" if len(shown) > 1 else "")
        bars = list(zip(scores, colors, strict=True))
        panels.append(bar_chart(title, bars, x=Axis("dropped block, in order", whole=True), y=y, level=whole))
        sentences.append(_describe_drops(lesion["dropped"], scores, whole, unit))
    for key, amount, title, label in (
        ("several", "count", "Without several blocks", "blocks dropped at random"),
        ("shuffled", "distance", "Blocks shuffled within stages", "share of pairs in the wrong order, %"),
    ):
        lines = list(_medians(shown, key, amount, factor=factor))
        if lines:
            panels.append(line_chart(title, lines, x=Axis(label, low=0.0), y=y))
    shows = (
        f"Validation {shorten(measure)} after dropping or moving blocks; the line is the whole network. Blue blocks "
        "keep their identity, orange ones their projection."
    )
    return Figure(tuple(panels), shows, f"This run: {' '.join(sentences)}")


def _describe_drops(rows: _Rows, scores: Sequence[float], whole: float, unit: str) -> str:
    pairs = [(score, row["path"]) for row, score in zip(rows, scores, strict=True) if math.isfinite(score)]
    if not pairs or not math.isfinite(whole):
        return "no block could be dropped."
    score, path = max(pairs, key=lambda pair: abs(pair[0] - whole))
    change = f"dropping {shorten(path, 30)} changes it most, to {score:.4g}{unit}"
    return f"the whole network has {whole:.4g}{unit}; {change}."


def _medians(lesions: Mapping[str, Mapping[str, Any]], key: str, amount: str, *, factor: float) -> Iterator[Line]:
    """Yield a line of the median score over each amount for each network, from its whole score on."""
    for (name, lesion), color in zip(lesions.items(), SERIES, strict=False):
        groups: dict[float, list[float]] = {0.0: [finite_or_nan(lesion["score"])]}
        for row in lesion[key]:
            place = 100 * number(row[amount]) if key == "shuffled" else number(row[amount])
            groups.setdefault(place, []).extend(map(finite_or_nan, row.get("scores", [row.get("score")])))
        if len(groups) > 1:
            xs = sorted(groups)
            ys = [factor * float(np.median(groups[x])) for x in xs]
            yield Line(shorten(name, 24) if len(lesions) > 1 else "", xs, ys, color)


def loss_landscape(landscapes: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Draw loss and accuracy on a line through the weights."""
    panels = []
    for key, title, y, factor in (
        ("losses", "Loss around the weights", Axis("loss, log scale", log=True), 1.0),
        ("accuracies", "Accuracy around the weights", Axis("accuracy", low=0.0, high=100.0, unit="%"), 100.0),
    ):
        lines = []
        for (name, landscape), color in zip(landscapes.items(), SERIES, strict=False):
            values = [factor * finite_or_nan(value) for value in landscape[key] or ()]
            if values:
                lines.append(Line(shorten(name, 24), [number(step) for step in landscape["steps"]], values, color))
        if lines:
            panels.append(line_chart(title, lines, x=Axis("step, relative to the size of the weights"), y=y))
    if not panels:
        return None
    shows = "Loss along a random line through the weights (step 0). A wide valley suggests a robust minimum."
    return Figure(tuple(panels), shows, f"This run: {_describe_landscapes(landscapes)}")


def _describe_landscapes(landscapes: Mapping[str, Mapping[str, Any]]) -> str:
    parts = []
    for name, landscape in landscapes.items():
        curvature, share = number(landscape["curvature"]), number(landscape["nonconvex"])
        shape = f"curvature {curvature:.3g}" if math.isfinite(curvature) else "unknown curvature"
        convexity = f"{share:.0%} of the steps not convex" if math.isfinite(share) else "unknown convexity"
        parts.append(f"{shorten(name, 24)} has {shape}, and {convexity}")
    return f"{'; '.join(parts)}."


def loss_square(landscapes: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Draw the loss on a square around the weights, one color scale for all networks."""
    tables = {
        name: np.vectorize(finite_or_nan)(np.array(row["losses"], dtype=object)) for name, row in landscapes.items()
    }
    losses = np.concatenate([table.ravel() for table in tables.values()]) if tables else np.array([])
    finite = losses[np.isfinite(losses)]
    if not len(finite) or any(table.ndim != 2 or table.size > _MOST_CELLS for table in tables.values()):
        return None
    low, high = float(finite.min()), float(finite.max())
    high = min(high, low * _DEEPEST) if low > 0 else high
    panels = tuple(_square(shorten(name, 30), table, low, high) for name, table in tables.items())
    shows = "Loss on a square around the weights (the ring), along two random directions. Stronger color: higher loss."
    return Figure(
        panels, shows, f"This run: the loss is between {low:.3g} and {float(finite.max()):.3g} on this square."
    )


def _square(title: str, losses: np.ndarray, low: float, high: float) -> Markup:
    rows, columns = losses.shape
    side, top, left = 300.0, 28.0, 20.0
    across, down = side / columns, side / rows
    shares = np.clip((losses - low) / ((high - low) or 1.0), 0, 1)
    if low > 0 and high > 30 * low:
        shares = np.clip(np.log(np.maximum(losses, low) / low) / math.log(high / low), 0, 1)
    body = [
        svg_text(0, 15, title, kind="t"),
        f'<rect class="empty" x="{left}" y="{top}" width="{side}" height="{side}"/>',
    ]
    for (i, j), share in np.ndenumerate(shares.T):  # the first direction goes to the right
        if math.isfinite(share):
            x, y = left + across * j, top + side - down * (i + 1)
            place = f'x="{x:.1f}" y="{y:.1f}" width="{across + 0.3:.1f}" height="{down + 0.3:.1f}"'
            body.append(f'<rect class="f-blue" opacity="{share:.2f}" {place}/>')
    body.append(f'<circle class="ring" cx="{left + side / 2}" cy="{top + side / 2}" r="5"/>')
    body.append(svg_text(left + side / 2, top + side + 18, "first direction", anchor="m"))
    body.append(svg_text(12, top + side / 2, "second direction", anchor="m", turned=-90))
    return svg(left + side + 10, top + side + 26, body, title)


def lr_range_test(result: Mapping[str, Any]) -> Figure:
    """Draw the loss over the learning rate of a range test, and the two rates that its suggestion is between."""
    rates, smoothed = ([number(value) for value in result[key]] for key in ("rates", "smoothed"))
    lowest = smoothed.index(min(smoothed))
    low, high = smoothed[lowest], max(smoothed[: lowest + 1])
    margin = 0.25 * (high - low) or 1.0
    raw = [number(value) for value in result["losses"]]
    lines = [Line("each step", rates, raw, "ink", opacity=0.35), Line("smoothed", rates, smoothed, "blue")]
    valley, steepest, suggestion = (number(result[key]) for key in ("valley", "steepest", "suggestion"))
    found = sorted(((steepest, "steepest"), (valley, "valley")))
    marks = [Mark(rate, f"{word}: {rate:.2g}") for rate, word in found]
    y = Axis("training loss", low=low - margin, high=high + margin)
    panel = line_chart(
        "Learning-rate range test", lines, x=Axis("learning rate, log scale", log=True), y=y, marks=marks
    )
    shows = "Training loss while the learning rate grows. A good peak is where the loss falls fast, before it rises."
    between = f"between the valley ({valley:.2g}) and the steepest fall ({steepest:.2g})"
    text = f"This run: the test suggests {suggestion:.3g}, {between}."
    return Figure((panel,), shows, text)
