import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_files import homes, lines, written

from skipway.data.column_roles import ColumnRoles
from skipway.data.sample_order import Shard
from skipway.data.sources.choose_source import open_source
from skipway.data.sources.read_table import frame_table
from skipway.data.tables.dataset import build_table_dataset, describe_table, encode_labeled, fingerprint_table
from skipway.data.tables.loader import RowBatches
from skipway.data.tables.table_source import TableSource, open_table_source
from skipway.errors import InputError

CITIES = ["Bonn", "Mars"]


def tables(frame, target="price", **more):
    return TableSource("t", {"train": frame_table(frame)}, ColumnRoles.of({"target": target, **more}))


def rows_of(frame, target="price", fraction=0.25, seed=0, max_unreadable=0.01, **more):
    return build_table_dataset(tables(frame, target, **more), fraction, seed, max_unreadable=max_unreadable)


# What DATA is


def test_a_file_a_folder_and_a_bundled_name_are_tables(tmp_path):
    path = written(tmp_path / "homes.csv", homes())
    assert open_table_source(str(path), ColumnRoles(target=("price",))).name == "homes"
    folder = tmp_path / "split"
    folder.mkdir()
    for name, seed in (("train", 0), ("valid", 1), ("test", 2)):
        written(folder / f"{name}.csv", homes(40, seed))
    found = open_table_source(str(folder), ColumnRoles(target=("dear",)))
    assert list(found.splits) == ["train", "val", "test"]
    rows = build_table_dataset(found, 0.2, 0)
    assert [len(rows.splits[s]) for s in ("train", "val", "test")] == [40, 40, 40]
    wine = open_table_source("wine")
    assert wine.roles.target == ("target",) and wine.roles.task == "classification"
    assert (
        open_table_source(str(tmp_path / "none"), ColumnRoles(target=("price",))) is None
        and open_table_source("digits") is None
    )
    written(folder / "validation.tsv", homes(9), sep="\t")
    with pytest.raises(InputError, match="expected one val table, got .*valid.csv and validation.tsv. Remove one"):
        open_table_source(str(folder), ColumnRoles(target=("dear",)))


def test_target_and_ignored_columns_are_found_by_name(tmp_path):
    path = str(written(tmp_path / "homes.csv", homes()))
    with pytest.raises(
        InputError, match="cannot use the table .*homes.csv: expected --target, got none. Choose one of"
    ):
        open_table_source(path)
    with pytest.raises(
        InputError,
        match=r"cannot find the column 'prise' in .*: expected one of 'size', 'city'.* \(did you mean price\?\)",
    ):
        open_table_source(path, ColumnRoles(target=("prise",)))
    with pytest.raises(InputError, match="cannot find the column 'sizes'"):
        open_table_source(path, ColumnRoles.of({"target": "price", "ignore": "sizes"}))
    with pytest.raises(InputError, match="column 'price' as --ignore: expected another column, got one that is also"):
        open_table_source(path, ColumnRoles.of({"target": "price", "ignore": "city,price"}))
    rows = build_table_dataset(
        open_table_source(path, ColumnRoles.of({"target": "price", "ignore": 'city, "dear"'})), 0.2, 0
    )
    assert [c.name for c in rows.spec.columns] == ["size", "garden", "built"]
    assert rows.left_out == {"city": "--ignore", "dear": "--ignore"}
    with pytest.raises(InputError, match="expected images, got a table. Pass a folder of class folders"):
        open_source("wine")


# Targets


@pytest.mark.parametrize(
    "values, asked, task, names",
    [
        (["b", "a"] * 20, "auto", "classification", ("a", "b")),
        ([2, 10, 1] * 20, "auto", "classification", ("1", "2", "10")),
        ([2, 10, 1] * 20, "regression", "regression", ()),
        (list(range(60)), "auto", "regression", ()),
        ([0.5, 1.5] * 20, "auto", "regression", ()),
        ([True, False] * 20, "auto", "classification", ("False", "True")),
        (["1.0", "2"] * 20, "auto", "classification", ("1", "2")),
    ],
)
def test_the_task_is_read_off_the_target_or_asked_for(values, asked, task, names):
    frame = pd.DataFrame({"x": np.random.default_rng(0).normal(size=len(values)), "y": values})
    rows = rows_of(frame, "y", task=asked)
    assert (rows.spec.task, rows.spec.class_names) == (task, names)
    told = [rows.target_text(i) for i in range(len(values))]
    told = [float(text) for text in told] if names == () else told
    assert told == pytest.approx([float(v) for v in values], abs=1e-4) if names == () else set(told) == set(names)


