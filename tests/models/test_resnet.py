import re
import time

import pytest
import torch
from torch import nn

from skipway.errors import InputError, ShapeError
from skipway.models import registry, resnet
from skipway.models.resnet9 import whiten
from skipway.nn.shape_inference import output_shape
from skipway.nn.shortcut_types import Pad, Project
from skipway.nn.skip import named_skips

# Parameters with 10 classes: option A as He et al. had them, option B.
CIFAR = {
    "resnet20": (269_722, 272_474),
    "resnet32": (464_154, 466_906),
    "resnet44": (658_586, 661_338),
    "resnet56": (853_018, 855_770),
    "resnet110": (1_727_962, 1_730_714),
    "resnet1202": (19_421_274, 19_424_026),
}
CIFAR_PREACT = {
    "resnetv2_164": 1_703_258,
    "resnetv2_1001": 10_327_706,
    "wide_resnet16_8": 10_961_370,
    "wide_resnet22_8": 17_158_106,
    "wide_resnet28_10": 36_479_194,
    "wide_resnet28_12": 52_517_850,
    "wide_resnet40_1": 563_930,
    "wide_resnet40_2": 2_243_546,
    "wide_resnet40_4": 8_949_210,
}
# Parameters with 1000 classes, tensors of parameters, numbers in the norms' buffers.
IMAGENET = {
    "resnet18": (11_689_512, 62, 9_600),
    "resnet34": (21_797_672, 110, 17_024),
    "resnet50": (25_557_032, 161, 53_120),
    "resnet101": (44_549_160, 314, 105_344),
    "resnet152": (60_192_808, 467, 151_424),
    "resnet200": (64_673_832, 611, 176_000),
}
TEN_CLASSES = {
    "resnet18": 11_181_642,
    "resnet34": 21_289_802,
    "resnet50": 23_528_522,
    "xresnet18": 11_200_874,
    "xresnet50": 23_547_754,
}
# What torchvision and timm (and fastai for xresnet) have under these names, with 1000 classes.
LIBRARIES = {
    "resnet18d": 11_708_744,
    "resnet50c": 25_576_264,
    "resnet50d": 25_576_264,
    "resnet50s": 25_680_808,
    "resnet50t": 25_573_728,
    "resnet10t": 5_435_488,
    "resnet14t": 10_081_632,
    "resnet50_gn": 25_557_032,
    "xresnet18": 11_708_744,
    "xresnet34": 21_816_904,
    "xresnet50": 25_576_264,
    "xresnet101": 44_568_392,
    "xresnet152": 60_212_040,
    "xresnet18_deep": 14_535_496,
    "xresnet18_deeper": 10_995_528,
    "xresnet50_deeper": 31_382_344,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "seresnet18": 11_779_624,
    "seresnet50": 28_088_024,
    "seresnext26t_32x4d": 16_806_976,
    "ecaresnet50t": 25_573_814,
    "ecaresnetlight": 30_162_046,
    "ecaresnext50t_32x4d": 25_045_686,
    "resnetrs50": 35_691_912,
    "resnetrs420": 191_891_656,
    "resnetv2_18": 11_687_720,
    "resnetv2_50": 25_549_352,
    "resnetv2_50d": 25_568_584,
    "resnetv2_152": 60_185_128,
}
TINY = {"layers": [1, 2], "widths": [4, 6]}


def on_meta(name, **options):
    with torch.device("meta"):
        return registry.build(name, **options)[0]


def count(network):
    return sum(p.numel() for p in network.parameters())


def made(**options):
    plan = resnet.ResNetPlan(**options)
    return resnet.resnet(plan), plan.as_dict()


def tiny(**options):
    return made(**{**TINY, "num_classes": 3, **options})[0]


# Counts


