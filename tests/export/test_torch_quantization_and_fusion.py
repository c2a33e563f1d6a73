"""The quantization and fusion of torch, which rewrite graphs of torch.fx, on our networks and trees."""

import copy
import warnings

import pytest
import torch
from shrunken import SIZE, random_images, settled
from torch import nn
from torch.ao.quantization import QConfigMapping, default_dynamic_qconfig, get_default_qat_qconfig_mapping
from torch.ao.quantization import get_default_qconfig_mapping as default_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

from skipway.nn.chain import Chain
from skipway.nn.joins import Scale
from skipway.nn.parallel import Parallel
from skipway.nn.shape_inference import output_shape
from skipway.nn.skip import Skip

NAMES = ("resnet18", "resnet50_v1", "densenet121", "mobilenetv2_050", "convnext_atto", "tf_efficientnet_b0", "own tree")


def conv(channels, out, stride=1):
    return Chain(conv=nn.Conv2d(channels, out, 3, stride, 1), norm=nn.BatchNorm2d(out), act=nn.ReLU())


def tree():
    network = Chain(
        Skip(conv(3, 8, 2), "project", after=nn.ReLU()),
        Skip(conv(8, 8), join=Scale(8, 0.5)),
        Skip(conv(8, 8), join="gate"),
        Parallel("concat", conv(8, 4), Skip(conv(8, 8))),
        lambda x: x.mean((2, 3)),
        head=nn.Linear(12, 3),
    )
    output_shape(network, (1, 3, SIZE, SIZE))
    return network


def made(name):
    torch.manual_seed(0)
    return tree().eval() if name == "own tree" else copy.deepcopy(settled(name))


@pytest.fixture(autouse=True)
def x86():
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that torch.ao is old, and that a range is reduced
        yield
    torch.backends.quantized.engine = engine


def apart(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


def kinds(network):
    return {f"{type(m).__module__}.{type(m).__name__}" for m in network.modules()}


@pytest.mark.parametrize("name", NAMES)
def test_static_quantization(name):
    network, x = made(name), random_images(8)
    prepared = prepare_fx(copy.deepcopy(network), default_mapping("fbgemm"), (x,))
    prepared(x)
    quantized = convert_fx(prepared)
    assert apart(quantized(x), network(x)) < 0.15
    assert any("ao.nn" in kind and "quantized" in kind for kind in kinds(quantized))


@pytest.mark.parametrize("name", NAMES)
def test_dynamic_quantization(name):
    network, x = made(name), random_images(8)
    quantized = convert_fx(
        prepare_fx(copy.deepcopy(network), QConfigMapping().set_global(default_dynamic_qconfig), (x,))
    )
    assert apart(quantized(x), network(x)) < 0.05
    assert "torch.ao.nn.quantized.dynamic.modules.linear.Linear" in kinds(quantized)


@pytest.mark.parametrize("name", ["resnet18", "own tree"])
def test_quantization_aware_training(name):
    network, x = made(name).train(), random_images(8)
    prepared = prepare_qat_fx(network, get_default_qat_qconfig_mapping("fbgemm"), (x,))
    prepared(x).square().sum().backward()
    assert all(p.grad is not None for p in prepared.parameters())
    assert convert_fx(prepared.eval())(x).shape == (8, 3)


@pytest.mark.parametrize("name", NAMES)
def test_norms_are_folded_into_the_convolutions_before_them(name):
    from torch.fx.experimental.optimization import fuse  # its import warns

    network, x = made(name), random_images()
    fused = fuse(network)
    assert apart(fused(x), network(x)) < 1e-5
    before, after = (sum(isinstance(m, nn.BatchNorm2d) for m in n.modules()) for n in (network, fused))
    assert after < before or name == "convnext_atto"  # which has none