@pytest.mark.parametrize(
    "values, asked, said",
    [
        (
            [1.0, 2.5] * 20,
            "classification",
            r"row 1, target 'y': expected a class \(text or integer\), got 2.5. Use --task",
        ),
        (["a", "b"] * 20, "regression", "row 0, target 'y': expected a number for --task regression, got 'a'. Drop"),
        (["a"] * 40, "auto", "cannot learn the target 'y' of .*: expected at least 2 distinct values, got 1. Choose"),
        (
            [f"t{i}" for i in range(40)],
            "auto",
            "expected several rows per class, got 40 distinct values in 40 rows. Choose",
        ),
        (["a", "A"] * 20, "auto", "got 'a' and 'A', which differ only in case"),
        (
            ["1.5", "2"] * 19 + ["1,5", "x"],
            "regression",
            "row 38, column 'y': expected a decimal point as in other rows, got '1,5'",
        ),
        (
            [1, 2] * 20,
            "guess",
            "cannot set the task: expected one of auto, classification, multilabel, regression, got 'guess'",
        ),
    ],
)
def test_targets_that_cannot_be_learnt_are_refused_before_anything(values, asked, said):
    frame = pd.DataFrame({"x": np.random.default_rng(0).normal(size=len(values)), "y": values})
    with pytest.raises(InputError, match=said):
        rows_of(frame, "y", task=asked)


def test_rows_without_a_target_are_named_counted_and_limited(tmp_path):
    frame = homes(200)
    frame.loc[7, "price"] = np.nan
    path = written(tmp_path / "homes.csv", frame)
    rows = build_table_dataset(open_table_source(str(path), ColumnRoles(target=("price",))), 0.2, 0)
    assert [(s.key, s.reason) for s in rows.skipped] == [("homes.csv:9", "no value in the target 'price'")]
    assert len(rows.x) == 199 and describe_table(rows)["skipped"] == 1
    frame.loc[:9, "price"] = np.nan
    with pytest.raises(
        InputError,
        match=r"the target 'price': expected a share of missing values .* 0.01, got 10 of 200 rows \(row 0, .*\). Fill",
    ):
        rows_of(frame)
    assert len(rows_of(frame, max_unreadable=0.1).x) == 190


def test_too_few_rows_and_columns_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected at least 5 rows with a target, got 1. Add rows"):
        rows_of(homes(1))
    frame = pd.DataFrame({"a": [1] * 20, "b": [None] * 20, "y": np.arange(20.0) ** 2})
    with pytest.raises(InputError, match=r"expected columns other than the target 'y', got none \(unused: 'a"):
        rows_of(frame, "y")


def test_a_class_that_training_does_not_know_is_refused(tmp_path):
    frame = homes(40)
    both = {"train": frame_table(frame), "val": frame_table(frame.assign(dear=["dear"] * 39 + ["odd"]))}
    with pytest.raises(
        InputError, match="row 39, target 'dear': expected one of the training classes 'cheap', 'dear', got 'odd'"
    ):
        build_table_dataset(TableSource("t", both, ColumnRoles(target=("dear",))), 0.2, 0)


# Statistics come from the training rows alone


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), factor=st.floats(-1e6, 1e6), missing=st.booleans(), word=st.sampled_from(CITIES))
def test_what_stands_in_held_out_rows_changes_no_encoder(seed, factor, missing, word):
    frame = homes(60, seed=1).drop(columns="dear")
    rows = rows_of(frame, seed=seed)
    held = rows.splits["val"]
    other = frame.copy()
    other.loc[held, "size"] = np.nan if missing else other.loc[held, "size"] * factor + 3
    other.loc[held, "city"] = word
    again = rows_of(other, seed=seed)
    if np.array_equal(again.splits["val"], held):  # rows that became copies of others move together
        assert again.spec == rows.spec
    train = rows.splits["train"]
    column = next(c for c in rows.spec.columns if c.name == "size")
    assert column.center == frame["size"][train].median()
    prices = frame["price"][train]
    assert rows.spec.target_mean[0] == pytest.approx(prices.mean())
    assert rows.spec.target_std[0] == pytest.approx(prices.std(ddof=0))


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), fraction=st.floats(0.05, 0.9), kind=st.sampled_from(["price", "dear"]))
def test_splits_are_whole_disjoint_and_a_function_of_seed(seed, fraction, kind):
    frame = homes(50)
    one, two = (rows_of(frame, kind, fraction, seed) for _ in range(2))
    both = np.concatenate(list(one.splits.values()))
    assert sorted(both.tolist()) == list(range(50))
    assert all(np.array_equal(one.splits[s], two.splits[s]) for s in one.splits)
    assert fingerprint_table(one) == fingerprint_table(two)
    if kind == "dear":
        assert set(one.y[one.splits["val"]]) == set(one.y[one.splits["train"]]) == {0, 1}


