"""Recomputation starts in the state of the forward pass, and differentiates aliases of the parameters."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrizations

import skipway as sw
from skipway.errors import InputError
from skipway.nn import layer_state
from skipway.nn.chain import Chain
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.skip import Skip

pytestmark = pytest.mark.usefixtures("one_thread")


class Average(nn.Module):
    """A layer that scales by a moving average, which it changes in place or replaces."""

    def __init__(self, width, rows=1, replaced=False):
        super().__init__()
        self.linear, self.replaced = nn.Linear(width, width), replaced
        self.register_buffer("mean", torch.ones(rows, width))

    def forward(self, x):
        mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        if self.replaced:
            self.mean = mean
        else:
            self.mean.copy_(mean)
        return self.linear(x) * self.mean[0]


class FrozenAverage(nn.Module):
    """A layer whose state is a frozen parameter with new data."""

    def __init__(self, width):
        super().__init__()
        self.linear, self.mean = nn.Linear(width, width), nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, x):
        self.mean.data = 0.9 * self.mean.data + 0.1 * x.detach().mean(0)
        return self.linear(x) * self.mean


BODIES = {
    "linear": lambda width: nn.Linear(width, width),
    "batch norm": lambda width: nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width, momentum=None)),
    "spectral norm": lambda width: parametrizations.spectral_norm(nn.Linear(width, width)),
    "spectral norm by hooks": lambda width: torch.nn.utils.spectral_norm(nn.Linear(width, width)),
    "weight norm": lambda width: parametrizations.weight_norm(nn.Linear(width, width)),
    "orthogonal": lambda width: parametrizations.orthogonal(nn.Linear(width, width)),
    "average": Average,
    "large average": lambda width: Average(width, rows=20_000),
    "replaced average": lambda width: Average(width, rows=20_000, replaced=True),
    "frozen average": FrozenAverage,
    "dropout": lambda width: nn.Sequential(nn.Linear(width, width), nn.Dropout(0.4)),
}


def twins(body, reversible):
    """The same network twice: plain, and with recomputation."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bodies that are shared, and of torch about its old norms
        if reversible:
            plain = Chain(*(Coupling(body(2), body(2)) for _ in range(3)))
            return plain, Reversible(*copy.deepcopy(list(plain)))
        plain = Chain(*(Skip(body(4)) for _ in range(4)))
        return plain, sw.recompute(copy.deepcopy(plain), 2)


def step(network, calls, passes=1):
    """Gradients, buffers and the next random number after two training steps with a hook on each parameter."""
    for name, p in network.named_parameters():
        if p.requires_grad:
            p.register_hook(lambda gradient, name=name: calls.append(name) or gradient * 3)
            p.register_post_accumulate_grad_hook(lambda p, name=name: calls.append(f"after {name}"))
    torch.manual_seed(5)
    x = torch.randn(6, 4, requires_grad=True)
    for _ in range(2):
        sum(network(x * (1 + i)).square().mean() for i in range(passes)).backward()
    return [x.grad, *(p.grad for p in network.parameters() if p.requires_grad), *network.buffers(), torch.rand(2)]


@pytest.mark.parametrize("reversible", [False, True], ids=["recompute", "reversible"])
@pytest.mark.parametrize("name", BODIES)
def test_gradients_are_those_of_the_plain_network_and_hooks_run_once(name, reversible):
    plain, thrifty = twins(BODIES[name], reversible)
    expected_calls, calls = [], []
    expected, found = step(plain, expected_calls), step(thrifty, calls)
    for value, other in zip(expected, found, strict=True):
        assert torch.equal(value, other) or (reversible and torch.allclose(value, other, rtol=1e-3, atol=1e-4))
    assert sorted(calls) == sorted(expected_calls)


