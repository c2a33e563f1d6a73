"""timm's methods on every family, and its numbers for every name that both libraries have."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from golden_states import draw, value
from parameter_groups import groups
from torch import nn

import skipway as sw
from skipway.data.tables.columns import Column
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError, ShapeError
from skipway.models.feature_levels import FeatureInfo
from skipway.models.network import build_meta_network
from skipway.models.registry import FAMILIES, plan_of
from skipway.nn.reversible import Reversible
from skipway.weights.convert import adopt, release

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "features" / "timm.json").read_text())
THREE = {"layers": (2, 1, 1), "widths": (4, 6, 8)}
SMALL = {
    "resnet18": THREE,
    "resnet50t": THREE,
    "resnetv2_18": THREE,
    "resnetv2_50": {**THREE, "norm": "none"},
    "resnetrs50": THREE,
    "resnet20": {"layers": (1, 1, 1), "join": "layerscale"},
    "resnet32": {"layers": (1, 1, 1), "norm": "fixup"},
    "revnet38": {"layers": (2, 2, 1), "widths": (4, 6, 8)},
    "densenet121": {"layers": (2, 2, 1), "growth": 4},
    "mobilenetv2_050": {
        **THREE,
        "kernels": (3, 5, 3),
        "strides": (1, 2, 2),
        "expansions": (1, 2, 2),
        "stem_channels": 8,
        "final_channels": 16,
    },
    "convnext_atto": THREE,
    "resnet9": {"widths": (4, 4, 6, 8)},
    "resnet9m": {"widths": (4, 4, 6, 8)},
    "resmlp": {"width": 8, "layers": 2},
}
IMAGES = [name for name in SMALL if name != "resmlp"]


def small(name, **options):
    torch.manual_seed(0)
    network = sw.create_model(name, **{**SMALL[name], **options}).eval()
    for module in network.modules():  # a zero-initialized body would hide a mistake
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    return network


def inputs(name, size=32):
    return torch.randn(2, 64) if name == "resmlp" else torch.randn(2, 3, size, size)


def spec(*names):
    return sw.Spec(3, 32, 40, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), names, resize_mode="crop")


def test_every_family_has_a_test_here():
    assert {plan_of(name)["family"] for name in SMALL} == set(FAMILIES)


def test_a_head_of_the_user_is_the_classifier():
    network = small("resnet18")
    network.head = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    assert (network.num_classes, network.num_features, network.head_hidden_size) == (3, 8, 8)
    network.head = nn.Identity()
    assert (network.num_classes, network.num_features, network.head_hidden_size) == (0, 8, 8)


@pytest.mark.parametrize("name", GOLDEN)
def test_feature_maps_and_sizes_are_timm_s(name):
    values = plan_of(name)
    if FAMILIES[values["family"]].repeats and not values.get("inner_widths"):  # further blocks change no shape
        values["layers"] = [min(count, 1) for count in values["layers"]]
    network = build_meta_network(values)
    info = network.feature_info
    assert (info.channels(), info.reduction()) == (GOLDEN[name]["channels"], GOLDEN[name]["reduction"])
    assert network.num_features == GOLDEN[name]["num_features"]
    assert network.head_hidden_size == GOLDEN[name]["head_hidden_size"]


@pytest.mark.parametrize("stride, reductions", [(8, [2, 4, 8, 8]), (16, [2, 4, 8, 16])])
def test_dilation_keeps_the_levels(stride, reductions):
    for name in ("resnet18", "resnetv2_18"):  # one block in the last stage: only its first dilation shows
        network = small(name, output_stride=stride)
        info = network.feature_info
        assert (info.channels(), info.reduction()) == (small(name).feature_info.channels(), reductions)
        maps = network.forward_intermediates(torch.zeros(1, 3, 32, 32), intermediates_only=True)
        assert [out.shape[2] for out in maps] == [32 // reduction for reduction in reductions]


@pytest.mark.parametrize("name", [name for name in GOLDEN if "norms" in GOLDEN[name]])
def test_intermediates_are_timm_s(name):
    shapes = {key: tensor.shape for key, tensor in release(build_meta_network(plan_of(name)), "timm").items()}
    state = {key: value(key, shape, False).astype(float) for key, shape in shapes.items() if "tracked" not in key}
    x = torch.from_numpy(draw("input", (1, 3, 64, 64)).astype("float32")).double()
    with torch.no_grad():
        maps = adopt(state, "timm", name).forward_intermediates(x, intermediates_only=True)
    assert [float(out.norm()) for out in maps] == pytest.approx(GOLDEN[name]["norms"], rel=1e-9)


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_50", "seresnext26t_32x4d", "densenet121", "mobilenetv2_100"])
def test_groups_are_as_many_as_timm_s(name):
    network = build_meta_network(plan_of(name))
    assert [len(groups(network)), len(groups(network, coarse=True))] == GOLDEN[name]["groups"]


def test_the_groups_of_a_convnext():
    found = [sorted({".".join(name.split(".")[:2]) for name in group}) for group in groups(small("convnext_atto"))]
    assert found == [
        ["stem.conv", "stem.norm"],
        ["stage1.0"],
        ["stage1.1"],
        ["stage2.0", "transition1.conv", "transition1.norm"],
        ["stage3.0", "transition2.conv", "transition2.norm"],
        ["head.bias", "head.weight", "norm.bias", "norm.weight"],
    ]


def test_scales_and_shifts_have_no_weight_decay():
    assert small("resnet18").no_weight_decay() == set()
    assert small("resnet20").no_weight_decay() == {f"stage{i}.0.join.scale" for i in (1, 2, 3)}
    shifts = small("resnet32").no_weight_decay()
    assert {"stem.shift.bias", "stage1.0.join.scale", "stage3.0.body.before1.bias"} <= shifts
    assert not any("conv" in name or "head" in name for name in shifts)


# Feature maps of the network itself


def test_indices_choose_intermediates_in_the_order_of_the_layers():
    network, x = small("resnet18"), inputs("resnet18")
    maps = network.forward_intermediates(x, intermediates_only=True)
    for indices, expected in ((2, (2, 3)), ((-1, 0), (0, 3)), ([1], (1,))):
        found = network.forward_intermediates(x, indices, intermediates_only=True)
        assert [id_of(out, maps) for out in found] == list(expected)


def id_of(out, maps):
    return next(i for i, other in enumerate(maps) if torch.equal(out, other))


def test_intermediates_stop_early():
    network, x = small("resnet18"), inputs("resnet18")
    maps = network.forward_intermediates(x, intermediates_only=True)
    network.stage3 = nn.Linear(1, 1)  # would fail
    features, found = network.forward_intermediates(x, [0, 2], stop_early=True)
    assert torch.equal(features, maps[2]) and torch.equal(found[1], maps[2])
    with pytest.raises((RuntimeError, ShapeError)):
        network.forward_intermediates(x, [0, 2])


@pytest.mark.parametrize("name, changes", [("resnetv2_18", True), ("densenet121", False), ("resnet18", False)])
def test_the_norm_applies_to_the_last_intermediate(name, changes):
    network, x = small(name), inputs(name)
    features, maps = network.forward_intermediates(x, norm=True)
    plain = network.forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps[:-1], plain[:-1], strict=True))
    assert torch.equal(maps[-1], plain[-1]) != changes
    assert torch.equal(maps[-1], features)


def test_the_last_intermediate_of_a_densenet_is_behind_its_norm():
    network, x = small("densenet121"), inputs("densenet121")
    assert network.feature_info.module_name()[-1] == "act"
    assert torch.equal(network.forward_intermediates(x, 1, intermediates_only=True)[0], network.forward_features(x))


def test_a_convolution_behind_the_last_stage_is_no_norm():
    network, x = small("mobilenetv2_050"), inputs("mobilenetv2_050")
    assert network.forward_intermediates(x, 1, norm=True, intermediates_only=True)[0].shape[1] == 8


def test_a_slice_has_the_methods_too():
    network, x = small("resnet18"), inputs("resnet18")
    body = network[: list(network._modules).index("pool")]
    assert torch.equal(body(x), network.forward_features(x)) and body.num_features == 8 and body.plan == {}
    assert body.feature_info == network.feature_info
    assert torch.equal(body.forward_intermediates(x, 1)[1][0], network.forward_features(x))


def test_what_intermediates_refuse():
    network, x = small("resnet18"), inputs("resnet18")
    with pytest.raises(InputError, match="forward_intermediates: expected output_fmt \"NCHW\", got 'NHWC'. Permute"):
        network.forward_intermediates(x, output_fmt="NHWC")
    with pytest.raises(
        InputError, match="indices: expected indices from -4 to 3, for 4 outputs, got 4. Change indices"
    ):
        network.forward_intermediates(x, [4])
    with pytest.raises(InputError, match="indices: expected a number of outputs from 1 to 4, got 5. Pass a list"):
        network.forward_intermediates(x, 5)
    for indices in (True, 1.5, "last"):
        with pytest.raises(InputError, match=f"indices: expected a number of outputs from 1 to 4, got {indices!r}"):
            network.forward_intermediates(x, indices)
    for place in (True, 1.5, "last"):
        with pytest.raises(InputError, match=f"indices: expected indices from -4 to 3, for 4 outputs, got {place!r}"):
            network.forward_intermediates(x, [0, place])
    plain = sw.Network(OrderedDict(head=nn.Linear(2, 3)))
    assert plain.feature_info == [] and (plain.num_classes, plain.num_features) == (3, 2)
    assert torch.equal(plain.forward_features(torch.ones(1, 2)), torch.ones(1, 2))
    with pytest.raises(InputError, match="forward_intermediates: expected a network with a stem and stages"):
        plain.forward_intermediates(torch.ones(1, 2))


def test_feature_info_has_timm_s_methods():
    info = small("resnet18").feature_info
    assert (len(info), info[1]["module"], info.out_indices) == (4, "stage1", (0, 1, 2, 3))
    assert info.module_name() == ["stem.step", "stage1", "stage2", "stage3"]
    some = info.from_other((1, -1))
    assert (some.channels(), some.reduction(), some.module_name(0)) == ([4, 8], [4, 16], "stem.step")
    assert some.channels([0, 2]) == [4, 6] and len(some) == 2
    assert some.get_dicts(["num_chs"]) == [{"num_chs": 4}, {"num_chs": 8}]
    assert some.get_dicts(["index"], [0]) == [{"index": 0}] and some.get_dicts(idx=0) == info[0]
    assert FeatureInfo(list(info), 2).reduction() == [8, 16]


# Surgery of the head


@pytest.mark.parametrize(
    "num_classes, pool", [(True, None), (-1, None), (2.5, None), (None, None), (3, "median"), (3, "Avg"), (3, 1)]
)
def test_what_a_classifier_cannot_be(num_classes, pool):
    for network in (small("resnet18"), sw.Network(OrderedDict(head=nn.Linear(2, 3)))):
        with pytest.raises(InputError, match=f"expected num_classes of .*, got {num_classes} and {pool!r}. Change"):
            network.reset_classifier(num_classes, pool)


def test_what_a_family_cannot_have():
    with pytest.raises(InputError, match="expected no global_pool for resmlp, which has no feature map, got 'avg'"):
        small("resmlp").reset_classifier(3, "avg")
    with pytest.raises(InputError, match="convnext: unknown global_pool 'catavgmax'"):
        small("convnext_atto").reset_classifier(3, "catavgmax")
    network = small("resnet18")
    with pytest.raises(InputError, match='global_pool "none": expected num_classes=0'):
        network.reset_classifier(3, "none")
    assert network.num_classes == network.plan["num_classes"] == 1000  # unchanged


def test_a_network_without_a_plan_gets_a_classifier_too():
    layers = {"stem": nn.Conv2d(3, 4, 3), "stage1": nn.ReLU(), "pool": nn.AdaptiveMaxPool2d(1), "flatten": nn.Flatten()}
    network = sw.Network(OrderedDict(**layers, drop=nn.Dropout(0.5), head=nn.Linear(4, 10))).eval()
    x = torch.randn(2, 3, 8, 8)
    network.reset_classifier(3)
    assert network(x).shape == (2, 3) and isinstance(network.pool, nn.AdaptiveMaxPool2d) and network.plan == {}
    assert [name for name, _ in network.named_children()] == [*layers, "drop", "head"]
    network.reset_classifier(2, "catavgmax")
    assert network(x).shape == (2, 2) and (network.num_features, network.head_hidden_size) == (4, 8)


@pytest.mark.parametrize("num_classes, names", [(0, ("a", "b")), (2, ("a", "b")), (3, ("0", "1", "2"))])
def test_the_spec_follows_the_classifier_into_a_file(tmp_path, num_classes, names):
    network, x = small("resnet18", num_classes=2), inputs("resnet18")
    network.spec = spec("a", "b")
    network.reset_classifier(num_classes, "avgmax")
    network.save(tmp_path / "a.safetensors")
    loaded = sw.load(tmp_path / "a.safetensors")
    assert torch.equal(loaded(x), network(x)) and loaded.num_classes == num_classes
    assert loaded.spec.class_names == names and loaded.plan["global_pool"] == "avgmax"
    loaded.reset_classifier(2)
    assert loaded.spec.class_names == (("a", "b") if num_classes != 3 else ("0", "1"))


def test_a_network_without_a_classifier_does_not_predict():
    network = small("resnet18", num_classes=2)
    network.spec = spec("a", "b")
    network.reset_classifier(0)
    image = torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()
    for call in (network.predict, network.predict_proba, network.probabilities):
        with pytest.raises(
            InputError, match="cannot predict: expected a network with a classifier, got one with num_cl"
        ):
            call([image])


def test_the_spec_of_a_table_follows_the_classifier():
    column = (Column("size", "number", center=0.0, scale=1.0),)
    network = sw.create_model("resmlp", 1, in_features=1, width=4, layers=1)
    network.spec = TableSpec(column, target_names=("price",), task="regression")
    network.reset_classifier(1)
    assert network.spec.task == "regression"
    network.reset_classifier(0)
    with pytest.raises(InputError, match="cannot predict: expected a network with a classifier"):
        network.row_outputs(torch.zeros(1, 1).numpy())
    network.reset_classifier(2)
    assert network.spec is None
    network.spec = TableSpec(column, target_names=("kind",), task="classification", class_names=("a", "b"))
    network.reset_classifier(3)
    assert network.spec.class_names == ("0", "1", "2")


# Pruning, checkpointing, configuration


@pytest.mark.parametrize("name", IMAGES)
def test_a_pruned_network_ends_in_the_last_intermediate(name):
    x, count = inputs(name), len(small(name).feature_info)
    for place in range(count):
        network = small(name)
        expected = network.forward_intermediates(x, [place], intermediates_only=True)[0]
        before = sum(p.numel() for p in network.parameters())
        assert network.prune_intermediate_layers([place], prune_norm=True) == [place]
        assert torch.equal(network(x), expected) and torch.equal(network.forward_features(x), expected)
        assert torch.equal(network.forward_intermediates(x, [place], intermediates_only=True)[0], expected)
        assert sum(p.numel() for p in network.parameters()) < before
        assert network.num_features == expected.shape[1] and network.num_classes == 0
        network.reset_classifier(3, "avg")
        assert network(x).shape == (2, 3)


def test_pruning_keeps_what_it_is_asked_to_keep():
    network, x = small("resnetv2_18"), inputs("resnetv2_18")
    features = network.forward_features(x)
    network.prune_intermediate_layers(2)  # the head only
    assert torch.equal(network(x), features) and network.plan["global_pool"] == "none"
    whole, logits = small("resnetv2_18"), small("resnetv2_18")(x)
    assert whole.prune_intermediate_layers(1, prune_head=False) == [3] and torch.equal(whole(x), logits)
    with pytest.raises(InputError, match="indices: expected indices from -4 to 3"):
        whole.prune_intermediate_layers([9])
    rows = small("resmlp")
    rows.prune_intermediate_layers()
    assert torch.equal(rows(torch.ones(2, 64)), small("resmlp").forward_features(torch.ones(2, 64)))


def test_a_pruned_network_is_not_that_of_its_plan(tmp_path):
    network = small("resnet18", num_classes=1)
    network.spec = spec("a")
    network.prune_intermediate_layers([1])
    with pytest.raises(ShapeError, match="cannot save: the network does not match its plan: stage2"):
        network.save(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "convnext_atto", "mobilenetv2_050", "resnet9", "resmlp"])
def test_checkpointing_is_switched_on_and_off(name):
    network, x = small(name).train(), inputs(name)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    gradients = []
    for enable in (True, False):
        network.load_state_dict(state)
        network.zero_grad()
        network.set_grad_checkpointing(enable)
        assert any(getattr(m, "forward_impl", None) for m in network.modules()) == enable
        network(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_reversible_network_needs_no_checkpointing():
    network = small("revnet38").train()
    assert any(isinstance(module, Reversible) for module in network.modules())
    network.set_grad_checkpointing()
    backbone = sw.Features(network)
    backbone.set_grad_checkpointing()
    assert not any(getattr(m, "forward_impl", None) for m in [*network.modules(), *backbone.modules()])


def test_the_configuration_of_a_named_model():
    config = small("resnet50t").default_cfg
    assert config == small("resnet50t").pretrained_cfg
    assert (config["architecture"], config["num_classes"], config["input_size"]) == ("resnet50t", 1000, (3, 224, 224))
    assert (config["crop_pct"], config["interpolation"], config["crop_mode"]) == (0.875, "bicubic", "center")
    assert (config["mean"], config["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    gray = small("resnet20", in_chans=1).default_cfg
    assert gray["input_size"] == (1, 32, 32) and gray["mean"] == pytest.approx((0.449,))
    assert small("resmlp").default_cfg["input_size"] == (64,)


def test_the_configuration_is_that_of_the_spec():
    network = small("resnet18", num_classes=2)
    network.spec = spec("cat", "dog")
    config = network.default_cfg
    assert (config["input_size"], config["crop_pct"], config["label_names"]) == ((3, 32, 32), 0.8, ("cat", "dog"))
    assert (config["mean"], config["interpolation"]) == ((0.5, 0.4, 0.3), "bilinear")
    assert sw.Features(network).default_cfg == config


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_tracing_does_not_compile_the_properties():
    network, x = small("resnet18"), inputs("resnet18")
    assert torch.equal(torch.jit.trace(network, x, check_trace=False)(x), network(x))
