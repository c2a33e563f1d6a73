import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from golden_states import FILES, golden
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import skipway as sw
from skipway.errors import InputError, ShapeError
from skipway.models import registry
from skipway.models.network import build_meta_network, build_network
from skipway.weights.convert import adopt, release
from skipway.weights.key_maps import LIBRARIES

LIKE = {  # what a library's networks of each kind are made of
    ("torchvision", "resnet"): {"stem": ["large"], "shortcut": ["auto"], "block": ["basic", "bottleneck"]},
    ("timm", "resnet"): {
        "stem": ["large", "deep", "tiered", "deep_conv"],
        "shortcut": ["auto", "pool"],
        "block": ["basic", "bottleneck"],
        "attention": ["none", "se", "eca"],
        "norm": ["batch", "group"],
        "aa_layer": ["none", "blurpool", "avg"],
        "activation": ["relu", "silu"],
        "output_stride": [None, 8],
        "down_kernel_size": [1, 3],
        "block_reduce_first": [1, 2],
    },
    ("timm", "preact"): {
        "stem": ["large", "deep", "tiered", "fixed"],
        "norm": ["batch", "group", "frn", "evonorm"],
        "weight_standardization": [False, True],
        "shortcut": ["auto", "pool"],
        "block": ["preact_basic", "preact_bottleneck"],
    },
    ("fastai", "resnet"): {"stem": ["deep"], "shortcut": ["pool"], "block": ["basic", "bottleneck"]},
    ("flax", "resnet"): {
        "stem": ["large"],
        "shortcut": ["auto"],
        "block": ["basic", "bottleneck"],
        "padding": ["same"],
    },
    ("akamaster", "resnet"): {"stem": ["small"], "shortcut": ["pad", "auto"], "block": ["basic"]},
    ("torchvision", "densenet"): {"growth": [4, 8], "bottleneck": [2, 4], "stem_channels": [None, 8]},
    ("torchvision", "mobilenet"): {"activation": ["relu6"], "attention": ["none"]},
    ("torchvision", "efficientnet"): {"attention": ["se"], "norm_eps": [1e-5, 1e-3]},
    ("timm", "mobilenet"): {"activation": ["relu6", "silu"], "attention": ["none"], "padding": ["torch", "same"]},
    ("timm", "efficientnet"): {"attention": ["se"], "padding": ["torch", "same"]},
    ("lukemelas", "mobilenet"): {
        "activation": ["relu6"],
        "attention": ["none"],
        "padding": ["same"],
        "norm_eps": [1e-3],
    },
    ("lukemelas", "efficientnet"): {"attention": ["se"], "padding": ["same"], "norm_eps": [1e-3]},
    ("timm", "convnext"): {"join": ["layerscale", "add"], "kernel": [3, 7]},
    ("torchvision", "convnext"): {"layer_scale": [1e-6, 0.1]},
    ("timm", "densenet"): {"growth": [4, 8], "bottleneck": [1, 4], "stem": ["large", "deep"], "activation": ["silu"]},
}


def scrambled(network):
    """Neighbouring numbers of a network differ, within a tensor and between tensors; every counter is its own."""
    start = 0
    for tensor in network.state_dict().values():
        numbers = torch.arange(start, start + tensor.numel()).view(tensor.shape)
        tensor.copy_(numbers % 997 / 997 + 0.5 if tensor.is_floating_point() else numbers)
        start += tensor.numel()
    return network.eval()


@st.composite
def held(draw, pair):
    """Options of a small network that the library can hold."""
    options = {name: draw(st.sampled_from(values)) for name, values in LIKE[pair].items()}
    count = 4 if pair == ("timm", "convnext") else draw(st.integers(1, 4 if pair[0] == "timm" else 6))
    options["layers"] = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    if pair[1] in ("mobilenet", "efficientnet"):
        kernels = [3] if pair == ("torchvision", "mobilenet") else [3, 5]
        choices = {"widths": [8, 16], "kernels": kernels, "strides": [1, 2], "expansions": [1, 2, 6]}
        for name, values in choices.items():
            options[name] = draw(st.lists(st.sampled_from(values), min_size=count, max_size=count))
        options |= {"stem_channels": 8, "final_channels": 12}
    elif pair[1] != "densenet":
        drawn = draw(st.lists(st.sampled_from([8, 16, 24]), min_size=count, max_size=count))
        options["widths"] = sorted(drawn) if options.get("shortcut") == "pad" else drawn
        if pair[0] == "timm" and pair[1] != "convnext":  # it projects where the channels stay, which is refused
            options["widths"] = [8 * 2**i for i in range(count)]
    return options | {"num_classes": draw(st.integers(1, 12)), "in_chans": draw(st.integers(1, 4))}


