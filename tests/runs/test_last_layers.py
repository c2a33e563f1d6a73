"""The last layers of a network with trained weights, trained on outputs of the frozen ones that are computed once."""

import numpy as np
import pytest
import torch
from small_runs import QUICK, StopAt, Words, best, image_folder, quick, same_runs
from torch import nn

import skipway as sw
from skipway.data.image_spec import Spec
from skipway.errors import InputError, Interrupted
from skipway.export.export_model import fuse
from skipway.model_factory import create_model
from skipway.report import html
from skipway.runs import last_layers, last_layers_plan, prepared_run
from skipway.runs.feature_cache import FeatureCache, frozen_layers
from skipway.runs.last_layers import FrozenOutputs
from skipway.runs.last_layers_plan import LastLayersPlan, default_frozen_layer, plan_last_layers, size_for_last_layers
from skipway.runs.recipe import Recipe
from skipway.runs.train_run import train
from skipway.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("last_layers")


@pytest.fixture(scope="module")
def old(place):
    return quick(image_folder(place / "old"), place / "runs", epochs=1)


@pytest.fixture(scope="module")
def data(place):
    return image_folder(place / "new", 12, ("train", "val", "test"), kinds=("cat", "dog", "elk"))


@pytest.fixture
def bare(monkeypatch):
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")


def options(old, tmp_path, **more):
    return {**QUICK, "pretrained": str(old.path), "output": tmp_path, "augment": "light", **more}


def open_options(old, tmp_path, **more):
    """Options that leave the epochs to the time."""
    return {name: value for name, value in options(old, tmp_path, **more).items() if name != "epochs"}


def named(network, last):
    names = list(network._modules)
    return {n for n in network.state_dict() if names.index(n.split(".")[0]) <= names.index(last)}


@pytest.fixture
def like_photographs(monkeypatch):
    monkeypatch.setattr(last_layers_plan, "SMALL", 7)


def test_the_last_stage_is_trained_by_default_and_the_layers_before_it_stay(
    data, old, tmp_path, like_photographs, monkeypatch, bare
):
    words = Words()
    assert train(data, **open_options(old, tmp_path)).metrics["epochs"] == 1  # few images: the head alone
    monkeypatch.setattr(prepared_run, "FEWEST_IMAGES", 36)
    run = train(data, **open_options(old, tmp_path), console=words)
    network = run.network()
    last = default_frozen_layer(network)
    before, after = old.network().state_dict(), network.state_dict()
    assert f"(epoch 1), then fine-tuning of the layers after {last} on 4 views of each image" in words
    assert "fine-tuning: 8 epochs, batch size" in words
    assert run.metrics["epochs"] == 9 and run.metrics["resolved"]["freeze_until"] == last
    assert run.metrics["resolved"]["optimizer"] == "adamw" and run.history[1]["lr"] > 0
    assert all(after[name].equal(before[name]) for name in named(network, last))
    weights = load_last(run)
    statistics = [name for name in weights if "running_" in name]
    assert statistics and all(weights[name].equal(before[name.removeprefix("network.")]) for name in statistics)
    changed = {name for name in after if not weights[f"network.{name}"].equal(before[name])}
    assert any(not name.startswith("head") for name in changed) and not changed & named(network, last)


def load_last(run):
    return load_checkpoint(run.path / "weights" / "last").tensors


def test_the_same_config_does_the_same_again_and_evaluate_gives_its_figures(data, old, tmp_path, bare):
    run = train(data, **options(old, tmp_path, epochs=4, freeze_until="stage1", views=2))
    again = train(config=run.path / "config.yaml")
    assert same_runs(run.path, again.path)
    for split in ("val", "test"):
        evaluation = sw.evaluate(run.path, data, split=split)
        assert evaluation.accuracy == run.metrics[f"{split}_accuracy"]
        assert evaluation.loss == pytest.approx(run.metrics[f"{split}_loss"], abs=1e-6)
    chosen = next(row for row in run.history if row["epoch"] == run.metrics["best_epoch"])
    assert chosen["val_accuracy"] == run.metrics["val_accuracy"]


