"""The loss around a network's weights, against losses whose shape is known."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import skipway as sw
from skipway.errors import InputError
from skipway.probe.loss_landscape import batches_loss, landscape


def small(**options):
    return sw.create_model("resnet20", widths=[4, 8, 16], layers=[1, 1, 1], num_classes=3, **options)


def squares(network):
    """The sum of squares of all weights: a bowl."""
    return sum(p.double().square().sum() for p in network.parameters() if p.dim() > 1).item()


def filters(weight):
    return weight.detach().flatten(1).norm(dim=1)


def test_every_filter_moves_by_its_own_size_and_nothing_else_moves():
    network, seen = small(), []
    network.stage1[0].body.conv1.weight.data[1] = 0
    own = {k: v.clone() for k, v in network.state_dict().items()}

    def loss_of(network):
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        return 0.0

    found = landscape(network, loss_of, span=2.0, points=5)
    assert found.steps == [-2.0, -1.0, 0.0, 1.0, 2.0] and found.dims == 1
    for step, state in zip(found.steps, seen, strict=True):
        for name, value in own.items():
            if value.dim() > 1:
                assert torch.allclose(filters(state[name] - value), abs(step) * filters(value), rtol=1e-4, atol=1e-6)
            else:
                assert torch.equal(state[name], value)
    assert all(torch.equal(seen[2][k], v) for k, v in own.items())  # the middle is the network itself
    ways = [seen[i]["head.weight"] - own["head.weight"] for i in (3, 1)]
    assert torch.allclose(*ways, atol=1e-6) is False and torch.allclose(ways[0], -ways[1], atol=1e-6)


@pytest.mark.parametrize("fails_at", [None, 0, 4])
def test_the_weights_come_back_to_the_last_bit_whatever_happens(fails_at):
    network = small()
    network.stage2.eval()
    kept = {k: (v, v.data_ptr(), v.clone()) for k, v in network.state_dict(keep_vars=True).items()}
    modes, random, draws = [m.training for m in network.modules()], torch.get_rng_state(), []

    def loss_of(network):
        network.train()
        draws.append(torch.rand(1).item())
        if len(draws) - 1 == fails_at:
            raise KeyError
        return network(torch.ones(2, 3, 8, 8)).sum()

    if fails_at is None:
        landscape(network, loss_of, points=3, dims=2)
        assert len(draws) == 9 and len(set(draws)) == 1
    else:
        with pytest.raises(KeyError):
            landscape(network, loss_of, points=3, dims=2)
    for name, value in network.state_dict(keep_vars=True).items():
        assert value is kept[name][0] and value.data_ptr() == kept[name][1] and torch.equal(value, kept[name][2])
    assert [m.training for m in network.modules()] == modes and torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("span", [0.5, 1.0])
def test_a_bowl_has_its_own_curvature_and_is_convex(dims, span):
    network = small()
    found = landscape(network, squares, span=span, points=7, dims=dims)
    # Filters of a direction have the norm of the weights', so the second derivative of the sum of squares is twice it.
    assert found.curvature == pytest.approx(2 * squares(network), rel=1e-3)
    assert found.nonconvex == 0
    hill = landscape(network, lambda n: -squares(n), span=span, points=7, dims=dims)
    assert hill.curvature == pytest.approx(-found.curvature, rel=1e-3) and hill.nonconvex == 1


def test_rough_slices_have_a_larger_share_that_is_not_convex():
    network = small()
    own, steps = network.head.weight.detach().clone(), []

    def wavy(network):
        step = (network.head.weight - own).norm().item() / own.norm().item()
        steps.append(step)
        return step**2 + 0.1 * math.cos(25 * step)

    found = landscape(network, wavy, points=41)
    smooth = landscape(network, lambda n: steps.pop(0) ** 2, points=41)
    assert smooth.nonconvex == 0 < 0.3 < found.nonconvex < 0.7


def test_a_flat_slice_is_convex_in_spite_of_rounding():
    ripple = iter(range(1000))
    assert landscape(small(), lambda n: 1 + 1e-8 * (next(ripple) % 2)).nonconvex == 0


def test_a_square_has_the_first_direction_first():
    network = small()
    line = landscape(network, squares, points=5, seed=3)
    square = landscape(network, squares, points=5, dims=2, seed=3)
    assert square.dims == 2 and [len(row) for row in square.losses] == [5] * 5
    assert [row[2] for row in square.losses] == pytest.approx(line.losses)
    assert square.losses[2] != pytest.approx(line.losses, rel=1e-6)
    assert square.losses[2][2] == pytest.approx(squares(network))


def test_directions_are_those_of_the_seed_whatever_the_shortcuts():
    ends = {}
    for shortcut in ("pad", "none"):
        for seed in (0, 1):
            torch.manual_seed(5)
            network, moved = small(shortcut=shortcut), []
            own = network.head.weight.detach().clone()
            landscape(network, lambda n, w=own, m=moved: m.append((n.head.weight - w).detach()) or 0.0, seed=seed)
            ends[shortcut, seed] = moved[-1] / filters(own)[:, None]
    assert torch.allclose(ends["pad", 0], ends["none", 0], atol=1e-6)
    assert not torch.allclose(ends["pad", 0], ends["pad", 1], atol=0.01)


def test_losses_that_are_not_finite_stay_so_and_are_none_in_json():
    losses = iter([math.nan, math.inf, 1.0, 2.0, 1.0, 2.0, -math.inf])
    found = landscape(small(), lambda n: next(losses), points=7)
    assert math.isnan(found.losses[0]) and found.losses[1] == math.inf and found.losses[6] == -math.inf
    assert found.nonconvex == pytest.approx(0.5) and found.curvature == pytest.approx(-2 / (1 / 3) ** 2)
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert told["losses"] == [None, None, 1.0, 2.0, 1.0, 2.0, None] and told["accuracies"] is None
    nothing = landscape(small(), lambda n: math.nan, points=3)
    assert math.isnan(nothing.curvature) and math.isnan(nothing.nonconvex)


def test_losses_and_accuracies_of_batches():
    network, x, y = small(), torch.randn(12, 3, 8, 8), torch.randint(3, (12,))
    found = landscape(network, batches_loss(x, y, batch_size=5), points=3, dims=2)
    network.eval()
    outputs = network(x)
    assert found.losses[1][1] == pytest.approx(F.cross_entropy(outputs, y).item(), rel=1e-5)
    assert found.accuracies[1][1] == pytest.approx((outputs.argmax(1) == y).float().mean().item())
    assert [len(row) for row in found.accuracies] == [3] * 3
    assert landscape(network, lambda n: torch.tensor(2.0), points=3).accuracies is None


@pytest.mark.parametrize(
    "network, options, said",
    [
        (nn.Linear(2, 2), {"dims": 3}, "invalid dims: expected 1 for a line or 2 for a square, got 3"),
        (
            nn.Linear(2, 2),
            {"points": 4},
            "expected an odd integer of at least 3, whose center is the model, got 4",
        ),
        (nn.Linear(2, 2), {"points": 1}, "expected an odd integer of at least 3"),
        (nn.Linear(2, 2), {"points": 5.0}, "expected an odd integer of at least 3"),
        (nn.Linear(2, 2), {"span": 0}, "invalid span: expected a finite step above 0, got 0"),
        (nn.Linear(2, 2), {"span": math.nan}, "invalid span: expected a finite step above 0, got nan"),
        (
            nn.BatchNorm1d(3),
            {},
            "cannot compute the loss landscape: expected weights of two or more axes, got a network with none",
        ),
        (
            nn.Linear(2, 2),
            {"loss_of": lambda n: "low"},
            r"a function that returns a loss or \(loss, accuracy\), got str",
        ),
        (nn.Linear(2, 2), {"loss_of": lambda n: (1, torch.ones(2))}, "got int, Tensor. Use batches_loss"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(network, options, said):
    with pytest.raises(InputError, match=said) as caught:
        landscape(network, **{"loss_of": squares, **options})
    assert "\n" not in str(caught.value)