# Equal outputs


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_outputs_and_what_is_released_are_those_of_the_library_itself(path):
    values, state, x = golden(path)
    network = adopt(state, values["library"], values["model"], **values.get("options", {}))
    expected = torch.tensor(values["logits_first_8"], dtype=torch.float64)
    assert sum(p.numel() for p in network.parameters()) == values["parameters"] and not network.training
    with torch.no_grad():
        out = network(x)
        assert (out[:, :8] - expected).norm() <= 1e-9 * expected.norm()
        assert out.norm().item() == pytest.approx(values["logits_norm"], rel=1e-9)
    released = release(network, values["library"])
    floating = {k: v for k, v in released.items() if not k.endswith("num_batches_tracked")}
    assert {k: list(v.shape) for k, v in floating.items()} == values["state"]
    assert all(np.array_equal(v, state[k]) for k, v in floating.items())
    with torch.no_grad():
        narrow = network.float()(x.float())
    assert (narrow[:, :8] - expected).norm() <= 1e-4 * expected.norm()


# There and back


@pytest.mark.parametrize("pair", LIKE, ids="-".join)
@given(data=st.data())
@settings(max_examples=12)
def test_release_then_adopt_is_the_identity(pair, data):
    library, kind = pair
    options = data.draw(held(pair))
    names = {
        "densenet": "densenet121",
        "preact": "resnetv2_18",
        "mobilenet": "mobilenetv2_100",
        "convnext": "convnext_tiny",
    }
    name = {**names, "efficientnet": "efficientnet_b0"}.get(kind, "resnet18")
    network = scrambled(build_network(registry.plan_of(name, **options)))
    given_options = {k: v for k, v in options.items() if k not in ("num_classes", "in_chans")}
    again = adopt(release(network, library), library, name, **given_options)
    assert again.plan == {**network.plan, "num_classes": options["num_classes"], "in_chans": options["in_chans"]}
    state, back = network.state_dict(), again.state_dict()
    counters = {k for k in state if k.endswith("num_batches_tracked") and library == "flax"}
    assert list(state) == list(back) and all(torch.equal(back[k], state[k]) for k in state if k not in counters)


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_name_that_a_library_can_hold_finds_a_place_for_every_tensor(library):
    table, held_names = LIBRARIES[library], 0
    for name in registry.names():
        plan = registry.plan_of(name)
        plan = {**plan, "padding": "same"} if library == "flax" and "padding" in plan else plan
        if "layers" in plan and isinstance(plan["layers"], list):  # the rules know no depth
            plan["layers"] = [min(count, 2) for count in plan["layers"]]
            plan |= {option: [] for option in ("inner_widths", "out_widths") if option in plan}
        if table.refusal(plan):
            continue
        network = build_meta_network(plan)
        released = release(network, library)
        counters = sum(k.endswith("num_batches_tracked") for k in network.state_dict()) if library == "flax" else 0
        assert len(released) == len(network.state_dict()) - counters, name
        held_names += 1
    assert held_names >= 5


@pytest.mark.parametrize(
    "library, name, own",
    [
        ("flax", "ResNet200", "resnet200"),
        ("akamaster", "resnet110", "resnet110"),
        ("fastai", "xresnet34", "xresnet34"),
        ("timm", "resnet50.a1_in1k", "resnet50"),
        ("timm", "tf_efficientnet_lite0.in1k", "tf_efficientnet_lite0"),
        ("timm", "convnext_atto.d2_in1k", "convnext_atto"),
        ("torchvision", "convnext_small", "convnext_small"),
        ("torchvision", "mobilenet_v2", "mobilenetv2_100"),
        ("torchvision", "efficientnet_b5", "efficientnet_b5"),
        ("lukemelas", "efficientnet-b0", "efficientnet_b0"),
        ("lukemelas", "efficientnet-lite0", "efficientnet_lite0"),
        ("lukemelas", "tf_efficientnet_lite0", "tf_efficientnet_lite0"),
    ],
)
def test_a_library_s_name_stands_for_ours(library, name, own):
    _, own_options = LIBRARIES[library].own_name(name)
    network = build_meta_network(registry.plan_of(own, **own_options))
    narrow = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in release(network, library).items()}
    adopted = adopt(narrow, library, name)
    assert adopted.plan["name"] == own and adopted.spec is None