def test_columns_in_another_order_are_the_same_rows_and_edits_are_not():
    frame = homes(50)
    mark = rows_of(frame).digests
    assert rows_of(frame[list(reversed(frame.columns))]).digests == mark
    frame.loc[3, "size"] = 99.0
    changed = rows_of(frame).digests
    assert [i for i in range(50) if changed[i] != mark[i]] == [3]


# What is odd is said


def test_leaks_identifiers_and_what_is_left_out_are_called_by_name():
    frame = homes(60)
    frame["copy"] = frame["dear"].map({"dear": "x", "cheap": "y"})
    frame["twice"] = frame["price"] * 2 + 1
    frame["home_id"] = np.random.default_rng(0).permutation(1000)[:60]
    frame["row"] = np.arange(60)
    frame["const"], frame["empty"] = 1, None
    rows = rows_of(frame, "dear", ignore=("price", "twice"))
    said = "\n".join(describe_table(rows)["warnings"])
    assert "column 'copy' determines the target 'dear', which may be target leakage" in said
    assert "'city' determines" not in said
    assert "column 'home_id' looks like an identifier: all values differ" in said
    assert "unused columns: 'price (--ignore)'" in said and "'row (row counter)'" in said
    assert "'const (constant)'" in said and "'empty (empty)'" in said
    said = "\n".join(rows_of(frame, ignore=("dear", "copy")).warnings)
    assert "column 'twice' determines the target 'price'" in said


def test_a_row_counter_is_kept_if_a_number_follows_it():
    frame = homes(120)
    count = np.arange(120)
    frame["n"] = count
    ignore = ("dear",)
    assert rows_of(frame, ignore=ignore).left_out["n"] == "row counter"  # the homes have no order
    frame["price"] += 3 * count
    rows = rows_of(frame, ignore=ignore)
    assert "n" in [c.name for c in rows.spec.columns] and "n" not in rows.left_out
    text = "column 'n': a row counter that the target follows: used as a number. See --split-by"
    assert text in rows.warnings
    assert "n" in rows_of(frame, "dear", ignore=("price",)).left_out


def test_the_order_of_dates_is_that_of_all_rows_and_is_described():
    frame = homes(60)
    frame["built"] = pd.to_datetime(frame["built"]).dt.strftime("%d/%m/%Y")
    frame["sold"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(60) * 6, unit="h")
    rows = rows_of(frame)
    column = {c.name: c for c in rows.spec.columns}
    assert describe_table(rows)["columns"] == {"number": 1, "category": 2, "boolean": 1, "date": 2}
    details = describe_table(rows)["column_details"]
    assert all(details[name]["style"] == column[name].dates.describe() for name in ("built", "sold"))
    assert column["built"].dates.describe().startswith("day first; 19")
    assert rows.x.shape == (60, *rows.spec.input_shape) and not [w for w in rows.warnings if "do not show" in w]
    assert fingerprint_table(rows) == fingerprint_table(rows_of(frame))
    frame["built"] = frame["built"].str.replace("15/", "05/")
    assert [w for w in rows_of(frame).warnings if w.startswith("column 'built': dates such as 05/")]


def test_copies_are_counted_and_stay_on_one_side():
    frame = homes(60)
    frame = pd.concat([frame, frame.head(10)], ignore_index=True)
    rows = rows_of(frame)
    assert "exact duplicates of other rows: 10" in rows.warnings
    side = {int(i): s for s, ids in rows.splits.items() for i in ids}
    assert all(side[i] == side[60 + i] for i in range(10))
    both = {"train": frame_table(homes(60)), "test": frame_table(homes(60).head(7))}
    rows = build_table_dataset(TableSource("t", both, ColumnRoles(target=("price",))), 0.2, 0)
    assert "duplicates across splits: 7. Validation and test metrics are inflated." in rows.warnings
    few = pd.DataFrame({"x": ["a", "b"] * 20, "y": ["p", "q"] * 20})  # two different rows: copies must be parted
    assert set(rows_of(few, "y").y[rows_of(few, "y").splits["val"]]) == {0, 1}


def test_imbalance_small_classes_and_few_validation_rows_are_said():
    frame = pd.DataFrame({"x": np.random.default_rng(0).normal(size=100), "y": ["a"] * 94 + ["b"] * 6})
    said = "\n".join(describe_table(rows_of(frame, "y"))["warnings"])
    assert "class imbalance (b 4, a 70 training rows)" in said or "class imbalance (b 5" in said
    assert "fewer than 20 training rows: 'b'" in said and "validation rows: metrics are uncertain" in said


