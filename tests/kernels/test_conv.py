import copy

import pytest
import torch
from torch import nn

from skipway.kernels.conv import CONV
from skipway.kernels.layer_dispatch import kernel_status

needs_compiler = pytest.mark.skipif(kernel_status() != "on", reason=f"kernels are {kernel_status()}")


def random_image(shape, dtype=torch.float32):
    torch.manual_seed(1)
    return (3 + 2 * torch.randn(shape)).to(dtype).contiguous(memory_format=torch.channels_last)


def convolution(kernel, stride, channels=(512, 8), bias=False):
    torch.manual_seed(6)
    return nn.Conv2d(*channels, kernel, stride, kernel // 2, bias=bias).to(memory_format=torch.channels_last)


def learnt(way, layer, x, dtype):
    layer, x = copy.deepcopy(layer), x.detach().clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is None):
        y = way(layer, x)
    torch.manual_seed(3)
    y.backward(torch.randn(y.shape).to(y.dtype))
    assert layer.weight.grad.dtype == layer.weight.dtype
    return y.detach().double(), x.grad.double(), layer.weight.grad.double()


@needs_compiler
@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
@pytest.mark.parametrize("kernel, stride, size", [(1, 1, 5), (3, 2, 7), (3, 2, 8), (3, 1, 4), (5, 1, 3)])
def test_a_convolution_learns_what_it_would_learn(kernel, stride, size, precision):
    layer, x = convolution(kernel, stride), random_image((3, 512, size, size))
    exact = learnt(CONV.plain, copy.deepcopy(layer).double(), x.double(), torch.float64)
    if precision == "bfloat16":
        layer, x = layer.bfloat16(), x.bfloat16()
    dtype = None if precision == "autocast" else torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is None):
        assert CONV.fits(layer, x)
    fast, plain = (learnt(way, layer, x, dtype) for way in (CONV.fast, CONV.plain))
    for found, of_torch, expected in zip(fast, plain, exact, strict=True):
        far, allowed = (found - expected).norm(), (of_torch - expected).norm()
        assert found.shape == expected.shape and far <= 1.2 * allowed + 1e-6


@needs_compiler
def test_a_convolution_can_be_differentiated_twice():
    def twice(way):
        layer, x = convolution(3, 2).bfloat16(), random_image((1, 512, 4, 4), torch.bfloat16).requires_grad_()
        (gradient,) = torch.autograd.grad(way(layer, x).square().sum(), x, create_graph=True)
        gradient.float().square().sum().backward()
        return x.grad.float(), layer.weight.grad.float()

    for found, expected in zip(twice(CONV.fast), twice(CONV.plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


@needs_compiler
def test_the_first_convolution_of_frozen_input_learns():
    layer, x = convolution(3, 2).bfloat16(), random_image((2, 512, 4, 4), torch.bfloat16)
    CONV.fast(layer, x).float().sum().backward()
    assert layer.weight.grad.isfinite().all() and x.grad is None


def large():
    yield "float32", convolution(3, 2), random_image((2, 512, 4, 4))
    yield "bias", convolution(3, 2, bias=True).bfloat16(), random_image((2, 512, 4, 4), torch.bfloat16)
    yield "large image", convolution(3, 2).bfloat16(), random_image((1, 512, 32, 32), torch.bfloat16)
    yield "few channels", convolution(3, 1, (8, 8)).bfloat16(), random_image((2, 8, 4, 4), torch.bfloat16)
    yield "layout", convolution(3, 2).bfloat16(), random_image((2, 512, 4, 4), torch.bfloat16).contiguous()
    yield "frozen", convolution(3, 2).bfloat16().requires_grad_(False), random_image((2, 512, 4, 4), torch.bfloat16)


@pytest.mark.parametrize("layer, x", [pytest.param(*row[1:], id=row[0]) for row in large()])
def test_other_convolutions_take_the_plain_way(layer, x):
    assert not CONV.fits(layer, x)
