from collections import OrderedDict

import pytest
import torch
from torch import nn

import skipway as sw
from skipway.errors import InputError
from skipway.models.registry import FAMILIES

# (channels, reduction) of timm 1.0.31's features_only networks
TIMM = {
    "resnet50": [(64, 2), (256, 4), (512, 8), (1024, 16), (2048, 32)],
    "resnet18d": [(64, 2), (64, 4), (128, 8), (256, 16), (512, 32)],
    "resnetv2_50": [(64, 2), (256, 4), (512, 8), (1024, 16), (2048, 32)],
    "densenet121": [(64, 2), (256, 4), (512, 8), (1024, 16), (1024, 32)],
    "convnext_atto": [(40, 4), (40, 4), (80, 8), (160, 16), (320, 32)],  # timm's begin behind the stem
    "resnetrs50": [(64, 2), (256, 4), (512, 8), (1024, 16), (2048, 32)],
}
# timm leaves out stages that one of the same reduction follows; here every stage has its output.
EVERY_STAGE = {
    "efficientnet_lite0": [(32, 2), (16, 2), (24, 4), (40, 8), (80, 16), (112, 16), (192, 32), (320, 32)],
}
SMALL = {
    "resnet18": {"widths": [4] * 4},
    "resnet9": {"widths": [4] * 4},
    "densenet121": {"growth": 4},
    "mobilenetv2_050": {},
    "convnext_atto": {},
    "resmlp": {},
    "resnet20": {},
    "resnetv2_18": {"widths": [4] * 4},
}


def info(features):
    return [(level["num_chs"], level["reduction"]) for level in features.feature_info]


@pytest.mark.parametrize("name, levels", [*TIMM.items(), *EVERY_STAGE.items()])
def test_channels_and_reductions_are_timm_s(name, levels):
    with torch.device("meta"):
        network = sw.create_model(name)
    assert info(sw.Features(network)) == levels


@pytest.mark.parametrize("name", SMALL)
def test_the_outputs_are_what_the_network_itself_passes_on(name):
    network = sw.create_model(name, **SMALL[name]).eval()
    features = sw.Features(network).eval()
    x = torch.randn(2, 64) if name == "resmlp" else torch.randn(2, 3, 64, 64)
    seen = {}
    for path, module in network.named_modules():
        module.register_forward_hook(lambda m, i, out, path=path: seen.__setitem__(path, out.clone()))
    network(x)
    outputs = features(x)
    assert (
        len(outputs)
        == len(features.feature_info)
        == 1 + sum(n.startswith("stage") for n, _ in network.named_children())
    )
    for out, level in zip(outputs, features.feature_info, strict=True):
        assert torch.equal(out, seen[level["module"]]) and out.shape[1] == level["num_chs"]
        assert name == "resmlp" or out.shape[-1] == 64 // level["reduction"]


def test_indices_choose_and_the_rest_is_left_out():
    network = sw.create_model("resnet18", widths=[4, 5, 6, 7])
    features = sw.Features(network, out_indices=(1, -3))
    assert info(features) == [(4, 4), (5, 8)] and [o.shape[1] for o in features(torch.randn(2, 3, 32, 32))] == [4, 5]
    assert not any("stage3" in name or "head" in name for name, _ in features.named_parameters())
    shared = {id(p) for p in network.parameters()}
    assert all(id(p) in shared for p in features.parameters())


def test_create_model_gives_features_as_timm_s_does():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = sw.create_model("resnet18", widths=[4, 5, 6, 7]).eval()
        torch.manual_seed(0)
        features = sw.create_model("resnet18", widths=[4, 5, 6, 7], features_only=True, out_indices=(2, 4)).eval()
    assert isinstance(features, sw.Features) and info(features) == [(5, 8), (7, 32)]
    x = torch.randn(2, 3, 64, 64)
    for found, wanted in zip(features(x), sw.Features(network, (2, 4))(x), strict=True):
        assert torch.equal(found, wanted)
    with pytest.raises(InputError, match="cannot set out_indices: expected features_only=True, got False"):
        sw.create_model("resnet18", out_indices=(1,))


def test_features_of_pretrained_weights(tmp_path):
    network = sw.create_model("resnet18", 3, widths=[4] * 4).eval()
    network.spec = sw.Spec(3, 32, 32, (0.5,) * 3, (0.2,) * 3, ("a", "b", "c"))
    network.save(tmp_path / "a.safetensors")
    features = sw.create_model(
        "resnet18", in_chans=1, pretrained=tmp_path / "a.safetensors", widths=[4] * 4, features_only=True
    )
    grey = torch.randn(2, 1, 32, 32)
    for found, wanted in zip(features(grey), sw.Features(network)(grey.expand(-1, 3, -1, -1)), strict=True):
        assert torch.allclose(found, wanted, atol=1e-4)


def test_every_family_has_a_test_here():
    assert {sw.create_model(name, **SMALL[name]).plan["family"] for name in SMALL} == set(FAMILIES)


@pytest.mark.parametrize("index", [5, -6])
def test_an_output_that_is_not_there_is_refused(index):
    with pytest.raises(InputError, match=f"out_indices: expected indices from -5 to 4, for 5 outputs, got {index}"):
        sw.Features(sw.create_model("resnet18", widths=[4] * 4), (0, index))


def test_a_network_without_stages_is_refused():
    with pytest.raises(InputError, match="Features: expected a network with a stem and stages"):
        sw.Features(sw.Network(OrderedDict(head=nn.Linear(2, 2))))
