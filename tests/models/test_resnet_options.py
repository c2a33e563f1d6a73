"""Options of ResNetPlan with the words of timm: what they build, compared with layers of torch."""

import pytest
import torch
from torch import nn

from skipway.errors import InputError
from skipway.grow.deepening import widen
from skipway.models import registry
from skipway.models.network import build_network
from skipway.models.resnet import ResNetPlan, resnet
from skipway.nn.anti_aliasing import BlurPool2d
from skipway.nn.skip import named_skips

SMALL = {"layers": (1, 1, 1, 2), "widths": (8, 16, 24, 32), "num_classes": 3}


def small(**options):
    return resnet(ResNetPlan(**{**SMALL, **options}))


def convolutions(stage, kernel=3):
    return [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (kernel, kernel)]


def map_of(network, x):
    for name, layer in network.named_children():
        x = layer(x)
        if name == "stage4":
            return x
    raise AssertionError


# Dilation in place of strides


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("block", ["basic", "bottleneck", "bottleneck_v1", "preact_basic", "preact_bottleneck"])
@pytest.mark.parametrize("shortcut", ["auto", "pool", "pad", "none"])
@pytest.mark.parametrize("aa_layer", ["none", "blurpool"])
def test_the_output_stride_limits_how_much_the_map_shrinks(output_stride, block, shortcut, aa_layer):
    options = {"block": block, "shortcut": shortcut, "aa_layer": aa_layer}
    network = small(output_stride=output_stride, **options).eval()
    assert map_of(network, torch.randn(1, 3, 64, 96)).shape[2:] == (64 // output_stride, 96 // output_stride)
    network.load_state_dict(small(**options).state_dict())


def test_dilations_double_where_a_stride_is_dropped_and_the_first_convolution_keeps_the_last_one():
    network = small(output_stride=8)
    dilations = [[m.dilation[0] for m in convolutions(network.get_submodule(f"stage{i}"))] for i in (1, 2, 3, 4)]
    assert dilations == [[1, 1], [1, 1], [1, 2], [2, 4, 4, 4]]
    assert [m.padding for m in convolutions(network.stage4)] == [(2, 2), (4, 4), (4, 4), (4, 4)]


def test_a_dilated_network_computes_at_every_position_what_the_strided_one_computes_at_some():
    torch.manual_seed(0)
    strided, dilated = small(zero_init_last=False), small(zero_init_last=False, output_stride=8)
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.allclose(map_of(dilated.eval(), x)[..., ::4, ::4], map_of(strided.eval(), x), atol=1e-5)


def test_the_small_stem_counts_from_the_size_of_the_image():
    network = small(stem="small", output_stride=8)
    assert map_of(network.eval(), torch.randn(1, 3, 32, 32)).shape[2:] == (4, 4)
    assert all(m.dilation == (1, 1) for m in network.modules() if isinstance(m, nn.Conv2d))


# Activations, norms and anti-aliasing


@pytest.mark.parametrize("block", ["basic", "preact_bottleneck"])
@pytest.mark.parametrize("activation, kind", [("silu", nn.SiLU), ("gelu", nn.GELU), ("leaky_relu", nn.LeakyReLU)])
def test_the_activation_replaces_every_relu(block, activation, kind):
    network, like = small(block=block, stem="deep", activation=activation), small(block=block, stem="deep")
    count = sum(isinstance(m, nn.ReLU) for m in like.modules())
    assert sum(isinstance(m, kind) for m in network.modules()) == count > 5
    assert not any(isinstance(m, nn.ReLU) for m in network.modules())
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_anti_aliasing_takes_over_every_stride_of_three_by_three_convolutions_and_of_the_pool():
    network = small(aa_layer="blurpool", block="bottleneck")
    assert [path for path, m in network.named_modules() if isinstance(m, BlurPool2d)] == [
        *("stem.pool.aa", "stage2.0.body.aa", "stage3.0.body.aa", "stage4.0.body.aa")
    ]
    assert all(m.stride == (1, 1) for name in ("stage2", "stage3") for m in convolutions(network.get_submodule(name)))
    assert network.stage2[0].shortcut.conv.stride == (2, 2) and network.stem.pool.max.stride == 1
    assert list(dict(network.stage2[0].body.named_children()))[5:8] == ["act2", "aa", "conv3"]
    average = small(aa_layer="avg")
    assert isinstance(average.stem.pool, nn.AvgPool2d) and average.stage2[0].body.aa.kernel_size == 2


@pytest.mark.parametrize("norm", ["frn", "evonorm"])
def test_norms_with_an_activation_replace_both(norm):
    network = small(block="preact_bottleneck", norm=norm, stem="deep")
    assert not any(isinstance(m, nn.ReLU | nn.BatchNorm2d) for m in network.modules())
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    network(x).sum().backward()
    assert x.grad.isfinite().all() and all(p.grad is not None for p in network.parameters())


def test_weight_standardization_reaches_every_convolution():
    network = small(block="preact_bottleneck", norm="group", weight_standardization=True).eval()
    x = torch.randn(1, 3, 64, 64)
    before = network(x)
    with torch.no_grad():
        for m in network.modules():
            if isinstance(m, nn.Conv2d):
                m.weight.mul_(3)
    assert torch.allclose(network(x), before, atol=1e-4)


# Beginnings


@pytest.mark.parametrize("block", ["basic", "preact_basic", "preact_bottleneck"])
@pytest.mark.parametrize("zero", [True, False])
def test_zero_init_last_decides_whether_blocks_begin_as_their_shortcuts(block, zero):
    network = small(block=block, zero_init_last=zero).eval()
    for _, skip in named_skips(network):
        channels = next(m.in_channels for m in skip.body if isinstance(m, nn.Conv2d))
        assert (not skip.body(torch.randn(2, channels, 8, 8)).any()) == zero


def test_the_default_of_zero_init_last_is_the_former_beginning():
    states = []
    for options in ({}, {"zero_init_last": True}, {"zero_init_last": False}):
        torch.manual_seed(0)
        states.append(small(**options).state_dict())
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert not all(torch.equal(v, states[2][k]) for k, v in states[0].items())


# Blocks and widths of single stages


def test_stages_may_have_different_blocks():
    network = small(block=["basic", "bottleneck", "basic", "bottleneck"])
    bodies = [network.get_submodule(f"stage{i}")[0].body for i in (1, 2, 3, 4)]
    counts = [sum(isinstance(layer, nn.Conv2d) for layer in body) for body in bodies]
    assert counts == [2, 3, 2, 3] and network.head.in_features == 128
    assert ResNetPlan(block=["basic"] * 4) == ResNetPlan()


def test_pruned_networks_list_their_channels():
    network = small(block="bottleneck", inner_widths=range(1, 11), out_widths=(5, 6, 7, 9))
    blocks = [skip for _, skip in named_skips(network)]
    assert [[m.out_channels for m in block.body if isinstance(m, nn.Conv2d)] for block in blocks] == [
        [1, 2, 5],
        [3, 4, 6],
        [5, 6, 7],
        [7, 8, 9],
        [9, 10, 9],
    ]
    assert network.head.in_features == 9


def test_narrower_first_convolutions_and_wider_projections_are_those_of_senet154():
    network, _ = registry.build("senet154", layers=[1, 1, 1, 1])
    body, shortcut = network.stage2[0].body, network.stage2[0].shortcut
    assert [m.out_channels for m in body if isinstance(m, nn.Conv2d)] == [256, 512, 512]
    assert (shortcut.conv.kernel_size, shortcut.conv.stride, shortcut.conv.padding) == ((3, 3), (2, 2), (1, 1))
    assert network.stage1[0].shortcut.conv.kernel_size == (1, 1)


def test_blurred_and_dilated_networks_can_be_widened():
    plan = registry.plan_of("resnetblur50d", **{**SMALL, "layers": [1] * 4}, output_stride=16)
    network, x = build_network(plan).eval(), torch.randn(1, 3, 64, 64)
    wider = widen(network, 2)
    assert wider.plan["widths"] == [16, 32, 48, 64] and torch.allclose(wider(x), network(x), atol=1e-4)


# Refusals


@pytest.mark.parametrize(
    "options, text",
    [
        ({"output_stride": 4}, "resnet: expected output_stride 8, 16 or 32, got 4. Change output_stride"),
        ({"activation": "silo"}, r"resnet: unknown activation 'silo' \(did you mean silu\?\): expected one of relu"),
        ({"aa_layer": "gauss"}, "resnet: unknown aa_layer 'gauss': expected one of none, blurpool, avg"),
        ({"down_kernel_size": 2}, "resnet: expected an odd down_kernel_size, got 2. Use 1 or 3"),
        ({"weight_standardization": 1}, "resnet: expected True or False for weight_standardization, got 1"),
        (
            {"weight_standardization": True, "padding": "same"},
            'weight_standardization: expected padding "torch"',
        ),
        ({"norm": "frn"}, 'resnet with norm "frn": expected block "preact_basic" or "preact_bottleneck", got "basic"'),
        (
            {"norm": "evonorm", "block": "preact_basic", "activation": "silu"},
            'resnet with norm "evonorm": expected no activation, because the norm has its own, got "silu"',
        ),
        ({"zero_init_last": True, "join": "scale"}, 'zero_init_last=True: expected join "add", got "scale"'),
        ({"zero_init_last": False, "norm": "fixup"}, 'norm "fixup": expected zero_init_last None or True'),
        ({"block": ["basic", "preact_basic"] * 2}, "expected blocks that are all pre-activation or none, got"),
        ({"block": ["basic", "bottleneck"]}, "resnet: expected one block for each of 4 stages, got 2. Change block"),
        ({"block": ["basic", "basik"]}, r"resnet: unknown block 'basik' \(did you mean basic"),
        ({"out_widths": [4]}, "resnet: expected one of out_widths for each of 4 stages, got 1. Change out_widths"),
        ({"inner_widths": [4], "out_widths": [4] * 4}, "resnet with inner_widths: expected 5 values for 5 blocks"),
        (
            {"block": "preact_basic", "reversible": True, "out_widths": [4] * 4},
            "zero_init_last or out_widths",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(options, text):
    with pytest.raises(InputError, match=text) as refused:
        small(**options)
    assert len(str(refused.value).splitlines()) == 1
