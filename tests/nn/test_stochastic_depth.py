import copy
import sys

import numpy as np
import pytest
import torch
from processes import HANG, environment, outputs_of, start
from torch import nn
from torch.utils.checkpoint import checkpoint

from skipway.errors import InputError, ShapeError
from skipway.models import registry
from skipway.nn.shape_inference import output_shape
from skipway.nn.skip import Skip, named_skips


class Watched(nn.Linear):
    """A linear layer that remembers how many rows it was given."""

    def __init__(self, features=4):
        super().__init__(features, features)
        self.rows = []

    def forward(self, x):
        self.rows.append(len(x))
        return super().forward(x)


def reference(x, body, rate):
    """Row-mode drop path as it is commonly written: all rows are computed, and a mask over what stays is applied."""
    stays = (torch.rand(len(x)) >= rate).to(x.dtype)
    return x + body(x) * (stays / (1 - rate)).view(-1, *[1] * (x.dim() - 1))


def seed_for(count, rate, left):
    """A seed by which `left` of `count` rows stay."""
    for seed in range(1000):
        torch.manual_seed(seed)
        if (torch.rand(count) >= rate).sum() == left:
            return seed
    raise AssertionError(f"no seed leaves {left} of {count}")


# What is computed


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_rows_are_those_of_the_masked_way_for_the_same_draws(rate, count):
    body = Watched().double()
    skip = Skip(body, drop_path=rate)
    for seed in range(20):
        x = torch.randn(count, 4, dtype=torch.float64)
        torch.manual_seed(seed)
        out = skip(x)
        torch.manual_seed(seed)
        assert torch.allclose(out, reference(x, body, rate), rtol=1e-12)


def test_only_the_rows_that_stay_are_computed():
    body = Watched()
    skip = Skip(body, drop_path=0.5)
    torch.manual_seed(3)
    stays = [int((torch.rand(16) >= 0.5).sum()) for _ in range(40)]
    torch.manual_seed(3)
    for _ in range(40):
        skip(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)))
    assert body.rows == [16 if left == 1 else left for left in stays if left]


def test_a_batch_is_computed_whole_or_not_at_all():
    body = Watched()
    skip = Skip(body, drop_path=0.4, drop_mode="batch")
    x = torch.randn(8, 4)
    with torch.no_grad():
        full = x + body(x) / 0.6
        body.rows.clear()
        outs = [skip(x) for _ in range(400)]
    whole = sum(torch.allclose(out, full) for out in outs)
    assert whole == len(body.rows) and set(body.rows) == {8}
    assert sum(torch.equal(out, x) for out in outs) == 400 - whole and 200 < whole < 280


@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("join", ["add", "scale", "layerscale"])
def test_the_mean_over_draws_is_what_evaluation_gives(mode, join):
    skip = Skip(nn.Linear(3, 3), join=join, drop_path=0.3, drop_mode=mode).double()
    if join == "layerscale":
        output_shape(skip, (1, 3))
    for p in skip.join.parameters() if isinstance(skip.join, nn.Module) else ():
        nn.init.constant_(p, 0.7)
    x = torch.randn(1, 3, dtype=torch.float64).expand(64, 3)
    with torch.no_grad():
        outs = torch.stack([skip(x) for _ in range(600)])
        expected = skip.eval()(x)[0]
    spread = outs.std(0).mean() / (600 if mode == "batch" else 600 * 64) ** 0.5
    assert (outs.mean((0, 1)) - expected).abs().max() < 5 * spread


def test_rows_are_drawn_one_by_one_and_alike():
    skip = Skip(nn.Linear(2, 2), drop_path=0.25)
    x = torch.randn(64, 2)
    with torch.no_grad():
        kept = torch.stack([(skip(x) != x).any(1) for _ in range(1500)]).double().numpy()
    assert kept.mean() == pytest.approx(0.75, abs=0.01) and abs(kept.mean(0) - 0.75).max() < 0.05
    correlations = np.corrcoef(kept.T) - np.eye(64)
    assert abs(correlations).max() < 0.16  # 1500 draws: five standard deviations


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_at_evaluation_nothing_is_left_out(mode):
    plain, thin = Skip(nn.Linear(3, 3)), Skip(nn.Linear(3, 3), drop_path=0.9, drop_mode=mode)
    thin.load_state_dict(plain.state_dict())
    x = torch.randn(5, 3)
    assert torch.equal(plain.eval()(x), thin.eval()(x))


