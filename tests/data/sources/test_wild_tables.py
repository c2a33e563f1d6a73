"""Tables as people have them: each is read as it is meant, with a note, or is an error in one line."""

import bz2
import gzip
import json
import lzma
import sys
import zipfile
from datetime import datetime, timedelta

import numpy as np
import pytest

from skipway.cli.app import main
from skipway.data.column_roles import ColumnRoles
from skipway.data.open_data import open_data
from skipway.data.sources.read_table import read_table
from skipway.data.sources.table_content import read_content
from skipway.data.table_layout import TableLayout
from skipway.data.tables.columns import infer_cell_style, read_numbers
from skipway.data.tables.dataset import build_table_dataset
from skipway.data.tables.table_source import open_table_source
from skipway.errors import InputError, MissingExtra

ROWS = [(f"h{i}", 50 + 3 * i, 1000 + 31.5 * i, ["Bonn", "Köln", "Trier"][i % 3]) for i in range(8)]
NAMES = ["name", "size", "price", "city"]


def lines(separator=",", decimal="."):
    """A table of four columns as lines of text."""
    rows = [separator.join(map(str, row)).replace(".", decimal) for row in ROWS]
    return [separator.join(NAMES), *rows]


def text(separator=",", decimal="."):
    return "\n".join(lines(separator, decimal)) + "\n"


HEAD, *BODY = lines()
ALIGNED = [line.replace(",", "   ", 2).replace(",", "\t") for line in lines()]
QUOTED = ",".join(f'"{name}"' for name in NAMES)
ABOVE = "2 lines above the header left out, such as 'House prices of 2024'; set --skip-rows to change this"
NAMED = [
    "columns without a name, named by position: 'column 1'",
    "the first column names the rows: 'column 1' is no input",
]
# name of the file -> its text, the line of the first row, the notes
SAME_TABLE = {
    "titles.csv": ("House prices of 2024\nSource: Office, Bonn, 2024\n\n" + text(), 5, [ABOVE]),
    "excel.csv": ("House prices of 2024,,,\nBonn,,,\n,,,\n" + text(), 5, [ABOVE]),
    "comment.csv": ("# House, prices, of, 2024\n" + text(), 3, ["1 line above the header left out, such as "]),
    "quoted.csv": ('"House\nprices"\n' + text(), 4, ["1 line above the header left out, such as "]),
    "sep.csv": ("sep=;\n" + text(";", ","), 3, ["separator: semicolon"]),
    "r.csv": ("\n".join([QUOTED, *(f'"Row {i}",{row}' for i, row in enumerate(BODY))]), 2, NAMED),
    "r_numbers.csv": ("\n".join([QUOTED, *(f'"{i + 1}",{row}' for i, row in enumerate(BODY))]), 2, NAMED),
    "index.csv": ("\n".join(["," + HEAD, *(f"{5 * i % 8},{row}" for i, row in enumerate(BODY))]), 2, NAMED),
    "ends.csv": ("\n".join([HEAD, *(row + "," for row in BODY)]), 2, ["columns without a name, named by position: "]),
    "head.csv": ("\n".join([HEAD + ",,", *BODY]), 2, ["2 empty fields at the end of the header left out"]),
    "total.csv": (text() + "\nTotal,,9000.5,\nSource: Office\n", 2, ["2 lines below the table left out, such as "]),
    "empty.csv": (text() + "Sum,10,,\n" + ",,,\n" * 30, 2, ["31 lines below the table left out, such as 'Sum 10'"]),
    "tabs.txt": (text("\t"), 2, ["separator: tab"]),
    "tab.csv": ("sep=\t\n" + text("\t"), 3, ["separator: tab"]),
    "aligned.txt": ("\n".join(ALIGNED), 2, ["separator: runs of spaces"]),
    "spaces.txt": ("\n".join("  ".join(f"{c:>7}" for c in row.split(",")) for row in lines()), 2, ["separator: runs"]),
    "lines.csv": ("\n\n" + text().replace("\n", "\n\n"), 5, []),
}


