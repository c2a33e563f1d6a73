"""Blocks dropped, exchanged and shuffled, against the same done by hand; and the network back as it was."""

import json
import math

import pytest
import torch
from scipy.stats import kendalltau
from torch import nn

import skipway as sw
from skipway.errors import InputError
from skipway.probe.ablation import batches_accuracy, lesion


def small(**options):
    return sw.create_model("resnet20", widths=[4, 8, 16], **options)


def woken(network, seed=0):
    """With weights that no body begins as zeros with."""
    generator = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=generator) + (p.dim() == 1)
    return network.eval()


def score_on(x):
    """A number that any change of the outputs changes."""

    def score(network):
        with torch.no_grad():
            out = network(x)
        return (out * torch.arange(1, out.numel() + 1).view_as(out)).sum().item()

    return score


def state_of(network):
    return {path: (m, m.training) for path, m in network.named_modules()}, {
        name: (t, t.clone()) for name, t in network.state_dict(keep_vars=True).items()
    }


def same(network, state):
    modules, tensors = state
    now = {path: (m, m.training) for path, m in network.named_modules()}
    kept = network.state_dict(keep_vars=True)
    return (
        list(now) == list(modules)
        and all(now[k][0] is m and now[k][1] == mode for k, (m, mode) in modules.items())
        and all(kept[k] is t and torch.equal(t, copy) for k, (t, copy) in tensors.items())
        and not any(m._forward_hooks for m, _ in modules.values())
    )


def test_each_block_is_dropped_by_itself():
    body, around, act = [nn.Linear(4, 4) for _ in range(3)], nn.Linear(4, 4), nn.ReLU(inplace=True)
    network = sw.Chain(sw.Skip(body[0], after=act), sw.Skip(body[1], around, join=sw.Scale(init=0.5)), sw.Skip(body[2]))
    x = torch.randn(3, 4)
    given, score = x.clone(), score_on(x)
    found = lesion(network, score, cuts=["drop"])

    def by_hand(*without):
        h = x if 0 in without else x + body[0](x)
        h = h.relu()
        h = around(h) + (0 if 1 in without else 0.5 * body[1](h))
        return h if 2 in without else h + body[2](h)

    expected = [score(lambda x, i=i: by_hand(i)) for i in range(3)]
    assert found.score == pytest.approx(score(lambda x: by_hand()), rel=1e-5)
    assert [drop.score for drop in found.dropped] == pytest.approx(expected, rel=1e-5)
    assert [(d.path, d.stage, d.remainder) for d in found.dropped] == [
        ("0", "", "identity"),
        ("1", "", "shortcut"),
        ("2", "", "identity"),
    ]
    assert not (found.several or found.swapped or found.shuffled or found.left_out)
    assert torch.equal(x, given)  # though what follows the first shortcut works in place


def test_couplings_are_dropped_with_and_without_shortcuts():
    network = woken(sw.create_model("revnet38", layers=[2, 2], widths=[4, 8], num_classes=3))
    x = torch.randn(2, 3, 8, 8)
    found = lesion(network, score_on(x), cuts=["drop"])
    assert [(d.path, d.stage, d.remainder) for d in found.dropped] == [
        ("stage1.rest.0", "stage1", "identity"),
        ("stage1.rest.1", "stage1", "identity"),
        ("stage2.change", "stage2", "shortcut"),
        ("stage2.rest.0", "stage2", "identity"),
    ]
    for drop in found.dropped:  # a Coupling whose bodies give zeros is what is left
        coupling = network.get_submodule(drop.path)
        kept = {k: v.clone() for k, v in coupling.state_dict().items()}
        for body in (coupling.f, coupling.g):
            nn.init.zeros_(body.conv2.weight)
        assert drop.score == pytest.approx(score_on(x)(network), rel=1e-4)
        coupling.load_state_dict(kept)


def test_plain_blocks_are_taken_out_where_they_keep_the_shape():
    network = woken(small(shortcut="none", layers=[2, 2, 1]))
    found = lesion(network, score_on(torch.randn(2, 3, 8, 8)), cuts=["drop"])
    assert [(d.path, d.remainder) for d in found.dropped] == [(f"stage{p}", "nothing") for p in ("1.0", "1.1", "2.1")]
    assert len({d.score for d in found.dropped} | {found.score}) == 4
    assert found.left_out == [
        "stage2.0 was not dropped: a plain block that maps (4, 8, 8) to (8, 4, 4)",
        "stage3.0 was not dropped: a plain block that maps (8, 4, 4) to (16, 2, 2)",
    ]


