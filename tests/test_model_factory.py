import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from skipway import model_factory
from skipway.data.image_spec import Spec
from skipway.errors import InputError, ShapeError
from skipway.model_factory import create_model, list_models, options_for
from skipway.models.load_model import load
from skipway.models.network import Network
from skipway.models.network_outputs import prepare_image
from skipway.training.checkpoint import load_weights, save_weights

GREY = Spec(1, 8, 10, (0.4,), (0.3,), ("no", "yes", "perhaps"))
COLOUR = Spec(3, 8, 8, (0.4, 0.5, 0.6), (0.3, 0.2, 0.1), ("no", "yes", "perhaps"), "crop")


def network_for(spec, name="resnet20"):
    network = create_model(name, spec.num_classes, spec.channels, widths=[4] * (4 if name == "resnet9" else 3))
    network.spec = spec
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
    return network


def save(network, path, **changes):
    header = {"plan": network.plan, "spec": network.spec.as_dict(), **changes}
    save_weights(path, network.state_dict(), {k: v for k, v in header.items() if v is not None})
    return path


def noise(height, width, channels=None):
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(height).integers(0, 256, shape, dtype=np.uint8)


# create_model


def test_a_name_and_options_become_a_network_with_its_plan():
    network = create_model("resnet20", 3, 1, stem="deep", layers=[1, 1, 1])
    assert isinstance(network, Network) and network.spec is None
    assert json.loads(json.dumps(network.plan)) == network.plan
    assert network.plan | {"name": "resnet20", "stem": "deep", "in_chans": 1, "num_classes": 3} == network.plan
    assert network(torch.ones(2, 1, 9, 9)).shape == (2, 3)


def test_a_network_has_its_paper_s_classes_unless_told():
    assert create_model("resnet20").plan["num_classes"] == 10
    with torch.device("meta"):
        assert create_model("resnet50").plan["num_classes"] == 1000


def test_models_are_listed_by_pattern():
    assert "resnet50" in list_models("resnet5*") and "resnet18" not in list_models("resnet5*")
    assert list_models("nothing") == []


def test_wrong_names_and_options_are_refused():
    with pytest.raises(InputError, match="unknown architecture 'resnet19'"):
        create_model("resnet19")
    with pytest.raises(InputError, match=r"resnet20: unknown option 'depth': expected one of block, layers, widths"):
        create_model("resnet20", depth=3)


@pytest.mark.parametrize("given", [(True,), (False,), (10, True)])
def test_a_bool_is_no_number(given):
    size = "num_classes" if len(given) == 1 else "in_chans"
    with pytest.raises(
        InputError, match=rf"{size}: expected a number, .*did you mean pretrained={given[-1]}\?\)\. Pass"
    ):
        create_model("resnet18", *given)


@pytest.mark.parametrize(
    "given, text",
    [
        (
            {"weights": "IMAGENET1K_V2"},
            "resnet18: expected an option of its plan, got weights. Use pretrained",
        ),
        ({"progress": True}, "got progress. Remove it: every download is reported"),
        ({"scriptable": True}, "got scriptable. Remove it: torch.jit.script, torch.jit.trace and torch.export work on"),
        ({"pretrained": True, "pretrained_cfg": {"url": "x"}}, "pretrained_cfg: expected a tag or {'file': path}, got"),
        ({"pretrained": True, "pretrained_cfg_overlay": "a"}, "pretrained_cfg_overlay: expected a tag or"),
        (
            {"checkpoint_path": "w.pth", "pretrained": True},
            "got checkpoint_path and pretrained=True. Set only one",
        ),
        ({"checkpoint_path": "w.pth", "pretrained": "a1_in1k"}, "expected one source, got checkpoint_path and pretra"),
        ({"pretrained_cfg": "a2_in1k", "pretrained": "a1_in1k"}, "expected one source, got pretrained_cfg and"),
        ({"checkpoint_path": "none.pth"}, "cannot read pretrained='none.pth': no such file"),
    ],
)
def test_arguments_of_other_libraries_are_explained(given, text):
    with pytest.raises(InputError, match=text) as refused:
        create_model("resnet18", **given)
    assert len(str(refused.value).splitlines()) == 1


def test_arguments_of_other_libraries_that_are_not_set_change_nothing():
    unset = dict.fromkeys(
        ("weights", "progress", "checkpoint_path", "pretrained_cfg", "cache_dir", "stem", "drop_path")
    )
    switched = {"scriptable": False, "exportable": True, "no_jit": False, "progress": False, "checkpoint_path": ""}
    for given in (unset, switched, {"pretrained_cfg": "a2_in1k"}):
        assert create_model("resnet20", **given).plan == create_model("resnet20").plan


