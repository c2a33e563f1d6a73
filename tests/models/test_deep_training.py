"""Each shortcut that makes depth trainable does: fifty blocks learn the digits where the plain stack does not."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from skipway.errors import InputError
from skipway.models import registry
from skipway.nn.blocks import KINDS
from skipway.nn.joins import Gate, Scale
from skipway.nn.skip import named_skips

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


def convolutional(**options):
    torch.manual_seed(0)
    shape = {"layers": [1, 1, 14], "widths": [16, 32, 64], "stem": "small", "in_chans": 1, "num_classes": 10}
    return registry.build("resnet18", **{**shape, **options})[0]


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return torch.tensor(data.data[:600] / 16 - 0.3, dtype=torch.float32), torch.tensor(data.target[:600])


def learned(network, digits, rate=3e-3, size=100, steps=100):
    """Accuracy on what it was trained on, after some steps of Adam."""
    x, y = digits
    optimizer = torch.optim.Adam(network.parameters(), rate)
    for _ in range(steps):
        batch = torch.randint(len(x), (size,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        return (network.eval()(x).argmax(1) == y).double().mean().item()


@pytest.mark.parametrize("way", WAYS)
def test_fifty_blocks_learn(way, digits):
    assert learned(deep(**WAYS[way]), digits, steps=80) > 0.85


def test_the_plain_stack_of_the_same_blocks_does_not(digits):
    assert learned(deep(join="none", norm="none"), digits, steps=80) < 0.3


@pytest.mark.parametrize("way", WAYS)
def test_no_way_begins_where_nothing_can_learn(way, digits):
    """Zeros in a row, as a scale of zero around a body that ends in zeros, would keep each other at zero."""
    assert still(deep(**WAYS[way]), digits[0][:100], digits[1][:100]) == []


@pytest.mark.parametrize("block", ["basic", "bottleneck", "preact_basic"])
@pytest.mark.parametrize("norm", KINDS)
@pytest.mark.parametrize("join", ["add", "scale", "layerscale", "gate"])
def test_no_residual_network_begins_where_nothing_can_learn(join, norm, block, digits):
    if norm == "fixup" and join != "add":
        with pytest.raises(
            InputError, match='resnet with norm "fixup": expected join "add", got "[a-z]+". Remove join'
        ):
            convolutional(block=block, join=join, norm=norm)
    else:
        network = convolutional(block=block, join=join, norm=norm, layers=[2, 1], widths=[16, 32])
        assert still(network, random_images(digits[0][:50]), digits[1][:50]) == []


def random_images(rows):
    """(B, 64) -> (B, 1, 8, 8), spread by about one."""
    return 3 * rows.view(-1, 1, 8, 8)


def still(network, x, y):
    """The parameters that four steps give no gradient."""
    optimizer = torch.optim.SGD(network.parameters(), 1e-2)
    moved = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for _ in range(4):  # Fixup's zeros open up one after the other: head, last weights, and the rest
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        for name, p in network.named_parameters():
            moved[name] += p.grad.abs()
    return [name for name, total in moved.items() if not total.any()]


@pytest.mark.parametrize(
    "options, least, most",
    [({"join": "scale"}, 0.9, 1), ({"join": "layerscale"}, 0.9, 1), ({"shortcut": "none"}, 0, 0.3)],
)
def test_thirty_convolutions_without_norms_learn_around_shortcuts_and_not_in_a_plain_stack(
    options, least, most, digits
):
    x, y = digits
    network = convolutional(norm="none", **options)
    assert least <= learned(network, (random_images(x), y), rate=4e-3, size=32) <= most


def test_gates_begin_the_more_closed_the_deeper_the_network():
    for family, options in (("resmlp", {"layers": 50}), ("resnet18", {"layers": [25, 25], "widths": [4, 4]})):
        network = registry.build(family, join="gate", **options)[0]
        gates = [module for module in network.modules() if isinstance(module, Gate)]
        openings = torch.stack([gate.transform.bias.sigmoid().mean() for gate in gates])
        assert len(gates) == 50 and torch.allclose(openings, torch.full((50,), 1 / 51), atol=1e-3)
    assert registry.build("resmlp", join="gate")[0].stage1[0].join.transform.bias.eq(-2).all()


def test_layerscale_and_scale_begin_as_their_papers_say():
    scales = [skip.join for _, skip in named_skips(deep(join="layerscale"))]
    assert all(isinstance(s, Scale) and torch.equal(s.scale, torch.full((32,), 1e-5)) for s in scales)
    assert all(torch.equal(skip.join.scale, torch.zeros(())) for _, skip in named_skips(deep(join="scale")))
    fixed = [skip for _, skip in named_skips(deep(norm="fixup"))]
    assert all(skip.join.scale.item() == 1 and not skip.body.linear2.weight.any() for skip in fixed)


def test_fixup_scales_by_depth_to_the_minus_one_half_of_two_layers():
    shallow = registry.build("resmlp", layers=1, norm="fixup")[0].stage1[0].body.linear1.weight.std()
    deep_one = registry.build("resmlp", layers=64, norm="fixup")[0].stage1[0].body.linear1.weight.std()
    assert (deep_one / shallow).item() == pytest.approx(64**-0.5, rel=0.1)


def test_fixup_zeroes_the_last_convolution_of_a_body_and_the_head_and_leaves_attention_alone():
    network = convolutional(norm="fixup", attention="se", layers=[1, 1], widths=[16, 32])
    zero = [name for name, p in network.named_parameters() if p.dim() > 1 and not p.any()]
    assert zero == ["stage1.0.body.conv2.weight", "stage2.0.body.conv2.weight", "head.weight"]
    assert not network.head.bias.any()


@pytest.mark.parametrize("block", ["basic", "preact_basic", "preact_bottleneck"])
def test_fixup_shifts_before_each_convolution_and_activation(block):
    body = convolutional(norm="fixup", block=block).stage3[1].body
    names = ["shift", *("".join(c for c in name if not c.isdigit()) for name, _ in body.named_children())]
    for before, name in zip(names, names[1:], strict=False):
        assert name not in ("conv", "act") or before in ("shift", "before"), names