def test_numbers_are_those_without_a_cache(data, old, tmp_path, monkeypatch, bare):
    kept = train(data, **options(old, tmp_path, epochs=3, freeze_until="stage1", views=2))
    trunk = fuse(frozen_layers(old.network(), "stage1"), "fp32")

    def computed_now(self, ids, epoch=0):
        if self.augmentation is None:
            images = super(FrozenOutputs, self).inputs(ids)
        else:
            views = 1 + (self.first_view[ids] + epoch) % len(self.files)
            parts = [super(FrozenOutputs, self).inputs(ids[i : i + 1], view) for i, view in enumerate(views)]
            images = torch.cat(parts)
        with torch.inference_mode():
            outputs = trunk(images)
        return outputs.clone()

    monkeypatch.setattr(FrozenOutputs, "inputs", computed_now)
    live = train(data, **options(old, tmp_path, epochs=3, freeze_until="stage1", views=2))
    kept_weights, live_weights = best(kept.path), best(live.path)
    assert kept.metrics["best_epoch"] == live.metrics["best_epoch"]
    assert all(torch.allclose(kept_weights[name], live_weights[name], atol=2e-4) for name in kept_weights)
    rows = zip(kept.history, live.history, strict=True)
    assert all(a["val_loss"] == pytest.approx(b["val_loss"], abs=1e-4) for a, b in rows)