@pytest.mark.parametrize("reversible", [False, True], ids=["recompute", "reversible"])
@pytest.mark.parametrize("name", ["batch norm", "spectral norm", "dropout"])
def test_two_forward_passes_before_the_backward_pass_are_each_recomputed_in_their_own_state(name, reversible):
    plain, thrifty = twins(BODIES[name], reversible)
    for value, other in zip(step(plain, [], passes=2), step(thrifty, [], passes=2), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("reversible", [False, True], ids=["recompute", "reversible"])
def test_a_parameter_of_several_groups_has_its_hook_called_once_for_the_sum(reversible):
    shared = nn.Parameter(torch.eye(2) if reversible else torch.eye(4))

    def body(width):
        linear = nn.Linear(width, width)
        linear.weight = shared
        return linear

    plain, thrifty = twins(body, reversible)
    expected_calls, calls = [], []
    for value, other in zip(step(plain, expected_calls), step(thrifty, calls), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)
    assert sorted(calls) == sorted(expected_calls)


def test_frozen_and_unused_parameters_stay_without_gradients():
    class HalfUsed(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    network = sw.recompute(Chain(Skip(HalfUsed()), Skip(nn.Linear(4, 4))), 1)
    network[1].requires_grad_(False)
    network(torch.ones(2, 4)).sum().backward()
    assert network[0].body.used.weight.grad is not None
    assert network[0].body.unused.weight.grad is None and network[1].body.weight.grad is None
    network[0].body.unused.weight.register_hook(lambda gradient: gradient * 3)  # which fails for None
    network(torch.ones(2, 4)).sum().backward()
    assert not network[0].body.unused.weight.grad.any()


def test_forward_hooks_run_in_both_passes_and_backward_hooks_once():
    plain, thrifty = twins(BODIES["linear"], reversible=False)
    gradients, counts = [], []
    for network in (plain, thrifty):
        calls = []
        for m in (m for m in network.modules() if isinstance(m, nn.Linear)):
            m.register_forward_hook(lambda module, args, out, calls=calls: calls.append("forward") or out * 2)
            m.register_full_backward_pre_hook(lambda module, out, calls=calls: calls.append("pre") or (out[0] * 3,))
            m.register_full_backward_hook(lambda module, x, out, calls=calls: calls.append("full") or (x[0] * 5,))
        x = torch.linspace(-1, 1, 8).view(2, 4).requires_grad_()
        network(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in network.parameters())])
        counts.append([calls.count(kind) for kind in ("forward", "pre", "full")])
    assert all(map(torch.equal, *gradients))
    assert counts == [[4, 4, 4], [8, 4, 4]]


@pytest.mark.parametrize("reversible", [False, True], ids=["recompute", "reversible"])
def test_distributed_data_parallel_calls_hooks_once(reversible):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        expected, found = (
            step(nn.parallel.DistributedDataParallel(network), [])
            for network in twins(BODIES["spectral norm"], reversible)
        )
    finally:
        dist.destroy_process_group()
    for value, other in zip(expected, found, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)


def test_the_mode_of_the_forward_pass_counts():
    gradients = []
    for network in twins(lambda width: nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width)), reversible=False):
        loss = network(torch.linspace(-1, 1, 8).view(2, 4)).square().sum()
        network.eval()
        loss.backward()
        gradients.append([p.grad for p in network.parameters()])
        assert not any(module.training for module in network.modules())
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("reversible", [False, True], ids=["recompute", "reversible"])
def test_parameters_of_functional_call_get_their_gradients(reversible):
    plain, thrifty = twins(BODIES["linear"], reversible)
    values = {name: torch.full_like(p, 0.3).requires_grad_() for name, p in plain.named_parameters()}
    gradients = []
    for network in (plain, thrifty):
        out = torch.func.functional_call(network, values, torch.linspace(-1, 1, 8).view(2, 4))
        gradients.append(torch.autograd.grad(out.square().sum(), list(values.values())))
    for value, other in zip(*gradients, strict=True):
        torch.testing.assert_close(value, other)


def test_a_backward_pass_can_be_repeated_and_limited():
    plain, thrifty = twins(BODIES["spectral norm"], reversible=False)
    found = []
    for network in (plain, thrifty):
        x = torch.ones(2, 4, requires_grad=True)
        loss = network(x).square().sum()
        found.append(torch.autograd.grad(loss, x, retain_graph=True)[0])
        loss.backward(retain_graph=True)
        loss.backward()
        found[-1] = [found[-1], *(p.grad for p in network.parameters())]
    assert all(map(torch.equal, *found))


