"""How large activations and gradients are along the depth, against what is computed by hand."""

import json
import math
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import skipway as sw
from skipway.errors import InputError, ShapeError
from skipway.probe.signal_flow import Flows, flow


def rms(value):
    return value.detach().double().square().mean().sqrt().item()


def small(**options):
    return sw.create_model("resnet20", widths=[4, 8, 16], **options)


def deep(blocks, skip, width=32):
    """The source notes' hundred blocks, relu(norm(conv(x))) each, with or without a shortcut around."""

    def block():
        conv, norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.constant_(norm.weight, 0.5)
        return sw.Skip([conv, norm, nn.ReLU()]) if skip else sw.Chain(conv, norm, nn.ReLU())

    return sw.Chain(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *(block() for _ in range(blocks)),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 8 * width, 32),
        nn.ReLU(),
        nn.Linear(32, 2),
    )


def flow_of_notes(blocks, skip, seed):
    torch.manual_seed(seed)
    network = deep(blocks, skip)
    return flow(network, torch.rand(8, 3, 32, 32), torch.randint(0, 2, (8,)))


# The norm of the first convolution's gradient at the beginning, median of five seeds; at a hundred blocks 3.86 with
# shortcuts and 1.07e7 without: what the notes say vanishes explodes.
@pytest.mark.parametrize("skip, ten, thirty", [(True, 1.62, 1.91), (False, 2.32, 68.4)])
def test_plain_blocks_explode_where_shortcuts_keep_the_gradient(one_thread, skip, ten, thirty):
    flows = {blocks: [flow_of_notes(blocks, skip, seed) for seed in range(5)] for blocks in (10, 30)}
    found = {blocks: median(f.layers[0].gradient_norm for f in some) for blocks, some in flows.items()}
    assert found == pytest.approx({10: ten, 30: thirty}, rel=0.02)
    assert (found[30] > 10 * found[10]) != skip
    told = [[note for note in f.notes if "explode" in note] for f in flows[30]]
    assert all(bool(notes) != skip for notes in told)


def test_sizes_and_gradients_are_those_computed_by_hand():
    body, around, head = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 3)
    network = sw.Chain(skip=sw.Skip(body, around, after=nn.ReLU(inplace=True)), head=head)
    x, y = torch.randn(7, 5), torch.randint(3, (7,))
    found = flow(network, x, y)
    block = found.blocks[0]
    leaf = x.clone().requires_grad_()
    out = F.relu(body(leaf) + around(leaf))
    loss = F.cross_entropy(head(out), y)
    by_x, by_out, by_head = torch.autograd.grad(loss, (leaf, out, head.weight))
    assert (block.path, block.kind, found.mode) == ("skip", "skip", "training")
    hand = [rms(x), rms(body(x)), rms(around(x)), rms(body(x)), rms(out), by_x.norm().item(), by_out.norm().item()]
    told = [block.into, block.body, block.shortcut, block.added, block.out, block.gradient_in, block.gradient_out]
    assert told == pytest.approx(hand, rel=1e-5) and found.loss == pytest.approx(loss.item())
    assert block.ratio == pytest.approx(rms(body(x)) / rms(around(x)))
    layers = {layer.path: layer for layer in found.layers}
    assert list(layers) == ["skip.body", "skip.shortcut", "head"]
    assert layers["head"].gradient_norm == pytest.approx(by_head.norm().item(), rel=1e-5)
    assert layers["head"].gradient == pytest.approx(rms(by_head), rel=1e-5)
    assert (layers["head"].count, layers["head"].kind) == (18, "Linear")
    assert layers["head"].weight == pytest.approx(rms(head.weight))
    assert layers["head"].out == pytest.approx(rms(head(out)))


@pytest.mark.parametrize("join", [sw.Scale(init=0.25), sw.Scale(4, init=0.25), sw.Gate(4)])
def test_what_is_added_counts_the_joins_own_weights(join):
    skip = sw.Skip(nn.Linear(4, 4), join=join)
    x = torch.randn(6, 4)
    block = flow(skip, x).blocks[0]
    assert block.added == pytest.approx(rms(skip(x) - x), rel=1e-4)
    assert block.body == pytest.approx(rms(skip.body(x)))
    assert block.ratio == pytest.approx(block.added / rms(x))


