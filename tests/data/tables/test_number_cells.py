"""How the numbers of a column are written: inference over the whole column, and cells that are read in its style."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_files import lines

from skipway.data.column_roles import ColumnRoles
from skipway.data.folds import Fold
from skipway.data.sources.csv_parser import read_text
from skipway.data.sources.read_table import frame_table, read_table
from skipway.data.sources.table import Table
from skipway.data.sources.text_column import TextColumn
from skipway.data.tables.column_facts import describe_reading
from skipway.data.tables.columns import Column, column_to_dict, fit_column, infer_kind
from skipway.data.tables.dataset import build_table_dataset, describe_table, describe_target, encode_labeled
from skipway.data.tables.number_cells import CellRole, explain_cell, read_texts
from skipway.data.tables.number_columns import infer_column_style
from skipway.data.tables.number_inference import inspect_texts
from skipway.data.tables.number_style import NumberStyle, style_from_dict, style_to_dict
from skipway.data.tables.table_source import TableSource, open_table_source
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError

UNITS = [("", ""), ("$", ""), ("", "€"), ("USD", ""), ("", "%"), ("", "kg"), ("", "sq ft"), ("£", "k"), ("", "km/h")]
STYLES = [
    NumberStyle(decimal, thousands, prefix, suffix, parentheses)
    for decimal in ("", ".", ",")
    for thousands in ("", ",", ".", " ", "'")
    for prefix, suffix in UNITS
    for parentheses in (False, True)
    if not decimal or decimal != thousands
]


def inspect(*texts, **options):
    return inspect_texts(list(texts), np.ones(len(texts), np.int64), **options)


def read(text, style):
    values, roles = read_texts([text], style)
    return values[0], CellRole(int(roles[0]))


# Writing and reading


@settings(max_examples=400)
@given(style=st.sampled_from(STYLES), value=st.floats(-1e300, 1e300) | st.integers(-(10**15), 10**15).map(float))
def test_what_is_written_in_a_style_is_read_exactly(style, value):
    assert read(style.write(value), style) == (value, CellRole.NUMBER)
    assert style_from_dict(json.loads(json.dumps(style_to_dict(style)))) == style


@settings(max_examples=100)
@given(style=st.sampled_from([style for style in STYLES if style.decimal]), seed=st.integers(0, 1000))
def test_the_style_of_a_column_is_inferred_from_its_cells(style, seed):
    values = np.random.default_rng(seed).normal(size=50) * 10.0 ** np.arange(50).clip(0, 6) + 0.25
    cells = inspect(*map(style.write, values))
    assert cells.values.tolist() == values.tolist() and not cells.remarks
    assert cells.style == style or not (values < 0).any()


@pytest.mark.parametrize("decimal, thousands", [(".", ","), (",", "."), (",", " "), (".", "'")])
def test_pandas_reads_the_same_numbers(tmp_path, decimal, thousands):
    values = np.random.default_rng(0).lognormal(7, 2, 200).round(2)
    style = NumberStyle(decimal, thousands)
    (tmp_path / "t.csv").write_text(
        "\n".join(["a|b", *(f"{style.write(value)}|{i}" for i, value in enumerate(values))])
    )
    column = read_table(tmp_path / "t.csv").columns["a"]
    expected = pd.read_csv(tmp_path / "t.csv", sep="|", decimal=decimal, thousands=thousands)["a"]
    found = fit_column("a", "number", column)[0]
    assert found.style == style and np.array_equal(found.read_numbers(column)[0], expected.to_numpy())


@pytest.mark.parametrize(
    "texts, values, style, remark",
    [
        (["500", "-9000", "+7"], [500, -9000, 7], NumberStyle(), ""),
        (["1.5", "2", "8.000"], [1.5, 2, 8], NumberStyle("."), ""),
        (["1,5", "2", "8,000"], [1.5, 2, 8], NumberStyle(","), ""),
        (["7,655,767", "12"], [7655767, 12], NumberStyle("", ","), ""),
        (["1,234", "567"], [1234, 567], NumberStyle("", ","), ""),
        (["12,34,567.5", "1,000"], [1234567.5, 1000], NumberStyle(".", ","), ""),
        (["1.5", "1,234"], [1.5, 1234], NumberStyle(".", ","), ""),
        (["1 234,5", "1,234"], [1234.5, 1.234], NumberStyle(",", " "), ""),
        (["1\u00a0234", "1\u202f234", "1\u2009234"], [1234] * 3, NumberStyle("", " "), ""),
        (["1'234.5", "1\u2019234"], [1234.5, 1234], NumberStyle(".", "'"), ""),
        (["\u2212300", "5"], [-300, 5], NumberStyle(), ""),
        (["(300)", "5"], [-300, 5], NumberStyle(parentheses=True), ""),
        (["$1,234.50", "-$5", "$(300)"], [1234.5, -5, -300], NumberStyle(".", ",", "$", "", True), ""),
        (["5 €", "€7,25", "1.000,5€"], [5, 7.25, 1000.5], NumberStyle(",", ".", "", "€"), ""),
        (["USD 5", "12 USD"], [5, 12], NumberStyle(prefix="USD"), ""),
        (["£5", "¥6"], [5, np.nan], NumberStyle(prefix="£"), "no numbers, read as missing if at most 5%: 1 of 2 cells"),
        (["5", "6", "$7"], [5, 6, 7], NumberStyle(prefix="$"), "read in '$': 2 cells without a unit"),
        (["50%", "7.5 %"], [50, 7.5], NumberStyle(".", suffix="%"), ""),
        (["5 kg", "7 KG", "8"], [5, 7, 8], NumberStyle(suffix="kg"), "read in 'kg': 1 cell without a unit"),
        (["1,200 sq. ft.", "900 sq. ft."], [1200, 900], NumberStyle("", ",", "", "sq. ft."), ""),
        (["5 m2", "7.5 m2"], [5, 7.5], NumberStyle(".", suffix="m2"), ""),
        (["5k", "3M"], [5, np.nan], NumberStyle(suffix="k"), "no numbers, read as missing"),
        (["1e5", "2.5E-3"], [1e5, 0.0025], NumberStyle("."), ""),
        (["22.201", "377"], [22.201, 377], NumberStyle("."), "'22.201' is read as 22.201, not as 22201"),
        (["-1.234", "5,678"], [-1.234, 5678], NumberStyle(".", ","), "'-1.234' is read as -1.234, not as -1234"),
        (["<5", "> 100", "≥7", "6"], [5, 100, 7, 6], NumberStyle(), "read as their bound: 3 of 4 cells, such as '<5'"),
        (["1.2.3", "0,123,456", "10:30"], [np.nan] * 3, NumberStyle(), "no numbers"),
    ],
)
def test_styles(texts, values, style, remark):
    cells = inspect(*texts)
    assert cells.style == style and np.array_equal(cells.values, values, equal_nan=True)
    assert "; ".join(cells.remarks).startswith(remark) and bool(remark) == bool(cells.remarks)


def test_evidence_of_the_file_decides_what_the_column_leaves_open():
    assert inspect("22.201", "377", file_decimal=lambda: ",").values.tolist() == [22201, 377]
    assert inspect("1,234", "5", file_decimal=lambda: ",").values.tolist() == [1.234, 5]
    assert inspect("1,234", "5", has_commas=True, file_decimal=lambda: ".").values.tolist() == [1234, 5]
    assert inspect("1.234", "5,678", file_decimal=lambda: ",").values.tolist() == [1234, 5.678]
    assumed = inspect("1,234", "5", has_commas=True)
    assert assumed.values.tolist() == [1.234, 5] and assumed.remarks == ["'1,234' is read as 1.234, not as 1234"]


@pytest.mark.parametrize(
    "marker",
    "NA N.A. n/a nan null None unknown -- - — . ? #DIV/0! #N/A #VALUE! #REF! (blank) missing".split(),
)
def test_texts_that_mean_missing_values(marker):
    values, role = read(marker, NumberStyle())
    assert np.isnan(values) and role == CellRole.MISSING


# Cells in a style


@pytest.mark.parametrize(
    "style, text, value",
    [
        (NumberStyle(), "8,000", 8000),
        (NumberStyle(), "8,000.5", 8000.5),
        (NumberStyle(), "8 000", 8000),
        (NumberStyle(), "8.5", 8.5),
        (NumberStyle(), "1e3", 1000),
        (NumberStyle("."), "8.000", 8),
        (NumberStyle("."), "8,000,000", 8_000_000),
        (NumberStyle(","), "8,000", 8),
        (NumberStyle("", ","), "8,000", 8000),
        (NumberStyle("", "."), "8.000", 8000),
        (NumberStyle(",", "."), "8.000", 8000),
        (NumberStyle(prefix="$"), "8,000", 8000),
    ],
)
def test_cells_with_one_meaning_in_the_style_of_the_column(style, text, value):
    assert read(text, style) == (value, CellRole.NUMBER)


@pytest.mark.parametrize(
    "style, text, why",
    [
        (NumberStyle(), "8.000", "expected a number with one meaning, got '8.000' (write 8000 or 8)"),
        (NumberStyle(), "8.125", "expected a number with one meaning, got '8.125' (write 8125 or 8.1250)"),
        (NumberStyle("."), "8,000", "expected a number with one meaning, got '8,000' (write 8000 or 8)"),
        (NumberStyle(","), "-8.250", "expected a number with one meaning, got '-8.250' (write -8250 or -8,25)"),
        (NumberStyle("", ","), "8.000", "expected a number with one meaning, got '8.000' (write 8,000 or 8)"),
        (NumberStyle(), "8,5", "expected a decimal point as in other rows, got '8,5' (write 8.5)"),
        (NumberStyle(",", "."), "8.5", "expected a decimal comma as in other rows, got '8.5' (write 8,5)"),
        (NumberStyle(".", ","), "8 000", "expected a number written as in other rows, got '8 000' (write 8,000)"),
        (NumberStyle("."), "1.000,5", "expected a number written as in other rows, got '1.000,5' (write 1000.5)"),
        (NumberStyle(), "(300)", "expected a number written as in other rows, got '(300)' (write -300)"),
        (NumberStyle(), "$8", "expected a number without a unit as in other rows, got '$8' (remove '$')"),
        (NumberStyle(suffix="kg"), "8 lb", "expected the unit 'kg' as in other rows, got '8 lb' (convert it)"),
        (NumberStyle(suffix="%"), "0.5", "expected a percentage, got '0.5' (write it with %)"),
        (NumberStyle(), "1e301", "expected a finite number up to 1e+300, got '1e301'"),
        (NumberStyle(), "-inf", "expected a finite number up to 1e+300, got '-inf'"),
        (NumberStyle(), "oops", "expected a number, got 'oops'"),
    ],
)
def test_cells_that_contradict_the_style_are_explained(style, text, why):
    value, role = read(text, style)
    assert np.isnan(value) and role in (CellRole.MISWRITTEN, CellRole.TEXT)
    assert explain_cell(text, style) == why


def test_a_style_that_means_nothing_is_refused():
    for values in ({"decimal": ";"}, {"thousands": "-"}, {"decimal": ",", "thousands": ","}, {"prefix": 3}):
        with pytest.raises(
            InputError, match="cannot create a NumberStyle: expected different marks, a decimal point or"
        ):
            style_from_dict(values)


# Columns of tables


def area_file(path, separator=";"):
    """Areas with thousands and prices with decimal commas, as a spreadsheet with a German locale writes them."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"area": rng.integers(100, 40_000, 200), "price": rng.uniform(1, 900, 200).round(2)})
    style = NumberStyle(",", ".")
    cells = [f"{style.write(area)}{separator}{style.write(price)}" for area, price in frame.to_numpy()]
    return frame, lines(path, f"area{separator}price", *cells)


