import math

import pytest
from small_runs import Words, image_folder, numbers, quick

from skipway.report import html
from skipway.runs.headline import describe_precision, describe_uncertainty, uncertainty_metrics
from skipway.runs.train_run import train
from skipway.utils.uncertainty import wilson_interval


def data(val, train=(50, 50)):
    classes = {name: {"train": t, "val": v} for name, t, v in zip("ab", train, val, strict=True)}
    return {"counts": {"train": sum(train), "val": sum(val)}, "classes": classes}


def headline(accuracy, facts):
    metrics = {"val_accuracy": accuracy}
    metrics |= uncertainty_metrics(metrics, "accuracy", facts)
    return describe_uncertainty(metrics, "accuracy", "val", facts["counts"]["val"])


@pytest.mark.parametrize(
    "accuracy, val, train, expected",
    [
        (1.0, (2, 2), (8, 8), " (95% interval 51.0% to 100.0%; not clearly better than always predicting 'a': 50.0%)"),
        (0.75, (2, 2), (8, 8), "not clearly better than always predicting 'a': 50.0%)"),
        (0.9, (90, 10), (90, 10), "not clearly better than always predicting 'a': 90.0%)"),
        (0.9, (50, 50), (50, 50), " (95% interval 82.6% to 94.5%)"),
        (0.52, (1000, 1000), (50, 50), "not clearly better than always predicting 'a': 50.0%)"),
    ],
)
def test_the_headline_has_its_interval_and_what_it_is_compared_with(accuracy, val, train, expected):
    assert expected in headline(accuracy, data(val, train))


def test_a_certain_headline_stands_alone():
    assert headline(0.9, data((1000, 1000))) == ""
    assert "not clearly better" not in headline(0.9, data((50, 50)))


def test_a_number_is_compared_with_the_mean():
    metrics = {"val_r2": 0.02, "test_r2": 0.5}
    metrics |= uncertainty_metrics(metrics, "r2", {"counts": {"val": 40, "test": 400}})
    text = describe_uncertainty(metrics, "r2", "val", 40)
    assert text.endswith("not clearly better than always predicting the mean: 0.000)")
    assert "not" not in describe_uncertainty(metrics, "r2", "test", 400)
    assert not metrics["val_constant_answer"]["exceeded"] and metrics["test_constant_answer"]["exceeded"]


def test_a_precision_that_differs_is_named():
    assert describe_precision("fp32", "fp32", views=1, epoch="best") == ""
    note, end = "note: the final metrics evaluate the best epoch", ", so its values can differ slightly"
    in_bf16 = f"{note} in fp32; the epoch table is in bf16{end}"
    assert describe_precision("bf16", "fp32", views=1, epoch="best") == in_bf16
    assert describe_precision("bf16", "fp32", views=6, epoch="best") == (
        f"{note} in fp32 by the mean over 6 views of each image; the epoch table is in bf16 by one view{end}"
    )
    assert describe_precision("bf16", "bf16", views=3, epoch="last") == (
        f"{note.replace('best', 'last')} by the mean over 3 views of each image; the epoch table is by one view{end}"
    )
    assert describe_precision("bf16", "bf16", views=1, epoch="last") == ""


def test_the_last_lines_and_the_metrics_of_a_run_have_the_interval(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")
    words = Words()
    run = quick(image_folder(tmp_path / "d", 10), tmp_path / "runs", words, precision="bf16")
    metrics = numbers(run.path)
    low, high = wilson_interval(metrics["val_accuracy"], 6)
    assert metrics["val_accuracy_interval"] == [low, high]
    assert (
        f"(95% interval {low:.1%} to {high:.1%}" in words
        and "the best epoch in fp32; the epoch table is in bf16" in words
    )
    constant = metrics["val_constant_answer"]
    assert constant["answer"] == "ant" and constant["accuracy"] == pytest.approx(1 / 3)
    assert constant["exceeded"] or "not clearly better than always predicting 'ant'" in words


def test_the_last_lines_of_a_regression_have_the_interval(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")
    words = Words()
    run = train("diabetes", output=tmp_path, epochs=1, threads=1, console=words)
    low, high = run.metrics["val_r2_interval"]
    assert math.isfinite(low) and low <= high and f"(95% interval {low:.3f} to {high:.3f}" in words