def check(table):
    """Check the cells of the table above; the file may have columns before and after them."""
    assert [name for name in table.columns if not name.startswith("column ")] == NAMES and len(table) == len(ROWS)
    columns = [list(table.columns[name]) for name in NAMES]
    assert columns[0] == [row[0] for row in ROWS] and columns[3] == [row[3] for row in ROWS]
    for cells, place in zip(columns[1:3], (1, 2), strict=True):
        assert [float(str(cell).replace(",", ".")) for cell in cells] == [row[place] for row in ROWS]


@pytest.mark.parametrize("name", SAME_TABLE)
def test_what_surrounds_a_table_is_left_out_with_a_note(tmp_path, name):
    data, line, notes = SAME_TABLE[name]
    (tmp_path / name).write_bytes(data.encode())
    table = read_table(tmp_path / name)
    check(table)
    assert table.row_name(0) == f"{name}:{line}" and len(table.notes) == len(notes)
    assert all(note.startswith(start) for note, start in zip(table.notes, notes, strict=True))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst", ".zip"])
def test_compressed_tables(tmp_path, suffix):
    path, data = tmp_path / f"t.csv{suffix}", text().encode()
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inner/t.csv", data)
        path = path.rename(tmp_path / "t.zip")
    elif suffix == ".zst":
        pyarrow = pytest.importorskip("pyarrow")
        with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(data)
    else:
        path.write_bytes({".gz": gzip, ".bz2": bz2, ".xz": lzma}[suffix].compress(data))
    check(read_table(path))
    assert open_table_source(str(path), ColumnRoles(target=("price",))).name == "t"


def test_compressed_splits_and_damaged_archives(tmp_path, monkeypatch):
    folder = tmp_path / "homes"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.csv.gz").write_bytes(gzip.compress(text().encode()))
    assert sorted(open_data(str(folder), ColumnRoles(target=("price",))).splits) == ["test", "train"]
    (folder / "train.csv").write_text(text())
    with pytest.raises(InputError, match=r"expected one train table, got .*train.csv and .*train.csv.gz. Remove one"):
        open_data(str(folder), ColumnRoles(target=("price",)))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text().encode())[:40])
    with pytest.raises(InputError, match=r"cannot decompress .*t.csv.gz: Compressed file ended .*Download or create"):
        read_table(tmp_path / "t.csv.gz")
    with zipfile.ZipFile(tmp_path / "t.csv.zip", "w") as archive:
        archive.writestr("a.csv", text()), archive.writestr("b.csv", text())
    with pytest.raises(InputError, match=r"t.csv.zip: expected a zip archive of one table, got other content. Unpack"):
        read_content(tmp_path / "t.csv.zip")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.csv.zst").write_bytes(b"x")
    with pytest.raises(MissingExtra, match="decompressing .*t.csv.zst needs the extra 'parquet'"):
        read_table(tmp_path / "t.csv.zst")


