import numpy as np
import pytest

from skipway.data.column_roles import ColumnRoles
from skipway.data.folds import Fold
from skipway.data.sources.table import Table
from skipway.data.sources.text_column import TextColumn
from skipway.data.tables.dataset import build_table_dataset
from skipway.data.tables.table_source import TableSource, open_table_source
from skipway.errors import InputError


def visits(count=60, start=0, **more):
    """Rows of patients with five visits each, one a day."""
    i = np.arange(start, start + count)
    columns = {
        "patient": TextColumn.of([f"p{k // 5}" for k in i]),
        "day": TextColumn.of([f"2024-{1 + k // 28:02}-{1 + k % 28:02}" for k in i]),
        "weight": 1.0 + i % 3,
        "dose": np.sin(i),
        "ill": (i % 2).astype(float),
        **more,
    }
    return Table("visits.csv", columns, lambda row: f"visits.csv:{row + 2}")


def dataset(table=None, fold=None, test=None, allow=False, **roles):
    splits = {"train": table or visits(), **(test or {})}
    roles = ColumnRoles(target=("ill",), task="classification", **roles)
    source = TableSource("visits", splits, roles)
    return build_table_dataset(source, 0.25, 0, fold=fold, allow_duplicates=allow)


def patients(rows, split):
    return {row // 5 for row in rows.splits[split].tolist()}


def test_rows_of_a_group_stay_in_one_split_and_the_column_is_no_feature():
    rows = dataset(group_column="patient")
    assert not patients(rows, "train") & patients(rows, "val") and len(rows.splits["val"]) == 15
    assert rows.left_out["patient"] == "--group-column"
    assert {column.name for column in rows.spec.columns} == {"day", "weight", "dose"}
    validated = []
    for number in range(1, 4):
        rows = dataset(fold=Fold(number, 3), group_column="patient")
        assert not patients(rows, "train") & patients(rows, "val")
        validated += rows.splits["val"].tolist()
    assert sorted(validated) == list(range(60))


def test_groups_in_given_splits_are_refused_or_allowed():
    test = {"test": visits(10, 55)}
    with pytest.raises(InputError, match=r"cannot use visits: expected each group in only one .* p11 \(train, test\)"):
        dataset(test=test, group_column="patient")
    rows = dataset(test=test, group_column="patient", allow=True)
    assert "1 group in more than one split, such as p11 (train, test)" in " ".join(rows.warnings)
    with pytest.raises(InputError, match="cannot find the column 'clinic' in visits.csv"):
        dataset(group_column="clinic")


def test_the_last_rows_validate_and_the_column_is_a_feature_only_if_it_is_named():
    rows = dataset(split_by="day")
    assert rows.splits["val"].tolist() == list(range(45, 60))
    assert rows.notes["validation rows from day 2024-02-18 on"] == 15
    assert rows.left_out["day"] == "--split-by" and "day" not in {column.name for column in rows.spec.columns}
    rows = dataset(split_by="day", features=("day", "dose"))
    assert "day" in {column.name for column in rows.spec.columns}
    with pytest.raises(InputError, match="cannot use --split-by with visits: expected no validation rows, got 10"):
        dataset(test={"val": visits(10, 90)}, split_by="day")
    with pytest.raises(InputError, match="expected each group in only one split, got 1 in more"):
        dataset(split_by="day", group_column="half", table=visits(half=TextColumn.of(["a", *("b" * 30), *("a" * 29)])))


def test_weights_are_read_and_no_feature():
    rows = dataset(weight_column="weight")
    assert rows.weights.tolist() == [1.0, 2.0, 3.0] * 20 and rows.left_out["weight"] == "--weight-column"
    assert dataset(weight_column="one", table=visits(one=np.ones(60))).weights is None
    assert dataset().weights is None


def test_too_few_groups_of_rows_are_refused():
    with pytest.raises(InputError, match="cannot make 13 folds of visits: expected at least 13 groups, got 12"):
        dataset(fold=Fold(1, 13), group_column="patient")


def test_columns_that_suggest_groups_are_reported():
    assert any("'patient' suggests 12 groups: use --group-column" in text for text in dataset().warnings)
    assert not any("suggests" in text for text in dataset(group_column="patient").warnings)


def test_classes_with_one_row_are_trained_on(tmp_path):
    rng = np.random.default_rng(0)
    kinds = ["lone", "two", "two", *"xy" * 20]
    lines = [f"{rng.normal():.4f},{kind}" for kind in kinds]
    (tmp_path / "t.csv").write_text("\n".join(["a,kind", *lines, lines[-1]]))
    source = open_table_source(str(tmp_path / "t.csv"), ColumnRoles(target=("kind",)))
    rows = build_table_dataset(source, 0.2, 0)
    assert 0 in rows.splits["train"] and np.isin([42, 43], rows.splits["train"]).sum() in (0, 2)
    assert "1 class with one row: 'lone'. Its row is used for training only." in rows.warnings
    folds = [build_table_dataset(source, 0.2, 0, fold=Fold(k, 3)) for k in (1, 2, 3)]
    held = [set(fold.splits["val"].tolist()) for fold in folds]
    assert all(0 in fold.splits["train"] for fold in folds) and set().union(*held) == set(range(1, 44))
    assert any({42, 43} <= part for part in held), "copies stay in one fold"
    assert not any({1, 2} <= part for part in held), "a class of two rows is in two folds"
    assert "fewer rows than folds: 'two'. Some folds have none of them to validate." in folds[0].warnings