@pytest.mark.parametrize("separator", [";", "|"])
def test_three_digits_behind_a_point_are_thousands_in_a_file_with_decimal_commas(tmp_path, separator):
    frame, path = area_file(tmp_path / "t.csv", separator)
    table = read_table(path)
    for name in frame:
        assert infer_kind(name, table) == ("number", "")
        column = fit_column(name, "number", table.columns[name], infer_column_style(table.columns[name], table))[0]
        assert column.read_numbers(table.columns[name])[0].tolist() == frame[name].tolist()
    assert column.style == NumberStyle(",")


def test_the_fast_reader_leaves_points_that_may_separate_thousands_as_text(tmp_path):
    path = lines(tmp_path / "t.csv", "a,b,c,d", "22.201,1.5,8.000,3", "377,22.201,5,", ",8.000,12,7")
    columns = read_text(path).columns
    assert [column.numbers is None for column in columns.values()] == [True, False, True, False]
    for name, column in read_text(path, plain=False).columns.items():
        assert fit_column(name, "number", column) == fit_column(name, "number", columns[name])
    assert infer_kind("a", read_table(path)) == ("number", "")  # because b has decimal points
    path = lines(tmp_path / "t.csv", "a,d", "22.201,3", "377,")
    assert infer_kind("a", read_table(path)) == ("number", "'22.201' is read as 22.201, not as 22201")


