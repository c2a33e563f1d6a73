import json

import numpy as np
import pandas as pd
import pytest

from skipway.data.sources.read_table import frame_table
from skipway.data.sources.text_column import TextColumn
from skipway.data.tables.columns import Column, fit_column, infer_cell_style
from skipway.data.tables.date_columns import DateEncoder, fit_dates
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError


def days(moments):
    return ((moments - pd.Timestamp("1970-01-01")) / pd.Timedelta(days=1)).to_numpy(np.float64)


def hours(count=24 * 500, start="2023-03-05"):
    return pd.date_range(start, periods=count, freq="h")


def names(moments, date_format="ymd"):
    return [name for name, _ in fit_dates(days(moments), date_format).parts]


def test_only_parts_that_vary_are_inputs():
    assert names(hours()) == ["year", "month", "day of year", "day of month", "weekday", "hour"]
    assert names(hours(48)) == ["day of month", "weekday", "hour"]
    assert names(pd.date_range("2024-01-01", periods=90, freq="min")) == ["hour", "minute"]
    assert names(pd.date_range("2020-01-01", periods=40, freq="MS")) == ["year", "month"]
    assert names(pd.date_range("2000-06-30", periods=9, freq="YE-JUN")) == ["year"]
    assert names(pd.to_datetime(["1970-01-01 10:00", "1970-01-01 17:30"]), "time") == ["hour", "minute"]


def test_cycles_are_those_of_pandas():
    moments = hours().append(pd.to_datetime(["1904-02-29 17:45:10", "1969-12-31 23:59:59"]))
    encoder = fit_dates(days(moments), "ymd")
    lengths = np.where(moments.is_leap_year, 366, 365)
    second = moments.hour * 3600 + moments.minute * 60 + moments.second
    positions = {
        "month": (moments.month - 1) / 12,
        "day of year": (moments.day_of_year - 1) / lengths,
        "day of month": (moments.day - 1) / moments.days_in_month,
        "weekday": moments.day_of_week / 7,
        "hour": second / 86400,
        "minute": (second % 3600) / 3600,
    }
    expected = []
    for name, harmonics in encoder.parts[1:]:
        angles = 2 * np.pi * np.outer(positions[name], np.arange(1, harmonics + 1))
        expected += [np.sin(angles), np.cos(angles)]
    assert np.allclose(encoder.cycles(days(moments)), np.concatenate(expected, axis=1), atol=1e-5)
    starts = pd.to_datetime(moments.year.astype(str) + "-01-01")
    assert np.array_equal(encoder.year_starts(days(moments)), days(starts))


def test_a_function_of_the_weekday_is_linear_in_its_inputs():
    moments = pd.date_range("2024-01-01", periods=28)
    weekday = DateEncoder("ymd", 0.0, 1.0, (("weekday", 3),)).cycles(days(moments))
    target = np.array([3.0, -1, 4, 1, -5, 9, 2])[moments.day_of_week]
    design = np.column_stack([weekday, np.ones(28)])
    assert np.allclose(design @ np.linalg.lstsq(design, target, rcond=None)[0], target)


def test_a_column_of_dates_has_its_trend_its_year_and_its_cycles():
    texts = hours().strftime("%d.%m.%Y %H:%M").tolist()
    column, counts = fit_column("t", "date", TextColumn.of([*texts, None]))
    values, problems = column.read_numbers(TextColumn.of([*texts[:2], "", "2024-01-01"]))
    inputs = column.encoded(values)
    assert column.num_inputs == inputs.shape[1] == 28 and column.indicator and counts == {"missing": 1}
    assert np.array_equal(inputs[:, 0], column.scaled(values)) and not inputs[2:].any() and inputs.dtype == np.float32
    assert inputs[0, 1] == column.scaled(days(pd.to_datetime(["2023-01-01"])))[0]
    assert [p.why for p in problems] == ["expected a date such as 31/12/2024, got '2024-01-01'"]
    text = "day first; 2023-03-05 00:00 to 2024-07-16 23:00; inputs: trend, year, month, day of year"
    assert column.dates.describe() == text + ", day of month, weekday, hour"


