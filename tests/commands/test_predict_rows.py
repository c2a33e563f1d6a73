"""Predictions of table rows: id columns, a probability of each class, and remarks on odd rows."""

import csv
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from small_runs import Words, quick, table
from table_files import homes, lines, written
from task_networks import FRAME, NAMES, table_network

import skipway as sw
from skipway.commands.prediction_output import MAX_SHARES, Prediction, Shares, write_predictions
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError

ROWS = 40
IDS = ["a,b", 'c"d', "e\nf", "g\rh", "=cmd()", "-5", "", "00137", "7.0", "ü"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on homes with two id columns, of texts and of numbers."""
    folder = tmp_path_factory.mktemp("ids")
    frame = homes(ROWS).drop(columns="price")
    frame.insert(2, "row", [f"home {i % 7}" for i in range(ROWS)])
    frame.insert(0, "lot", np.arange(ROWS) * 3)
    return quick(written(folder / "homes.csv", frame), folder, target="dear", id="row,lot", model="resmlp", name="r")


def read(path):
    """The header and the rows of a CSV file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def predicted(run, frame, path, console=None):
    rows = sw.predict(run.path, frame, console=console)
    write_predictions(path, rows, 2)
    header, *cells = read(path)
    return header, cells


def test_id_columns_are_no_inputs_and_stay_with_the_model(run):
    spec = run.network().spec
    assert spec.id_names == ("row", "lot") and {"row", "lot"}.isdisjoint(column.name for column in spec.columns)
    assert run.metrics["data"]["left_out"] == {"row": "--id", "lot": "--id"}
    assert TableSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec
    assert "id: row,lot" in (run.path / "config.yaml").read_text()
    assert "id_names" not in replace(spec, id_names=()).as_dict()


def test_ids_come_first_and_unchanged(run, tmp_path):
    frame = homes(len(IDS))[["garden", "built", "city", "size"]].assign(row=IDS, lot=1_000_000 + np.arange(len(IDS)))
    header, cells = predicted(run, frame, tmp_path / "p.csv")
    assert header == [
        *("row", "lot", "row_2", "status", "label", "probability", "label_2", "probability_2", "reason", "remark"),
        *("p_cheap", "p_dear"),
    ]
    assert [row[0] for row in cells] == IDS and [row[1] for row in cells] == [f"10000{i:02}" for i in range(len(IDS))]
    assert cells[3][2] == "row 3"


def test_ids_of_files_keep_their_digits(run, tmp_path):
    path = lines(tmp_path / "n.csv", "lot,size,city,garden,built,row", "007,50,Ulm,yes,1950-01-15,9007199254740993.0")
    (prediction,) = sw.predict(run.path, path)
    assert prediction.ids == (("row", "9007199254740993.0"), ("lot", "007"))
    markers = lines(
        tmp_path / "m.csv", "lot,size,city,garden,built,row", *(f"{m},5,Ulm,no,1950-01-15,NA" for m in ("?", "NaN"))
    )
    assert [prediction.ids for prediction in sw.predict(run.path, markers)] == [
        (("row", "NA"), ("lot", "?")),
        (("row", "NA"), ("lot", "NaN")),
    ]
    frame = pd.read_csv(path).assign(row=np.array([2**63 - 1]), lot=[12.0])
    frame.to_parquet(tmp_path / "n.parquet")
    for source in (frame, tmp_path / "n.parquet"):
        (prediction,) = sw.predict(run.path, source)
        assert prediction.ids == (("row", "9223372036854775807"), ("lot", "12"))


def test_a_table_without_the_ids_is_predicted_with_a_warning(run, tmp_path):
    words, frame = Words(), homes(6)
    header, cells = predicted(run, frame.assign(lot=range(6)), tmp_path / "p.csv", words)
    assert header[:3] == ["lot", "row", "status"] and "warning: no column 'row': predictions lack these ids" in words
    both = sw.predict(run.path, [frame, frame.assign(lot=range(6), row="x")])
    write_predictions(tmp_path / "both.csv", both, 1)
    assert [row[:2] for row in read(tmp_path / "both.csv")[6:8]] == [["", ""], ["x", "0"]]


def test_each_class_has_its_probability(run, tmp_path):
    rows = sw.predict(run.path, homes(6), top=1)
    write_predictions(tmp_path / "p.csv", rows, 1)
    for row, cells in zip(rows, table(tmp_path / "p.csv"), strict=True):
        shares = row.shares.as_dict()
        assert sum(shares.values()) == pytest.approx(1) and shares[row.top[0][0]] == row.top[0][1]
        assert {name: float(cells[f"p_{name}"]) for name in shares} == pytest.approx(shares, abs=1e-6)
    assert rows == sw.predict(run.path, homes(6), top=1) and rows[0] != rows[1]


def test_labels_have_a_probability_each_and_numbers_none(tmp_path):
    rows = sw.predict(table_network("labels"), FRAME)
    assert tuple(rows[0].shares.as_dict()) == NAMES and sw.predict(table_network("number"), FRAME)[0].shares is None


def test_many_classes_have_a_column_each_up_to_a_limit(tmp_path):
    names = tuple(f"c{i}" for i in range(MAX_SHARES))
    one = Prediction("a", (("c0", 0.5),), shares=Shares(names, np.full(MAX_SHARES, 1 / MAX_SHARES, np.float32)))
    write_predictions(tmp_path / "p.csv", [one, Prediction("b", (), "no image")], 1)
    header, first, second = read(tmp_path / "p.csv")
    assert header[-1] == f"p_c{MAX_SHARES - 1}" and first[-1] == "0.001" and set(second[4:-1]) == {"no image", ""}


def test_each_row_has_remarks_on_its_odd_cells(run, tmp_path):
    frame = homes(3).drop(columns="price").astype(object).fillna({"size": 50, "city": "Ulm"})
    frame.loc[1, "city"], frame.loc[2, "size"] = "Mars", "many"
    header, cells = predicted(run, frame, tmp_path / "p.csv")
    of = {name: header.index(name) for name in ("status", "reason", "remark")}
    assert [row[of["remark"]] for row in cells] == ["", "column 'city': 'Mars' rarely or never seen in training", ""]
    assert cells[2][of["status"]] == "error" and cells[2][of["reason"]].startswith("column 'size': expected a number")


def test_an_id_column_exists_and_has_no_other_role(tmp_path):
    path = written(tmp_path / "homes.csv", homes(ROWS))
    with pytest.raises(InputError, match="cannot find the column 'nmae' in .*homes.csv: expected one of 'size'"):
        quick(path, tmp_path, target="price", id="nmae")
    with pytest.raises(InputError, match="cannot use --id with digits: expected a table of rows, got images, whose"):
        quick("digits", tmp_path, id="name")
