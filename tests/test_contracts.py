"""Every registered network keeps every contract: in full for its state, cut down (`shrunken`) for what it computes."""

import json
import re
import runpy
from pathlib import Path

import contracts
import pytest
import torch
from shrunken import covering, kinds, random_images, settled, shrunken

from skipway.models import registry

GOLDEN = json.loads((Path(__file__).parent / "golden_plans.json").read_text())
COMPUTED = [
    "check_output_shape",
    "check_registration",
    "check_determinism",
    "check_rows",
    "check_deepcopy",
    "check_drop_path",
    "check_zero_bodies",
    "check_in_place",
    "check_shortcuts",
]
FRESH = ["check_gradients", "check_zero_beginnings"]
# What one family's plan can say: (other options that it needs, option, values that must all make another network).
OPTIONS = {
    "resnet": [
        ({}, "block", ["basic", "bottleneck", "bottleneck_v1", "preact_basic", "preact_bottleneck"]),
        ({}, "layers", [[2, 1], [1, 2], [3, 1]]),
        ({}, "widths", [[8, 16], [8, 8], [4, 16]]),
        ({}, "stem", ["large", "small", "deep", "tiered", "deep_conv", "fixed"]),
        ({}, "stem_channels", [None, 4, 16]),
        ({}, "shortcut", ["auto", "project", "pad", "pool", "none"]),
        ({}, "join", ["add", "scale", "layerscale", "gate"]),
        ({}, "norm", ["batch", "group", "none", "fixup"]),
        ({}, "attention", ["none", "se", "eca"]),
        ({"attention": "se", "widths": [64, 128]}, "attention_ratio", [0.25, 0.5]),
        ({"block": "bottleneck"}, "cardinality", [1, 2, 4]),
        ({"block": "bottleneck"}, "base_width", [64, 32, 128]),
        ({}, "padding", ["torch", "same"]),
        ({}, "dropout", [0.0, 0.1, 0.2]),
        ({}, "drop_path", [0.0, 0.1, 0.2]),
        ({"drop_path": 0.1}, "drop_mode", ["row", "batch"]),
        ({"block": "preact_basic"}, "reversible", [False, True]),
        ({"block": "preact_basic"}, "norm", ["frn", "evonorm", "group"]),
        ({}, "block", ["basic", ["basic", "bottleneck"], ["bottleneck", "basic"]]),
        ({"layers": [1, 1, 1, 1], "widths": [8] * 4}, "output_stride", [None, 8, 16]),
        ({}, "activation", ["relu", "silu", "gelu"]),
        ({}, "aa_layer", ["none", "blurpool", "avg"]),
        ({"block": "bottleneck"}, "block_reduce_first", [1, 2]),
        ({}, "down_kernel_size", [1, 3]),
        ({}, "weight_standardization", [False, True]),
        ({}, "out_widths", [[], [6, 12], [6, 14]]),
        ({"out_widths": [6, 12]}, "inner_widths", [[], [3, 4, 5], [3, 4, 6]]),
        ({}, "in_chans", [3, 1]),
        ({}, "num_classes", [3, 5, 0]),
        ({}, "global_pool", ["avg", "max", "avgmax", "catavgmax"]),
        ({}, "drop_rate", [0.0, 0.1, 0.2]),
    ],
    "densenet": [
        ({}, "layers", [[2, 1], [1, 2], [2, 1, 1]]),
        ({}, "growth", [4, 8]),
        ({}, "stem", ["large", "small", "deep"]),
        ({}, "activation", ["relu", "silu"]),
        ({}, "aa_layer", ["none", "blurpool", "avg"]),
        ({}, "stem_channels", [None, 4]),
        ({}, "bottleneck", [4, 0, 2]),
        ({}, "compression", [0.5, 1.0]),
        ({}, "dropout", [0.0, 0.1, 0.2]),
        ({}, "norm", ["batch", "group"]),
        ({}, "in_chans", [3, 1]),
        ({}, "num_classes", [3, 5, 0]),
        ({}, "global_pool", ["avg", "max", "avgmax", "catavgmax"]),
        ({}, "drop_rate", [0.0, 0.1, 0.2]),
    ],
    "convnext": [
        ({}, "layers", [[2, 1], [1, 2], [3, 1]]),
        ({}, "widths", [[8, 16], [8, 8], [4, 16]]),
        ({}, "kernel", [7, 3, 5]),
        ({}, "expansion", [4, 2]),
        ({}, "stem", ["large", "small"]),
        ({}, "join", ["layerscale", "add", "scale"]),
        ({}, "layer_scale", [1e-6, 0.1]),
        ({}, "dropout", [0.0, 0.1, 0.2]),
        ({}, "drop_path", [0.0, 0.1, 0.2]),
        ({"drop_path": 0.1}, "drop_mode", ["row", "batch"]),
        ({}, "activation", ["gelu", "relu", "silu"]),
        ({"layers": [1] * 4, "widths": [8] * 4}, "output_stride", [None, 8, 16]),
        ({}, "in_chans", [3, 1]),
        ({}, "num_classes", [3, 5, 0]),
        ({}, "global_pool", ["avg", "max", "avgmax"]),
    ],
    "inverted_residual": [
        ({}, "layers", [[2, 1], [1, 2], [3, 1]]),
        ({}, "widths", [[8, 16], [8, 8], [4, 16]]),
        ({}, "kernels", [[3, 5], [5, 3], [3, 3]]),
        ({}, "strides", [[1, 2], [2, 1], [1, 1]]),
        ({}, "expansions", [[1, 6], [6, 6], [2, 3]]),
        ({}, "stem", ["large", "small"]),
        ({}, "stem_channels", [16, 8]),
        ({}, "final_channels", [24, 32]),
        ({}, "activation", ["silu", "relu", "relu6", "hardswish"]),
        ({}, "attention", ["none", "se"]),
        ({"attention": "se"}, "attention_ratio", [0.25, 0.5]),
        ({}, "norm_eps", [1e-5, 1e-3]),
        ({}, "padding", ["torch", "same"]),
        ({}, "dropout", [0.0, 0.1, 0.2]),
        ({}, "drop_path", [0.0, 0.1, 0.2]),
        ({"drop_path": 0.1}, "drop_mode", ["row", "batch"]),
        ({}, "norm", ["batch", "group"]),
        (
            {**dict.fromkeys(("strides", "layers", "expansions"), [2] * 3), "kernels": [3] * 3, "widths": [8] * 3},
            "output_stride",
            [None, 8],
        ),
        ({}, "in_chans", [3, 1]),
        ({}, "num_classes", [3, 5, 0]),
        ({}, "global_pool", ["avg", "max", "avgmax", "catavgmax"]),
    ],
    "resmlp": [
        ({}, "layers", [2, 3]),
        ({}, "width", [8, 16]),
        ({}, "hidden", [2.0, 1.5]),
        ({"join": "concat"}, "growth", [32, 4]),
        ({}, "join", ["add", "concat", "gate", "scale", "layerscale", "none"]),
        ({}, "norm", ["batch", "layer", "none", "fixup"]),
        ({}, "dropout", [0.0, 0.1, 0.2]),
        ({}, "drop_path", [0.0, 0.1, 0.2]),
        ({"drop_path": 0.1}, "drop_mode", ["row", "batch"]),
        ({}, "in_features", [64, 10]),
        ({}, "num_classes", [3, 5, 0]),
        ({}, "drop_rate", [0.0, 0.1, 0.2]),
        ({}, "categories", [[], [4], [4, 5]]),
        ({"categories": [40]}, "embedding", [16, 4]),
        ({"in_features": 3}, "pieces", [[], [4, 0, 2], [8, 8, 8]]),
        ({}, "members", [1, 2, 4]),
    ],
    "resnet9": [
        ({}, "widths", [[8, 16, 16], [8, 8, 8]]),
        ({}, "layers", [[2, 0], [1, 1]]),
        ({}, "stem", ["small", "whitening"]),
        ({}, "activation", ["relu", "gelu", "silu"]),
        ({}, "in_chans", [3, 1]),
        ({}, "num_classes", [3, 5, 0]),
        ({}, "global_pool", ["avg", "max", "avgmax", "catavgmax"]),
        ({}, "drop_rate", [0.0, 0.1, 0.2]),
    ],
}
ROWS = {
    "resnet": ("resnet18", {"layers": [2, 1], "widths": [8, 16]}),
    "densenet": ("densenet121", {"layers": [2, 1], "growth": 4}),
    "convnext": ("convnext_atto", {"layers": [2, 1], "widths": [8, 16]}),
    "inverted_residual": (
        "efficientnet_b0",
        {
            **{"layers": [2, 1], "widths": [8, 16], "kernels": [3, 5], "strides": [1, 2], "expansions": [1, 6]},
            **{"stem_channels": 16, "final_channels": 24},
        },
    ),
    "resmlp": ("resmlp", {"layers": 2, "width": 8}),
    "resnet9": ("resnet9", {"widths": [8, 16, 16], "layers": [2, 0]}),
}