def test_the_format_is_that_of_the_whole_column():
    whole = TextColumn.of(["03/04/2024", "05/06/2024", "07/08/2024", "31/12/2024"])
    assert fit_column("t", "date", whole[:3])[0].dates.date_format == "mdy"
    assert fit_column("t", "date", whole[:3], infer_cell_style("date", whole))[0].dates.date_format == "dmy"
    empty, _ = fit_column("t", "date", TextColumn.of([None, None]), infer_cell_style("date", whole))
    assert empty.dates.date_format == "dmy" and empty.num_inputs == 1


def test_a_description_shows_the_precision_of_the_cells():
    def described(cells):
        return fit_column("t", "date", TextColumn.of(cells))[0].dates.describe()

    assert described(["08:15", "12:30"]) == "08:15 to 12:30; inputs: trend, hour, minute"
    assert described(["2024-11", "2024-12"]) == "2024-11 to 2024-12; inputs: trend, month"
    assert described(["2024-12-30"]) == "2024-12-30 to 2024-12-30"


def spec_of(frame):
    columns = tuple(fit_column(name, "date", cells)[0] for name, cells in frame_table(frame).columns.items())
    return TableSpec(
        (*columns, Column("n", "number", indicator=True)),
        target_names=("y",),
        task="regression",
        target_mean=(0.0,),
        target_std=(1.0,),
    )


def test_a_spec_places_all_inputs_of_a_column_before_the_indicators_and_survives_json():
    frame = pd.DataFrame({"a": hours(60).astype(str), "b": hours(60).strftime("%H:%M")})
    frame.loc[3, "a"] = None
    spec = spec_of(frame)
    a, b, _ = spec.columns
    assert spec.input_shape == (a.num_inputs + b.num_inputs + 1 + 2,) and spec.random_rows(4).shape == (
        4,
        *spec.input_shape,
    )
    x = spec.encode(frame_table(frame.assign(n=[1.0] * 59 + [np.nan]))).x
    assert np.array_equal(
        x[:, a.num_inputs : a.num_inputs + b.num_inputs],
        b.encoded(b.read_numbers(TextColumn.of(frame["b"].tolist()))[0]),
    )
    assert x[3, -2] == 1 and x[:, -2].sum() == 1 and x[59, -1] == 1 and not x[3, : a.num_inputs].any()
    stored = json.loads(json.dumps(spec.as_dict()))
    assert TableSpec.from_dict(stored) == spec and stored["columns"][0]["dates"]["parts"]["hour"] == 4
    assert "dates" not in stored["columns"][2]


def test_a_spec_of_an_earlier_version_encodes_dates_as_one_number():
    stored = {"name": "t", "kind": "date", "center": 10.0, "scale": 2.0, "indicator": False}
    values = {"columns": [stored], "task": "classification", "class_names": ["a", "b"], "target_names": ["y"]}
    spec = TableSpec.from_dict(values)
    cells = ["1970-01-13", "1970/01/11", "1970-01-11T12:00:00+12:00"]
    assert spec.input_shape == (1,) and spec.as_dict()["columns"] == [stored]
    assert np.allclose(
        spec.encode(frame_table(pd.DataFrame({"t": cells}))).x[:, 0], np.array([1, 0, 0]) / np.sqrt(10 / 9)
    )
    assert (
        repr(spec.columns[0]) == "Column(name='t', kind='date', center=10.0, scale=2.0, indicator=False, categories=())"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"format": "guess"},
        {"parts": {"century": 1}},
        {"parts": {"hour": 0}},
        {"parts": {"hour": 31}},
        {"parts": {"year": 1}},
        {"first": "nan"},
        {"parts": None},
    ],
)
def test_dates_of_a_file_are_checked(change):
    dates = {"format": "ymd", "first": 0.0, "last": 1.0, "parts": {"hour": 4}} | change
    column = {"name": "t", "kind": "date", "dates": dates}
    values = {"columns": [column], "task": "classification", "class_names": ["a", "b"], "target_names": ["y"]}
    with pytest.raises(InputError, match="cannot read a TableSpec: expected valid columns and numbers, got"):
        TableSpec.from_dict(values)
