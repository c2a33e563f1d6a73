"""Charts of a report, drawn from the values and files of a run folder."""

from collections.abc import Callable, Mapping
from typing import Any

from skipway.report import svg_diagnostics, svg_figures
from skipway.report.label_figures import precision_recall
from skipway.report.run_events import run_events
from skipway.report.run_reader import Reader, mapping, number
from skipway.report.svg_figures import Figure
from skipway.report.verdicts import metric_of

__all__ = ["figures_of"]


def figures_of(facts: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
    """Return the charts of a run by name, None for those that it has no values for.

    Args:
        facts: those that the template gets.
        reader: the reader of the run folder.

    Returns:
        curves, schedule, confusion, reliability, predicted, precision_recall; and diagnostics, a dict of (heading,
        chart) by the stem of the plot in `plots` that they replace.
    """
    history, noun, split = facts["history"], facts["noun"], facts["split"]
    last = history[-1]["epoch"] if history else 0.0
    confusion, reliability = None, None
    if facts["matrix"] is not None:
        confusion = svg_figures.confusion_matrix(facts["matrix"], facts["names"], split, noun)
    if facts["reliability"] is not None:
        reliability = svg_figures.reliability_diagram(facts["reliability"], split, noun, of_labels=facts["multilabel"])
    labels = facts["label_predictions"]
    return {
        "curves": svg_figures.learning_curves(
            history,
            metric_of(facts).name,
            best=facts["best"].get("epoch", 0),
            events=run_events(facts["metrics"], last),
            kept=facts["kept_epoch"],
        ),
        "schedule": svg_figures.schedule(facts["schedule"], [number(row.get("lr")) for row in history]),
        "confusion": confusion,
        "reliability": reliability,
        "predicted": svg_figures.predicted_over_true(facts["predictions"], facts["targets"], split, noun),
        "precision_recall": labels and precision_recall(labels, facts["per_class"], split, noun),
        "diagnostics": _diagnostics(reader),
    }


def _diagnostics(reader: Reader) -> dict[str, tuple[str, Figure]]:
    """Draw the diagnostics that the run folder has values of; a malformed file has no chart."""
    depth = reader.optional_json("depth.json")
    landscapes = mapping(depth.get("landscape"))
    sources: tuple[tuple[str, str, Callable[[Any], Figure | None], Any], ...] = (
        ("find_lr", "Learning-rate range test", svg_diagnostics.lr_range_test, reader.optional_json("find_lr.json")),
        (
            "flow_over_training",
            "Signal flow over training",
            svg_diagnostics.signal_flow,
            reader.optional_json("flow.json").get("flows"),
        ),
        ("flow", "Signal flow", svg_diagnostics.signal_flow, depth.get("flow")),
        ("lesion", "Block ablation", svg_diagnostics.ablation, depth.get("lesion")),
        ("landscape", "Loss landscape, line", svg_diagnostics.loss_landscape, landscapes.get("landscape")),
        ("landscape_square", "Loss landscape, square", svg_diagnostics.loss_square, landscapes.get("landscape_square")),
    )
    figures = {}
    for name, heading, draw, values in sources:
        try:
            figure = draw(values) if values else None
        except svg_diagnostics.MALFORMED:
            continue
        if figure is not None:
            figures[name] = (heading, figure)
    return figures
