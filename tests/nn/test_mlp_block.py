"""A residual block of a feed-forward network as one step in C, against its layers one by one in float64."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import skipway as sw
from skipway.errors import ShapeError
from skipway.kernels.mlp_library import has_mlp_library
from skipway.nn import mlp_block
from skipway.nn.chain import Chain
from skipway.nn.dropout import Dropout
from skipway.nn.mlp_block import MLPBlock
from skipway.nn.skip import Skip

needs_compiler = pytest.mark.skipif(not has_mlp_library(), reason="there is no C compiler")


@pytest.fixture(autouse=True)
def used(monkeypatch, one_thread):
    """Rows of each use of the kernel, which runs in one thread and takes any number of rows."""
    uses, call = [], MLPBlock.__call__
    monkeypatch.setattr(MLPBlock, "__call__", lambda self, x: uses.append(len(x)) or call(self, x))
    monkeypatch.setattr(mlp_block, "_FEWEST_ROWS", 2)
    return uses


def body(width=16, hidden=32, rate=0.0, **layers):
    """The body of a block with random weights, norms included."""
    torch.manual_seed(0)
    named = {"norm": nn.BatchNorm1d(width), "linear1": nn.Linear(width, hidden), "act": nn.ReLU()}
    named |= {"dropout": Dropout(rate)} if rate else {}
    chain = Chain(**(named | {"linear2": nn.Linear(hidden, width)} | layers))
    for p in chain.parameters():
        nn.init.normal_(p, std=0.5)
    return chain


def rows(count=12, width=16, seed=1):
    return 3 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + 1


def results(block, x):
    """Outputs, gradients of a weighted sum of them, and statistics of the norm."""
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(2)
    y = block(x)
    y.backward(torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y))
    return [y.detach(), x.grad, *(p.grad for p in block.parameters()), *block.buffers()]


def same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        scale = b.double().abs().max().clamp(min=1e-2)
        assert a.shape == b.shape
        assert ((a.double() - b.double()).abs().max() / scale).item() < 2e-5  # sums of up to 256 terms in float32


def plain(function, *args):
    """The result without kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIPWAY_KERNELS", "off")
        return function(*args)


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(
    st.integers(8, 150),  # fewer rows of almost equal numbers have no exact norm in float32
    st.sampled_from([16, 48, 64, 80]),
    st.sampled_from([16, 32, 112, 256]),
    st.integers(0, 1000),
)
def test_outputs_gradients_and_statistics_equal_those_of_the_layers(count, width, hidden, seed):
    block, x = Skip(body(width, hidden)), rows(count, width, seed)
    exact = copy.deepcopy(block).double()
    found = results(block, x)
    same(found, results(exact, x.double()))


@needs_compiler
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_has_the_mask_of_the_layer(used, rate):
    block, x = Skip(body(64, 128, rate)), rows(70, 64)
    expected = plain(results, copy.deepcopy(block), x)
    assert not used
    same(results(block, x), expected)
    assert used == [70]


@needs_compiler
def test_the_network_of_a_table_uses_it_in_training_alone(used):
    network = sw.create_model("resmlp", 2, in_features=4, layers=3, width=32)
    x = rows(12, 4)
    training = network(x)
    assert used == [12, 12, 12]
    network.eval()(x)
    assert used == [12, 12, 12]
    torch.testing.assert_close(plain(network.train(), x), training)


@needs_compiler
def test_it_trains_to_the_weights_of_the_layers(used):
    def trained():
        torch.manual_seed(3)
        network = Chain(Skip(body(rate=0.2)), nn.Linear(16, 1))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        for seed in range(20):
            x = rows(seed=seed)
            optimizer.zero_grad()
            (network(x)[:, 0] - x[:, 0]).square().mean().backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    fast = trained()
    assert used == [12] * 20
    torch.testing.assert_close(fast, plain(trained), rtol=1e-3, atol=1e-4)
    assert used == [12] * 20


