import pytest
import torch
from torch import nn

from skipway.blocks import BODIES, EXPANSION, conv_norm_act, initialise, zero_last_norm
from skipway.skip import Chain, Skip


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 7, 8])
def test_a_body_has_the_size_its_stride_gives_and_leaves_its_input_alone(kind, stride, size):
    body = BODIES[kind](3, 4, stride)
    x = torch.randn(2, 3, size, size)
    before = x.clone()
    assert body(x).shape == (2, 4 * EXPANSION[kind], -(-size // stride), -(-size // stride))
    assert torch.equal(x, before) and x._version == 0


def test_conv_norm_act_leaves_its_input_alone_and_gives_nothing_negative():
    x = torch.randn(2, 3, 5, 5)
    assert conv_norm_act(3, 4)(x).min() >= 0 and x._version == 0


def test_the_bottleneck_strides_on_its_3x3_alone():
    body = BODIES["bottleneck"](8, 4, 2)
    strides = {name: m.stride for name, m in body.named_children() if isinstance(m, nn.Conv2d)}
    assert strides == {"conv1": (1, 1), "conv2": (2, 2), "conv3": (1, 1)} and body.conv2.kernel_size == (3, 3)


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_ends_with_its_norm_and_no_convolution_has_a_bias(kind):
    body = BODIES[kind](8, 4)
    assert isinstance(body[-1], nn.BatchNorm2d)
    assert all(m.bias is None for m in body if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("kind", BODIES)
def test_a_zeroed_body_makes_its_skip_start_as_its_shortcut(kind):
    body = BODIES[kind](4 * EXPANSION[kind], 4)
    zero_last_norm(body)
    x = torch.randn(2, 4 * EXPANSION[kind], 5, 5)
    assert torch.equal(Skip(body)(x), x)
    Skip(body)(x).square().sum().backward()
    assert body[-1].weight.grad.abs().sum() > 0


def test_a_body_that_ends_with_an_activation_is_never_zeroed_since_it_would_be_dead_for_ever():
    with pytest.raises(ValueError, match="zero_last_norm needs a body that ends with its norm, not with ReLU"):
        zero_last_norm(Chain(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU()))


def test_weights_begin_with_he_s_spread_over_the_fan_out():
    network = Chain(nn.Conv2d(16, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 256, 1, bias=True))
    network[1].weight.data.fill_(7)
    initialise(network)
    assert network[0].weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert network[2].weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    assert not network[2].bias.any() and not network[0].bias.any()
    assert network[1].weight.eq(1).all() and not network[1].bias.any()


def test_an_identity_block_changes_nothing_behind_an_activation_and_without_one_never():
    body = BODIES["basic"](3, 3)
    zero_last_norm(body)
    x = torch.randn(2, 3, 4, 4)
    behind = Skip(body, after=nn.ReLU())
    assert torch.equal(behind(x.relu()), x.relu()) and not torch.equal(behind(x), x)
    assert torch.equal(Skip(body)(x), x)
