import copy
import io
import json
import random
import threading
from contextlib import suppress

import numpy as np
import pytest
import torch
from small_runs import StopAt
from tiny_training import Feed, network, plain_network, run, same, settings, timeless
from torch import nn

from skipway.errors import Interrupted, NotFiniteError, StorageError
from skipway.training import checkpoint, loop
from skipway.training.loop import fit
from skipway.training.metrics import ClassScores
from skipway.training.schedules import SCHEDULES
from skipway.training.trainer import Trainer
from skipway.utils import atomic_files
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag

pytestmark = pytest.mark.usefixtures("one_thread")


HOWS = [
    {"ema": 0.8, "drop_path": 0.4, "label_smoothing": 0.2},
    {"grad_accum_steps": 2, "clip_grad": 0.5, "schedule": "cosine"},
    {"optimizer": "adamw", "patience": 1, "lr": 0.5, "epochs": 6},
    {"precision": "bf16", "save_every": 0.0},
    {"optimizer": "muon", "freeze_epochs": 1, "l1": 1e-4},
]


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_a_run_stopped_at_any_poll_and_resumed_ends_in_the_same_bits(tmp_path, how):
    counter = StopAt(10**9)
    whole, whole_best = run(tmp_path / "whole", dict(how), counter)
    wanted = whole.tensors()
    assert counter.polls > 6
    for at in range(0, counter.polls, 1 if how == HOWS[0] else 3):
        folder = tmp_path / str(at)
        with suppress(Interrupted):
            run(folder, dict(how), StopAt(at))
        saved = checkpoint.load_checkpoint(folder)
        assert saved.state["run"] == 1
        trainer, _ = run(folder, dict(how), resume=True)
        assert same(wanted, trainer.tensors()), at
        assert timeless(trainer.state) == timeless(whole.state)
    assert whole_best and whole.state.status == ("stopped by patience" if how.get("patience") else "finished")


def test_a_stop_says_what_was_done_and_how_to_go_on(tmp_path):
    folder = tmp_path / "weights" / "last"
    with pytest.raises(Interrupted, match="SIGTERM after step 2: progress is saved. Resume with --resume") as caught:
        run(folder, {}, StopAt(1))
    assert str(caught.value).endswith(str(tmp_path)) and caught.value.exit_code == 75
    assert checkpoint.load_checkpoint(folder).state["state"]["batch"] == 2


def test_a_stop_without_a_folder_says_that_nothing_is_saved():
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 2: training was not saved"):
        run(None, {}, StopAt(1))


def test_equal_seeds_give_equal_bits_and_others_do_not(tmp_path):
    how = {"drop_path": 0.5}
    first, again = (run(tmp_path / k, dict(how))[0].tensors() for k in "ab")
    other = run(tmp_path / "c", {**how, "seed": 1})[0].tensors()
    assert same(first, again) and not same(first, other)


def test_without_validation_samples_a_run_keeps_its_last_epoch_and_prints_none():
    def trained(validation):
        output, kept = io.StringIO(), []
        trainer = Trainer(network(), settings(epochs=3))
        rest = {"facts": {}, "console": Console(stream=output), "stop": StopFlag()}
        fit(trainer, Feed(), validation, None, on_epoch=lambda _, weights: kept.append(weights), **rest)
        return trainer, kept, output.getvalue()

    (trainer, kept, printed), (other, _, table) = trained(None), trained(Feed(10, 5, shuffle=False))
    assert same(trainer.tensors(), other.tensors())
    assert [weights is not None for weights in kept] == [True] * 3 and trainer.state.best["epoch"] == 3
    assert trainer.state.status == "finished" and "val_loss" not in trainer.state.history[0]
    assert [row["train_loss"] for row in trainer.state.history] == [row["train_loss"] for row in other.state.history]
    assert "val loss" in table and "val loss" not in printed


def test_training_learns_what_can_be_learnt(tmp_path):
    trainer, best = run(tmp_path, {"epochs": 8, "lr": 0.1, "label_smoothing": 0.0})
    history = trainer.state.history
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"] and trainer.state.best["val_accuracy"] > 0.8
    assert [row["epoch"] for row in history] == list(range(1, 9))
    assert all(0 <= row["data_time_fraction"] <= 1 and row["samples_per_second"] > 0 for row in history)
    assert trainer.state.best["val_accuracy"] == max(row["val_accuracy"] for row in history)
    assert set(best) == set(trainer.network.state_dict())


