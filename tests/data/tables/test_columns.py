import json

import numpy as np
import pandas as pd
import pyarrow
import pytest
from pyarrow import parquet
from table_files import homes, lines

from skipway.data.sources.read_table import bundled_table, frame_table, read_table
from skipway.data.sources.table import Table
from skipway.data.tables.columns import MAX_CATEGORIES, Column, factorize_texts, fit_column, infer_kind, read_numbers
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError


def texts(*values):
    column = np.empty(len(values), object)
    column[:] = values
    return column


def table(**columns):
    return Table("t.csv", columns, lambda i: f"t.csv:{i + 2}")


AS_CATEGORIES = "treated as categories. See --missing if they mean a missing value"


@pytest.mark.parametrize(
    "values, kind, remark",
    [
        (["1", "2.5", "-3e4", ""], "number", ""),
        (["1,5", "2,5", "x"], "category", f"67% numbers, but also texts such as 'x' (t.csv:4): {AS_CATEGORIES}"),
        (["2024-01-31", "2024-02-01", "x"], "category", f"67% dates, but also texts such as 'x': {AS_CATEGORIES}"),
        (["2024-01-31", "y", "x"], "category", ""),
        (["yes", "no", "Yes", ""], "boolean", ""),
        (["true", "false"], "boolean", ""),
        (["2024-01-31", "2024-02-01 12:30", "NA"], "date", ""),
        (["a", "b", "a"], "category", ""),
        (["7", "7"], "", "constant"),
        (["x", "x"], "", "constant"),
        (["x", "x", ""], "category", ""),
        (["", "NA", "nan"], "", "empty"),
        ([f"u{i}" for i in range(20)], "", "identifier: all values differ"),
        ([str(i) for i in range(1, 21)], "", "row counter"),
        ([str(i * i) for i in range(20)], "number", ""),
    ],
)
def test_kinds_are_read_off_the_values(values, kind, remark):
    assert infer_kind("c", table(c=texts(*values))) == (kind, remark)


def test_numbers_of_typed_sources_have_kinds_too():
    assert infer_kind("c", table(c=np.array([1.0, np.nan, 2.5]))) == ("number", "")
    assert infer_kind("c", table(c=np.array([np.nan, np.nan]))) == ("", "empty")
    assert infer_kind("c", table(c=np.arange(30.0))) == ("", "row counter")


@pytest.mark.parametrize(
    "value, said",
    [
        ("abc", "expected a number, got 'abc'"),
        ("inf", "expected a finite number up to 1e+300, got 'inf'"),
        ("1e400", "expected a finite number up to 1e+300, got '1e400'"),
        ("1,5", "expected a decimal point as in other rows, got '1,5' (write 1.5)"),
        ("1_000", "expected a number, got '1_000'"),
        ("١٢", "expected a number"),
    ],
)
def test_text_in_a_number_column_is_named(value, said):
    values, problems = read_numbers(texts("1.5", value, "", "2"), "number", "c")
    assert [(p.row, p.column) for p in problems] == [(1, "c")] and said in problems[0].why
    assert np.isnan(values[1]) and np.isnan(values[2]) and values[3] == 2


def test_decimal_commas_large_integers_dates_and_truths_are_read():
    assert read_numbers(texts("1,5", "2", "-0,25"), "number", "c")[0].tolist() == [1.5, 2, -0.25]
    assert read_numbers(texts("99999999999999999999", "1."), "number", "c")[0].tolist() == [1e20, 1]
    values, problems = read_numbers(texts("1970-01-02", "1970-01-01T12:00", "1970-01-01 12:00+12:00"), "date", "c")
    assert values.tolist() == [1, 0.5, 0] and not problems
    assert "expected a date such as 2024-12-31" in read_numbers(texts("2024-13-45"), "date", "c")[1][0].why
    assert read_numbers(texts("yes", "No", "1"), "boolean", "c")[0].tolist() == [1, 0, 1]
    assert "expected true or false" in read_numbers(texts("maybe"), "boolean", "c")[1][0].why
    assert "expected a finite number" in read_numbers(np.array([1, np.inf]), "number", "c")[1][0].why


def test_a_comma_before_three_digits_separates_thousands_unless_semicolons_separate_the_columns(tmp_path):
    path = lines(tmp_path / "t.csv", "a,b", '"1,234",1', '"2,500",3')
    assert infer_kind("a", read_table(path)) == ("number", "")
    assert fit_column("a", "number", read_table(path).columns["a"])[0].center == 1867
    path = lines(tmp_path / "t.csv", "a;b", "1,234;1", "2,500;3")
    assert infer_kind("a", read_table(path)) == ("number", "'1,234' is read as 1.234, not as 1234")


