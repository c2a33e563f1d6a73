"""Targets of tables: labels and several numbers; test_dataset.py has single classes and numbers."""

import unicodedata

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import MultiLabelBinarizer
from table_files import homes, lines

from skipway.data.column_roles import ColumnRoles
from skipway.data.folds import Fold
from skipway.data.sources.read_table import frame_table, read_table
from skipway.data.tables.dataset import build_table_dataset, describe_table, describe_target, encode_labeled
from skipway.data.tables.table_source import TableSource, open_table_source
from skipway.errors import InputError
from skipway.runs.table_baseline import baseline


def tagged(count=60, seed=0):
    """Homes with three labels in columns of 0 and 1, in a text, and in a list; the last row has none."""
    frame = homes(count, seed).drop(columns=["price", "dear"])
    size = frame["size"].fillna(50)
    frame["big"] = (size > 55).astype(int)
    frame["green"] = (frame["garden"] == "yes").astype(int)
    frame["old"] = np.arange(count) % 4 == 0
    frame.loc[count - 1, ["big", "green", "old", "garden"]] = [0, 0, False, "no"]
    names = ["big", "green", "old"]
    frame["tags"] = [[name for name in names if row[name]] for _, row in frame[names].iterrows()]
    frame["text"] = ["; ".join(reversed(tags)) for tags in frame["tags"]]
    return frame, names


def built(frame, fold=None, **roles):
    source = TableSource("t", {"train": frame_table(frame)}, ColumnRoles.of(roles))
    return build_table_dataset(source, 0.25, 0, fold=fold)


@pytest.mark.parametrize("target, options", [("big,green,old", {}), ("text", {"label_sep": ";"}), ("tags", {})])
def test_labels_in_columns_in_a_text_and_in_lists_are_one_target(target, options):
    frame, names = tagged()
    ignored = [name for name in (*names, "tags", "text") if name not in target.split(",")]
    rows = built(frame, target=target, ignore=ignored, **options)
    assert rows.spec.task == "multilabel" and rows.spec.class_names == tuple(names)
    assert rows.spec.target_names == tuple(target.split(",")) and rows.spec.label_sep == options.get("label_sep", "")
    expected = MultiLabelBinarizer(classes=names).fit_transform(frame["tags"])
    assert rows.y.dtype == np.float32 and np.array_equal(rows.y, expected) and not rows.skipped
    assert rows.target_text(0) == "|".join(frame["tags"][0]) and rows.target_text(59) == ""
    facts = describe_table(rows)
    assert facts["task"] == "multilabel" and describe_target(rows.spec) == "3 labels"
    totals = {name: sum(by_split.values()) for name, by_split in facts["classes"].items()}
    assert totals == dict(zip(names, expected.sum(axis=0), strict=True))
    assert any("fewer than 20 training rows: " in warning and "'old'" in warning for warning in facts["warnings"])
    again = encode_labeled(frame_table(frame), rows.spec)
    assert np.array_equal(again.y, rows.y) and again.digests == rows.digests


def test_the_rarest_label_is_on_both_sides_and_folds_are_stratified():
    frame, _ = tagged()
    frame["rare"] = np.arange(60) % 20 == 3
    roles = {"target": "big,rare", "ignore": ["tags", "text", "old"]}
    rows = built(frame, **roles)
    assert all(rows.y[ids, 1].sum() >= 1 for ids in rows.splits.values())
    folds = [built(frame, fold=Fold(number, 3), **roles) for number in (1, 2, 3)]
    assert [int(part.y[part.splits["val"], 1].sum()) for part in folds] == [1, 1, 1]


