"""Many small images with a time limit: the network, the validation images and the views that the clock allows."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from small_runs import QUICK, Words, image_folder, numbers, quick

import skipway as sw
from skipway.cli.app import app
from skipway.commands.export import export_run
from skipway.data.images.choose_decode_settings import SMALL
from skipway.errors import InputError
from skipway.runs import clock_recipe
from skipway.runs.clock_recipe import WIDE_NETWORK, WIDE_WEIGHT_DECAY, recipe_by_clock
from skipway.runs.recipe import Recipe
from skipway.runs.train_run import dry_run, train
from skipway.training.checkpoint import load_weights, save_weights

WIDE = {"model": WIDE_NETWORK, "weight_decay": WIDE_WEIGHT_DECAY}
STEPS = {WIDE_NETWORK: 1.2e-3, "resnet9": 0.6e-3}  # seconds per image, as on two cores with fast bf16
CIFAR = {"train": 50_000, "val": 0, "test": 10_000}


@pytest.fixture(autouse=True)
def paced(monkeypatch):
    monkeypatch.setattr(clock_recipe, "step_seconds_of", lambda name, options, **rest: STEPS[name])
    monkeypatch.setattr(clock_recipe, "quick_step_seconds", lambda device, precision: 1e-3)
    monkeypatch.setattr(clock_recipe, "decoding_seconds", lambda source, settings: 0.0)


def decided(counts=CIFAR, size=32, *, task="classification", epochs_given=False, **options):
    """The options that the clock changes."""
    recipe, source = Recipe(**options), SimpleNamespace(count=lambda split: counts.get(split, 0), task=task)
    settings = SimpleNamespace(size=size, channels=3)
    clocked = recipe_by_clock(recipe, source, settings, epochs_given=epochs_given).changed()
    return {name: value for name, value in clocked.items() if name not in options}


def test_a_longer_time_makes_a_wider_network_and_before_that_several_views():
    few = {"val_fraction": 0.04}
    assert decided(time_limit=60.0) == few
    assert decided(time_limit=300.0) == few | {"tta": True}
    assert decided(time_limit=900.0) == few | WIDE | {"tta": True}


def test_views_that_take_more_than_a_tenth_of_the_time_are_left_out():
    evaluation = 6 * (2_000 + 10_000) * STEPS["resnet9"] / 3
    limits = [10 * evaluation + clock_recipe.FINISH_SECONDS + extra for extra in (-1.0, 1.0)]
    assert ["tta" in decided(time_limit=limit) for limit in limits] == [False, True]


def test_what_is_asked_for_stays():
    assert decided(time_limit=900.0, tta=False) == {"val_fraction": 0.04} | WIDE
    assert decided(time_limit=900.0, tta=False, optimizer="muon") == {"val_fraction": 0.04} | WIDE
    for options in ({"weight_decay": 0.1}, {"optimizer": "sgd"}, {"optimizer": "adamw"}):
        assert decided(time_limit=900.0, tta=False, **options) == {"val_fraction": 0.04, "model": WIDE_NETWORK}
    assert decided(time_limit=60.0, tta=True) == {"val_fraction": 0.04}
    assert "val_fraction" not in decided(time_limit=900.0, val_fraction=0.1)
    assert "val_fraction" not in decided(time_limit=900.0, folds=5)
    for options in ({"model": "resnet20"}, {"img_size": 32}, {"pretrained": "some/run"}):
        assert decided(time_limit=900.0, **options) == {}
    assert decided(time_limit=900.0, epochs_given=True) == decided() == {}


def test_validation_images_are_not_fewer_if_they_alone_evaluate_the_model():
    assert "val_fraction" not in decided({"train": 50_000}, time_limit=900.0)
    assert "val_fraction" not in decided({"train": 45_000, "val": 5_000, "test": 10_000}, time_limit=900.0)


def test_fewer_smaller_or_larger_images_follow_other_rules():
    assert decided({**CIFAR, "train": 19_999}, time_limit=900.0) == {}
    assert decided(task="regression", time_limit=900.0) == {}
    assert decided(size=16, time_limit=900.0) == decided(size=41, time_limit=900.0) == {}
    assert decided(size=SMALL + 1, time_limit=900.0) == {"img_size": "48:96"}


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Ninety images of 17 px, which count as many, with test images; the time allows 2 epochs."""
    monkeypatch.setattr(clock_recipe, "_MANY", 80)
    monkeypatch.setattr(clock_recipe, "_MOST_VALIDATION", 9)
    monkeypatch.setattr("skipway.runs.defaults._MANY", 80)
    monkeypatch.setattr("skipway.runs.defaults._SMALL_SHARE", 0.2)
    monkeypatch.setattr("skipway.training.pace._MOST_EPOCHS", 2)
    monkeypatch.setattr("skipway.training.pace._MOST_STEPS", 1)
    return image_folder(tmp_path / "many", count=30, splits=("train", "test"), side=17)