def test_same_padding_is_what_makes_flax_s_outputs_equal():
    values, state, x = golden(next(p for p in FILES if p.stem == "flax-ResNet18"))
    network = adopt(state, "flax", "ResNet18")
    wrong = build_network({**network.plan, "padding": "torch"}).double().eval()
    wrong.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert (wrong(x) - network(x)).norm() > 0.01 * network(x).norm()


# How files hold a state


def small(**options):
    return scrambled(sw.create_model("resnet18", 3, layers=[1, 1], widths=[4, 8], **options))


SMALL = {"layers": [1, 1], "widths": [4, 8]}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 12, "best_prec1": 91.2},
        lambda s: {"model": s, "optimizer": {"lr": 1}},
        lambda s: {"state_dict_ema": s},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
        lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
        lambda s: {k: v.numpy() for k, v in s.items()},
        lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    ],
)
def test_wrappers_and_prefixes_of_files_are_taken_off(wrap):
    network = small()
    again = adopt(wrap(release(network, "torchvision")), "torchvision", "resnet18", **SMALL)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(x), network(x)) and not again(x).isnan().any()


def frozen(array):
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    "change",
    [
        frozen,  # as JAX gives them
        lambda a: a[..., ::-1].copy()[..., ::-1] if a.ndim else a,
        lambda a: a.astype(a.dtype.newbyteorder(">")),
        lambda a: a.astype(np.dtype([("only", a.dtype)])),  # a kind that numpy does not know by name, as bfloat16
    ],
    ids=["read-only", "backwards", "big-endian", "other kind"],
)
def test_arrays_need_not_be_as_torch_wants_them(change):
    network = small()
    state = {k: v.numpy().copy() for k, v in release(network, "torchvision").items()}
    again = adopt(
        {k: change(v) if v.dtype == np.float32 else v for k, v in state.items()}, "torchvision", "resnet18", **SMALL
    )
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in again.state_dict().items())


def test_flax_trees_are_taken_nested_or_flat_and_their_optimiser_is_left_out():
    network = small(padding="same")
    flat = release(network, "flax")
    nested = {}
    for key, tensor in flat.items():
        level = nested
        *path, last = key.split("/")
        for part in path:
            level = level.setdefault(part, {})
        level[last] = tensor.numpy()
    for state in (flat, nested, {**nested, "step": np.int32(7), "opt_state": {"0": {"trace": np.zeros(3)}}}):
        again = adopt(state, "flax", "ResNet18", **SMALL)
        assert torch.equal(again(torch.ones(1, 3, 9, 9)), network(torch.ones(1, 3, 9, 9)))


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_old_names_of_dense_layers_are_understood(library):
    network = scrambled(sw.create_model("densenet121", 2, layers=[2, 1], growth=4))
    old = {}
    for key, tensor in release(network, library).items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            key = key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.") if "denselayer" in key else key
        old[key] = tensor
    assert any(".norm.1." in key for key in old)
    again = adopt(old, library, "densenet121", layers=[2, 1], growth=4)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in again.state_dict().items())
    key = "features.denseblock1.denselayer1.conv1.weight"
    old[key] = release(network, library)[key]
    with pytest.raises(InputError, match=f"expected unique keys, got {key} twice .older name or nested.. Remove one"):
        adopt(old, library, "densenet121", layers=[2, 1], growth=4)


@pytest.mark.parametrize(
    "given_as, kept_as",
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float8_e5m2, torch.float32),
    ],
)
def test_precision_is_float32_or_stays_float64(given_as, kept_as):
    state = {k: v.to(given_as) if v.is_floating_point() else v for k, v in release(small(), "timm").items()}
    network = adopt(state, "timm", "resnet18", **SMALL)
    assert {p.dtype for p in network.parameters()} == {kept_as}
    assert network.stage1[0].body.norm1.num_batches_tracked.dtype == torch.long
    assert torch.equal(network.head.weight, state["fc.weight"].to(kept_as))


def test_the_network_has_its_own_memory():
    state = release(small(), "torchvision")
    network = adopt(state, "torchvision", "resnet18", **SMALL)
    before = copy.deepcopy(network.state_dict())
    for tensor in state.values():
        tensor.zero_()
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.requires_grad for p in network.parameters())


# Other classes


