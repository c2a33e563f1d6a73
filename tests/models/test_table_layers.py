"""Pieces of numbers and members of an ensemble, against numpy and against one network per member."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import skipway as sw
from skipway.data.tables.columns import Column
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError
from skipway.models.table_layers import Members, MergeMembers, Pieces, fit_pieces, quantile_edges


def _network(members: int = 3, num_classes: int = 2, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return sw.create_model(
        "resmlp", num_classes, in_features=4, categories=(5,), layers=1, width=8, members=members, **options
    )


def _rows(count: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randn(count, 3, generator=generator)
    return torch.cat([numbers, torch.randint(0, 5, (count, 1), generator=generator).float()], dim=1)


@given(st.integers(2, 40), st.integers(1, 8), st.integers(0, 10_000))
def test_pieces_equal_interpolation_between_the_edges(count, most, seed):
    """The sum of the pieces of a number is its place on the scale of the edges, as numpy interpolates it."""
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(count + 2, 1)).astype(np.float32))
    edges = quantile_edges(x, most)
    if not len(edges[0]):
        return
    layer = Pieces((len(edges[0]) - 1,))
    layer.set_edges(edges, x)
    new = torch.linspace(-3, 3, 50)[:, None]
    pieces = (layer(new)[:, 1:] / 0.5 + layer.mean).sum(1)
    expected = np.interp(new[:, 0].numpy(), edges[0].numpy(), np.arange(len(edges[0])))
    np.testing.assert_allclose(pieces.numpy(), expected, atol=1e-3)


def test_edges_are_the_distinct_values_or_quantiles():
    x = torch.stack([torch.arange(100.0), torch.arange(100) % 3.0, torch.ones(100), torch.arange(100) % 2.0], dim=1)
    edges = quantile_edges(x, 4)
    assert [len(e) for e in edges] == [5, 3, 0, 0]
    assert edges[0].tolist() == [0, 25, 50, 74, 99]
    assert edges[1].tolist() == [0, 1, 2]


def test_pieces_stand_after_the_numbers_and_before_the_categories():
    layer = Pieces((0, 2, 0))
    layer.set_edges([torch.tensor([0.0, 1.0, 2.0])], torch.zeros(1, 4))
    out = layer(torch.tensor([[7.0, 1.5, 8.0, 3.0]]))
    assert out.tolist() == [[7.0, 1.5, 8.0, 0.5, 0.25, 3.0]]


def test_members_in_evaluation_are_the_mean_of_networks_with_their_factors():
    """Each member alone is a network without members, whose stem has the member's factors in its columns."""
    network, x = _network(3).eval(), _rows()
    alone = _network(1).eval()
    state = network.state_dict()
    factors = state["members.factors"].view(3, -1)
    outputs = []
    for k in range(3):
        weights = {name: value for name, value in state.items() if not name.startswith("members")}
        weights["stem.weight"] = state["stem.weight"] * factors[k]
        weights["head.weight"], weights["head.bias"] = (state[f"head.{n}"].chunk(3)[k] for n in ("weight", "bias"))
        alone.load_state_dict(weights)
        outputs.append(alone(x))
    torch.testing.assert_close(network(x), torch.stack(outputs).mean(0), atol=1e-5, rtol=1e-4)


def test_row_i_trains_member_i_modulo_the_members():
    members, merge = Members(3, 4), MergeMembers(3)
    members.factors.data = torch.arange(12.0)
    x = torch.ones(7, 4)
    assert members(x)[:, 0].tolist() == [0, 4, 8, 0, 4, 8, 0]
    outputs = torch.arange(6.0).repeat(7, 1)  # heads of 2 outputs each
    assert merge(outputs).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3], [4, 5], [0, 1]]


def test_gradients_reach_only_the_factors_of_the_members_in_the_batch():
    members = Members(3, 2)
    members(torch.ones(2, 2)).sum().backward()
    assert members.factors.grad.tolist() == [1, 1, 1, 1, 0, 0]


def test_outputs_do_not_depend_on_the_other_rows_of_the_batch_and_features_are_averaged():
    network, x = _network(4).eval(), _rows()
    torch.testing.assert_close(network(x)[3:5], network(x[3:5]))
    features = _network(4, num_classes=0).eval()
    assert features(x).shape == (12, 8)


def test_pieces_and_members_survive_saving(tmp_path):
    x = _rows(40)
    edges = quantile_edges(x[:, :3], 6)
    network = _network(2, pieces=tuple(max(0, len(e) - 1) for e in edges)).eval()
    fit_pieces(network, edges, x)
    columns = tuple(Column(name, "number") for name in "abc") + (Column("d", "category", categories=("x", "y", "z")),)
    network.spec = TableSpec(columns, target_names=("y",), class_names=("no", "yes"))
    network.save(tmp_path / "n.safetensors")
    loaded = sw.load(tmp_path / "n.safetensors").eval()
    assert torch.equal(loaded(x), network(x))


def test_errors():
    with pytest.raises(InputError, match=r"resmlp: expected pieces for each of the 3 numbers, got 2. Change pieces."):
        _network(pieces=(3, 4))
    with pytest.raises(InputError, match="resmlp: expected integers of at least 0 for pieces, got"):
        _network(pieces=(3, -4, 0))
    with pytest.raises(InputError, match="resmlp: expected at most 1,000,000 pieces and 1024 members, got 0 and 2000"):
        _network(members=2000)
    with pytest.raises(InputError, match="resmlp: expected integers of at least 1 for members, got 0"):
        _network(members=0)
