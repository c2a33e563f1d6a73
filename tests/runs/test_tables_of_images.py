"""Training, checking and evaluating on a table of images."""

import json

import numpy as np
import pytest
from file_trees import place
from small_runs import Words
from table_of_images import images, rows

import skipway as sw
from skipway.cli import app
from skipway.commands.evaluate import evaluate
from skipway.data.tables.number_style import NumberStyle
from skipway.errors import InputError
from skipway.runs.train_run import train
from skipway.utils import stop_signals
from skipway.utils.stop_signals import StopFlag

QUICK = {"epochs": 1, "batch_size": 8, "model": "resnet9", "pretrained": "none", "augment": "none"}


@pytest.fixture(autouse=True)
def no_signal(monkeypatch):
    monkeypatch.setattr(stop_signals, "STOP", StopFlag())


def exit_code(words):
    try:
        app.main(words)
    except SystemExit as end:
        return end.code or 0
    return 0


def folder(root, **files):
    return place(root, images("photos", 24) | {name.replace("_", "."): data for name, data in files.items()}, "folder")


def test_a_run_on_a_table_of_images_is_evaluated_on_other_tables(tmp_path, capsys):
    data = folder(tmp_path, train_csv=rows("file,kind,age,place", "{0}.jpg,{1},{0}.5,p{0}", 24) + b"99.jpg,cat,1,p\n")
    output = tmp_path / "runs"
    run = sw.train(data / "train.csv", target="kind", group_column="place", max_unreadable=0.1, output=output, **QUICK)
    skipped = (run.path / "skipped.csv").read_text()
    assert "99.jpg" in skipped and "no such file (train.csv:26)" in skipped
    assert run.metrics["data"]["counts"] == {"train": 19, "val": 5}
    assert exit_code(["evaluate", str(run.path), str(data), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["count"] == 24 and facts["trained_on"] == 19
    other = place(tmp_path / "other", images("x", 8) | {"t.csv": rows("path,label", "{}.jpg,{}", 8)}, "folder")
    assert sw.evaluate(run.path, other / "t.csv", target="label").count == 8
    plain = place(tmp_path / "plain", {"t.csv": rows("size,kind", "{0}.5,{1}")}, "folder")
    with pytest.raises(InputError, match="because the model was trained on images, got a table of rows. Pass a folder"):
        sw.evaluate(run.path, plain / "t.csv", target="kind")


def test_the_roles_are_printed_and_checked(tmp_path, capsys):
    data = folder(tmp_path, train_csv=rows("file,kind,age", "{0}.jpg,{1},{0}.5", 24))
    assert exit_code(["check", str(data), "--target", "kind"]) == 0
    assert "columns: image 'file', target 'kind'" in capsys.readouterr().out
    assert (
        exit_code(
            ["train", str(data), "--target", "kind", "--epochs", "1", "--model", "resnet9", "-o", str(tmp_path / "r")]
        )
        == 0
    )
    assert "  columns: image 'file', target 'kind'\n" in capsys.readouterr().out


def test_find_lr_takes_the_same_table(tmp_path):
    data = folder(tmp_path, train_csv=rows("id,kind", "{},{}", 24))
    result = sw.find_lr(data, model="resnet9", batch_size=8, pretrained="none", image_column="id", target="kind")
    assert np.isfinite(result.suggestion)


def test_folds_of_a_table_of_images(tmp_path):
    data = folder(tmp_path, train_csv=rows("file,kind", "{}.jpg,{}", 24))
    result = sw.train(data, folds=2, output=tmp_path / "runs", **QUICK)
    assert [run.metrics["data"]["counts"]["val"] for run in result.runs] == [12, 12]


def test_a_run_on_images_with_columns_is_evaluated_on_its_table(tmp_path):
    data = folder(tmp_path, train_csv=rows("file,kind,age", "{0}.jpg,{1},{0}.5", 24))
    run = sw.train(data, target="kind", features="age", output=tmp_path / "runs", **QUICK)
    assert sw.evaluate(run.path, data, target="kind").count == 24
    bare = folder(tmp_path / "bare", train_csv=rows("file,kind", "{0}.jpg,{1}", 24))
    with pytest.raises(InputError, match="cannot find the column 'age'"):
        sw.evaluate(run.path, bare)


def test_feature_columns_are_read_in_one_style_in_all_folds(tmp_path):
    data = folder(tmp_path, train_csv=rows("file,kind,area", '{0}.jpg,{1},"1{0},500"', 24))
    result = sw.train(data, target="kind", features="area", folds=2, output=tmp_path / "runs", **QUICK)
    (column, other) = (sw.load(run.path).spec.feature_columns[0] for run in result.runs)
    assert column.style == other.style == NumberStyle("", ",") and 10_500 <= column.center < 124_000
    new = folder(tmp_path / "new", train_csv=rows("file,kind,area", "{0}.jpg,{1},{0}.500", 24))
    predictions = sw.predict(result.runs[0].path, new / "train.csv")
    assert "expected a number with one meaning, got '7.500' (write 7,500 or 7.5)" in predictions[7].reason
    said = Words()
    odd = b"file,kind,area\n" + b"".join(b"%d.jpg,cat,%s\n" % (i, b"oops" if i == 3 else b"<500") for i in range(24))
    (data / "train.csv").write_bytes(odd)
    assert evaluate(result.runs[0].path, data, target="kind", console=said).count == 24
    assert "texts in 'area' read as missing: 1" in said
    assert "cells of 'area' read as their bound, such as '<500': 23" in said


def test_odd_cells_of_test_images_are_warned_of(tmp_path):
    train_rows = rows("file,kind,age", "{0}.jpg,{1},{0}.5", 24)
    test_rows = rows("file,kind,age", "{0}.jpg,{1},<{0}.5", 22).replace(b"<3.5", b"oops")
    data = folder(tmp_path, train_csv=train_rows, test_csv=test_rows)
    options = {"allow_duplicates": True, **QUICK}
    run = sw.train(data, target="kind", features="age", output=tmp_path / "runs", **options)
    said = "\n".join(run.metrics["data"]["warnings"])
    assert "test images: cells of 'age' read as their bound, such as '<0.5': 21" in said
    assert "test images: texts in 'age': 1" in said


def test_a_run_whose_feature_columns_changed_is_refused_when_resuming(tmp_path):
    data = folder(tmp_path, train_csv=rows("file,kind,age", "{0}.jpg,{1},{0}.5", 24))
    run = sw.train(data, target="kind", features="age", output=tmp_path / "runs", **QUICK)
    (data / "train.csv").write_bytes(rows("file,kind,age", "{0}.jpg,{1},{0}.50", 24))  # equal numbers
    assert train(resume=run.path, epochs=2).metrics["epochs"] == 2
    (data / "train.csv").write_bytes(rows("file,kind,age", "{0}.jpg,{1},{0}.6", 24))
    with pytest.raises(
        InputError,
        match="expected the same images in .*, got changed ones .only their order, sizes, weights or columns",
    ):
        train(resume=run.path, epochs=3)


@pytest.mark.parametrize("kind", ["separator", "lists", "columns", "numbers", "one_hot"])
def test_labels_and_numbers_of_tables_of_images_are_trained_and_evaluated(tmp_path, kind):
    forms = {
        "separator": ("file,tags", "{0}.jpg,{1}|pet"),
        "lists": ("file,tags", '{0}.jpg,"[""{1}"", ""pet""]"'),
        "columns": ("file,cat,pet", "{0}.jpg,1,1"),
        "numbers": ("file,age,size", "{0}.jpg,{0}.5,-{0}"),
        "one_hot": ("file,cat,dog", "{0}.jpg,0,1"),
    }
    table = rows(*forms[kind], 24)
    options = {"label_sep": "|"} if kind == "separator" else {}
    if kind == "numbers":
        options = {"target": "age,size"}
    elif kind in ("columns", "one_hot"):
        table = table.replace(b"3.jpg,1,1", b"3.jpg,0,1").replace(b"4.jpg,0,1", b"4.jpg,1,0")
    data = folder(tmp_path, train_csv=table)
    run = sw.train(data, output=tmp_path / "runs", **QUICK, **options)
    evaluation = sw.evaluate(run.path, data)
    assert evaluation.count == 24 and np.isfinite(evaluation.loss)
    assert sw.check(data, **options).as_dict()["counts"] == {"train": 24}