def test_a_step_is_the_mean_over_its_images_however_they_are_split(tmp_path):
    how = {"epochs": 1, "momentum": 0.0, "schedule": "constant", "weight_decay": 0.0, "lr": 0.5}
    whole = Feed(size=24)
    assert whole.bounds == [(0, 26)]
    one, _ = run(tmp_path / "one", dict(how), feed=whole, net=plain_network())
    three, _ = run(tmp_path / "three", {**how, "grad_accum_steps": 3}, feed=Feed(), net=plain_network())
    many, _ = run(tmp_path / "many", {**how, "grad_accum_steps": 99}, feed=Feed(), net=plain_network())
    for key, value in one.tensors().items():
        assert torch.allclose(value, three.tensors()[key], atol=1e-6)
        assert torch.equal(three.tensors()[key], many.tensors()[key])
    assert three.state.step == one.state.step == 1


def some_weights(count=26):
    weights = torch.tensor([0.0, 1.0, 2.0, 5.0]).repeat(count)[:count]
    return weights / weights.mean()


def test_a_step_is_the_weighted_mean_over_its_images_however_they_are_split(tmp_path):
    how = {"epochs": 1, "momentum": 0.0, "schedule": "constant", "weight_decay": 0.0, "lr": 0.5}
    feeds = [Feed(size=24, weights=some_weights()), Feed(weights=some_weights())]
    one, _ = run(tmp_path / "one", dict(how), feed=feeds[0], net=plain_network())
    three, _ = run(tmp_path / "three", {**how, "grad_accum_steps": 3}, feed=feeds[1], net=plain_network())
    again = Feed(size=24, weights=some_weights())
    split = Trainer(plain_network(), settings(**how))
    split.state.num_microbatches = 4
    fit_one_epoch(split, again, tmp_path / "split")
    for key, value in one.tensors().items():
        assert torch.allclose(value, three.tensors()[key], atol=1e-6)
        assert torch.allclose(value, split.tensors()[key], atol=1e-6)
    unweighted, _ = run(tmp_path / "two", dict(how), feed=Feed(size=24), net=plain_network())
    assert not torch.allclose(one.tensors()["network.1.weight"], unweighted.tensors()["network.1.weight"], atol=1e-4)


def fit_one_epoch(trainer, feed, folder):
    validation, facts = Feed(10, 5, shuffle=False), {"run": 1}
    quiet, stop = Console(quiet=True), StopFlag()
    fit(trainer, feed, validation, folder, on_epoch=lambda *_: None, facts=facts, console=quiet, stop=stop)


def test_whole_weights_are_repetitions(tmp_path):
    """The gradient steps on a batch of all images are those on each image as often as its weight."""
    how = {"epochs": 3, "momentum": 0.9, "schedule": "constant", "lr": 0.5}
    counts = torch.tensor([0, 1, 2, 5]).repeat(26)[:26]
    weighted = Feed(size=24, weights=some_weights())
    repeated = Feed(size=24)
    repeated.x, repeated.y = (values.repeat_interleave(counts, 0) for values in (repeated.x, repeated.y))
    repeated.bounds = [(0, len(repeated.y))]
    one, _ = run(tmp_path / "one", dict(how), feed=weighted, net=plain_network())
    two, _ = run(tmp_path / "two", dict(how), feed=repeated, net=plain_network())
    for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    for name in ("train_loss", "train_accuracy"):
        found, wanted = ([row[name] for row in trainer.state.history] for trainer in (one, two))
        assert found == pytest.approx(wanted, abs=1e-5)


