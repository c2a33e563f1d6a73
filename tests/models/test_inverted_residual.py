import pytest
import torch
from torch import nn

from skipway.errors import InputError
from skipway.models import registry
from skipway.models.inverted_residual import InvertedResidualPlan, inverted_residual
from skipway.nn.blocks import SameConv2d, SqueezeExcite
from skipway.nn.chain import Chain
from skipway.nn.skip import Skip, named_skips

COUNTS = {  # timm 1.0.31
    "mobilenetv2_050": 1_968_680,
    "mobilenetv2_100": 3_504_872,
    "mobilenetv2_110d": 4_516_520,
    "mobilenetv2_120d": 5_831_144,
    "mobilenetv2_140": 6_108_776,
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "efficientnet_lite3": 8_197_096,
    "efficientnet_lite4": 13_006_568,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "tf_efficientnet_b5": 30_389_784,
    "tf_efficientnet_b6": 43_040_704,
    "tf_efficientnet_b7": 66_347_960,
}
TINY = {
    "layers": (2, 2),
    "widths": (8, 16),
    "kernels": (3, 5),
    "strides": (1, 2),
    "expansions": (1, 6),
    "stem_channels": 12,
    "final_channels": 24,
    "num_classes": 3,
}


def tiny(**options):
    torch.manual_seed(0)
    return inverted_residual(InvertedResidualPlan(**{**TINY, **options}))


@pytest.mark.parametrize("name, count", COUNTS.items())
def test_every_network_has_the_published_count(name, count):
    assert registry.count_parameters(registry.plan_of(name)) == count
    if name.startswith("efficientnet"):
        plans = [registry.plan_of(n) for n in (name, f"tf_{name}")]
        changed = {key: value for key, value in plans[1].items() if value != plans[0][key]}
        assert changed == {"name": f"tf_{name}", "padding": "same", "norm_eps": 1e-3}
        assert registry.count_parameters(plans[1]) == count


def test_a_block_is_a_skip_if_it_keeps_the_shape_and_a_chain_if_not():
    network = tiny()
    kinds = [type(block) for stage in (network.stage1, network.stage2) for block in stage]
    assert kinds == [Chain, Skip, Chain, Skip]  # 12 to 8 channels; kept; 8 to 16 at a stride; kept
    assert all(skip.shortcut is None and skip.after is None for _, skip in named_skips(network))
    x = torch.randn(2, 8, 6, 6)
    block = network.stage1[1].eval()
    nn.init.uniform_(block.body.project_norm.weight)
    assert torch.equal(block(x), block.body(x) + x)


def test_the_bottleneck_is_linear_and_the_depthwise_filter_has_one_channel():
    body = tiny(attention="se").stage2[1].body
    assert [name for name, _ in body.named_children()] == [
        *("expand", "expand_norm", "expand_act", "depthwise", "depthwise_norm", "depthwise_act"),
        *("attention", "project", "project_norm"),
    ]
    assert tuple(body.depthwise.weight.shape) == (96, 1, 5, 5) and body.depthwise.groups == 96
    assert not hasattr(tiny().stage1[1].body, "expand")  # an expansion of 1 has no first convolution


@pytest.mark.parametrize("ratio, width", [(0.25, 4), (0.5, 8), (0.01, 1)])
def test_squeeze_and_excitation_counts_from_the_channels_of_the_block_s_input(ratio, width):
    attention = tiny(attention="se", attention_ratio=ratio).stage2[1].body.attention
    assert attention.squeeze.out_channels == width and attention.excite.out_channels == 96


@pytest.mark.parametrize("activation, function", [("silu", torch.nn.functional.silu), ("relu", torch.relu)])
def test_squeeze_and_excitation_takes_the_network_s_activation(activation, function):
    layer = SqueezeExcite(6, 2, activation)
    x = torch.randn(2, 6, 4, 4)
    weights = layer.excite(function(layer.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
    assert torch.equal(layer(x), x * weights)


def test_a_new_network_computes_its_shortcuts_and_its_filters_keep_their_variance():
    network = tiny(expansions=(6, 6), widths=(64, 64))
    x = torch.randn(2, 64, 6, 6)
    assert torch.equal(network.stage2[1].eval()(x), x)
    assert network.stage2[1].body.depthwise.weight.std().item() == pytest.approx((2 / 25) ** 0.5, rel=0.05)


@pytest.mark.parametrize("stem, side", [("large", 16), ("small", 32)])
def test_a_small_stem_keeps_the_size(stem, side):
    assert tiny(stem=stem).stem(torch.randn(1, 3, 32, 32)).shape[-1] == side


def test_same_padding_is_where_a_stride_is_and_follows_the_input_s_size():
    network = tiny(padding="same")
    same = [name for name, module in network.named_modules() if isinstance(module, SameConv2d)]
    assert same == ["stem.conv", "stage2.0.body.depthwise"]
    depthwise = network.stage2[0].body.depthwise
    for size, before in ((8, 1), (9, 2)):  # two zeros at the end of an even size, as many on both sides of an odd one
        x = torch.zeros(1, 48, size, size)
        x[..., 0, 0] = 1.0
        assert torch.equal(depthwise(x)[0, :, 0, 0], depthwise.weight[:, 0, before, before])


def test_the_epsilon_of_every_norm_is_the_plan_s():
    norms = [m for m in tiny(norm_eps=1e-3).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3} and len(norms) == 12


def test_drop_path_rises_over_the_depth():
    network = tiny(layers=(3, 2), drop_path=0.2, drop_mode="batch")
    assert [round(skip.drop_path, 6) for _, skip in named_skips(network)] == [0.05, 0.1, 0.2]
    assert {skip.drop_mode for _, skip in named_skips(network)} == {"batch"}


@pytest.mark.parametrize(
    "options, text",
    [
        ({"kernels": (3,)}, "expected one value per stage in each list, got 2 layers, 2 widths, 1 kernels"),
        ({**{k: () for k in ("layers", "widths", "kernels", "strides", "expansions")}}, "got 0 layers"),
        ({"kernels": (3, 4)}, r"expected odd kernels and strides of 1 or 2, got \[3, 4\] and \[1, 2\]"),
        ({"strides": (1, 3)}, r"expected odd kernels and strides of 1 or 2, got \[3, 5\] and \[1, 3\]"),
        ({"layers": (900, 200)}, "inverted_residual: expected at most 1000 blocks, got 1100. Reduce layers."),
        ({"norm_eps": 0}, "expected norm_eps between 0 and 1, got 0. Use 1e-5 or 1e-3."),
        ({"activation": "swish"}, "inverted_residual: unknown activation 'swish'"),
        ({"expansions": (0, 6)}, "inverted_residual: expected integers of at least 1 for expansions"),
    ],
)
def test_what_cannot_be_built_is_refused(options, text):
    with pytest.raises(InputError, match=text):
        InvertedResidualPlan(**{**TINY, **options})
