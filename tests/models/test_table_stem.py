"""The first layers of the network for tables as one step in C, against the same layers one by one in float64."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import skipway as sw
from skipway.errors import InputError
from skipway.kernels.mlp_library import has_mlp_library
from skipway.models import table_stem
from skipway.models.table_layers import Embed, Members, Pieces, fit_pieces, quantile_edges
from skipway.nn.chain import Chain

needs_compiler = pytest.mark.skipif(not has_mlp_library(), reason="there is no C compiler")


@pytest.fixture(autouse=True)
def used(monkeypatch):
    """The number of uses of the kernel, which any number of rows may use."""
    uses = []
    fast = table_stem._fast_stem
    kernel = replace(table_stem.TABLE_STEM, fast=lambda stem, x: uses.append(len(x)) or fast(stem, x))
    monkeypatch.setattr(table_stem, "TABLE_STEM", kernel)
    monkeypatch.setattr(table_stem, "_FEWEST_ROWS", 1)
    return uses


def stem_of(x, most=6, categories=(), members=4, width=19, seed=0):
    """The first layers for rows `x`, with pieces at their quantiles."""
    torch.manual_seed(seed)
    numbers = x.shape[1] - len(categories)
    edges = quantile_edges(x[:, :numbers], most)
    edges[-1] = edges[-1][:0]  # a number without pieces
    pieces = Pieces(tuple(max(0, len(e) - 1) for e in edges))
    embed = Embed(numbers + sum(pieces.counts), categories, 8)
    named = {"embed": embed} if categories else {}
    if members > 1:
        named["members"] = Members(members, embed.out_features)
    network = Chain(pieces=pieces, **named, stem=nn.Linear(embed.out_features, width))
    fit_pieces(network, edges, x)
    return network


def rows_of(count=24, numbers=3, categories=(), seed=1):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(count, numbers, generator=generator)]
    parts += [torch.randint(0, n + 1, (count, 1), generator=generator).float() for n in categories]
    return torch.cat(parts, dim=1)


def results(network, x):
    """Outputs and gradients of a weighted sum of them."""
    network.zero_grad()
    y = network(x)
    y.backward(torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y))
    return [y.detach(), *(p.grad.clone() for p in network.parameters())]


def same(fast, plain):
    assert len(fast) == len(plain)
    for a, b in zip(fast, plain, strict=True):
        scale = b.abs().max().clamp(min=1e-3)
        assert a.shape == b.shape
        assert ((a.double() - b).abs().max() / scale).item() < 2e-5  # sums of up to 100 terms in float32


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(2, 12),
    st.sampled_from([(), (4,), (3, 30)]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 16, 19, 64]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_outputs_and_gradients_equal_those_of_the_layers(numbers, most, categories, members, width, training, seed):
    x = rows_of(24, numbers + 1, categories, seed)
    network = stem_of(x, most, categories, members, width, seed).train(training)
    new = torch.cat([x[:12], 3 * rows_of(11, numbers + 1, categories, seed + 1)])  # on the edges, and outside of them
    new[:, numbers + 1 :] = new[:, numbers + 1 :].round().abs()
    same(results(network, new), results(copy.deepcopy(network).double(), new.double()))


@needs_compiler
def test_the_network_of_a_table_uses_it_in_training_and_evaluation(used, monkeypatch):
    x = rows_of(24, 3, (4,))
    network = sw.create_model("resmlp", 2, in_features=4, categories=(4,), pieces=(6, 6, 6), members=4, layers=1)
    fit_pieces(network, quantile_edges(x[:, :3], 6), x)
    training, evaluation = network(x), network.eval()(x)
    assert used == [24, 24]
    monkeypatch.setenv("SKIPWAY_KERNELS", "off")
    torch.testing.assert_close(network(x), evaluation)
    torch.testing.assert_close(network.train()(x), training)
    assert used == [24, 24]


@needs_compiler
def test_a_missing_number_stays_one(used):
    x = rows_of()
    network = stem_of(x)
    x[3, 0] = torch.nan
    assert network(x).isnan().any(1).nonzero().flatten().tolist() == [3]
    assert used == [24]


@needs_compiler
def test_gradients_can_be_computed_twice_and_accumulate(used):
    x, network = rows_of(), stem_of(rows_of())
    y = network(x).square().sum()
    y.backward(retain_graph=True)
    first = [p.grad.clone() for p in network.parameters()]
    y.backward()
    for p, gradient in zip(network.parameters(), first, strict=True):
        torch.testing.assert_close(p.grad, 2 * gradient)
    assert used


@needs_compiler
@pytest.mark.parametrize("training", [True, False])
def test_second_derivatives_equal_those_of_the_layers(used, training):
    x = rows_of(10, 2, (4,))

    def curvature(network, x):
        parameters = list(network.parameters())
        first = torch.autograd.grad(network(x).square().sum(), parameters, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), parameters)

    network = stem_of(x, categories=(4,)).train(training)
    fast = curvature(network, x)
    assert used == [10]
    for a, b in zip(fast, curvature(copy.deepcopy(network).double(), x.double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


@needs_compiler
def test_it_is_left_out_where_it_does_not_hold(used):
    x, network = rows_of(), stem_of(rows_of())
    expected = network(x)
    assert used == [24]
    seen = []
    handle = network.members.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(network(x), expected)
    handle.remove()
    assert seen == [1]
    network(x.clone().requires_grad_()).sum().backward()  # the gradient of the rows
    with torch.autocast("cpu", torch.bfloat16):
        network(x)
    network(x.T.contiguous().T)  # columns in memory
    torch.func.grad(lambda values: torch.func.functional_call(network, values, (x,)).sum())(
        dict(network.named_parameters())
    )
    copy.deepcopy(network).double()(x.double())
    assert used == [24]
    table_stem._FEWEST_ROWS = 25
    network(x)
    assert used == [24]


@needs_compiler
def test_embeddings_with_options_run_one_by_one(used):
    x = rows_of(categories=(4,))
    stem = stem_of(x, categories=(4,))
    expected = stem(x)
    seen = []
    handle = stem.embed.tables[0].register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(stem(x), expected)
    handle.remove()
    assert seen == [1] and used == [24]
    for options in ({"max_norm": 0.5}, {"padding_idx": 1}, {"sparse": True}, {"scale_grad_by_freq": True}):
        network = copy.deepcopy(stem)
        network.embed.tables[0] = nn.Embedding(*stem.embed.tables[0].weight.shape, **options)
        network(x).sum().backward()
    network = copy.deepcopy(stem)
    network.embed.tables[0] = nn.Embedding(9, stem.embed.tables[0].embedding_dim)  # more rows than categories
    network(x)
    assert used == [24]


@needs_compiler
def test_layers_of_another_order_run_one_by_one(used):
    x = rows_of()
    stem = stem_of(x)
    network = Chain(pieces=stem.pieces, act=nn.ReLU(), members=stem.members, stem=stem.stem)
    network(x)
    assert not used
    Chain(stem.pieces)(x)
    assert not used


@needs_compiler
def test_layers_whose_sizes_disagree_report_it_as_they_do_alone(used):
    x, stem = rows_of(categories=(4,)), stem_of(rows_of(categories=(4,)), categories=(4,))
    for name, layer in (("stem", nn.Linear(9, 19)), ("members", Members(4, 9)), ("embed", Embed(9, (4,), 8))):
        network = copy.deepcopy(stem)
        network[name] = layer
        with pytest.raises((InputError, RuntimeError, IndexError)):
            network(x)
    with pytest.raises((InputError, RuntimeError, IndexError)):
        stem(x[:, :2])
    assert not used


@needs_compiler
def test_training_with_it_equals_training_without_it(monkeypatch, used):
    x = rows_of(64, 4)
    y = x[:, 0].sign() + x[:, 1]

    def trained(setting):
        monkeypatch.setenv("SKIPWAY_KERNELS", setting)
        network = Chain(stem_of(x), nn.ReLU(), nn.Linear(19, 1))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        for _ in range(20):
            optimizer.zero_grad()
            loss = (network(x)[:, 0] - y).square().mean()
            loss.backward()
            optimizer.step()
        return loss

    torch.manual_seed(0)
    fast = trained("on")
    assert len(used) == 20
    torch.testing.assert_close(fast, trained("off"), rtol=1e-3, atol=1e-5)
    assert len(used) == 20


@needs_compiler
def test_a_network_that_is_built_on_the_meta_device_uses_it(used):
    """As a trained one is read from its file."""
    x = rows_of()
    network = stem_of(x)
    with torch.device("meta"):
        other = Chain(
            pieces=Pieces(network.pieces.counts),
            members=Members(4, network.stem.in_features),
            stem=nn.Linear(network.stem.in_features, 19),
        )
    other.to_empty(device="cpu").load_state_dict(network.state_dict())
    assert all(map(torch.equal, results(other, x), results(network, x)))
    assert used == [24, 24]


@needs_compiler
def test_a_run_and_its_loaded_model_use_it(used, tmp_path, monkeypatch):
    run = sw.train("wine", epochs=2, output=tmp_path)
    assert used
    model, x = sw.load(run.path), torch.randn(16, 13)
    before = len(used)
    fast = model(x)
    assert len(used) == before + 1
    monkeypatch.setenv("SKIPWAY_KERNELS", "off")
    torch.testing.assert_close(model(x), fast)


@needs_compiler
@pytest.mark.parametrize("members", [1, 4])
def test_the_default_dtype_does_not_matter(used, members):
    x = rows_of()
    network = stem_of(x, members=members)
    expected = results(network, x)
    torch.set_default_dtype(torch.float64)
    try:
        found = results(network, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert used == [24, 24] and all(map(torch.equal, found, expected))
