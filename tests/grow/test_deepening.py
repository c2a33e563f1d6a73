"""Growing: the same outputs, to the last bit where blocks begin as identities, and optimisers that go on."""

import copy

import pytest
import torch
from shrunken import settle
from torch import nn

import skipway as sw
from skipway.errors import InputError
from skipway.grow.deepening import deepen, grow_deeper, grow_to, grow_wider, widen
from skipway.models.network import build_meta_network
from skipway.nn.joins import Gate, Scale, append, concat
from skipway.training.optimizers import make_optimizer

SMALL = {"layers": [2, 1, 2], "widths": [4, 8, 12]}
NETWORKS = {  # what can be made deeper by identities
    "v1": ("resnet20", SMALL | {"shortcut": "auto"}),
    "option A": ("resnet20", SMALL | {"shortcut": "pad"}),
    "v2": ("resnetv2_18", {"layers": [2, 1], "widths": [8, 16]}),
    "v2 bottleneck": ("resnetv2_50", {"layers": [1, 2], "widths": [4, 8]}),
    "D": ("resnet50d", {"layers": [1, 2], "widths": [4, 8]}),
    "one block a stage": ("resnet10", {"layers": [1, 1], "widths": [8, 16]}),
    "group norm": ("resnet20", SMALL | {"norm": "group", "widths": [4, 8, 16]}),
    "no norm": ("resnet20", SMALL | {"norm": "none", "join": "scale"}),
    "fixup": ("resnet20", SMALL | {"norm": "fixup"}),
    "layerscale": ("resnet20", SMALL | {"join": "layerscale"}),
    "SE": ("resnet20", SMALL | {"attention": "se"}),
    "ECA": ("resnet20", SMALL | {"attention": "eca"}),
    "groups": ("resnext50_32x4d", {"layers": [1, 2], "widths": [16, 32], "cardinality": 2}),
    "drop path": ("resnet20", SMALL | {"drop_path": 0.3}),
    "inverted residual": (
        "efficientnet_b0",
        {
            **{"layers": [1, 2], "widths": [8, 12], "kernels": [3, 5], "strides": [1, 2], "expansions": [1, 6]},
            **{"stem_channels": 8, "final_channels": 16},
        },
    ),
    "convnext": ("convnext_atto", {"layers": [1, 2], "widths": [8, 16]}),
    "reversible": ("revnet38", {"layers": [2, 2], "widths": [8, 16]}),
    "reversible, one block": ("revnet38", {"layers": [1, 1], "widths": [8, 16]}),
    "mlp": ("resmlp", {"layers": 2, "width": 8, "in_features": 6}),
    "mlp with layer norm": ("resmlp", {"layers": 2, "width": 8, "in_features": 6, "norm": "layer"}),
    "mlp with rezero": ("resmlp", {"layers": 2, "width": 8, "in_features": 6, "join": "scale", "norm": "none"}),
    "mlp with categories": ("resmlp", {"layers": 2, "width": 8, "in_features": 6, "categories": [4, 5]}),
}
APPENDING = {
    "dense": ("densenet121", {"layers": [2, 1, 2], "growth": 4}),
    "plain dense": ("densenet40_12", {"layers": [2, 2], "growth": 3}),
    "dense mlp": ("resmlp", {"layers": 2, "width": 8, "growth": 4, "in_features": 6, "join": "concat"}),
}


def lively(name, options):
    """A small network none of whose weights or statistics are those that it began with."""
    torch.manual_seed(1)
    network = sw.create_model(name, **options)
    settle(network)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p) * (p.abs().mean() + 0.1))
    return network.eval()


def inputs(network, count=4, side=16):
    plan = network.plan
    shape = (plan["in_features"],) if "in_features" in plan else (plan["in_chans"], side, side)
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(3))


def more(network):
    return {
        stage: 2 for stage in ("stage1", "stage2")[: len(network.plan["layers"]) if "widths" in network.plan else 1]
    }


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_deeper_network_gives_the_same_outputs_to_the_last_bit(kind, spread):
    network = lively(*NETWORKS[kind])
    before = copy.deepcopy(network.state_dict())
    x = inputs(network)
    grown = deepen(network, blocks=more(network), spread=spread)
    assert grown(x).equal(network(x))
    assert all(v.equal(network.state_dict()[k]) for k, v in before.items()), "the network itself has changed"
    assert len(list(sw.named_skips(grown))) > len(list(sw.named_skips(network))) or "revnet" in network.plan["name"]
    assert grown.plan["layers"] != network.plan["layers"] and grown.spec == network.spec
    again = deepen(network, blocks=more(network), spread=spread)
    assert all(v.equal(again.state_dict()[k]) for k, v in grown.state_dict().items())