def test_numbers_with_decimals_are_read_cell_by_cell_in_a_column_without(tmp_path):
    column = Column("a", "number", style=NumberStyle())
    path = lines(tmp_path / "t.csv", "a,b", "8.000,1", "7.25,2", "7,3")
    for plain in (True, False):
        values, problems = column.read_numbers(read_text(path, plain=plain).columns["a"])
        assert values.tolist()[1:] == [7.25, 7] and [problem.row for problem in problems] == [0]
    comma = Column("a", "number", style=NumberStyle(","))
    values, problems = comma.read_numbers(read_text(path).columns["a"])
    assert values[2] == 7 and [problem.row for problem in problems] == [0, 1]


def test_numbers_of_dataframes_are_no_percentages():
    column = Column("a", "number", style=NumberStyle(suffix="%"))
    values, problems = column.read_numbers(np.array([0.5, np.nan]))
    assert np.isnan(values).all() and [problem.why for problem in problems] == [
        "expected a percentage, got '0.5' (write it with %)"
    ]


def homes(count=120, seed=0):
    """A price with thousands that follows an area without, and a fee in dollars."""
    rng = np.random.default_rng(seed)
    area = rng.integers(500, 9000, count)
    return pd.DataFrame(
        {
            "sqft": area.astype(str),
            "fee": [NumberStyle(".", ",", "$", "", True).write(fee) for fee in rng.normal(900, 900, count).round(2)],
            "price": [f"{price:,}" for price in area * 100 + rng.integers(0, 90_000, count)],
        }
    )


