"""The head of every family: global pools, networks without a classifier, dropout before the head."""

import numpy as np
import pytest
import torch
from small_networks import SMALL, images, small
from torch import nn

import skipway as sw
from skipway.errors import InputError
from skipway.models import registry
from skipway.models.head import Scaled, classifier, pooling, replace_head
from skipway.models.network import build_meta_network
from skipway.nn.chain import Chain

BY_HAND = {
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "avgmax": lambda x: 0.5 * (x.mean((2, 3)) + x.amax((2, 3))),
    "catavgmax": lambda x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1),
    "none": lambda x: x,
}


def feature_map(network, x):
    """Return the output of the layers before the pool."""
    for name, layer in network.named_children():
        if name == "pool":
            return x
        x = layer(x)
    raise AssertionError("no pool")


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_pool_equals_its_formula(kind):
    x = images(5)
    torch.testing.assert_close(Chain(**pooling(kind))(x), BY_HAND[kind](x))


@pytest.mark.parametrize("kind", BY_HAND)
@pytest.mark.parametrize("name", [name for name in SMALL if name != "convnext_atto"])
def test_without_a_classifier_a_network_returns_its_pooled_map(name, kind):
    network, x = small(name, num_classes=0, global_pool=kind).eval(), images()
    torch.testing.assert_close(network(x), BY_HAND[kind](feature_map(network, x)))
    assert isinstance(network.head, nn.Identity)
    assert "scale" not in dict(network.named_children())


@pytest.mark.parametrize("kind", ["avg", "max", "avgmax", "none"])
def test_a_convnext_normalizes_after_its_pool(kind):
    network, x = small("convnext_atto", num_classes=0, global_pool=kind).eval(), images()
    pooled = BY_HAND[kind](feature_map(network, x))
    by_hand = (pooled - pooled.mean(1, keepdim=True)) / (pooled.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(network(x), by_hand)


@pytest.mark.parametrize("name", SMALL)
def test_the_classifier_is_applied_to_the_pooled_features(name):
    whole, headless = small(name, num_classes=5).eval(), small(name, num_classes=0).eval()
    x, scale = images(), 1 / 9 if name == "resnet9" else 1
    state = {key: value for key, value in whole.state_dict().items() if not key.startswith("head.")}
    headless.load_state_dict(state)
    torch.testing.assert_close(whole(x), whole.head(headless(x)) * scale)


def test_a_classifier_after_both_pools_has_twice_the_features():
    network = small("resnet18", num_classes=5, global_pool="catavgmax")
    assert network.head.in_features == 16
    assert network(images()).shape == (2, 5)


@pytest.mark.parametrize(("word", "name"), [("", "none"), ("fast", "avg"), ("fastcatavgmax", "catavgmax")])
def test_the_words_of_timm_for_a_pool_are_read(word, name):
    assert registry.plan_of("resnet18", num_classes=0, global_pool=word)["global_pool"] == name


@pytest.mark.parametrize("name", [*SMALL, "resmlp"])
def test_the_drop_rate_puts_dropout_before_the_head(name):
    option = "dropout" if registry.plan_of(name)["family"] in ("convnext", "inverted_residual") else "drop_rate"
    network = sw.create_model(name, num_classes=5, **SMALL.get(name, {}), **{option: 0.25})
    names = list(dict(network.named_children()))
    assert names.index("dropout") + 1 == names.index("head")
    assert network.dropout.p == 0.25
    assert "dropout" not in dict(sw.create_model(name, **SMALL.get(name, {})).named_children())


def test_a_table_network_without_a_classifier_returns_its_features():
    network = sw.create_model("resmlp", num_classes=0, in_features=6, width=8, layers=1).eval()
    assert network(torch.randn(3, 6)).shape == (3, 8)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("resnet18", {"global_pool": "none"}, r'resnet with global_pool "none": expected num_classes=0.*got 1000'),
        ("resnet18", {"global_pool": "avgmx"}, r"unknown global_pool 'avgmx' \(did you mean"),
        ("convnext_atto", {"global_pool": "catavgmax"}, "convnext: unknown global_pool 'catavgmax'"),
        ("resmlp", {"global_pool": "avg"}, "resmlp: unknown option 'global_pool'"),
        ("resnet18", {"drop_rate": 1.0}, "resnet: expected drop_rate of at least 0 and below 1, got 1.0"),
        ("resnet18", {"drop_rate": True}, "resnet: expected drop_rate of at least 0 and below 1, got True"),
        ("resnet18", {"num_classes": True}, r"for num_classes, got True \(did you mean pretrained=True\?\)"),
        ("resnet18", {"num_classes": -1}, "expected integers of at least 0 for num_classes, got -1"),
        ("resnet18", {"num_classes": 10.0}, "expected integers of at least 0 for num_classes, got 10.0"),
        ("resnet18", {"in_chans": True}, "expected integers of at least 1 for in_chans, got True"),
        ("resnet18", {"layers": [True, 1, 1, 1]}, r"for layers, got \[True, 1, 1, 1\]"),
        ("densenet121", {"growth": True}, "for growth, got True"),
        ("convnext_atto", {"layer_scale": True}, "expected layer_scale above 0 and up to 1, got True"),
        ("densenet121", {"compression": True}, "expected compression above 0 and up to 1, got True"),
        ("resmlp", {"hidden": True}, "expected hidden above 0 and up to 64, got True"),
        ("resnet38", {}, "unknown architecture 'resnet38'"),
        ("revnet38", {"reversible": 1}, "resnet: expected True or False for reversible, got 1"),
    ],
)
def test_values_that_no_head_or_count_can_have_are_refused_in_one_line(name, options, text):
    with pytest.raises(InputError, match=text) as refused:
        registry.plan_of(name, **options)
    assert "\n" not in str(refused.value)


def test_counts_of_numpy_are_counts():
    plan = registry.plan_of("resnet18", num_classes=np.int64(7), layers=np.array([1, 1]), widths=[4, 8])
    assert (plan["num_classes"], plan["layers"]) == (7, [1, 1])
    assert type(plan["num_classes"]) is int
    assert registry.plan_of("resnet18", drop_rate=np.float32(0.5))["drop_rate"] == 0.5


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("num_classes", "kind"), [(3, "max"), (0, "avg"), (0, "none")])
def test_replacing_a_head_keeps_all_other_weights(name, num_classes, kind):
    network, x = small(name, num_classes=5).double().eval(), images().double()
    weights = dict(network.named_parameters())
    plan = {**network.plan, "num_classes": num_classes, "global_pool": kind}
    replace_head(network, build_meta_network(plan))
    fresh = sw.models.network.build_network(plan).double().eval()
    assert [n for n, _ in network.named_children()] == [n for n, _ in fresh.named_children()]
    kept = {n: p for n, p in network.named_parameters() if not n.startswith("head.")}
    assert kept and all(parameter is weights[n] for n, parameter in kept.items())
    fresh.load_state_dict(network.state_dict())
    torch.testing.assert_close(network(x), fresh(x))
    replace_head(network, build_meta_network({**plan, "num_classes": 5, "global_pool": "avg"}))
    assert network(x).shape == (2, 5)


def test_a_new_head_is_fresh_even_for_the_same_number_of_classes():
    network = Chain(head=nn.Linear(3, 2))
    before = network.head.weight
    replace_head(network, Chain(**classifier(3, 2)))
    assert not torch.equal(network.head.weight, before)


def test_the_fixed_factor_is_in_the_repr():
    assert repr(Scaled(0.5)) == "Scaled(0.5)"