def test_a_checkpoint_path_is_loaded_strictly(tmp_path):
    network = create_model("resnet20", 3, layers=[1, 1, 1]).eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    x = torch.randn(2, 3, 16, 16)
    for given in (
        {"checkpoint_path": tmp_path / "w.pth"},
        {"checkpoint_path": tmp_path / "w.pth", "num_classes": 3, "in_chans": 3, "pretrained": False},
        {"pretrained": True, "pretrained_cfg": {"file": tmp_path / "w.pth"}},
        {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "w.pth")}},
    ):
        assert torch.equal(create_model("resnet20", layers=[1, 1, 1], **given).eval()(x), network(x))
    for size, value in (("num_classes", 5), ("num_classes", 0), ("in_chans", 1)):
        with pytest.raises(InputError, match=rf"checkpoint_path: expected {size} {value}, got 3 in the file. Set"):
            create_model("resnet20", layers=[1, 1, 1], checkpoint_path=tmp_path / "w.pth", **{size: value})
    assert create_model("resnet20", 5, layers=[1, 1, 1], pretrained=tmp_path / "w.pth").plan["num_classes"] == 5


def test_options_of_the_head_are_applied_to_loaded_weights(tmp_path):
    network = create_model("resnet20", 3, layers=[1, 1, 1]).eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    save(network_for(COLOUR), tmp_path / "ours.safetensors")
    x = torch.randn(2, 3, 16, 16)
    given = {"layers": [1, 1, 1], "pretrained": tmp_path / "w.pth"}
    pooled = create_model("resnet20", global_pool="max", drop_rate=0.5, **given)
    assert pooled.plan | {"global_pool": "max", "drop_rate": 0.5, "num_classes": 3} == pooled.plan
    assert torch.equal(pooled.head.weight, network.head.weight)
    assert torch.equal(pooled(x), network.head(network[:4](x).amax((2, 3))))
    assert create_model("resnet20", 0, global_pool="", **given)(x).shape == (2, 64, 4, 4)
    wide = create_model("resnet20", 4, global_pool="catavgmax", **given)
    assert wide.head.in_features == 128 and wide.origin.endswith("0 of 4 classes kept by their names, 4 new")
    again = create_model("resnet20", 0, widths=[4] * 3, pretrained=tmp_path / "ours.safetensors")
    assert again(x).shape == (2, 4) and again.origin.endswith("ours.safetensors, head ignored")


def test_auto_picks_a_network_that_can_be_built():
    for size, count in ((8, 100), (32, 50_000), (128, 100), (224, 10_000)):
        name, options = model_factory.auto_model(size, count)
        assert create_model(name, 10, **options).plan["name"] == name


@pytest.mark.parametrize(
    ("name", "size", "stem"),
    [
        ("resnet9m", 32, {}),
        ("resnet9", 32, {}),
        ("resnet18", 32, {"stem": "small"}),
        ("resnet18", 224, {}),
        ("resnet9m", 224, {}),
    ],
)
def test_small_images_get_a_small_stem_and_a_network_that_has_one_keeps_its_own(name, size, stem):
    spec = Spec(channels=3, size=size, presize=size, mean=(0.5,) * 3, std=(0.2,) * 3, class_names=("a", "b"))

    assert options_for(name, spec, {}) == {"num_classes": 2, "in_chans": 3, **stem}


# predict


@pytest.mark.parametrize("spec", [GREY, COLOUR])
def test_images_of_every_kind_are_predicted_together(spec, tmp_path):
    Image.fromarray(noise(30, 20, 3)).save(tmp_path / "color.png")
    Image.fromarray(noise(9, 14)).save(tmp_path / "grey.jpg")
    files = [tmp_path / "color.png", str(tmp_path / "grey.jpg")]
    arrays = [
        noise(8, 8),
        noise(10, 10),
        noise(5, 7, 1),
        noise(40, 8, 3),
        noise(10, 10, 3),
    ]
    network = network_for(spec).eval()
    found = network.predict_proba([*files, *arrays])
    assert found.shape == (7, 3) and found.dtype == np.float32 and np.allclose(found.sum(1), 1, atol=1e-6)
    one_by_one = np.concatenate([network.predict_proba([x]) for x in [*files, *arrays]])
    assert np.allclose(found, one_by_one, atol=1e-5)
    assert network.predict([*files, *arrays]) == [spec.class_names[i] for i in found.argmax(1)]