def built(frame, fold=None, **roles):
    source = TableSource("t", {"train": frame_table(frame)}, ColumnRoles.of({"target": "price", **roles}))
    return build_table_dataset(source, 0.25, 0, fold=fold)


def test_a_model_reads_new_cells_in_the_style_of_its_training(tmp_path):
    rows = built(homes())
    spec = TableSpec.from_dict(json.loads(json.dumps(rows.spec.as_dict())))
    assert spec == rows.spec and spec.target_styles == (NumberStyle("", ","),)
    new = homes(4, 1).drop(columns="price").assign(sqft=["8000", "8,000", "8.000", "8.5"])
    encoded = spec.encode(frame_table(new))
    assert encoded.x[0, 0] == encoded.x[1, 0]
    assert [(p.row, p.column, p.why[-22:]) for p in encoded.problems] == [
        (2, "sqft", "'8.000' (write 8000 or 8)"[-22:])
    ]
    with pytest.raises(InputError, match=r"row 2, column 'sqft': expected a number with one meaning, got '8.000' \(wr"):
        spec.encode_strict(frame_table(new), allow_odd=True)
    again = encode_labeled(frame_table(homes()), spec)
    assert again.digests == rows.digests and len(set(again.digests)) == 120
    with pytest.raises(InputError, match="row 0, column 'price': expected a decimal point as in other rows, got '8,5'"):
        encode_labeled(frame_table(homes(5).assign(price=["8,5", *homes(5)["price"][1:]])), spec)


def test_specs_of_earlier_versions_have_no_styles_and_read_as_before():
    column = Column("a", "number")
    assert "style" not in column_to_dict(column) and "style" not in repr(Column("a", "number", style=NumberStyle(".")))
    assert column.read_numbers(np.array(["8,000", "377"], object))[0].tolist() == [8, 377]
    assert column.read_numbers(np.array(["8,5", "377"], object))[0].tolist() == [8.5, 377]
    assert column.read_numbers(np.array(["8.000", "377"], object))[0].tolist() == [8, 377]
    spec = TableSpec((column,), target_names=("y",), task="regression", target_mean=(0,), target_std=(1,))
    assert "target_styles" not in spec.as_dict() and "target_styles" not in repr(spec)
    with pytest.raises(
        InputError, match="a TableSpec: expected a style for each of 1 targets, got 2. Use a file saved"
    ):
        TableSpec.from_dict(spec.as_dict() | {"target_styles": [{}, {}]})


