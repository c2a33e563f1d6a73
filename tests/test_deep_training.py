"""Each shortcut that makes depth trainable does: fifty blocks learn the digits where the plain stack does not."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from skipway.joins import Gate, Scale
from skipway.models import registry
from skipway.skip import walk

DEPTH = 50
WAYS = {  # Fifty blocks without a norm each, but for the way in which the body meets what is kept.
    "residual, last layer at zero": {"join": "add", "norm": "none"},
    "ReZero and SkipInit": {"join": "scale", "norm": "none"},
    "LayerScale": {"join": "layerscale", "norm": "none"},
    "highway": {"join": "gate", "norm": "none"},
    "Fixup": {"norm": "fixup"},
    "dense": {"join": "concat", "norm": "none"},
}


def deep(seed=0, **options):
    torch.manual_seed(seed)
    return registry.build("resmlp", layers=DEPTH, width=32, hidden=1.0, growth=4, **options)[0]


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return torch.tensor(data.data[:600] / 16 - 0.3, dtype=torch.float32), torch.tensor(data.target[:600])


def learned(network, digits, steps=100):
    """Accuracy on what it was trained on, after so many steps of Adam."""
    x, y = digits
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(steps):
        batch = torch.randint(len(x), (100,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        return (network.eval()(x).argmax(1) == y).double().mean().item()


@pytest.mark.parametrize("way", WAYS)
def test_fifty_blocks_learn(way, digits):
    assert learned(deep(**WAYS[way]), digits) > 0.85


def test_the_plain_stack_of_the_same_blocks_does_not(digits):
    assert max(learned(deep(seed, join="none", norm="none"), digits) for seed in range(2)) < 0.3


@pytest.mark.parametrize("way", WAYS)
def test_no_way_begins_where_nothing_can_learn(way, digits):
    """Zeros in a row, as a scale of zero around a body that ends in zeros, would keep each other at zero."""
    network = deep(**WAYS[way])
    optimizer = torch.optim.SGD(network.parameters(), 1e-2)
    moved = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for _ in range(4):  # Fixup's zeros open up one after the other: head, last weights, and the rest
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(digits[0][:100]), digits[1][:100]).backward()
        optimizer.step()
        for name, p in network.named_parameters():
            moved[name] += p.grad.abs()
    assert [name for name, total in moved.items() if not total.any()] == []


@pytest.mark.parametrize("way, least, most", [("none", 0, 0.5), ("scale", 0.85, 1)])
def test_convolutions_without_norms_learn_by_skipinit_and_not_in_a_plain_stack(way, least, most, digits):
    torch.manual_seed(1)
    plain = {"shortcut": "none"} if way == "none" else {"join": way}
    network = registry.build("resnet18", layers=[8, 8], widths=[8, 16], stem="small", in_chans=1, num_classes=10,
                             norm="none", **plain)[0]  # fmt: skip
    x, y = digits
    optimizer = torch.optim.Adam(network.parameters(), 6e-3)
    for _ in range(120):
        batch = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[batch].view(-1, 1, 8, 8)), y[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        assert least <= (network(x.view(-1, 1, 8, 8)).argmax(1) == y).double().mean() <= most


def test_gates_begin_the_more_closed_the_deeper_the_network():
    for family, options in (("resmlp", {"layers": 50}), ("resnet18", {"layers": [25, 25], "widths": [4, 4]})):
        network = registry.build(family, join="gate", **options)[0]
        gates = [module for module in network.modules() if isinstance(module, Gate)]
        openings = torch.stack([gate.transform.bias.sigmoid().mean() for gate in gates])
        assert len(gates) == 50 and torch.allclose(openings, torch.full((50,), 1 / 51), atol=1e-3)
    assert registry.build("resmlp", join="gate")[0].stage1[0].join.transform.bias.eq(-2).all()


def test_layerscale_and_scale_begin_as_their_papers_say():
    scales = [skip.join for _, skip in walk(deep(join="layerscale"))]
    assert all(isinstance(s, Scale) and torch.equal(s.scale, torch.full((32,), 1e-5)) for s in scales)
    assert all(torch.equal(skip.join.scale, torch.zeros(())) for _, skip in walk(deep(join="scale")))
    fixed = [skip for _, skip in walk(deep(norm="fixup"))]
    assert all(skip.join.scale.item() == 1 and not skip.body.linear2.weight.any() for skip in fixed)


def test_fixup_scales_by_depth_to_the_minus_one_half_of_two_layers():
    shallow = registry.build("resmlp", layers=1, norm="fixup")[0].stage1[0].body.linear1.weight.std()
    deep_one = registry.build("resmlp", layers=64, norm="fixup")[0].stage1[0].body.linear1.weight.std()
    assert (deep_one / shallow).item() == pytest.approx(64**-0.5, rel=0.1)
