"""Every check on every kind of registered network, as in the model tests of timm; the oracle is the network itself.

The other checks of every kind are in tests/test_contracts.py (shapes, the meta device, gradients, plans, files,
torch.export and torch.compile) and in tests/nn/test_tracing.py (torch.fx and torch.jit).
"""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from parameter_groups import groups
from shrunken import SIZE, kinds, random_images, settle, settled, shrunken_plan
from torch import func, nn

import skipway as sw
from skipway.models import registry
from skipway.models.network import build_meta_network, build_network

# Options that no registered name has, but that change the layers.
VARIANTS = {
    "layer scale": ("resnet20", {"join": "layerscale"}),
    "fixup": ("resnet20", {"norm": "fixup"}),
    "no norm": ("resnetv2_50", {"norm": "none"}),
    "group norm": ("densenet121", {"norm": "group"}),
    "dropout": ("resnet9", {"drop_rate": 0.5, "global_pool": "catavgmax"}),
}


@cache
def network_of(name):
    if name not in VARIANTS:
        return settled(name)
    row, options = VARIANTS[name]
    torch.manual_seed(1)
    network = build_network({**shrunken_plan(row), **options})
    settle(network)
    return network.eval()


# Transforms, dtypes and memory formats of torch


def check_functional_call(network, x):
    state = {name: 1.1 * value if value.is_floating_point() else value for name, value in network.state_dict().items()}
    other = copy.deepcopy(network)
    other.load_state_dict(state)
    assert torch.equal(func.functional_call(network, state, (x,)), other(x))
    assert not torch.equal(other(x), network(x))


def check_channels_last(network, x):
    layout = torch.channels_last
    found = copy.deepcopy(network).to(memory_format=layout)(x.to(memory_format=layout))
    assert torch.allclose(found, network(x), rtol=1e-4, atol=1e-5)


def check_float64(network, x):
    found = copy.deepcopy(network).double()(x.double())
    assert found.dtype == torch.float64 and torch.allclose(found.float(), network(x), rtol=1e-4, atol=1e-5)


def check_bfloat16(network, x):
    found, wanted = copy.deepcopy(network).bfloat16()(x.bfloat16()), network(x)
    assert found.dtype == torch.bfloat16 and (found - wanted).abs().max() < 0.2 * wanted.abs().max()


def check_gradients_of_each_image(network, x):
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}

    def loss(parameters, image):
        return func.functional_call(network, parameters, (image[None],)).square().sum()

    gradients = func.vmap(func.grad(loss), in_dims=(None, 0))(parameters, x)
    wanted = torch.autograd.grad(network(x).square().sum(), list(parameters.values()), allow_unused=True)
    for found, total in zip(gradients.values(), wanted, strict=True):
        assert len(found) == len(x)
        assert torch.allclose(found.sum(0), torch.zeros(()) if total is None else total, rtol=1e-3, atol=1e-4)


# Methods and properties of timm


def check_head(network, x):
    features = network.forward_features(x)
    assert torch.equal(network.forward_head(features), network(x))
    hidden = network.forward_head(features, pre_logits=True)
    logits = network.get_classifier()(hidden)
    assert torch.equal(network.scale(logits) if "scale" in network._modules else logits, network(x))
    assert (features.shape[1], hidden.shape[1]) == (network.num_features, network.head_hidden_size)
    assert features.dim() == (2 if "in_features" in network.plan else 4) and hidden.dim() == 2
    assert network.num_classes == network(x).shape[1]


def check_default_cfg(network, x):
    config = network.default_cfg
    assert config == network.pretrained_cfg and config["architecture"] == network.plan["name"]
    assert network.get_submodule(config["classifier"]) is network.get_classifier()
    assert network.get_classifier(name_only=True) == config["classifier"]
    assert config["num_classes"] == network.num_classes == network.plan["num_classes"]
    if "in_features" in network.plan:
        assert config["first_conv"] is None and config["input_size"] == (network.plan["in_features"],)
        return
    channels, *size = config["input_size"]
    assert network.get_submodule(config["first_conv"]).in_channels == channels == network.plan["in_chans"]
    assert len(config["mean"]) == len(config["std"]) == channels and 0 < config["crop_pct"] <= 1
    features = network.to("meta").forward_features(torch.empty(1, channels, *size, device="meta"))
    assert features.shape[2:] == config["pool_size"]