@pytest.mark.parametrize("without_head", [False, True])
def test_another_number_of_classes_has_a_fresh_head_and_all_else_adopted(without_head):
    network = small()
    state = release(network, "torchvision")
    if without_head:
        state = {k: v for k, v in state.items() if not k.startswith("fc.")}
    again = adopt(state, "torchvision", "resnet18", num_classes=7, **SMALL)
    assert again.plan["num_classes"] == 7 and again.head.weight.shape == (7, 8) and again.head.weight.std() > 0.05
    same = {k: v for k, v in again.state_dict().items() if not k.startswith("head")}
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in same.items())
    assert again(torch.ones(1, 3, 8, 8)).shape == (1, 7)


# What does not fit


@pytest.mark.parametrize(
    "spoil, text",
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), r"layer1.0.conv1.weight is missing. Nothing was loaded"),
        (lambda s: s.update(extra=torch.ones(2, 3)), r"extra \(2, 3\) is unexpected"),
        (lambda s: s.update({"bn1.weight": torch.ones(5)}), r"bn1.weight is \(5,\), expected \(4,\)"),
        (lambda s: s.update({"fc.weight": torch.ones(8, 3)}), r"fc.weight is \(8, 3\), expected"),
        (
            lambda s: s.update({"layer2.0.conv1.weight": torch.ones(4, 8, 3, 3)}),
            r"layer2.0.conv1.weight is \(4, 8, 3, 3\), expected \(8, 4, 3, 3\)",
        ),
        (lambda s: s.update({"bn1.bias": torch.ones(4, dtype=torch.int32)}), "bn1.bias holds int32, expected float32"),
        (lambda s: s["layer2.0.bn2.running_mean"].fill_(float("nan")), "layer2.0.bn2.running_mean is not finite"),
        (lambda s: s["fc.bias"].fill_(float("inf")), "fc.bias is not finite"),
        (lambda s: s.update({"fc.bias": torch.full((3,), 1e300, dtype=torch.float64)}), "fc.bias is not finite"),
        (lambda s: s.update({"x" * 10**5: torch.ones(1)}), r"(?<!x)x{100} \(1,\) is unexpected"),
        (lambda s: [s.pop(k) for k in list(s) if "layer2" in k], r"layer2.0.conv1.weight is missing.* and \d+ more"),
    ],
)
def test_a_misfit_is_one_line_of_differences_and_nothing_is_loaded(spoil, text):
    state = copy.deepcopy(release(small(), "torchvision"))
    spoil(state)
    with pytest.raises(ShapeError, match="the state dict does not match torchvision's resnet18: .*" + text) as refused:
        adopt(state, "torchvision", "resnet18", **SMALL)
    assert len(str(refused.value).splitlines()) == 1


def test_a_state_that_is_none_is_refused():
    with pytest.raises(InputError, match=r"state: expected tensors or arrays by name, got an empty or other dict"):
        adopt({}, "timm", "resnet18")


@pytest.mark.parametrize(
    "value, kind",
    [
        ("last", "str"),
        ([["a"], ["b", "c"]], "list"),
        (None, "NoneType"),
        (torch.ones(2, device="meta"), "meta"),
        (torch.ones(2).to_sparse(), "torch.sparse_coo"),
    ],
    ids=str,
)
def test_what_is_no_plain_tensor_is_refused(value, kind):
    with pytest.raises(InputError, match=f"state: expected a plain tensor for fc.bias, got {kind}. Remove it"):
        adopt({**release(small(), "timm"), "fc.bias": value}, "timm", "resnet18", **SMALL)


def test_a_state_of_another_library_is_told_by_its_names():
    state = release(sw.create_model("resnet20", layers=[1, 1, 1]), "akamaster")
    with pytest.raises(ShapeError, match=r"match timm's resnet18 \(the keys are those of akamaster\): "):
        adopt(state, "timm", "resnet18")
    state = release(small(), "torchvision")
    with pytest.raises(ShapeError, match=r"flax's ResNet18 \(the keys are those of torchvision or timm\): "):
        adopt(state, "flax", "ResNet18", **SMALL)


def test_a_head_of_another_rank_is_a_difference_like_any_other():
    options = {"layers": [1], "widths": [8]}
    state = release(sw.create_model("resnetv2_18", 3, **options), "timm")
    with pytest.raises(ShapeError, match=r"head.fc.weight is \(24,\), expected \(\d+, 8\)"):
        adopt({**state, "head.fc.weight": torch.ones(24)}, "timm", "resnetv2_18", **options)