def test_several_numbers_are_standardized_with_the_training_rows():
    frame = homes(60).drop(columns="dear").assign(rent=lambda f: f["price"] / 100 + 7)
    frame.loc[5, "rent"] = np.nan
    source = TableSource("t", {"train": frame_table(frame)}, ColumnRoles.of({"target": "price,rent"}))
    rows = build_table_dataset(source, 0.25, 0, max_unreadable=0.1)
    assert rows.spec.task == "regression" and rows.y.shape == (59, 2) and rows.y.dtype == np.float32
    kept = frame.drop(index=5)[["price", "rent"]].to_numpy()
    assert rows.spec.target_mean == pytest.approx(kept[rows.splits["train"]].mean(axis=0))
    assert np.allclose(rows.spec.in_units(rows.y.astype(np.float64)), kept, rtol=1e-5)
    assert (
        rows.target_text(0) == f"{kept[0, 0]:.7g}|{kept[0, 1]:.7g}"
        and describe_target(rows.spec) == "2 numbers (regression)"
    )
    assert rows.skipped[0].reason == "no value in the target 'price' or 'rent'"
    with pytest.raises(InputError, match="cannot use the target 'price' or 'rent': expected a share of missing values"):
        build_table_dataset(source, 0.25, 0)


def test_a_determined_label_is_a_leak():
    frame, _ = tagged()
    rows = built(frame, target="big,green", ignore=["tags", "text", "old"])
    assert any("column 'garden' determines the target 'green'" in warning for warning in rows.warnings)
    assert not any("'big'" in warning for warning in rows.warnings)


def test_columns_to_learn_from_and_lists_that_are_no_target():
    frame = tagged()[0].assign(area=np.arange(60.0) + 1)
    rows = built(frame, target="big,green", features=["size", "city"])
    assert [column.name for column in rows.spec.columns] == ["size", "city"]
    assert rows.left_out["garden"] == "not in --features"
    rows = built(frame, target="green", ignore=["text", "size"], weight_column="area")
    assert rows.left_out["tags"] == "lists" and rows.left_out["area"] == "--weight-column"


def test_names_with_commas_and_labels_of_another_unicode_form(tmp_path):
    texts = ("\u00e9", "e\u0301;b")
    rows = [f"{i * i},{i % 2},{int(i % 3 > 0)},{texts[i % 2]}" for i in range(40)]
    path = lines(tmp_path / "t.csv", 'x,"red, dark",blue,tags', *rows)
    named = open_table_source(str(path), ColumnRoles.of({"target": '"red, dark",blue', "ignore": "tags"}))
    assert build_table_dataset(named, 0.2, 0).spec.class_names == ("red, dark", "blue")
    tags = open_table_source(str(path), ColumnRoles.of({"target": "tags", "label_sep": ";"}))
    assert build_table_dataset(tags, 0.2, 0).spec.class_names == ("b", unicodedata.normalize("NFC", "é"))


def test_an_empty_cell_has_no_labels_and_a_missing_list_no_target(tmp_path):
    path = lines(tmp_path / "t.csv", "x,tags", *[f"{i * i},{'a b' if i % 2 else ''}" for i in range(40)])
    rows = build_table_dataset(
        open_table_source(str(path), ColumnRoles.of({"target": "tags", "label_sep": " "})), 0.2, 0
    )
    assert rows.y.sum(axis=1).tolist() == [2 * (i % 2) for i in range(40)]
    frame = pd.DataFrame({"x": np.arange(40.0) ** 2, "tags": [["a"], [], None, ["b", "a"]] * 10})
    source = TableSource("t", {"train": frame_table(frame)}, ColumnRoles.of({"target": "tags"}))
    rows = build_table_dataset(source, 0.2, 0, max_unreadable=0.3)
    assert len(rows.skipped) == 10 and rows.y.sum(axis=0).tolist() == [20, 10]


def test_lists_in_parquet_are_labels(tmp_path):
    frame, names = tagged()
    frame.to_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert table.columns["tags"].separator and table.columns["tags"].tolist()[59] == ""
    source = open_table_source(str(tmp_path / "t.parquet"), ColumnRoles.of({"target": "tags", "features": "size"}))
    assert build_table_dataset(source, 0.2, 0).spec.class_names == tuple(names)
    for cells, kind in (([{"a": 1}], "dict"), ([["a"], "b"], "list"), ([[["a"]]], "list")):
        with pytest.raises(InputError, match=f"column 'a': expected strings or numbers, got a {kind}. Split it into"):
            frame_table(pd.DataFrame({"a": pd.Series(cells, dtype=object)})).columns["a"].tolist()