@pytest.mark.parametrize("kind", [k for k in NETWORKS if k not in ("drop path", "mlp with categories")])
def test_in_training_too_and_old_norms_see_what_they_saw(kind):
    network = lively(*NETWORKS[kind]).train()
    growth = grow_deeper(network, blocks=more(network))
    x = inputs(network, 6)
    assert growth.network.training
    assert growth.network(x).equal(network(x))
    old, new = dict(network.named_buffers()), dict(growth.network.named_buffers())
    assert all(new[name].equal(value) for name, value in old.items() if "num_batches" not in name or name in new)


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_begins_at_zero_has_a_gradient_at_once_and_all_else_from_the_next_step_on(kind):
    network = lively(*NETWORKS[kind]).train()
    for _, skip in sw.named_skips(network):
        skip.drop_path = 0.0
    growth = grow_deeper(network, blocks=more(network))
    grown, x = growth.network, inputs(network, 8)
    for _, skip in sw.named_skips(grown):
        skip.drop_path = 0.0
    optimizer = torch.optim.SGD(grown.parameters(), lr=0.05)
    new = {name: p for name, p in grown.named_parameters() if name not in growth.origins}
    zero = {name for name, p in new.items() if not bool(p.any())}
    learns = []
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(grown(x), torch.arange(8)).backward()
        learns.append({name for name, p in new.items() if p.grad is not None and bool(p.grad.any())})
        optimizer.step()
    weights = {name for name, p in new.items() if p.dim() != 1 or "norm" in name or "scale" in name}
    assert learns[0] and learns[0] <= zero, "more than what gives the zeros has a gradient at once"
    assert learns[1] >= weights, "some of the new weights do not learn from the next step on"


def test_growing_goes_by_name_and_keeps_what_was_told_of_the_network():
    network = lively("resnet20", {"widths": [4, 8, 8], "num_classes": 7, "in_chans": 1})
    grown = deepen(network, to="resnet56")
    assert grown.plan == network.plan | {"name": "resnet56", "layers": [9, 9, 9]}
    assert grown(inputs(network)).equal(network(inputs(network)))
    chances = [
        skip.drop_path
        for _, skip in sw.named_skips(deepen(lively("resnet20", SMALL | {"drop_path": 0.3}), blocks={1: 2}))
    ]
    assert chances == sorted(chances) and chances[-1] == 0.3


@pytest.mark.parametrize("kind", APPENDING)
def test_layers_that_append_channels_are_not_weighed_at_first(kind):
    network = lively(*APPENDING[kind])
    stages = {"stage1": 2} if "width" in network.plan else {"stage1": 2, 2: 1}
    growth = grow_deeper(network, blocks=stages)
    x = inputs(network, side=32)
    with torch.no_grad():
        expected, found = (copy.deepcopy(n).double()(x.double()) for n in (network, growth.network))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    assert growth.difference <= 1e-5 * growth.largest
    grown = growth.network.train()
    grown(x).square().mean().backward()
    fed = [p for name, p in grown.named_parameters() if "head" in name and p.dim() == 2]
    assert all(bool(p.grad.abs().sum(0).min() > 0) for p in fed), "what reads the new channels has no gradient"


@pytest.mark.parametrize("kind", ["v1", "D", "reversible, one block", "dense"])
def test_a_grown_network_is_saved_and_loaded(kind, tmp_path):
    name, options = (NETWORKS | APPENDING)[kind]
    network = lively(name, options | {"num_classes": 3})
    network.spec = sw.Spec(3, 16, 16, (0.5,) * 3, (0.2,) * 3, ("ant", "bee", "cow"))
    grown = deepen(widen(network, 2), blocks={"stage1": 1})
    grown.save(tmp_path / "grown.safetensors")
    loaded = sw.load(tmp_path / "grown.safetensors")
    assert loaded.plan == grown.plan and loaded.spec == network.spec
    assert loaded(inputs(network, side=32)).equal(grown(inputs(network, side=32)))


# Trees of anybody's own


def tree():
    torch.manual_seed(2)
    return sw.Chain(
        stem=nn.Conv2d(3, 6, 3, padding=1),
        act=nn.ReLU(),
        trunk=sw.Chain(
            sw.Skip([nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)], after=nn.ReLU()),
            sw.Skip([nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)], "project", after=nn.ReLU()),
            sw.Skip([nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1)], after=nn.ReLU()),
            nn.AdaptiveAvgPool2d(2),
        ),
        flatten=nn.Flatten(),
        head=sw.Dense(None, 5),
    )


def filled(network, shape):
    sw.output_shape(network, shape)
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.mark.parametrize("spread", [False, True])
def test_a_tree_of_ones_own_grows_by_blocks_like_those_it_has(spread):
    network, x = filled(tree(), (2, 3, 9, 9)), torch.randn(4, 3, 9, 9)
    growth = grow_deeper(network, blocks={"trunk": 3}, probe=x, spread=spread)
    assert growth.difference == 0 and growth.network(x).equal(network(x))
    assert len(list(sw.named_skips(growth.network))) == 6
    kinds = [type(layer).__name__ for layer in growth.network.trunk]
    assert kinds == ["Skip"] * 6 + ["AdaptiveAvgPool2d"]
    assert isinstance(growth.network.trunk[3 if spread else 4].body[0], nn.Conv2d)


