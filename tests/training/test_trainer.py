import copy

import pytest
import torch
from torch import nn

from skipway.distributed import process_group
from skipway.errors import InputError
from skipway.model_factory import create_model
from skipway.training.trainer import Settings, Trainer, preserve_global_state


def network():
    torch.manual_seed(0)
    return create_model("resnet20", num_classes=3, in_chans=1, layers=[1, 1], widths=[4, 8])


def step(trainer, seed=0):
    torch.manual_seed(seed)
    loss = trainer.model(torch.randn(6, 1, 8, 8)).square().mean()
    loss.backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.update_average()


def settings(**values):
    return Settings(**{"epochs": 1, "lr": 0.1, **values})


def test_weights_stand_channels_last():
    trainer = Trainer(network(), settings())
    four = [p for p in trainer.network.parameters() if p.dim() == 4]
    assert four and all(p.is_contiguous(memory_format=torch.channels_last) for p in four)


def test_the_average_follows_the_weights_and_is_what_is_judged():
    trainer = Trainer(network(), settings(ema=0.5))
    assert Trainer(network(), settings()).eval_model is not None
    kept = []
    for k in range(3):
        step(trainer, k)
        kept.append({n: p.detach().clone() for n, p in trainer.network.named_parameters()})
    for name, p in trainer.eval_model.named_parameters():
        wanted = 0.5 * (0.5 * kept[0][name] + 0.5 * kept[1][name]) + 0.5 * kept[2][name]
        assert torch.allclose(p, wanted, atol=1e-6)
    assert trainer.eval_model is not trainer.network


@pytest.mark.parametrize(
    "values", [{}, {"optimizer": "adamw"}, {"optimizer": "muon"}, {"ema": 0.9}, {"momentum": 0.0}], ids=str
)
def test_a_restored_trainer_goes_on_to_the_same_bits(values):
    first = Trainer(network(), settings(**values))
    step(first, 0)
    saved, state = {k: v.clone() for k, v in first.tensors().items()}, copy.deepcopy(first.state)
    step(first, 1)
    other = Trainer(network(), settings(**values))
    step(other, 7)
    other.restore(saved, vars(state))
    step(other, 1)
    wanted, found = first.tensors(), other.tensors()
    assert set(wanted) == set(found) and all(torch.equal(v, found[k]) for k, v in wanted.items())


def test_each_trainer_computes_in_its_own_precision_and_leaves_the_network_as_it_was():
    trainers = {precision: Trainer(network(), settings(precision=precision)) for precision in ("bf16", "fp32")}
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        trainer, x = trainers[precision], torch.randn(2, 1, 8, 8)
        with trainer.autocast():
            assert trainer.model(x).dtype == dtype
        assert trainer.network(x).dtype == torch.float32
        assert all(p.dtype == torch.float32 for p in trainer.network.parameters())


@pytest.mark.parametrize(
    "device, count, expected",
    [("cpu", 4, "cpu"), ("cuda", 1, "cuda"), ("cuda", 4, "cuda:3"), ("xpu", 4, "xpu:3"), ("cuda:1", 2, "cuda:1")],
    ids=str,
)
def test_each_process_has_the_gpu_of_its_local_rank(device, count, expected, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(process_group, "world_size", lambda: count)
    assert process_group.local_device(device) == torch.device(expected)


def test_what_is_one_per_process_is_as_before():
    threads, wanted = torch.get_num_threads(), torch.get_rng_state()
    with pytest.raises(KeyError), preserve_global_state():
        torch.set_num_threads(threads + 1)
        torch.manual_seed(5)
        raise KeyError
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), wanted)


def test_a_gpu_that_the_process_has_not_used_stays_unused(monkeypatch):
    """In a forked worker it cannot be used, on a machine with several it costs seconds and memory."""

    def forbidden(*_, **__):
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    seeds = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", forbidden)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(11)
    with preserve_global_state():
        torch.manual_seed(5)
    assert seeds == [11, 5, 11]  # as its generators will have it, should it be used later
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with preserve_global_state():
        torch.manual_seed(6)
    assert seeds == [11, 5, 11]