def test_every_image_has_all_of_its_views_in_turn(data, old, tmp_path, monkeypatch, bare):
    batches = []
    make = last_layers.frozen_batches
    monkeypatch.setattr(
        "skipway.runs.prepared_run.frozen_batches", lambda *a, **k: batches.append(make(*a, **k)) or batches[-1]
    )
    train(data, **options(old, tmp_path, epochs=2, freeze_until="stage1", views=3))
    feed = batches[0][0]
    ids = feed.rows[:20]
    views = [feed.inputs(ids, epoch) for epoch in range(4)]
    assert views[0].equal(views[3]) and not views[0].equal(views[1]) and not views[1].equal(views[2])
    orders = [np.concatenate([batch_ids for _, _, batch_ids in feed.epoch(epoch)]) for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(feed.rows) and list(orders[0]) != list(orders[1])
    assert list(feed.epoch(0, start=feed.steps - 1))[0][0].equal(list(feed.epoch(0))[-1][0])


def test_a_second_run_finds_the_outputs_and_a_stopped_one_resumes_exactly(data, old, tmp_path, monkeypatch, bare):
    chosen = {"epochs": 3, "freeze_until": "stage1", "views": 2}
    whole = train(data, **options(old, tmp_path, name="whole", **chosen))

    def refuse(*_):
        pytest.fail("outputs are computed again")

    monkeypatch.setattr(FeatureCache, "_model", refuse)
    words = Words()
    again = train(data, **options(old, tmp_path, name="again", **chosen), console=words)
    assert same_runs(whole.path, again.path)
    assert "outputs of stage1: 2 views of 36 images, 36 images without augmentation, cached, " in words
    assert "(epoch 1), then fine-tuning of the layers after stage1 on 2 views" in words
    polls = StopAt(10**6)
    train(data, **options(old, tmp_path, name="count", **chosen), stop=polls)
    for at in (polls.polls - 12, polls.polls - 6):
        with pytest.raises(Interrupted):
            train(data, **options(old, tmp_path, name=f"part{at}", **chosen), stop=StopAt(at))
        train(resume=tmp_path / f"part{at}")
        assert same_runs(whole.path, tmp_path / f"part{at}")


def test_an_average_of_the_weights_runs_on_the_outputs_too(data, old, tmp_path, bare):
    run = train(data, **options(old, tmp_path, epochs=2, freeze_until="stage1", views=1, ema=0.5))
    assert run.metrics["val_accuracy"] == sw.evaluate(run.path, data, split="val").accuracy


@pytest.mark.parametrize(
    "given, text",
    [
        (
            {"freeze_until": "stage9"},
            r"with a layer of \S+ before its head, got stage9 .did you mean stage.*. Use one of stem, stage1, ",
        ),
        ({"freeze_until": "head"}, "cannot freeze layers: expected --freeze-until with .*, got head. Use"),
        (
            {"freeze_until": "stage1", "mixup": 0.2},
            "cannot cache the outputs of stage1: .* got --mixup. Drop --freeze-u",
        ),
        ({"freeze_until": "stage1", "cutmix": 1.0, "watch": True}, "single images, got --cutmix and --watch. Drop"),
        ({"freeze_until": "stage1", "img_size": "8:16"}, "got progressive resizing. Drop --freeze-until, or"),
        (
            {"freeze_until": "stage1", "head": "train"},
            "got no pretrained weights, or a head without regression. Drop",
        ),
        (
            {"freeze_until": "stage1", "transform": nn.Identity()},
            "got a transform. Drop --freeze-until, or the other option",
        ),
        ({"freeze_until": "stage1", "recompute": 1}, "got --recompute. Drop --freeze-until"),
    ],
)
def test_what_cannot_be_computed_once_is_refused_and_leaves_nothing(data, old, tmp_path, given, text):
    with pytest.raises(InputError, match=text):
        train(data, **options(old, tmp_path, **given))
    assert not [path for path in tmp_path.iterdir() if path.name != ".cache"]


def test_what_a_recipe_freezes():
    network = create_model("resnet18", 2)
    network.spec = Spec(3, 128, 128, (0.5,) * 3, (0.2,) * 3, class_names=("a", "b"))

    def frozen(head="regression", has_transform=False, **given):
        return last_layers_plan.frozen_layer_for(network, Recipe.of({"epochs": 2, **given}), head, has_transform)

    assert frozen() == "stage3" and frozen(freeze_until="stem") == "stem" and frozen(epochs=1) is None
    assert frozen(head="train") is None and frozen(has_transform=True) is None
    for given in ({"freeze_until": "none"}, {"mixup": 0.2}, {"cutmix": 1.0}, {"watch": True}, {"recompute": 1}):
        assert frozen(**given) is None


def test_epochs_are_those_of_the_layers_that_are_trained(data, old, tmp_path, like_photographs, bare):
    for given, epochs in (({"cutmix": 1.0}, 1), ({"freeze_until": "none"}, 1), ({"freeze_until": "stage1"}, 5)):
        assert train(data, **open_options(old, tmp_path, views=1, **given)).metrics["epochs"] == epochs


@pytest.mark.parametrize(
    "name, size, layer",
    [
        ("efficientnet_lite0", 224, "stage6"),
        ("densenet121", 224, "transition3"),
        ("resnet18", 128, "stage3"),
        ("resnet18", 96, None),
        ("resmlp", 224, None),
    ],
)
def test_the_layer_before_the_last_stage_is_the_default_for_photographs(name, size, layer):
    network = create_model(name, 2) if name != "resmlp" else create_model("resmlp", 2, in_features=4)
    network.spec = Spec(3, size, size, (0.5,) * 3, (0.2,) * 3, class_names=("a", "b"))
    assert default_frozen_layer(network) == layer


@pytest.mark.parametrize("seconds, plan", [(38.7, (4, 8)), (38.5, (4, 4)), (27.9, (2, 4)), (27.7, None)])
def test_views_and_epochs_are_what_fits_into_the_time(monkeypatch, seconds, plan):
    monkeypatch.setattr(last_layers_plan, "seconds_per_image", lambda *_: 0.01)
    monkeypatch.setattr(last_layers_plan, "FIT_SECONDS", 0.0)
    monkeypatch.setattr(last_layers_plan, "_step_seconds", lambda *_: 0.001)
    network = create_model("resnet20", 2, layers=[1, 1], widths=[8, 8])
    network.spec = Spec(3, 128, 128, (0.5,) * 3, (0.2,) * 3, class_names=("a", "b"))
    counts, room = {"train": 400, "val": 300, "test": 200}, 4 * 400 * 8 * 128**2 * 4  # 4 views in float32
    found = plan_last_layers(network, "stage1", "fp32", counts, seconds=seconds, max_bytes=room)
    # (900 for the head, views x 400 + 300, 500 at the end) x 10 ms and epochs x 700 x 1 ms
    assert found == (None if plan is None else LastLayersPlan("stage1", *plan))
    smaller = plan_last_layers(network, "stage1", "fp32", counts, seconds=seconds, max_bytes=room - 1)
    assert smaller is None if plan is None else smaller == LastLayersPlan("stage1", 2, 4)


# 2 views and 4 epochs take 27.8 s at 224 px, 1.31 times as long at 256 px and 1.65 times at 288 px.
@pytest.mark.parametrize("seconds, size", [(46.2, 288), (45.8, 256), (36.5, 256), (36.2, None)])
def test_the_size_goes_a_step_down_for_the_last_layers(monkeypatch, seconds, size):
    monkeypatch.setattr(last_layers_plan, "seconds_per_image", lambda *_: 0.01)
    monkeypatch.setattr(last_layers_plan, "FIT_SECONDS", 0.0)
    monkeypatch.setattr(last_layers_plan, "_step_seconds", lambda *_: 0.001)
    network = create_model("resnet20", 2, layers=[1, 1], widths=[8, 8])
    network.spec = Spec(3, 224, 224, (0.5,) * 3, (0.2,) * 3, class_names=("a", "b"))
    counts = {"train": 400, "val": 300, "test": 200}
    assert size_for_last_layers(network, "stem", "fp32", counts, seconds=seconds) == size
