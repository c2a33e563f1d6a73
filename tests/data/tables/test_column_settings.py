"""Kinds of columns that options and a YAML file set."""

import re

import numpy as np
import pandas as pd
import pytest
import yaml
from table_files import lines, written

from skipway.commands.check_data import check
from skipway.data.column_roles import ColumnRoles
from skipway.data.open_data import open_data
from skipway.data.tables.dataset import build_table_dataset
from skipway.errors import InputError


def codes(count=60):
    """Codes, dates whose order is open, money, a column of 0 and numbers, and a price."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"zip": rng.choice(["00137", "10115", "50667"], count), "rooms": rng.integers(1, 9, count)})
    frame["sold"] = [f"0{d}/0{m}/2024" for d, m in rng.integers(1, 10, (count, 2))]
    frame["fee"] = [f"${n:,}" for n in rng.integers(900, 3000, count)]
    frame["area"] = np.where(np.arange(count) % 10 == 0, -999, rng.integers(40, 99, count))
    frame["city"] = rng.choice(["Bonn", "Ulm"], count)
    frame["price"] = rng.normal(100, 20, count).round(1)
    return frame


@pytest.fixture
def path(tmp_path):
    return written(tmp_path / "t.csv", codes())


def rows_of(path, **options):
    return build_table_dataset(open_data(str(path), ColumnRoles.of({"target": "price", **options})), 0.2, 0)


def kinds_of(path, **options):
    return {column.name: column.kind for column in rows_of(path, **options).spec.columns}


def refused(path, **options):
    with pytest.raises(InputError) as error:
        rows_of(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_options_set_kinds(path):
    assert kinds_of(path)["zip"] == "category" and kinds_of(path)["rooms"] == "number"
    kinds = kinds_of(path, numeric="zip", categorical="rooms,fee", date="sold")
    assert (kinds["zip"], kinds["rooms"], kinds["fee"], kinds["sold"]) == ("number", "category", "category", "date")
    details = rows_of(path, numeric="zip", categorical="rooms").columns
    assert details["zip"]["why"].endswith("; set by --numeric") and details["rooms"]["why"].startswith(
        "8 distinct values"
    )
    months = written(path.with_name("m.csv"), pd.DataFrame({"m": [202401, 202402] * 5, "price": np.arange(10) * 7.3}))
    assert kinds_of(months) == {"m": "number"} and kinds_of(months, date="m") == {"m": "date"}


def test_kinds_that_cannot_be_read_name_the_column_the_share_and_a_cell(path):
    said = refused(path, numeric="city")
    assert said.startswith("cannot read the column 'city' as set by --numeric: expected numbers in at least 95% of its")
    assert "got 100.0% others, such as 'Ulm' (t.csv:2)" in said and "use --missing for texts" in said
    assert "'city' as set by --date: expected dates such as 2024-12-31 in all of its values, got" in refused(
        path, date="city"
    )
    frame = codes().assign(empty=np.nan)
    frame.loc[:9, "rooms"] = -1
    said = refused(written(path, frame.astype({"rooms": str}).replace({"rooms": {"-1": "some"}})), numeric="rooms")
    assert "got 16.7% others, such as 'some' (t.csv:2)" in said
    said = refused(path, categorical="empty")
    assert "cannot read the column 'empty' as set by --categorical: expected values, got only missing ones" in said
    lists = path.with_name("t.parquet")
    frame.assign(tags=[["a", "b"]] * len(frame)).to_parquet(lists)
    said = refused(lists, categorical="tags")
    assert "cannot read the column 'tags' as set by --categorical: expected single values, got lists" in said


def test_a_column_has_one_role(path):
    both = "cannot use the column 'zip' as --numeric: expected a column without another role, got one that is "
    assert both + "--categorical" in refused(path, numeric="zip", categorical="zip")
    assert both + "--ignore" in refused(path, numeric="zip", ignore="zip")
    assert both + "--group-column" in refused(path, numeric="zip", group_column="zip")
    assert both + "missing from --features" in refused(path, numeric="zip", features="rooms")
    assert both + "--target" in refused(path, numeric="zip", target="zip")
    assert "cannot find the column 'zpi' in" in refused(path, numeric="zpi") and "did you mean zip?" in refused(
        path, date="zpi"
    )
    assert kinds_of(path, numeric="zip", group_column="zip", features="zip,rooms")["zip"] == "number"
    with pytest.raises(InputError, match="cannot read --missing .*: expected values separated by commas"):
        ColumnRoles.of({"missing": '1,"2'})


def test_missing_markers_apply_to_the_table_the_target_and_new_rows(path):
    rows = rows_of(path, missing="area=-999,Ulm")
    assert rows.notes["missing values in 'area'"] == 6 and rows.spec.missing == ("area=-999", "Ulm")
    assert rows.columns["area"]["missing"] == 0.1 and rows.columns["city"]["missing"] > 0.3
    assert not any("no cell" in warning for warning in rows.warnings)
    text = "--missing -1: no cell of a used column has this value"
    assert text in rows_of(path, missing="-1").warnings
    frame = codes()
    frame.loc[:2, "price"] = -7
    with pytest.raises(InputError, match="got 3 of 60 rows"):
        rows_of(written(path, frame), missing="-7")


def columns_file(path, **changed):
    """The file that `check` writes for a table, with other lines for some columns; None removes a line."""
    file = path.with_name("columns.yaml")
    check(path, target="price", output=file)
    values = yaml.safe_load(file.read_text())
    values["columns"] |= changed
    values["columns"] = {name: row for name, row in values["columns"].items() if row is not None}
    file.write_text(yaml.safe_dump(values))
    return str(file)


def test_what_check_writes_sets_the_same_columns(path):
    rows, again = rows_of(path), rows_of(path, columns=columns_file(path))
    assert repr(again.spec.as_dict()) == repr(rows.spec.as_dict()) and again.digests == rows.digests
    assert np.array_equal(again.x, rows.x)
    with pytest.raises(InputError, match="cannot write to .*columns.yaml: expected a separate file, got an input"):
        check(path, target="price", columns=path.parent / "columns.yaml", output=path.parent / "columns.yaml")
    text = (path.parent / "columns.yaml").read_text()
    assert yaml.safe_load(text)["columns"]["sold"]["format"] == "mdy"


def test_one_line_of_the_file_changes_one_column_and_options_come_first(path):
    file = columns_file(path, zip={"kind": "number"}, sold={"kind": "date", "format": "dmy"}, fee="left out", city=None)
    rows = rows_of(path, columns=file)
    columns = {column.name: column for column in rows.spec.columns}
    assert columns["zip"].kind == "number" and columns["sold"].dates.date_format == "dmy"
    assert columns["city"].kind == "category" and rows.left_out == {"fee": "--columns"}
    assert kinds_of(path, columns=file, categorical="zip", ignore="sold")["zip"] == "category"
    style = {"kind": "number", "thousands": ".", "prefix": "$"}
    assert "others, such as '$" in refused(path, columns=columns_file(path, fee=style))
    lines(path.with_name("m.yaml"), "missing: [-999, 'n, a']", "columns: {zip: number}")
    rows = rows_of(path, columns=str(path.with_name("m.yaml")), missing="none so")
    assert rows.spec.missing == ("-999", "n, a", "none so")


@pytest.mark.parametrize(
    "text, message",
    [
        ("columns: {zpi: number}", "expected columns of .*, got 'zpi' .did you mean zip.*. Correct or remove its line"),
        ("columns: {zip: numbre}", "zip: expected a kind of number, boolean, .*, got numbre .did you mean number"),
        (
            "columns: {zip: {kind: number, kin: 3}}",
            "zip: expected the keys kind, format, .*, got kin .did you mean kind",
        ),
        ("columns: {zip: {why: me}}", "zip: expected a kind, as in {kind: number}, got"),
        ("columns: {zip: 3}", "zip: expected a kind, as in {kind: number}, got 3. Add the kind"),
        ("columns: {sold: {kind: date, format: ydm}}", "sold: expected a format of ymd, .*, got ydm"),
        ("columns: {fee: {kind: number, decimal: ';'}}", "fee: expected different marks: decimal . or , and thousands"),
        ("columns: {price: number}", "expected the kind target for 'price' alone, got number for 'price'"),
        ("columns: {zip: target}", "expected the kind target for 'price' alone, got target for 'zip'. Correct"),
        ("colums: {zip: number}", "the file: expected the keys columns and missing, .* got colums"),
        ("missing: [3]", "the file: expected the keys columns and missing, .* got no columns"),
        (
            "- zip",
            "expected the key columns with a line for each column, got a list. Write lines such as",
        ),
        ("schema: 7\ncolumns: {}", "columns.yaml: expected schema 1, got 7"),
        ("columns: {zip: number", "cannot read the file of columns .*: expected plain YAML, got"),
        ("columns: {city: boolean}", "'city' as set by --columns: expected true or false in all of its values, got"),
    ],
)
def test_a_wrong_file_is_one_line(path, text, message):
    file = lines(path.with_name("columns.yaml"), text)
    with pytest.raises(InputError, match=message) as error:
        rows_of(path, columns=str(file))
    assert "\n" not in str(error.value)


def test_images_have_no_such_columns(tmp_path):
    with pytest.raises(
        InputError, match="cannot use --numeric and --missing with digits: expected a table of rows, got"
    ):
        open_data("digits", ColumnRoles.of({"numeric": "a", "missing": "3"}))
    with pytest.raises(InputError, match="expected a table of rows, got images, which have no columns of inputs"):
        check("digits", output=tmp_path / "c.yaml")


def test_check_lists_every_column_with_its_reason(path):
    frame = codes().assign(
        text=[f"a long remark about the house number {i}, in full words" for i in range(60)], same=1, number=range(60)
    )
    frame["rare"] = [f"r{min(i, 40)}" for i in range(60)]
    said = str(check(written(path, frame), target="price", ignore="rooms", missing="area=-999"))
    assert "column 'text' is left out: long text, 60 distinct texts of 11 words on average. Add columns" in said
    assert re.search("column 'rare': (6|7).% of the training rows have a rare category", said)
    assert "unused columns: 'rooms (--ignore)', 'same (constant)', 'number (row counter)'" in said
    facts = check(path, target="price", ignore="rooms").as_dict()["column_details"]
    assert list(facts) == list(frame) and {of["kind"] for of in facts.values()} >= {"left out", "target", "category"}
    assert facts["zip"]["why"].startswith("categories, because whole numbers with leading zeros such as '00137'")
    assert facts["rooms"] == {
        "kind": "left out",
        "why": "--ignore",
        "style": "",
        "missing": None,
        "odd": None,
        "example": "",
    }
    assert (
        facts["rare"]["odd"] > 0.5 and facts["text"]["missing"] == 0 and facts["text"]["example"].startswith("a long")
    )


def test_lists_of_names_are_options_in_python(path):
    report = check(path, target=["price"], numeric=["zip"], ignore=["city", "fee"], missing=[-999], date=[])
    assert report.as_dict()["column_details"]["zip"]["kind"] == "number"
    assert check(path, target="price", missing=-999).as_dict()["column_details"]["area"]["missing"] == 0.1