def check_classifier_reset(network, x):
    network, x = network.double(), x.double()
    features = network.forward_features(x)
    hidden = network.forward_head(features, pre_logits=True)
    network.reset_classifier(0)
    assert torch.equal(network(x), hidden) and isinstance(network.get_classifier(), nn.Identity)
    assert (network.num_classes, network.plan["num_classes"]) == (0, 0)
    assert (network.num_features, network.head_hidden_size) == (features.shape[1], hidden.shape[1])
    network.reset_classifier(np.int64(7))
    assert type(network.plan["num_classes"]) is int and network(x).shape == (len(x), 7)
    assert network.num_classes == network.plan["num_classes"] == 7 and not network.training
    assert torch.equal(network.forward_features(x), features)
    expected = build_meta_network(network.plan).state_dict()
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in expected.items()}


def check_pool_reset(network, x):
    if "global_pool" not in network.plan:
        return
    features = network.forward_features(x)
    network.reset_classifier(0, "max")
    pooled = network.forward_head(features)
    if network.plan["family"] != "convnext":  # whose head has a norm
        assert torch.equal(pooled, features.amax((2, 3)))
        network.reset_classifier(3, "catavgmax")
        assert network.head_hidden_size == 2 * network.num_features == 2 * features.shape[1]
    network.reset_classifier(0, "")
    assert network(x).shape == features.shape and network.plan["global_pool"] == "none"
    network.reset_classifier(5, "avg")
    assert network(x).shape == (len(x), 5)


def check_intermediates(network, x):
    seen = {}
    hooks = [
        module.register_forward_hook(lambda m, i, out, path=path: seen.__setitem__(path, out.clone()))
        for path, module in network.named_modules()
    ]
    expected = network(x)
    for hook in hooks:
        hook.remove()
    features, maps = network.forward_intermediates(x)
    info = network.feature_info
    for out, level in zip(maps, info, strict=True):
        assert torch.equal(out, seen[level["module"]]) and out.shape[1] == level["num_chs"]
        border = network.plan.get("stem") == "whitening"  # which has no padding
        assert out.dim() == 2 or out.shape[2] == -(-SIZE // level["reduction"]) - border
    assert torch.equal(network.forward_head(features), expected)


def check_features_only(network, x):
    options = {option: value for option, value in network.plan.items() if option not in ("name", "family")}
    backbone = sw.create_model(network.plan["name"], features_only=True, **options).eval()
    backbone.load_state_dict(network.state_dict())
    assert backbone.feature_info == network.feature_info
    maps = network.forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(backbone(x), maps, strict=True))


def check_groups(network, x):
    stages = sum(child.startswith("stage") for child, _ in network.named_children())
    for coarse in (False, True):
        found = groups(network, coarse)
        assert [name for group in found for name in group] == [name for name, _ in network.named_parameters()]
        assert len(found) == stages + 2 if coarse else len(found) >= stages + 2
        assert found[0][0].startswith("stem.") and "head.weight" in found[-1]
    assert network.no_weight_decay() <= set(dict(network.named_parameters()))


CHECKS = {name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", [*kinds(), *VARIANTS])
def test_every_network_works_in(name, check):
    CHECKS[check](copy.deepcopy(network_of(name)), random_images(3))


def test_every_name_has_sizes_that_fit_each_other():
    for name in registry.names():
        plan = registry.plan_of(name)
        if isinstance(plan["layers"], list) and not plan.get("inner_widths"):  # further blocks change no shape
            plan["layers"] = [min(count, 1) for count in plan["layers"]]
        network = build_meta_network(plan)
        config, info = network.default_cfg, network.feature_info
        classifier, sizes = network.get_submodule(config["classifier"]), (network.head_hidden_size, plan["num_classes"])
        assert (classifier.in_features, classifier.out_features) == sizes, name
        assert config["num_classes"] == plan["num_classes"] and config["architecture"] == name
        assert len(info) == len(set(info.reduction())) and info.reduction() == sorted(info.reduction()), name
        if config["first_conv"]:
            first = network.get_submodule(config["first_conv"])
            assert first.in_channels == config["input_size"][0] == plan["in_chans"], name