def test_a_plain_block_has_a_body_and_keeps_nothing():
    network = small(shortcut="none", layers=[1, 1, 1])
    found = flow(network, torch.randn(4, 3, 8, 8)).blocks
    assert [b.shortcut for b in found] == [None] * 3 and [b.ratio for b in found] == [None] * 3
    assert all(b.body == pytest.approx(1, rel=1e-2) for b in found)  # a norm of weight 1 ends it
    assert all(b.out < b.body for b in found)  # the ReLU comes after


def test_a_coupling_is_measured_over_both_halves():
    coupling = sw.Coupling(nn.Linear(2, 2), nn.Linear(2, 2))
    x = torch.randn(5, 4)
    block = flow(sw.Chain(sw.Reversible(coupling), nn.Linear(4, 3)), x).blocks[0]
    x1, x2 = x.chunk(2, 1)
    first = coupling.f(x2)
    both = torch.cat([first, coupling.g(x1 + first)], 1)
    assert (block.path, block.kind) == ("0.0", "coupling")
    assert [block.body, block.shortcut, block.out] == pytest.approx([rms(both), rms(x), rms(coupling(x))], rel=1e-5)


@pytest.mark.parametrize("every", ["reversible", "recomputed"])
def test_what_keeps_nothing_in_training_is_seen_all_the_same(every):
    network = sw.create_model("revnet38", layers=[2, 2], widths=[4, 8]) if every == "reversible" else small()
    x, y = torch.randn(4, 3, 8, 8), torch.arange(4)
    if every == "recomputed":
        expected = flow(network, x, y)
        assert flow(sw.recompute(network, every=2), x, y) == expected
    found = flow(network, x, y)
    assert all(None not in (b.into, b.body, b.shortcut, b.out, b.gradient_in, b.gradient_out) for b in found.blocks)
    network(x).square().mean().backward()  # and it trains on as before


@pytest.mark.parametrize(
    "name, options, blocks",
    [
        ("resnet20", {"widths": [4, 8, 16]}, 9),
        ("resnet20", {"widths": [4, 8, 16], "shortcut": "none"}, 9),
        ("resnet20", {"widths": [4, 8, 16], "join": "gate"}, 9),
        ("resnetv2_110", {"widths": [4, 8, 16], "layers": [2, 2, 2]}, 6),
        ("resnet9", {"widths": [4, 4, 8, 8]}, 2),
        ("densenetbc100_12", {"layers": [2, 2]}, 4),
        ("revnet38", {"widths": [4, 8], "layers": [2, 2]}, 4),
        ("resmlp", {"layers": 3, "width": 8, "join": "concat"}, 3),
    ],
)
def test_every_family_flows(name, options, blocks):
    network = sw.create_model(name, **options)
    x = torch.randn(8, 64) if name == "resmlp" else torch.randn(8, 3, 16, 16)
    found = flow(network, x)
    assert len(found.blocks) == blocks and len({b.path for b in found.blocks}) == blocks
    for block in found.blocks:
        numbers = (block.into, block.body, block.out, block.gradient_in, block.gradient_out)
        assert all(math.isfinite(number) for number in numbers)
    assert len(found.layers) == sum(any(p.dim() > 1 for p in m.parameters(recurse=False)) for m in network.modules())
    assert all(layer.out > 0 and layer.weight > 0 for layer in found.layers)


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(fails):
    network = small(drop_path=0.5, dropout=0.5)
    network.stage1.eval()
    network.head.weight.requires_grad_(False)
    network.stem.conv.weight.grad = torch.ones_like(network.stem.conv.weight)
    modules = list(network.modules())
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules]
    modes = [m.training for m in modules]
    values = {k: (v, v.clone()) for k, v in network.state_dict(keep_vars=True).items()}
    grads = {k: p.grad for k, p in network.named_parameters()}
    asked = [p.requires_grad for p in network.parameters()]
    x, state = torch.randn(4, 3, 8, 8), torch.get_rng_state()
    if fails:
        with pytest.raises(ZeroDivisionError):
            flow(network, x, loss=lambda outputs, y: 1 / 0)
    else:
        assert flow(network, x).layers[-1].gradient_norm is None  # the head is not trained
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules] == hooks
    assert [m.training for m in modules] == modes
    assert all(v is values[k][0] and v.equal(values[k][1]) for k, v in network.state_dict(keep_vars=True).items())
    assert all(p.grad is grads[k] for k, p in network.named_parameters())
    assert [p.requires_grad for p in network.parameters()] == asked
    assert torch.equal(torch.get_rng_state(), state) and not x.requires_grad


