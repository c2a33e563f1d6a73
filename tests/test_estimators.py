import pickle
import warnings

import numpy as np
import pandas as pd
import pyarrow
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_wine
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import skipway as sw
from skipway.commands.check_data import check
from skipway.data.sources.read_table import frame_table
from skipway.errors import InputError
from skipway.estimators import SkipClassifier, SkipRegressor

QUICK = {"layers": 1, "width": 16, "epochs": 8, "lr": 0.01, "random_state": 0}
CHECKED = QUICK | {"epochs": 16}  # a check of extreme class weights fits fifty rows


def expected_failures(estimator):
    """Rows in batches: a row with weight 2 is in one batch, two equal rows are in two."""
    reason = "batches depend on the number of rows, as in every estimator that trains by stochastic gradient descent"
    names = ("check_sample_weight_equivalence_on_dense_data", "check_sample_weight_equivalence_on_sparse_data")
    return dict.fromkeys(names, reason)


@parametrize_with_checks(
    [SkipClassifier(**CHECKED), SkipRegressor(**CHECKED)], expected_failed_checks=expected_failures
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def mixed(count=120, seed=0):
    """Numbers with holes, categories with holes, booleans and dates; the target follows the first two."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "size": rng.normal(size=count),
            "kind": rng.choice(["ant", "bee", "cow"], count),
            "flag": rng.choice([True, False], count),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 300, count), unit="D"),
        }
    )
    y = 2 * frame["size"] + (frame["kind"] == "bee") * 3
    frame.loc[rng.random(count) < 0.1, "size"] = np.nan
    frame.loc[rng.random(count) < 0.1, "kind"] = None
    return frame, y.to_numpy()


def test_a_frame_with_text_and_holes_is_understood_as_a_file_is():
    frame, y = mixed()
    model = SkipRegressor(epochs=40, lr=0.01, random_state=0).fit(frame, y)
    assert [c.kind for c in model.spec_.columns] == ["number", "category", "boolean", "date"]
    assert model.score(frame, y) > 0.8
    unseen = frame.assign(kind="zebra")
    assert np.isfinite(model.predict(unseen)).all()
    classes = np.where(y > 1, "much", "little")
    model = SkipClassifier(epochs=20, lr=0.01, random_state=0).fit(frame, classes)
    assert set(model.predict(frame)) <= {"much", "little"} and model.score(frame, classes) > 0.8


def test_figures_that_a_default_network_reaches():
    X, y = load_wine(return_X_y=True)
    assert cross_val_score(SkipClassifier(random_state=0), X, y, cv=2).mean() > 0.94
    X, y = load_diabetes(return_X_y=True)
    assert cross_val_score(SkipRegressor(random_state=0), X, y, cv=2).mean() > 0.4


def test_it_stands_in_pipelines_and_searches_and_is_cloned_and_pickled():
    X, y = load_wine(return_X_y=True)
    model = make_pipeline(StandardScaler(), SkipClassifier(**QUICK)).fit(X, y)
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), model.predict_proba(X))
    search = GridSearchCV(SkipClassifier(**QUICK), {"width": [4, 16]}, cv=2).fit(X, y)
    assert search.best_params_["width"] in (4, 16)
    assert clone(SkipRegressor(width=7)).get_params()["width"] == 7


def test_the_same_random_state_gives_the_same_network_and_the_caller_keeps_his():
    X, y = load_wine(return_X_y=True)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (SkipClassifier(**QUICK | {"random_state": s}).fit(X, y).predict_proba(X) for s in (1, 1, 2))
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    assert torch.get_rng_state().equal(before)


def test_the_network_is_saved_and_loaded_without_pickle(tmp_path):
    frame, y = mixed(60)
    model = SkipRegressor(**QUICK).fit(frame, y)
    model.network_.save(tmp_path / "m.safetensors")
    network = sw.load(tmp_path / "m.safetensors")
    assert np.allclose(network.predict(frame), model.predict(frame))


def test_what_cannot_be_learnt_is_refused():
    X, y = load_wine(return_X_y=True)
    with pytest.raises(InputError, match="expected at least two classes in y, got only one class, .*0"):
        SkipClassifier(**QUICK).fit(X, np.zeros(len(X)))
    with pytest.raises(InputError, match="requires y to be passed, but the target y is None"):
        SkipRegressor(**QUICK).fit(X, None)
    with pytest.raises(InputError, match="cannot fit a regressor: .* got numbers too large to average. Scale y first"):
        SkipRegressor(**QUICK).fit(X, np.where(np.arange(len(X)) % 2, 1.7e308, 1.6e308))
    with pytest.raises(InputError, match="cannot fit: expected a column of X with at least two values, got none"):
        SkipRegressor(**QUICK).fit(pd.DataFrame({"a": ["x"] * 30}), np.arange(30.0))


def labeled(count=200):
    """Two columns; a row has the first label if the first number is large, the second if any of both is."""
    X = np.random.default_rng(0).normal(size=(count, 2))
    return X, np.stack([X[:, 0] > 0.5, X.max(axis=1) > 0.5, np.zeros(count, bool)], axis=1)


@pytest.mark.parametrize("dtype", [bool, int, float])
def test_an_indicator_matrix_is_several_labels_per_row(dtype, tmp_path):
    X, y = labeled()
    model = SkipClassifier(**QUICK | {"epochs": 60}).fit(X, y.astype(dtype))
    shares, found = model.predict_proba(X), model.predict(X)
    assert shares.shape == found.shape == y.shape and found.dtype == dtype and model.classes_.tolist() == [0, 1, 2]
    assert np.array_equal(found, shares >= 0.5) and model.score(X, y) > 0.9  # all labels of a row are right
    rows = torch.from_numpy(model.spec_.encode_strict(frame_table(pd.DataFrame(X, columns=["x0", "x1"]))).x).double()
    with torch.no_grad():
        assert np.allclose(shares, 1 / (1 + np.exp(-model.network_(rows).numpy())))
    model.network_.save(tmp_path / "model.safetensors")
    network = sw.load(tmp_path / "model.safetensors")
    assert network.predict(pd.DataFrame(X[:5], columns=["x0", "x1"])) == [
        tuple(str(i) for i in np.argsort(-p) if p[i] >= 0.5) for p in shares[:5]
    ]


def test_columns_of_a_frame_name_the_labels_and_the_targets():
    X, y = labeled(40)
    labels = pd.DataFrame(y, columns=["large", "any", "none"])
    assert SkipClassifier(**QUICK).fit(X, labels).spec_.class_names == ("large", "any", "none")
    assert SkipClassifier(**QUICK).fit(X, labels.astype(int).to_numpy().tolist()).spec_.class_names == ("0", "1", "2")
    numbers = pd.DataFrame(X, columns=["left", "right"])
    assert SkipRegressor(**QUICK).fit(X, numbers).spec_.target_names == ("left", "right")
    with pytest.raises(InputError, match=r"expected classes \(N,\) or an indicator matrix .* got '3' in a matrix"):
        SkipClassifier(**QUICK).fit(X, y * 2 + 1)


def test_several_numbers_have_their_own_units():
    X = np.random.default_rng(0).normal(size=(200, 2))
    y = np.stack([1e6 + 1e3 * X[:, 0], 1e-3 * X[:, 1], np.full(200, 7.0)], axis=1)
    model = SkipRegressor(**QUICK | {"epochs": 100}).fit(X, y)
    found = model.predict(X)
    assert found.shape == y.shape and np.abs((found - y) / [1e3, 1e-3, 1.0]).mean(axis=0).max() < 0.2
    assert model.spec_.target_mean == pytest.approx(y.mean(axis=0)) and model.spec_.target_std[2] == 1


def hourly(count=24 * 7 * 10):
    """An hourly column; the target depends on the hour and the weekday only."""
    when = pd.date_range("2024-01-01", periods=count, freq="h")
    rush = np.exp(-((when.hour - 8) ** 2) / 4) + np.exp(-((when.hour - 18) ** 2) / 6)
    y = 100 * rush * np.where(when.day_of_week < 5, 1.0, 0.3) + 5 * when.day_of_week
    return when, y.to_numpy() + np.random.default_rng(0).normal(0, 3, count)


def test_hour_and_weekday_are_learnt_from_a_column_of_dates():
    when, y = hourly()
    train = np.random.default_rng(1).random(len(y)) < 0.8
    frame = pd.DataFrame({"when": when})
    model = SkipRegressor(epochs=12, random_state=0).fit(frame[train], y[train])
    assert model.score(frame[~train], y[~train]) > 0.9
    parts = ["month", "day of month", "weekday", "hour"]
    for cells in (when, when.strftime("%d.%m.%Y %H:%M"), when.to_period("h")):
        column = SkipRegressor(**QUICK | {"epochs": 1}).fit(pd.DataFrame({"when": cells}), y).spec_.columns[0]
        assert [name for name, _ in column.dates.parts] == parts


def codes(count=300):
    """Numbers that are names: the class has no order in them."""
    numbers = np.random.default_rng(0).integers(0, 12, count)
    return numbers, np.array(list("abcabcbcaacb"))[numbers]


@pytest.mark.parametrize("declare", [pd.Categorical, lambda numbers: numbers.astype(str), lambda n: n.astype(object)])
def test_declared_categories_and_texts_of_numbers_are_categories(declare):
    numbers, y = codes()
    frame = pd.DataFrame({"store": declare(numbers)})
    model = SkipClassifier(random_state=0).fit(frame, y)
    assert [c.kind for c in model.spec_.columns] == ["category"] and model.score(frame, y) == 1.0
    assert np.array_equal(model.predict(pd.DataFrame({"store": numbers.astype(float)})), model.predict(frame))


def test_a_value_that_is_missing_in_a_fold_is_unseen():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 3, 120)
    y = (numbers > 0).astype(int)
    for cells in (numbers.astype(str).astype(object), numbers.astype(float).astype(object)):
        cells[[3, 77]] = "3+"
        frame = pd.DataFrame({"children": cells, "size": rng.normal(size=120)})
        model = SkipClassifier(**QUICK).fit(frame.drop(index=[3, 77]), np.delete(y, [3, 77]))
        assert model.spec_.columns[0].categories == ("0", "1", "2")
        assert np.isfinite(model.predict_proba(frame)).all()
        assert (cross_val_score(SkipClassifier(**QUICK), frame, y, cv=4, error_score="raise") > 0.5).all()


def test_a_column_that_is_left_out_or_read_by_a_rule_is_a_warning():
    frame, y = mixed(60)
    frame = frame.assign(name=[f"n{i}" for i in range(60)], one="x")
    with pytest.warns(UserWarning) as raised:
        model = SkipRegressor(**QUICK).fit(frame, y)
    texts = sorted(str(w.message) for w in raised)
    assert texts == [
        "column 'name' is left out: identifier: all values differ",
        "column 'one' is left out: constant",
    ]
    assert len(model.spec_.columns) == 4
    days = pd.DataFrame({"day": ["03/04/2024", "02/01/2024", "04/05/2024"] * 10})
    with pytest.warns(UserWarning, match="column 'day': dates such as 03/04/2024 do not show whether the day or"):
        SkipRegressor(**QUICK).fit(days, np.arange(30.0))


def test_few_texts_among_numbers_are_missing_with_a_warning():
    cells = np.arange(100).astype(str).astype(object)
    cells[7], cells[8] = "broken", "unknown"
    frame, y = pd.DataFrame({"size": cells}), np.arange(100.0)
    with pytest.warns(UserWarning, match="column 'size': .*read as missing: 1 of 100 cells, such as 'unknown'"):
        model = SkipRegressor(**QUICK).fit(frame, y)
    assert model.spec_.columns[0].indicator and np.isfinite(model.predict(frame.drop(index=7))).all()
    with pytest.raises(InputError, match="column 'size': expected a number, got 'broken'"):
        model.predict(frame)


def test_durations_are_seconds():
    seconds = np.random.default_rng(0).integers(0, 1000, 80)
    frame = pd.DataFrame({"lasted": pd.to_timedelta(seconds, unit="s"), "kind": ["a", "b"] * 40})
    model = SkipRegressor(**QUICK).fit(frame, seconds)
    assert model.spec_.columns[0].kind == "number" and model.spec_.columns[0].center == np.median(seconds)


def test_tables_of_other_libraries_are_read_as_those_of_pandas():
    frame, y = mixed(60)
    expected = SkipRegressor(**QUICK).fit(frame, y).predict(frame)
    table = pyarrow.Table.from_pandas(frame)
    model = SkipRegressor(**QUICK).fit(table, pyarrow.array(y))
    assert np.array_equal(model.predict(table), expected) and list(model.feature_names_in_) == list(frame.columns)


def test_tables_of_polars_are_read():
    polars = pytest.importorskip("polars")
    frame, y = mixed(60)
    table = polars.from_arrow(pyarrow.Table.from_pandas(frame))
    model = SkipRegressor(**QUICK).fit(table, polars.Series(y))
    assert np.array_equal(model.predict(table), SkipRegressor(**QUICK).fit(frame, y).predict(frame))


@pytest.mark.parametrize("form", [scipy.sparse.csr_matrix, scipy.sparse.coo_array, scipy.sparse.csc_array])
def test_sparse_matrices_are_read_as_dense_ones(form):
    X = np.where(np.random.default_rng(0).random((60, 5)) < 0.3, 1.5, 0.0)
    y = X[:, 0] > 0
    model = SkipClassifier(**QUICK).fit(form(X), y)
    assert np.array_equal(model.predict_proba(form(X)), SkipClassifier(**QUICK).fit(X, y).predict_proba(X))
    with pytest.raises(
        InputError, match="cannot use a sparse matrix: expected at most 10,000 columns, got 10,001. Red"
    ):
        SkipClassifier(**QUICK).fit(form((60, 10_001)), y)


def test_sample_weights_decide_between_rows_that_contradict_each_other():
    X = np.repeat([[0.0], [1.0]], 100, axis=0)
    y = np.tile([0, 1], 100)
    for heavy in (0, 1):
        weights = np.where(y == heavy, 9.0, 1.0)
        options = QUICK | {"epochs": 40}
        shares = SkipClassifier(**options).fit(X, y, sample_weight=weights).predict_proba(X)
        assert (shares[:, heavy] > 0.75).all()
        assert np.allclose(
            SkipRegressor(**options).fit(X, y, sample_weight=weights).predict(X), 0.1 + 0.8 * heavy, atol=0.1
        )
    equal = SkipClassifier(**QUICK).fit(X, y, sample_weight=np.full(200, 3.0)).predict_proba(X)
    assert np.array_equal(equal, SkipClassifier(**QUICK).fit(X, y).predict_proba(X))


@pytest.mark.parametrize(
    "weights, message",
    [
        (np.zeros(20), "must contain at least one non-zero number"),
        (-np.ones(20), "Negative values in data passed to `sample_weight`"),
        (np.ones(19), r"sample_weight.shape == \(19,\), expected \(20,\)"),
        (np.full(20, np.nan), "Input sample_weight contains NaN"),
    ],
)
def test_sample_weights_are_checked_in_the_words_of_scikit_learn(weights, message):
    X, y = np.arange(20.0)[:, None], np.arange(20) % 2
    for model in (SkipClassifier(**QUICK), SkipRegressor(**QUICK)):
        with pytest.raises(ValueError, match=message):
            model.fit(X, y, sample_weight=weights)


def test_class_weights_shift_the_probabilities():
    X = np.zeros((200, 1))
    y = np.array(["rare"] * 20 + ["usual"] * 180)
    options = QUICK | {"epochs": 40, "batch_size": 32}

    def share(class_weight, weights=None):
        return SkipClassifier(**options, class_weight=class_weight).fit(X, y, weights).predict_proba(X)[0, 0]

    assert share(None) < 0.25 and share("balanced") == pytest.approx(0.5, abs=0.1)
    assert share({"rare": 81.0, "usual": 1.0}) > 0.75
    assert share("balanced", np.where(y == "rare", 9.0, 1.0)) == pytest.approx(0.5, abs=0.1)  # balanced already
    with pytest.raises(ValueError, match="The classes, \\['usual'\\], are not in class_weight"):
        SkipClassifier(**QUICK, class_weight={"rare": 1.0, "other": 2.0}).fit(X, y)


def test_the_dropout_rate_of_none_is_that_of_the_task():
    X, y = np.arange(60.0).reshape(-1, 1), np.arange(60) % 2

    def rate(kind, **options):
        return kind(**QUICK | {"epochs": 1} | options).fit(X, y).network_.plan["dropout"]

    assert [rate(SkipClassifier), rate(SkipRegressor), rate(SkipRegressor, dropout=0.0)] == [0.3, 0.1, 0.0]


def test_two_rows_train_all_members():
    X = np.random.default_rng(0).normal(size=(2, 1))
    predicted = SkipRegressor(random_state=0).fit(X, 2 * X[:, 0]).predict(X)
    assert np.abs(predicted - 2 * X[:, 0]).max() < 0.5 * np.ptp(2 * X[:, 0])


def test_labels_are_balanced_each_by_itself():
    X, y = labeled()
    y = np.stack([np.arange(200) < 20, np.arange(200) < 100], axis=1)
    model = SkipClassifier(**QUICK | {"epochs": 40}, class_weight="balanced").fit(np.zeros((200, 1)), y)
    assert model.predict_proba(np.zeros((1, 1)))[0] == pytest.approx([0.5, 0.5], abs=0.1)
    with pytest.raises(
        InputError, match="cannot fit several labels per row: expected class_weight to be 'balanced' or"
    ):
        SkipClassifier(**QUICK, class_weight={0: 2.0}).fit(X, y)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": 0}, "invalid options: epochs: expected a whole number of at least 1|from 1"),
        ({"epochs": 2.5}, "invalid options: epochs: expected a whole number"),
        ({"batch_size": 0}, "invalid options: batch_size: expected a whole number"),
        ({"lr": "fast"}, "invalid options: lr: expected"),
        ({"lr": -1.0}, "invalid options: lr: expected"),
        ({"weight_decay": -1.0}, "invalid options: weight_decay: expected"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    X, y = load_wine(return_X_y=True)
    for estimator in (SkipClassifier, SkipRegressor):
        with pytest.raises(InputError, match=message):
            estimator(**QUICK | options).fit(X, y)


def test_the_learning_rate_is_found_by_a_range_test_and_numpy_numbers_are_options():
    X, y = load_wine(return_X_y=True)
    model = SkipClassifier(**QUICK | {"lr": "auto", "epochs": np.int64(8)}).fit(X, y)
    usual = SkipClassifier(**QUICK | {"lr": None}).fit(X, y)
    assert model.n_iter_ == 8 and model.score(X, y) > 0.9
    assert not np.array_equal(model.predict_proba(X), usual.predict_proba(X))


def with_codes(count=120):
    """Numbers that are codes, numbers with a marker, and days whose order is open; y follows the codes."""
    rng = np.random.default_rng(0)
    store = rng.integers(0, 4, count)
    frame = pd.DataFrame({"store": store, "size": rng.normal(50, 9, count).round(), "day": "03/04/2024"})
    frame.loc[: count // 2, "day"] = "04/05/2024"
    frame.loc[::5, "size"] = -1
    return frame, np.array([3.0, 0.0, 4.0, 1.0])[store]


def fitted(model, *data):
    """The kinds of the columns of a fitted model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return {column.name: column.kind for column in model.fit(*data).spec_.columns}


def test_arguments_set_the_kinds_of_columns_by_name_or_position():
    frame, y = with_codes()
    kinds = fitted(SkipRegressor(**QUICK, categorical=["store"], missing=-1), frame, y)
    assert kinds == {"store": "category", "size": "number", "day": "date"}
    matrix = frame[["store", "size"]].to_numpy()
    model = SkipRegressor(**QUICK, categorical=[0, np.int64(-1)], missing=["size=3", "x1=-1"])
    assert fitted(model, matrix, y) == {"x0": "category", "x1": "category"}
    assert model.spec_.columns[1].slot_indices(np.array([-1.0, np.nan])).tolist() == [0, 1]
    assert np.array_equal(model.predict(matrix), model.predict(np.where(matrix == -1, np.nan, matrix)))
    assert (
        fitted(SkipRegressor(**QUICK, numeric=["store"], date="day"), frame.astype({"store": str}), y)["store"]
        == "number"
    )
    kinds = fitted(SkipRegressor(**QUICK, categorical="store,size", missing="-1,size=3"), frame, y)
    assert kinds["store"] == kinds["size"] == "category"
    model = SkipClassifier(**QUICK, categorical=["store"], numeric=("size",), date=["day"], missing=["-1"])
    again = clone(model)
    assert again.get_params() == model.get_params() and again.categorical == ["store"]
    assert fitted(again, frame, y > 2)["store"] == "category" and again.spec_.missing == ("-1",)


def test_arguments_on_columns_that_cannot_be_used_are_errors():
    frame, y = with_codes()
    for options, message in (
        ({"categorical": ["stor"]}, "cannot find the column 'stor' .* .did you mean store"),
        ({"categorical": [7]}, "cannot find the column '7'"),
        ({"categorical": ["day"], "date": ["day"]}, "cannot use the column 'day' as --date: .* that is --categorical"),
        ({"numeric": ["day"]}, "the column 'day' as set by --numeric: expected numbers .* got 100.0% others"),
        ({"columns": {"day": "date"}}, "expected columns to be the path of a YAML file, got {'day': 'date'}. Pass"),
        ({"columns": "none.yaml"}, "cannot read the file of columns none.yaml: No such file"),
    ):
        with pytest.raises(InputError, match=message):
            SkipRegressor(**QUICK, **options).fit(frame, y)
    with pytest.warns(UserWarning, match="missing marker '-7': no cell of X has this value"):
        SkipRegressor(**QUICK, missing=[-7]).fit(frame[["size"]], y)


def test_a_file_of_columns_sets_those_of_an_estimator(tmp_path):
    frame, y = with_codes()
    file = tmp_path / "columns.yaml"
    check(frame.assign(price=y), target="price", categorical=["store"], missing=-1, output=file, task="regression")
    file.write_text(file.read_text().replace("format: mdy", "format: dmy"))
    model = SkipRegressor(**QUICK, columns=file)
    assert fitted(model, frame, y)["store"] == "category" and model.spec_.missing == ("-1",)
    assert model.spec_.columns[2].dates.date_format == "dmy"
    assert fitted(SkipRegressor(**QUICK, columns=str(file), numeric=["store"]), frame, y)["store"] == "number"


def test_many_rare_categories_and_long_text_are_warnings():
    frame, y = with_codes(60)
    frame["name"] = [f"n{min(i, 40)}" for i in range(60)]
    frame["text"] = [f"a long remark about the house with the number {i}" for i in range(60)]
    with pytest.warns(UserWarning) as raised:
        SkipRegressor(**QUICK).fit(frame, y)
    texts = [str(w.message) for w in raised]
    assert "column 'text' is left out: long text, 60 distinct texts of 10 words on average" in texts
    assert any(text.startswith("column 'name': 67% of the training rows have a rare category") for text in texts)


def test_the_device_of_the_training_is_checked_and_predictions_are_on_the_cpu():
    X, y = np.arange(20.0)[:, None], np.arange(20) % 2
    model = SkipClassifier(**QUICK, device="cpu").fit(X, y)
    assert next(model.network_.parameters()).device.type == "cpu"
    with pytest.raises(InputError, match="invalid device: expected auto, cpu, cuda, cuda:1, xpu or mps, got 'tpu'"):
        SkipClassifier(**QUICK, device="tpu").fit(X, y)
