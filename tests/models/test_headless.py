"""Networks without a classifier in the rest of the package: files, weights of other libraries, export, growth."""

import json

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from small_networks import SMALL, images, small
from torch import nn

import skipway as sw
from skipway.commands.evaluate import evaluate
from skipway.commands.export import export_run
from skipway.commands.predict import predict
from skipway.commands.summary import summarize
from skipway.data.image_spec import Spec
from skipway.errors import InputError
from skipway.models import registry
from skipway.weights.convert import adopt, release

SPEC = Spec(channels=3, size=32, presize=36, mean=(0.5,) * 3, std=(0.25,) * 3, class_names=("cat", "dog", "eel"))
RESNET = SMALL["resnet18"]


@pytest.fixture
def whole():
    network = small("resnet18", num_classes=3).eval()
    network.spec = SPEC
    return network


@pytest.fixture(params=["avg", "none"])
def headless(request):
    network = small("resnet18", num_classes=0, global_pool=request.param).eval()
    network.spec = SPEC
    return network


def test_a_headless_network_is_saved_and_loaded(headless, tmp_path):
    headless.save(tmp_path / "features.safetensors")
    loaded = sw.load(tmp_path / "features.safetensors")
    assert loaded.plan == headless.plan
    assert torch.equal(loaded(images()), headless(images()))


def test_a_headless_file_gets_a_classifier(headless, tmp_path):
    headless.save(tmp_path / "features.safetensors")
    options = {"pretrained": tmp_path / "features.safetensors", **RESNET}
    network = sw.create_model("resnet18", 5, **options)
    assert network(images()).shape == (2, 5)
    assert torch.equal(network.stage2[0].body.conv1.weight, headless.stage2[0].body.conv1.weight)
    assert (network.plan["global_pool"], network.spec.num_classes) == ("avg", 5)
    named = sw.create_model("resnet18", class_names=("a", "b"), **options)
    assert named.spec.class_names == ("a", "b")
    assert "0 of 2 classes kept by their names, 2 new" in named.origin


@pytest.mark.parametrize(
    ("options", "shape", "origin"),
    [
        ({"num_classes": 0}, (2, 8), "head ignored"),
        ({"num_classes": 0, "global_pool": ""}, (2, 8, 4, 4), "head ignored"),
        ({"num_classes": 0, "global_pool": "catavgmax"}, (2, 16), "head ignored"),
        ({"global_pool": "max"}, (2, 3), "whole.safetensors"),
        ({"global_pool": "catavgmax"}, (2, 3), "0 of 3 classes kept by their names, 3 new"),
        ({"class_names": ("dog", "fox"), "global_pool": "max"}, (2, 2), "1 of 2 classes kept by their names, 1 new"),
    ],
)
def test_pretrained_weights_fit_another_head(whole, tmp_path, options, shape, origin):
    whole.save(tmp_path / "whole.safetensors")
    network = sw.create_model("resnet18", pretrained=tmp_path / "whole.safetensors", **RESNET, **options)
    assert network(images()).shape == shape
    assert network.origin.endswith(origin)
    assert network.plan == registry.plan_of("resnet18", **RESNET, **{"num_classes": shape[1], **_sizes(options)})


def _sizes(options):
    return {**{k: v for k, v in options.items() if k != "class_names"}}


def test_another_pool_keeps_the_classifier(whole, tmp_path):
    whole.save(tmp_path / "whole.safetensors")
    network = sw.create_model("resnet18", pretrained=tmp_path / "whole.safetensors", global_pool="max", **RESNET)
    assert torch.equal(network.head.weight, whole.head.weight)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_the_head_of_another_library_can_be_left_out(whole, library):
    state = release(whole, library)
    network = adopt(state, library, "resnet18", num_classes=0, **RESNET)
    assert isinstance(network.head, nn.Identity)
    torch.testing.assert_close(whole.head(network(images())), whole(images()))
    assert sorted(set(state) - set(release(network, library))) == ["fc.bias", "fc.weight"]
    unpooled = adopt(state, library, "resnet18", num_classes=0, global_pool="none", **RESNET)
    torch.testing.assert_close(unpooled(images()).mean((2, 3)), network(images()))


@pytest.mark.parametrize(
    "command", [lambda n: predict(n, [np.zeros((32, 32, 3), np.uint8)]), lambda n: evaluate(n, "photos")]
)
def test_commands_that_need_classes_refuse_a_headless_network(headless, command):
    with pytest.raises(InputError, match=r"cannot (predict|evaluate): expected a network with a classifier"):
        command(headless)


