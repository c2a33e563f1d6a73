"""Kinds of columns from options and files: in runs, their folders, resumed runs and predictions."""

import numpy as np
import pandas as pd
import pytest
import yaml
from table_files import homes, written

import skipway as sw
from skipway.commands.find_lr import find_lr
from skipway.commands.predict import predict
from skipway.errors import InputError
from skipway.models.load_model import load
from skipway.runs.train_run import train
from skipway.utils.console import Console


@pytest.fixture
def home(tmp_path):
    frame = homes(60).drop(columns="dear")
    frame["zip"] = np.array(["00137", "10115", "50667"])[np.arange(60) % 3]
    frame["sold"] = [f"0{1 + i % 9}/0{1 + i % 7}/2024" for i in range(60)]
    frame.loc[::6, "size"] = -1
    return written(tmp_path / "homes.csv", frame)


def trained(home, name, **options):
    return train(home, target="price", output=home.parent / "runs", name=name, **{"epochs": 2, **options})


def weights_of(run):
    return load(run.path).state_dict()


def test_a_run_with_the_columns_of_another_has_the_same_weights(home):
    first = trained(home, "first", missing="size=-1")
    again = trained(home, "again", columns=first.path / "columns.yaml")
    a, b = weights_of(first), weights_of(again)
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
    checked = home.parent / "checked.yaml"
    sw.check(home, target="price", missing=["size=-1"], output=checked)
    assert checked.read_text() == (first.path / "columns.yaml").read_text()
    values = yaml.safe_load(checked.read_text())
    assert list(values["columns"]) == list(pd.read_csv(home).columns) and values["missing"] == ["size=-1"]
    assert values["columns"]["price"]["kind"] == "target" and values["columns"]["zip"]["kind"] == "category"
    values["columns"]["zip"]["kind"] = "number"
    checked.write_text(yaml.safe_dump(values))
    other = trained(home, "other", columns=str(checked))
    assert [c.kind for c in load(other.path).spec.columns if c.name == "zip"] == ["number"]


def test_missing_markers_hold_at_prediction_and_evaluation(home):
    run = trained(home, "marked", missing=["size=-1"], categorical=["zip"])
    frame = pd.read_csv(home).drop(columns="price")  # pandas reads the zip codes as numbers
    assert frame["zip"].dtype.kind == "i"
    odd, empty = predict(run.path, frame), predict(run.path, frame.assign(size=frame["size"].replace(-1, np.nan)))
    assert list(map(str, odd)) == list(map(str, empty))
    lines = []
    console = Console(quiet=True)
    console.print = lambda text="", **options: lines.append(text)
    predict(run.path, frame, console=console)
    assert any("missing values of 'size': 1" in line for line in lines) and not any("'zip'" in line for line in lines)
    marked = homes(60).drop(columns="dear").assign(zip="00137", sold="01/02/2024", size=-1)
    assert sw.evaluate(run.path, marked, y=None).as_dict()["count"] == 60


def test_kinds_are_fixed_when_a_run_resumes(home):
    file = home.parent / "columns.yaml"
    sw.check(home, target="price", output=file)
    run = trained(home, "run", columns=str(file), categorical="zip")
    resumed = train(resume=run.path, epochs=3)
    assert resumed.metrics["status"] == "finished" and "columns" in (run.path / "config.yaml").read_text()
    with pytest.raises(InputError, match="cannot change categorical when resuming: categorical was zip, got sold"):
        train(resume=run.path, categorical=["sold"], epochs=4)
    file.write_text(file.read_text().replace("sold: {kind: date, format: mdy", "sold: {kind: date, format: dmy"))
    with pytest.raises(InputError, match="cannot resume .*: expected the same rows"):
        train(resume=run.path, epochs=4)


def test_a_run_of_an_earlier_version_resumes_with_the_kinds_that_it_had(home, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr("skipway.data.tables.input_kinds._kind_of_codes", lambda name, raw: None)
        run = trained(home, "run")
    assert [c.kind for c in load(run.path).spec.columns if c.name == "zip"] == ["number"]
    resumed = train(resume=run.path, epochs=3)
    assert [c.kind for c in load(resumed.path).spec.columns if c.name == "zip"] == ["number"]
    assert resumed.metrics["status"] == "finished"
    home.write_text(home.read_text().replace("Bonn", "Trier"))
    with pytest.raises(InputError, match="expected the same rows in .*, got changed ones"):
        train(resume=run.path, epochs=4)


def test_the_console_stays_short_for_many_columns(home, capfd):
    frame = homes(40).drop(columns="dear")
    for i in range(60):
        frame[f"d{i}"] = [f"${k % 9 + i:,}.5" for k in range(40)]
        frame.loc[i % 40, f"d{i}"] = "unknown"
    run = train(written(home, frame), target="price", output=home.parent, name="wide", epochs=1, console=Console())
    lines = capfd.readouterr().out.splitlines()
    assert sum(line.startswith("  column 'd") for line in lines) < 9 and len(lines) < 60
    assert "  and 53 more such lines, see report.html" in lines
    page = run.report.read_text()
    assert "How each column was read, and why" in page and "columns.yaml" in page


def test_find_lr_and_folds_take_the_options(home):
    assert find_lr(home, target="price", categorical=["zip"], missing=[-1]).suggestion > 0
    folds = trained(home, "folds", folds=2, categorical="zip,city", missing="size=-1")
    kinds = [{c.name: c.kind for c in load(run.path).spec.columns} for run in folds.runs]
    assert kinds[0] == kinds[1] and kinds[0]["zip"] == "category"
