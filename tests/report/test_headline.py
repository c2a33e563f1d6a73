"""The headline of a report: intervals, references and the table of metrics."""

import pytest

from skipway.report.headline import Lead, baseline_lead, evaluation_note, folds_lead, headline, metric_table
from skipway.utils.primary_metric import PRIMARY_METRICS


def facts(**changes):
    return {
        "regression": False,
        "noun": "images",
        "target": "",
        "metrics": {"val_accuracy": 0.9, "val_loss": 0.3123, "val_ece": 0.021},
        "best": {},
        "counts": {"train": 100, "val": 100},
        "classes": {"ant": {"train": 60, "val": 55}, "bee": {"train": 40, "val": 45}},
        **changes,
    }


def test_the_majority_class_is_the_reference_of_images():
    (row,) = headline(facts())
    assert row["bars"] == [("This run", 0.9, "90.0%"), ("Majority class (ant)", 0.55, "55.0%")]
    assert row["interval_text"] == "82.6% to 94.5%" and row["exceeded"]
    assert row["comparison"] == "35.0 points above the majority class (ant)"


def test_chance_on_four_images_is_not_a_success():
    (row,) = headline(facts(metrics={"val_accuracy": 1.0}, counts={"val": 4}))
    assert row["text"] == "100.0%" and row["exceeded"] is False
    assert "not clearly better than a constant prediction" in row["comparison"]


def test_gradient_boosting_is_compared_with_if_it_was_measured():
    baseline = {"name": "gradient boosting", "val_accuracy": 0.95}
    (row,) = headline(facts(metrics={"val_accuracy": 0.9, "baseline": baseline}))
    assert [bar[0] for bar in row["bars"]] == [
        "This run",
        "Gradient boosting (scikit-learn defaults)",
        "Majority class (ant)",
    ]
    assert row["comparison"] == "5.0 points below gradient boosting (scikit-learn defaults)"


def test_a_regression_is_compared_with_the_mean():
    metrics = {"val_r2": -0.1, "val_mae": 12.3456}
    data = facts(regression=True, metrics=metrics, classes={}, noun="rows", target="price")
    data["headline"] = headline(data)
    (row,) = data["headline"]
    assert row["bars"] == [("This run", 0.0, "-0.100"), ("Mean of the target", 0.0, "0.000")]
    assert row["comparison"].startswith("0.100 below the mean of the target")
    assert ("Mean absolute error (in units of price)", ["12.35"]) in metric_table(data)[1]


def test_metrics_of_both_splits_are_in_one_unit():
    data = facts()
    data["metrics"] |= {"test_accuracy": 0.8, "test_macro_f1": 0.75}
    data["headline"] = headline(data)
    splits, rows = metric_table(data)
    assert splits == ["validation", "test"] and dict(rows) == {
        "Accuracy": ["90.0%", "80.0%"],
        "95% interval": ["82.6% to 94.5%", "–"],
        "Macro F1": ["–", "75.0%"],
        "Calibration error (ECE, lower is better)": ["2.1%", "–"],
        "Loss (cross-entropy, nats)": ["0.312", "–"],
        "Images": ["100", "–"],
    }


@pytest.mark.parametrize("value", [None, "x", float("nan"), 1.5])
def test_a_value_that_is_no_accuracy_has_no_headline(value):
    data = facts(metrics={"val_accuracy": value})
    data["headline"] = headline(data)
    assert data["headline"] == [] and metric_table(data) == ([], [])


def table_metrics(**changes):
    data = {"kind": "table", "task": "classification", "counts": {"val": 40, "test": 25}}
    return {"val_loss": 0.3, "data": data, "baseline": {"name": "gradient boosting"}, **changes}


LAST = {"resolved": {"kept_epoch": "last"}}


def test_the_note_names_the_rows_that_evaluate_a_model_and_what_they_selected():
    rows = "Model and baseline are evaluated on the same 40 validation rows, which"
    end = "the weights are those of the last epoch."
    assert evaluation_note(table_metrics(**LAST)) == f"{rows} selected nothing: {end}"
    assert evaluation_note(table_metrics(**LAST, temperature=1.25)) == (
        f"{rows} selected nothing but the temperature of the probabilities (1.25): {end} The loss is slightly "
        "optimistic."
    )
    labels = table_metrics(**LAST)
    labels["data"]["task"] = "multilabel"
    assert "nothing but the thresholds of the labels" in evaluation_note(labels)
    assert evaluation_note(table_metrics()).startswith(f"{rows} also selected the epoch: the result is optimistic.")
    test = table_metrics(test_loss=0.2, baseline={"reason": "not trained"})
    assert evaluation_note(test) == "The model is evaluated on 25 test rows, which selected nothing."
    assert evaluation_note({"data": {"counts": {"val": 40}}}) == ""


def test_a_baseline_that_is_ahead_is_named_on_the_rows_that_evaluate():
    def lead(of_model, of_baseline, split="val", **intervals):
        metrics = table_metrics(**{f"{split}_accuracy": of_model}, **intervals)
        metrics["baseline"][f"{split}_accuracy"] = of_baseline
        return baseline_lead(metrics, "accuracy")

    compared = "on the 40 validation rows: accuracy 95.00% against 90.00%"
    assert lead(0.9, 0.95) == Lead(f"Gradient boosting is ahead by 5.0 points {compared}.", is_clear=True)
    clear, level = (lead(0.9, 0.95, val_accuracy_interval=[0.86, high]) for high in (0.94, 0.95))
    text = f"Gradient boosting is ahead by 5.0 points {compared}, above the 95% interval of the model."
    assert clear == Lead(text, is_clear=True) and clear.kind == "warning"
    text = f"Gradient boosting is level, within the 95% interval of the model, {compared}."
    assert level == Lead(text, is_clear=False) and level.kind == "note"
    assert "on the 25 test rows" in lead(0.9, 0.95, "test").text
    assert {lead(0.9, 0.9), lead(0.9, 0.8), lead(0.9, 0.900001), lead(0.9, None)} == {None}
    folds = {"mean": 0.5, "baseline": {"name": "gradient boosting", "mean": 0.625}}
    text = "Gradient boosting is ahead by 0.125 in the mean over the folds: R2 0.6250 against 0.5000"
    r2 = PRIMARY_METRICS["r2"]
    assert folds_lead(folds, r2).text == f"{text}." and folds_lead({"mean": 0.5}, r2) is None
    folds["r2_interval"] = [0.4, 0.6]
    assert folds_lead(folds, r2).text == f"{text}, above the 95% interval of the model."
    folds["r2_interval"] = [0.3, 0.7]
    assert not folds_lead(folds, r2).is_clear
