"""The fast mask of dropout: its share, its scale and its gradient, and the calls that take torch's mask."""

import pytest
import torch
from torch import nn

from skipway.nn.dropout import Dropout


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.9])
def test_the_share_and_the_mean_are_those_of_the_rate(rate):
    torch.manual_seed(0)
    out = Dropout(rate)(torch.ones(1000, 1000))
    assert (out == 0).float().mean().item() == pytest.approx(rate, abs=3e-3)
    assert out.mean().item() == pytest.approx(1, rel=3e-2)
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - rate)], rel=1e-3)


def test_values_are_dropped_independently():
    torch.manual_seed(0)
    dropped = Dropout(0.2)(torch.ones(4000, 64)) == 0
    both = (dropped[:, 1:] & dropped[:, :-1]).float().mean().item()
    assert both == pytest.approx(0.04, abs=2e-3)
    assert dropped.float().mean(0).tolist() == pytest.approx([0.2] * 64, abs=0.03)


def test_equal_seeds_drop_equal_values_and_the_gradient_has_their_mask():
    layer, x = Dropout(0.3), torch.randn(7, 5, requires_grad=True)  # a size that is no multiple of a word
    outs = []
    for _ in range(2):
        torch.manual_seed(3)
        outs.append(layer(x))
    assert torch.equal(*outs)
    outs[0].sum().backward()
    torch.testing.assert_close(x.grad * x, outs[0])


@pytest.mark.parametrize("rate", [0.0, 1.0, 1e-7])
def test_a_rate_without_a_mask_is_that_of_torch(rate):
    torch.manual_seed(0)
    x = torch.ones(50, 3)
    assert torch.equal(Dropout(rate)(x), nn.Dropout(rate)(x))


def test_other_dtypes_transforms_and_in_place_layers_take_the_mask_of_torch():
    half = torch.ones(200, 100, dtype=torch.bfloat16)
    for layer, x in ((Dropout(0.5), half), (Dropout(0.5, inplace=True), torch.ones(200, 100))):
        torch.manual_seed(1)
        expected = nn.functional.dropout(torch.ones_like(x), 0.5)
        torch.manual_seed(1)
        assert torch.equal(layer(x), expected)
    rows = torch.vmap(Dropout(0.5), randomness="different")(torch.ones(20, 30))
    assert set(rows.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(Dropout(0.5).eval()(half), half)
