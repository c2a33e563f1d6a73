import numpy as np
import pytest
import torch
from torch import nn

from skipway.errors import InputError
from skipway.nn.blocks import (
    EXPANSION,
    KINDS,
    EfficientChannelAttention,
    Layers,
    SameConv2d,
    SameMaxPool2d,
    Shift,
    SqueezeExcite,
    Step,
    init_fixup,
    init_weights,
    steps_of,
    zero_last,
)
from skipway.nn.chain import Chain
from skipway.nn.joins import Scale
from skipway.nn.skip import Skip, named_skips


def body_of(kind, in_channels=8, width=4, stride=1, **common):
    return Layers(**common).body(in_channels, steps_of(kind, width, stride), kind.startswith("preact"))


# Bodies


@pytest.mark.parametrize("norm", KINDS)
@pytest.mark.parametrize("attention", ["none", "se", "eca"])
@pytest.mark.parametrize("kind", EXPANSION)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 7, 8])
def test_a_body_has_the_size_its_stride_gives_and_leaves_its_input_alone(kind, stride, size, norm, attention):
    body = body_of(kind, 3, 4, stride, norm=norm, attention=attention, dropout=0.1)
    x = torch.randn(2, 3, size, size)
    before = x.clone()
    assert body(x).shape == (2, 4 * EXPANSION[kind], -(-size // stride), -(-size // stride))
    assert torch.equal(x, before) and x._version == 0
    Skip(body, "auto")  # would refuse a first layer that works in place


@pytest.mark.parametrize("kind, place", [("bottleneck", 1), ("bottleneck_v1", 0), ("preact_bottleneck", 1)])
def test_the_bottleneck_strides_where_its_version_says(kind, place):
    steps = steps_of(kind, 4, 2)
    assert [s.stride for s in steps] == [2 if i == place else 1 for i in range(3)]
    assert [s.kernel for s in steps] == [1, 3, 1] and [s.channels for s in steps] == [4, 4, 16]


def test_groups_and_base_width_set_the_inner_channels():
    assert [s.channels for s in steps_of("bottleneck", 64, cardinality=32, base_width=4)] == [128, 128, 256]
    assert [s.groups for s in steps_of("bottleneck", 64, cardinality=32, base_width=4)] == [1, 32, 1]
    assert [s.channels for s in steps_of("bottleneck", 64, base_width=128)] == [128, 128, 256]
    with pytest.raises(InputError, match=r"block 'basic': expected cardinality 1 and base_width 64, got 2"):
        steps_of("basic", 64, cardinality=2)


@pytest.mark.parametrize("kind", EXPANSION)
def test_the_order_of_a_body_is_that_of_its_paper(kind):
    names = [name for name, _ in body_of(kind).named_children()]
    count = 3 if "bottleneck" in kind else 2
    if kind.startswith("preact"):
        assert names == [f"{part}{i}" for i in range(1, count + 1) for part in ("norm", "act", "conv")]
    else:
        assert names == [f"{part}{i}" for i in range(1, count + 1) for part in ("conv", "norm", "act")][:-1]
    assert all(m.bias is None for m in body_of(kind) if isinstance(m, nn.Conv2d))


def test_dropout_stands_between_the_convolutions():
    assert [n for n, _ in body_of("preact_basic", dropout=0.3).named_children()].index("dropout") == 5
    assert [n for n, _ in body_of("basic", dropout=0.3).named_children()][3:5] == ["dropout", "conv2"]


def test_without_a_norm_convolutions_have_biases_and_fixup_has_single_numbers():
    assert all(m.bias is not None for m in body_of("basic", norm="none") if isinstance(m, nn.Conv2d))
    shifts = [m for m in body_of("basic", norm="fixup") if isinstance(m, Shift)]
    assert len(shifts) == 4 and all(s.bias.shape == () for s in shifts)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("attention", ["none", "se", "eca"])
@pytest.mark.parametrize("kind", EXPANSION)
def test_a_zeroed_body_makes_its_skip_start_as_its_shortcut_with_a_gradient(kind, norm, attention):
    channels = 4 * EXPANSION[kind]
    body = body_of(kind, channels, norm=norm, attention=attention)
    zero_last(body)
    x = torch.randn(2, channels, 5, 5)
    assert torch.equal(Skip(body)(x), x)
    Skip(body)(x).square().sum().backward()
    assert sum(p.grad.abs().sum() > 0 for p in body.parameters()) >= 1


def test_a_body_that_ends_with_an_activation_is_never_zeroed_since_it_would_be_dead_for_ever():
    with pytest.raises(ValueError, match="zero_last: expected a body that ends with a norm or with weights, got ReLU"):
        zero_last(Chain(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU()))


def test_an_identity_block_changes_nothing_behind_an_activation_and_without_one_never():
    body = body_of("basic", 3, 3)
    zero_last(body)
    x = torch.randn(2, 3, 4, 4)
    behind = Skip(body, after=nn.ReLU())
    assert torch.equal(behind(x.relu()), x.relu()) and not torch.equal(behind(x), x)
    assert torch.equal(Skip(body)(x), x)


# Layers


def same_reference(x, weight, stride):
    """SAME convolution by its definition, in numpy: the windows begin at -floor(missing / 2)."""
    (_, _, height, width), (_, _, k, _) = x.shape, weight.shape
    rows, columns = -(-height // stride), -(-width // stride)
    top, left = (max((n - 1) * stride + k - s, 0) // 2 for n, s in ((rows, height), (columns, width)))
    padded = np.zeros((*x.shape[:2], height + 2 * k, width + 2 * k))
    padded[:, :, k : k + height, k : k + width] = x
    out = np.zeros((x.shape[0], weight.shape[0], rows, columns))
    for i in range(rows):
        for j in range(columns):
            a, b = i * stride - top + k, j * stride - left + k
            out[:, :, i, j] = np.einsum("bchw,ochw->bo", padded[:, :, a : a + k, b : b + k], weight)
    return out


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("shape", [(8, 8), (7, 8), (1, 5), (6, 9)])
def test_same_padding_is_its_definition(shape, kernel, stride):
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    conv = SameConv2d(3, 4, kernel, stride, bias=False).double()
    assert np.allclose(conv(x).detach().numpy(), same_reference(x.numpy(), conv.weight.detach().numpy(), stride))


def test_same_windows_lie_one_later_than_torch_s_at_stride_2_of_an_even_size():
    x = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 8, 8)
    assert SameMaxPool2d(3, 2)(x)[0, 0, 0].tolist() == [2, 4, 6, 7]
    assert Layers().max_pool()(x)[0, 0, 0].tolist() == [1, 3, 5, 7]
    assert isinstance(Layers(padding="same").max_pool(), SameMaxPool2d)
    assert SameMaxPool2d(3, 2)(-torch.ones(1, 1, 4, 4)).eq(-1).all()
    assert isinstance(Layers(padding="same").conv(3, Step(4, 3, 2)), SameConv2d)
    assert not isinstance(Layers(padding="same").conv(3, Step(4, 3)), SameConv2d)


def test_squeeze_and_excitation_is_its_formula():
    layer = SqueezeExcite(6, 8).double()
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    w1, w2 = (m.weight.detach().numpy()[:, :, 0, 0] for m in (layer.squeeze, layer.excite))
    hidden = np.maximum(x.numpy().mean((2, 3)) @ w1.T + layer.squeeze.bias.detach().numpy(), 0)
    gate = 1 / (1 + np.exp(-(hidden @ w2.T + layer.excite.bias.detach().numpy())))
    assert np.allclose(layer(x).detach().numpy(), x.numpy() * gate[:, :, None, None])


def test_channel_attention_is_its_formula():
    layer = EfficientChannelAttention(64).double()
    x = torch.randn(2, 64, 3, 4, dtype=torch.float64)
    kernel = layer.conv.weight.detach().numpy()[0, 0]
    means = np.pad(x.numpy().mean((2, 3)), ((0, 0), (1, 1)))
    mixed = sum(kernel[k] * means[:, k : k + 64] for k in range(3))
    assert np.allclose(layer(x).detach().numpy(), x.numpy() / (1 + np.exp(-mixed))[:, :, None, None])


@pytest.mark.parametrize("channels, size", [(8, 3), (64, 3), (256, 5), (512, 5), (1024, 5), (2048, 7)])
def test_channel_attention_reaches_further_with_more_channels(channels, size):
    assert EfficientChannelAttention(channels).conv.kernel_size == (size,)


@pytest.mark.parametrize("channels, width", [(64, 8), (256, 16), (2048, 128)])
def test_the_inner_width_of_se_is_a_multiple_of_eight(channels, width):
    assert Layers(attention="se").attention_of(channels)["attention"].squeeze.out_channels == width


# Beginnings


def test_weights_begin_with_he_s_spread_over_the_fan_out():
    network = Chain(nn.Conv2d(16, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 256, 1, bias=True))
    network[1].weight.data.fill_(7)
    init_weights(network)
    assert network[0].weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert network[2].weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    assert not network[2].bias.any() and not network[0].bias.any()
    assert network[1].weight.eq(1).all() and not network[1].bias.any()


@pytest.mark.parametrize("kind, power", [("basic", -1 / 2), ("bottleneck", -1 / 4)])
def test_fixup_scales_the_weights_of_l_bodies_down_and_zeroes_their_last(kind, power):
    channels = 16 * EXPANSION[kind]
    skips = (Skip(body_of(kind, channels, 16, norm="fixup"), join=Scale(init=1.0)) for _ in range(9))
    network = Chain(*skips, head=nn.Linear(4, 3))
    init_weights(network)
    before = [m.weight.clone() for m in network.modules() if isinstance(m, nn.Conv2d)]
    init_fixup(network)
    after = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    per_body = len(after) // 9
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        last = i % per_body == per_body - 1
        assert torch.equal(new, torch.zeros_like(new)) if last else torch.allclose(new, old * 9**power)
    x = torch.randn(2, channels, 4, 4)
    assert torch.equal(network[:9](x), x) and len(list(named_skips(network))) == 9 and not network.head.weight.any()