def test_nothing_is_left_to_chance():
    network, x = small(drop_path=0.9, dropout=0.9), torch.randn(4, 3, 8, 8)
    assert flow(network, x) == flow(network, x)
    with torch.inference_mode():
        assert flow(network, x.clone()) == flow(network, x)


def test_without_y_classes_are_drawn_by_a_seed_of_their_own():
    network, x = small(num_classes=7), torch.randn(6, 3, 8, 8)
    y = torch.randint(7, (6,), generator=torch.Generator().manual_seed(0))
    assert flow(network, x) == flow(network, x, y) != flow(network, x, (y + 1) % 7)


def test_norms_take_their_statistics_from_the_batch_or_as_they_run():
    network, x = small(), 10 * torch.randn(8, 3, 8, 8) + 3
    training, evaluation = (flow(network, x, mode=mode).blocks[0].into for mode in ("training", "evaluation"))
    assert training == pytest.approx(math.sqrt(0.5), rel=0.05)  # a ReLU of what has mean 0 and variance 1
    assert evaluation > 3 * training


def test_a_loss_may_be_given_and_numbers_have_squares():
    network, x, y = nn.Sequential(nn.Linear(4, 1)), torch.randn(6, 4), torch.randn(6)
    squares = (network(x)[:, 0] - y).square().mean().item()
    assert flow(network, x, y).loss == pytest.approx(squares)
    assert flow(network, x, "twice", loss=lambda outputs, y: 2 * outputs.sum()).loss == pytest.approx(
        2 * network(x).sum().item()
    )


def test_notes_tell_growth_decay_stillness_and_what_is_not_finite():
    x = torch.randn(6, 4)

    def said(times, **options):
        layers = [sw.Chain(nn.Linear(4, 4, bias=False), nn.Identity()) for _ in range(4)]
        for layer in layers:
            layer[0].weight.data = times * torch.eye(4)
        return "; ".join(flow(sw.Chain(*layers), x, loss=lambda out, y: out.sum(), **options).notes)

    assert said(1.0) == ""
    assert "activations grow 1e+04 times from 0 to 3" in said(10.0)
    assert "gradients grow 1e+04 times from 3 back to 0; they explode" in said(10.0)
    assert "activations shrink to 1/1e+04 from 0 to 3" in said(0.1)
    assert "gradients shrink to 1/1e+04 from 3 back to 0; they vanish" in said(0.1)
    assert said(0.1, factor=1e5) == "" and said(1.5) == "" and "grow 5.06 times" in said(1.5, factor=3)
    assert "activations are not finite" in said(1e38) and "gradients are not finite" in said(1e38)
    assert "activations shrink to zero from 0 to 3; gradients shrink to zero" in said(0.0)
    still = flow(small(), torch.randn(4, 3, 8, 8)).notes
    assert still == [
        "18 of 20 layers get no gradient in this step, starting with stage1.0.body.conv1 (expected at initialization: "
        "zero-initialized branches block the gradient in the first step only)"
    ]


def test_notes_tell_which_blocks_were_not_called_and_which_twice():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = sw.Skip(nn.Linear(4, 4)), sw.Skip(nn.Linear(4, 4))

        def forward(self, x):
            return self.used(self.used(x))

    found = flow(Half(), torch.randn(5, 4))
    assert [b.path for b in found.blocks] == ["used", "used"]
    assert found.blocks[0].out == found.blocks[1].into != found.blocks[0].into
    assert found.layers[0].out == found.blocks[0].body  # of several calls the first
    assert found.notes == ["used was called 2 times", "unused was not called"]
    bare = flow(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(5, 4))
    assert [layer.path for layer in bare.layers] == ["0", "2"] and not bare.blocks
    assert bare.notes == ["the network has no Skip, no Coupling and no plain blocks; only its layers are measured"]