def test_categories_have_slots_for_the_unseen_the_missing_and_each_that_is_seen_twice():
    column, said = fit_column("c", "category", texts("b", "a", "b", None, "a", "rare", "NA"))
    assert column.categories == ("a", "b") and column.num_slots == 4 and said == {"rare": 1, "rare_cells": 1}
    assert column.slot_indices(texts("a", "b", "rare", "zebra", None, "")).tolist() == [2, 3, 0, 0, 1, 1]
    many = texts(*[f"c{i}" for i in range(MAX_CATEGORIES + 50)] * 2)
    assert len(fit_column("c", "category", many)[0].categories) == MAX_CATEGORIES
    numbers, _ = fit_column("c", "category", np.array([1.0, 2.5, 1.0, 2.5]))
    assert numbers.categories == ("1", "2.5") and numbers.slot_indices(texts("1", "2.5")).tolist() == [2, 3]


def test_numbers_are_centred_scaled_and_bent_and_holes_become_the_centre():
    raw = np.append(np.arange(101.0), np.nan)
    column, said = fit_column("c", "number", raw)
    assert column.center == 50 and column.indicator and said == {"missing": 1}
    assert column.scaled(np.array([50, np.nan])).tolist() == [0, 0]
    assert 0 < column.scaled(np.array([1e12]))[0] <= 3 and column.scaled(np.array([1e300]))[0] <= 3
    assert fit_column("c", "number", np.full(5, 7.0))[0].scale == 1
    assert fit_column("c", "number", np.array([0.0] * 9 + [1.0]))[0].scale > 0
    assert fit_column("c", "number", np.full(3, np.nan))[0].indicator
    assert np.isfinite(fit_column("c", "number", np.array([-1e300, 0, 1e300, 1e300]))[0].scale)
    assert factorize_texts(texts("a", None, "NA", "a"))[0].tolist() == [0, -1, -1, 0]


def spec(**changes):
    columns = (
        Column("size", "number", 50, 20, True),
        Column("city", "category", categories=("Bonn", "Ulm")),
        Column("flag", "boolean"),
    )
    usual = {"columns": columns, "target_names": ("y",), "task": "classification", "class_names": ("a", "b")}
    return TableSpec(**usual | changes)


def test_a_spec_encodes_by_name_counts_what_it_fills_in_and_survives_json():
    frame = pd.DataFrame({"flag": [True, False], "extra": [1, 2], "city": ["Ulm", "Mars"], "size": [np.nan, 70]})
    encoded = spec().encode(frame_table(frame))
    assert spec().input_shape == (4,) and spec().categories == (4,)
    expected = [[0, 0.9487, 1, 3], [0.9487, 0, 0, 0]]  # size, flag, indicator of size, city
    assert np.allclose(encoded.x, expected, atol=1e-3)
    assert encoded.unseen == {"city": 1} and encoded.missing == {"size": 1} and not encoded.problems
    assert TableSpec.from_dict(json.loads(json.dumps(spec().as_dict()))) == spec()
    with pytest.raises(
        InputError, match="cannot encode the DataFrame: expected 3 columns as in training, got all but 'city'. Add"
    ):
        spec().encode(frame_table(frame.drop(columns="city")))
    frame["size"] = ["x", "70"]
    with pytest.raises(
        InputError, match="row 0, column 'size': expected a number, got 'x'. Correct the cell, or leave it empty"
    ):
        spec().encode_strict(frame_table(frame))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"task": "guess"}, "expected task to be one of classification, multilabel, regression, got 'guess'"),
        ({"columns": ()}, "expected 1 to 10,000 columns with unique names, got 0 columns"),
        (
            {"columns": (Column("a", "text"),)},
            "expected columns of the kinds number, boolean, date, category, got 'text'",
        ),
        (
            {"columns": (Column("a", "number", scale=0),)},
            "expected a finite center and a positive, finite scale, got 0.0 and 0. Fit",
        ),
        ({"class_names": ()}, "expected 1 to 100,000 class names, got 0. Pass one name per class"),
        ({"class_names": ("a", "a")}, "expected unique class names, got duplicates. Rename"),
        ({"class_names": ("a", "b" * 2000)}, "expected class names of at most 1024 bytes, got b+... Shorten"),
        (
            {"columns": (Column("a", "category", categories=tuple(map(str, range(100_001)))),)},
            "expected at most 100,000 categories. Use --ignore",
        ),
    ],
)
def test_a_spec_that_means_nothing_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        spec(**change)


def test_a_files_spec_is_checked():
    with pytest.raises(
        InputError, match="a TableSpec: expected the fields class_names, columns, target_names, task, got columns. Use"
    ):
        TableSpec.from_dict({"columns": []})
    broken = spec().as_dict() | {"columns": [{"name": "a"}]}
    with pytest.raises(InputError, match="a TableSpec: expected valid columns and numbers, got"):
        TableSpec.from_dict(broken)


