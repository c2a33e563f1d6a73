import numpy as np
import pandas as pd
import pyarrow
import pytest
from pyarrow import parquet

from skipway.data.sources.read_table import frame_table, read_table
from skipway.data.sources.text_column import TextColumn, join_columns
from skipway.data.tables.columns import column_to_dict, columns_from_dicts, fit_column, read_numbers
from skipway.data.tables.input_kinds import infer_input_kind, targets_follow_order


def kind_of(cells):
    return infer_input_kind("c", frame_table(pd.DataFrame({"c": cells})))


def test_a_category_of_pandas_stays_one_although_it_holds_numbers():
    numbers = np.arange(60) % 3
    assert kind_of(numbers) == ("number", "") and kind_of(pd.Categorical(numbers)) == ("category", "")
    assert kind_of(pd.Categorical(["yes", "no"] * 10)) == ("category", "")
    assert kind_of(pd.Categorical([1] * 9)) == ("", "constant")
    assert kind_of(pd.Categorical([None] * 9)) == ("", "empty")
    assert kind_of(pd.Categorical(np.arange(30))) == ("", "identifier: all values differ")
    cells = frame_table(pd.DataFrame({"c": pd.Categorical([2.0, None, 1.5])})).columns["c"]
    assert cells.tolist() == ["2", None, "1.5"] and cells[:2].is_category
    assert join_columns([cells, cells]).is_category and not join_columns([cells, TextColumn.of(["a"])]).is_category


def test_a_category_of_pandas_is_one_in_a_parquet_file(tmp_path):
    frame = pd.DataFrame({"store": pd.Categorical([3, 1, 2] * 10), "size": np.arange(30.0) ** 2})
    frame.to_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert [infer_input_kind(name, table)[0] for name in frame] == ["category", "number"]
    assert table.columns["store"].tolist() == ["3", "1", "2"] * 10


def test_numbers_are_dates_if_every_one_of_them_is():
    months = [int(m) for m in pd.period_range("2022-01", periods=24, freq="M").strftime("%Y%m")]
    assert kind_of(months) == ("date", "") and kind_of(list(map(str, months))) == ("date", "")
    assert kind_of([*months, None])[0] == "date" and kind_of([*months, 202413])[0] == "number"
    assert kind_of([20240101, 20240215, 20240331, 20231231, 20230101, 20220630])[0] == "date"
    column, _ = fit_column("c", "date", np.array(months, float))
    values, problems = column.read_numbers(np.array([202401, 7.0, np.nan]))
    assert values[0] == 19723 and np.isnan(values[1:]).all()
    assert [p.why for p in problems] == ["expected a date such as 202412, got '7'"]


def typed():
    return pd.DataFrame(
        {
            "moment": pd.to_datetime(["2024-03-01 10:00", "2024-07-01 10:00", None]),
            "local": pd.to_datetime(["2024-03-01 11:00", "2024-07-01 12:00", None]).tz_localize("Europe/Berlin"),
            "day": [pd.Timestamp("2024-03-01").date(), pd.Timestamp("2024-07-01").date(), None],
            "lasted": pd.to_timedelta([90, 0.5, None], unit="s"),
        }
    )


def check_typed(table):
    for name in ("moment", "local"):
        assert infer_input_kind(name, table)[0] == "date"
        assert read_numbers(table.columns[name], "date", name)[0][:2] == pytest.approx(
            [19783 + 10 / 24, 19905 + 10 / 24]
        )
    assert table.columns["lasted"][:2].tolist() == [90, 0.5] and np.isnan(table.columns["lasted"][2])
    assert infer_input_kind("day", table)[0] == "date"
    assert table.notes == ["column 'local': times of the zone Europe/Berlin are converted to UTC"]


def test_typed_dates_and_durations_of_frames_and_parquet_are_read(tmp_path):
    check_typed(frame_table(typed()))
    typed().to_parquet(tmp_path / "t.parquet")
    check_typed(read_table(tmp_path / "t.parquet"))
    times = pyarrow.table({"t": pyarrow.array([36000, 45000, None], pyarrow.time32("s"))})
    parquet.write_table(times, tmp_path / "times.parquet")
    assert infer_input_kind("t", read_table(tmp_path / "times.parquet")) == ("date", "")


def test_periods_are_dates_of_their_first_day():
    frame = pd.DataFrame(
        {
            "month": pd.period_range("2024-01", periods=3, freq="M"),
            "quarter": pd.period_range("2024Q1", periods=3, freq="Q"),
        }
    )
    table = frame_table(frame)
    assert read_numbers(table.columns["month"], "date", "c")[0].tolist() == [19723, 19754, 19783]
    assert infer_input_kind("quarter", table)[0] == "date" and table.columns["quarter"][1] == "2024-04-01T00:00:00"
    lasted = pd.Series([pd.Timedelta(days=1).to_pytimedelta(), None], dtype=object)
    assert frame_table(pd.DataFrame({"c": lasted})).columns["c"][0] == 86400