def test_a_headless_network_is_exported_with_its_preprocessing(headless, tmp_path):
    file = sw.export.onnx(headless, tmp_path / "features.onnx").path
    session = onnxruntime.InferenceSession(file)
    assert [output.name for output in session.get_outputs()] == ["features"]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 36, 36, 3), dtype=np.uint8)
    (features,) = session.run(None, {"images": pixels})
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2)[..., 2:34, 2:34] / 255 - 0.5) / 0.25
    torch.testing.assert_close(torch.from_numpy(features), headless(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_headless_network_becomes_a_torch_program(headless, tmp_path):
    file = sw.export.program(headless, tmp_path / "features.pt2", raw=True).path
    torch.testing.assert_close(torch.export.load(file).module()(images()), headless(images()))


def test_a_headless_table_network_is_exported_as_features(tmp_path):
    run = sw.train("wine", epochs=1, output=tmp_path)
    network = sw.load(run.path)
    headless = sw.create_model("resmlp", pretrained=run.path, **_own(network.plan, num_classes=0)).eval()
    file = sw.export.onnx(headless, tmp_path / "features.onnx").path
    rows = torch.randn(3, network.plan["in_features"])
    (features,) = onnxruntime.InferenceSession(file).run(None, {"rows": rows.numpy()})
    *trunk, _, _ = network.children()  # without the heads of the members, and their mean
    members = torch.nn.Sequential(*trunk)(rows).view(3, network.plan["members"], -1)
    torch.testing.assert_close(torch.from_numpy(features), members.mean(1))


def _own(plan, **options):
    return {k: v for k, v in {**plan, **options}.items() if k not in ("name", "family")}


def test_a_headless_network_is_exported_to_timm_but_not_to_torchvision(headless, tmp_path):
    headless.save(tmp_path / "features.safetensors")
    export_run(tmp_path / "features.safetensors", "timm", tmp_path / "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert (config["num_classes"], config["label_names"], config["pretrained_cfg"]["num_classes"]) == (0, [], 0)
    assert config["model_args"].get("global_pool", "avg") == {"none": ""}.get(headless.plan["global_pool"], "avg")
    assert "fc.weight" not in safetensors.torch.load_file(tmp_path / "timm" / "model.safetensors")
    with pytest.raises(InputError, match="cannot export to torchvision: expected a network with a classifier"):
        export_run(tmp_path / "features.safetensors", "torchvision", tmp_path / "torchvision")


def test_a_headless_network_grows_deeper_but_not_wider(headless):
    deeper = sw.grow.deepen(headless, blocks={"stage1": 1})
    assert torch.equal(deeper(images()), headless(images()))
    with pytest.raises(InputError, match="cannot widen: expected a network with a classifier"):
        sw.grow.widen(headless, 2)


@pytest.mark.parametrize("kind", ["max", "avgmax", "catavgmax"])
def test_a_network_grows_in_front_of_every_pool(kind):
    network = small("resnet18", num_classes=3, global_pool=kind).eval()
    torch.testing.assert_close(sw.grow.widen(network, 2)(images()), network(images()))


def test_a_headless_file_starts_a_run(headless, tmp_path):
    headless.save(tmp_path / "features.safetensors")
    run = sw.train(
        "digits", pretrained=str(tmp_path / "features.safetensors"), epochs=1, output=tmp_path, head="train", lr=0.1
    )
    assert sw.load(run.path).plan["num_classes"] == 10


def test_a_summary_of_a_headless_network():
    assert str(summarize("resnet20", num_classes=0)).startswith("layer")
    with pytest.raises(InputError, match="invalid num_classes: expected an integer of at least 0, got -1"):
        summarize("resnet20", num_classes=-1)


@pytest.mark.parametrize("name", [*SMALL, "resmlp"])
def test_the_parameters_of_a_headless_network_are_counted(name):
    network = sw.create_model(name, num_classes=0, **SMALL.get(name, {}))
    assert registry.count_parameters(network.plan) == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", ["mobilenetv2_100", "convnext_atto", "resnet18"])
def test_options_with_other_words_in_timm_are_exported(name, tmp_path):
    network = sw.create_model(name, 3, activation="hardswish", output_stride=16, global_pool="max")
    network.spec = SPEC
    network.save(tmp_path / "network.safetensors")
    export_run(tmp_path / "network.safetensors", "timm", tmp_path / "timm")
    arguments = json.loads((tmp_path / "timm" / "config.json").read_text())["model_args"]
    assert arguments == {"act_layer": "hard_swish", "output_stride": 16, "global_pool": "max"}
