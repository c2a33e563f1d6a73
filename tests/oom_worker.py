"""One of two processes of a training in which one runs out of memory; run by distributed/test_oom_agreement.py.

python oom_worker.py FOLDER, with RANK and WORLD_SIZE set
"""

import os
import sys
from pathlib import Path

import torch
from rank_worker import Feed, settings
from safetensors.torch import save_file
from small_runs import Words
from tiny_training import network, plain_network
from torch import nn

from skipway.distributed import collectives, process_group
from skipway.errors import StorageError
from skipway.training.loop import fit
from skipway.training.oom_retry import retry_with_microbatches
from skipway.training.trainer import Trainer
from skipway.utils.stop_signals import StopFlag

# (the process without memory, the pass in which it lacks memory, the step from which on, from 0, samples with memory)
HOWS = {
    "forward": (1, "forward", 0, 3),
    "backward": (1, "backward", 0, 3),
    "first process": (0, "backward", 2, 3),
    "later": (1, "forward", 4, 3),
    "last piece": (1, "backward", 5, 3),
}
MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB."


class LacksMemory(torch.autograd.Function):
    """The identity, whose backward pass runs out of memory."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError(MESSAGE)


class Tight(nn.Module):
    """A network that runs out of memory in training with more than `room` samples, from a step on, in one process."""

    def __init__(self, layers, who, where, first, room):
        super().__init__()
        self.layers, self.where, self.first, self.room = layers, where, first, room
        self.is_tight, self.trainer = who == collectives.rank(), None

    def forward(self, x):
        lacks = self.is_tight and self.training and self.trainer.state.step >= self.first and len(x) > self.room
        for number, layer in enumerate(self.layers):
            if lacks and number == len(self.layers) - 1:  # the last layer has passed its gradient on
                if self.where == "forward":
                    raise torch.OutOfMemoryError(MESSAGE)
                x = LacksMemory.apply(x)
            x = layer(x)
        return x


def train(layers, folder, how=None, pieces=1, **values):
    """Train `layers`, with a lack of memory as in HOWS, and return the trainer and its lines."""
    words = Words()
    model = Tight(layers, *(how or (-1, "forward", 0, 99)))
    trainer = model.trainer = Trainer(model, settings(values))
    trainer.state.num_microbatches = pieces
    part = collectives.rank(), collectives.world_size()
    feeds = Feed(part), Feed(part, shuffle=False, count=25)

    def training():
        common = {"on_epoch": lambda *_: None, "facts": {}, "console": words, "stop": StopFlag()}
        return fit(trainer, *feeds, folder, **common)

    retry_with_microbatches(training, trainer, folder=folder, batch_size=8, console=words)
    return trainer, words.lines


def main(folder):
    torch.set_num_threads(1)
    process_group.join_group("cpu")
    out = {}
    for name, how in HOWS.items():
        trainer, lines = train(plain_network(), folder / name, how)
        out |= {f"{name}.{k}": v.clone() for k, v in trainer.network.state_dict().items()}
        out[f"{name} pieces"] = torch.tensor(trainer.state.num_microbatches)
        out[f"{name} retries"] = torch.tensor(sum("ran out of memory" in line for line in lines))
    for name, how, pieces in (("norms", (1, "forward", 0, 3), 1), ("norms in pieces", None, 2)):
        trainer, _ = train(network(), folder / name, how, pieces, grad_accum_steps=2)
        out |= {f"{name}.{k}": v.clone() for k, v in trainer.network.state_dict().items()}
    whole, _ = train(plain_network(), folder / "whole")
    out |= {f"whole.{k}": v.clone() for k, v in whole.network.state_dict().items()}
    try:
        train(plain_network(), folder / "none", (1, "forward", 0, 0))
    except StorageError as error:
        print(error)
    save_file({k: v.contiguous() for k, v in out.items()}, folder / f"{collectives.rank()}.safetensors")
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort an interpreter that ends


if __name__ == "__main__":
    main(Path(sys.argv[1]))