def test_every_registered_name_is_one_of_the_networks_that_are_tested():
    assert sorted(name for names in kinds().values() for name in names) == sorted(registry.names())


@pytest.mark.parametrize("name", registry.names())
def test_the_state_of_every_network_is_the_golden_one(name):
    with torch.device("meta"):
        network = registry.build(name)[0]
    assert name in GOLDEN, f'add "{name}": {json.dumps(contracts.fingerprint(network))} to tests/golden_plans.json'
    contracts.check_fingerprint(network, GOLDEN[name])


def test_parameters_are_counted_without_building_all_of_a_network():
    assert {name: registry.count_parameters(registry.plan_of(name)) for name in GOLDEN} == {
        n: v[0] for n, v in GOLDEN.items()
    }


def in_full():
    """The first name of each family, block, stem and number of stages: all that a cut network does not show."""
    found = {}
    for name in registry.names():
        plan = registry.plan_of(name)
        stages = len(plan["layers"]) if isinstance(plan["layers"], list) else 1
        found.setdefault((plan["family"], str(plan.get("block")), plan.get("stem"), stages), name)
    return list(found.values())


@pytest.mark.parametrize("name", in_full())
def test_every_stage_of_a_whole_network_fits_the_next(name):
    with torch.device("meta"):
        network, plan = registry.build(name)
        x = torch.empty(2, plan["in_features"]) if "in_features" in plan else torch.empty(2, plan["in_chans"], 64, 64)
    assert network.eval()(x).shape == (2, plan["num_classes"])


