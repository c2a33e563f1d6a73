"""Missing markers: texts of the user that mean a missing value."""

import numpy as np
import pandas as pd
import pytest
from table_files import lines

from skipway.data.sources.read_table import frame_table, read_table
from skipway.data.tables.columns import Column
from skipway.data.tables.missing_markers import mark_missing
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError


def test_markers_are_missing_in_all_columns_or_in_one(tmp_path):
    path = lines(tmp_path / "t.csv", "a,b,c,zip", "-999,0,x,007", "-999.0,5,None yet,7", "3,-999,NONE YET,000")
    table = read_table(path)
    marked, unused = mark_missing(table, ("-999", "b=0", "none yet", "gone", "q=3"), table.columns)
    assert marked.columns["a"].tolist() == [None, None, "3"] and marked.columns["b"].tolist() == [None, "5", None]
    assert marked.columns["c"].tolist() == ["x", None, None] and unused == {"gone", "q=3"}
    assert np.isnan(marked.columns["a"].missing()[:2]).sum() == 0 and marked.columns["a"].missing().tolist()[:2] == [
        1,
        1,
    ]
    assert table.columns["a"].tolist()[0] == "-999", "the table itself is unchanged"


def test_a_number_marks_equal_numbers_but_no_code():
    frame = frame_table(pd.DataFrame({"n": [7.0, 8.0], "text": ["007", "7.0"], "plain": ["a", "7"]}))
    marked, _ = mark_missing(frame, ("7",), frame.columns)
    assert np.isnan(marked.columns["n"]).tolist() == [True, False]
    assert marked.columns["text"].tolist() == ["007", None] and marked.columns["plain"].tolist() == ["a", None]
    assert mark_missing(frame, ("7",), ["plain"])[0].columns["n"].tolist() == [7, 8]


def test_the_name_of_a_column_may_have_an_equals_sign():
    frame = frame_table(pd.DataFrame({"a=b": ["1", "2"], "c": ["a=b=1", "1"]}))
    marked, unused = mark_missing(frame, ("a=b=1", "b=2"), frame.columns)
    assert marked.columns["a=b"].tolist() == [None, "2"] and marked.columns["c"].tolist() == ["a=b=1", "1"]
    assert unused == {"b=2"}


def test_a_spec_stores_markers_and_uses_them():
    spec = TableSpec((Column("n", "number", indicator=True),), ("y",), task="regression", missing=("-1", "n=0"))
    again = TableSpec.from_dict(spec.as_dict())
    assert (
        again == spec
        and again.missing == ("-1", "n=0")
        and repr(spec) == repr(TableSpec(spec.columns, ("y",), task="regression"))
    )
    encoded = again.encode(frame_table(pd.DataFrame({"n": ["-1.0", "0", "2"]})))
    assert encoded.x[:, 1].tolist() == [1, 1, 0] and encoded.missing["n"] == 2
    assert "missing" not in TableSpec(spec.columns, ("y",), task="regression").as_dict()
    with pytest.raises(InputError, match="expected missing markers as strings"):
        TableSpec(spec.columns, ("y",), task="regression", missing=(3,))