def test_the_same_seed_draws_the_same():
    skip = Skip(nn.Linear(3, 3), drop_path=0.5)
    x = torch.randn(9, 3)
    outs = []
    for _ in range(2):
        torch.manual_seed(7)
        outs.append([skip(x) for _ in range(5)])
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))


def test_the_rates_rise_evenly_over_the_depth():
    network = registry.build("resnet20", drop_path=0.4, drop_mode="batch")[0]
    rates = [skip.drop_path for _, skip in named_skips(network)]
    assert rates == pytest.approx([0.4 * i / 8 for i in range(9)])
    assert {skip.drop_mode for _, skip in named_skips(network)} == {"batch"}


# Gradients


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_a_body_that_is_left_out_has_gradients_of_zero_and_not_none(mode):
    skip = Skip(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), drop_path=0.999, drop_mode=mode)
    frozen = skip.body[0].bias.requires_grad_(False)
    x = torch.randn(4, 3, requires_grad=True)
    skip(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(4, 3)) and frozen.grad is None
    assert all(p.grad is not None and not p.grad.any() for p in skip.parameters() if p.requires_grad)
    assert skip.body[1].num_batches_tracked == 0


def test_gradients_of_rows_are_those_of_the_masked_way():
    body = nn.Linear(4, 4).double()
    skip, x = Skip(body, drop_path=0.5), torch.randn(12, 4, dtype=torch.float64)
    found = []
    for way in (skip, lambda x: reference(x, body, 0.5)):
        torch.manual_seed(11)
        leaf = x.clone().requires_grad_()
        body.zero_grad()
        way(leaf).square().sum().backward()
        found.append((leaf.grad, body.weight.grad.clone()))
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("left", [0, 1, 3, 6])
def test_first_and_second_gradients_pass_gradcheck(left):
    skip = Skip(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), drop_path=0.5).double()
    seed = seed_for(6, 0.5, left)

    def seeded(x):
        torch.manual_seed(seed)
        return skip(x)

    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(seeded, x) and torch.autograd.gradgradcheck(seeded, x)


def test_a_penalty_on_gradients_reaches_the_parameters_of_rows_that_stay():
    body = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    x, found = torch.randn(8, 3, dtype=torch.float64), []
    for way in (Skip(body, drop_path=0.5), lambda x: reference(x, body, 0.5)):
        torch.manual_seed(4)
        leaf = x.clone().requires_grad_()
        slope = torch.autograd.grad(way(leaf).square().sum(), leaf, create_graph=True)[0]
        found.append(torch.autograd.grad(slope.square().sum(), body[0].weight)[0])
    assert torch.allclose(*found, rtol=1e-12) and found[0].any()


WORKER = """
import datetime, os, sys, torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from skipway.nn.skip import Skip
rank, folder, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
store, patience = dist.FileStore(folder + "/store", 2), datetime.timedelta(seconds=seconds)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=patience)

for mode in ("row", "batch"):
    torch.manual_seed(0)
    layers = lambda: [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)]
    network = nn.Sequential(*(Skip(layers(), drop_path=0.8, drop_mode=mode) for _ in range(4)))
    network = DistributedDataParallel(network)  # find_unused_parameters is off
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    torch.manual_seed(100 + rank)  # the ranks leave out different bodies
    for _ in range(8):
        optimizer.zero_grad()
        network(torch.randn(3, 4)).square().mean().backward()
        gradients = torch.cat([p.grad.flatten() for p in network.module.parameters() ])
        print(gradients.double().sum().item())
        optimizer.step()

class OverAll(nn.SyncBatchNorm):  # torch's own takes tensors of a GPU alone
    def forward(self, x):
        total = x.sum(0)
        dist.all_reduce(total)
        return x - total

for mode in ("row", "batch"):  # whoever left the norm out would keep the other waiting
    skip = Skip(OverAll(4), drop_path=0.9, drop_mode=mode)
    for _ in range(8):
        skip(torch.randn(3, 4))
dist.barrier()
sys.stdout.flush()
os._exit(0)  # gloo's threads may abort an interpreter that ends
"""