@needs_compiler
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_second_derivatives_equal_those_of_the_layers(used, rate):
    def curvature(block, x):
        x = x.clone().requires_grad_()
        parameters = [x, *block.parameters()]
        torch.manual_seed(4)
        first = torch.autograd.grad(block(x).pow(3).sum(), parameters, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), parameters)

    block, x = Skip(body(rate=rate)), rows()
    fast = curvature(block, x)
    assert used == [12]
    for a, b in zip(fast, plain(curvature, block, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())


@needs_compiler
def test_gradients_can_be_computed_twice_and_accumulate(used):
    block, x = Skip(body()), rows()
    y = block(x).square().sum()
    y.backward(retain_graph=True)
    first = [p.grad.clone() for p in block.parameters()]
    y.backward()
    for p, gradient in zip(block.parameters(), first, strict=True):
        torch.testing.assert_close(p.grad, 2 * gradient)
    assert used == [12]


@needs_compiler
def test_frozen_parameters_get_no_gradient(used):
    block = Skip(body())
    block.body.linear1.requires_grad_(False)
    block(rows()).sum().backward()
    assert block.body.linear1.weight.grad is None and block.body.linear2.weight.grad is not None
    assert used == [12]


@needs_compiler
def test_an_infinite_or_missing_number_spoils_every_row_of_its_batch(used):
    for number in (torch.nan, torch.inf):
        x = rows()
        x[3, 0] = number
        assert Skip(body())(x).isnan().all()
    assert used == [12, 12]


def others():
    yield "evaluation", Skip(body()).eval(), rows()
    frozen = Skip(body())
    frozen.body.norm.eval()
    yield "frozen norm", frozen, rows()
    yield "one row", Skip(body()), rows(1)
    yield "odd width", Skip(body(20, 32)), rows(width=20)
    yield "odd hidden width", Skip(body(16, 20)), rows()
    yield "wide", Skip(body(16, 512)), rows()
    yield "float64", Skip(body()).double(), rows().double()
    yield "columns in memory", Skip(body()), rows().T.contiguous().T
    yield "after", Skip(body(), after=nn.ReLU()), rows()
    yield "shortcut", Skip(body(), nn.Linear(16, 16)), rows()
    yield "join", Skip(body(), join="scale"), rows()
    yield "drop_path", Skip(body(), drop_path=0.5), rows()
    yield "dropout of torch", Skip(body(dropout=nn.Dropout(0.5), linear2=nn.Linear(32, 16))), rows()
    yield "no bias", Skip(body(linear2=nn.Linear(32, 16, bias=False))), rows()
    yield "no running statistics", Skip(body(norm=nn.BatchNorm1d(16, track_running_stats=False))), rows()
    yield "cumulative average", Skip(body(norm=nn.BatchNorm1d(16, momentum=None))), rows()
    yield "layer norm", Skip(body(norm=nn.LayerNorm(16))), rows()
    yield "two axes", Skip(body()), rows(width=16)[:, :, None].repeat(1, 1, 16)


@needs_compiler
@pytest.mark.parametrize("block, x", [pytest.param(*row[1:], id=row[0]) for row in others()])
def test_other_blocks_run_layer_by_layer(used, block, x):
    try:
        block(x)
    except ShapeError:  # one row has no norm, and linear layers take the last axis
        assert len(x) == 1 or x.dim() == 3
    assert not used


@needs_compiler
def test_it_is_left_out_where_it_does_not_hold(used):
    block, x = Skip(body()), rows()
    expected = block(x)
    assert used == [12]
    for module in (block.body, block.body.norm, block.body.act, block.body.linear2):
        seen = []
        handle = module.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        torch.testing.assert_close(block(x), expected)
        handle.remove()
        assert seen == [1]
    with torch.autocast("cpu", torch.bfloat16):
        block(x)
    torch.set_num_threads(2)
    block(x)
    torch.set_num_threads(1)
    assert used == [12]
    block(x)
    assert used == [12, 12]


@needs_compiler
def test_recomputed_blocks_update_the_statistics_once(used):
    network = sw.create_model("resmlp", 2, in_features=4, layers=2, width=32, dropout=0.3)
    other, x = copy.deepcopy(network), rows(12, 4)
    sw.recompute(other)
    outcomes = []
    for each in (network, other):
        torch.manual_seed(5)
        each(x).square().sum().backward()
        outcomes.append([*(p.grad for p in each.parameters()), *each.buffers()])
    assert used
    for a, b in zip(*outcomes, strict=True):
        torch.testing.assert_close(a, b)