@pytest.mark.parametrize("name", CIFAR)
def test_the_small_networks_have_the_published_counts(name):
    a, b = CIFAR[name]
    assert count(on_meta(name)) == a == count(on_meta(name, shortcut="none"))  # the plain network has as many
    assert count(on_meta(name, shortcut="auto")) == b and count(on_meta(name, num_classes=100)) == a + 5_850


@pytest.mark.parametrize("name", CIFAR_PREACT)
def test_the_small_networks_that_normalise_first_have_the_published_counts(name):
    assert count(on_meta(name)) == CIFAR_PREACT[name]


@pytest.mark.parametrize("name", IMAGENET)
def test_the_large_networks_have_the_published_counts(name):
    parameters, tensors, buffers = IMAGENET[name]
    network = on_meta(name)
    assert count(network) == parameters and len(list(network.parameters())) == tensors
    assert sum(b.numel() for n, b in network.named_buffers() if "running" in n) == buffers


@pytest.mark.parametrize("name", TEN_CLASSES)
def test_the_large_networks_have_the_published_counts_for_ten_classes(name):
    assert count(on_meta(name, num_classes=10)) == TEN_CLASSES[name]


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_name_means_what_it_means_elsewhere(name):
    assert count(on_meta(name)) == LIBRARIES[name]


def test_the_number_in_a_name_is_its_number_of_layers():
    for name in registry.names():
        if re.fullmatch(r"(resnet|resnetv2_)\d+(_v1|_gn)?", name) and name != "resnet9":
            network = on_meta(name, shortcut="none" if "v2" in name else "pad")
            layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            assert len(layers) == int(re.findall(r"\d+", name.replace("v2", "").replace("_v1", ""))[0]), name


@pytest.mark.parametrize(
    "name, places",
    [
        ("resnet18", ["0.body.conv1", "0.shortcut.conv"]),
        ("resnet50", ["0.body.conv2", "0.shortcut.conv"]),
        ("resnet50_v1", ["0.body.conv1", "0.shortcut.conv"]),
        ("resnet50d", ["0.body.conv2"]),
        ("resnetv2_50", ["0.skip.body.conv2", "0.skip.shortcut.conv"]),
        ("resnetv2_18d", ["0.skip.body.conv1"]),
        ("wide_resnet28_10", ["0.skip.body.conv1", "0.skip.shortcut.conv"]),
        ("resnet20", ["0.body.conv1"]),
    ],
)
def test_the_stride_stands_where_the_name_says(name, places):
    modules = on_meta(name).stage2.named_modules()
    assert [path for path, m in modules if isinstance(m, nn.Conv2d) and m.stride == (2, 2)] == places


@pytest.mark.parametrize(
    "name, convolutions",
    [
        ("resnet50", [(64, 7, 2)]),
        ("resnet50c", [(32, 3, 2), (32, 3, 1), (64, 3, 1)]),
        ("resnet50s", [(64, 3, 2), (64, 3, 1), (128, 3, 1)]),
        ("resnet50t", [(24, 3, 2), (32, 3, 1), (64, 3, 1)]),
        ("xresnet50", [(32, 3, 2), (32, 3, 1), (64, 3, 1)]),
        ("resnetrs50", [(32, 3, 2), (32, 3, 1), (64, 3, 1), (64, 3, 2)]),
        ("resnet20", [(16, 3, 1)]),
        ("wide_resnet28_10", [(16, 3, 1)]),
    ],
)
def test_the_stem_is_what_the_name_says(name, convolutions):
    found = [m for m in on_meta(name).stem.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.out_channels, m.kernel_size[0], m.stride[0]) for m in found] == convolutions


@pytest.mark.parametrize(
    "name, widths",
    [("seresnet50", [16, 32, 64, 128]), ("resnetrs50", [64, 128, 256, 512]), ("seresnet18", [8, 8, 16, 32])],
)
def test_squeeze_and_excitation_is_as_wide_as_the_name_says(name, widths):
    network = on_meta(name)
    assert [network.get_submodule(f"stage{i}.0.body.attention.squeeze").out_channels for i in range(1, 5)] == widths


