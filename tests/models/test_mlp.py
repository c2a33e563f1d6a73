import json

import pytest
import torch
from torch import nn

from skipway.errors import InputError
from skipway.models import registry
from skipway.models.mlp import JOINS, NORMS, ResMLPPlan, resmlp
from skipway.nn.skip import named_skips


def made(**options):
    return resmlp(ResMLPPlan(**{"layers": 2, "width": 6, "in_features": 5, "num_classes": 3, **options}))


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("layers", [1, 3])
def test_any_join_and_number_of_blocks_is_a_network(join, layers):
    network = made(join=join, layers=layers, growth=2)
    assert network(torch.randn(4, 5)).shape == (4, 3)
    assert len(list(named_skips(network))) == (0 if join == "none" else layers)


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_of_any_shape_is_flattened(norm):
    assert made(norm=norm, in_features=12)(torch.randn(4, 3, 2, 2)).shape == (4, 3)


def test_dense_blocks_are_given_all_that_came_before_and_grow():
    network = made(join="concat", growth=4, hidden=0.5)
    assert [
        (s.body.linear1.in_features, s.body.linear1.out_features, s.body.linear2.out_features)
        for _, s in named_skips(network)
    ] == [(6, 3, 4), (10, 5, 4)]
    assert network.head.in_features == network.norm.num_features == 14


@pytest.mark.parametrize("join", ["add", "scale"])
def test_a_new_network_computes_its_shortcuts(join):
    network, x = made(join=join).eval(), torch.randn(4, 6)
    assert torch.equal(network.stage1(x), x)
    assert [name for name, m in network.named_modules() if isinstance(m, nn.Linear) and not m.weight.any()] == (
        ["stage1.0.body.linear2", "stage1.1.body.linear2"] if join == "add" else []
    )


def test_the_plain_network_has_the_layers_of_the_residual_one():
    counts = [sum(p.numel() for p in made(join=join).parameters()) for join in ("add", "none")]
    assert counts[0] == counts[1]


def test_a_plan_comes_back_through_json():
    _, plan = registry.build("resmlp", layers=1, width=4, hidden=1)
    assert plan["hidden"] == 1.0 and repr(registry.rebuild(json.loads(json.dumps(plan)))) == repr(
        registry.rebuild(plan)
    )


@pytest.mark.parametrize(
    "options, text",
    [
        ({"join": "ad"}, r"resmlp: unknown join 'ad' \(did you mean add\?\): expected one of add, concat, gate"),
        ({"norm": "group"}, "resmlp: unknown norm 'group': expected one of batch, layer, none, fixup"),
        ({"hidden": 0}, "resmlp: expected hidden above 0 and up to 64, got 0"),
        ({"hidden": "2"}, "resmlp: expected hidden above 0 and up to 64, got 2"),
        ({"layers": 3001}, "resmlp: expected at most 3000 layers, got 3001. Reduce layers"),
        ({"layers": [2, 2]}, r"resmlp: expected integers of at least 1 for layers, got \[2, 2\]"),
        (
            {"join": "concat", "drop_path": 0.1},
            'resmlp: expected drop_path=0 for join "concat", got .* Remove drop_path',
        ),
        ({"join": "gate", "norm": "fixup"}, 'resmlp with norm "fixup": expected join "add", got "gate". Remove join'),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(options, text):
    with pytest.raises(InputError, match=text) as refused:
        made(**options)
    assert len(str(refused.value).splitlines()) == 1


def test_categories_are_looked_up_and_a_slot_that_is_none_is_that_of_the_unseen():
    network = made(in_features=5, categories=(4, 3), embedding=2).eval()
    assert network.embed.out_features == 3 + 2 + 2 and network.stem.in_features == 7
    x = torch.randn(4, 5)
    x[:, 3:] = torch.tensor([[0.0, 2], [-1, 2], [9, 2], [3, 2]])
    out = network(x.index_copy(1, torch.arange(3), torch.zeros(4, 3)))
    assert out[0].equal(out[1]) and out[0].equal(out[2]) and not out[0].equal(out[3])
    assert all(table.weight[:2].eq(0).all() and table.weight[2:].ne(0).all() for table in network.embed.tables)
    with pytest.raises(
        InputError, match="resmlp: expected at least 6 in_features, one for each of the categories, got 5"
    ):
        made(categories=(3,) * 6)
