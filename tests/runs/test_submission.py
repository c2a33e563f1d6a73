"""Folders of Kaggle: the test table without the target is predicted in the form of the sample."""

import csv
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_runs import Words
from table_files import lines

import skipway as sw
from skipway.commands.check_data import check
from skipway.data.column_roles import ColumnRoles
from skipway.data.sources.read_table import sample_of
from skipway.data.tables.table_source import open_table_source
from skipway.errors import InputError
from skipway.report import html
from skipway.runs import table_datamodule
from skipway.runs.train_run import train

ROWS, TESTED = 60, 12


@pytest.fixture(autouse=True)
def quick_end(monkeypatch):
    """Neither a report nor a baseline."""
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")
    monkeypatch.setattr(table_datamodule, "baseline", lambda rows: {"name": "none", "reason": "not trained"})


def frames(classes=("0", "1")):
    """Training rows with a target y, and test rows without it."""
    rng = np.random.default_rng(0)
    count = ROWS + TESTED
    frame = pd.DataFrame({"x": rng.normal(size=count).round(3), "c": rng.choice(list("abc"), count)})
    frame.insert(0, "id", [f"r{i}" for i in range(count)])
    score = frame["x"] + (frame["c"] == "a") + rng.normal(0, 0.2, count)
    train_rows = frame[:ROWS].assign(y=np.array(classes)[pd.qcut(score[:ROWS], len(classes), labels=False)])
    return train_rows, frame[ROWS:].reset_index(drop=True)


def folder(path, train_rows, test_rows, sample=None, name="sample_submission.csv"):
    path.mkdir()
    train_rows.to_csv(path / "train.csv", index=False)
    test_rows.to_csv(path / "test.csv", index=False)
    if sample is not None:
        sample.to_csv(path / name, index=False)
    return path