def test_channel_attention_reaches_over_5_to_7_channels_in_ecaresnet50():
    sizes = [on_meta("ecaresnet50d").get_submodule(f"stage{i}.0.body.attention.conv").kernel_size for i in range(1, 5)]
    assert sizes == [(5,), (5,), (5,), (7,)]


def test_groups_keep_a_channel_each_in_narrow_networks():
    network = registry.build("resnext50_32x4d", layers=[1], widths=[4])[0]
    assert network.stage1[0].body.conv2.weight.shape == (32, 1, 3, 3)


@pytest.mark.slow
def test_the_deepest_network_is_built_in_seconds():
    begin = time.process_time()
    registry.build("resnet1202")
    assert time.process_time() - begin < 5


# What is computed


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50"])
@pytest.mark.parametrize("shortcut", ["auto", "pad", "pool", "project"])
def test_every_block_of_a_new_network_starts_as_its_shortcut(name, shortcut):
    network, _ = registry.build(name, widths=[4] * len(registry.plan_of(name)["widths"]), shortcut=shortcut)
    network.eval()
    for _, skip in named_skips(network):
        assert isinstance(skip.body[-1], nn.BatchNorm2d) and isinstance(skip.after, nn.ReLU)
        x = torch.randn(2, next(m.in_channels for m in skip.body if isinstance(m, nn.Conv2d)), 5, 5)
        kept = x if skip.shortcut is None else skip.shortcut(x)
        assert torch.equal(skip(x), kept.relu())


def test_shortcuts_stand_where_their_option_says():
    kinds = {
        k: [type(s.shortcut) for _, s in named_skips(tiny(shortcut=k))] for k in ("auto", "pad", "pool", "project")
    }
    none = type(None)
    assert kinds["auto"] == kinds["pool"] == [none, Project, none] and kinds["pad"] == [none, Pad, none]
    assert kinds["project"] == [Project, Project, Project]
    assert [s.shortcut.pool is not None for _, s in named_skips(tiny(shortcut="pool")) if s.shortcut] == [True]


def test_the_first_stage_of_bottlenecks_widens_without_a_stride():
    for shortcut in ("auto", "pad"):
        network = tiny(block="bottleneck", shortcut=shortcut)
        assert network.stage1[0].shortcut.stride == 1 and network.stage2[0].shortcut.stride == 2


@pytest.mark.parametrize("stem", resnet.STEMS)
@pytest.mark.parametrize("size", [1, 7, 8, 28, 32, 33, 224])
def test_images_of_any_size_pass_through_every_stem(stem, size):
    network = tiny(stem=stem).eval()
    x = torch.randn(1, 3, size, size)
    y = network(x)
    assert y.shape == (1, 3) == output_shape(network, x.shape) and y.isfinite().all() and x._version == 0


@pytest.mark.parametrize("stem", resnet.STEMS)
@pytest.mark.parametrize("in_chans", [1, 3, 4, 7])
@pytest.mark.parametrize("num_classes", [1, 2, 10])
def test_any_number_of_channels_and_classes_fits(stem, in_chans, num_classes):
    network = tiny(stem=stem, in_chans=in_chans, num_classes=num_classes)
    assert network(torch.randn(2, in_chans, 9, 9)).shape == (2, num_classes)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("layers", [[1], [3], [1, 1], [2, 1, 1, 1, 1]])
def test_any_layers_from_one_block_up_are_a_network(block, layers):
    network, plan = made(block=block, layers=layers, widths=[4] * len(layers), num_classes=2, drop_path=0.2)
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 2) and plan["layers"] == layers
    assert len(list(named_skips(network))) == sum(layers)