def test_unknown_libraries_names_and_options_are_refused():
    state = {"conv1.weight": torch.ones(1)}
    with pytest.raises(InputError, match=r"library: expected one of .*'torchvison' \(did you mean torchvision\?\)"):
        adopt(state, "torchvison", "resnet18")
    with pytest.raises(InputError, match="unknown architecture 'resnet51'"):
        adopt(state, "timm", "resnet51")
    with pytest.raises(InputError, match=r"has no 'resnet50d' .*stem 'deep' \(it has 'large'.*\. Change the options"):
        adopt(state, "torchvision", "resnet50d")
    with pytest.raises(InputError, match="fastai has no 'densenet121' .*it has no densenet"):
        adopt(state, "fastai", "densenet121")


KEPT = "timm has no .* with these options: widths or stem_channels that keep a stage's channels"


@pytest.mark.parametrize(
    "library, name, options, text",
    [
        (
            "timm",
            "resnet20",
            {},
            r"timm has no resnet20 .*: stem 'small' \(it has 'large' or .*; shortcut 'pad",
        ),
        ("timm", "resnet18d", {"widths": [8, 8], "layers": [1, 1]}, KEPT),
        ("timm", "resnetv2_50", {"widths": [8], "layers": [1], "stem_channels": 32}, KEPT),
        ("timm", "resnetv2_18", {"widths": [8, 16, 8, 16, 8], "layers": [1] * 5}, "layers in more than 4 stages"),
        ("timm", "densenet40_12", {"layers": [1], "stem": "large"}, r"compression 1.0 .*; bottleneck 0 \(it has 1 or"),
        ("timm", "resnet18", {"join": "scale", "widths": [8], "layers": [1]}, r"join 'scale' \(it has 'add'\)"),
        ("timm", "resnet50_v1", {"widths": [8], "layers": [1]}, "block 'bottleneck_v1'"),
        ("torchvision", "resnet18", {"padding": "same", "widths": [8], "layers": [1]}, "padding 'same'"),
        ("torchvision", "seresnet18", {"widths": [8], "layers": [1]}, "attention 'se'"),
        ("flax", "resnet18", {"widths": [8], "layers": [1]}, r"padding 'torch' \(it has 'same'\)"),
        (
            "flax",
            "resnext50_32x4d",
            {"widths": [64], "layers": [1], "padding": "same"},
            "cardinality 32 .*base_width 4",
        ),
        ("akamaster", "resnet18", {"widths": [8], "layers": [1]}, "stem 'large'"),
        ("timm", "resnetv2_50", {"widths": [64], "layers": [1], "cardinality": 2}, r"cardinality 2 \(it has 1\)"),
        ("fastai", "xresnet50", {"widths": [64], "layers": [1], "base_width": 128}, r"base_width 128 \(it has 64\)"),
        ("fastai", "resmlp", {}, "fastai has no resmlp with these options: it has no resmlp. Choose another library"),
    ],
)
def test_release_refuses_what_the_library_cannot_hold(library, name, options, text):
    with pytest.raises(InputError, match=text) as refused:
        release(sw.create_model(name, **options), library)
    assert len(str(refused.value).splitlines()) == 1


def test_stages_that_keep_their_channels_are_held_where_the_projections_agree():
    for library, name, options in [
        ("fastai", "xresnet18", {"widths": [8, 8]}),  # it does not project either
        ("timm", "resnet18", {"widths": [8, 8]}),  # both do, for the stride
        ("timm", "resnetv2_18", {"widths": [8, 8]}),
        ("timm", "resnetv2_50", {"widths": [8, 8]}),
    ]:
        network = scrambled(sw.create_model(name, 3, layers=[1, 1], **options))
        again = adopt(release(network, library), library, name, layers=[1, 1], **options)
        assert torch.equal(again(torch.ones(1, 3, 16, 16)), network(torch.ones(1, 3, 16, 16)))


def test_release_refuses_a_network_that_was_changed_by_hand():
    network = small()
    network.stage1[0].body.conv1.bias = nn.Parameter(torch.zeros(4))
    with pytest.raises(
        InputError, match=r"expected the network of its plan, got changes of stage1.0.body.conv1.bias. Release"
    ):
        release(network, "torchvision")
    network = small()
    network.head = nn.Linear(8, 5)
    assert release(network, "torchvision")["fc.weight"] is not None
    assert adopt(release(network, "torchvision"), "torchvision", "resnet18", **SMALL).plan["num_classes"] == 5


def test_what_is_released_can_be_written_as_it_is():
    assert all(v.is_contiguous() for v in release(small(padding="same"), "flax").values())


def test_release_needs_a_plan():
    with pytest.raises(InputError, match="release: expected a network with a plan, got none"):
        release(sw.Network(OrderedDict(head=nn.Linear(2, 2))), "timm")
