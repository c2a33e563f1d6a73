import json
from collections import OrderedDict
from pathlib import Path

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
# timm leaves out stages that one of the same reduction follows, as create_model does; Features has every stage.
EVERY_STAGE = {
    "efficientnet_lite0": [(32, 2), (16, 2), (24, 4), (40, 8), (80, 16), (112, 16), (192, 32), (320, 32)],
}
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "features" / "timm.json").read_text())
GOLDEN = {
    name: GOLDEN[name]
    for name in ("resnet18", "resnext50_32x4d", "resnetv2_50", "convnext_tiny", "tf_efficientnet_lite0")
}
TAIL = ("pool", "flatten", "head")
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
    headless = sw.create_model("resnet18", widths=[4, 5, 6, 7], features_only=True, global_pool="", out_indices=(2, 4))
    assert info(headless) == info(features)
    with pytest.raises(InputError, match="cannot set out_indices: expected features_only=True, got False"):
        sw.create_model("resnet18", out_indices=(1,))


@pytest.mark.parametrize("name", GOLDEN)
def test_create_model_has_the_feature_maps_of_timm(name):
    with torch.device("meta"):
        features = sw.create_model(name, features_only=True)
        last_three = sw.create_model(name, features_only=True, out_indices=3)
    info = features.feature_info
    assert (info.channels(), info.reduction()) == (GOLDEN[name]["channels"], GOLDEN[name]["reduction"])
    assert last_three.feature_info.channels() == GOLDEN[name]["channels"][-3:]
    assert last_three.feature_info.reduction(0) == GOLDEN[name]["reduction"][0]


def test_features_load_the_state_of_a_network():
    network, other = (sw.create_model("resnet18", widths=[4, 5, 6, 7]).eval() for _ in range(2))
    x = torch.randn(2, 3, 64, 64)
    network(x)
    for indices in (None, (1, 3), (0,)):
        features = sw.Features(other, indices).eval()
        keys = features.load_state_dict(network.state_dict())
        assert keys.missing_keys == [] and {"head.weight", "head.bias"} <= set(keys.unexpected_keys)
        assert all(key.startswith(tuple(f"{path}." for path in features.left_out)) for key in keys.unexpected_keys)
        wanted = sw.Features(network, indices).eval()
        assert all(torch.equal(a, b) for a, b in zip(features(x), wanted(x), strict=True))
        own = features.state_dict()
        assert all(key.startswith("layers.") for key in own)
        assert wanted.load_state_dict(own) == ([], [])
    assert sw.Features(network, (0,)).left_out == ("stem.pool", "stage1", "stage2", "stage3", "stage4", *TAIL)


def test_plain_tensors_are_a_state_too():
    network = sw.create_model("resnet18", widths=[4] * 4)
    features = sw.Features(sw.create_model("resnet18", widths=[4] * 4))
    plain = {key: value.detach().clone() for key, value in network.state_dict().items()}
    features.load_state_dict(plain, assign=True)
    assert features.layers.stage1[0].body.conv1.weight.data_ptr() == plain["stage1.0.body.conv1.weight"].data_ptr()


def without(network, *keys):
    state = network.state_dict()  # its metadata has torch's version of each layer, unlike that of a plain dict
    for key in keys:
        del state[key]
    return state


def test_loading_features_is_strict_but_for_the_head():
    network = sw.create_model("resnet18", widths=[4] * 4)
    features, state = sw.Features(network), network.state_dict()
    with pytest.raises(RuntimeError, match=r'Missing key.* "layers.stage1.0.body.conv1.weight"'):
        features.load_state_dict(without(network, "stage1.0.body.conv1.weight"))
    with pytest.raises(RuntimeError, match='Missing key.* "layers.stem_step.norm.num_batches_tracked"'):
        features.load_state_dict(without(network, "stem.step.norm.num_batches_tracked"))
    for stray in ("stage1.9.weight", "fc.weight", "header.weight", "stem.other"):
        with pytest.raises(
            RuntimeError, match=f'Unexpected key.* "{stray.replace(".", "[.]").replace("stage1", ".*")}"'
        ):
            features.load_state_dict({**state, stray: torch.ones(1)})
        assert stray.split(".")[-1] in str(features.load_state_dict({**state, stray: torch.ones(1)}, strict=False))
    with pytest.raises(RuntimeError, match="size mismatch for layers.stage4"):
        features.load_state_dict(sw.create_model("resnet18", widths=[4, 4, 4, 5]).state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        features.load_state_dict({})
    assert features.load_state_dict(without(network, "head.weight", "head.bias")) == ([], [])
    with pytest.raises(RuntimeError, match='Unexpected key.* "head.weight"'):  # two layouts in one state
        features.load_state_dict({**features.state_dict(), "head.weight": state["head.weight"]})


def test_checkpointing_of_features_changes_nothing_but_memory():
    features, x = sw.create_model("resnet18", widths=[4] * 4, features_only=True), torch.randn(2, 3, 32, 32)
    state, gradients = {k: v.clone() for k, v in features.state_dict().items()}, []
    for enable in (False, True):
        features.load_state_dict(state)
        features.zero_grad()
        features.set_grad_checkpointing(enable)
        assert any(getattr(module, "forward_impl", None) for module in features.layers) == enable
        sum(out.square().sum() for out in features(x)).backward()
        gradients.append([p.grad.clone() for p in features.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


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
