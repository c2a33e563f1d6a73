import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from skipway.training import trainer as trainer_module
from skipway.training.trainer import Settings, Trainer, as_found, has_bf16, make_optimizer
from skipway.zoo import create_model


def network():
    torch.manual_seed(0)
    return create_model("resnet20", num_classes=3, in_chans=1, layers=[1, 1], widths=[4, 8])


def step(trainer, seed=0):
    torch.manual_seed(seed)
    loss = trainer.model(torch.randn(6, 1, 8, 8)).square().mean()
    trainer.engine.backward(loss)
    trainer.stepper.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.update_average()


def settings(**values):
    return Settings(**{"epochs": 1, "lr": 0.1, **values})


def test_weight_decay_is_on_weights_alone():
    net = network()
    optimizer = make_optimizer(net, settings(weight_decay=0.3, bias_lr=2.0))
    decayed, others = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.3, 0.0]
    assert [g["factor"] for g in optimizer.param_groups] == [1.0, 2.0]
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            norm_or_bias = isinstance(module, nn.BatchNorm2d) or name == "bias"
            assert id(parameter) in (others if norm_or_bias else decayed)


def test_parameters_that_do_not_learn_are_left_out():
    net = network()
    next(net.parameters()).requires_grad_(False)
    held = {id(p) for g in make_optimizer(net, settings()).param_groups for p in g["params"]}
    assert held == {id(p) for p in net.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "name, momentum, kind, wanted",
    [
        ("sgd", 0.9, torch.optim.SGD, {"nesterov": True, "momentum": 0.9}),
        ("sgd", 0.0, torch.optim.SGD, {"nesterov": False, "momentum": 0.0}),
        ("adamw", 0.8, torch.optim.AdamW, {"betas": (0.8, 0.99)}),
    ],
)
def test_the_optimiser_is_the_one_by_name(name, momentum, kind, wanted):
    optimizer = make_optimizer(network(), settings(optimizer=name, momentum=momentum))
    assert type(optimizer) is kind and wanted.items() <= optimizer.param_groups[0].items()


def test_weights_stand_channels_last():
    trainer = Trainer(network(), settings())
    four = [p for p in trainer.network.parameters() if p.dim() == 4]
    assert four and all(p.is_contiguous(memory_format=torch.channels_last) for p in four)


def test_the_average_follows_the_weights_and_is_what_is_judged():
    trainer = Trainer(network(), settings(ema=0.5))
    assert Trainer(network(), settings()).judged is not None
    kept = []
    for k in range(3):
        step(trainer, k)
        kept.append({n: p.detach().clone() for n, p in trainer.network.named_parameters()})
    for name, p in trainer.judged.named_parameters():
        wanted = 0.5 * (0.5 * kept[0][name] + 0.5 * kept[1][name]) + 0.5 * kept[2][name]
        assert torch.allclose(p, wanted, atol=1e-6)
    assert trainer.judged is not trainer.network


@pytest.mark.parametrize("values", [{}, {"optimizer": "adamw"}, {"ema": 0.9}, {"momentum": 0.0}], ids=str)
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


def test_bf16_is_used_where_it_is_asked_for():
    for precision, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        trainer = Trainer(network(), settings(precision=precision))
        seen = []
        conv = next(m for m in trainer.network.modules() if isinstance(m, nn.Conv2d))
        conv.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out.dtype))
        out = trainer.model(torch.randn(2, 1, 8, 8))
        assert seen == [kind] and out.dtype == torch.float32
        assert all(p.dtype == torch.float32 for p in trainer.network.parameters())


@pytest.mark.parametrize("amx, avx, wanted", [(True, False, True), (False, True, True), (False, False, False)])
def test_bf16_is_taken_where_the_processor_has_it(monkeypatch, amx, avx, wanted):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    assert has_bf16("cpu") is wanted


def test_what_is_one_per_process_is_as_before():
    threads, wanted = torch.get_num_threads(), torch.get_rng_state()
    AcceleratorState._reset_state(reset_partial_state=True)
    host = Accelerator(cpu=True, mixed_precision="bf16")
    with pytest.raises(KeyError), as_found():
        torch.set_num_threads(threads + 1)
        torch.manual_seed(5)
        Trainer(network(), settings())
        assert AcceleratorState().mixed_precision == "no"
        raise KeyError
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), wanted)
    assert AcceleratorState().mixed_precision == "bf16" and host.mixed_precision == "bf16"
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_second_trainer_may_have_another_precision():
    for precision, said in (("bf16", "bf16"), ("fp32", "no"), ("bf16", "bf16")):
        assert Trainer(network(), settings(precision=precision)).engine.mixed_precision == said
    assert trainer_module.State().status == "running"
