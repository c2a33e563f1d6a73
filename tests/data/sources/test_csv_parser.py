import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipway.data.sources.csv_parser import MAX_COLUMNS, read_text
from skipway.errors import InputError


def read(tmp_path, data, name="t.csv"):
    (tmp_path / name).write_bytes(data)
    return read_text(tmp_path / name)


def cells(table):
    return {name: column.tolist() for name, column in table.columns.items()}


@pytest.mark.parametrize(
    "data, separator, note",
    [
        (b"a,b\n1,x\n2,y\n", ",", None),
        (b"a,b\r\n1,x\r\n2,y\r\n", ",", None),
        (b"a,b\r1,x\r2,y\r", ",", None),
        (b"\xef\xbb\xbfa,b\n1,x\n2,y\n", ",", None),
        (b"a;b\n1;x\n2;y\n", ";", "separator: semicolon"),
        (b"a\tb\n1\tx\n2\ty\n", "\t", "separator: tab"),
        (b"a|b\n1|x\n2|y\n", "|", "separator: vertical bar"),
        ("a,b\n1,x\n2,y\n".encode("utf-16"), ",", "read as UTF-16"),
        ("a,b\n1,x\n2,y\n".encode("utf-16-be"), ",", "read as UTF-16"),
        (b"\n a , b \n1,x\n\n2,y\n\n", ",", None),
        (b'"a","b"\n"1","x"\n2,"y"', ",", None),
    ],
)
def test_the_same_table_in_many_forms(tmp_path, data, separator, note):
    table = read(tmp_path, data)
    assert cells(table) == {"a": ["1", "2"], "b": ["x", "y"]}
    assert table.separator == separator and table.notes == ([note] if note else [])


def test_latin_letters_that_are_not_utf_8_are_read_and_said(tmp_path):
    table = read(tmp_path, "a,b\n1,x\n2,Köln\n".encode("latin-1"))
    assert cells(table)["b"] == ["x", "Köln"]
    assert table.notes == ["line 3 is not UTF-8: read as Windows-1252 (Latin-1)"]
    assert cells(read(tmp_path, b"a,b\n1,\x81\n"))["b"] == ["\x81"]  # what Windows-1252 leaves open


def test_lines_are_those_of_the_file_whatever_its_cells_hold(tmp_path):
    table = read(tmp_path, b'a,b\n1,"x\ny"\n\n2,z\n')
    assert cells(table)["b"] == ["x\ny", "z"] and list(table.lines) == [2, 5]
    assert cells(read(tmp_path, b"a\n1\n2\n")) == {"a": ["1", "2"]}
    table = read(tmp_path, b",a\n0,5\n1,6\n")
    assert list(table.columns) == ["column 1", "a"] and "named by position: 'column 1'" in table.notes[0]


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "t.csv: expected column names in the first line, got an empty file"),
        (b"\n  \n", "t.csv: expected column names in the first line, got an empty file"),
        (b"\xef\xbb\xbf\n", "t.csv: expected column names in the first line, got blank lines"),
        (b"a,b\n", "t.csv: expected rows after the header, got only the header. Add a line"),
        (
            b"a,b\n1,2\n1\n1,2,3\n",
            r"t.csv:3: expected 2 fields as in the header, got 1 \(and 1 more such lines\). Correct the line",
        ),
        (b'a,b\n1,2\n1,"x\n3,4\n', "t.csv:3: expected a closing quote, got the end of the file. Close"),
        (b'a,b\n1,"x"y\n', "t.csv:2: expected a separator after a closing quote. Double the quotes"),
        (b"a,b\n1,2\n1,\x002\n", "t.csv:3: expected text, got a NUL byte. Save the table as UTF-8"),
        (b"a,b\n1," + b"x" * 200_000 + b"\n", "t.csv:2: expected fields of at most 131,072 characters. Check for"),
        (b"1,2\n3,4\n", "t.csv:1: expected column names, got only numbers. Pass --no-header if"),
        (b"a,b,a\n1,2,3\n", r"expected unique column names, got 'a' 2 times \(columns 1, 3\). Rename"),
        (
            b"\xff\xfea",
            "t.csv: expected UTF-16 by its byte order mark, got an invalid byte at offset 2. Save",
        ),
        (b"PK\x03\x04rest", "t.csv: expected a text table, got a zip archive or an Excel workbook. Save"),
        (b"PAR1rest", "t.csv: expected a text table, got a parquet file"),
    ],
)
def test_what_is_broken_is_named_by_its_line(tmp_path, data, said):
    with pytest.raises(InputError, match=said):
        read(tmp_path, data)


def test_too_many_columns_and_bytes_are_refused(tmp_path, monkeypatch):
    wide = ",".join(f"c{i}" for i in range(100_000)).encode()
    with pytest.raises(InputError, match=f"expected at most {MAX_COLUMNS:,} columns, got 100,000. Remove"):
        read(tmp_path, wide + b"\n")
    monkeypatch.setattr("skipway.data.sources.table_content._MAX_BYTES", 5)
    with pytest.raises(InputError, match="expected at most 5 bytes, got 8. Split it, or save it as .parquet"):
        read(tmp_path, b"a,b\n1,2\n")
    with pytest.raises(InputError, match="expected a regular file. Pass a .csv, .tsv or .parquet file"):
        read_text(tmp_path)
    (tmp_path / "u.csv").write_bytes(b"a\n1\n")
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda self: (_ for _ in ()).throw(PermissionError(13, "denied")))
    with pytest.raises(InputError, match="cannot read .*u.csv: denied. Check the path and the permissions"):
        read_text(tmp_path / "u.csv")


@settings(max_examples=200)
@given(data=st.binary(max_size=80), head=st.sampled_from([b"", b"a,b\n1,2\n", b'a;b\n"']))
def test_any_bytes_are_a_table_or_an_error_in_one_line(tmp_path_factory, data, head):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_bytes(head + data)
    try:
        table = read_text(path)
    except InputError as error:
        assert "\n" not in str(error) and "t.csv" in str(error)
    else:
        assert {len(c) for c in table.columns.values()} == {len(table.lines)}
        assert np.all(np.diff(table.lines) > 0)