def submitted(data, output, **options):
    """The header, the rows of submission.csv, the run, and the words of the console."""
    words = Words()
    run = train(str(data), output=output / "runs", epochs=1, threads=1, console=words, **options)
    with open(run.path / "submission.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, rows, run, "\n".join(words.lines)


def test_the_test_table_is_predicted_by_its_ids(tmp_path):
    train_rows, test_rows = frames()
    data = folder(tmp_path / "k", train_rows, test_rows[["c", "id", "x"]].assign(more=1))
    header, rows, run, words = submitted(data, tmp_path)
    assert header == ["id", "y"] and [row[0] for row in rows] == test_rows["id"].tolist()
    assert [row[1] for row in rows] == run.network().predict(test_rows)
    assert f"  test.csv: {TESTED} rows without 'y', named by 'id', to predict" in words
    assert f"\nsubmission: {run.path / 'submission.csv'} ({TESTED} rows of test.csv: id, y as classes)" in words
    assert "test" not in run.metrics["data"]["counts"] and "val_accuracy" in run.metrics
    assert f"test.csv: {TESTED} rows without 'y', named by 'id', to predict" in str(check(str(data)))
    assert sw.evaluate(run.path, str(data)).split == "all"


def test_the_header_and_the_order_of_the_sample_are_followed(tmp_path):
    train_rows, test_rows = frames(("no", "yes"))
    sample = test_rows[["id"]].iloc[::-1].assign(prediction=0.5)
    data = folder(tmp_path / "k", train_rows, test_rows, sample, "gender_submission.csv")
    header, rows, run, words = submitted(data, tmp_path)
    shares = run.network().predict_proba(test_rows)[::-1, 1]
    assert header == ["id", "prediction"] and [row[0] for row in rows] == sample["id"].tolist()
    assert [float(row[1]) for row in rows] == pytest.approx(shares, abs=1e-6)
    assert "id, prediction as the probability of 'yes')" in words
    assert run.network().spec.id_names == ("id",) and "'id (id of gender_submission.csv)'" in words


def test_each_class_or_label_of_the_sample_has_its_column(tmp_path):
    train_rows, test_rows = frames(("C", "CL", "D"))
    sample = test_rows[["id"]].assign(y_D=0, CL=0, y_C=1)
    header, rows, run, words = submitted(folder(tmp_path / "c", train_rows, test_rows, sample), tmp_path)
    shares = run.network().predict_proba(test_rows)[:, [2, 1, 0]]
    assert header == ["id", "y_D", "CL", "y_C"] and "y_D, CL, y_C as probabilities" in words
    assert np.array([row[1:] for row in rows], float) == pytest.approx(shares, abs=1e-6)
    labels = train_rows.drop(columns="y").assign(p=lambda f: (f["x"] > 0) + 0, q=lambda f: (f["c"] == "a") + 0)
    for value, meaning in ((0.5, "probabilities"), (0, "labels")):
        sample = test_rows[["id"]].assign(q=value, p=value)
        header, rows, run, words = submitted(folder(tmp_path / meaning, labels, test_rows, sample), tmp_path)
        assert header == ["id", "q", "p"] and f"q, p as {meaning}" in words
        assert value == 0.5 or {cell for row in rows for cell in row[1:]} <= {"0", "1"}


def test_numbers_are_those_of_predict_and_ids_may_be_dates(tmp_path):
    train_rows, test_rows = frames()
    moments = pd.date_range("2020-01-01", periods=ROWS + TESTED, freq="h").astype(str)
    train_rows = train_rows.assign(id=moments[:ROWS], y=train_rows["x"] * 100, other=train_rows["x"] * 7)
    test_rows = test_rows.assign(id=moments[ROWS:])
    header, rows, run, words = submitted(
        folder(tmp_path / "k", train_rows, test_rows, test_rows[["id"]].assign(y=0)), tmp_path
    )
    assert [float(row[1]) for row in rows] == pytest.approx(run.network().predict(test_rows), rel=1e-6)
    assert [column.name for column in run.network().spec.columns] == ["id", "x", "c"], "hours are inputs, too"
    assert "'other (not in test.csv)'" in words


def test_odd_ids_are_written_unchanged(tmp_path):
    train_rows, test_rows = frames()
    odd = ["a,b", "c\nd", 'e"f', "=g()", "-5", "007", "7.0", *(f"s{i}" for i in range(TESTED - 7))]
    data = folder(tmp_path / "k", train_rows, test_rows.assign(id=odd), pd.DataFrame({"id": odd, "y": 0}))
    assert [row[0] for row in submitted(data, tmp_path)[1]] == odd


@pytest.mark.parametrize(
    ("ids", "sample", "expected", "warning"),
    [
        (range(12), [f"{i}.0" for i in range(11, -1, -1)], [f"{i}.0" for i in range(11, -1, -1)], ""),
        (["same"] * 12, ["same"] * 12, ["same"] * 12, ""),
        (range(12), [3, 1], ["3", "1"], ""),
        (["a", "a", *range(10)], range(12), ["a", "a", *map(str, range(10))], "are not those of the rows, which are"),
        (None, range(12), [str(i) for i in range(12)], "ids are those of sample_submission.csv in its order"),
        (None, range(9), None, "the column 'id' of sample_submission.csv is not in the test table: not followed"),
    ],
)
def test_ids_of_the_sample_are_matched_or_a_warning_is_printed(tmp_path, ids, sample, expected, warning):
    train_rows, test_rows = frames()
    has_ids = ids is not None
    test_rows = test_rows.assign(id=list(ids)) if has_ids else test_rows.drop(columns="id")
    train_rows = train_rows if has_ids else train_rows.drop(columns="id")
    data = folder(tmp_path / "k", train_rows, test_rows, pd.DataFrame({"id": list(sample), "y": 0}))
    header, rows, _, words = submitted(data, tmp_path)
    assert header == (["y"] if expected is None else ["id", "y"]) and (warning or "submission:") in words
    assert len(rows) == 12 if expected is None else [row[0] for row in rows] == expected
    assert bool(warning) == any(line.startswith("warning: the") for line in words.splitlines())


def test_a_sample_of_other_columns_and_odd_cells_are_reported(tmp_path):
    train_rows, test_rows = frames()
    test_rows["x"] = ["many", *test_rows["x"][1:-1].astype(str), "1e9"]
    data = folder(tmp_path / "k", train_rows, test_rows, test_rows[["id"]].assign(a=1, b=2))
    header, rows, _, words = submitted(data, tmp_path)
    assert header == ["id", "y"] and len(rows) == TESTED
    assert (
        "warning: the columns of sample_submission.csv are neither the targets nor the classes: not followed" in words
    )
    assert "warning: 1 row of test.csv with cells that cannot be used, which are predicted as missing, first" in words
    assert "warning: test.csv: values of 'x' far outside of the training range" in words


def test_features_that_the_test_table_lacks_leave_no_submission(tmp_path):
    train_rows, test_rows = frames()
    words = Words()
    data = folder(tmp_path / "k", train_rows, test_rows.drop(columns="c"))
    run = train(str(data), output=tmp_path / "runs", epochs=1, target="y", features="x,c", console=words)
    assert "warning: no submission.csv: cannot encode" in words and not (run.path / "submission.csv").exists()


def test_ids_that_cannot_be_read_leave_no_submission(tmp_path):
    train_rows, test_rows = frames()
    (tmp_path / "k").mkdir()
    train_rows.to_parquet(tmp_path / "k" / "train.parquet")
    test_rows.assign(id=[{"a": 1}] * TESTED).to_parquet(tmp_path / "k" / "test.parquet")
    words = Words()
    train(str(tmp_path / "k"), target="y", id="id", output=tmp_path / "runs", epochs=1, console=words)
    assert open_table_source(str(tmp_path / "k"), ColumnRoles(target=("y",))).to_predict.ids == ()
    assert "warning: no submission.csv: cannot use" in words and "expected strings or numbers, got a dict" in words


def test_outputs_that_are_not_finite_leave_no_submission(tmp_path, monkeypatch):
    train_rows, test_rows = frames()
    words = Words()
    monkeypatch.setattr("skipway.runs.submission.row_outputs", lambda *_: np.full((TESTED, 2), np.nan))
    train(str(folder(tmp_path / "k", train_rows, test_rows)), output=tmp_path / "runs", epochs=1, console=words)
    assert f"warning: no submission.csv: the outputs of the model are not finite for {TESTED} rows" in words


def test_an_archive_and_a_target_without_values_mean_the_same(tmp_path):
    train_rows, test_rows = frames()
    data = folder(tmp_path / "k", train_rows, test_rows.assign(y=None), test_rows[["id"]].assign(y=0.5))
    lines(data / "a_description.csv", "name,meaning", "x,a number", "c,a letter")
    header, rows, _, _ = submitted(data, tmp_path, name="a")
    with zipfile.ZipFile(tmp_path / "k.zip", "w") as archive:
        for path in data.iterdir():
            archive.write(path, path.name)
    assert submitted(tmp_path / "k.zip", tmp_path, name="b")[:2] == (header, rows)


def test_the_target_is_the_column_that_the_test_table_lacks(tmp_path):
    train_rows, test_rows = frames()
    train_rows["w"] = train_rows["x"] * 2
    data = folder(tmp_path / "k", train_rows, test_rows)
    with pytest.raises(InputError, match="train.csv: expected --target, got none. Choose one of 'y', 'w'"):
        open_table_source(str(data))
    test_rows[["id"]].assign(w=0).to_csv(data / "sampleSubmission.csv", index=False)
    assert open_table_source(str(data)).roles == ColumnRoles(target=("w",), id=("id",))
    (data / "test.csv").write_text(train_rows.to_csv(index=False))
    assert open_table_source(str(data), ColumnRoles(target=("y",))).to_predict is None, "a test split"


def test_ids_without_a_sample_are_unique_texts_or_whole_numbers(tmp_path):
    train_rows, test_rows = frames()

    def ids(name, **options):
        data = folder(tmp_path / name, train_rows.assign(**options), test_rows.assign(**options))
        return open_table_source(str(data), ColumnRoles(target=("y",))).to_predict.ids

    assert ids("texts") == ("id",) and ids("shared", id="r") == ()
    train_rows, test_rows = train_rows.assign(id=1.5, n=range(60)), test_rows.assign(id=2.5, n=range(60, 72))
    assert ids("numbers") == ("n",)


def test_samples_are_known_by_their_names():
    names = ["submission.csv", "Sample_Submission.csv", "train.csv", "my submission notes.csv", "submission.txt"]
    assert sample_of(names) == "Sample_Submission.csv" and sample_of(["train.csv", "x_submission.csv"]) is None
    assert sample_of([str(Path("a") / "test.csv")]) is None