@pytest.mark.parametrize(
    "roles, said",
    [
        (
            {"target": "big,green", "task": "classification"},
            "expected one target column for --task classification, got",
        ),
        ({"target": "big,size", "task": "multilabel"}, r"row 0, column 'size': expected 0 or 1, got '60.*Correct"),
        ({"target": "big,city"}, "'city': expected several targets to be numbers, or 0 and 1, got 'Ulm'. Train a"),
        ({"target": "big,big"}, "cannot use --target big,big: expected each column once. Remove the repeated name"),
        ({"target": "blank", "label_sep": ";"}, "expected labels that occur in several rows, got none. Check --label"),
        ({"target": "name", "label_sep": ";"}, "labels that occur in several rows, got a different one in every row"),
        ({"target": "big,none"}, "cannot learn the label 'none' of t: expected rows with 1, got none. Remove it"),
        ({"target": "big,green", "label_sep": ";"}, "--label-sep with 2 target columns: expected one column of labels"),
        (
            {"target": "tags", "task": "regression"},
            "expected one value per row for --task regression, got several",
        ),
        ({"target": "city", "task": "multilabel"}, "column 'city': expected 0 or 1, got 'Ulm'"),
    ],
)
def test_targets_that_fit_no_task_are_named_by_row_and_column(roles, said):
    frame, _ = tagged()
    frame["blank"], frame["name"] = "", [f"home {i}" for i in range(60)]
    frame["none"], frame["size"] = 0, frame["size"].fillna(60)
    frame.loc[0, ["size", "city"]] = [60.5, "Ulm"]
    source = TableSource("t", {"train": frame_table(frame, "t")}, ColumnRoles.of(roles))
    with pytest.raises(InputError, match=said):
        build_table_dataset(source, 0.2, 0, max_unreadable=0.5)


def test_a_label_that_training_does_not_know_is_refused():
    frame, _ = tagged()
    rows = built(frame, target="tags", features="size,city")
    other = frame.head(10).copy()
    other["tags"] = [["big"]] * 9 + [["big", "new"]]
    with pytest.raises(InputError, match="row 9, target 'tags': expected one of the training labels 'big', .* got 'n"):
        encode_labeled(frame_table(other), rows.spec)


@pytest.mark.parametrize("target", ["big,green,old", "size,price", "big,never"])
def test_the_baseline_has_a_model_for_each_label_or_number(target):
    frame, _ = tagged(120)
    frame["size"], frame["never"] = frame["size"].fillna(0), np.arange(120) == 7
    frame["price"] = frame["size"] * 2 + frame["green"]
    used = ["city", "garden", *(["built"] if "size" in target else ["size"])]
    rows = built(frame, target=target, features=used)
    if "never" in target:  # the baseline must handle a label that no training row has
        rows.y[:, 1] = 0
        rows.y[rows.splits["val"][0], 1] = 1
    metrics = baseline(rows)
    assert metrics["name"] == "gradient boosting" and metrics["seconds"] >= 0
    assert np.isfinite(metrics["val_r2" if "size" in target else "val_map"])


def test_the_baseline_leaves_out_many_labels():
    frame = pd.DataFrame({f"y{i}": np.arange(60) % (i + 2) == 0 for i in range(21)}).assign(x=np.arange(60.0) ** 2)
    rows = built(frame, target=",".join(f"y{i}" for i in range(21)))
    assert baseline(rows)["reason"] == "not trained: expected at most 20 labels or numbers, got 21"
    frame = pd.DataFrame({"t": [f"kind {i % 101}" for i in range(404)], "x": np.arange(404.0) ** 2})
    assert baseline(built(frame, target="t"))["reason"] == "not trained: expected at most 100 classes, got 101"
