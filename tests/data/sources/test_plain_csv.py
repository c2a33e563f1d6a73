"""The fast reader of CSV text must agree with the exact one, or leave the text to it."""

import csv
import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skipway.data.sources.csv_parser import read_text
from skipway.data.sources.plain_csv import read_plain
from skipway.data.sources.read_table import read_table
from skipway.data.tables.columns import factorize_texts, fit_column, infer_kind, missing_mask, read_numbers
from skipway.errors import InputError

NUMBERS = [
    "0",
    "1",
    "-0",
    "+5",
    "007",
    "1.5",
    ".5",
    "5.",
    "1e5",
    "-2.5E-3",
    "1e400",
    "inf",
    "-nan",
    "12345678901234567890",
]
ODDITIES = [
    *[
        "",
        "NA",
        "nAn",
        "none",
        "-",
        ".",
        "?",
        " ",
        " 7 ",
        "\t7",
        "1,5",
        "1,234",
        "1_000",
        "0x10",
        "true",
        "FALSE",
        "yes",
    ],
    *[
        'a"b',
        '"',
        'say ""hi""',
        "x\ny",
        "x\r\ny",
        "x;y",
        "Köln",
        "\u00a05",
        "١٢",
        "2024-01-31",
        "\x1a",
        "\x0b3",
        "\ufeff",
    ],
]
CELLS = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(NUMBERS),
    st.sampled_from(ODDITIES),
    st.floats().map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.text(max_size=5),
)
SEPARATORS = st.sampled_from([",", ",", ";", "\t", "|"])


def agree(path):
    """Read a file both ways, and return the fast table, after a comparison in every respect."""
    try:
        exact = read_text(path, plain=False)
    except InputError as error:
        with pytest.raises(InputError) as fast_error:
            read_text(path)
        assert str(fast_error.value) == str(error)
        return None
    fast = read_text(path)
    assert list(fast.columns) == list(exact.columns) and list(fast.lines) == list(exact.lines)
    assert fast.separator == exact.separator and fast.notes == exact.notes
    for name, cells in exact.columns.items():
        other = fast.columns[name]
        assert len(other) == len(cells)
        assert np.array_equal(missing_mask(other), missing_mask(cells))
        values, problems = read_numbers(cells, "number", name)
        if other.numbers is not None:
            assert not problems and np.array_equal(other.numbers, values, equal_nan=True)
        codes, texts = factorize_texts(cells)
        other_codes, other_texts = factorize_texts(other)
        assert other_texts == texts and np.array_equal(other_codes, codes)
    return fast


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=1, max_size=8)),
    separator=SEPARATORS,
    ends=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE]),
    tail=st.sampled_from(["", "\n", "\n\n\r\n", "1\n", "x,y,z\n", '"']),
)
@example(rows=[["a"], ["1"]], separator=",", ends="\n", encoding="utf-8", quoting=csv.QUOTE_MINIMAL, tail="")
def test_generated_tables_are_read_alike(tmp_path_factory, rows, separator, ends, encoding, quoting, tail):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator=ends, quoting=quoting, escapechar="\\")
    writer.writerow([f"c{i}" for i in range(len(rows[0]))])
    writer.writerows(rows)
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_bytes((text.getvalue() + tail).encode(encoding, "replace"))
    agree(path)


@settings(max_examples=300, deadline=None)
@given(
    data=st.text(alphabet='a1.,;"\n\r \t-', max_size=40), head=st.sampled_from(["a,b\n", 'a;b\n"x";', '"a","b"\r\n1,'])
)
@example(data='1,"x\n2,"y"\n', head="a,b\n")
@example(data='1,x"y"\n2,z\n', head="a,b\n")
@example(data='1,"x"y\n', head="a,b\n")
@example(data='1, "x"\n', head="a,b\n")
@example(data='""","\n1,"a"",b"\n', head="a,b\n")
@example(data=",\n ,\n\n1,2", head="a,b\n")
def test_any_text_is_read_alike(tmp_path_factory, data, head):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_bytes((head + data).encode())
    agree(path)


def test_what_follows_is_alike_too(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["size,room,day,ok,note,late"]
    for i in range(3000):
        room = rng.choice(["007", "7", "12a"]) if i > 2500 else f"{i % 40:03d}"
        late = "word" if i == 2900 else i
        quoted = '"a, ""b"""' if i % 7 else "NA"
        lines.append(f"{rng.normal()!r},{room},2024-01-{1 + i % 28:02d},{bool(i % 3)},{quoted},{late}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    text = agree(tmp_path / "t.csv")
    assert [cells.numbers is not None for cells in text.columns.values()] == [True, False, False, False, False, False]
    table = read_table(tmp_path / "t.csv")
    assert (
        table.row_name(2) == "t.csv:4" and table.columns["room"][3] == "003" and table.columns["late"][2900] == "word"
    )
    exact = read_text(tmp_path / "t.csv", plain=False)
    rows = np.flatnonzero(rng.random(3000) < 0.5)
    for name in table.columns:
        kind, _ = infer_kind(name, table)
        if kind:
            fitted = [fit_column(name, kind, columns[name][rows]) for columns in (table.columns, exact.columns)]
            assert fitted[0] == fitted[1]


def test_texts_of_numbers_are_read_when_they_are_needed(tmp_path):
    (tmp_path / "t.csv").write_text("room,y\n007,1\n7.0,2\n,3\n08,4\n")
    room = read_text(tmp_path / "t.csv").columns["room"]
    assert room.numbers.tolist()[:2] == [7, 7] and room.tolist() == ["007", "7.0", None, "08"]
    assert room[np.array([3, 1])].tolist() == ["08", "7.0"] and room[2:].numbers.tolist()[1] == 8


@pytest.mark.parametrize(
    "text",
    [
        "a\n1\n",  # one column
        "a,b\n1,2\n\n3,4\n",  # a blank line
        'a,b\n1,"x\ny"\n',  # a field over two lines
        "a,b\n1,2\r3,4\n",  # a line that ends otherwise
        "a,b\n1\n",
        'a,b\n1,x"y"\n',
        'a,b\n1,"x\n',
        "a,b\n1,\0\n",
        "a,b\n1," + "x" * 200_000 + "\n",
        "a,b\n",
    ],
)
def test_text_that_is_not_plain_is_left_to_the_parser(text):
    assert read_plain(text.encode(), ",", text.split("\n")[0].count(",") + 1) is None


def test_blocks_end_at_lines(monkeypatch):
    monkeypatch.setattr("skipway.data.sources.plain_csv._BLOCK", 16)
    text = b"a,b\n" + b"".join(b'%d,"x,%d"\n' % (i, i) for i in range(100))
    numbers, texts = read_plain(text, ",", 2)
    assert numbers.numbers.tolist() == list(range(100)) and texts.tolist() == [f"x,{i}" for i in range(100)]
    assert read_plain(text + b"1,2,3\n", ",", 2) is None and read_plain(text + b"1," + b"x" * 30, ",", 2) is None