def test_the_golden_file_has_no_line_too_many():
    assert list(GOLDEN) == registry.names()


DOCS = Path(__file__).parent.parent / "docs"
NAMES_ON_PAGE = re.compile(
    r"`((?:x|wide_|se|eca)?res(?:net|next)\w*\d\w*|densenet\w+|\w*net_(?:b|lite)\d|mobilenet\w+|convnext_\w+)`"
)


def test_the_table_of_models_has_every_network_with_its_count():
    page = runpy.run_path(str(DOCS / "scripts" / "model_page.py"))["page"]()
    counts = {name: int(count.replace(",", "")) for name, count in re.findall(r"`(\w+)` \| ([\d,]+) \|", page)}
    assert counts == {name: values[0] for name, values in GOLDEN.items()}


def test_the_page_about_architectures_names_only_networks_that_exist():
    named = set(NAMES_ON_PAGE.findall((DOCS / "reference" / "architectures.md").read_text(encoding="utf-8")))
    assert named <= set(GOLDEN) and len(named) > 45


@pytest.mark.parametrize("name", kinds())
@pytest.mark.parametrize("check", COMPUTED)
def test_every_network_computes_as_agreed(name, check):
    contracts.CHECKERS[check](settled(name), random_images())


@pytest.mark.parametrize("name", kinds())
@pytest.mark.parametrize("check", FRESH)
def test_every_fresh_network_can_learn(name, check):
    contracts.CHECKERS[check](shrunken(name), random_images(6))


@pytest.mark.parametrize("name", kinds())
def test_every_network_comes_back_from_its_plan_and_from_its_file(name, tmp_path):
    contracts.check_plan(shrunken(name))
    contracts.check_saving(settled(name), random_images(), tmp_path)


@pytest.mark.parametrize("name", covering())
def test_every_network_is_exported_and_compiled(name):
    contracts.check_export(settled(name), random_images())
    contracts.check_compile(settled(name), random_images())


@pytest.mark.parametrize(
    "family, needed, option, values",
    [pytest.param(f, *row, id=f"{f}-{row[1]}") for f, rows in OPTIONS.items() for row in rows],
)
def test_every_option_changes_the_plan_and_the_network(family, needed, option, values):
    name, small = ROWS[family]
    rest = {k: v for k, v in {**small, "num_classes": 3, **needed}.items() if k != option}
    contracts.check_option(registry.build, name, rest, option, values)


def test_no_option_is_left_out():
    told = {family: {option for _, option, _ in rows} for family, rows in OPTIONS.items()}
    told["resnet"].add("zero_init_last")  # which changes values alone: see test_resnet_options
    told["convnext"].add("head_init_scale")  # which changes values alone: see test_timm_options
    assert told == {f: set(v.plan.options()) for f, v in registry.FAMILIES.items()}


def test_no_contract_is_left_out():
    said = Path(__file__).read_text()
    assert [name for name in contracts.CHECKERS if name not in said] == []
