import pytest
import torch
from torch import nn

from skipway.errors import InputError
from skipway.models import registry
from skipway.models.convnext import ConvNeXtPlan, convnext
from skipway.nn.blocks import LayerNorm2d
from skipway.nn.joins import Scale, add
from skipway.nn.skip import named_skips

COUNTS = {  # timm 1.0.31; torchvision 0.28 from tiny on
    "convnext_atto": 3_695_520,
    "convnext_femto": 5_217_784,
    "convnext_pico": 9_045_672,
    "convnext_nano": 15_593_560,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
}


def tiny(**options):
    torch.manual_seed(0)
    return convnext(ConvNeXtPlan(**{"layers": (2, 1), "widths": (8, 16), "num_classes": 3, **options}))


@pytest.mark.parametrize("name, count", COUNTS.items())
def test_every_network_has_the_published_count(name, count):
    assert registry.count_parameters(registry.plan_of(name)) == count


def test_a_block_is_a_skip_whose_join_scales_each_channel():
    network = tiny(layer_scale=0.5)
    block = network.stage1[0]
    x = torch.randn(2, 8, 6, 6)
    assert torch.allclose(block(x), 0.5 * block.body(x) + x, atol=1e-6)
    nn.init.zeros_(block.join.scale.data[3:])
    assert torch.equal(block(x)[:, 3:], x[:, 3:]) and not torch.equal(block(x)[:, :3], x[:, :3])
    assert len(list(named_skips(network))) == 3 and block.shortcut is None


def test_the_body_is_depthwise_then_pointwise():
    body = tiny(kernel=5, expansion=2).stage2[0].body
    assert [name for name, _ in body.named_children()] == ["depthwise", "norm", "expand", "act", "project"]
    assert tuple(body.depthwise.weight.shape) == (16, 1, 5, 5)
    assert [tuple(layer.weight.shape[:2]) for layer in (body.expand, body.project)] == [(32, 16), (16, 32)]


def test_a_layer_norm_takes_the_channels_of_each_position():
    norm = LayerNorm2d(5, 1e-6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    scale, shift = (p.view(1, 5, 1, 1) for p in (norm.weight, norm.bias))
    assert torch.allclose(norm(x), (x - mean) / (variance + 1e-6).sqrt() * scale + shift, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stem, side", [("large", 8), ("small", 32)])
def test_a_small_stem_keeps_the_size(stem, side):
    assert tiny(stem=stem).stem(torch.randn(1, 3, 32, 32)).shape[-1] == side


@pytest.mark.parametrize("join, kind", [("layerscale", Scale), ("scale", Scale), ("add", type(add))])
def test_a_new_network_is_nearly_its_shortcuts_whatever_joins(join, kind):
    skip = tiny(join=join).stage1[0]
    assert isinstance(skip.join, kind)
    x = torch.randn(2, 8, 6, 6)
    assert torch.allclose(skip(x), x, atol=1e-4)


def test_drop_path_rises_over_the_depth():
    rates = [skip.drop_path for _, skip in named_skips(tiny(drop_path=0.2, drop_mode="batch"))]
    assert rates == [0.0, 0.1, 0.2]


@pytest.mark.parametrize(
    "options, text",
    [
        ({"widths": (8,)}, r"convnext: expected one width for each stage, got \[8\] for layers \[2, 1\]. Make the"),
        ({"layers": (900, 200)}, "convnext: expected at most 1000 blocks, got 1100. Reduce layers."),
        ({"kernel": 4}, "convnext: expected an odd kernel, got 4. Use 5."),
        ({"layer_scale": 0}, "convnext: expected layer_scale above 0 and up to 1, got 0. Use 1e-6, or join"),
        ({"join": "gate"}, "convnext: unknown join 'gate'"),
    ],
)
def test_what_cannot_be_built_is_refused(options, text):
    with pytest.raises(InputError, match=text):
        tiny(**options)
