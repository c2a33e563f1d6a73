"""A table's network blended with boosting: its weights, its outputs, its files, and a run that was stopped anywhere."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from small_runs import StopAt, Words, image_folder, same_runs, same_tensors, table
from table_files import homes, written

import skipway as sw
from skipway.commands.grow import grow_run
from skipway.data.sources.read_table import frame_table
from skipway.errors import InputError, Interrupted
from skipway.export.export_model import onnx, program
from skipway.runs.datamodule import open_datamodule
from skipway.runs.ensemble import choose_ensemble
from skipway.runs.recipe import Recipe
from skipway.runs.train_run import train
from skipway.training.checkpoint import load_weights
from skipway.training.losses import Classification, MultiLabel, Regression


def stairs(count=120, seed=0):
    """A number that follows steps, which three epochs of a network do not find, and a class of it."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0, 4, (2, count)).round(3)
    y = (np.floor(a) % 2) * 4 + np.floor(b) + rng.normal(0, 0.1, count).round(3)
    return pd.DataFrame({"a": a, "b": b, "y": y, "kind": np.where(y > 3.5, "high", "low"), "rank": 3 - y})


def blended(frame, output, target="y", **options):
    ignored = ",".join({"y", "kind", "rank"} - set(target.split(",")))
    options = {"epochs": 3, "ensemble_with": "boosting", "ignore": ignored, **options}
    return train(frame, target=target, output=output, **options)


def train_rows(run, frame):
    """The training rows of a run on a frame."""
    rows = [int(row["row"].split()[-1]) for row in table(run.path / "splits.csv") if row["split"] == "train"]
    first = min(int(row["row"].split()[-1]) for row in table(run.path / "splits.csv"))
    return frame.iloc[np.sort(rows) - first]


def test_outputs_are_those_of_a_plain_run_and_of_scikit_learn(tmp_path):
    frame, words = stairs(), Words()
    run = blended(frame, tmp_path, console=words)
    plain = blended(frame, tmp_path, ensemble_with=None)
    model, weight = sw.load(run.path), run.metrics["ensemble"]["weight"]
    assert weight > 0.3
    body = {name: model.state_dict()[f"ensemble.body.{name}"] for name in sw.load(plain.path).state_dict()}
    assert same_tensors(body, sw.load(plain.path).state_dict())
    spec, fitted = model.spec, train_rows(run, frame)
    x, x_fitted = (spec.encode_strict(frame_table(rows)).x for rows in (frame, fitted))
    targets = spec.standardized(fitted[["y"]].to_numpy())[:, 0]
    boosting = HistGradientBoostingRegressor(random_state=0).fit(x_fitted, targets)
    of_boosting = spec.in_units(boosting.predict(x)[:, None])[:, 0]
    expected = (1 - weight) * sw.load(plain.path).predict(frame) + weight * of_boosting
    np.testing.assert_allclose(model.predict(frame), expected, rtol=1e-5, atol=1e-5)
    assert f"boosting has weight {weight:.2f}, the network {1 - weight:.2f}: loss " in words
    assert f"ensemble: the model is {1 - weight:.0%} network and {weight:.0%} boosting: validation R2 " in words
    assert run.metrics["baseline"]["val_r2"] == pytest.approx(run.metrics["ensemble"]["boosting"]["val_r2"], abs=1e-4)
    assert run.metrics["ensemble"]["network"]["val_r2"] == pytest.approx(plain.metrics["val_r2"], abs=1e-6)