def test_a_tree_of_ones_own_with_dense_joins_grows_too():
    torch.manual_seed(0)
    network = sw.Chain(
        nn.Linear(4, 6),
        sw.Chain(*(sw.Skip([nn.ReLU(), nn.Linear(6 + 3 * i, 3)], join=append) for i in range(2))),
        nn.BatchNorm1d(12),
        nn.Linear(12, 5),
        sw.Skip([nn.Linear(5, 2), nn.ReLU()], join=concat),
        nn.Linear(7, 3),
    ).eval()
    x = torch.randn(8, 4)
    grown = deepen(network, blocks={"1": 2, "": 1}, probe=x)
    torch.testing.assert_close(grown(x), network(x), rtol=1e-5, atol=1e-6)
    assert grown[2].num_features == 18 and grown[3].in_features == 18 and len(grown) == 7


@pytest.mark.parametrize(
    "network, options, words",
    [
        (("resnet20", SMALL), {}, "expected an architecture or blocks"),
        (("resnet20", SMALL), {"to": "resnet56", "blocks": {1: 1}}, "expected an architecture or blocks"),
        (("resnet20", SMALL), {"blocks": {}}, "expected stages and numbers, got none"),
        (("resnet20", SMALL), {"blocks": {"stage9": 1}}, "expected a stage among .*, got 'stage9'"),
        (
            ("resnet20", SMALL),
            {"blocks": {"stage1": 1, 1: 2}},
            "expected each stage once, got 'stage1' and 1",
        ),
        (("resnet20", SMALL), {"blocks": {1: 0}}, "expected a positive integer for 1, got 0"),
        (("resnet20", SMALL), {"to": "resnet50"}, "cannot grow to resnet50"),
        (("resnet20", {}), {"to": "resnet20"}, "expected more blocks per stage than"),
        (("resnet20", SMALL), {"to": "resnet57"}, "unknown architecture 'resnet57'"),
        (("resnet20", SMALL | {"shortcut": "none"}), {"blocks": {1: 1}}, "has no shortcut. Use a network with"),
        (("resnet20", SMALL | {"shortcut": "project"}), {"blocks": {1: 1}}, "its shortcut is not the identity"),
        (("resnet20", SMALL | {"join": "gate"}), {"blocks": {1: 1}}, "its join is never the identity"),
        (("resnet9", {}), {"blocks": {1: 1}}, "cannot be deepened: its bodies end"),
        (APPENDING["dense"], {"blocks": {1: 1}, "spread": True}, "expected blocks without appended channels"),
    ],
)
def test_what_cannot_grow_deeper_is_refused_with_the_reason(network, options, words):
    with pytest.raises(InputError, match=words):
        deepen(lively(*network), **options)


def ends_with(*layers, after=None, before=()):
    return sw.Chain(nn.Linear(4, 4), *before, sw.Chain(sw.Skip(list(layers), after=after)))


@pytest.mark.parametrize(
    "network, path, words",
    [
        (ends_with(nn.Linear(4, 4), after=nn.GELU()), "1", "after the join of 1.1 changes its input"),
        (
            ends_with(nn.Linear(4, 4), nn.ReLU()),
            "1",
            "at 1.1 as the identity: its body ends with ReLU at 1.1.body.1",
        ),
        (ends_with(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)), "1", "its body ends with BatchNorm1d"),
        (ends_with(nn.Linear(4, 4)), "0", "expected the path of a Chain, got '0'"),
        (ends_with(nn.Linear(4, 4)), "", "expected a Skip with an identity shortcut or a Coupling"),
        (ends_with(nn.Linear(4, 4)), "2", "expected the path of a Chain, got '2'"),
        (sw.Chain(nn.Linear(4, 4), sw.Skip(nn.Linear(4, 4), join=lambda a, b: a + b)), "", "its join is never"),
    ],
)
def test_a_tree_whose_blocks_cannot_begin_as_identities_is_refused(network, path, words):
    with pytest.raises(InputError, match=words):
        deepen(network, blocks={path: 1}, probe=torch.randn(16, 4))


def test_behind_a_relu_the_same_blocks_are_identities():
    network = ends_with(nn.Linear(4, 4), after=nn.ReLU(), before=[nn.ReLU()])
    x = torch.randn(16, 4)
    assert deepen(network, blocks={"2": 3}, probe=x)(x).equal(network(x))


class Odd(nn.Module):
    """Weights of its own that nothing draws anew, and an output that does not follow its last weights."""

    def __init__(self, more=0.0):
        super().__init__()
        self.weight, self.more = nn.Parameter(torch.ones(4)), more

    def forward(self, x):
        return x * self.weight + self.more