@pytest.mark.parametrize(
    "join, name", [("gate", "Gate"), ("multiply", "multiply"), ("append", "append"), (torch.maximum, "maximum")]
)
def test_a_join_that_needs_its_body_is_named(join, name):
    body = nn.Linear(4, 4)
    skip = sw.Skip(body, join=sw.Gate(4) if join == "gate" else join)
    network = sw.Chain(stage1=sw.Chain(sw.Skip(nn.Linear(4, 4)), skip))
    found = lesion(network, score_on(torch.randn(2, 4)))
    assert [d.path for d in found.dropped] == ["stage1.0"]
    assert found.left_out == [f"stage1.1 was not dropped: its join {name} is no addition and needs the body"]
    assert len(found.swapped) == (join != "append")  # what keeps the shape can still be moved


def test_an_addition_by_another_name_adds():
    found = lesion(sw.Chain(sw.Skip(nn.Linear(4, 4), join=torch.add)), score_on(torch.randn(2, 4)))
    assert len(found.dropped) == 1 and not found.left_out


def test_several_are_dropped_by_draws_of_the_seed():
    network = woken(small(layers=[2, 2, 2]))
    score = score_on(torch.randn(2, 3, 8, 8))
    found = lesion(network, score, cuts=["several"], draws=4, seed=1)
    assert [(s.count, len(s.scores)) for s in found.several] == [(1, 6), (2, 4), (4, 4), (6, 1)]
    assert found.several[0].scores == [d.score for d in found.dropped]
    assert len(set(found.several[1].scores)) > 1
    assert found == lesion(network, score, cuts=["several"], draws=4, seed=1)
    assert found.several[1] != lesion(network, score, cuts=["several"], draws=4, seed=2).several[1]
    for _, skip in sw.named_skips(network):
        nn.init.zeros_(skip.body.norm2.weight)
        nn.init.zeros_(skip.body.norm2.bias)
    assert found.several[-1].scores == pytest.approx([score(network)], rel=1e-4)


def exchanged(network, first, second):
    a, b = network.get_submodule(first), network.get_submodule(second)
    sw.set_submodule(network, first, nn.Identity())
    sw.set_submodule(network, second, a)
    sw.set_submodule(network, first, b)


def test_neighbours_of_one_shape_are_exchanged():
    network = woken(small(layers=[3, 3, 1]))
    score = score_on(torch.randn(2, 3, 8, 8))
    found = lesion(network, score, cuts=["swap"])
    pairs = [("stage1.0", "stage1.1"), ("stage1.1", "stage1.2"), ("stage2.1", "stage2.2")]
    assert [(s.first, s.second) for s in found.swapped] == pairs
    for swap, pair in zip(found.swapped, pairs, strict=True):
        exchanged(network, *pair)
        assert swap.score == score(network) != found.score
        exchanged(network, *pair)
    assert not found.dropped


@pytest.mark.parametrize(
    "made, swaps",
    [
        (("revnet38", {"layers": [3], "widths": [4]}), [(f"stage1.rest.{i}", f"stage1.rest.{i + 1}") for i in (0, 1)]),
        (
            ("resnet20", {"layers": [3, 2, 1], "widths": [4, 8, 16], "block": "preact_basic", "shortcut": "project"}),
            [("stage1.0", "stage1.1"), ("stage1.1", "stage1.2")],
        ),
        (("resnet20", {"layers": [2, 1], "widths": [4, 8], "shortcut": "none"}), [("stage1.0", "stage1.1")]),
        (("densenetbc100_12", {"layers": [2, 2]}), []),
    ],
)
def test_what_may_be_moved_in_each_family(made, swaps):
    name, options = made
    found = lesion(woken(sw.create_model(name, **options)), score_on(torch.randn(2, 3, 8, 8)), cuts=["swap", "shuffle"])
    assert [(s.first, s.second) for s in found.swapped] == swaps
    assert bool(found.shuffled) == bool(swaps) and all(s.score != found.score for s in found.swapped)


def test_blocks_of_different_stages_are_not_moved():
    network = sw.Chain(stage1=sw.Chain(skip=sw.Skip(nn.Linear(4, 4))), stage2=sw.Chain(skip=sw.Skip(nn.Linear(4, 4))))
    found = lesion(network, score_on(torch.randn(2, 4)))
    assert len(found.dropped) == 2 and not found.swapped and not found.shuffled


