"""Runs beside each other: figures and differences as they stand in the folders, curves in one plot."""

import json

import pytest
from PIL import Image
from small_runs import image_folder, numbers, quick, table

import skipway as sw
from skipway.cli.app import app
from skipway.commands.compare import compare
from skipway.errors import InputError, StorageError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    base = tmp_path_factory.mktemp("compared")
    image_folder(base / "kinds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skipway.report.html.write", lambda folder: folder / "report.html")
        one = quick(base / "kinds", base / "runs", name="one")
        two = quick(base / "kinds", base / "runs", name="two", epochs=3, optimizer="adamw", seed=4)
    return one.path, two.path


@pytest.mark.rendered
def test_figures_and_differences_are_those_of_the_runs(runs, tmp_path):
    found = compare(runs, tmp_path / "both.png")
    assert found.names == ["one", "two"]
    for folder, row in zip(runs, found.metrics, strict=True):
        metrics = numbers(folder)
        assert row["val_accuracy"] == metrics["val_accuracy"] and row["parameters"] == metrics["parameters"]
        assert row["epochs"] == len(table(folder / "results.csv")) and row["network"] == "resnet20"
    different = found.differences
    assert {k: v for k, v in different.items() if k in ("epochs", "optimizer", "seed")} == {
        "epochs": [2, 3],
        "optimizer": ["sgd", "adamw"],
        "seed": [0, 4],
    }
    assert different["lr"] == [numbers(folder)["resolved"]["lr"] for folder in runs], "what was decided is not told"
    assert not {"output", "name", "data", "batch_size"} & different.keys()
    with Image.open(tmp_path / "both.png") as image:
        assert image.width > 1000 and len(image.convert("RGB").getcolors(10**6)) > 20


def test_the_command_prints_both_tables(runs, tmp_path, capsys):
    app(["compare", *map(str, runs), "--output", str(tmp_path / "c.png")], result_action="return_value")
    said = capsys.readouterr().out
    assert "val accuracy" in said and f"{numbers(runs[0])['val_accuracy']:.2%}" in said
    assert any(line.split() == ["optimizer", "sgd", "adamw"] for line in said.splitlines())
    assert said.rstrip().endswith(f"plot: {tmp_path / 'c.png'}")


def test_runs_of_one_name_are_told_apart_and_equal_ones_are_said_to_be(runs, tmp_path):
    found = compare([runs[0], runs[0]], tmp_path / "c.png")
    assert found.names == ["one (1)", "one (2)"] and "all options are equal" in str(found)
    other = tmp_path / "elsewhere" / "one"
    other.mkdir(parents=True)
    for name in ("config.yaml", "results.csv"):
        (other / name).write_bytes((runs[0] / name).read_bytes())
    found = compare([runs[0], other], tmp_path / "c.png")
    assert found.names == ["runs/one", "elsewhere/one"]
    assert found.metrics[1]["status"] == "not finished" and not found.differences, "what is open yet is no difference"
    assert found.metrics[1]["val_accuracy"] == max(float(r["val_accuracy"]) for r in table(other / "results.csv"))


def test_a_torn_or_hostile_folder_is_shown_as_far_as_it_goes(runs, tmp_path):
    broken = tmp_path / "\x1b[2Jevil"
    broken.mkdir()
    (broken / "config.yaml").write_text("schema: 1\nmodel: resnet20\n")
    (broken / "metrics.json").write_text(
        json.dumps({"schema": 1, "resolved": 3, "parameters": "=cmd()", "status": "\x1b[31m"})
    )
    (broken / "results.csv").write_text("epoch,seconds,val_loss\n1,2,3\n2,")
    text = str(compare([runs[0], broken], tmp_path / "c.png"))
    assert "\x1b" not in text and "evil" in text
    for rows, epochs in (
        ("epoch,seconds\n1,2", "1"),
        ("epoch\n1\n2", "2"),
        ("epoch,seconds,val_loss\n1\n2,3,4\n3,4,5", "2"),
        ("epoch,seconds,val_loss\n1,soon,never", "1"),
    ):
        (broken / "results.csv").write_text(rows)
        (broken / "metrics.json").write_text('{"schema": 1}')
        assert compare([runs[0], broken], tmp_path / "c.png").metrics[1]["epochs"] == int(epochs)
        assert "evil" in str(compare([runs[0], broken], tmp_path / "c.png"))
    (broken / "metrics.json").write_text("[1]")
    (broken / "results.csv").write_text("")
    assert "not finished" in str(compare([broken, runs[1]], tmp_path / "c.png"))


def test_what_is_no_pair_of_runs_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match="cannot compare runs: expected at least 2 run folders, got 1"):
        sw.compare([runs[0]])
    with pytest.raises(InputError, match="is not a run folder"):
        compare([runs[0], tmp_path], tmp_path / "c.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write the plot"):
        compare(runs, tmp_path / "file" / "c.png")
