"""Resolved options: a run with the printed config equals the run that it was printed for, and nothing is written."""

import pytest
import yaml
from small_runs import QUICK, Words, best, image_folder, quick, same_tensors

from skipway.errors import InputError
from skipway.runs.recipe import Recipe
from skipway.runs.train_run import dry_run, train

FAST = {"threads": 1, "precision": "fp32"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("resolved") / "images")


@pytest.fixture(scope="module")
def pretrained(images, tmp_path_factory):
    """A run to load pretrained weights from."""
    return str(quick(images, tmp_path_factory.mktemp("pretrained"), epochs=1).path)


def reasons(resolved):
    return {option.name: option.reason for option in resolved.options}


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 1, "augment": "medium"},
        {"epochs": 2, "model": "resnet20", "lr": 0.05, "balance": "weights"},
        {"epochs": 2, "folds": 3, "fold": 2},
    ],
    ids=["auto", "some options set", "one fold"],
)
def test_a_run_with_the_printed_config_has_the_same_weights(images, tmp_path, options):
    options = {**FAST, **options}
    config = tmp_path / "resolved.yaml"
    config.write_text(str(dry_run(images, output=tmp_path / "none", **options)))
    assert not (tmp_path / "none").exists()
    runs = [
        train(images, output=tmp_path / "a", **options),
        train(config=config, output=tmp_path / "b"),
    ]
    assert same_tensors(*(best(run.path) for run in runs))


def test_a_table_and_a_pretrained_model_too(images, pretrained, tmp_path):
    for name, data, options in (("table", "wine", {"epochs": 2}), ("pretrained", images, {"pretrained": pretrained})):
        config = tmp_path / f"{name}.yaml"
        config.write_text(str(dry_run(data, **FAST, **options)))
        runs = [
            train(data, output=tmp_path / "a", **FAST, **options),
            train(config=config, output=tmp_path / "b"),
        ]
        assert same_tensors(*(best(run.path) for run in runs)), name


def test_every_option_is_printed_with_its_reason(images):
    resolved = dry_run(images, seed=3, **FAST)
    assert [option.name for option in resolved.options] == Recipe.names()
    assert yaml.safe_load(str(resolved)) == resolved.as_dict()
    assert reasons(resolved)["seed"] == reasons(resolved)["threads"] == "set"
    assert reasons(resolved)["mixup"] == "default" and resolved.as_dict()["output"] == "runs"
    assert reasons(resolved)["batch_size"] == "auto: 48 training images" and resolved.as_dict()["batch_size"] == 8
    assert reasons(resolved)["model"] == "auto: resnet9: images of up to 96 px, from scratch"
    assert "# Optimization\nepochs: 34" in str(resolved) and "lr: 0.00" in str(resolved)


def test_what_steps_are_measured_for_stays_open(images, pretrained):
    resolved = dry_run(images, lr="auto", time_limit=100, **FAST)
    assert "epochs" not in resolved.as_dict() and resolved.as_dict()["lr"] == "auto"
    assert reasons(resolved)["lr"] == "auto: LR range test before epoch 1"
    assert "# epochs: auto: as many as fit in 1 min 40 s at the pace of the first steps\n" in str(resolved)
    resolved = dry_run(images, pretrained=pretrained, **FAST)
    assert resolved.as_dict()["head"] == "regression" and resolved.as_dict()["freeze_epochs"] is None


def test_options_for_other_data_are_left_out():
    names = set(dry_run("diabetes", **FAST).as_dict())
    assert not {"img_size", "augment", "pretrained", "balance", "label_smoothing"} & names
    assert reasons(dry_run("wine", **FAST))["task"] == "auto: values of target"
    assert "balance" in dry_run("wine", **FAST).as_dict()


def test_it_prints_no_line_of_a_run_and_refuses_what_train_refuses(images):
    words = Words()
    dry_run(images, console=words, **QUICK)
    assert not words.lines
    with pytest.raises(InputError, match="cannot resolve the options: expected a single run, got all folds. Add"):
        dry_run(images, folds=3)
    with pytest.raises(InputError, match="epochs: expected a whole number from 1 to 100,000, got 0"):
        dry_run(images, epochs=0)