def test_two_processes_train_as_one_without_unused_parameters(tmp_path):
    workers = [
        start(sys.executable, "-c", WORKER, rank, tmp_path, HANG // 2, env=environment(GLOO_SOCKET_IFNAME="lo"))
        for rank in range(2)
    ]
    said = outputs_of(*workers)
    assert all(worker.returncode == 0 for worker in workers), said[0][1] + said[1][1]
    assert said[0][0] == said[1][0] and len(set(said[0][0].splitlines())) > 12  # of 16 steps the gradients


# In company


@pytest.mark.parametrize("rate", [0.5, 0.85, 0.999])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layout_and_precision_are_kept(layout, rate):
    seen = []
    conv = nn.Conv2d(8, 8, 3, padding=1).to(memory_format=layout)
    conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    conv.register_full_backward_pre_hook(lambda module, gradients: seen.append(gradients[0]))
    skip = Skip(conv, drop_path=rate)
    for seed in range(6):
        torch.manual_seed(seed)
        x = torch.randn(6, 8, 5, 5).to(memory_format=layout).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = skip(x)
        (out * torch.randn_like(out)).sum().backward()
        assert out.shape == x.shape and out.dtype == torch.float32
        seen += [out, x.grad]
    assert all(tensor.is_contiguous(memory_format=layout) for tensor in seen)
    assert conv.weight.grad.isfinite().all() and len(seen) > 12 - 12 * (rate > 0.9)


def test_views_with_holes_and_other_numbers_of_axes_are_taken():
    for x in (torch.randn(9, 8)[:, ::2], torch.randn(4, 9).T, torch.randn(1, 4).expand(9, 4), torch.randn(9, 2, 3, 4)):
        skip = Skip(nn.Linear(4, 4), drop_path=0.5)
        torch.manual_seed(6)
        out = skip(x)
        torch.manual_seed(6)
        assert torch.allclose(out, reference(x, skip.body, 0.5), atol=1e-6)


def test_draws_do_not_depend_on_the_default_device():
    skip, x = Skip(nn.Linear(3, 3), drop_path=0.5), torch.randn(9, 3)
    torch.manual_seed(8)
    plain = skip(x)
    torch.manual_seed(8)
    with torch.device("meta"):
        assert torch.equal(skip(x), plain)


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_compiled_in_one_graph_it_has_the_same_distribution(mode):
    skip = Skip(nn.Linear(3, 3), drop_path=0.5, drop_mode=mode)
    compiled = torch.compile(skip, fullgraph=True, backend="eager")
    x = torch.randn(32, 3)
    with torch.no_grad():
        full = x + skip.body(x) * 2
        outs = [compiled(x) for _ in range(60)]
    for out in outs:
        stays = (out != x).any(1)
        assert torch.allclose(out[stays], full[stays], rtol=1e-5)
        assert mode == "row" or stays.all() or not stays.any()
    assert 0.3 < torch.stack([(out != x).any(1).float().mean() for out in outs]).mean() < 0.7


def test_recomputed_and_copied_networks_draw_alike():
    skip = Skip(nn.Linear(3, 3), drop_path=0.5)
    x = torch.randn(8, 3, requires_grad=True)
    torch.manual_seed(1)
    plain = torch.autograd.grad(skip(x).square().sum(), skip.body.weight)[0]
    torch.manual_seed(1)
    again = torch.autograd.grad(checkpoint(skip, x, use_reentrant=False).square().sum(), skip.body.weight)[0]
    torch.manual_seed(1)
    twin = copy.deepcopy(skip)
    copied = torch.autograd.grad(twin(x).square().sum(), twin.body.weight)[0]
    assert torch.equal(plain, again) and torch.equal(plain, copied)


def test_norms_see_the_rows_that_stay():
    skip = Skip(nn.BatchNorm1d(2, momentum=1.0), drop_path=0.5)
    x = torch.arange(16.0).view(8, 2)
    torch.manual_seed(2)
    stays = torch.rand(8) >= 0.5
    torch.manual_seed(2)
    skip(x)
    assert 1 < stays.sum() < 8 and torch.allclose(skip.body.running_mean, x[stays].mean(0))


def test_a_single_row_that_stays_does_not_starve_a_norm():
    skip = Skip(nn.BatchNorm1d(2), drop_path=0.9)
    for seed in range(40):
        torch.manual_seed(seed)
        assert skip(torch.randn(4, 2)).shape == (4, 2)


# Transforms and tracers


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_each_sample_of_vmap_draws_for_itself_or_all_alike(mode):
    skip, x = Skip(nn.Linear(4, 4), drop_path=0.5, drop_mode=mode), torch.randn(64, 4)
    parameters = {name: p.detach() for name, p in skip.named_parameters()}

    def loss(parameters, row):
        return torch.func.functional_call(skip, parameters, (row[None],)).sum()

    for randomness, shares in [("different", (0.2, 0.8)), ("same", (0, 1))]:
        gradient = torch.func.vmap(torch.func.grad(loss), (None, 0), randomness=randomness)(parameters, x)
        stays = gradient["body.bias"].any(1)
        assert torch.allclose(gradient["body.bias"][stays], torch.tensor(2.0))
        share = stays.float().mean()
        assert shares[0] < share < shares[1] if randomness == "different" else share in shares
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("mode", ["row", "batch"])
def test_transforms_and_graphs_drop_the_rows_of_the_same_seed(mode):
    skip, x = Skip(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), drop_path=0.5, drop_mode=mode), torch.randn(8, 3)
    stacked = {name: torch.stack([p.detach()] * 2) for name, p in skip.named_parameters()}
    ensemble = torch.func.vmap(lambda p: torch.func.functional_call(skip, p, (x,)), randomness="same")
    jacobian = torch.autograd.functional.jacobian
    pairs = [
        (skip, torch.fx.symbolic_trace(skip)),
        (skip, torch.jit.trace(skip, torch.cat([x, x]), check_trace=False)),  # any batch size
        (skip, lambda x: ensemble(stacked)[1]),
        (lambda x: jacobian(skip, x), torch.func.jacrev(skip)),
        (lambda x: jacobian(skip, x), torch.func.jacfwd(skip, randomness="same")),
        (lambda x: torch.autograd.functional.jvp(skip, x, x)[1], lambda x: torch.func.jvp(skip, (x,), (x,))[1]),
    ]
    for seed in (0, 1, 2):
        for plain, other in pairs:
            torch.manual_seed(seed)
            expected = plain(x)
            torch.manual_seed(seed)
            torch.testing.assert_close(other(x), expected)


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_training_graph_draws_for_any_batch(strict):
    skip, size = Skip(nn.Linear(3, 3), drop_path=0.5), torch.export.Dim("batch", min=2, max=99)
    graph = torch.export.export(skip, (torch.ones(4, 3),), strict=strict, dynamic_shapes=({0: size},)).module()
    x = torch.ones(64, 3)
    stays = (graph(x) != x).any(1)
    assert 0.2 < stays.float().mean() < 0.8 and torch.allclose(graph(x)[0] * 0 + x[0], x[0])


