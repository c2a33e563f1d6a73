"""A network joined with trees: its outputs, its plan, and what it refuses."""

import pytest
import torch

import skipway as sw
from skipway.errors import InputError, ShapeError
from skipway.models.network import build_network
from skipway.models.registry import plan_of, rebuild
from skipway.models.tree_ensemble import Blend, Trees, TreeSizes

SIZES = {"trees": 1, "nodes": 3, "levels": 1, "branches": 0}


def stump():
    """A tree that is -1 up to 0.5 and 2 above, and 2 for a missing number, which input 1 marks."""
    trees = Trees(TreeSizes(**SIZES), 2, (), 1)
    state = {
        "indicator": torch.tensor([1, -1]),
        "inputs": torch.tensor([0, 0, 0]),
        "threshold": torch.tensor([0.5, 0.0, 0.0]),
        "successors": torch.tensor([1, 2, 1, 1, 2, 2]),
        "value": torch.tensor([0.0, -1.0, 2.0]),
        "of_output": torch.ones(1, 1),
    }
    trees.load_state_dict({**trees.state_dict(), **state})
    return trees


def joined(weights):
    plan = plan_of("resmlp", in_features=2, num_classes=1, layers=1, width=4, norm="layer")
    network = build_network({**plan, "trees": SIZES}).eval()
    trees = {f"ensemble.shortcut.{name}": value for name, value in stump().state_dict().items()}
    network.load_state_dict({**network.state_dict(), **trees, "ensemble.join.weights": torch.tensor(weights)})
    return network


def test_a_row_goes_down_the_tree():
    x = torch.tensor([[0.5, 0.0], [0.6, 0.0], [0.0, 1.0]])
    assert stump()(x)[:, 0].tolist() == [-1, 2, 2]


def test_outputs_are_the_weighted_sum():
    x = torch.tensor([[0.5, 0.0], [0.6, 0.0]])
    network = joined([0.75, 0.5])
    expected = 0.75 * network.ensemble.body(x) + 0.5 * stump()(x)
    torch.testing.assert_close(network(x), expected)
    assert network.num_classes == 1


def test_it_is_traced_compiled_and_mapped():
    x = torch.randn(5, 2)
    network = joined([0.5, 0.5])
    for other in (torch.fx.symbolic_trace(network), torch.compile(network, backend="eager", fullgraph=True)):
        torch.testing.assert_close(other(x), network(x))
    torch.testing.assert_close(torch.vmap(network)(x[:, None])[:, 0], network(x))
    torch.testing.assert_close(sw.export.fuse(network, "fp32")(x), network(x))


def test_gradients_reach_the_network_alone():
    network = joined([0.5, 0.5])
    network(torch.randn(5, 2)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert not [name for name, _ in network.named_parameters() if "shortcut" in name or "join" in name]


@pytest.mark.parametrize("name", ["inputs", "successors", "roots", "indicator", "table"])
def test_indices_outside_of_the_trees_are_refused(name):
    state = stump().state_dict()
    state[name] = state[name] + 9
    with pytest.raises(InputError, match=f"expected indices of their nodes and inputs, got others in {name}"):
        stump().load_state_dict(state)


def test_tables_outside_of_the_categories_are_refused():
    sizes = TreeSizes(trees=1, nodes=1, levels=0, branches=2)
    trees = Trees(sizes, 2, (3,), 1)
    state = {**trees.state_dict(), "table": torch.tensor([0])}
    for inputs, wrong in ((2, "table"), (0, "inputs")):
        with pytest.raises(InputError, match=f"got others in {wrong}"):
            trees.load_state_dict({**state, "inputs": torch.tensor([inputs])})


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        3,
        {**SIZES, "trees": 4},
        {**SIZES, "levels": -1},
        {**SIZES, "nodes": 10**12},
        {**SIZES, "levels": 10**6},
        {**SIZES, "leaves": 2},
        {**SIZES, "nodes": True},
    ],
)
def test_unusable_sizes_are_refused(sizes):
    plan = plan_of("resmlp", in_features=2, num_classes=1)
    with pytest.raises(InputError, match="expected trees, nodes, levels and branches as the sizes of boosted trees"):
        rebuild({**plan, "trees": sizes})


@pytest.mark.parametrize("plan", [plan_of("resnet20"), plan_of("resmlp", num_classes=0)])
def test_other_networks_have_no_trees(plan):
    with pytest.raises(InputError, match="cannot add trees: expected a network for tables with outputs, got "):
        rebuild({**plan, "trees": SIZES})


def test_the_join_does_not_broadcast():
    with pytest.raises(ShapeError, match="`blend`"):
        Blend()(torch.ones(2, 1), torch.ones(2, 2))


def test_what_needs_a_network_alone_refuses_it():
    network = joined([0.5, 0.5])
    match = "got one that is blended with boosting. Use a run without --ensemble-with."
    for action in (
        lambda: network.reset_classifier(3),
        lambda: sw.grow.widen(network, 2),
        lambda: sw.grow.deepen(network, blocks={"stage1": 1}),
    ):
        with pytest.raises(InputError, match=match):
            action()