def test_probabilities_are_calibrated_after_blending(tmp_path):
    frame = stairs()
    run = blended(frame, tmp_path, "kind")
    ensemble, (tensors, header) = run.metrics["ensemble"], load_weights(run.best)
    shares = torch.tensor([1 - ensemble["weight"], ensemble["weight"]])
    scale = run.metrics["temperature"] * ensemble["temperature"]
    torch.testing.assert_close(tensors["ensemble.join.weights"], shares / scale)
    assert header["plan"]["trees"]["trees"] == 100 and header["temperature"] == run.metrics["temperature"]
    assert set(ensemble["network"]) == set(ensemble["boosting"]) == {"val_accuracy", "val_loss"}
    assert sw.evaluate(run.path, frame).count == len(frame)
    page = (run.path / "report.html").read_text()
    assert (
        f"The model is {1 - ensemble['weight']:.0%} network and {ensemble['weight']:.0%} boosting: validation " in page
    )
    for write, name in ((onnx, "m.onnx"), (program, "m.pt2")):
        assert write(sw.load(run.path), tmp_path / name, check=frame).difference < 1e-5
    network = sw.load(run.path)
    network.save(tmp_path / "m.safetensors")
    assert same_tensors(sw.load(tmp_path / "m.safetensors").state_dict(), network.state_dict())
    with pytest.raises(InputError, match="blended with boosting, whose weight depends on the network. Train a run"):
        grow_run(run.path, factor=2)
    with pytest.raises(InputError, match="cannot use pretrained weights: expected a network alone, got one that is"):
        sw.create_model("resmlp", pretrained=run.path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    path = written(folder / "stairs.csv", stairs())
    return path, blended(str(path), folder)


@pytest.mark.parametrize("at", [2, 6, 12, 17])
def test_a_run_stopped_anywhere_and_resumed_has_the_same_bits(whole, tmp_path, at):
    path, run = whole
    with pytest.raises(Interrupted):
        blended(str(path), tmp_path, name="cut", stop=StopAt(at))
    again = train(resume=tmp_path / "cut")
    assert same_runs(run.path, again.path)
    assert again.metrics["ensemble"] == run.metrics["ensemble"]


def test_a_finished_run_is_blended_once_and_again_after_more_epochs(whole, tmp_path):
    run = blended(str(whole[0]), tmp_path)
    weights = run.best.read_bytes()
    assert train(resume=run.path).metrics["ensemble"] == run.metrics["ensemble"]
    assert run.best.read_bytes() == weights
    more = train(resume=run.path, epochs=4)
    assert more.metrics["ensemble"]["weight"] == run.metrics["ensemble"]["weight"]
    assert sw.load(run.path).plan["trees"]["trees"] == 100 and run.best.read_bytes() != weights
    with pytest.raises(InputError, match="cannot change ensemble_with when resuming"):
        train(resume=run.path, ensemble_with=None)


def test_boosting_that_brings_nothing_is_left_out(tmp_path):
    rng, words = np.random.default_rng(0), Words()
    frame = pd.DataFrame(rng.normal(size=(200, 10)), columns=list("abcdefghij"))
    frame["y"] = frame.sum(axis=1)  # many steps of trees approximate it badly
    options = {"target": "y", "output": tmp_path, "epochs": 15, "batch_size": 32}
    run = train(frame, **options, ensemble_with="boosting", console=words)
    plain = train(frame, **options)
    assert run.metrics["ensemble"]["weight"] == 0 and "boosting" not in run.metrics["ensemble"]
    assert same_runs(run.path, plain.path) and "trees" not in sw.load(run.path).plan
    assert "boosting brought nothing on 32 held-out training rows: not blended (loss " in words
    assert "ensemble: boosting brought nothing on 32 held-out training rows: the model is the network alone" in words
    assert "Boosting brought nothing" in (run.path / "report.html").read_text()


@pytest.mark.parametrize(
    "target, options",
    [
        ("y,rank", {}),
        ("kind", {"balance": "weights", "patience": 1, "epochs": 4}),
        ("kind", {"balance": "sampling"}),
        ("y", {"weight_column": "b"}),
        ("y", {"split_by": "a"}),
        ("y", {"time_limit": 60.0}),
        ("a,b", {"task": "multilabel", "balance": "weights"}),
    ],
)
def test_it_goes_with_other_options(tmp_path, target, options):
    frame = stairs()
    if target == "a,b":
        frame = frame.assign(a=(frame["y"] > 3).astype(int), b=(frame["y"] > 4).astype(int), c=frame["y"].round(1) % 2)
    run = blended(frame, tmp_path, target, **options)
    ensemble = run.metrics["ensemble"]
    assert 0 <= ensemble["weight"] <= 1 and ensemble["loss"] <= ensemble["network_loss"] + 0.05
    assert len(sw.load(run.path).predict(frame)) == len(frame)


def test_folds_are_blended(tmp_path):
    result = blended(stairs(), tmp_path, folds=2)
    assert all(run.metrics["ensemble"]["weight"] > 0 for run in result.runs)


def test_what_cannot_be_blended_is_refused(tmp_path):
    match = "cannot blend with boosting: expected at least 50 training rows, of which some can be held out, got 32"
    with pytest.raises(InputError, match=match):
        blended(stairs(40), tmp_path)
    many = stairs(400).assign(kind=[f"k{i % 110}" for i in range(400)])
    match = "cannot blend with boosting: expected at most 100 classes, got 110. Drop ensemble_with."
    with pytest.raises(InputError, match=match):
        blended(many, tmp_path, "kind")
    with pytest.raises(InputError, match="expected unsharded weights and a loss that boosting can have, got --fsdp"):
        blended(stairs(), tmp_path, fsdp=True)
    with pytest.raises(InputError, match="got --balance. Drop --balance, or --ensemble-with"):
        frame = stairs().assign(kind=1, y=lambda f: (f["a"] > 2).astype(int))
        blended(frame, tmp_path, "kind,y", task="multilabel", balance="sampling")
    with pytest.raises(InputError, match="cannot use --ensemble-with with .*: expected a table, got images"):
        train(image_folder(tmp_path / "images"), output=tmp_path, ensemble_with="boosting")


def test_weights_of_the_loss_are_those_of_boosting(tmp_path):
    path = written(tmp_path / "homes.csv", homes(100))
    options = {"data": str(path), "target": "dear", "ignore": "price", "weight_column": "size", "max_unreadable": 1.0}
    frame = homes(100).assign(size=np.arange(1, 101), dear=["dear"] * 20 + ["cheap"] * 80)
    written(path, frame)
    table_of = open_datamodule(Recipe(**options, balance="weights"), new=True, epochs_given=True)
    data = table_of._training_rows()
    factors = table_of.target_counts().loss_weights()
    assert np.array_equal(data.weights, table_of.rows.weights * np.array(factors)[data.y])
    rows = np.arange(60)
    boosting = data.boosting(rows).models[0]
    expected = HistGradientBoostingClassifier(categorical_features=boosting.categorical_features, random_state=0)
    x = np.concatenate([data.x[:, : data.spec.num_numbers], data.x[:, -len(data.spec.categories) :]], axis=1)
    expected.fit(x[rows], data.y[rows], sample_weight=data.weights[rows])
    np.testing.assert_allclose(boosting.predict_proba(x), expected.predict_proba(x))


def test_the_weights_follow_the_held_out_rows():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(400, 1))
    far, near = y + rng.normal(size=y.shape), y + rng.normal(size=y.shape) / 2
    chosen = choose_ensemble(far, near, Regression(), y, None)
    assert chosen.weight == pytest.approx(0.8, abs=0.1)  # the weights of independent errors are inverse to variances
    assert chosen.loss < min(chosen.boosting_loss, chosen.network_loss)
    assert choose_ensemble(y, near, Regression(), y, None).weight == 0
    first, second = np.tile([[[1, 1]], [[-1, 1]], [[1, -1]], [[-1, -1]]], (100, 1, 1)).transpose(2, 0, 1) + y
    assert choose_ensemble(first, second, Regression(), y, None).weight == 0.5
    assert 0 < choose_ensemble(first[:4], second[:4], Regression(), y[:4], None).weight < 0.5
    none = np.where(np.arange(400) < 200, 1.0, 1e-9)
    mixed = np.where(np.arange(400)[:, None] < 200, near, far)
    other = np.where(np.arange(400)[:, None] < 200, far, near)
    assert choose_ensemble(other, mixed, Regression(), y, none).weight > 0.6
    assert choose_ensemble(other, mixed, Regression(), y, None).weight == pytest.approx(0.5, abs=0.15)


