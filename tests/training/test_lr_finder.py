import math

import numpy as np
import pytest
import torch
from tiny_training import Feed, network, plain_network, settings
from torch import nn

from skipway.errors import NotFiniteError
from skipway.training.lr_finder import _longest_fall, _suggest, range_test
from skipway.training.trainer import Trainer


@pytest.mark.parametrize(
    "values", [{}, {"optimizer": "adamw", "ema": 0.9}, {"optimizer": "muon", "freeze_epochs": 1}], ids=str
)
def test_everything_is_as_before(values):
    trainer = Trainer(network(drop_path=0.3), settings(**values))
    trainer.state.step, trainer.state.epoch = 3, 1
    for k in range(2):  # an optimiser that has seen steps
        torch.manual_seed(k)
        trainer.to_train()
        trainer.model(torch.randn(8, 1, 6, 6)).square().mean().backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
    before = {k: v.clone() for k, v in trainer.tensors().items()}
    groups = [{k: v for k, v in g.items() if k != "params"} for g in trainer.optimizer.param_groups]
    generator, state = torch.get_rng_state(), vars(trainer.state).copy()
    found = range_test(trainer, Feed(), steps=30)
    after = trainer.tensors()
    assert set(before) == set(after) and all(torch.equal(v, after[k]) for k, v in before.items())
    assert groups == [{k: v for k, v in g.items() if k != "params"} for g in trainer.optimizer.param_groups]
    assert torch.equal(generator, torch.get_rng_state()) and vars(trainer.state) == state
    assert len(found.rates) == len(found.losses) == len(found.smoothed) > 10


def test_a_run_after_the_test_has_the_bits_of_one_without(tmp_path):
    from skipway.training.loop import fit
    from skipway.utils.console import Console
    from skipway.utils.stop_signals import StopFlag

    found = []
    for tested in (False, True):
        trainer = Trainer(network(), settings())
        if tested:
            range_test(trainer, Feed())
        fit(
            trainer,
            Feed(),
            Feed(10, 5),
            tmp_path / str(tested),
            on_epoch=lambda *_: None,
            facts={},
            console=Console(quiet=True),
            stop=StopFlag(),
        )
        found.append(trainer.tensors())
    assert all(torch.equal(v, found[1][k]) for k, v in found[0].items())


def test_that_batches_are_unlike_does_not_show_in_the_curve():
    trainer = Trainer(network(drop_path=0.3), settings())
    trainer.to_train()
    raw = [trainer.task.loss(trainer.model(x), y).item() for epoch in range(4) for x, y, _ in Feed().epoch(epoch)]
    found = range_test(trainer, Feed(), lowest=1e-9, highest=1e-8, steps=len(raw))
    assert np.ptp(raw) > 0.05 > 1e-3 > np.ptp(found.losses)


def test_rates_rise_by_equal_factors_and_end_where_the_loss_explodes():
    trainer = Trainer(plain_network(), settings(momentum=0.0))
    found = range_test(trainer, Feed(), lowest=1e-4, highest=1e4, steps=60)
    steps = np.diff(np.log(found.rates))
    assert found.rates[0] == pytest.approx(1e-4) and np.allclose(steps, steps[0]) and len(found.rates) < 60
    assert found.losses[-1] > 4 * min(found.losses) or len(found.losses) < 60
    assert found.rates[0] < found.valley < found.rates[-1] and found.steepest < found.rates[-1]


def test_the_suggestions_are_those_of_a_known_curve():
    rates = np.logspace(-5, 1, 121).tolist()
    # flat at 3 up to 1e-3, falling to 1 at 0.1 along the logarithm, then rising steeply
    losses = [3.0 if r < 1e-3 else 3 - math.log10(r / 1e-3) if r < 0.1 else 1 + 20 * (r - 0.1) for r in rates]
    found = _suggest(rates, losses)
    assert found.valley == pytest.approx(0.01, rel=0.5) and 1e-3 < found.steepest < 0.1
    assert rates[int(np.argmin(found.smoothed))] == pytest.approx(0.1, rel=0.3)
    assert found.smoothed[0] == pytest.approx(3.0)


def test_smoothing_does_not_lag():
    rates = np.logspace(-5, 1, 121).tolist()
    losses = [3 - 2 / (1 + math.exp(-4 * (math.log10(r) + 2))) for r in rates]  # falls fastest at 0.01
    noisy = (np.asarray(losses) + np.random.default_rng(0).normal(0, 0.02, 121)).tolist()
    for given in (losses, noisy):
        assert _suggest(rates, given).steepest == pytest.approx(0.01, rel=0.4)


@pytest.mark.parametrize(
    "values, wanted", [([3, 2, 1], (2, 3)), ([1, 5, 4, 6, 3, 2, 9], (5, 4)), ([1, 1, 1], (0, 1)), ([1, 2, 3], (0, 1))]
)
def test_the_longest_fall_skips_what_rises(values, wanted):
    assert _longest_fall(values) == wanted


def test_a_loss_that_is_never_finite_is_said():
    class Broken(nn.Linear):
        def forward(self, x):
            return super().forward(x) * float("nan")

    trainer = Trainer(nn.Sequential(nn.Flatten(), Broken(36, 3)), settings())
    with pytest.raises(NotFiniteError, match="expected a finite loss for 10 steps, got 0 steps up to a rate of"):
        range_test(trainer, Feed())