VALUES = {
    "thousands": ("size,price\n" + "".join(f'"{i},000","{i}1,500.00"\n' for i in range(1, 9)), "price", 11_500),
    "decimal commas": ("size;price\n" + "".join(f"{i}.000;{i}1,5\n" for i in range(1, 9)), "price", 11.5),
    "exponents": ("size,price\n" + "".join(f"{i},{i}.5e5\n" for i in range(1, 9)), "price", 150_000),
    "umlauts": ("größe,price\n" + "".join(f"{i},{i}5\n" for i in range(1, 9)), "größe", 1),
    "two lines": ('note,price\n"a\n""b"", c",15\n' + "".join(f"x,{i}5\n" for i in range(2, 9)), "price", 15),
    "empty columns": ("a,none,price\n" + "".join(f"{i},,{i}5\n" for i in range(1, 9)), "price", 15),
    "units below the names": ("size,price\nm2,EUR\n" + "".join(f"{i},{i}5\n" for i in range(1, 30)), "price", np.nan),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_values_and_encodings(tmp_path, name, encoding):
    data, column, value = VALUES[name]
    path = tmp_path / "t.csv"
    path.write_bytes(data.encode(encoding))
    table = read_table(path)
    style = infer_cell_style("number", table.columns[column], table)
    assert read_numbers(table.columns[column], "number", column, style)[0][0] == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize(
    "data, words",
    [
        (
            "5.1,3.5,setosa\n4.9,3.0,setosa\n6.1,3.2,other\n",
            "t.csv:1: expected column names, got what looks like",
        ),
        ("p,x\ne,x\np,b\ne,b\n", r"got what looks like a row \('p', 'x'\). Pass --no-header if it is one, or --header"),
        ("20,State,1000\n21,State,1007\n23,Private,1009\n", "got what looks like a row"),
        ("1,2\n3,4\n", "t.csv:1: expected column names, got only numbers. Pass --no-header if this line is a row, or"),
        (
            "a,b\n1,2,3\n4,5,6\n1,8,9\n",
            "t.csv:1: expected a name for each of the 3 fields of the rows, got 2",
        ),
        ("a,b\n" + "1,2,\n" * 300 + "1,2,3\n", "t.csv:302: expected 2 fields as in the header, got 3. Correct the"),
        (text() + "h9,100\n", "t.csv:10: expected 4 fields as in the header, got 2. Correct the line"),
        (text() + "Berlin\n", "t.csv:10: expected 4 fields as in the header, got 1. Correct the line"),
        (text() + "\nregion,count\nNorth,5\n", "expected 4 fields as in the header, got 2 .and 1 more such lines"),
    ],
)
def test_what_is_ambiguous_or_broken_names_the_line_and_the_option(tmp_path, data, words):
    (tmp_path / "t.csv").write_text(data)
    with pytest.raises(InputError, match=words) as error:
        read_table(tmp_path / "t.csv")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("header", ["city,2019,2020,price", "city,1,2,3", "a,b,c,d"])
def test_headers_with_numbers_stay_headers(tmp_path, header):
    (tmp_path / "t.csv").write_text(header + "\n" + "".join(f"c{i},{i},{2 * i},{3 * i}\n" for i in range(9)))
    assert list(read_table(tmp_path / "t.csv").columns) == header.split(",")


def test_the_last_row_of_a_table_is_kept(tmp_path):
    (tmp_path / "t.csv").write_text(text() + "Total,5,1000.5,Bonn\nGas and oil,,,\n")
    table = read_table(tmp_path / "t.csv")
    assert table.columns["name"][8] == "Total" and len(table) == 9 and "'Gas and oil'" in table.notes[0]
    (tmp_path / "t.csv").write_text(text() + "Total,5,1000.5,Bonn\n")
    table = read_table(tmp_path / "t.csv")
    assert len(table) == 9 and table.notes == ["the last row begins with 'Total' and is kept as a row"]


def test_the_lines_of_a_table_can_be_set(tmp_path):
    (tmp_path / "t.csv").write_text("".join(f"{i},{i % 3},{'ab'[i % 2]}\n" for i in range(20)))
    table = read_table(tmp_path / "t.csv", TableLayout(header=False))
    assert list(table.columns) == ["column_1", "column_2", "column_3"] and len(table) == 20
    assert table.notes == ["no header: columns are named column_1 to column_3"] and table.row_name(0) == "t.csv:1"
    source = open_data(
        str(tmp_path / "t.csv"), ColumnRoles.of({"target": "3", "ignore": "1"}), layout=TableLayout(header=False)
    )
    assert source.roles.target == ("column_3",) and source.roles.ignore == ("column_1",)
    (tmp_path / "u.csv").write_text("a title\nof two lines\n" + text())
    table = read_table(tmp_path / "u.csv", TableLayout(skip_rows=2))
    check(table)
    assert table.notes == [] and table.row_name(0) == "u.csv:4"
    assert len(read_table(tmp_path / "u.csv", TableLayout(skip_rows=3, header=False))) == 8
    with pytest.raises(InputError, match="expected lines after --skip-rows 99, got none. Use a smaller number"):
        read_table(tmp_path / "u.csv", TableLayout(skip_rows=99))


@pytest.mark.parametrize("first", ["5,,,", "5,,,7"])
def test_a_first_line_with_empty_fields_is_part_of_the_table(tmp_path, first):
    rows = "".join(f"{i},{i % 3},{i % 2},{2 * i}\n" for i in range(9))
    (tmp_path / "t.csv").write_text(f"{first}\n{rows}")
    assert len(read_table(tmp_path / "t.csv", TableLayout(header=False))) == 10
    (tmp_path / "u.csv").write_text(f"id,,,\n{rows}")
    assert list(read_table(tmp_path / "u.csv").columns) == ["id", "column 2", "column 3", "column 4"]


def test_options_that_have_no_effect_are_refused(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps([{"a": 1, "b": 2}]))
    words = "cannot use {} with .*: expected a text table or a workbook, got {}. Drop {}"
    with pytest.raises(InputError, match=words.format("--skip-rows", "a .json file", "--skip-rows")):
        read_table(tmp_path / "t.json", TableLayout(skip_rows=1))
    for data, kind in (("wine", "a dataset of scikit-learn"), ("digits", "images without a table of text")):
        with pytest.raises(InputError, match=words.format("--no-header", kind, "--no-header")):
            open_data(data, layout=TableLayout(header=False))


def test_a_table_without_a_header_in_a_run(tmp_path, capsys):
    rng, path = np.random.default_rng(0), tmp_path / "t.csv"
    path.write_text("".join(f"{rng.normal():.3f},{i % 3}.5,{'ab'[i % 2]}\n" for i in range(40)))
    run = str(tmp_path / "run")

    def call(*words):
        with pytest.raises(SystemExit) as end:
            main(list(map(str, words)))
        return end.value.code, "".join(capsys.readouterr())

    train = ("train", path, "--target", "3", "--no-header", "--epochs", "1", "-o", tmp_path, "--name", "run")
    assert call(*train)[0] == 0
    assert call("train", "--resume", run, "--epochs", "2")[0] == 0
    code, said = call("predict", run, path)
    assert code == 2 and "Pass --no-header" in said
    code, said = call("predict", run, path, "--no-header")
    assert code == 0 and "t.csv:40: " in said
    code, said = call("evaluate", run, path, "--no-header")
    assert code == 0 and "on 40 rows" in said
    code, said = call("evaluate", run, "wine", "--no-header")
    assert code == 2 and "cannot use --no-header" in said


RECORDS = [{"a": i % 5, "kind": "xy"[i % 2], "b": i * 2.5, "ok": i % 3 == 0} for i in range(10)]
COLUMNS = {name: [row[name] for row in RECORDS] for name in RECORDS[0]}


@pytest.mark.parametrize(
    "name, value",
    [
        ("t.json", RECORDS),
        ("t.json", COLUMNS),
        ("t.json", {"data": RECORDS}),
        ("t.json", {name: {str(i): cell for i, cell in enumerate(cells)} for name, cells in COLUMNS.items()}),
        ("t.jsonl", None),
        ("t.ndjson", None),
    ],
)
def test_tables_in_json(tmp_path, name, value):
    data = json.dumps(value) if value else "\n".join(map(json.dumps, RECORDS))
    (tmp_path / name).write_text(data)
    table = read_table(tmp_path / name)
    assert list(table.columns) == list(COLUMNS) and table.columns["b"][1] == "2.5" and table.columns["ok"][0] == "true"
    assert table.row_name(1) == (f"{name}:record 2" if value else f"{name}:2")


@pytest.mark.parametrize(
    "data, words",
    [
        ("[1, 2", "t.json: expected JSON, got .*Correct the file"),
        ("[[1, 2]]", "t.json: expected a list of objects, or columns of one length by name, got other JSON. Save one"),
        ('{"a": [1], "b": [1, 2]}', "expected a list of objects, or columns of one length"),
        ("[{}]", "expected JSON objects with values, got none. Add an object per row"),
        (" ", "expected JSON objects, got no values. Add an object per row"),
    ],
)
def test_json_that_is_no_table(tmp_path, data, words):
    (tmp_path / "t.json").write_text(data)
    with pytest.raises(InputError, match=words):
        read_table(tmp_path / "t.json")


def test_a_nested_column_of_json_can_be_ignored(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps([row | {"more": {"x": 1}} for row in RECORDS]))
    with pytest.raises(InputError, match="column 'more': expected strings or numbers, got an object. Split it"):
        build_table_dataset(open_table_source(str(path), ColumnRoles(target=("kind",))), 0.2, 0)
    roles = ColumnRoles(target=("kind",), ignore=("more",))
    assert len(build_table_dataset(open_table_source(str(path), roles), 0.2, 0).y) == 10


def test_files_of_arrow(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    data = pyarrow.table(COLUMNS)
    for name, new in (("f.feather", pyarrow.ipc.new_file), ("s.arrow", pyarrow.ipc.new_stream)):
        with new(str(tmp_path / name), data.schema) as writer:
            writer.write_table(data)
        table = read_table(tmp_path / name)
        assert list(table.columns) == list(COLUMNS) and table.columns["b"][1] == 2.5
    (tmp_path / "bad.feather").write_bytes(b"hello")
    with pytest.raises(InputError, match="cannot read the Arrow file .*bad.feather: .*Download it again"):
        read_table(tmp_path / "bad.feather")


def test_workbooks(tmp_path, monkeypatch):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet, notes = book.create_sheet("Homes"), book.create_sheet("Notes")
    for row in (["House prices"], [], ["day", "size\n(m2)", "price", "share", "ok"]):
        sheet.append(row)
    for i in range(9):
        sheet.append([datetime(2024, 1, 1) + timedelta(days=i), 50 + i, 1000 + 0.5 * i, timedelta(hours=i), i % 2 == 0])
    sheet.append([])
    sheet.append(["Total", None, 9000])
    notes.append(["a note"])
    book.save(tmp_path / "t.xlsx")
    table = read_table(tmp_path / "t.xlsx")
    assert list(table.columns) == ["day", "size (m2)", "price", "share", "ok"] and len(table) == 9
    assert [column[1] for column in table.columns.values()] == ["2024-01-02", "51", "1000.5", "3600", "False"]
    assert table.row_name(0) == "t.xlsx:4" and len(table.notes) == 3
    assert table.notes[2] == "worksheet 'Homes' is read; others are left out: 'Notes'"
    sheet.delete_rows(1)
    sheet.insert_cols(1)
    book.save(tmp_path / "u.xlsx")
    table = read_table(tmp_path / "u.xlsx")
    assert list(table.columns)[:3] == ["column 1", "day", "size (m2)"] and table.row_name(0) == "u.xlsx:3"
    assert not any("above the header" in note for note in table.notes)
    openpyxl.Workbook().save(tmp_path / "empty.xlsx")
    with pytest.raises(InputError, match="empty.xlsx: expected a worksheet with data, got none. Add a header"):
        read_table(tmp_path / "empty.xlsx")
    (tmp_path / "fake.xlsx").write_text("a,b\n")
    with pytest.raises(InputError, match="fake.xlsx: expected an Excel workbook, got File is not a zip file. Save"):
        read_table(tmp_path / "fake.xlsx")
    with monkeypatch.context() as patch:
        patch.setattr("skipway.data.sources.table_content._MAX_BYTES", 1000)
        with pytest.raises(InputError, match="t.xlsx: expected at most 1,000 bytes, got .*Split it"):
            read_table(tmp_path / "t.xlsx")
    with pytest.raises(InputError, match="cannot find .*none.xlsx: expected an existing file"):
        read_table(tmp_path / "none.xlsx")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MissingExtra, match=r"reading .*t.xlsx needs the extra 'excel', which is not installed"):
        read_table(tmp_path / "t.xlsx")


def test_row_names_are_no_input_unless_they_are_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("".join([",x,y\n", *(f"{7 * i % 40},{i % 5},{i * 2.5}\n" for i in range(40))]))
    roles = ColumnRoles(target=("y",))
    rows = build_table_dataset(open_table_source(str(path), roles), 0.2, 0)
    assert rows.left_out == {"column 1": "row names"} and [column.name for column in rows.spec.columns] == ["x"]
    roles = ColumnRoles(target=("y",), features=("column 1", "x"))
    rows = build_table_dataset(open_table_source(str(path), roles), 0.2, 0)
    assert [column.name for column in rows.spec.columns] == ["column 1", "x"]
