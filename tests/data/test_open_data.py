import numpy as np
import pandas as pd
import pytest
from image_folders import class_folders, parquet

import skipway as sw
from skipway.data.column_roles import ColumnRoles
from skipway.data.open_data import open_data
from skipway.data.sources.in_memory import hold_data
from skipway.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)


@pytest.mark.parametrize("name", ["label_sep", "ignore", "weight_column", "split_by", "features", "image_column"])
def test_roles_without_effect_on_images_are_refused(tmp_path, name):
    roles = ColumnRoles.of({name: "x"})
    flag = "--" + name.replace("_", "-")
    folder = str(class_folders(tmp_path / "set", count=3))
    with hold_data(PIXELS, [0.5, 1.5] * 6) as held:
        for data in ("digits", folder, held):
            with pytest.raises(InputError, match=f"cannot use {flag} with .*: expected a table that names images"):
                open_data(data, roles)


def test_roles_without_effect_on_images_in_parquet_files_are_refused(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "train.parquet"
    parquet(path, [0, 1, 0, 1])
    for name in ("weight_column", "group_column", "split_by", "features"):
        with pytest.raises(InputError, match="expected a table that names images, got a Parquet file of images. Drop"):
            open_data(str(path), ColumnRoles.of({name: "x"}))
    assert open_data(str(path), ColumnRoles.of({"image_column": "image"})).count("train") == 4


def test_a_task_of_class_folders_other_than_classification_is_refused():
    with pytest.raises(InputError, match="cannot use --task regression with digits: .*images with one class each. Dro"):
        open_data("digits", ColumnRoles(task="regression"))
    assert open_data("digits", ColumnRoles(task="classification")).task == "classification"


def test_a_pattern_of_names_needs_files():
    with hold_data(pd.DataFrame({"a": range(12)}), range(12)) as held:
        for data in ("digits", "wine", held):
            with pytest.raises(InputError, match="cannot use --label-regex with .*got other data. Pass the folder"):
                open_data(data, ColumnRoles(label_regex="(a)"))


def test_the_task_of_images_in_python_is_that_of_the_options(tmp_path):
    ages = [30, 40] * 6
    with hold_data(PIXELS, ages) as held:
        assert open_data(held).task == "classification"
        assert open_data(held, ColumnRoles(task="regression")).targets["train"][:2].tolist() == [[30], [40]]


def test_a_model_of_numbers_is_evaluated_on_integers_in_python(tmp_path):
    run = sw.train(PIXELS, [30, 40] * 6, task="regression", epochs=1, output=str(tmp_path / "runs"), model="resnet20")
    evaluation = sw.evaluate(run.path, PIXELS[:4], [30, 40, 30, 40])
    assert evaluation.count == 4 and np.isfinite(evaluation.mae)
    assert sw.evaluate(run.path, PIXELS[:1], [30]).count == 1


def test_lists_of_labels_are_targets_of_rows_in_python():
    frame = pd.DataFrame({"a": np.arange(40.0), "b": np.arange(40.0) % 7})
    report = sw.check(frame, y=[["x"], ["x", "y"], ["y"], []] * 10)
    assert "target 'y': 2 labels" in str(report)