def test_frames_become_numbers_and_text():
    frame = homes(6).assign(
        flag=[True, False, None, True, True, False],
        when=pd.to_datetime(["2024-01-01"] * 5 + [None]),
        kind=pd.Categorical(["a", "b", None, "a", "a", "b"]),
        mixed=[1, "x", None, 2.5, "y", 1],
        whole=pd.array([1, None, 3, 4, 5, 6], dtype="Int64"),
    )
    columns = frame_table(frame).columns
    assert columns["size"].dtype == np.float64 and np.isnan(columns["whole"][1])
    assert columns["flag"].tolist()[:3] == ["True", "False", None]
    assert columns["when"][0] == "2024-01-01T00:00:00" and columns["when"][5] is None
    assert columns["kind"].tolist() == ["a", "b", None, "a", "a", "b"] and columns["mixed"][3] == "2.5"
    with pytest.raises(InputError, match="column 'a': expected real numbers, got complex ones"):
        frame_table(pd.DataFrame({"a": [1j]})).columns["a"].tolist()
    with pytest.raises(InputError, match="column 'a': expected strings or numbers, got a dict. Split it"):
        frame_table(pd.DataFrame({"a": [{}, {}]})).columns["a"].tolist()


def test_whole_numbers_of_any_size_are_read():
    cells = frame_table(pd.DataFrame({"a": [10**30, 10**400, -(10**400), None]}, dtype=object)).columns["a"]
    values, problems = read_numbers(cells, "number", "a")
    assert values[0] == 1e30 and np.isnan(values[1:]).all()
    assert [(problem.row, problem.why) for problem in problems] == [
        (1, "expected a finite number up to 1e+300, got 'inf'"),
        (2, "expected a finite number up to 1e+300, got '-inf'"),
    ]
    assert infer_kind("a", Table("t", {"a": cells}, str))[0] == "number"


def test_parquet_is_read_as_csv_is(tmp_path):
    frame = homes(30)
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    one, two = read_table(tmp_path / "t.parquet"), read_table(tmp_path / "t.csv")
    for name in frame.columns:
        kind, _ = infer_kind(name, two)
        assert infer_kind(name, one)[0] == kind
        left, right = (fit_column(name, kind, t.columns[name])[0] for t in (one, two))
        assert left == right
    frame.head(0).to_parquet(tmp_path / "e.parquet")
    with pytest.raises(InputError, match="e.parquet: expected rows, got only column names. Add a row"):
        read_table(tmp_path / "e.parquet")


def write_parquet(path, names=("a", "kind"), metadata=None, texts=b"xyz"):
    offsets = pyarrow.py_buffer(np.arange(4, dtype=np.int32).tobytes())
    kinds = pyarrow.Array.from_buffers(pyarrow.utf8(), 3, [None, offsets, pyarrow.py_buffer(texts)])
    table = pyarrow.table([pyarrow.array([1.0, 2.0, 3.0]), kinds], names=list(names))
    parquet.write_table(table.replace_schema_metadata(metadata), path, compression="none")
    return path


@pytest.mark.parametrize("note", [b"{", b"[]", b"\xff", b'{"index_columns": ["b"], "columns": 3}'])
def test_damaged_notes_of_pandas_do_not_matter(tmp_path, note):
    found = read_table(write_parquet(tmp_path / "t.parquet", metadata={b"pandas": note}))
    assert list(found.columns) == ["a", "kind"] and found.columns["kind"].tolist() == ["x", "y", "z"]


def test_an_index_without_a_name_is_no_column_and_one_with_a_name_is(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0]}, index=[5, 9])
    frame.to_parquet(tmp_path / "t.parquet")
    frame.rename_axis("day").to_parquet(tmp_path / "named.parquet")
    assert list(read_table(tmp_path / "t.parquet").columns) == ["a"]
    assert read_table(tmp_path / "named.parquet").columns["day"].tolist() == [5, 9]


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path):
    path = write_parquet(tmp_path / "names.parquet", metadata={b"k": b"v"})
    path.write_bytes(path.read_bytes().replace(b"kind", b"\xff\xffnd"))
    for file in (path, write_parquet(tmp_path / "values.parquet", texts=b"x\xffz")):
        with pytest.raises(InputError, match=f"cannot read the parquet file .*{file.name}: .*Download it again"):
            read_table(file)


@pytest.mark.parametrize("name, rows", [("wine", 178), ("breast_cancer", 569), ("diabetes", 442)])
def test_bundled_tables(name, rows):
    found, target, task = bundled_table(name)
    assert len(found) == rows and target == "target" and task == ("regression" if rows == 442 else "classification")