def test_a_image_is_prepared_as_the_spec_says():
    network = network_for(GREY).eval()
    x = noise(10, 10)
    pixels = prepare_image(x, GREY)
    assert pixels.shape == (8, 8, 1) and np.array_equal(pixels[:, :, 0], x[1:9, 1:9])
    wanted = network((torch.tensor(x[1:9, 1:9]).float()[None, None] / 255 - 0.4) / 0.3).softmax(1)
    assert np.allclose(network.predict_proba([x]), wanted.detach(), atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 130])
def test_any_number_of_images_is_predicted(count):
    network = network_for(GREY).eval()
    arrays = np.random.default_rng(0).integers(0, 256, (count, 10, 10), dtype=np.uint8)
    found = network.predict_proba(arrays)
    assert found.shape == (count, 3) and found.dtype == np.float32 and len(network.predict(list(arrays))) == count
    if count:
        assert np.allclose(found[-1:], network.predict_proba(arrays[-1:]), atol=1e-5)
    assert np.array_equal(found, network.predict_proba(iter(arrays)))


@pytest.mark.parametrize("single", ["photo.png", Path("photo.png"), noise(8, 8), noise(8, 8, 3), noise(8, 8, 1)])
def test_a_single_image_is_not_taken_for_many(single):
    with pytest.raises(InputError, match=r"predict: expected a list of images, got a single image\. .*\[image\]"):
        network_for(GREY).predict(single)


@pytest.mark.parametrize(
    "array",
    [
        noise(8, 8) / 255,
        noise(8, 8, 4),
        noise(8, 0),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.uint8(3),
    ],
)
def test_an_array_that_is_no_image_is_refused(array):
    with pytest.raises(InputError, match=r"image array: expected uint8 of shape \(H, W\), .* Convert the array"):
        network_for(GREY).predict([noise(8, 8), np.asarray(array)])


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "a\nb.png").write_bytes(b"no image")
    for path in (tmp_path / "a\nb.png", tmp_path / "missing.png"):
        with pytest.raises(InputError, match=r"cannot use .*(a\\x0ab|missing)\.png: ") as refused:
            network_for(GREY).predict([path])
        assert len(str(refused.value).splitlines()) == 1


