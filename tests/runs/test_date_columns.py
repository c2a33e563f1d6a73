"""A column of dates in a run: train, baseline, report, evaluate, predict, export and check."""

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from small_runs import Words, numbers
from table_files import written

import skipway as sw
from skipway.commands.export import export_run
from skipway.data.sources.read_table import read_table
from skipway.runs.train_run import train


def hourly(count=24 * 7 * 9):
    """Hours of nine weeks, day first; the target depends on the hour and the weekday only."""
    when = pd.date_range("2024-01-01", periods=count, freq="h")
    rush = np.exp(-((when.hour - 8) ** 2) / 4) + np.exp(-((when.hour - 18) ** 2) / 6)
    trips = 100 * rush * np.where(when.day_of_week < 5, 1.0, 0.3) + 5 * when.day_of_week
    noise = np.random.default_rng(0).normal(0, 3, count)
    return pd.DataFrame({"when": when.strftime("%d/%m/%Y %H:%M"), "trips": (trips + noise).round(2)})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hourly")
    words = Words()
    data = written(folder / "hourly.csv", hourly())
    run = train(data, output=folder / "runs", target="trips", epochs=12, console=words)
    return run, data, words


TEXT = "day first; 2024-01-01 00:00 to 2024-03-03 23:00; inputs: trend, month, day of month, weekday"


def test_the_network_and_the_baseline_learn_hour_and_weekday(run):
    found = numbers(run[0].path)
    assert found["val_r2"] > 0.9 and found["baseline"]["val_r2"] > 0.95


def test_the_column_is_described_wherever_columns_are(run):
    trained, data, words = run
    text = numbers(trained.path)["data"]["column_details"]["when"]["style"]
    assert text.startswith("day first; 2024-01-01 0") and text.endswith("weekday, hour")
    assert f"column 'when': {text}, such as '01/01/2024 0" in words
    assert f"<td>date</td><td>dates</td><td>{text}</td>" in (trained.path / "report.html").read_text()
    assert f"dates; {TEXT[:18]}" in str(sw.check(data, target="trips"))


def test_evaluate_and_predict_use_the_format_of_the_run(run, tmp_path):
    trained, data, _ = run
    assert sw.evaluate(trained.path, data).r2 > 0.9
    new = pd.DataFrame({"when": ["04/03/2024 08:00", "04/03/2024 03:00", "2024-03-04 08:00", "03/25/2024", "NA"]})
    rows = sw.predict(trained.path, written(tmp_path / "new.csv", new))
    assert [row.usable for row in rows] == [True, True, False, False, True]
    assert rows[0].value > rows[1].value + 50
    assert rows[2].reason == "column 'when': expected a date such as 31/12/2024, got '2024-03-04 08:00'"


def test_the_export_takes_all_inputs_of_the_column(run, tmp_path):
    trained, data, _ = run
    export_run(trained.path, "onnx", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    x = trained.network().spec.encode_strict(read_table(data)).x[:50]
    outputs = session.run(None, {session.get_inputs()[0].name: x})[0]
    expected = [row.value for row in sw.predict(trained.path, data)[:50]]
    assert x.shape[1] > 15 and np.allclose(outputs[:, 0], expected, atol=1e-2)