def test_rare_categories_missing_values_and_unseen_ones_are_counted():
    frame = homes(60)
    frame.loc[5, "city"] = "Trier"
    notes = rows_of(frame).notes
    assert notes["values of 'city' rarely or never seen in training"] == 1
    assert notes["missing values in 'size'"] == frame["size"].isna().sum()


def test_a_bad_cell_is_refused_with_line_column_and_value(tmp_path):
    path = lines(tmp_path / "t.csv", "a,y", *[f"{i % 7 + i / 10},{i}" for i in range(30)], "abc,1", "inf,2", "x,3")
    said = "t.csv:32, column 'a': expected a number, got 'abc' .and 2 more such cells."
    with pytest.raises(InputError, match=said):
        build_table_dataset(open_table_source(str(path), ColumnRoles(target=("y",))), 0.2, 0)


def test_a_sign_that_is_no_number_is_refused_in_a_target(tmp_path):
    path = lines(tmp_path / "t.csv", "a,y", *[f"{i % 7 + i / 10},{i * i}" for i in range(30)], "1,-")
    with pytest.raises(
        InputError, match="t.csv:32, column 'y': expected a number, got '-'. Correct the cell, or leave"
    ):
        build_table_dataset(open_table_source(str(path), ColumnRoles(target=("y",))), 0.2, 0)


def test_labelled_rows_of_another_table():
    rows = rows_of(homes(60), "dear")
    other = homes(20, seed=3)
    other.loc[4, "dear"] = None
    found = encode_labeled(frame_table(other), rows.spec)
    assert found.x.shape == (19, rows.spec.input_shape[0]) and set(found.y) == {0, 1} and found.skipped == 1
    assert len(found.digests) == 19 and not set(found.digests) & set(rows.digests)
    again = encode_labeled(frame_table(homes(60)), rows.spec)
    assert again.digests == rows.digests
    with pytest.raises(
        InputError, match="cannot use the DataFrame: expected values in the target 'dear', got none. Fill"
    ):
        encode_labeled(frame_table(other.assign(dear=None)), rows.spec)


# Batches


@settings(max_examples=50)
@given(count=st.integers(2, 60), size=st.integers(2, 20), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 50))
def test_order_is_a_function_of_seed_and_epoch(count, size, seed, epoch):
    x, y = np.arange(count, dtype=np.float32)[:, None], np.arange(count)
    feed = RowBatches(x, y, y, size, seed=seed)
    whole = [ids.tolist() for _, _, ids in feed.epoch(epoch)]
    assert sorted(sum(whole, [])) == list(range(count)) and len(whole) == feed.steps and feed.count == count
    for start in range(feed.steps):
        assert [ids.tolist() for _, _, ids in feed.epoch(epoch, start)] == whole[start:]
    for rows, targets, ids in feed.epoch(epoch):
        assert rows[:, 0].tolist() == ids.tolist() == targets.tolist()
    with pytest.raises(InputError, match="expected at least 2 training rows, got 1. Add more rows"):
        RowBatches(x, y, y[:1], 2, seed=0)


@given(st.integers(4, 3000), st.integers(4, 700), st.sampled_from([1, 2]))
def test_training_batches_of_rows_are_about_equal(count, batch_size, processes):
    x, smallest = np.zeros((count, 1), np.float32), 2 * processes
    bounds = RowBatches(x, np.arange(count), np.arange(count), batch_size, seed=0, shard=Shard(0, processes)).bounds
    *most, last = [end - begin for begin, end in bounds]
    steps = -(-count // batch_size)
    assert [begin for begin, _ in bounds[1:]] == [end for _, end in bounds[:-1]] and bounds[-1][1] == count
    assert len(set(most)) <= 1 and len(bounds) <= steps and smallest <= last < batch_size + smallest
    assert not most or most[0] - steps < last < most[0] + smallest


def test_balanced_rows_are_of_every_class_as_often():
    y = np.array([0] * 40 + [1] * 6 + [2] * 2)
    feed = RowBatches(np.zeros((48, 1), np.float32), y, np.arange(48), 7, seed=3, balanced=True)
    drawn = [np.concatenate([ids for _, _, ids in feed.epoch(epoch)]) for epoch in (0, 1)]
    for ids in drawn:
        assert np.bincount(y[ids]).tolist() == [16, 16, 16] and set(ids[y[ids] > 0]) == set(range(40, 48))
    assert set(drawn[0][y[drawn[0]] == 0]) != set(drawn[1][y[drawn[1]] == 0])
