"""Training in fp16 with a loss scale, on the fake GPU."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from fake_gpu import fake_gpu
from small_runs import StopAt
from tiny_training import Feed, network, plain_network, run, same, settings

from skipway.data.image_spec import Spec
from skipway.errors import Interrupted, NotFiniteError
from skipway.models.network_outputs import pixel_outputs
from skipway.training.loop import fit
from skipway.training.metrics import score
from skipway.training.precision import without_tf32
from skipway.training.trainer import Trainer
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the fake GPU takes the place of the real one"),
]
FP16 = {"precision": "fp16", "device": "cuda"}


def tensors(trainer):
    return {name: value.cpu() for name, value in trainer.tensors().items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_fp16_is_close_to_fp32(optimizer):
    with fake_gpu():
        how = {"optimizer": optimizer, "lr": 0.01, "ema": 0.9}
        half, full = (run(None, {**how, **FP16, "precision": precision})[0] for precision in ("fp16", "fp32"))
        found, wanted = tensors(half), tensors(full)
        assert found["scaler.scale"] == 65536 and found["scaler._growth_tracker"] == 6
        with half.autocast():
            assert half.model(torch.zeros(2, 1, 6, 6, device="cuda")).dtype == torch.float16
    weights = [name for name in wanted if name.startswith("network.") and "running" not in name]
    assert all(torch.allclose(found[name], wanted[name], atol=0.05) for name in weights)


def test_a_step_that_overflows_is_skipped_and_halves_the_scale(tmp_path):
    with fake_gpu():
        trainer, calls = Trainer(plain_network(), settings(**FP16)), []

        def spoiled(gradient):
            calls.append(1)
            return gradient * float("inf") if len(calls) < 3 else gradient

        trainer.network[1].weight.register_hook(spoiled)
        before = {name: p.detach().cpu().clone() for name, p in trainer.network.named_parameters()}
        for k in range(3):
            with trainer.autocast():
                loss = trainer.model(torch.ones(2, 1, 6, 6, device="cuda")).float().square().mean()
            trainer.backward(loss)
            assert torch.isfinite(trainer.clip_gradients()).item()
            trainer.step()
            now = {name: p.detach().cpu().clone() for name, p in trainer.network.named_parameters()}
            assert same(before, now) is (k < 2)
        assert trainer.scaler.get_scale() == 65536 / 4 and trainer.optimizer.state


def test_gradients_that_overflow_at_the_smallest_scale_end_the_run():
    with fake_gpu():
        trainer = Trainer(plain_network(), settings(epochs=20, **FP16))
        trainer.network[1].weight.register_hook(lambda gradient: gradient * float("inf"))
        before = {name: p.detach().cpu().clone() for name, p in trainer.network.named_parameters()}
        with pytest.raises(NotFiniteError, match="cannot take step 17 of epoch 6: expected a finite gradient"):
            fit(
                trainer,
                Feed(),
                Feed(10, 5),
                None,
                on_epoch=lambda *_: None,
                facts={},
                console=Console(quiet=True),
                stop=StopFlag(),
            )
        assert same(before, {name: p.detach().cpu() for name, p in trainer.network.named_parameters()})


def test_a_loss_that_is_not_finite_ends_a_run_in_fp16():
    with fake_gpu():
        feed = Feed()
        feed.x[3] = float("nan")
        with pytest.raises(NotFiniteError, match="expected a finite loss, got nan with the images"):
            run(None, dict(FP16), feed=feed)


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_run_in_fp16_that_is_resumed_ends_in_the_same_bits(tmp_path, at):
    how = {**FP16, "ema": 0.8, "optimizer": "adamw"}
    with fake_gpu():
        whole = tensors(run(tmp_path / "whole", dict(how))[0])
        with suppress(Interrupted):
            run(tmp_path / "cut", dict(how), StopAt(at))
        assert same(whole, tensors(run(tmp_path / "cut", dict(how), resume=True)[0]))


def test_the_scale_is_that_of_the_checkpoint():
    with fake_gpu():
        first, second = (Trainer(network(), settings(**FP16)) for _ in range(2))
        first.scaler.load_state_dict(first.scaler.state_dict() | {"scale": 512.0, "_growth_tracker": 7})
        second.restore(tensors(first), {})
        assert second.scaler.state_dict() == first.scaler.state_dict()


def test_evaluation_and_prediction_are_without_tf32():
    seen = []

    class Watched(torch.nn.Flatten):
        def forward(self, x):
            seen.append((torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision))
            return super().forward(x)

    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    trainer = Trainer(torch.nn.Sequential(Watched(), torch.nn.Linear(36, 3)), settings())
    score(trainer.network, Feed(10, 5), trainer.task, autocast=trainer.autocast, device=trainer.device)
    count = len(seen)
    spec = Spec(1, 6, 6, (0.5,), (0.25,), ("a", "b", "c"))
    pixel_outputs(trainer.network, spec, [np.zeros((6, 6, 1), np.uint8)])
    assert set(seen) == {("ieee", "ieee")} and len(seen) > count
    assert before == (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision)
    with pytest.raises(KeyError), without_tf32():
        raise KeyError
    assert before == (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision)
