"""The number of epochs that a test on held-out rows finds: few for noise, all for a function without noise."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from skipway.data.tables.loader import RowBatches
from skipway.errors import Interrupted
from skipway.model_factory import create_model
from skipway.training.epoch_finder import FoundEpochs, find_epochs
from skipway.training.losses import Classification, Regression
from skipway.training.trainer import Settings, Trainer


def _find(y: np.ndarray, x: np.ndarray, most: int, task=None, **options) -> FoundEpochs:
    torch.manual_seed(0)
    is_class = y.dtype == np.int64
    network = create_model("resmlp", 2 if is_class else 1, in_features=x.shape[1], layers=1, width=32)
    task = task or (Classification() if is_class else Regression())
    trainer = Trainer(network, Settings(epochs=most, lr=5e-3, optimizer="adamw"), str, task)
    rows, held_out = np.arange(len(x)), np.arange(len(x)) % 4 == 0
    train, rest = (RowBatches(x, y, r, 32, seed=s) for r, s in ((rows[~held_out], 0), (rows[held_out], None)))
    return find_epochs(trainer, train, rest, most, **options)


def _inputs(count: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, columns)).astype(np.float32)


def test_classes_at_random_are_stopped_at_once():
    x = _inputs(160, 10)
    found = _find(np.random.default_rng(1).integers(0, 2, 160), x, most=80)
    assert found.best <= 6
    assert found.tried < 25
    assert min(found.losses) == 1


def test_a_function_without_noise_takes_all_epochs():
    x = _inputs(160, 2)
    found = _find(np.sin(2 * x[:, :1]).astype(np.float32), x, most=20)
    assert found.best == 20
    assert found.tried == 10


def test_a_loss_of_many_rows_that_falls_clearly_ends_the_test():
    for count, least, most in ((800, 10, 19), (2_400, 6, 9)):
        x = _inputs(count, 2)
        found = _find(np.sin(2 * x[:, :1]).astype(np.float32), x, most=40)
        assert found.best == 40
        assert least <= found.tried <= most


@pytest.mark.parametrize(
    "losses, best, tried",
    [
        ([0.104, 0.046, 0.038, 0.026, 0.054, 0.027], 12, 6),  # noise of a constant rate
        ([0.80, 0.79, 0.76, 0.77, 0.78, 0.77], 12, 6),
        ([0.80, 0.78, 0.77, 0.79, 0.82, 0.85], 2, 6),
        ([0.80, 0.79, 0.80, 0.83, 0.85, 0.88], 1, 5),
    ],
)
def test_few_epochs_of_many_rows_are_cut_only_if_the_loss_rises_clearly(monkeypatch, losses, best, tried):
    values = iter(losses)
    monkeypatch.setattr("skipway.training.epoch_finder.score", lambda *_, **__: SimpleNamespace(loss=next(values)))
    x = _inputs(80, 3)
    found = _find((x[:, 0] > 0).astype(np.int64), x, most=12)
    assert (found.best, found.tried) == (best, tried)


def test_equal_calls_find_equal_epochs_and_losses():
    x = _inputs(80, 3)
    y = (x[:, 0] > 0).astype(np.int64)
    assert _find(y, x, most=12) == _find(y, x, most=12)


def test_it_ends_in_time_and_on_request():
    x = _inputs(80, 3)
    y = (x[:, 0] > 0).astype(np.int64)
    assert _find(y, x, most=60, seconds=0.0).tried == 1

    def stop() -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted, match="stopped"):
        _find(y, x, most=60, poll=stop)


def test_a_loss_that_is_not_finite_ends_the_test():
    x = _inputs(80, 3)
    x[0] = np.inf  # a held-out row
    assert _find((x[:, 0] > 0).astype(np.int64), x, most=10) == FoundEpochs(1, 1, {})
