import numpy as np
import pytest
import torch
from small_runs import QUICK, StopAt, Words, best, image_folder, numbers, quick, same_runs, table

import skipway as sw
from skipway.errors import InputError, Interrupted
from skipway.report import html
from skipway.runs import feature_size, head_phase
from skipway.runs.feature_cache import FeatureCache
from skipway.runs.train_run import train
from skipway.training.checkpoint import load_checkpoint

WITH_TEST = ("train", "val", "test")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("heads")


@pytest.fixture(scope="module")
def old(place):
    """A run whose weights others begin with."""
    return quick(image_folder(place / "old"), place / "runs", epochs=1)


@pytest.fixture(scope="module")
def data(place):
    return image_folder(place / "new", 12, WITH_TEST, kinds=("cat", "dog", "elk"))


@pytest.fixture(scope="module")
def head_only(data, old, place):
    """A run of one epoch with trained weights, and what it printed."""
    words = Words()
    options = {**QUICK, "epochs": 1, "model": "auto"}
    return train(data, pretrained=str(old.path), output=place / "new_runs", console=words, **options), words


@pytest.fixture
def bare(monkeypatch):
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")


def options(old, tmp_path, **more):
    return {**QUICK, "pretrained": str(old.path), "output": tmp_path, **more}


def test_trained_weights_get_a_head_by_regression_and_nothing_else_in_one_epoch(head_only, old):
    run, words = head_only
    assert run.metrics["resolved"]["head"] == "regression" and run.metrics["epochs"] == 1
    assert [row["lr"] for row in run.history] == [0.0] and run.metrics["status"] == "finished"
    before, after = old.network().state_dict(), run.network().state_dict()
    changed = {name for name, value in after.items() if not value.equal(before[name])}
    assert changed == {"head.weight", "head.bias"}  # norms keep their statistics too
    assert run.metrics["val_accuracy"] > 0.8 and run.metrics["test_accuracy"] > 0.8
    assert (
        "training: head by logistic regression on frozen features, no fine-tuning (to fine-tune, add --time-limit"
        in words
    )
    assert "head: logistic regression, L2 penalty" in words and "by cross-validation on the training images" in words
    assert "features: 108 images x 64 in fp32" in words


def test_epoch_metrics_are_those_of_the_whole_network_on_the_same_images(head_only, data):
    run, _ = head_only
    evaluation = sw.evaluate(run.path, data, split="val")
    row = table(run.path / "results.csv")[0]
    assert float(row["val_accuracy"]) == run.metrics["val_accuracy"] == evaluation.accuracy
    assert float(row["val_loss"]) == pytest.approx(evaluation.loss, abs=1e-4)
    assert run.metrics["val_loss"] == pytest.approx(float(row["val_loss"]), abs=1e-6)
    training = sw.evaluate(run.path, data, split="train")
    assert float(row["train_accuracy"]) == training.accuracy
    assert run.metrics["test_accuracy"] == sw.evaluate(run.path, data, split="test").accuracy
    predictions = table(run.path / "predictions.csv")
    assert {row["split"] for row in predictions} == {"test"} and len(predictions) == 36


def test_fine_tuning_follows_and_the_better_epoch_is_kept(data, old, tmp_path, bare):
    run = train(data, **options(old, tmp_path, epochs=3, lr=0.02))
    assert [row["epoch"] for row in run.history] == [1, 2, 3] and run.history[0]["lr"] == 0.0 < run.history[1]["lr"]
    values = [(row["val_accuracy"], -row["val_loss"]) for row in run.history]
    assert run.metrics["best_epoch"] == 1 + int(np.argmax([v[0] + 1e-3 * v[1] for v in values]))
    again = train(data, **options(old, tmp_path, epochs=3, lr=0.02))
    assert same_runs(run.path, again.path)
    worse = train(data, **options(old, tmp_path, epochs=2, lr=50.0, clip_grad=1.0))
    assert worse.metrics["best_epoch"] == 1 and best(worse.path)["head.weight"].equal(best(run.path)["head.weight"])


def test_a_stopped_run_resumes_exactly(data, old, tmp_path, bare):
    whole = train(data, **options(old, tmp_path, name="whole", epochs=2))
    polls = StopAt(10**6)
    train(data, **options(old, tmp_path / "count", epochs=2), stop=polls)
    for at in (1, polls.polls // 2, polls.polls - 4):
        name = f"part{at}"
        with pytest.raises(Interrupted):
            train(data, **options(old, tmp_path, name=name, epochs=2), stop=StopAt(at))
        if (tmp_path / name).exists():
            train(resume=tmp_path / name)
            assert same_runs(whole.path, tmp_path / name)


def test_a_run_that_is_stopped_in_the_feature_pass_begins_again_from_the_cache(data, old, tmp_path, monkeypatch, bare):
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "cache"))  # no other test has filled it
    compute = FeatureCache._compute

    def stopping(self, *args, **kwargs):
        self.stop = StopAt(1)
        compute(self, *args, **kwargs)

    monkeypatch.setattr(FeatureCache, "_compute", stopping)
    with pytest.raises(
        Interrupted, match="after computing 64 of 108 features, which are cached. Continue with --resume."
    ):
        train(data, **options(old, tmp_path, name="part", epochs=1))
    monkeypatch.undo()
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")
    assert not list((tmp_path / "part" / "weights").glob("last/*"))
    missing = []
    monkeypatch.setattr(FeatureCache, "_compute", lambda *a, **k: (missing.append(len(k["missing"])), compute(*a, **k)))
    train(resume=tmp_path / "part")
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "other-cache"))  # nothing is computed in it
    whole = train(data, **options(old, tmp_path / "other", name="whole", epochs=1))
    assert missing == [44, 108] and same_runs(tmp_path / "part", whole.path)