@pytest.mark.parametrize(
    "options", [{}, {"block": "bottleneck"}, {"shortcut": "project"}, {"shortcut": "pool"}, {"stem": "deep"}]
)
def test_every_parameter_gets_a_finite_gradient_after_two_steps(options):
    network = tiny(**options)
    x, y = torch.randn(8, 3, 16, 16), torch.randint(3, (8,))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    dead = [
        n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert not dead


def test_a_network_begins_with_he_s_spread_and_zeroed_last_norms():
    network = registry.build("resnet18")[0]
    for name, conv in network.named_modules():
        if isinstance(conv, nn.Conv2d):
            fan_out = conv.out_channels * conv.kernel_size[0] ** 2
            assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name
    zero = [n for n, p in network.named_parameters() if "norm" in n and n.endswith("weight") and not p.any()]
    assert len(zero) == 8 and all(n.endswith("body.norm2.weight") for n in zero)


def test_drop_path_rises_evenly_and_is_off_at_evaluation():
    network = tiny(layers=[2, 3], drop_path=0.4)
    assert [s.drop_path for _, s in named_skips(network)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [s.drop_path for _, s in named_skips(tiny(layers=[1], widths=[4], drop_path=0.4))] == [0.4]
    for p in network.parameters():
        nn.init.normal_(p, 0, 0.1) if p.dim() > 1 else nn.init.ones_(p)
    x = torch.randn(2, 3, 8, 8)
    twin = tiny(layers=[2, 3])
    twin.load_state_dict(network.state_dict())
    assert torch.equal(network.eval()(x), twin.eval()(x))
    network.stage2[2].train()
    network.stage2[2].body.eval()
    kept = torch.randn(1, 6, 4, 4).expand(4000, -1, -1, -1)
    skip = network.stage2[2]
    skip.after = None
    mean = skip(kept).mean(0)
    assert torch.allclose(mean, skip.eval()(kept)[0], atol=0.2)


# Plans and options


@pytest.mark.parametrize(
    "options, text",
    [
        (
            {"block": "basik"},
            r"resnet: unknown block 'basik' \(did you mean basic\?\): expected one of basic, bottleneck",
        ),
        ({"stem": "smal"}, r"resnet: unknown stem 'smal' \(did you mean small\?\): expected one of large, small, deep"),
        ({"shortcut": "padd"}, r"resnet: unknown shortcut 'padd' \(did you mean pad\?\): expected one of project, pad"),
        ({"layers": []}, r"resnet: expected one width for each stage, got \[4, 6\] for layers \[\]"),
        ({"layers": [1]}, r"resnet: expected one width for each stage"),
        ({"layers": [1, 0]}, r"resnet: expected integers of at least 1 for layers, got \[1, 0\]"),
        ({"layers": [1.5, 2]}, r"resnet: expected integers of at least 1 for layers"),
        ({"layers": "12"}, r"resnet: expected integers of at least 1 for layers, got 12"),
        ({"layers": 3}, r"resnet: expected integers of at least 1 for layers, got 3"),
        ({"widths": [4, -6]}, r"resnet: expected integers of at least 1 for widths"),
        ({"in_chans": 0}, r"resnet: expected integers of at least 1 for in_chans"),
        ({"num_classes": 2.5}, r"resnet: expected integers of at least 0 for num_classes"),
        ({"layers": [9999, 1]}, r"resnet: expected at most 3000 blocks, got 10000. Reduce layers"),
        ({"drop_path": 1.0}, r"resnet: expected drop_path of at least 0 and below 1, got 1.0. Change drop_path"),
        ({"drop_path": -0.1}, r"expected drop_path of at least 0"),
        ({"dropout": None}, r"resnet: expected dropout of at least 0 and below 1, got None"),
        ({"join": "skale"}, r"resnet: unknown join 'skale' \(did you mean scale\?\): expected one of add, scale"),
        (
            {"norm": "bach"},
            r"resnet: unknown norm 'bach' \(did you mean batch\?\): expected one of batch, group, none, fixup",
        ),
        ({"attention": "sea"}, r"resnet: unknown attention 'sea' \(did you mean se"),
        ({"padding": "valid"}, r"resnet: unknown padding 'valid': expected one of torch, same"),
        (
            {"shortcut": "none", "join": "scale"},
            r'resnet with shortcut "none": expected join "add", drop_path 0',
        ),
        (
            {"norm": "fixup", "join": "gate"},
            'resnet with norm "fixup": expected join "add", got "gate". Remove join',
        ),
        ({"cardinality": 2}, r"block 'basic': expected cardinality 1 and base_width 64, got 2 and 64"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(options, text):
    with pytest.raises(InputError, match=text) as refused:
        made(**{**TINY, **options})
    assert len(str(refused.value).splitlines()) == 1


def test_pad_refuses_stages_that_grow_narrower():
    with pytest.raises(ShapeError, match='shortcut "pad": expected at least 6 output channels, got 4'):
        tiny(widths=[6, 4], shortcut="pad")


def test_names_are_found_by_pattern_shallow_before_deep():
    found = [name for name in registry.names("resnet*") if name.removeprefix("resnet").isdigit()]
    assert found == sorted(found, key=lambda n: int(n.removeprefix("resnet"))) and {"resnet9", "resnet1202"} <= set(
        found
    )
    assert registry.names("vit*") == []


def test_a_wrong_name_or_option_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown architecture 'resnet51' \(did you mean .*resnet50.*\?\). List all"):
        registry.build("resnet51")
    with pytest.raises(
        InputError, match=r"resnet18: unknown option 'layer' \(did you mean layers.*\?\): expected one of block"
    ):
        registry.build("resnet18", layer=[1])


def test_a_plan_of_a_newer_skipway_is_refused():
    plan = registry.build("resnet20")[1]
    for family in ("vit", None, []):
        with pytest.raises(InputError, match="cannot read the plan: expected a family of .* Upgrade skipway"):
            registry.rebuild({**plan, "family": family})
    with pytest.raises(
        InputError, match=r"cannot read the plan: expected fields of this version of skipway, got act, glory. Upgrade"
    ):
        registry.rebuild({**plan, "glory": 1, "act": 2})


# ResNet-9


@pytest.mark.parametrize("size", [8, 9, 32])
@pytest.mark.parametrize("stem", ["small", "whitening"])
def test_resnet9_takes_small_images(stem, size):
    network, _ = registry.build("resnet9", widths=[4] * 4, stem=stem, num_classes=5, in_chans=1)
    x = torch.randn(2, 1, size + 1, size + 1)
    whiten(network, x)
    assert network(x).shape == (2, 5) == output_shape(network, x.shape) and x._version == 0


def test_whitening_takes_the_correlations_out_of_patches():
    network, _ = registry.build("resnet9", widths=[4] * 4, stem="whitening", in_chans=2)
    x = torch.randn(64, 2, 16, 16)
    x[:, 1] = 0.8 * x[:, 0] + 0.2 * x[:, 1]
    whiten(network, x)
    y = network.stem.white(x)[:, :8].permute(1, 0, 2, 3).reshape(8, -1).double()
    second = y @ y.T / y.shape[1]
    assert torch.allclose(second, torch.diag(second.diagonal()), atol=0.02) and second.diagonal().max() < 1.01


@pytest.mark.parametrize("options", [{"widths": [4]}, {"widths": [4, 4, 4, 0]}, {"in_chans": 0}, {"num_classes": -1}])
def test_resnet9_refuses_sizes_that_cannot_be(options):
    with pytest.raises(InputError, match="resnet9: expected"):
        registry.build("resnet9", **options)


def test_resnet9_refuses_an_unknown_stem_with_the_nearest():
    with pytest.raises(
        InputError, match=r"resnet9: unknown stem 'whitenin' \(did you mean whitening\?\): expected one of"
    ):
        registry.build("resnet9", stem="whitenin")