def test_the_last_step_of_an_epoch_counts_only_what_it_has(tmp_path):
    how = {"epochs": 1, "momentum": 0.0, "schedule": "constant", "weight_decay": 0.0, "label_smoothing": 0.0}
    net = plain_network()
    mine, feed = copy.deepcopy(net), Feed()
    trainer, _ = run(tmp_path, {**how, "grad_accum_steps": 2}, feed=feed, net=net)
    order = np.random.default_rng(0).permutation(26)
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.05)
    for ids in (order[:16], order[16:]):
        optimizer.zero_grad()
        nn.functional.cross_entropy(mine(feed.x[ids]), feed.y[ids]).backward()
        optimizer.step()
    assert trainer.state.step == 2
    for a, b in zip(mine.parameters(), trainer.network.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("clip_grad", [0.05, 1e9])
def test_clipping_is_that_of_torch(tmp_path, clip_grad):
    how = {"epochs": 1, "momentum": 0.0, "schedule": "constant", "weight_decay": 0.0, "label_smoothing": 0.1}
    net = plain_network()
    mine, feed = copy.deepcopy(net), Feed(size=24)
    trainer, _ = run(tmp_path, {**how, "clip_grad": clip_grad}, feed=feed, net=net)
    ids = np.random.default_rng(0).permutation(26)
    nn.functional.cross_entropy(mine(feed.x[ids]), feed.y[ids], label_smoothing=0.1).backward()
    nn.utils.clip_grad_norm_(mine.parameters(), clip_grad)
    for a, b in zip(mine.parameters(), trainer.network.parameters(), strict=True):
        assert torch.allclose(a - 0.05 * a.grad, b, atol=1e-7)


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "steps", "flat-cosine", "constant"])
def test_the_rate_of_each_step_is_the_schedules(tmp_path, schedule):
    seen = []
    trainer = Trainer(network(), settings(schedule=schedule, bias_lr_mult=3.0, grad_accum_steps=2))
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (seen.append([g["lr"] for g in trainer.optimizer.param_groups]), step())
    fit(
        trainer,
        Feed(),
        Feed(10, 5),
        tmp_path,
        on_epoch=lambda *_: None,
        facts={},
        console=Console(quiet=True),
        stop=StopFlag(),
    )
    wanted = [0.05 * SCHEDULES[schedule](k / 4) for k in range(4)]
    assert [s[0] for s in seen] == pytest.approx(wanted) and [s[1] for s in seen] == pytest.approx(
        [3 * w for w in wanted]
    )
    assert [row["lr"] for row in trainer.state.history] == pytest.approx([wanted[1], wanted[3]])


def test_patience_ends_a_run_that_gets_no_better(tmp_path):
    trainer, _ = run(tmp_path, {"epochs": 50, "lr": 1e-9, "patience": 2})
    state = trainer.state
    assert state.status == "stopped by patience" and state.epoch - state.best["epoch"] == 2


def test_a_lucky_first_epoch_on_four_samples_is_not_kept(tmp_path, monkeypatch):
    losses = iter([0.69, 0.68, 0.6, 0.5, 0.4, 0.45])
    accuracies = iter([4, 2, 3, 3, 3, 3])

    def scores(*_, **__):
        right, loss = next(accuracies), next(losses)
        shares = np.array([[0.9, 0.1]] * right + [[0.1, 0.9]] * (4 - right))
        return ClassScores(np.arange(4), np.full(4, loss), shares, np.zeros(4, np.int64))

    monkeypatch.setattr(loop, "score", scores)
    kept = []
    trainer = Trainer(network(), settings(epochs=6))
    fit(
        trainer,
        Feed(),
        Feed(4, 4),
        tmp_path,
        on_epoch=lambda state, weights: kept.append(weights is not None),
        facts={},
        console=Console(quiet=True),
        stop=StopFlag(),
    )
    assert trainer.state.history[0]["val_accuracy"] == 1.0
    assert trainer.state.best["epoch"] == 6 and trainer.state.best["val_accuracy"] == 0.75
    assert kept == [True] * 6  # weights were written in the epoch that was the best when it ended


def test_a_time_limit_ends_a_run_in_good_order(tmp_path):
    trainer, best = run(tmp_path, {"epochs": 50, "time_limit": 0.0})
    assert trainer.state.status == "stopped by the time limit" and trainer.state.epoch == 1 and best
    assert checkpoint.load_checkpoint(tmp_path).state["state"]["status"] == "stopped by the time limit"


@pytest.mark.parametrize("every, least, most", [(0.0, 6, 99), (1e6, 3, 3)])
def test_checkpoints_come_as_often_as_they_are_asked_for(tmp_path, monkeypatch, every, least, most):
    saves = []
    save = checkpoint.save_checkpoint
    monkeypatch.setattr(checkpoint, "save_checkpoint", lambda *a, **k: saves.append(1) or save(*a, **k))
    run(tmp_path, {"save_every": every})
    assert least <= len(saves) <= most


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_images(tmp_path):
    feed = Feed()
    feed.x[11] = float("nan")
    net = network()
    message = r"cannot take step \d of epoch 1: expected a finite loss, got nan with the images "
    with pytest.raises(NotFiniteError, match=message) as caught:
        run(tmp_path, {"save_every": 0.0}, feed=feed, net=net)
    said = str(caught.value).split("images ")[1].split(". Start")[0].removesuffix(" ...").split(", ")
    order = np.random.default_rng(0).permutation(26)
    bad = next(k for k, (b, e) in enumerate(feed.bounds) if 11 in order[b:e])
    assert said == [str(i) for i in order[slice(*feed.bounds[bad])][:8]] and caught.value.exit_code == 3
    saved = checkpoint.load_checkpoint(tmp_path)
    assert saved.state["state"]["step"] == bad
    trainer, _ = run(tmp_path, {}, resume=True)
    assert trainer.state.status == "finished"


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path):
    net = plain_network()
    net[1].weight.register_hook(lambda g: g * float("inf"))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(NotFiniteError, match="cannot take step 1 of epoch 1: expected a finite gradient"):
        run(tmp_path, {}, net=net)
    assert same(before, net.state_dict())


