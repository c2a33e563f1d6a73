"""The four checks of made-up runs: each sentence is true of its numbers."""

import pytest

from skipway.report.calibration import bias, reliability
from skipway.report.checks import State, run_checks
from skipway.report.headline import headline

CLASSES = {"ant": {"train": 400, "val": 500}, "bee": {"train": 400, "val": 500}}


def epochs(values, **columns):
    rows = []
    for i, value in enumerate(values):
        row = {"epoch": i + 1.0, "train_accuracy": value, "val_accuracy": value, "data_time_fraction": 0.04}
        losses = {"train_loss": 1.1 - value, "val_loss": 1.1 - value}
        rows.append({**row, **losses, **{name: column[i] for name, column in columns.items()}})
    return rows


def predictions(count, accuracy, confidence):
    right = round(accuracy * count)
    return [
        {"label": "a", "predicted": "a" if i < right else "b", "probability": str(confidence)} for i in range(count)
    ]


def checks_of(history, *, count=1000, noun="images", regression=False, rows=(), **changes):
    key = "val_r2" if regression else "val_accuracy"
    facts = {
        "history": history,
        "best": max(history, key=lambda row: row[key]) if history else {},
        "classes": {} if regression else CLASSES,
        "counts": {"train": 800, "val": count},
        "regression": regression,
        "noun": noun,
        "metrics": {},
        "skipped_count": 0,
        "warnings": [],
        "reliability": reliability(rows),
        "bias": bias(rows),
        **changes,
    }
    facts["headline"] = headline(facts)
    return {check.name: (check.state, check.text) for check in run_checks(facts)}


GOOD = epochs([0.5, 0.8, 0.89, 0.9, 0.9, 0.9, 0.9])


def test_a_run_without_a_problem_passes_every_check():
    found = checks_of(GOOD, rows=predictions(1000, 0.9, 0.89), metrics={"samples_per_second": 412.4})
    assert list(found) == ["Data", "Fit", "Calibration", "Speed"]
    assert {state for state, _ in found.values()} == {State.PASS}
    assert found["Data"][1] == "All 1,800 images were used, without a warning."
    assert found["Calibration"][1].startswith("Mean confidence is 89.0% at 90.0% accuracy, a gap of 1.0 points")
    assert found["Speed"][1] == "412 images/s; training waited for data 4.0% of the time."


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"skipped_count": 1}, "1 file was skipped."),
        ({"skipped_count": 2, "warnings": ["x"]}, "2 files were skipped; 1 warning is listed under Data."),
        ({"skipped_count": 2, "noun": "rows"}, "2 rows were skipped."),
        ({"count": 40}, "40 validation images leave an interval of 19.1 points."),
    ],
)
def test_problems_of_the_data_are_named(changes, text):
    assert checks_of(GOOD, **changes)["Data"] == (State.WARN, text)


def test_a_run_that_does_not_list_skipped_samples_is_not_praised():
    assert checks_of(GOOD, skipped_count=None)["Data"][0] is State.UNKNOWN


@pytest.mark.parametrize(
    "history, changes, text",
    [
        (epochs([1.0] * 6), {"count": 4}, "not clearly better than always predicting the largest class, ant (50.0%"),
        (epochs([0.9] * 6, train_accuracy=[1.0] * 6), {}, "The model overfits"),
        (epochs([0.9] * 3, train_loss=[1, float("nan"), 1]), {}, "not finite in epoch 2"),
        (epochs([0.5, 0.6, 0.7, 0.8]), {}, "still rose by 10.0 points"),
        (
            epochs([0.6, 0.59], train_loss=[2, 1.9], val_loss=[2, 1.9]),
            {"metrics": {"status": "stopped by the time limit"}},
            "The time limit ended training after 2 epochs, while both losses still fell",
        ),
    ],
)
def test_a_bad_fit_is_a_warning(history, changes, text):
    state, sentence = checks_of(history, **changes)["Fit"]
    assert state is State.WARN and text in sentence


@pytest.mark.parametrize(
    "accuracy, confidence, smoothing, text",
    [
        (0.8, 0.95, 0.0, "Overconfident: mean confidence is 95.0% at 80.0% accuracy."),
        (0.9, 0.7, 0.0, "Underconfident: mean confidence is 70.0% at 90.0% accuracy."),
        (
            0.9,
            0.7,
            0.1,
            "Underconfident: mean confidence is 70.0% at 90.0% accuracy (trained with label smoothing 0.1).",
        ),
    ],
)
def test_confidence_that_is_off_is_a_warning(accuracy, confidence, smoothing, text):
    metrics = {"resolved": {"label_smoothing": smoothing}}
    found = checks_of(GOOD, rows=predictions(500, accuracy, confidence), metrics=metrics)
    assert found["Calibration"] == (State.WARN, text)


def test_low_confidence_is_the_aim_of_label_smoothing():
    metrics = {"resolved": {"label_smoothing": 0.2}}
    found = checks_of(GOOD, rows=predictions(500, 0.99, 0.79), metrics=metrics)
    text = "Underconfident as label smoothing 0.2 intends: mean confidence is 79.0% at 99.0% accuracy."
    assert found["Calibration"] == (State.PASS, text)


def test_confidence_within_the_sampling_error_passes_and_few_predictions_show_nothing():
    assert checks_of(GOOD, rows=predictions(200, 0.9, 0.87))["Calibration"][0] is State.PASS
    assert checks_of(GOOD, rows=predictions(5, 1.0, 0.6))["Calibration"][0] is State.UNKNOWN
    assert checks_of(GOOD)["Calibration"] == (State.UNKNOWN, "This run has no predictions with probabilities.")


@pytest.mark.parametrize("shift, state", [(0.0, State.PASS), (5.0, State.WARN), (-5.0, State.WARN)])
def test_predicted_numbers_are_checked_for_bias(shift, state):
    rows = [{"error": str(shift + (-1) ** i)} for i in range(100)]
    history = [{**row, "val_r2": 0.8, "train_r2": 0.8} for row in GOOD]
    found = checks_of(history, noun="rows", regression=True, rows=rows)["Calibration"]
    assert found[0] is state and f"the mean error is {shift:+.3g} ± 0.2 (95%)" in found[1].replace("The", "the")
    assert ("too high" in found[1]) == (shift > 0) and ("too low" in found[1]) == (shift < 0)


def test_training_that_waits_for_data_is_a_warning():
    state, text = checks_of(epochs([0.9] * 3, data_time_fraction=[0.5, 0.5, 0.5]))["Speed"]
    assert state is State.WARN and text.startswith("Training waited for data 50.0% of the time: ")


def test_a_head_that_was_fitted_has_no_waiting_time():
    found = checks_of(epochs([0.9], lr=[0.0]), metrics={"samples_per_second": 67})
    assert found["Speed"] == (State.PASS, "67 images/s; the head was fitted in one pass over the images.")


def test_a_run_without_an_epoch_has_nothing_measured():
    found = checks_of([], counts={}, skipped_count=None)
    assert {state for state, _ in found.values()} == {State.UNKNOWN}


def test_bins_of_confidence_have_their_accuracy():
    result = reliability([*predictions(10, 0.5, 0.55), *predictions(20, 1.0, 1.0), {"probability": "high"}])
    assert result.bins == ((pytest.approx(0.55), 0.5, 10), (1.0, 1.0, 20)) and result.count == 30
    assert reliability([{"label": "a"}]) is None and bias([{"error": "1"}]) is None