def test_token_numbers_and_lstms_and_in_place_layers_are_recomputed():
    class Recurrent(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0]

    layers = [nn.Embedding(5, 4, max_norm=0.5), Skip(Recurrent(4, 4, batch_first=True)), nn.ReLU(inplace=True)]
    plain = Chain(*layers, Skip(nn.Linear(4, 4)))
    thrifty = sw.recompute(copy.deepcopy(plain), 1)
    for network in (plain, thrifty):
        network(torch.tensor([[0, 1, 2], [3, 4, 0]])).square().sum().backward()
    for p, q in zip(plain.parameters(), thrifty.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_large_buffers_that_do_not_change_are_copied_once_and_not_kept(monkeypatch):
    copies = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda t, **how: copies.append(t.numel()) or clone(t, **how))
    network = sw.recompute(Chain(Skip(Average(4)), Skip(nn.Linear(4, 4))), 1)
    network[1].register_buffer("table", torch.zeros(100_000))
    for _ in range(3):
        network(torch.ones(2, 4)).sum().backward()
    assert copies.count(100_000) == 1 and copies.count(4) == 6  # the mean: before both passes
    state = layer_state.LayerState([network[1]])
    state.end_pass()
    with state.restored({}):
        assert network[1].table.data_ptr() == dict(network.named_buffers())["1.table"].data_ptr()
    assert copies.count(100_000) == 1


class Late(nn.Linear):
    """A layer that begins to change a large buffer late."""

    changing = False

    def __init__(self):
        super().__init__(4, 4)
        self.register_buffer("table", torch.zeros(20_000))

    def forward(self, x):
        if self.changing:
            self.table.add_(1)
        return super().forward(x) + self.table[0]


def test_a_large_buffer_that_changes_late_is_reported_once():
    network = sw.recompute(Chain(Skip(Late()), Skip(nn.Linear(4, 4))), 1)
    network(torch.ones(2, 4)).sum().backward()
    network[0].body.changing = True
    with pytest.raises(InputError, match="the same ones in every pass, .* 'table' of Late in place. Run"):
        network(torch.ones(2, 4))
    network(torch.ones(2, 4)).sum().backward()


def test_what_cannot_be_computed_again_is_refused():
    class Decayed(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                self.weight.mul_(0.9)
            return super().forward(x)

    x, outside = torch.ones(2, 4), nn.Parameter(torch.ones(4))
    with pytest.raises(InputError, match="that change only their buffers, .* 'weight' of Decayed in place. Disable"):
        sw.recompute(Chain(Skip(Decayed(4, 4))), 1)(x)
    with pytest.raises(InputError, match=r"hold all their parameters, got one that uses a tensor of shape \(4,\)"):
        sw.recompute(Chain(Skip(nn.Linear(4, 4)), lambda x: x * outside), "stages")(x).sum().backward()
    with pytest.raises(InputError, match="layers in Python, got a ScriptModule"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sw.recompute(Chain(Skip(torch.jit.script(nn.Linear(4, 4)))), 1)(x)
    with pytest.raises(InputError, match="a recomputed group modifies its input in place"):
        sw.recompute(Chain(Skip(nn.Linear(4, 4)), lambda x: x.mul_(2)), 1)(x)
    network = sw.recompute(Chain(Skip(nn.Linear(4, 4)), Skip(nn.Linear(4, 4))), 1)
    loss = network(x).sum()
    with torch.no_grad():
        network[0].body.weight.mul_(2)
    with pytest.raises(InputError, match="as in the forward pass, got 'weight' of Linear modified in place. Call"):
        loss.backward()
    assert isinstance(network[0].body.weight, nn.Parameter) and network[0].body.weight.is_leaf


@pytest.mark.parametrize("loss", [torch.sum, lambda out: out.square().sum()], ids=["linear", "square"])
@pytest.mark.parametrize("reversible", [False, True], ids=["recompute", "reversible"])
def test_second_derivatives_are_refused_and_never_zero(reversible, loss, monkeypatch):
    monkeypatch.setattr(sw.nn.activation_checkpointing, "_LARGE", 1)  # also for inputs that are copied
    network = twins(BODIES["linear"], reversible)[1]
    x = torch.ones(2, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(network(x)), x, create_graph=True)
    for target in (x, network[0].get_parameter("f.weight" if reversible else "body.weight")):
        with pytest.raises(RuntimeError, match="cannot differentiate twice: expected layers without recompute"):
            torch.autograd.grad(slope.square().sum(), target, retain_graph=True, allow_unused=True)