def test_images_are_prepared_as_the_weights_expect(tmp_path, bare):
    old = quick(image_folder(tmp_path / "a", 6, side=130), tmp_path / "runs", epochs=1, img_size=112, resize_mode="pad")
    data = image_folder(tmp_path / "new", 6, side=150, kinds=("cat", "dog"))
    run = train(data, **options(old, tmp_path / "out", epochs=1))
    before, after = old.network().spec, run.network().spec
    names = ("size", "presize", "resize_mode", "interpolation", "mean", "std")
    assert {name: getattr(after, name) for name in names} == {name: getattr(before, name) for name in names}
    assert "only evaluated" in _resume_remarks(run.path)
    train(resume=run.path, epochs=2)
    smaller = train(data, **options(old, tmp_path / "out", epochs=1, img_size=100))
    assert smaller.network().spec.size == 100 and smaller.network().spec.mean == before.mean


def test_a_config_and_a_resumed_run_have_the_size_that_was_chosen(tmp_path, monkeypatch, bare):
    monkeypatch.setattr(feature_size, "_ENLARGED_FROM", 96)
    old = quick(image_folder(tmp_path / "a", 6, side=100), tmp_path / "runs", epochs=1, img_size=96, resize_mode="pad")
    data = image_folder(tmp_path / "new", 30, side=150, kinds=("cat", "dog"))
    plain = {name: value for name, value in options(old, tmp_path / "out").items() if name != "epochs"}
    whole = train(data, **plain)
    spec = whole.network().spec
    assert spec.size == 128 and spec.resize_mode == "pad"
    again = train(config=whole.path / "config.yaml")
    assert again.network().spec == spec and same_runs(whole.path, again.path)
    with pytest.raises(Interrupted, match="while computing features"):
        _stop_in_the_feature_pass(monkeypatch, data, plain)
    monkeypatch.undo()
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")
    train(resume=tmp_path / "out" / "part")
    assert same_runs(whole.path, tmp_path / "out" / "part")


def _stop_in_the_feature_pass(monkeypatch, data, plain):
    def stop(self, *_, **__):
        raise Interrupted("stopped by SIGTERM while computing features")

    monkeypatch.setattr(FeatureCache, "features", stop)
    train(data, **plain, name="part")


def _resume_remarks(folder):
    words = Words()
    train(resume=folder, console=words)
    return "\n".join(words.lines)


def test_a_judged_again_run_has_the_same_figures(head_only, place):
    run, _ = head_only
    before = numbers(run.path)
    train(resume=run.path)
    assert {k: v for k, v in numbers(run.path).items() if "accuracy" in k or "loss" in k} == {
        k: v for k, v in before.items() if "accuracy" in k or "loss" in k
    }


def test_rare_classes_are_weighted_if_the_recipe_balances_them(data, old, tmp_path, monkeypatch, bare):
    weights = []
    fit = head_phase.fit_linear_head
    monkeypatch.setattr(
        head_phase, "fit_linear_head", lambda *a, **k: (weights.append(k["class_weights"]), fit(*a, **k))[1]
    )
    for balance in ("none", "weights", "sampling"):
        train(data, **options(old, tmp_path, epochs=1, balance=balance))
    assert weights == [None, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)]


def test_the_head_is_trained_by_steps_if_that_is_asked_for(data, old, tmp_path, bare):
    run = train(data, **options(old, tmp_path, epochs=3, head="train"))
    assert run.metrics["resolved"]["head"] == "train" and run.metrics["resolved"]["freeze_epochs"] == 1
    assert run.history[0]["lr"] > 0
    frozen = train(data, **options(old, tmp_path, epochs=2, freeze_epochs=0))
    assert frozen.metrics["resolved"]["head"] == "train"


def test_regression_is_refused_where_it_cannot_be(data, tmp_path):
    with pytest.raises(
        InputError, match="cannot fit the head by regression: .* got a resnet9 network. Use --head train"
    ):
        quick(data, tmp_path, model="resnet9", head="regression")
    with pytest.raises(InputError, match="got --freeze-epochs. Use --head train."):
        quick(data, tmp_path, freeze_epochs=1, head="regression")


def test_regression_on_fresh_weights_works_too(data, tmp_path, bare):
    run = quick(data, tmp_path, epochs=1, head="regression")
    assert run.metrics["resolved"]["head"] == "regression" and run.metrics["val_accuracy"] > 0.5


def test_the_average_of_the_weights_begins_with_the_fitted_head(data, old, tmp_path, bare):
    run = train(data, **options(old, tmp_path, epochs=2, ema=0.99, lr=1e-9, weight_decay=0.0))
    tensors = load_checkpoint(run.path / "weights" / "last").tensors
    assert torch.allclose(tensors["average.module.head.weight"], tensors["network.head.weight"], atol=1e-5)


def test_a_time_limit_that_leaves_no_time_fits_the_head_alone(data, old, tmp_path, bare, monkeypatch):
    monkeypatch.setattr("skipway.training.pace._MOST_EPOCHS", 2)
    monkeypatch.setattr("skipway.training.pace._MOST_STEPS", 1)
    words = Words()
    plain = {name: value for name, value in options(old, tmp_path).items() if name != "epochs"}
    run = train(data, **plain, time_limit=0.001, console=words)
    assert run.metrics["epochs"] == 1 and "no time for fine-tuning" in words
    longer = train(data, **plain, time_limit=600.0, console=words)
    assert longer.metrics["epochs"] > 1 and longer.metrics["status"] in ("finished", "stopped by the time limit")
    config = (longer.path / "config.yaml").read_text()
    assert f"epochs: {longer.metrics['resolved']['epochs']}\n" in config
