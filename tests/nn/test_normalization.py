import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skipway.errors import InputError
from skipway.nn.activations import ACTIVATIONS, make_activation
from skipway.nn.normalization import EvoNorm2d, FilterResponseNorm2d, StandardizedConv2d, ThresholdedUnit


def test_standardized_filters_ignore_the_scale_and_the_mean_of_the_weights():
    conv = StandardizedConv2d(3, 4, 3, stride=2, padding=1, dilation=1, bias=False).double()
    x = torch.randn(2, 3, 9, 9, dtype=torch.double)
    flat = conv.weight.detach().flatten(1)
    weight = ((flat - flat.mean(1, keepdim=True)) / flat.std(1, correction=0, keepdim=True)).view_as(conv.weight)
    expected = F.conv2d(x, weight, stride=2, padding=1)
    assert torch.allclose(conv(x), expected, rtol=1e-5)
    with torch.no_grad():
        conv.weight.mul_(5).add_(2)
    assert torch.allclose(conv(x), expected, rtol=1e-5)


def test_a_filter_response_norm_makes_the_mean_square_of_a_channel_one():
    norm = FilterResponseNorm2d(3)
    x = 4 * torch.randn(2, 3, 8, 8) + 1
    assert torch.allclose(norm(x).square().mean((2, 3)), torch.ones(2, 3), atol=1e-4)
    nn.init.constant_(norm.weight, 2.0), nn.init.constant_(norm.bias, 1.0)
    assert torch.allclose(norm(x), 2 * x / x.square().mean((2, 3), keepdim=True).sqrt() + 1, atol=1e-4)


def test_a_threshold_of_zero_is_a_relu_and_another_one_is_learned():
    unit, x = ThresholdedUnit(2), torch.randn(3, 2, 4, 4)
    assert torch.equal(unit(x), x.relu())
    nn.init.constant_(unit.tau, 0.5)
    assert torch.equal(unit(x), x.clamp(min=0.5))
    unit(x).sum().backward()
    assert unit.tau.grad.tolist() == (x < 0.5).sum((0, 2, 3)).tolist()


@pytest.mark.parametrize("channels, groups", [(64, 32), (12, 4), (3, 1)])
def test_evonorm_divides_by_the_deviation_of_its_group(channels, groups):
    norm, x = EvoNorm2d(channels).double(), torch.randn(2, channels, 5, 5, dtype=torch.double)
    nn.init.normal_(norm.v), nn.init.normal_(norm.weight)
    groups_of = x.reshape(2, groups, -1)
    deviation = (groups_of.var(2, correction=0) + 1e-5).sqrt().repeat_interleave(channels // groups, 1)
    gate = torch.sigmoid(x * norm.v[:, None, None])
    expected = x * gate / deviation[:, :, None, None] * norm.weight[:, None, None]
    assert torch.allclose(norm(x), expected, rtol=1e-10)


@pytest.mark.parametrize("norm", [EvoNorm2d(8), FilterResponseNorm2d(8)])
def test_statistics_of_half_precision_do_not_overflow(norm):
    x = torch.full((1, 8, 4, 4), 300.0).half()
    x[..., ::2] = -300.0
    y = norm.half()(x)
    assert y.dtype == torch.float16 and y.isfinite().all() and y.abs().max() > 0.9


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_of_a_name_is_that_of_torch(name):
    x = torch.linspace(-3, 3, 13)
    function = (lambda x: x) if name == "identity" else getattr(F, name, None) or getattr(torch, name)
    assert torch.equal(make_activation(name, inplace=False)(x.clone()), function(x))
    assert make_activation(name).__class__ is ACTIVATIONS[name]


def test_an_activation_works_in_place_only_where_that_saves_memory():
    x = torch.ones(2)
    assert [name for name in ACTIVATIONS if make_activation(name)(x.clone().mul_(1))._version > 1] == [
        *("relu", "relu6", "leaky_relu")
    ]
    assert not any(getattr(make_activation(name, inplace=False), "inplace", False) for name in ACTIVATIONS)


def test_an_unknown_activation_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown activation 'silo' \(did you mean silu\?\): expected one of relu"):
        make_activation("silo")
