"""`--json`: one JSON object with the schema number, with the values that the text shows, and `train --dry-run`."""

import json
import math

import pytest
import yaml
from small_runs import image_folder, numbers, quick

import skipway as sw
from skipway.cli.app import app
from skipway.errors import InputError
from skipway.utils.console import print_json


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    base = tmp_path_factory.mktemp("json")
    image_folder(base / "kinds")
    (base / "kinds" / "ant" / "torn.png").write_bytes(b"torn")
    quick(base / "kinds", base / "runs", name="one", epochs=1, max_unreadable=0.1)
    return base


def printed(capsys, *words):
    app([str(word) for word in words], result_action="return_value")
    values = json.loads(capsys.readouterr().out)
    assert values["schema"] == 1
    return values


def test_check(place, capsys):
    values = printed(capsys, "check", place / "kinds", "--json")
    assert values["counts"] == {"train": 60} and list(values["classes"]) == ["ant", "bee", "cow"]
    assert list(values["unreadable"]) == ["ant/torn.png"] and values["skipped"] == 1


def test_evaluate(place, capsys):
    values = printed(capsys, "evaluate", place / "runs" / "one", place / "kinds", "--split", "train", "--json")
    assert 0 <= values["accuracy"] <= 1 and values["count"] == 60 and values["skipped"] == 1
    assert [row["class"] for row in values["classes"]] == ["ant", "bee", "cow"] and "is_asked" not in values


def test_compare(place, capsys, tmp_path):
    run = place / "runs" / "one"
    values = printed(capsys, "compare", run, run, "-o", tmp_path / "c.png", "--json")
    assert [row["run"] for row in values["runs"]] == ["one (1)", "one (2)"] and values["differences"] == {}
    assert values["runs"][0]["val_accuracy"] == numbers(run)["val_accuracy"]


def test_summary(capsys):
    values = printed(capsys, "summary", "resnet20", "--json")
    assert values["parameters"] == 269_722 == sum(row["parameters"] for row in values["rows"])
    assert values["macs"] == sum(row["macs"] for row in values["rows"]) and values["input_shape"] == [1, 3, 32, 32]
    with pytest.raises(InputError, match="cannot summarize: expected --code or --json, got both. Drop one of them"):
        app(["summary", "resnet20", "--json", "--code"], result_action="return_value")


def test_models_and_env(capsys):
    rows = printed(capsys, "models", "resnet1*", "--json")["models"]
    assert [row["name"] for row in rows] == sw.list_models("resnet1*")
    assert next(row for row in rows if row["name"] == "resnet18")["parameters"] == 11_689_512
    values = printed(capsys, "env", "--json")
    assert {"skipway", "torch", "gpu", "precision"} <= values.keys()


def test_numbers_that_are_not_finite_become_null(capsys):
    print_json({"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


def test_a_dry_run_prints_a_config_and_leaves_nothing(place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app(
        ["train", str(place / "kinds"), "--dry-run", "--max-unreadable", "0.1", "--epochs", "3"],
        result_action="return_value",
    )
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["epochs"] == 3 and config["max_unreadable"] == 0.1 and config["batch_size"] == 8
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="cannot resolve the options: expected --dry-run or --resume, got both"):
        app(["train", "--dry-run", "--resume", str(place / "runs" / "one")], result_action="return_value")