def test_a_validation_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Scores, "loss", float("inf"))
    with pytest.raises(NotFiniteError, match="after epoch 1: expected a finite validation loss, got inf. Start"):
        run(tmp_path, {})


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    net = plain_network()
    net.register_buffer("unused", torch.zeros(2))
    trainer = Trainer(net, settings())
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (step(), net.unused.fill_(float("nan")))
    with pytest.raises(NotFiniteError, match="NaN: 'network.unused'"):
        fit(
            trainer,
            Feed(),
            Feed(10, 5),
            tmp_path,
            on_epoch=lambda *_: None,
            facts={},
            console=Console(quiet=True),
            stop=StopFlag(),
        )
    assert checkpoint.load_checkpoint(tmp_path).step == 0


def test_a_disk_that_fills_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    write, left = atomic_files.write_new, [8]

    def filling(path, data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(atomic_files, "write_new", filling)
    with pytest.raises(StorageError, match="cannot write .*: No space left on device") as caught:
        run(tmp_path, {"save_every": 0.0})
    assert caught.value.exit_code == 4 and checkpoint.load_checkpoint(tmp_path).step == 1
    monkeypatch.undo()
    trainer, _ = run(tmp_path, {}, resume=True)
    assert same(run(tmp_path / "whole", {})[0].tensors(), trainer.tensors())


def test_every_epoch_is_a_row_of_one_table(tmp_path):
    out = io.StringIO()
    run(tmp_path, {}, console=Console(stream=out))
    header, first, second = out.getvalue().splitlines()
    assert header.split("  ")[-1] == "    ETA" or header.endswith("ETA")
    assert first.split()[0] == "1/2" and second.split()[0] == "2/2" and "*" in first
    assert all(len(line) <= 100 for line in (header, first, second))
    assert len(first.split()) == len(second.split()) + 1 + ("*" not in second)  # the last epoch has no ETA


def test_a_checkpoint_says_where_the_run_is_in_plain_json(tmp_path):
    run(tmp_path, {"ema": 0.5})
    saved = checkpoint.load_checkpoint(tmp_path)
    state = json.loads((saved.path / "state.json").read_text())["state"]
    assert state["epoch"] == 2 and state["step"] == 6 and state["status"] == "finished" and len(state["history"]) == 2
    kinds = {name.split(".")[0] for name in saved.tensors}
    assert kinds == {"network", "average", "optimizer"}


def test_restoring_after_a_random_walk_of_stops_gives_the_same_bits(tmp_path):
    how = {"epochs": 3, "drop_path": 0.3, "ema": 0.9, "save_every": 0.0}
    whole, _ = run(tmp_path / "whole", dict(how))
    chance, resume = random.Random(1), False
    for _ in range(100):
        try:
            trainer, _ = run(tmp_path / "walk", dict(how), StopAt(chance.randrange(4)), resume)
            break
        except Interrupted:
            resume = True
    assert same(whole.tensors(), trainer.tensors()) and timeless(whole.state) == timeless(trainer.state)


class Clock:
    """A monotonic clock that is `slow` times as fast from the 100th look on. Looks of other threads do not move it."""

    def __init__(self, slow):
        self.now, self.looks, self.slow = 0.0, 0, slow

    def __call__(self):
        if threading.current_thread() is not threading.main_thread():
            return self.now  # the thread that writes checkpoints
        self.looks += 1
        self.now += 0.01 * (self.slow if self.looks > 100 else 1)
        return self.now


@pytest.mark.parametrize("slow", [1, 6])
def test_the_schedule_ends_with_the_time_limit_on_a_machine_that_becomes_slower(tmp_path, monkeypatch, slow):
    monkeypatch.setattr("skipway.training.loop.time.monotonic", Clock(slow))
    epochs, limit = 20, 6.0
    trainer, _ = run(tmp_path, {"epochs": epochs, "time_limit": limit, "schedule": "cosine"})
    rates = [row["lr"] for row in trainer.state.history]
    if slow == 1:
        assert trainer.state.status == "finished"
        assert rates == pytest.approx([0.05 * SCHEDULES["cosine"]((3 * e + 2) / 60) for e in range(epochs)])
    else:
        assert trainer.state.status == "stopped by the time limit" and trainer.state.epoch < epochs
        assert trainer.optimizer.param_groups[0]["lr"] < 0.05 * 0.02