@pytest.mark.parametrize(("kind", "is_used"), [("xpu", True), ("xpu", False), ("mps", True)])
def test_generators_of_other_accelerators_are_restored_if_they_are_in_use(kind, is_used, monkeypatch):
    module, calls = torch.get_device_module(kind), []
    monkeypatch.setattr(module, "is_available", lambda: True)
    monkeypatch.setattr(module, "device_count", lambda: 1)
    monkeypatch.setattr(module, "get_rng_state", lambda device: "state")
    monkeypatch.setattr(module, "set_rng_state", lambda state, device: calls.append((state, device)))
    if kind == "xpu":
        monkeypatch.setattr(module, "is_initialized", lambda: is_used)
        monkeypatch.setattr(module, "manual_seed_all", calls.append)
    seed = torch.initial_seed()
    with preserve_global_state():
        pass
    assert calls == ([("state", 0)] if is_used else [seed])


@pytest.mark.parametrize("ema", [None, 0.9])
def test_tensors_of_another_dtype_are_not_restored(ema):
    trainer = Trainer(network(), settings(ema=ema))
    tensors = trainer.tensors()
    name = next(name for name in tensors if name.startswith("average." if ema else "network.") and "weight" in name)
    tensors[name] = tensors[name].bfloat16()
    with pytest.raises(InputError, match=r"cannot restore .*weight: expected torch.float32, got torch.bfloat16. Start"):
        trainer.restore(tensors, {})


def test_while_the_trunk_is_frozen_only_the_head_changes_and_no_statistics():
    trainer = Trainer(network(), settings(epochs=2, freeze_epochs=1, weight_decay=0.1, optimizer="adamw"))
    fixed = next(p for n, p in trainer.network.named_parameters() if n.startswith("stage1"))
    for epoch, moved in ((0, {"head"}), (1, {"stem", "stage1", "stage2", "head"})):
        trainer.state.epoch = epoch
        before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
        trainer.to_train()
        step(trainer, epoch)
        after = trainer.network.state_dict()
        assert {k.split(".")[0] for k, v in after.items() if not torch.equal(v, before[k])} == moved
        assert fixed.requires_grad == bool(epoch) and trainer.network.training


def test_what_never_learns_stays_so_after_the_thaw():
    net = network()
    next(net.parameters()).requires_grad_(False)
    trainer = Trainer(net, settings(epochs=2, freeze_epochs=1))
    for trainer.state.epoch in (0, 1):
        trainer.to_train()
        assert not next(net.parameters()).requires_grad
    assert sum(p.requires_grad for p in net.parameters()) == len(trainer.trainable_params)


def test_a_network_of_one_part_is_never_frozen():
    trainer = Trainer(nn.Sequential(nn.Linear(3, 2)), settings(freeze_epochs=1))
    trainer.to_train()
    assert all(p.requires_grad for p in trainer.network.parameters())


def test_penalties_are_on_weights_alone():
    trainer = Trainer(network(), settings(l1=0.5, l2=0.25))
    weights = torch.cat([p.detach().flatten() for p in trainer.network.parameters() if p.dim() > 1])
    assert trainer.penalty().item() == pytest.approx((0.5 * weights.abs().sum() + 0.25 * weights.square().sum()).item())
    assert Trainer(network(), settings()).penalty() == 0.0


def test_an_l2_penalty_is_weight_decay_at_twice_the_factor_for_plain_sgd():
    found = []
    for values in ({"l2": 0.05, "weight_decay": 0.0}, {"weight_decay": 0.1}):
        trainer = Trainer(network(), settings(momentum=0.0, **values))
        for k in range(3):
            torch.manual_seed(k)
            loss = trainer.model(torch.randn(6, 1, 8, 8)).square().mean() + trainer.penalty()
            loss.backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad(set_to_none=True)
        found.append(torch.cat([p.detach().flatten() for p in trainer.network.parameters()]))
    assert torch.allclose(*found, atol=1e-6)


def test_rates_and_momentum_are_those_of_the_position():
    trainer = Trainer(network(), settings(bias_lr_mult=2.0, layer_decay=0.5))
    trainer.set_rates(0.25)  # the top of one-cycle
    rates = {round(g["lr"], 9) for g in trainer.optimizer.param_groups}
    assert rates == {0.1 * f * b for f in (0.125, 0.25, 0.5, 1.0) for b in (1, 2)}
    assert {g["momentum"] for g in trainer.optimizer.param_groups} == {0.9}
    trainer.set_rates(1.0)
    assert max(g["lr"] for g in trainer.optimizer.param_groups) == pytest.approx(2e-5)
    assert {round(g["momentum"], 3) for g in trainer.optimizer.param_groups} == {0.95}