def test_what_is_called_again_on_the_way_back_counts_once():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.skip = sw.Skip(nn.Linear(4, 4))

        def forward(self, x):
            return checkpoint(self.skip, x, use_reentrant=False)

    network, x = Again(), torch.randn(5, 4)
    assert flow(network, x).blocks[0].out == pytest.approx(rms(network(x)))
    assert len(flow(network, x).blocks) == 1


def test_a_network_may_change_its_input_in_place():
    x = torch.randn(5, 4)
    given = x.clone()
    found = flow(sw.Chain(nn.ReLU(inplace=True), sw.Skip(nn.Linear(4, 4))), x)
    assert torch.equal(x, given) and found.blocks[0].into == pytest.approx(rms(x.relu()))


def test_a_skip_inside_a_skip_is_told_apart():
    inner = sw.Skip(nn.Linear(4, 4))
    outer = sw.Skip(inner)
    x = torch.randn(5, 4)
    found = {b.path: b for b in flow(outer, x).blocks}
    assert list(found) == ["", "body"]
    assert found[""].body == found["body"].out == pytest.approx(rms(inner(x)))
    assert found["body"].body == pytest.approx(rms(inner.body(x)))


def test_values_are_plain_and_a_number_that_is_not_finite_is_none():
    network = sw.Chain(sw.Skip(nn.Linear(3, 3)))
    found = flow(network, torch.full((2, 3), math.inf), loss=lambda out, y: out.sum()).as_dict()
    told = json.loads(json.dumps(found, allow_nan=False))
    assert told == found and told["blocks"][0]["into"] is None and told["layers"][0]["count"] == 9
    assert "activations are not finite" in told["notes"]


def test_it_prints_as_a_table():
    lines = str(flow(small(layers=[1, 1, 1]), torch.randn(4, 3, 8, 8))).splitlines()
    assert lines[0].split()[:6] == ["block", "kind", "in", "body", "shortcut", "out"]
    assert [line.split()[:2] for line in lines[1:4]] == [[f"stage{i}.0", "skip"] for i in (1, 2, 3)]
    assert lines[4].startswith("loss ") and lines[5].startswith("note: 6 of 8 layers")


def test_flows_are_gathered_on_the_way():
    network, x, y = small(layers=[1, 1, 1]), torch.randn(8, 3, 8, 8), torch.randint(10, (8,))
    flows = Flows(x, y)
    first = flows.take(network, "at the beginning")
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    last = flows.take(network, "after epoch 1")
    assert first.blocks[0].body == 0 < last.blocks[0].body
    assert flows.as_dict() == {"at the beginning": first.as_dict(), "after epoch 1": last.as_dict()}
    assert last == flow(network, x, y) and not any("no gradient" in note for note in last.notes)


@pytest.mark.parametrize(
    "network, given, said",
    [
        (nn.Linear(3, 2), {"x": [1.0]}, r"invalid x: expected a batch as a tensor \(B, \*\), got list"),
        (nn.Linear(3, 2), {"factor": 1}, "invalid factor: expected a number above 1, got 1"),
        (nn.Linear(3, 2), {"mode": "both"}, "invalid mode: expected training or evaluation, got 'both'"),
        (nn.Linear(3, 1), {}, r"cannot draw random classes: expected outputs \(B, K, \*\) .* got \(4, 1\)"),
        (nn.Linear(3, 2), {"y": torch.tensor([0, 1, 2, 0])}, r"y does not match the outputs: .* and outputs \(4, 2\)"),
        (
            nn.Linear(3, 2),
            {"loss": lambda out, y: out},
            r"invalid loss: expected a scalar tensor that requires a gradient, got a tensor \(4, 2\)",
        ),
        (nn.Linear(3, 2), {"loss": lambda out, y: out.sum().item()}, "that requires a gradient, got float"),
        (nn.Linear(3, 2), {"loss": lambda out, y: out.detach().sum()}, r"got a tensor \(\) without a gradient. Return"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(network, given, said):
    with pytest.raises(InputError, match=said) as caught:
        flow(network, **{"x": torch.randn(4, 3), **given})
    assert "\n" not in str(caught.value)


def test_open_sizes_are_refused():
    with pytest.raises(ShapeError, match="cannot run the network: expected inferred sizes"):
        flow(sw.Chain(sw.Dense(None, 3)), torch.randn(2, 4))