def test_the_model_carries_its_views_into_evaluation_and_prediction(many, tmp_path):
    words, options = Words(), {"time_limit": 600.0, "threads": 1}
    run = train(many, output=tmp_path, console=words, **options)
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert (config["model"], config["val_fraction"], config["tta"]) == (WIDE_NETWORK, 0.1, True)
    assert config["weight_decay"] == WIDE_WEIGHT_DECAY
    assert run.network().plan["activation"] == "gelu" and run.network().spec.tta
    assert run.metrics["resolved"]["kept_epoch"] == "last" and run.metrics["best_epoch"] == len(run.history) == 2
    assert "predictions: mean over 6 views of each image" in words and "by the mean over 6 views" in words
    assert run.metrics["evaluated_by"]["views"] == 6

    assert "by the mean over 6 views of each image with the weights of the last" in (
        (run.path / "report.html").read_text(encoding="utf-8")
    )

    words = Words()
    evaluation = sw.evaluate(run.path, many, console=words)
    assert "predictions: mean over 6 views of each image" in words
    assert (evaluation.split, evaluation.accuracy) == ("test", run.metrics["test_accuracy"])
    assert evaluation.metrics["loss"] == pytest.approx(run.metrics["test_loss"], rel=1e-6)
    files = sorted((many / "test").rglob("*.png"))
    words = Words()
    predicted = [p.top[0][0] for p in sw.predict(run.path, files, console=words)]
    assert "predictions: mean over 6 views of each image" in words
    assert np.mean([name == file.parent.name for name, file in zip(predicted, files, strict=True)]) == (
        pytest.approx(run.metrics["test_accuracy"])
    )
    with open(run.path / "predictions.csv", encoding="utf-8", newline="") as file:
        assert sorted(predicted) == sorted(row["predicted"] for row in csv.DictReader(file))
    words = Words()
    one_view = sw.evaluate(run.path, many, tta=False, console=words)
    assert "views" not in words and one_view.metrics["loss"] != evaluation.metrics["loss"]

    again = dry_run(many, **options).as_dict()
    assert (again["model"], again["val_fraction"], again["tta"]) == (WIDE_NETWORK, 0.1, True)


def test_the_command_line_follows_the_model_unless_it_is_asked_for_one_view(many, tmp_path, capsys):
    run = quick(many, tmp_path, tta=True)
    outputs = []
    for flags in ([], ["--tta"], ["--no-tta"]):
        app(["evaluate", str(run.path), str(many), *flags], result_action="return_value")
        outputs.append(capsys.readouterr())
    assert outputs[0].out == outputs[1].out != outputs[2].out
    assert ["mean over 6 views" in output.err for output in outputs] == [True, True, False]


def test_the_views_of_a_network_are_those_of_its_run(many, tmp_path):
    run = quick(many, tmp_path, tta=True)
    network, pixels = run.network(), [np.full((17, 17), 9, np.uint8)]
    expected = network.probabilities([np.full((17, 17, 1), 9, np.uint8)], tta=True)
    assert np.array_equal(network.predict_proba(pixels), expected)
    assert "mean over 6 views" in str(export_run(run.path, raw=True))
    plain = quick(many, tmp_path, tta=False)
    assert not plain.network().spec.tta and numbers(plain.path)["evaluated_by"]["views"] == 1


def test_a_run_of_an_earlier_version_gets_the_views_that_it_was_evaluated_with(many, tmp_path):
    run = quick(many, tmp_path, tta=True)
    path = run.path / "weights" / "best.safetensors"
    tensors, header = load_weights(path)
    del header["spec"]["tta"]
    save_weights(path, tensors, header)
    assert not run.network().spec.tta
    (run.path / "metrics.json").unlink()
    again = train(resume=run.path)
    assert again.network().spec.tta and again.metrics["test_loss"] == run.metrics["test_loss"]


def test_a_table_of_an_earlier_version_has_switched_off_views(tmp_path):
    run = train("wine", output=tmp_path, epochs=1, threads=1, tta=False)
    assert run.metrics["status"] == "finished"
    with pytest.raises(InputError, match="cannot use --tta with wine: expected images, got a table. Drop --tta"):
        train("wine", output=tmp_path, epochs=1, tta=True, threads=QUICK["threads"])
