import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skipway.nn.anti_aliasing import AA_LAYERS, BlurPool2d, TrailingAvgPool2d, make_aa_layer


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(2, 2), (7, 8), (9, 4)])
def test_blur_pool_is_the_convolution_with_a_binomial_filter(stride, size):
    x = torch.randn(2, 3, *size, dtype=torch.double)
    row = torch.tensor([1.0, 2.0, 1.0], dtype=torch.double) / 4
    kernel = (row[:, None] * row[None]).expand(3, 1, 3, 3)
    expected = F.conv2d(F.pad(x, [1] * 4, mode="reflect"), kernel, stride=stride, groups=3)
    assert torch.allclose(BlurPool2d(stride)(x), expected, rtol=1e-12, atol=1e-14)


def test_a_blur_keeps_a_constant_and_the_dtype():
    x = torch.full((1, 2, 6, 6), 3.0, dtype=torch.bfloat16)
    y = BlurPool2d()(x)
    assert y.dtype == torch.bfloat16 and torch.equal(y, x[..., :3, :3]) and not BlurPool2d().state_dict()


def test_a_shifted_image_changes_a_blurred_map_less_than_a_strided_one():
    x = torch.randn(8, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    moved = x.roll(1, 3)
    blurred, strided = (layer(moved) - layer(x) for layer in (BlurPool2d(2), nn.MaxPool2d(1, 2)))
    assert blurred[..., 2:-2].std() < 0.7 * strided[..., 2:-2].std()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_trailing_average_keeps_the_size_and_counts_the_zeros_at_the_end(size):
    x = torch.randn(2, 3, size, size)
    padded = torch.zeros(2, 3, size + 1, size + 1)
    padded[..., :size, :size] = x
    expected = (padded[..., :-1, :-1] + padded[..., 1:, :-1] + padded[..., :-1, 1:] + padded[..., 1:, 1:]) / 4
    assert torch.allclose(TrailingAvgPool2d()(x), expected, atol=1e-6)


def test_an_average_at_stride_one_is_no_layer():
    assert [make_aa_layer(kind, 1) is None for kind in AA_LAYERS] == [True, False, True]
    assert [make_aa_layer(kind, 2) is None for kind in AA_LAYERS] == [True, False, False]
    assert make_aa_layer("avg", 2)(torch.ones(1, 1, 5, 5)).shape == (1, 1, 3, 3)