class Numbered(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.number, self.linear = number, nn.Linear(2, 2)

    def forward(self, x):
        return torch.zeros_like(x)


def test_the_distance_of_a_shuffle_is_kendalls():
    network = sw.Chain(*(sw.Skip(Numbered(i)) for i in range(7)))
    orders = []

    def score(network):
        network(torch.zeros(1, 2))
        orders.append([skip.body.number for skip in network])
        return 0.0

    found = lesion(network, score, cuts=["shuffle"], draws=5)
    assert [s.exchanges for s in found.shuffled] == [n for n in (1, 2, 4, 7) for _ in range(5)]
    assert orders[0] == list(range(7)) and all(sorted(order) == orders[0] for order in orders)
    taus = [kendalltau(orders[0], order).statistic for order in orders[1:]]
    assert [1 - 2 * s.distance for s in found.shuffled] == pytest.approx(taus)
    assert len(set(taus)) > 5 and [skip.body.number for skip in network] == orders[0]


@pytest.mark.parametrize("fails_at", [None, 0, 1, 5, 12])
def test_the_network_comes_back_whatever_happens(fails_at):
    network = woken(small(layers=[2, 2, 1])).train()
    network.stage2.eval()
    state, x, calls = state_of(network), torch.randn(4, 3, 8, 8), []
    random = torch.get_rng_state()

    def score(network):
        network.train()
        calls.append(torch.rand(1).item())
        value = network(x).sum().item()
        if len(calls) - 1 == fails_at:
            raise KeyError
        return value

    if fails_at is None:
        lesion(network, score)
        assert len(calls) > 12 and len(set(calls)) == 1  # the same random state each time
    else:
        with pytest.raises(KeyError):
            lesion(network, score)
    assert same(network, state) and torch.equal(torch.get_rng_state(), random)


def test_a_trained_residual_network_bears_what_a_plain_one_does_not(one_thread):
    x = torch.randn(128, 1, 8, 8)
    y = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()
    worst = {}
    for shortcut in ("pad", "none"):
        torch.manual_seed(0)
        network = small(in_chans=1, num_classes=2, shortcut=shortcut, layers=[2, 2, 1])
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
        found = lesion(network, batches_accuracy(x, y), cuts=["drop"])
        assert found.score > 0.9 and found.measure == "accuracy"
        worst[shortcut] = sum(found.score - d.score for d in found.dropped) / len(found.dropped)
    assert worst["pad"] < 0.5 * worst["none"]


def test_values_are_plain():
    found = lesion(
        sw.Chain(sw.Skip(nn.Linear(2, 2)), sw.Skip(nn.Linear(2, 2))), lambda n: n(torch.ones(1, 2)).sum() * math.inf
    )
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert told == found.as_dict() and math.isinf(found.score)
    assert told["score"] is None and told["dropped"][0]["path"] == "0" and told["several"][0]["count"] == 1


def test_what_is_not_run_and_the_network_itself_are_left_out():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = sw.Skip(nn.Linear(2, 2)), sw.Skip(nn.Linear(2, 2))

        def forward(self, x):
            return self.used(x)

    found = lesion(Half(), score_on(torch.ones(1, 2)))
    assert [d.path for d in found.dropped] == ["used"] and not found.swapped
    assert found.left_out == ["unused was not dropped: score does not run it"]
    found = lesion(sw.Skip(sw.Skip(nn.Linear(2, 2))), score_on(torch.ones(1, 2)))
    assert [d.path for d in found.dropped] == ["body"]
    assert found.left_out == ["the network itself is a block and was not dropped; the blocks inside it were"]


@pytest.mark.parametrize(
    "network, score, options, said",
    [
        (sw.Chain(nn.Linear(2, 2)), None, {}, "cannot run the ablation: expected a Skip, a Coupling or a"),
        (
            sw.Skip(nn.Linear(2, 2)),
            None,
            {"cuts": ["drops"]},
            r"invalid cuts: expected some of drop, several, swap, shuffle, got 'drops' \(did you mean drop\?\). Choose",
        ),
        (sw.Skip(nn.Linear(2, 2)), None, {"draws": 0}, "invalid draws: expected an integer of at least 1, got 0"),
        (
            sw.Skip(nn.Linear(2, 2)),
            lambda n: 0.5,
            {},
            "expected a function that runs the network passed to it, got one that runs none of its blocks",
        ),
        (
            sw.Skip(nn.Linear(2, 2)),
            lambda n: (0.5, 1),
            {},
            "invalid score: expected a function that returns one number, got tuple",
        ),
        (
            sw.Skip(nn.Linear(2, 2)),
            lambda n: torch.ones(2),
            {},
            "expected a function that returns one number, got Tensor. Use batches",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(network, score, options, said):
    with pytest.raises(InputError, match=said) as caught:
        lesion(network, score, **options)
    assert "\n" not in str(caught.value)