def test_what_was_read_is_in_the_facts(tmp_path):
    frame = homes()
    frame.loc[:5, "fee"] = None
    rows = built(frame)
    details = describe_table(rows)["column_details"]
    facts = {"kind": "number", "style": "", "missing": 0, "odd": 0, "example": frame["sqft"][0]}
    assert details["sqft"].pop("why").startswith("numbers around ") and details["sqft"] == facts
    assert details["fee"]["missing"] == 0.05 and re.fullmatch(r"\(?\$[\d,]+\.\d+\)?", details["fee"]["example"])
    assert describe_reading(details["fee"]).startswith(
        "thousands separated by ',', unit '$', negative numbers in parentheses, 5.0% missing, such as '"
    )
    assert describe_target(rows.spec) == "a number (regression; thousands separated by ',')"
    assert describe_reading(details["sqft"]) == f"such as {frame['sqft'][0]!r}"


def test_odd_cells_are_missing_up_to_a_share_with_a_warning_and_beyond_an_error(tmp_path):
    frame = homes(100)
    frame.loc[[3, 40, 41], "sqft"] = ["oops", "unknown", "#DIV/0!"]
    frame.loc[[7, 8], "sqft"] = ["<500", ">9000"]
    rows = built(frame)
    assert rows.notes["missing values in 'sqft'"] == 3
    assert (
        "column 'sqft': read as missing: 2 of 100 cells, such as 'unknown'; no numbers, read as missing if at most 5%: "
        "1 of 100 cells, such as 'oops'; read as their bound: 2 of 100 cells, such as '<500'"
    ) in rows.warnings
    again = encode_labeled(frame_table(frame), rows.spec)
    assert "texts in 'sqft' read as missing: 1" in again.encoded.remarks()
    assert "cells of 'sqft' read as missing, such as 'unknown': 2" in again.encoded.remarks()
    assert "cells of 'sqft' read as their bound, such as '<500': 2" in again.encoded.remarks()
    with pytest.raises(InputError, match="row 3, column 'sqft': expected a number, got 'oops'"):
        rows.spec.encode_strict(frame_table(frame))
    frame.loc[50:55, "sqft"] = [f"oops {i}" for i in range(6)]
    with pytest.raises(InputError, match="row 3, column 'sqft': expected a number, got 'oops' .and 6 more such cells"):
        built(frame)


def test_odd_cells_of_other_tables_are_warned_of():
    test = homes(40, 1)
    test.loc[[3, 4], "sqft"] = ["oops", "<500"]
    both = {"train": frame_table(homes(80)), "test": frame_table(test)}
    source = TableSource("t", both, ColumnRoles.of({"target": "price"}))
    rows = build_table_dataset(source, 0.25, 0)
    said = ["cells of 'sqft' read as their bound, such as '<500': 1", "texts in 'sqft' read as missing: 1"]
    assert [warning for warning in rows.warnings if "sqft' read" in warning] == [f"test table: {s}" for s in said]
    again = build_table_dataset(source, 0.25, 0, spec=rows.spec)
    assert [f"test table: {line}" for line in said] == [line for line in again.warnings if "sqft' read" in line]


def test_a_censored_target_is_refused():
    frame = homes()
    frame.loc[9, "price"] = "<50,000"
    with pytest.raises(InputError, match="row 9, column 'price': expected a number, got '<50,000'. Correct the cell"):
        built(frame)


def test_texts_that_repeat_among_few_numbers_are_categories_in_every_fold():
    frame = homes(90)
    frame["children"] = [*["0", "1", "2", "1", "0"] * 17, "3+", "0", "3+", "1", "2"]
    kinds = {built(frame, fold=Fold(number, 5)).spec.columns[2].kind for number in range(1, 6)}
    assert kinds == {"category"}
    rows = built(frame)
    said = "column 'children': 98% numbers, but also texts such as '3+' (row 85): treated as categories"
    assert said in rows.warnings
    frame["children"] = np.where(np.arange(90) == 4, "3+", frame["sqft"])
    assert built(frame).spec.columns[2].kind == "number"


