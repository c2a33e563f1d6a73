"""Odd cells of a table: counts of each column, and remarks on each row."""

import json

import numpy as np
import pandas as pd

from skipway.data.sources.read_table import frame_table
from skipway.data.tables.columns import Column, column_to_dict, columns_from_dicts, fit_column
from skipway.data.tables.table_spec import TableSpec

TRAIN = pd.DataFrame(
    {
        "size": np.linspace(500, 9000, 40),
        "age": [*np.linspace(1, 60, 39), np.nan],
        "city": ["Bonn", "Ulm"] * 20,
        "built": [f"19{year}-05-01" for year in range(50, 90)],
        "garden": ["yes", "no"] * 20,
    }
)
KINDS = {"size": "number", "age": "number", "city": "category", "built": "date", "garden": "boolean"}


def spec():
    cells = frame_table(TRAIN).columns
    return TableSpec(
        tuple(fit_column(name, kind, cells[name])[0] for name, kind in KINDS.items()), ("price",), "regression"
    )


def encoded(model=None, **cells):
    frame = TRAIN.head(3).astype(object)
    for name, (row, value) in cells.items():
        frame.loc[row, name] = value
    return (model or spec()).encode(frame_table(frame))


def test_rows_as_in_training_have_no_remark():
    assert spec().encode(frame_table(TRAIN)).row_remarks() == {}


def test_each_odd_cell_of_a_row_is_named():
    result = encoded(size=(0, 80_000), age=(1, None), city=(0, "Mars"), built=(2, "2099-01-01"), garden=(1, None))
    assert result.row_remarks() == {
        0: "column 'size': '80000' is far outside of the training range 500 to 9000; "
        "column 'city': 'Mars' rarely or never seen in training",
        1: "column 'garden': missing, but never in training",
        2: "column 'built': '2099-01-01' is far outside of the training range 1950-05-01 to 1989-05-01",
    }
    lines = result.remarks()
    assert "values of 'size' far outside of the training range 500 to 9000, such as '80000': 1" in lines
    assert "values of 'city' rarely or never seen in training: 1" in lines
    assert "missing values of 'age': 1" in lines and "missing values of 'garden': 1" in lines
    assert encoded(size=(0, 12_000)).row_remarks() == {}, "outside of the range, but not far"


def test_markers_bounds_and_further_errors_are_remarks():
    result = encoded(size=(0, "<5"), age=(1, "unknown"), city=(2, None))
    assert result.row_remarks() == {
        0: "column 'size': '<5' read as its bound",
        1: "column 'age': 'unknown' read as missing",
        2: "column 'city': missing, but never in training",
    }
    twice = encoded(size=(1, "many"), age=(1, "few"))
    assert twice.errors() == {1: "column 'size': expected a number, got 'many'"}
    assert twice.row_remarks() == {1: "column 'age': expected a number, got 'few'"}


def test_a_row_has_at_most_five_remarks():
    columns = tuple(Column(f"c{i}", "category", categories=("a",)) for i in range(8))
    model = TableSpec(columns, ("price",), "regression")
    table = frame_table(pd.DataFrame({f"c{i}": ["a", "x\ny" * 50] for i in range(8)}))
    (remark,) = model.encode(table).row_remarks().values()
    assert remark.count("rarely or never seen") == 5 and remark.endswith("; and 3 more") and "\n" not in remark


def test_models_of_earlier_versions_have_the_remarks_that_they_can():
    dictionary = json.loads(json.dumps(spec().as_dict()))
    assert TableSpec.from_dict(dictionary) == spec() and repr(TableSpec.from_dict(dictionary)) == repr(spec())
    for column in dictionary["columns"]:
        del column["seen"]
    older = TableSpec.from_dict(dictionary)
    result = encoded(older, size=(0, 80_000), city=(1, "Mars"), garden=(1, None))
    assert result.row_remarks() == {1: "column 'city': 'Mars' rarely or never seen in training"}
    assert np.array_equal(result.x, encoded(size=(0, 80_000), city=(1, "Mars"), garden=(1, None)).x)
    assert repr(older) == repr(spec()), "fingerprints of earlier runs"


def test_what_a_column_holds_is_stored():
    columns = spec().columns
    assert columns_from_dicts(map(column_to_dict, columns)) == columns
    assert columns[0].seen.span == (500, 9000) and columns[1].seen.has_missing and columns[2].seen.span is None
