import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import skipway as sw
from skipway.errors import InputError, ShapeError
from skipway.nn.chain import Chain
from skipway.nn.reversible import Coupling, Reversible

pytestmark = pytest.mark.usefixtures("one_thread")


def convolutions(width=4, dropout=0.0):
    return nn.Sequential(
        nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(width, width, 3, padding=1, bias=False)
    )


def linears(width=3):
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, width))


def pair(body, count=3):
    """The same couplings twice: as Reversible runs them, and as autograd would keep them."""
    torch.manual_seed(2)
    kept = Chain(*(Coupling(body(), body()) for _ in range(count)))
    return Reversible(*copy.deepcopy(list(kept))), kept


def passed(network, x, weights):
    """Output, gradients of input, parameters, then the buffers."""
    torch.manual_seed(5)
    x = x.clone().requires_grad_()
    out = network(x)
    (out * weights).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in network.parameters()), *network.buffers(), torch.rand(2)]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_outputs_gradients_statistics_and_chances_are_those_that_autograd_would_give(dropout):
    reversible, kept = pair(lambda: convolutions(dropout=dropout))
    x, weights = torch.randn(4, 8, 5, 5), torch.randn(4, 8, 5, 5)
    for found, expected in zip(passed(reversible, x, weights), passed(kept, x, weights), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert all(m.num_batches_tracked == 1 for m in reversible.modules() if isinstance(m, nn.BatchNorm2d))


def test_gradients_are_those_of_differences():
    network = pair(linears)[0].double()
    parameters = dict(network.named_parameters())

    def of(x, *values):
        return torch.func.functional_call(network, dict(zip(parameters, values, strict=True)), x)

    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(of, (x, *parameters.values()))


def test_second_derivatives_are_refused():
    x = torch.ones(1, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(pair(linears)[0](x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("inside", [True, False], ids=["backward inside autocast", "outside"])
def test_under_autocast_no_gradient_is_lost(inside):
    reversible, kept = pair(convolutions)
    x = torch.randn(4, 8, 5, 5)
    for network in (reversible, kept):
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(x).float().square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
    for p, q in zip(reversible.parameters(), kept.parameters(), strict=True):
        assert F.cosine_similarity(p.grad.flatten(), q.grad.flatten(), dim=0) > 0.99


def test_a_network_of_bfloat16_stays_one():
    network, _ = pair(convolutions)
    x = torch.randn(4, 8, 5, 5).bfloat16().requires_grad_()
    out = network.bfloat16()(x)
    out.float().sum().backward()
    assert out.dtype == x.grad.dtype == torch.bfloat16


def test_what_is_kept_does_not_grow_with_depth():
    def kept(count):
        sizes = []
        network = Reversible(*(Coupling(convolutions(), convolutions()) for _ in range(count)))
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            network(torch.randn(2, 8, 6, 6))
        return sum(sizes)

    assert kept(2) == kept(20) == 2 * 8 * 6 * 6


def test_layers_that_do_not_learn_are_left_alone():
    network, kept = pair(convolutions)
    for n in (network, kept):
        n[1].f[3].weight.requires_grad_(False)
        n[2].requires_grad_(False)
        n(torch.ones(2, 8, 4, 4)).square().sum().backward()
    assert network[1].f[3].weight.grad is None and network[2].g[3].weight.grad is None
    torch.testing.assert_close(network[0].f[3].weight.grad, kept[0].f[3].weight.grad)


def test_a_body_that_gives_no_gradient_is_borne():
    network = Reversible(Coupling(torch.zeros_like, nn.Linear(2, 2)))
    x = torch.ones(1, 4, requires_grad=True)
    network(x).sum().backward()
    assert x.grad.shape == (1, 4) and network[0].g.weight.grad is not None


def test_a_body_that_is_used_twice_gathers_both_gradients():
    body = nn.Linear(2, 2)
    gradients = []
    with pytest.warns(UserWarning, match="share parameters"):
        networks = [Reversible(Coupling(body, body), Coupling(body, nn.Identity()))]
    networks.append(nn.Sequential(*networks[0]))
    for network in networks:
        body.zero_grad()
        network(torch.arange(4.0).view(1, 4)).square().sum().backward()
        gradients.append(body.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_memory_format_stays():
    network, _ = pair(convolutions)
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    assert network(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["revnet38", "revnet164"])
def test_a_reversible_resnet_learns_what_autograd_would_teach_it(name):
    network = sw.create_model(name, 3, layers=(2, 2, 1), widths=(8, 8, 16), stem_channels=None)
    plain = copy.deepcopy(network)
    for path, module in list(plain.named_modules()):
        if isinstance(module, Reversible):
            sw.set_submodule(plain, path, Chain(**dict(module.named_children())))
    x, y = torch.randn(6, 3, 12, 12), torch.arange(6) % 3
    for n in (network, plain):
        F.cross_entropy(n.train()(x), y).backward()
    for (key, p), q in zip(network.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=key)
    for p, q in zip(network.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(p, q)
    assert sw.output_shape(network, (2, 3, 12, 12)) == (2, 3)


@pytest.mark.parametrize("shortcut", ["auto", "pad", "pool"])
def test_no_block_is_left_out(shortcut):
    network = sw.create_model("revnet38", layers=(3, 2, 1), widths=(8, 16, 16), shortcut=shortcut)
    couplings = [path for path, module in network.named_modules() if isinstance(module, Coupling)]
    assert [sum(path.startswith(f"stage{i}") for path in couplings) for i in (1, 2, 3)] == [3, 2, 1]
    assert network(torch.ones(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("name, millions", [("revnet38", 0.46), ("revnet110", 1.73), ("revnet164", 1.75)])
def test_parameters_are_those_of_the_paper(name, millions):
    with torch.device("meta"):
        network = sw.create_model(name)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(
    "options",
    [
        {"block": "basic"},
        {"join": "scale"},
        {"shortcut": "none"},
        {"shortcut": "project"},
        {"drop_path": 0.1},
        {"norm": "fixup"},
    ],
)
def test_a_reversible_resnet_refuses_what_cannot_be_reversed(options):
    with pytest.raises(InputError, match="resnet with reversible=True: expected block"):
        sw.create_model("revnet38", **options)


def test_odd_halves_are_refused():
    with pytest.raises(InputError, match="expected even widths, got 7. Make it even"):
        sw.create_model("revnet38", widths=(8, 7, 16))
    with pytest.raises(ShapeError, match="with an even number of channels"):
        pair(linears)[0](torch.ones(1, 5))
    with pytest.raises(ShapeError, match="`add`: expected equal shapes"):
        Coupling(nn.Linear(2, 3), nn.Identity())(torch.ones(1, 4))


def test_only_couplings_that_keep_the_shape_make_a_reversible():
    around = (nn.Linear(2, 3), nn.Linear(2, 3))
    with pytest.raises(InputError, match="expected Couplings without shortcuts, got Coupling with shortcuts"):
        Reversible(Coupling(nn.Linear(2, 3), nn.Linear(3, 3), around))
    with pytest.raises(InputError, match="expected Couplings without shortcuts, got Linear"):
        Reversible(nn.Linear(2, 2))
    with pytest.raises(InputError, match="expected at least one Coupling, got none"):
        Reversible()


def test_recomputation_has_nothing_to_save_there():
    with pytest.raises(InputError, match="a Chain of blocks that are not reversible, got none"):
        sw.recompute(sw.create_model("revnet38"))


# The axis of the channels


@pytest.mark.parametrize("kind", [lambda *c: Chain(*c), Reversible], ids=["Chain", "Reversible"])
def test_the_last_layers_tell_the_axis_of_the_channels(kind):
    last = kind(*(Coupling(nn.Linear(2, 2), nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2))) for _ in range(2)))
    x = torch.randn(3, 6, 4)
    rows = torch.stack([last(x[:, t]) for t in range(6)], 1)  # of (B, C), which has only one reading
    torch.testing.assert_close(last(x), rows)
    assert kind(Coupling(nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)))(x).shape == x.shape


def test_an_axis_that_is_set_wins_and_is_shared():
    halves = lambda **dim: Coupling(torch.tanh, torch.zeros_like, **dim)  # noqa: E731
    x = torch.randn(2, 6, 4)
    first = torch.cat([x[:, :3] + x[:, 3:].tanh(), x[:, 3:]], 1)
    last = torch.cat([x[..., :2] + x[..., 2:].tanh(), x[..., 2:]], 2)
    for network, expected in [
        (halves(dim=1), first),
        (halves(dim=-1), last),
        (halves(dim=2), last),
        (Reversible(halves(), dim=-1), last),
        (Reversible(halves(), halves(dim=1))[:1], first),
        (Chain(Reversible(halves()), dim=-1), last),
    ]:
        assert torch.equal(network(x), expected)
    assert "dim=-1" in repr(Chain(halves(dim=-1))) and "dim" not in repr(Chain(halves()))


def test_a_sequence_with_two_readings_is_refused():
    for network in (Coupling(nn.Identity(), nn.Tanh()), Reversible(Coupling(nn.Identity(), nn.Tanh()))):
        with pytest.raises(
            ShapeError, match=r"\(B, C, L\) with 6 channels, or \(B, T, C\) with 4. Set dim=1 or dim=-1"
        ):
            network(torch.ones(2, 6, 4))
    with pytest.raises(InputError, match="Reversible: expected Couplings with the same dim, got -1 and 1"):
        Reversible(Coupling(nn.Tanh(), nn.Tanh(), dim=-1), Coupling(nn.Tanh(), nn.Tanh(), dim=1))
    with pytest.raises(ShapeError, match=r"cannot halve the channels: .* on axis -1, got \(2, 4, 3\)"):
        Coupling(nn.Tanh(), nn.Tanh(), dim=-1)(torch.ones(2, 4, 3))


# Bodies that cannot be coupled


@pytest.mark.parametrize("kind", [lambda *c: Chain(*c), Reversible], ids=["Chain", "Reversible"])
@pytest.mark.parametrize("bodies", [(lambda x: x.mul_(2), nn.Tanh()), (nn.Tanh(), lambda x: x.mul_(2))])
def test_a_body_that_changes_its_input_is_refused(bodies, kind):
    for enabled in (True, False):
        with pytest.raises(InputError, match="the body Function modifies its input"), torch.set_grad_enabled(enabled):
            kind(Coupling(*bodies))(torch.ones(2, 4))
    with pytest.raises(InputError, match="at the start of a Coupling modifies in place"):
        Coupling(nn.Tanh(), nn.ReLU(inplace=True))


@pytest.mark.parametrize("kind", [lambda *c: Chain(*c), Reversible], ids=["Chain", "Reversible"])
@pytest.mark.parametrize("body, name", [(nn.LSTM(2, 2), "tuple"), (lambda x: None, "NoneType")])
def test_a_body_that_returns_no_tensor_is_refused(body, name, kind):
    with pytest.raises(ShapeError, match=f"expected one tensor from each side, got {name} and Tensor"):
        kind(Coupling(body, nn.Tanh()))(torch.ones(2, 4))


# Transforms and tracers take the plain path


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    "network",
    [
        Reversible(*(Coupling(linears(2), linears(2)) for _ in range(2))),
        sw.recompute(Chain(*(sw.Skip(linears(4)) for _ in range(3))), 1),
    ],
    ids=["Reversible", "recompute"],
)
def test_transforms_and_tracers_see_through_recomputation(network):
    network, x = network.double(), torch.randn(3, 4, dtype=torch.float64)
    values = dict(network.named_parameters())
    detached = {name: p.detach() for name, p in values.items()}

    def loss(parameters, x):
        return torch.func.functional_call(network, parameters, (x,)).square().sum()

    whole = torch.autograd.grad(loss(values, x), list(values.values()))
    each = torch.func.vmap(torch.func.grad(lambda p, row: loss(p, row[None])), (None, 0))(detached, x)
    for expected, gradient in zip(whole, each.values(), strict=True):
        torch.testing.assert_close(gradient.sum(0), expected)
    plain = nn.Sequential(*network)
    expected = torch.autograd.functional.hessian(lambda x: plain(x).square().sum(), x)
    torch.testing.assert_close(torch.func.hessian(lambda x: loss(detached, x))(x), expected)
    out, tangent = torch.func.jvp(network, (x,), (x,))
    torch.testing.assert_close(tangent, torch.autograd.functional.jvp(plain, x, x)[1])
    with nn.utils.parametrize.cached():
        torch.testing.assert_close(network(x), out)
    for traced in (
        torch.jit.trace(network, x),
        torch.fx.symbolic_trace(network),
        torch.export.export(network, (x,)).module(),
    ):
        torch.testing.assert_close(traced(x), out)


def test_images_in_channels_last_are_halved_in_vmap():
    network, kept = pair(convolutions, count=1)
    x = torch.randn(3, 2, 8, 5, 5)
    out = torch.func.vmap(network.eval())(x)
    torch.testing.assert_close(out, torch.stack([kept.eval()(image) for image in x]), rtol=1e-4, atol=1e-5)


def test_a_trainable_cached_parametrization_keeps_its_gradient():
    network, kept = pair(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), count=2)
    for chain in (network, kept):
        with nn.utils.parametrize.cached():
            out = chain(torch.ones(1, 4)).sum()
        out.backward()
    for p, q in zip(network.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