def test_an_assumption_on_a_target_is_a_warning(tmp_path):
    rng = np.random.default_rng(0)
    cells = [f"{i * i};{rng.integers(1, 99)},{rng.integers(100, 999)}" for i in range(60)]
    path = lines(tmp_path / "t.csv", "x;y", *cells)
    rows = build_table_dataset(open_table_source(str(path), ColumnRoles(target=("y",))), 0.2, 0)
    text = cells[0].partition(";")[2]
    plain = text.replace(",", ".").rstrip("0")
    assert f"target 'y': {text!r} is read as {plain}, not as {text.replace(',', '')}" in rows.warnings
    assert rows.spec.target_mean[0] < 100


def test_columns_of_markers_and_of_lists_of_codes():
    def kind(*values):
        return infer_kind("c", Table("t.csv", {"c": TextColumn.of(list(values))}, str))[0]

    assert kind("-", "unknown", "-", "n.a.") == "" and kind("none", "mild", "none", "severe") == "category"
    assert kind("unknown", "unknown", "yes", "unknown") == "category"
    assert kind("12a", "12b", "7", "9") == "category" and kind("10-20", "20-30", "10-20") == "category"


def test_classes_keep_their_unit():
    frame = homes(60).assign(price=["5%", "10%", "15%"] * 20)
    assert built(frame).spec.class_names == ("10%", "15%", "5%") and not built(frame).spec.target_styles
    rows = built(frame, task="regression")
    assert rows.spec.target_mean == pytest.approx((10,), abs=1) and rows.spec.target_styles == (
        NumberStyle(suffix="%"),
    )
    frame["price"] = ["5 kg", "6 lb"] * 30
    with pytest.raises(InputError, match="row 1, target 'price': expected a number for --task regression, got '6 lb'"):
        built(frame, task="regression")


def test_weights_and_times_are_no_bounds():
    frame = homes(40).assign(w=["1,000", *["2"] * 38, "<5"], t=[*map(str, range(39)), ">7"])
    with pytest.raises(InputError, match="expected a finite number of at least 0 in every row, got '<5' in row 39"):
        built(frame, weight_column="w")
    with pytest.raises(InputError, match="expected a number in every row, or a date .*, got '>7' in row 39"):
        built(frame, split_by="t")
    frame["w"] = ["1,000", *["2"] * 39]
    assert built(frame, weight_column="w").weights[0] == 1000


def test_a_file_of_three_decimals_is_read_as_numbers(tmp_path):
    rng = np.random.default_rng(0)
    cells = rng.integers(1000, 99_999, (50, 3)) / 1000
    cells[:, 1] /= 100  # 0.123 has no thousands
    path = lines(tmp_path / "t.csv", "a,b,c", *(",".join(f"{cell:.3f}" for cell in row) for row in cells))
    table = read_table(path)
    assert [infer_kind(name, table) for name in "abc"] == [("number", "")] * 3 and table.decimal_mark == "."
    for i, name in enumerate("abc"):
        values = fit_column(name, "number", table.columns[name])[0].read_numbers(table.columns[name])[0]
        assert values == pytest.approx(cells[:, i], abs=6e-4)


@settings(max_examples=400)
@given(
    texts=st.lists(st.text("0123456789.,' -+()$€%kKgeE<", max_size=12) | st.text(max_size=6), unique=True, max_size=6),
    style=st.sampled_from(STYLES),
)
def test_any_text_has_one_role_and_an_explanation(texts, style):
    texts = [text.strip() for text in texts]
    values, roles = read_texts(texts, style)
    assert np.array_equal(np.isnan(values), roles >= CellRole.MISSING)
    for text, role in zip(texts, roles, strict=True):
        alone = read(text, style)
        assert alone[1] == role
        if role >= CellRole.MISWRITTEN:
            assert explain_cell(text, style).startswith("expected ")
    cells = inspect(*texts)
    again, same = read_texts(texts, cells.style)
    assert np.array_equal(cells.values, again, equal_nan=True) and np.array_equal(cells.roles, same)