def test_classes_and_labels_have_weights_too():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 6000)
    certain = 8.0 * np.eye(3)[np.where(rng.random(6000) < 0.2, rng.integers(0, 3, 6000), y)]
    blind = rng.normal(size=(6000, 3))
    chosen = choose_ensemble(blind, certain, Classification(), y, None)
    assert chosen.weight > 0.9 and chosen.temperature > 1.5 and chosen.rows == 3000
    labels = np.eye(3)[y].astype(np.float32)
    chosen = choose_ensemble(blind, certain - 4, MultiLabel(), labels, None)
    assert chosen.weight > 0.3 and chosen.temperature == 1 and chosen.rows == 6000


@pytest.mark.parametrize("kind", ["SkipClassifier", "SkipRegressor"])
def test_estimators_blend(kind):
    frame = stairs(200)
    x, y = frame[["a", "b"]], frame["kind" if kind == "SkipClassifier" else "y"]
    plain = getattr(sw, kind)(epochs=3, random_state=0).fit(x, y)
    model = clone(plain).set_params(ensemble_with="boosting").fit(x, y)
    assert plain.ensemble_weight_ == 0 and model.ensemble_weight_ > 0.3
    body = model.network_.get_submodule("ensemble.body").state_dict()
    assert same_tensors(body, plain.network_.state_dict())
    assert model.score(x, y) > plain.score(x, y)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict(x), model.predict(x))
    with pytest.raises(InputError, match="expected at least 50 training rows"):
        clone(model).fit(x[:30], y[:30])
    with pytest.raises(InputError, match="ensemble_with: expected .*boosting"):
        clone(model).set_params(ensemble_with="forest").fit(x, y)


def test_estimators_blend_labels_and_several_numbers():
    frame = stairs(200)
    x = frame[["a", "b"]]
    labels = np.stack([frame["y"] > 3, frame["a"] > 2], axis=1).astype(int)
    model = sw.SkipClassifier(epochs=3, random_state=0, ensemble_with="boosting").fit(x, labels)
    assert model.ensemble_weight_ > 0 and model.predict(x).shape == (200, 2)
    model = sw.SkipRegressor(epochs=3, random_state=0, ensemble_with="boosting").fit(x, frame[["y", "rank"]])
    assert model.ensemble_weight_ > 0 and model.predict(x).shape == (200, 2)


def test_metrics_json_has_the_ensemble(whole):
    values = json.loads((whole[1].path / "metrics.json").read_text())["ensemble"]
    assert {"with", "weight", "temperature", "rows", "network_loss", "boosting_loss", "loss"} < set(values)
    assert values["with"] == "boosting" and values["rows"] == 19
