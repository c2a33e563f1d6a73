"""A tiny feed, tiny networks, and a run of the training loop on them."""

import numpy as np
import torch
from torch import nn

from skipway.model_factory import create_model
from skipway.training import checkpoint
from skipway.training.loop import fit
from skipway.training.trainer import Settings, Trainer
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag

TIMES = ("seconds", "samples_per_second", "data_time_fraction")


class Feed:
    """Twenty-six noisy images of three kinds in batches of 8, 8 and 10, in an order of the epoch's own."""

    def __init__(self, count=26, size=8, shuffle=True, weights=None):
        generator = torch.Generator().manual_seed(3)
        self.y = torch.arange(count) % 3
        self.x = torch.randn(count, 1, 6, 6, generator=generator) + self.y.view(-1, 1, 1, 1)
        self.bounds = [(i, min(i + size, count)) for i in range(0, count - 2, size)]
        self.bounds[-1] = (self.bounds[-1][0], count)
        self.shuffle, self.sample_weights = shuffle, weights

    @property
    def steps(self):
        return len(self.bounds)

    def weights(self, ids, epoch=0):
        return None if self.sample_weights is None else self.sample_weights[ids]

    def epoch(self, epoch=0, start=0):
        order = np.arange(len(self.y))
        if self.shuffle:
            order = np.random.default_rng(epoch).permutation(order)
        for begin, end in self.bounds[start:]:
            ids = order[begin:end]
            yield self.x[ids], self.y[ids], ids


def network(drop_path=0.0):
    torch.manual_seed(0)
    options = {"layers": [1, 1], "widths": [4, 8], "drop_path": drop_path}
    return create_model("resnet20", num_classes=3, in_chans=1, **options)


def plain_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 3))


def settings(**values):
    return Settings(**{"epochs": 2, "lr": 0.05, **values})


def run(folder, how, stop=None, resume=False, feed=None, console=None, net=None):
    trainer = Trainer(net or network(how.pop("drop_path", 0.0)), settings(**how))
    best = {}
    if resume:
        saved = checkpoint.load_checkpoint(folder)
        trainer.restore(saved.tensors, saved.state["state"])

    def on_epoch(state, weights):
        if weights is not None:
            best.update({k: v.clone() for k, v in weights.items()})

    fit(
        trainer,
        feed or Feed(),
        Feed(10, 5, shuffle=False),
        folder,
        on_epoch=on_epoch,
        facts={"run": 1},
        console=console or Console(quiet=True),
        stop=stop or StopFlag(),
    )
    return trainer, best


def timeless(state):
    history = [{k: v for k, v in row.items() if k not in TIMES} for row in state.history]
    best = {k: v for k, v in state.best.items() if k not in TIMES}
    return history, best, state.status, state.step, state.epoch


def same(left, right):
    return set(left) == set(right) and all(torch.equal(v, right[k]) for k, v in left.items())
