"""Figures of a report: what they mark, what their captions conclude, and hostile or odd values."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from fabricated_runs import HOSTILE

from skipway.report import svg_diagnostics, svg_figures
from skipway.report.calibration import reliability
from skipway.report.run_events import Event, growth_lines, run_events
from skipway.report.svg_chart import Axis, Line, Mark, line_chart

GROWTH = {
    "epoch": 3,
    "from": {"name": "resnet20", "layers": [3, 3, 3]},
    "to": {"name": "resnet32", "layers": [5, 5, 5]},
}


def parsed(panel):
    """The elements of a drawing, which is well-formed and holds only shapes and texts."""
    root = ElementTree.fromstring(str(panel))
    assert {element.tag for element in root.iter()} <= {"svg", "path", "rect", "circle", "text"}
    numbers = re.findall(r"nan|inf", " ".join(str(e.attrib) for e in root.iter() if e.tag != "svg"))
    assert not numbers
    return root


def texts(panel):
    return [element.text for element in parsed(panel).iter("text")]


def history(epochs, **changes):
    rows = []
    for e in range(epochs):
        score = 0.9 - 0.8 / (e + 1)
        row = {"epoch": e + 1.0, "train_loss": 2 / (e + 1), "val_loss": 2.2 / (e + 1)}
        rows.append({**row, "train_accuracy": score, "val_accuracy": score - 0.05})
        rows[-1] |= {name: values[e] for name, values in changes.items()}
    return rows


def curves(rows, best=None, events=()):
    return svg_figures.learning_curves(rows, "accuracy", best=best or len(rows), events=events)


def test_growth_unfreezing_and_rate_drops_are_events():
    metrics = {
        "grown": [GROWTH, "x", {"epoch": "y"}],
        "resolved": {"freeze_epochs": 1, "freeze_until": None, "schedule": "steps", "epochs": 8},
        "schedule": [[i / 100, 0.1 if i < 50 else 0.01, 0.9] for i in range(101)],
    }
    assert run_events(metrics, 8) == [
        Event(1.0, "all layers unfrozen"),
        Event(3.0, "grown to resnet32"),
        Event(pytest.approx(3.96), "LR 0.1 → 0.01"),
    ]
    assert run_events(metrics, 3) == [Event(1.0, "all layers unfrozen")]
    metrics["resolved"] |= {"freeze_until": "stage6", "schedule": "cosine"}
    assert [event.text for event in run_events(metrics, 8)] == ["unfrozen after stage6", "grown to resnet32"]
    assert run_events({}, 8) == [] and growth_lines({"grown": 3}) == []
    assert growth_lines({"grown": [{**GROWTH, "difference": 0.0}]}) == [
        "After epoch 3 the network grew from resnet20 (3-3-3 blocks) to resnet32 (5-5-5 blocks); its outputs changed "
        "by at most 0."
    ]


def test_events_are_marked_on_both_curves():
    figure = curves(history(8), events=[Event(3.0, "grown to resnet32"), Event(4.0, "LR 0.1 → 0.01")])
    assert len(figure.panels) == 2
    for panel in figure.panels:
        assert {"grown to resnet32", "LR 0.1 → 0.01", "best epoch 8"} <= set(texts(panel))
        assert len([e for e in parsed(panel).iter("path") if e.get("class") == "mark"]) == 3
    assert "Dashed lines mark" in figure.shows and "Dashed" not in curves(history(8)).shows


def test_the_caption_of_the_curves_says_how_the_losses_moved():
    figure = curves(history(4, val_loss=[1.0, 1.2, 1.3, 1.4]), best=2)
    assert figure.result == (
        "This run: training loss fell from 2 to 0.5 and validation loss rose from 1 to 1.4. In its best epoch, 2, "
        "accuracy was 50.0% in training and 45.0% in validation."
    )
    assert "training loss was 2 and" in curves(history(1)).result
    nothing = curves([{"epoch": 1.0, "train_loss": math.nan}])
    assert (
        nothing.result == "This run: no loss is finite."
        and svg_figures.learning_curves([], "r2", best=0, events=[]) is None
    )


@pytest.mark.parametrize("epochs", [1, 2, 12, 300])
def test_curves_of_any_length_are_drawn(epochs):
    for panel in curves(history(epochs)).panels:
        assert len(str(panel)) < 12_000 and parsed(panel).get("role") == "img"


def test_values_that_are_not_finite_are_gaps():
    rows = history(6, val_loss=[math.nan, 1.0, math.inf, None, "x", 2.0])
    line = next(e for e in parsed(curves(rows).panels[0]).iter("path") if e.get("class") == "s-orange dots")
    assert line.get("d").count("M") == 2


def test_values_beyond_the_limits_are_not_drawn_at_the_edge():
    panel = line_chart("t", [Line("", [0, 1, 2], [-5, 0.1, 0.2], "blue")], x=Axis("x"), y=Axis("y", bounds=(-0.5, 1)))
    dots = next(e for e in parsed(panel).iter("path") if "dots" in e.get("class", ""))
    assert dots.get("d").count("M") == 2


def test_marks_close_together_are_in_different_rows():
    panel = line_chart(
        "t", [Line("", [0, 9], [0, 1], "blue")], x=Axis("x"), y=Axis("y"), marks=[Mark(4, "first"), Mark(4.1, "second")]
    )
    rows = {e.text: float(e.get("y")) for e in parsed(panel).iter("text") if e.text in ("first", "second")}
    assert abs(rows["first"] - rows["second"]) >= 12


def test_the_caption_of_the_schedule_is_that_of_its_points():
    figure = svg_figures.schedule([[i / 10, 0.1 * (1 - i / 10), 0.9] for i in range(11)], [0.05])
    assert figure.result == "This run: the learning rate peaks at 0.1, 0% into the run; momentum is 0.9."
    assert len(figure.panels) == 2 and len(svg_figures.schedule([[0, 0.1], [1, 0.2]], []).panels) == 1
    assert "throughout" in svg_figures.schedule([[0, 0.1], [1, 0.1]], []).result
    assert "the first epoch fitted the head" in svg_figures.schedule([[0, 0.1], [1, 0.2]], [0.0, 0.1]).result
    assert svg_figures.schedule([[0, 0.1]], [0.0]) is None and svg_figures.schedule([["x", math.nan]], []) is None


@pytest.mark.parametrize("num_classes", [1, 2, 12, 13, 25, 26, 60, 61, 300])
def test_a_confusion_matrix_of_any_size_is_drawn(num_classes):
    matrix = np.eye(num_classes) * 50 + 1
    figure = svg_figures.confusion_matrix(matrix, [f"class {i}" for i in range(num_classes)], "test", "images")
    assert len(str(figure.panels[0])) < 250_000
    assert ("Only the 6,000 cells" in figure.shows) == (num_classes**2 > 6000)
    assert f"This run: {51 * num_classes:,} of {int(matrix.sum()):,} test images are on the diagonal" in figure.result
    labels = texts(figure.panels[0])
    assert labels.count("class 0") == 2 and sum(label.startswith("class ") for label in labels) <= 100
    assert ("class 1" in labels) == (1 < num_classes <= 50) and ("51" in labels) == (num_classes <= 25)


def test_an_empty_confusion_matrix_has_no_figure():
    assert svg_figures.confusion_matrix(np.zeros((2, 2)), ["a", "b"], "test", "images") is None


def test_hostile_names_are_text():
    n = len(HOSTILE)
    panel = svg_figures.confusion_matrix(np.eye(n), HOSTILE, "test", "images").panels[0]
    assert "<img" not in panel and "\x1b" not in panel and "&lt;img" in panel and "\\x1b[2J" in " ".join(texts(panel))


def test_a_reliability_diagram_has_an_interval_for_every_bin():
    rows = [{"label": "a", "predicted": "a" if i % 4 else "b", "probability": str(0.5 + i / 200)} for i in range(100)]
    figure = svg_figures.reliability_diagram(reliability(rows), "test", "images")
    parsed(figure.panels[0])
    assert figure.result == (
        "This run: mean confidence 74.8%, accuracy 75.0%, on 100 test images; the largest bin holds 20 (20.0%)."
    )


def test_predicted_numbers_are_drawn_over_true_ones():
    rows = [{"target": str(i), "predicted": str(i + 1)} for i in range(5000)] + [{"target": "x"}]
    figure = svg_figures.predicted_over_true(rows, [("<price>", "")], "test", "rows")
    assert len(str(figure.panels[0])) < 40_000 and "&lt;price&gt;" in figure.panels[0]
    assert figure.result == "This run: 5,000 of 5,000 predictions are above the true value, 100%."
    assert svg_figures.predicted_over_true([], [("", "")], "test", "rows") is None


def test_each_of_several_numbers_has_a_panel():
    rows = [{f"{part}_{name}": str(i) for part in ("target", "predicted") for name in "xy"} for i in range(9)]
    figure = svg_figures.predicted_over_true(rows, [("x", "_x"), ("y", "_y")], "val", "images")
    assert len(figure.panels) == 2 and "9 val images" in figure.shows and "0 of 18 predictions" in figure.result


def landscape(losses):
    steps = np.linspace(-1, 1, len(losses)).tolist()
    return {"steps": steps, "losses": losses, "accuracies": None, "curvature": 2.0, "nonconvex": None}


def test_diagnostics_are_drawn_with_their_numbers():
    lines = svg_diagnostics.loss_landscape({"a": landscape([2.0, 0.1, 3.0])})
    assert lines.result == "This run: a has curvature 2, and unknown convexity." and len(lines.panels) == 1
    square = svg_diagnostics.loss_square({"a": landscape([[1.0, None], [0.5, 2.0]])})
    assert square.result == "This run: the loss is between 0.5 and 2 on this square."
    assert len(list(parsed(square.panels[0]).iter("rect"))) == 1 + 3
    dropped = [{"path": f"s.{i}", "remainder": "identity", "score": score} for i, score in enumerate((0.9, 0.5))]
    several = [{"count": 1, "scores": [0.9, 0.5]}, {"count": 2, "scores": [0.2]}]
    lesion = {"measure": "accuracy", "score": 0.95, "dropped": dropped, "several": several, "shuffled": []}
    cut = svg_diagnostics.ablation({"a": lesion})
    assert len(cut.panels) == 2
    assert cut.result == "This run: the whole network has 95%; dropping s.1 changes it most, to 50%."
    assert svg_diagnostics.ablation({"a": {**lesion, "dropped": [], "shuffled": []}}) is None
    rates = [10.0**i for i in range(-5, 1)]
    values = {"rates": rates, "losses": [2, 2, 1, 0.5, 1, math.inf], "smoothed": [2, 2, 1.5, 0.6, 0.9, 2.0]}
    test = svg_diagnostics.lr_range_test({**values, "valley": 0.001, "steepest": 0.01, "suggestion": 0.00316})
    assert "suggests 0.00316, between the valley (0.001) and the steepest fall (0.01)" in test.result
    assert {"valley: 0.001", "steepest: 0.01"} <= set(texts(test.panels[0]))


@pytest.mark.parametrize("values", [3, [], {"a": 1}, {"a": {}}, {"a": {"dropped": 3, "shuffled": 0}}, {"a": None}])
def test_malformed_diagnostics_raise_what_the_report_catches(values):
    for draw in (
        svg_diagnostics.signal_flow,
        svg_diagnostics.ablation,
        svg_diagnostics.loss_landscape,
        svg_diagnostics.loss_square,
        svg_diagnostics.lr_range_test,
    ):
        try:
            draw(values)
        except svg_diagnostics.MALFORMED:
            pass