def test_an_empty_batch_passes():
    assert Skip(nn.Linear(2, 2), drop_path=0.5)(torch.ones(0, 2)).shape == (0, 2)


# What cannot be


@pytest.mark.parametrize("left, given", [(1, 6), (3, 3), (6, 6)])
def test_a_body_that_gives_one_row_for_many_is_refused_and_never_broadcast(left, given):
    skip = Skip(lambda x: x.mean(0, keepdim=True), drop_path=0.5)
    torch.manual_seed(seed_for(6, 0.5, left))
    with pytest.raises(ShapeError, match=rf"drop_path: expected an output .* \({given}, 3\), .* got \(1, 3\). Set"):
        skip(torch.ones(6, 3))


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_a_body_of_another_shape_is_refused(mode):
    network = nn.Sequential(Skip(nn.Linear(3, 5), nn.Identity(), join=lambda b, k: b, drop_path=0.01, drop_mode=mode))
    with pytest.raises(ShapeError, match=r"cannot use drop_path: expected an output of the body of shape \(6, 3\)"):
        network(torch.ones(6, 3))


def test_a_mode_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="Skip: expected drop_mode to be row or batch, got 'sample'"):
        Skip(nn.Linear(2, 2), drop_path=0.1, drop_mode="sample")


def test_a_body_that_returns_no_tensor_is_refused():
    with pytest.raises(ShapeError, match="`drop_path`: expected one tensor from each side, got tuple and Tensor"):
        Skip(nn.LSTM(3, 3), drop_path=0.01)(torch.ones(6, 3))