def test_a_network_without_a_spec_does_not_predict():
    with pytest.raises(InputError, match="expected a model with a Spec of its inputs and outputs, got none. Load"):
        create_model("resnet20").predict([noise(8, 8)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_dtype_predicts_too(dtype):
    network = network_for(GREY).eval()
    wanted = network.predict_proba([noise(8, 8)])
    found = network.to(dtype).predict_proba([noise(8, 8)])
    assert found.dtype == np.float32 and np.allclose(found, wanted, atol=0.1)


def test_predicting_leaves_each_layer_s_mode_and_statistics_as_they_were():
    network = network_for(GREY).train()
    network.stage1.eval()
    state = {k: v.clone() for k, v in network.state_dict().items()}
    modes = [m.training for m in network.modules()]
    network.predict([noise(8, 8)])
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


def test_a_network_is_copied_with_plan_and_spec_and_sliced_without():
    network = network_for(GREY).eval()
    twin = copy.deepcopy(network)
    assert twin.plan == network.plan and twin.plan is not network.plan and twin.spec == network.spec
    assert np.array_equal(twin.predict_proba([noise(8, 8)]), network.predict_proba([noise(8, 8)]))
    part = network[:2]
    assert isinstance(part, Network) and part.plan == {} and part.spec is None
    assert part(torch.ones(1, 1, 8, 8)).shape == (1, 4, 8, 8) and part.stem is network.stem


# load


@pytest.mark.parametrize("name", ["resnet20", "resnet9"])
def test_a_saved_network_is_loaded_with_equal_outputs(name, tmp_path):
    network = network_for(COLOUR, name)
    network(torch.randn(16, 3, 16, 16))
    path = save(network.eval(), tmp_path / "best.safetensors")
    generator = torch.get_rng_state()
    loaded = load(path)
    assert torch.equal(torch.get_rng_state(), generator)
    assert loaded.plan == network.plan and loaded.spec == COLOUR and not loaded.training
    x = torch.randn(3, 3, 16, 16)
    assert torch.equal(loaded(x), network(x))
    fixed = [n for n, p in network.named_parameters() if not p.requires_grad]
    assert [n for n, p in loaded.named_parameters() if not p.requires_grad] == fixed
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}


def test_a_run_folder_stands_for_its_best_file(tmp_path):
    (tmp_path / "weights").mkdir()
    save(network_for(GREY), tmp_path / "weights" / "best.safetensors")
    assert load(tmp_path).spec == load(str(tmp_path)).spec == GREY


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected weights/best.safetensors in it, found none. Wait until the run"):
        load(tmp_path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read .*none.safetensors: expected a file, got nothing"):
        load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("change", [{"plan": None}, {"spec": None}, {"plan": 3}, {"plan": "resnet20"}])
def test_a_file_without_a_plan_or_spec_is_refused(change, tmp_path):
    path = save(network_for(GREY), tmp_path / "a.safetensors", **change)
    with pytest.raises(
        InputError, match=r"a.safetensors: expected a valid plan and Spec in its header, got .*. Write"
    ) as no:
        load(path)
    assert len(str(no.value).splitlines()) == 1


@pytest.mark.parametrize(
    "change, text",
    [
        ({"plan": {"family": "vit"}}, "cannot read the plan: expected a family of .*, got 'vit'"),
        ({"plan": {"family": ["resnet"]}}, r"cannot read the plan: expected a family of .*, got \['resnet'\]"),
        ({"plan": {"family": "resnet", "layers": [10**12], "widths": [1]}}, "resnet: expected at most 3000 blocks"),
        ({"plan": {"family": "resnet", "layers": "many"}}, "resnet: expected integers of at least 1 for layers"),
        (
            {"plan": {"family": "resnet", "glory": 1}},
            r"cannot read the plan: expected fields of this version of skipway, got glory",
        ),
        ({"spec": {}}, "cannot read a Spec: expected the fields"),
        ({"spec": {**GREY.as_dict(), "size": "x"}}, "expected numbers for sizes, mean and std"),
        ({"plan": {"family": "resnet", "layers": [1], "widths": [10**12]}}, "header|does not fit"),
        ({"plan": {"family": "resnet", "layers": [1], "widths": [10**30]}}, "header|does not fit"),
        (
            {"plan": {"family": "resnet9", "layers": [10**9], "widths": [1, 1]}},
            "resnet9: expected at most 1000 convolu",
        ),
        ({"plan": {"family": "resnet9", "layers": [0] * 1001, "widths": [1] * 1002}}, "got 1001 in its blocks and"),
        (
            {"plan": {"family": "resmlp", "in_features": 10**6, "categories": [1] * 20_000}},
            "resmlp: expected at most 10,000 values for categories, got 20,000. Make categories shorter",
        ),
        ({"spec": {**GREY.as_dict(), "size": 50_000, "presize": 50_000}}, "a Spec of this size: expected"),
        (
            {"plan": {"family": "resnet", "layers": [1], "widths": [4], "drop_path": "x"}},
            "expected drop_path of at least 0",
        ),
    ],
)
def test_a_file_with_a_hostile_plan_or_spec_is_refused_in_one_line_that_names_it(change, text, tmp_path):
    path = save(network_for(GREY), tmp_path / "a.safetensors", **change)
    with pytest.raises(InputError, match=rf"a\.safetensors.*({text})") as refused:
        load(path)
    assert len(str(refused.value).splitlines()) == 1


def test_a_file_whose_tensors_do_not_fit_its_plan_is_refused(tmp_path):
    network = network_for(GREY)
    plan = {**network.plan, "num_classes": 5}
    with pytest.raises(
        ShapeError,
        match=r"does not match its plan: head.weight \(3, 4\), expected \(5, 4\); head.bias",
    ):
        load(save(network, tmp_path / "a.safetensors", plan=plan))
    tensors = network.state_dict()
    tensors["extra"] = tensors.pop("head.bias")
    header = {"plan": network.plan, "spec": GREY.as_dict()}
    save_weights(tmp_path / "b.safetensors", tensors, header)
    with pytest.raises(
        ShapeError, match=r"it does not match .* expected \(3,\); extra is unexpected\. Write the file again"
    ):
        load(tmp_path / "b.safetensors")
    assert set(load_weights(tmp_path / "b.safetensors")[0]) == set(tensors)


def test_a_file_whose_spec_is_not_that_of_its_network_is_refused(tmp_path):
    spec = Spec(1, 8, 8, (0.4,), (0.3,), ("no", "yes")).as_dict()
    path = save(network_for(GREY), tmp_path / "a.safetensors", spec=spec)
    with pytest.raises(ShapeError, match="has a plan for 1 channel and 3 classes, but a Spec for 1"):
        load(path)