def test_layers_that_cannot_be_drawn_anew_or_that_do_more_than_they_should_are_refused():
    x = torch.randn(16, 4)
    with pytest.raises(InputError, match=r"cannot repeat the block at 1.0: Odd at 1.0.body.0 has no reset_parameters"):
        deepen(ends_with(Odd(), nn.Linear(4, 4)), blocks={"1": 1}, probe=x)
    fixed = nn.Linear(4, 4)
    fixed.weight.requires_grad_(False)
    with pytest.raises(InputError, match="is frozen and would stay at zero"):
        deepen(ends_with(fixed), blocks={"1": 1}, probe=x)

    class Late(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + 1.0

    with pytest.raises(InputError, match="is not an identity. Its body must return zeros"):
        deepen(sw.Chain(sw.Skip(Late(nn.Linear(4, 4)))), blocks={"": 1}, probe=x)


def test_networks_that_tell_too_little_are_refused():
    plain = ends_with(nn.Linear(4, 4))
    with pytest.raises(InputError, match="for a network without a plan, got none. Pass probe"):
        deepen(plain, blocks={"1": 1})
    with pytest.raises(InputError, match="expected a network with a plan for to="):
        deepen(plain, to="resnet56", probe=torch.randn(2, 4))
    changed = lively("resnet20", SMALL)
    changed.head = nn.Linear(12, 4)
    with pytest.raises(InputError, match="matches its plan, got one that was modified at head.weight"):
        deepen(changed, blocks={1: 1})
    with pytest.warns(UserWarning, match="share parameters"):
        layer = nn.Linear(4, 4)
        shared = sw.Chain(layer, layer, sw.Skip(nn.Linear(4, 4)))
    with pytest.raises(InputError, match="a layer that is used more than once, with the parameter 0.weight = 1.weight"):
        deepen(shared, blocks={"": 1}, probe=torch.randn(2, 4))
    broken = lively("resnet20", SMALL)
    with torch.no_grad():
        broken.head.bias[0] = torch.nan
    with pytest.raises(InputError, match="expected finite outputs on the probe"):
        deepen(broken, blocks={1: 1})


# Wider


WIDE = (
    NETWORKS
    | APPENDING
    | {
        "gate": ("resnet20", SMALL | {"join": "gate"}),
        "plain": ("resnet20", SMALL | {"shortcut": "none"}),
        "projections": ("resnet20", SMALL | {"shortcut": "project"}),
        "whitening": ("resnet9m", {"widths": [8, 8, 12], "layers": [1, 1]}),
        "resnet9": ("resnet9", {"widths": [8, 8, 12], "layers": [1, 0]}),
        "mlp with gates": ("resmlp", {"layers": 2, "width": 8, "in_features": 6, "join": "gate"}),
        "deep stem": ("resnet50t", {"layers": [1, 1], "widths": [16, 32]}),
        "same padding": ("resnet18", {"layers": [1, 1], "widths": [8, 16], "padding": "same"}),
    }
)
WHOLE = ("group norm", "mlp with layer norm", "convnext")  # whose groups and means bear whole factors alone


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("kind", [k for k in WIDE if k != "ECA"])
def test_a_wider_network_gives_the_same_outputs(kind, seed):
    network = lively(*WIDE[kind])
    x = inputs(network, side=32)
    for factor in (2,) if kind in WHOLE else (2, 1.5):
        growth = grow_wider(network, factor, seed=seed)
        wide, old = copy.deepcopy(growth.network).double(), copy.deepcopy(network).double()
        expected = old(x.double()).detach()
        torch.testing.assert_close(wide(x.double()).detach(), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
        assert growth.difference <= 1e-5 * growth.largest
        counts = [sum(p.numel() for p in n.parameters()) for n in (network, growth.network)]
        assert counts[1] > 1.3 * counts[0]
        assert build_meta_network(growth.network.plan).state_dict().keys() == growth.network.state_dict().keys()
        if kind == "drop path":
            continue
        with torch.no_grad():  # norms see copies of what they saw
            torch.testing.assert_close(
                wide.train()(x.double()), old.train()(x.double()), rtol=0, atol=1e-4 * float(expected.abs().max())
            )


def test_channels_that_repeat_one_learn_different_things_unless_that_is_not_wanted():
    network = lively("resnet20", SMALL)

    def twins(seed):
        wide = widen(network, 2, seed=seed)
        wide(inputs(network)).square().sum().backward()
        gradient = wide.stage1[0].body.conv1.weight.grad
        return (gradient[0::2] - gradient[1::2]).abs().amax() / gradient.abs().amax()

    assert twins(None) < 1e-4 and twins(0) > 0.05


def test_widths_are_told_by_the_plan_or_by_a_factor():
    network = lively(*NETWORKS["v1"])
    assert widen(network, widths=[6, 8, 20]).plan["widths"] == [6, 8, 20]
    assert widen(network, 1.5).plan["widths"] == [6, 12, 18]
    mlp = lively(*NETWORKS["mlp"])
    assert widen(mlp, widths=20).plan["width"] == 20
    x = inputs(network)
    torch.testing.assert_close(widen(network, widths=(5, 9, 12))(x), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "kind, options, words",
    [
        ("v1", {}, "expected a factor such as 2, or widths"),
        ("v1", {"factor": 2, "widths": [8, 8, 8]}, "expected a factor such as 2, or widths"),
        ("v1", {"factor": 0.5}, "expected a factor above 1"),
        ("v1", {"widths": [4, 8, 12]}, "expected widths larger than"),
        ("v1", {"widths": [8, 16]}, "expected one width for each stage, got"),
        ("v1", {"widths": [8, 4, 16]}, "expected widths larger than"),
        ("option A", {"widths": [7, 8, 12]}, "leave too few zeros around"),
        ("group norm", {"factor": 1.5}, "its groups would average other channels"),
        ("mlp with layer norm", {"factor": 1.5}, "its mean would weight channels differently"),
        (
            "ECA",
            {"factor": 2},
            "at stage1.0.body.attention: EfficientChannelAttention weighs each channel",
        ),
    ],
)
def test_what_cannot_be_widened_is_refused_with_the_reason(kind, options, words):
    with pytest.raises(InputError, match=words):
        widen(lively(*WIDE[kind]), **options)


def own_wide():
    torch.manual_seed(4)
    return sw.Chain(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        torch.relu,
        sw.Skip([nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.ReLU()], after=nn.ReLU()),
        sw.Parallel("concat", nn.Conv2d(6, 4, 1), nn.Identity(), nn.AvgPool2d(3, 1, 1)),
        sw.Parallel("add", nn.Conv2d(16, 16, 1), nn.Identity()),
        sw.Skip(nn.Conv2d(16, 5, 1), join="concat"),
        sw.Skip([nn.Conv2d(21, 8, 1)], "project", join=Scale("each", 0.3)),
        sw.Skip(nn.Conv2d(8, 8, 3, padding=1), join=Gate(8)),
        nn.MaxPool2d(2),
        nn.Flatten(),
        sw.Dense(None, 12, torch.tanh),
        nn.LayerNorm(12),
        lambda x: x * 2,
        nn.Linear(12, 7),
        nn.Linear(7, 3),
        nn.Softmax(1),
    )


def test_a_tree_of_ones_own_is_widened_as_far_as_its_layers_are_known():
    network, x = filled(own_wide(), (2, 3, 8, 8)), torch.randn(4, 3, 8, 8)
    wide = widen(network, 2, probe=x)
    torch.testing.assert_close(wide(x), network(x), rtol=0, atol=1e-5)
    assert wide[0].out_channels == 12 and wide[3].body[0].groups == 2 and wide[3].body[0].in_channels == 12
    assert wide[11].linear.out_features == 12, "what an unknown function is given stays"
    assert wide[14].out_features == 14 and wide[15].out_features == 3
    with pytest.raises(InputError, match="cannot widen the layer at .*: its .* groups would mix"):
        widen(network, 1.5, probe=x)


def test_a_network_in_which_nothing_is_known_is_refused():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x)

    with pytest.raises(InputError, match="The layer at the top blocks its neighbors: Own runs its layers"):
        widen(Own(), 2, probe=torch.randn(2, 4))
    with pytest.raises(InputError, match="expected a network with a plan for widths="):
        widen(tree(), widths=[3], probe=torch.randn(2, 3, 9, 9))


def test_what_is_told_of_a_layer_wrongly_is_found_on_the_probe(monkeypatch):
    network = lively("resnet20", SMALL)

    def all_ones(channels, outputs, generator):
        return torch.ones(outputs, len(channels.source))

    monkeypatch.setattr("skipway.grow.widening.copy_shares", all_ones)
    with pytest.raises(InputError, match="The layer at stage1.0.body.conv1 mixes channels in an unknown way"):
        widen(network, 2)


def test_what_leaves_a_block_for_good_cannot_be_widened_in_part():
    x = torch.randn(4, 6)
    network = sw.Chain(nn.Linear(6, 6), sw.Skip(nn.Identity(), join="concat"), nn.Softmax(1))
    with pytest.raises(InputError, match="The layer at 2 blocks its neighbors: Softmax computes"):
        widen(network, 2, probe=x)
    halves = sw.Chain(nn.Linear(6, 6), sw.Coupling(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Linear(6, 2))
    torch.testing.assert_close(widen(halves, 2, probe=x)(x), halves(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="halves of its channels would mix"):
        widen(halves, 1.5, probe=x)


def test_a_network_grows_wider_and_deeper_at_once():
    wide = lively("revnet38", {"in_chans": 1})
    growth = grow_to(wide, "revnet110")
    assert growth.network.plan["widths"] == sw.create_model("revnet110").plan["widths"]
    assert growth.network.plan["layers"] == sw.create_model("revnet110").plan["layers"]
    assert growth.difference <= 1e-5 * growth.largest
    x = inputs(wide)
    torch.testing.assert_close(growth.network(x), wide(x), rtol=0, atol=1e-4 * growth.largest)
    assert set(growth.origins.values()) and all(
        o.name in dict(wide.named_parameters()) for o in growth.origins.values()
    )


# Optimisers


def trained(kind, optimizer):
    network = lively(*NETWORKS[kind]).train()
    made = make_optimizer(
        network, optimizer, lr=0.05, momentum=0.9, weight_decay=0.01, bias_lr_mult=2.0, layer_decay=0.5
    )
    for _ in range(2):
        step(network, made)
    return network, made


def step(network, optimizer):
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(inputs(network, 6)), torch.arange(6)).backward()
    optimizer.step()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("kind", ["v1", "v2", "D", "mlp"])
def test_the_next_step_of_old_parameters_is_the_one_without_growth(kind, optimizer):
    network, made = trained(kind, optimizer)
    grown = deepen(network, blocks=more(network), optimizer=made)
    straight, other = trained(kind, optimizer)
    names = {id(p): name for name, p in grown.named_parameters()}
    assert {names[id(p)] for group in made.param_groups for p in group["params"]} == set(names.values())
    step(grown, made)
    step(straight, other)
    found = dict(grown.named_parameters())
    assert all(found[name].equal(p) for name, p in straight.named_parameters())
    step(grown, made)  # new parameters too
    assert all(p in made.state for p in grown.parameters())


def test_new_parameters_join_the_groups_of_those_they_are_like():
    network, made = trained("v1", "sgd")
    growth = grow_deeper(network, blocks={"stage2": 1})
    grown = deepen(network, blocks={"stage2": 1}, optimizer=made)
    factors = {id(p): (g["factor"], g["weight_decay"]) for g in made.param_groups for p in g["params"]}
    same = {
        "stage2.1.body.conv1.weight": "stage2.0.body.conv1.weight",
        "stage2.1.body.norm2.bias": "stage2.0.body.norm2.bias",
    }
    parameters = dict(grown.named_parameters())
    for new, old in same.items():
        assert new not in growth.origins and factors[id(parameters[new])] == factors[id(parameters[old])]


def test_a_widened_optimiser_goes_on_with_its_share_of_each_gradient():
    network, made = trained("v1", "sgd")
    buffers = {n: made.state[p]["momentum_buffer"].clone() for n, p in network.named_parameters()}
    wide = widen(network, 2, optimizer=made, seed=None)
    found = {n: made.state[p]["momentum_buffer"] for n, p in wide.named_parameters()}
    torch.testing.assert_close(found["stem.conv.weight"], buffers["stem.conv.weight"].repeat_interleave(2, 0) / 2)
    inner = buffers["stage1.0.body.conv2.weight"].repeat_interleave(2, 0).repeat_interleave(2, 1) / 2
    torch.testing.assert_close(found["stage1.0.body.conv2.weight"], inner)
    torch.testing.assert_close(found["head.weight"], buffers["head.weight"].repeat_interleave(2, 1))
    torch.testing.assert_close(
        found["stage2.0.body.norm1.weight"], buffers["stage2.0.body.norm1.weight"].repeat_interleave(2) / 2
    )
    step(wide, made)


def test_a_widened_adam_goes_on_with_the_squares_of_its_shares():
    network, made = trained("mlp", "adamw")
    before = {n: {k: v.clone() for k, v in made.state[p].items()} for n, p in network.named_parameters()}
    wide = widen(network, 2, optimizer=made, seed=None)
    after = {n: made.state[p] for n, p in wide.named_parameters()}
    old, new = before["stem.weight"], after["stem.weight"]
    torch.testing.assert_close(new["exp_avg"], old["exp_avg"].repeat_interleave(2, 0) / 2)
    torch.testing.assert_close(new["exp_avg_sq"], old["exp_avg_sq"].repeat_interleave(2, 0) / 4)
    assert new["step"] == old["step"]


def test_a_widened_rmsprop_keeps_its_momentum_of_steps_and_divides_its_squares():
    network = lively(*NETWORKS["mlp"]).train()
    made = torch.optim.RMSprop(network.parameters(), lr=0.01, momentum=0.9)
    step(network, made)
    old = {k: v.clone() for k, v in made.state[network.stem.weight].items()}
    wide = widen(network, 2, optimizer=made, seed=None)
    new = made.state[wide.stem.weight]
    torch.testing.assert_close(new["momentum_buffer"], old["momentum_buffer"].repeat_interleave(2, 0))
    torch.testing.assert_close(new["square_avg"], old["square_avg"].repeat_interleave(2, 0) / 4)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_fused_sgd_takes_its_next_step_with_the_new_parameters_too(momentum):
    network = lively("resnet20", SMALL).train()
    made = torch.optim.SGD(network.parameters(), lr=0.05, momentum=momentum, fused=True)
    step(network, made)
    grown = deepen(network, blocks={1: 1}, optimizer=made)
    before = grown.stage1[-1].body.norm2.weight.clone()
    step(grown, made)
    assert not grown.stage1[-1].body.norm2.weight.equal(before)


def test_the_gradients_of_a_wider_network_are_those_shares():
    network = lively("resnet20", SMALL)
    wide = widen(network, 2, seed=None)
    for one in (network, wide):
        one(inputs(network)).square().sum().backward()
    torch.testing.assert_close(
        wide.stage1[0].body.conv1.weight.grad,
        network.stage1[0].body.conv1.weight.grad.repeat_interleave(2, 0).repeat_interleave(2, 1) / 2,
        rtol=1e-3,
        atol=1e-4,
    )


def test_optimisers_that_are_not_of_the_network_or_keep_other_shapes_are_refused():
    network = lively("resnet20", SMALL)
    with pytest.raises(InputError, match="optimizer: expected parameters of this network, got none"):
        deepen(network, blocks={1: 1}, optimizer=torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0))
    factored = torch.optim.SGD(network.parameters(), lr=1.0)
    factored.state[network.head.weight]["rows"] = torch.ones(3)
    with pytest.raises(InputError, match="cannot widen the optimizer state 'rows'"):
        widen(network, 2, optimizer=factored)
    other = nn.Parameter(torch.ones(1))
    both = torch.optim.SGD([*network.parameters(), other], lr=1.0)
    grown = deepen(network, blocks={1: 1}, optimizer=both)
    held = both.param_groups[0]["params"]
    assert any(p is other for p in held) and len(held) == 1 + len(list(grown.parameters()))


# What once went wrong


def test_what_follows_a_join_or_a_dense_layer_is_widened_with_it():
    x = torch.randn(8, 4)
    for network in (
        sw.Chain(nn.Linear(4, 8), sw.Skip([nn.Linear(8, 8)], after=nn.LayerNorm(8)), nn.Linear(8, 3)),
        sw.Chain(
            nn.Linear(4, 8),
            sw.Skip(nn.Linear(8, 8), after=nn.Sequential(nn.BatchNorm1d(8), nn.ReLU())),
            nn.Linear(8, 3),
        ),
        sw.Chain(nn.Linear(4, 8), sw.Skip(nn.Linear(8, 4), join="concat", after=nn.BatchNorm1d(12)), nn.Linear(12, 3)),
        sw.Chain(sw.Dense(4, 8, nn.LayerNorm(8)), nn.Linear(8, 3)),
        sw.Chain(nn.Linear(4, 8), sw.Skip(nn.Linear(8, 8), after=nn.Linear(8, 6)), nn.Linear(6, 6), nn.Linear(6, 2)),
        sw.Chain(nn.Linear(4, 8), nn.MaxPool1d(2), nn.Linear(4, 6), nn.Linear(6, 3)),
    ):
        torch.testing.assert_close(widen(network.eval(), 2, probe=x)(x), network(x), rtol=1e-5, atol=1e-5)


def test_paths_are_those_before_any_block_was_inserted():
    def block(width):
        return sw.Skip([nn.Linear(width, width)])

    torch.manual_seed(0)
    network = sw.Chain(nn.Linear(4, 6), nn.ReLU(), block(6), sw.Chain(block(6)), sw.Chain(block(6)), nn.Linear(6, 3))
    grown = deepen(network, blocks={"": 1, "4": 1}, probe=torch.randn(8, 4))
    assert [len(layer) for layer in grown if isinstance(layer, sw.Chain)] == [1, 2]
    mixed = sw.Chain(nn.Linear(4, 6), block(6), sw.Chain(sw.Skip(nn.Linear(6, 3), join=append)), nn.Linear(9, 3))
    x = torch.randn(8, 4)
    for blocks in ({"2": 1, "": 1}, {"": 1, "2": 1}):
        torch.testing.assert_close(deepen(mixed, blocks=blocks, probe=x)(x), mixed(x), rtol=1e-5, atol=1e-6)


def test_bodies_that_append_without_weights_or_in_branches_grow_too():
    x = torch.randn(8, 4)
    for body in (nn.Tanh(), sw.Parallel("concat", nn.Linear(4, 2), nn.Linear(4, 3))):
        network = sw.Chain(sw.Chain(sw.Skip(body, join=append)), nn.Linear(8 if isinstance(body, nn.Tanh) else 9, 3))
        torch.testing.assert_close(deepen(network, blocks={"0": 1}, probe=x)(x), network(x), rtol=1e-5, atol=1e-6)


def test_the_wider_network_must_have_the_layers_of_the_old_one():
    for options, widths in (
        ({"stem_channels": 16}, [32, 64, 128]),
        ({"stem_channels": 32, "shortcut": "auto"}, [32, 64, 128]),
    ):
        with pytest.raises(InputError, match="which changes the layers at"):
            widen(sw.create_model("resnet20", **options), widths=widths)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_of_other_precisions_grow(dtype):
    network = lively(*NETWORKS["v1"]).to(dtype)
    x = inputs(network).to(dtype)
    assert deepen(network, blocks={1: 1})(x).equal(network(x))
    assert widen(network, 2).head.weight.dtype == dtype


def test_a_network_of_whole_numbers_grows():
    ids = torch.randint(0, 9, (4, 5))
    network = sw.Chain(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(30, 8), sw.Skip(nn.Linear(8, 8)), nn.Linear(8, 3))
    torch.testing.assert_close(widen(network, 2, probe=ids)(ids), network(ids), rtol=1e-5, atol=1e-6)
    assert deepen(network, blocks={"": 1}, probe=ids)(ids).equal(network(ids))


def test_an_optimizer_made_anew_takes_the_state_of_one_that_grew():
    network, made = trained("v1", "adamw")
    plain = torch.optim.SGD([{"params": [(n, p) for n, p in network.named_parameters()]}], lr=0.1, momentum=0.9)
    step(network, plain)
    grown = deepen(network, blocks={1: 1, 2: 2}, optimizer=plain)
    assert plain.param_groups[0]["param_names"] == [n for n, _ in grown.named_parameters()]
    step(grown, plain)
    again = torch.optim.SGD(grown.parameters(), lr=0.1, momentum=0.9)
    again.load_state_dict(plain.state_dict())
    for p in grown.parameters():
        assert again.state[p]["momentum_buffer"].equal(plain.state[p]["momentum_buffer"])


def test_new_blocks_beside_frozen_ones_are_frozen_and_no_part_of_the_training():
    network = lively(*NETWORKS["v1"])
    for name, p in network.named_parameters():
        p.requires_grad_(name.startswith("head"))
    head = torch.optim.SGD(network.head.parameters(), lr=0.1)
    grown = deepen(network, blocks={1: 1}, optimizer=head)
    assert {n for n, p in grown.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert len(head.param_groups[0]["params"]) == 2


def test_muon_goes_on_with_kernels_of_any_layout():
    for layout in (torch.contiguous_format, torch.channels_last):
        network, made = lively("resnet20", SMALL).train().to(memory_format=layout), None
        made = make_optimizer(network, "muon", lr=0.05, momentum=0.9, weight_decay=0.0)
        step(network, made)
        before = made.state[network.stage1[0].body.conv1.weight]["momentum_buffer"].clone()
        assert before.shape == network.stage1[0].body.conv1.weight.shape
        wide = widen(network, 2, optimizer=made, seed=None)
        after = made.state[wide.stage1[0].body.conv1.weight]["momentum_buffer"]
        torch.testing.assert_close(after, before.repeat_interleave(2, 0).repeat_interleave(2, 1) / 2)
        step(wide, made)


def test_growing_inside_inference_mode_gives_a_network_that_trains():
    network = lively(*NETWORKS["v1"])
    with torch.inference_mode():
        grown, wide = deepen(network, blocks={1: 1}), widen(network, 2)
    for made in (grown, wide):
        made(inputs(network)).sum().backward()


def test_what_nobody_can_grow_is_refused_in_a_line():
    network, x = ends_with(nn.Linear(4, 4)), torch.randn(4, 4)
    planned = lively("resnet20", SMALL)
    with pytest.raises(InputError, match="cannot grow an LBFGS optimizer"):
        deepen(network, blocks={"1": 1}, probe=x, optimizer=torch.optim.LBFGS(network.parameters()))
    for wrong in ([2, 2, 2], "stage1"):
        with pytest.raises(InputError, match="expected an architecture or blocks"):
            deepen(planned, blocks=wrong)
    with pytest.raises(InputError, match="expected an architecture or blocks"):
        deepen(planned, {"stage1": 2})
    for wrong in (x.numpy(), [1.0], torch.empty(0, 4), torch.ones(4)):
        with pytest.raises(InputError, match="probe: expected a batch of inputs, got"):
            widen(network, 2, probe=wrong)
    for wrong in (torch.randn(4, 5), torch.ones(4, 4, dtype=torch.float64)):
        with pytest.raises(InputError, match="the network failed on the probe|Linear at 0: expected"):
            widen(network, 2, probe=wrong)
    with pytest.raises(InputError, match="expected tensors as output, got str"):
        deepen(sw.Chain(sw.Skip(nn.Linear(4, 4)), lambda x: {"out": x, "kind": "a"}), blocks={"": 1}, probe=x)
    for lazy in (
        sw.Dense(None, 4),
        sw.Skip(nn.Linear(4, 4), join="gate"),
        sw.Skip(nn.Linear(4, 4), join="layerscale"),
        sw.Skip(nn.Linear(4, 6), "project"),
    ):
        with pytest.raises(InputError, match="expected inferred sizes, got uninferred"):
            widen(sw.Chain(nn.Linear(4, 4), lazy), 2, probe=x)
    with pytest.raises(InputError, match="got a fused one, with a fused convolution at stem.conv. Grow"):
        widen(sw.export.fuse(planned), 2)
