from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipway.data.sources.text_column import TextColumn
from skipway.data.tables.date_formats import FORMATS, describe_order, example_of, infer_date_format, parse_dates

DAYS = pd.to_datetime(["2024-12-31", "2023-02-01", "1999-07-15", "2024-02-29"])
MOMENTS = pd.to_datetime(["2024-12-31 23:59:30", "2023-02-01 00:00:00", "1999-07-15 12:30:00"])


def infer(*cells):
    return infer_date_format(TextColumn.of(list(cells)))


def days_since_1970(moments):
    return (moments - pd.Timestamp("1970-01-01")) / pd.Timedelta(days=1)


@pytest.mark.parametrize(
    "pattern, date_format",
    [
        ("%Y-%m-%d", "ymd"),
        ("%Y/%m/%d", "ymd"),
        ("%d/%m/%Y", "dmy"),
        ("%m/%d/%Y", "mdy"),
        ("%d.%m.%Y", "dmy"),
        ("%d-%m-%y", "dmy"),
        ("%m/%d/%y", "mdy"),
        ("%d %b %Y", "d mon y"),
        ("%d-%b-%y", "d mon y"),
        ("%a, %d %B %Y", "d mon y"),
        ("%b %d, %Y", "mon d y"),
        ("%B %d %Y", "mon d y"),
    ],
)
def test_the_common_orders_are_read_as_pandas_reads_them(pattern, date_format):
    cells = DAYS.strftime(pattern).tolist()
    assert infer(*cells) == (date_format, "")
    assert parse_dates(cells, date_format) == pytest.approx(days_since_1970(DAYS))


@pytest.mark.parametrize(
    "pattern", ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%d.%m.%Y %H:%M:%S", "%m/%d/%Y %I:%M:%S %p"]
)
def test_a_time_of_day_follows_the_date(pattern):
    cells = MOMENTS.strftime(pattern).tolist()
    date_format, remark = infer(*cells)
    assert remark == "" and parse_dates(cells, date_format) == pytest.approx(days_since_1970(MOMENTS), abs=1e-9)


def test_months_times_and_compact_dates_are_formats_too():
    assert infer("2024-12", "2023-01", None) == ("ym", "")
    assert infer("12:30", "08:15", "8:15:30") == ("time", "")
    assert parse_dates(["12:30", "12:30 PM", "12:00 am", "24:00"], "time")[:3] * 24 == pytest.approx([12.5, 12.5, 0])
    months = pd.period_range("2023-01", periods=24, freq="M").strftime("%Y%m").tolist()
    assert infer(*months) == ("yyyymm", "") and parse_dates(months, "yyyymm")[12] == 19723
    days = DAYS.append(DAYS + pd.Timedelta(days=1)).strftime("%Y%m%d").tolist()
    assert infer(*days) == ("yyyymmdd", "")


def test_offsets_are_converted_to_utc_and_reported_if_they_differ():
    assert infer("2024-01-01T00:00:00Z", "2024-01-02T00:00:00+00:00") == ("ymd", "")
    same = ("2024-01-01T01:00:00+01:00", "2024-01-01T00:00Z", "2023-12-31 19:00 -0500", "2024-01-01 00:00:00.000")
    assert infer(*same) == ("ymd", "different offsets from UTC: converted to UTC")
    assert (parse_dates(same, "ymd") == 19723).all()


def test_unusual_iso_texts_are_read_as_usual_ones():
    same = ["2024-12-31 01:30", "2024-12-31  1:30", "2024-12-31T01:30:00", "2024-12-31 1:30:00Z", "2024/12/31 1:30 AM"]
    assert (parse_dates(same, "ymd") == parse_dates(same[:1], "ymd")).all()
    assert np.isnan(parse_dates(["2024-W01-1", "2024-13-01", "2024-12-31X01:30", "2024-12-31 25:30"], "ymd")).all()


def test_one_cell_decides_the_order_of_the_whole_column():
    twelve = [f"{day:02}/{month:02}/2024" for day in range(1, 13) for month in (5, 3, 9)]
    assert infer(*twelve, "13/01/2024")[0] == "dmy" and infer(*twelve, "01/13/2024")[0] == "mdy"
    assert infer(*twelve, "13/01/2024")[1] == infer(*twelve, "01/13/2024")[1] == ""


@pytest.mark.parametrize(
    "cells, date_format, reason",
    [
        (("03/01/2024", "04/01/2024", "03/02/2024"), "dmy", "day first, because the rows are in time order then"),
        (("01/03/2024", "01/04/2024", "02/03/2024"), "mdy", "month first, because the rows are in time order then"),
        (("01/03/2024", "01/04/2024", "01/05/2024"), "dmy", "all dates are the first day of a month then"),
        (("03/01/2024", "02/05/2024", "04/02/2024"), "mdy", "month first, because slashes are usual for it"),
        (("03.01.2024", "02.05.2024", "04.02.2024"), "dmy", "day first, because dots and hyphens are usual for it"),
    ],
)
def test_an_ambiguous_order_is_chosen_by_a_rule_that_the_remark_names(cells, date_format, reason):
    inferred, remark = infer(*cells)
    assert inferred == date_format and reason in remark
    assert remark.startswith(f"dates such as {cells[0]} do not show whether the day or the month is first: read as")
    assert infer("05/05/2024", "06/06/2024", "05/05/2024") == ("dmy", "")  # both orders are equal


@pytest.mark.parametrize(
    "cells",
    [
        ("1.2.10", "1.3.11", "2.0.10"),  # versions
        ("200001", "200013", "200003", "200004", "200005", "200006", "200007"),  # 13 is no month
        ("202401", "202402", "202403"),  # too few to be sure that they are no numbers
        ("31/02/2024", "30/02/2024"),
        ("may", "june"),
        ("16:9", "4:3"),
        ("192.168.1.10", "10.0.0.1"),
        ("", None),
    ],
)
def test_other_texts_and_numbers_are_no_dates(cells):
    assert infer(*cells) == (None, "")


def test_a_cell_of_another_format_does_not_fit():
    cells = ["31/12/2024", "2024-12-31", "12/31/2024", "soon", "31/12/24", "31.12.2024 10:00"]
    assert np.isnan(parse_dates(cells, "dmy")).tolist() == [False, True, True, True, False, False]
    assert infer(*["31/12/2024"] * 10, "2024-12-31")[0] == "dmy"


@pytest.mark.parametrize("date_format", FORMATS)
def test_the_example_of_a_format_has_it(date_format):
    example = example_of(date_format)
    assert not np.isnan(parse_dates([example], date_format)).any()
    assert describe_order(date_format) == {"dmy": "day first", "mdy": "month first"}.get(date_format, "")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.from_regex(r"\A[012]\d{3}-[01]\d-[0-3]\d(?:[ T][012]\d:[0-6]\d(?::[0-6]\d)?)?\Z"), min_size=1))
def test_usual_iso_texts_are_what_python_reads(texts):
    def days(text):
        try:
            return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() / 86_400
        except ValueError:
            return np.nan

    np.testing.assert_array_equal(parse_dates(texts, "ymd"), [days(text) for text in texts])


def test_one_text_that_is_no_day_leaves_the_others_as_they_are():
    texts = ["2024-02-28", "2024-02-30", "2024-02-29 12:00", "0000-01-01", "2024-02-29T12:00:00", "２０２４-01-01"]
    found = parse_dates(texts, "ymd")
    assert np.isnan(found).tolist() == [False, True, False, True, False, True]
    assert found[4] - found[0] == 1.5 and found[2] == found[4]
