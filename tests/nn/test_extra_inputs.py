import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skipway.errors import InputError
from skipway.nn.activation_checkpointing import recompute
from skipway.nn.chain import Chain
from skipway.nn.extra_inputs import taken_inputs
from skipway.nn.parallel import Parallel
from skipway.nn.shape_inference import output_shape
from skipway.nn.skip import Skip


class Masked(nn.Module):
    def forward(self, x, mask=None):
        return x if mask is None else x * mask


class Conditioned(nn.Module):
    def forward(self, x, scale, shift):
        return x * scale + shift


X, MASK = torch.arange(12.0).view(3, 4), torch.tensor([[1.0], [0.0], [2.0]])


def test_the_extra_inputs_of_a_skip_go_to_its_body():
    assert torch.equal(Skip(Masked())(X, MASK), X * MASK + X)
    assert torch.equal(Skip(Masked())(X, mask=MASK), X * MASK + X)
    assert torch.equal(Skip(Conditioned(), shortcut=torch.neg)(X, 2.0, shift=1.0), X + 1)
    with pytest.raises(TypeError, match="forward"):
        Skip(nn.Linear(4, 4))(X, MASK)


@pytest.mark.parametrize("call", [lambda chain: chain(X, MASK), lambda chain: chain(X, mask=MASK)])
def test_a_chain_hands_an_extra_input_to_every_layer_that_takes_it(call):
    linear = nn.Linear(4, 4)
    chain = Chain(Masked(), Skip([torch.neg, Chain(inner=Masked())]), linear, lambda x, mask: x + mask)
    x = X * MASK
    assert torch.equal(call(chain), linear(x + -x * MASK) + MASK)


def test_a_parallel_at_the_start_takes_one_input_for_each_branch():
    chain = Chain(Parallel("add", nn.Identity(), torch.neg), torch.neg)
    assert torch.equal(chain(X, X * 3), 2 * X)


def test_an_input_that_no_layer_takes_is_refused():
    chain = Chain(nn.ReLU(), Skip(Masked()))
    for call, text in (
        (lambda: chain(X, msk=MASK), "a layer whose forward takes argument 'msk', got none"),
        (lambda: chain(X, MASK, MASK), "a layer whose forward takes 3 inputs, got none"),
        (lambda: Chain(nn.Sequential(Masked()))(X, MASK), "a layer whose forward takes 2 inputs"),
    ):
        with pytest.raises(InputError, match=f"Chain: cannot pass extra inputs: expected {text}"):
            call()


def test_a_layer_of_torch_with_options_takes_no_positional_extra_input():
    assert taken_inputs(nn.TransformerEncoderLayer(4, 2), 1, ["src_mask"]) == (False, {"src_mask"})
    assert taken_inputs(nn.Linear(2, 2), 1, ["mask"]) == (False, set())
    assert taken_inputs(nn.Module(), 1, []) == (True, set())  # its forward takes any input
    assert taken_inputs(Chain(torch.relu)[0], 1, ["mask"]) == (False, set())


def test_the_main_input_may_be_passed_by_its_name_and_is_the_only_argument_that_fx_sees():
    chain, skip = Chain(Masked()), Skip(Masked())
    assert torch.equal(chain(input=X), X) and torch.equal(skip(x=X, mask=MASK), X * MASK + X)
    assert list(inspect.unwrap(type(skip).forward).__code__.co_varnames[:2]) == ["self", "x"]
    assert list(inspect.signature(skip.forward).parameters) == ["x", "extra", "named"]
    assert torch.equal(torch.fx.symbolic_trace(Chain(skip))(X), 2 * X)
    with pytest.raises(TypeError, match="missing"):
        chain()


def test_shapes_are_inferred_with_extra_inputs_and_exported():
    skip = Skip(Masked(), "auto")
    assert output_shape(Chain(skip), (3, 4), mask=(3, 1)) == (3, 4)
    exported = torch.export.export(Chain(skip), (X, MASK)).module()
    assert torch.equal(exported(X, MASK), skip(X, MASK))
    assert torch.equal(torch.compile(Chain(skip), backend="eager")(X, MASK), skip(X, MASK))


def test_stochastic_depth_drops_rows_of_a_body_with_extra_inputs():
    torch.manual_seed(0)
    skip = Skip(Masked(), drop_path=0.5).train()
    x = torch.ones(4000, 1)
    out = skip(x, torch.ones(4000, 1))
    assert set(out.unique().tolist()) == {1.0, 3.0} and abs(out.mean().item() - 2) < 0.1
    assert torch.equal(skip.eval()(x, x), 2 * x)


def test_activation_checkpointing_refuses_extra_inputs():
    chain = recompute(Chain(Skip(Masked()), Skip(Masked())), every=1)
    with pytest.raises(InputError, match="cannot pass extra inputs: expected a Chain without activation checkpointing"):
        chain(X, MASK)
    assert torch.equal(recompute(chain, every="none")(X, MASK), Chain(*chain)(X, MASK))


class _Masked(nn.Linear):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * mask


def test_an_option_of_a_layer_of_torch_is_no_extra_input():
    """`relu(x, inplace)` and `LSTM(x, hx)` have two arguments, of which the second is none of a mask."""
    x, mask = torch.ones(2, 3, 4), torch.zeros(2, 3, 4)
    chain = Chain(F.relu, nn.LSTM(4, 4, batch_first=True), lambda outputs: outputs[0], _Masked(4, 4))
    assert torch.equal(chain(x, mask), mask)
    decoder = nn.TransformerDecoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    assert torch.equal(Chain(decoder)(x, mask), decoder(x, mask))


def test_named_inputs_reach_the_branches_of_a_parallel_that_take_them():
    x, mask = torch.ones(2, 4), torch.zeros(2, 4)
    parallel = Parallel("add", _Masked(4, 4), nn.Identity())
    assert torch.equal(Chain(nn.Identity(), parallel)(x, mask=mask), x)
    assert torch.equal(parallel(mask, x, mask=mask), x)
    with pytest.raises(InputError, match="expected a branch whose forward takes argument 'maks'"):
        parallel(x, maks=mask)
