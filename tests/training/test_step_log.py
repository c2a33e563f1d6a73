"""Reading losses and gradients on a device: how often, and what happens with one that is not finite."""

import copy

import pytest
import torch
from fake_gpu import fake_gpu
from tiny_training import Feed, network, plain_network, settings

from skipway.errors import NotFiniteError
from skipway.training import checkpoint, trainer
from skipway.training.loop import fit
from skipway.training.trainer import Trainer
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the fake GPU takes the place of the real one"),
]

PER_STEP = 0.2  # synchronizations
RUNS = {
    "sgd": {"ema": 0.9, "clip_grad": 1.0},
    "adamw": {"optimizer": "adamw", "l1": 1e-5, "l2": 1e-5},
    "muon": {"optimizer": "muon", "ema": 0.9, "grad_accum_steps": 2},
    "plain sgd": {"momentum": 0.0},
}


def trained(batches, how, weights=None, restored=False):
    """Train an epoch of `batches` small batches on the device, and return the trainer."""
    count = 2 * batches
    learner = Trainer(network(), settings(epochs=1, device="cuda", **how))
    if restored:
        other = Trainer(network(), settings(epochs=1, device="cuda", **how))
        train(other, Feed(26))
        learner.restore({k: v.cpu() for k, v in other.tensors().items()}, {})
    train(learner, Feed(count, 2, weights=None if weights is None else weights[:count]))
    return learner


def train(learner, feed, folder=None):
    fit(
        learner,
        feed,
        Feed(10, 5, shuffle=False),
        folder,
        on_epoch=lambda *_: None,
        facts={},
        console=Console(quiet=True),
        stop=StopFlag(),
    )


@pytest.mark.parametrize("restored", [False, True], ids=["new", "restored"])
@pytest.mark.parametrize("how", [*RUNS.values(), {"precision": "fp16", "clip_grad": 1.0}], ids=[*RUNS, "fp16"])
def test_a_step_waits_for_the_device_at_most_once_in_five(how, restored):
    few, many, weights = 16, 48, torch.ones(96)
    with fake_gpu() as gpu:
        counts = []
        for batches in (few, many):
            gpu.reset()
            trained(batches, how, weights if how is RUNS["sgd"] else None, restored)
            counts.append(sum(gpu.syncs.values()))
        assert (counts[1] - counts[0]) / (many - few) <= PER_STEP, gpu.syncs


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_step_counts_stay_where_the_optimizer_keeps_them(device, optimizer):
    with fake_gpu():
        first = Trainer(network(), settings(epochs=1, device=device, optimizer=optimizer))
        train(first, Feed())
        second = Trainer(network(), settings(epochs=1, device=device, optimizer=optimizer))
        second.restore({k: v.cpu() for k, v in first.tensors().items()}, {})
        for pair in zip(first.network.parameters(), second.network.parameters(), strict=True):
            states = [learner.optimizer.state[p] for learner, p in zip((first, second), pair, strict=True)]
            places = [{name: (v.device, v.stride()) for name, v in state.items()} for state in states]
            assert places[0] and places[0] == places[1]


@pytest.mark.parametrize("fused", [False, True])
def test_the_state_of_a_single_number_goes_where_the_number_is(fused):
    with fake_gpu():
        scale = torch.nn.Parameter(torch.ones((), device="cuda"))
        places = [trainer._state_like(name, torch.ones(()), scale, fused=fused).is_cuda for name in ("step", "exp_avg")]
    assert places == [fused, True]


class Poisoned(Feed):
    """Batches whose third one is not finite."""

    def epoch(self, epoch=0, start=0):
        for k, (x, y, ids) in enumerate(super().epoch(epoch, start), start):
            yield (torch.full_like(x, torch.nan) if k == 2 else x), y, ids


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("how", RUNS.values(), ids=RUNS)
def test_a_step_that_is_not_finite_is_not_taken_on_the_device_either(how, what, tmp_path, monkeypatch):
    create = trainer.make_optimizer
    monkeypatch.setattr(trainer, "make_optimizer", lambda *args, **kw: create(*args, **{**kw, "fused": True}))
    ends = []
    for device in ("cpu", "cuda"):
        with fake_gpu():
            learner = Trainer(plain_network(), settings(epochs=1, device=device, **how))
            calls = [0]

            def spoiled(gradient, calls=calls):
                calls[0] += 1
                return gradient * float("inf") if calls[0] == 4 else gradient

            if what == "gradient":
                learner.network[1].weight.register_hook(spoiled)
            feed = Poisoned(80, 2) if what == "loss" else Feed(80, 2)
            with pytest.raises(NotFiniteError, match=f"expected a finite {what}, got .* with the images") as caught:
                train(learner, feed, tmp_path / device)
            weights = [p.detach().cpu().clone() for p in learner.network.parameters()]
            ends.append((str(caught.value), weights, copy.deepcopy(learner.optimizer.state_dict())))
            assert checkpoint.load_checkpoint(tmp_path / device).step == 0
    (host, host_weights, host_state), (device, device_weights, device_state) = ends
    assert host == device
    assert all(torch.equal(a, b) for a, b in zip(host_weights, device_weights, strict=True))
    for index, values in host_state["state"].items():
        for name, value in values.items():
            assert torch.equal(value, device_state["state"][index][name].cpu())


def test_a_first_step_that_is_not_taken_leaves_no_momentum():
    with fake_gpu():
        for optimizer in ("sgd", "adamw", "muon"):
            learner = Trainer(plain_network(), settings(device="cuda", optimizer=optimizer))
            before = [p.detach().clone() for p in learner.network.parameters()]
            for p in learner.network.parameters():
                p.grad = torch.ones_like(p)
            learner.step(torch.ones((), dtype=torch.bool, device="cuda"))
            after = list(learner.network.parameters())
            assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(before, after, strict=True))
            for values in learner.optimizer.state.values():
                assert all(not v.cpu().any() for v in values.values())


def test_sums_read_late_are_those_read_at_once(monkeypatch, tmp_path):
    create = trainer.make_optimizer
    monkeypatch.setattr(trainer, "make_optimizer", lambda *args, **kw: create(*args, **{**kw, "fused": True}))
    rows = []
    for device in ("cpu", "cuda"):
        with fake_gpu():
            learner = Trainer(network(), settings(device=device, save_every=0.0))
            train(learner, Feed(60, 4), tmp_path / device)
            rows.append(
                [{k: r[k] for k in ("train_loss", "train_accuracy", "val_loss")} for r in learner.state.history]
            )
    assert rows[0] == rows[1]