def test_targets_that_follow_the_order_of_the_rows_are_noticed():
    rng = np.random.default_rng(0)
    count = np.arange(400)
    noise = rng.normal(size=400)
    assert targets_follow_order((0.01 * count + noise)[:, None])
    assert targets_follow_order((3 * np.sin(count / 20) + noise)[:, None])
    assert targets_follow_order(np.stack([noise, -1.0 * count], axis=1))
    assert not targets_follow_order(noise[:, None]) and not targets_follow_order(np.ones((400, 1)))
    random = [targets_follow_order(rng.normal(size=(100, 1))) for _ in range(200)]
    assert sum(random) <= 1


def kind_named(name, cells):
    return infer_input_kind(name, frame_table(pd.DataFrame({name: cells})))


def test_numbers_with_leading_zeros_are_codes_if_they_repeat():
    zips = ["00137", "10115", "50667"]
    kind, remark = kind_of(zips * 10)
    assert kind == "category" and remark.startswith(
        "categories, because whole numbers with leading zeros such as '00137'"
    )
    assert kind_of([*zips * 10, None, "unknown"])[0] == "category"
    kind, remark = kind_of([f"{i:05}" for i in range(7, 900, 7)])
    assert kind == "number" and remark.endswith("repeat too little for categories")
    assert kind_of([f"{month:02}" for month in range(1, 13)] * 9) == ("number", "")  # months have an order
    assert kind_of(["0830", "1215", "2359"] * 9) == ("number", "")  # so have times
    assert kind_of(["0.5", "0.25", "007"] * 9)[0] == "number" and kind_of(["137", "10115", "9"] * 9) == ("number", "")


@pytest.mark.parametrize("name", ["store_id", "StoreID", "storeId", "zip", "Zip Code", "PLZ", "product-key", "id"])
def test_whole_numbers_with_the_name_of_codes_are_codes_if_they_repeat(name):
    stores = np.arange(40) % 4 * 7 + 3
    assert kind_named(name, stores)[0] == "category"
    assert kind_named(name, stores + 1200)[0] == "category", "1203 is no time in such a column"
    assert kind_named(name, np.arange(40) * 7 % 39)[0] == "number", "nearly all values differ"
    assert kind_named(name, stores - 10)[0] == "number" and kind_named(name, stores + 0.5)[0] == "number"
    assert kind_named(name, stores % 2)[0] == "number", "two values are the same as numbers"


@pytest.mark.parametrize("name", ["paid", "kid", "grid", "encode", "monkey", "rooms", "zip_area", "width"])
def test_other_names_are_not_those_of_codes(name):
    assert kind_named(name, np.arange(40) % 4) == ("number", "")


def test_codes_are_found_in_other_spellings():
    column, _ = fit_column("zip", "category", TextColumn.of(["00137", "10115", "07", "7"] * 2))
    assert column.are_codes and column_to_dict(column)["are_codes"]
    found = column.slot_indices(np.array([137.0, 10115.0, 99.0, 7.0]))
    assert [column.categories[i - 2] if i > 1 else i for i in found] == ["00137", "10115", 0, "7"]
    assert column.slot_indices(TextColumn.of(["10115.0", "0137", "007"])).tolist() == [
        *column.slot_indices(TextColumn.of(["10115", "00137"])),
        0,
    ]
    words, _ = fit_column("zip", "category", TextColumn.of(["00137", "a"] * 2))
    assert not words.are_codes and words.slot_indices(TextColumn.of(["137"])).tolist() == [0]
    assert "are_codes" not in column_to_dict(words)
    assert columns_from_dicts([column_to_dict(column), column_to_dict(words)]) == (column, words)


def test_long_text_is_no_input():
    remarks = [f"the garden of house {i} is large and quiet" for i in range(30)]
    text = ("", "long text, 30 distinct texts of 9 words on average")
    assert kind_of(remarks) == text and kind_of(remarks * 2)[0] == "" and kind_of(remarks * 3)[0] == "category"
    assert kind_of([f"Mr. Name {i}" for i in range(30)]) == ("", "identifier: all values differ")
    assert kind_of(remarks[:15])[0] == "category", "in few rows, all values may differ"


def test_a_file_without_leading_zeros_is_not_read_again_for_codes(tmp_path):
    frame = pd.DataFrame(
        {"n": np.arange(40) % 4 * 100, "x": np.arange(40) / 7, "zip": ["00137", "10115", "50667", "80331"] * 10}
    )
    frame.drop(columns="zip").to_csv(tmp_path / "plain.csv", index=False)
    frame.to_csv(tmp_path / "padded.csv", index=False)
    plain = read_table(tmp_path / "plain.csv").columns["n"]
    assert not plain.may_be_padded() and plain._load is not None
    table = read_table(tmp_path / "padded.csv")
    kinds = [infer_input_kind(name, table)[0] for name in frame]
    assert table.columns["n"].may_be_padded() and kinds == ["number", "number", "category"]
