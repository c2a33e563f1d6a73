"""One process of a training with others; run by distributed/test_collectives.py, which sets RANK and WORLD_SIZE.

python rank_worker.py FOLDER [only-scores]
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from small_runs import StopAt
from tiny_training import network, plain_network

from skipway.distributed import collectives, process_group
from skipway.distributed.fsdp import shard_model
from skipway.errors import Interrupted
from skipway.model_factory import create_model
from skipway.training import checkpoint
from skipway.training.loop import fit
from skipway.training.losses import Classification
from skipway.training.metrics import score
from skipway.training.trainer import Settings, Trainer
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag

HOWS = {
    "plain": {},
    "adamw": {"optimizer": "adamw", "freeze_epochs": 1, "epochs": 3, "ema": 0.8},
    "accumulated": {"grad_accum_steps": 2, "clip_grad": 0.5, "l2": 1e-3},
    "weighted": {"grad_accum_steps": 2, "weighted": True},
}
# The same twice: whole in every process, and split over them.
SHARDED = {
    "sgd": {"epochs": 1},
    "adamw": {"optimizer": "adamw", "freeze_epochs": 1, "epochs": 3, "ema": 0.8},
    "muon": {"optimizer": "muon", "grad_accum_steps": 2, "clip_grad": 0.5, "precision": "bf16"},
}


class Feed:
    """Twenty-seven noisy images of three kinds in batches of 8, 8 and 11, of which every process has its part."""

    def __init__(self, part=(0, 1), shuffle=True, count=27, weighted=False):
        generator = torch.Generator().manual_seed(3)
        self.y = torch.arange(count) % 3
        self.x = torch.randn(count, 1, 6, 6, generator=generator) + self.y.view(-1, 1, 1, 1)
        self.part, self.shuffle = part, shuffle
        self.sample_weights = torch.arange(count) % 5 / 2 if weighted else None
        self.bounds = [(0, 8), (8, 16), (16, count)]

    @property
    def steps(self):
        return len(self.bounds)

    def weights(self, ids, epoch=0):
        return None if self.sample_weights is None else self.sample_weights[ids]

    def epoch(self, epoch=0, start=0):
        order = np.random.default_rng(epoch).permutation(len(self.y)) if self.shuffle else np.arange(len(self.y))
        for begin, end in self.bounds[start:]:
            ids = order[begin:end][self.part[0] :: self.part[1]]
            yield self.x[ids], self.y[ids], ids


def settings(how):
    return Settings(**{"epochs": 2, "lr": 0.05, "save_every": 0.0, **how})


def train(how, folder, stop=None, resume=False):
    part = collectives.rank(), collectives.world_size()
    weighted = how.pop("weighted", False)
    trainer = Trainer(network(), settings(how))
    if resume:
        saved = checkpoint.load_checkpoint(folder)
        trainer.restore(saved.tensors, saved.state["state"])
    fit(
        trainer,
        Feed(part, weighted=weighted),
        Feed(part, shuffle=False, count=25, weighted=weighted),
        folder,
        on_epoch=lambda *_: None,
        facts={},
        console=Console(quiet=True),
        stop=stop or StopFlag(),
    )
    return trainer


def held(trainer):
    """Numbers that this process holds of weights and optimiser."""
    tensors = [*trainer.network.parameters(), *(v for s in trainer.optimizer.state.values() for v in s.values())]
    return sum(
        getattr(t, "to_local", lambda t=t: t)().numel() for t in tensors if isinstance(t, torch.Tensor) and t.dim()
    )


def train_all(folder):
    """The tensors that the tests compare, of every training."""
    out = {}
    for name, how in HOWS.items():
        trainer = train(dict(how), folder / name)
        out |= {f"{name}.{k}": v.clone() for k, v in trainer.network.state_dict().items()}
        out[f"{name}.losses"] = torch.tensor([[r["train_loss"], r["val_loss"]] for r in trainer.state.history])
    for name, how in SHARDED.items():
        for fsdp in (False, True):
            trainer = train({**how, "fsdp": fsdp}, folder / f"{name} {fsdp}")
            if fsdp:
                resumed = Trainer(network(), settings({**how, "fsdp": True}))
                saved = checkpoint.load_checkpoint(folder / f"{name} {fsdp}")
                resumed.restore(saved.tensors, saved.state["state"])
                out[f"held {name}"] = torch.tensor([held(trainer), held(resumed)])
                tensors = resumed.tensors()
            else:
                tensors = trainer.tensors()
                out[f"held {name} whole"] = torch.tensor(held(trainer))
            out |= {f"{name} {fsdp}.{k}": v.clone() for k, v in tensors.items()}
    try:  # a signal that one process alone hears stops all after the same step
        train({}, folder / "stopped", StopAt(1) if collectives.rank() == 0 else None)
        out["stopped"] = torch.tensor(-1)
    except Interrupted as error:
        out["stopped"] = torch.tensor(int(str(error).split("after step ")[1].split(":")[0]))
    resumed = train({}, folder / "stopped", resume=True)
    return out | {f"resumed.{k}": v.clone() for k, v in resumed.network.state_dict().items()}


def memory_formats():
    """Return 1 for each convolution of a sharded network that computes in bf16 and channels_last, else 0."""
    torch.manual_seed(0)
    layers = create_model("resnet20", num_classes=3, in_chans=3, layers=[1, 1, 1]).to(memory_format=torch.channels_last)
    found = []

    def look(module, inputs, output):
        (x,) = inputs
        is_half = output.dtype == torch.bfloat16
        found.append(is_half and all(t.is_contiguous(memory_format=torch.channels_last) for t in (x, output)))

    sharded = shard_model(layers, "cpu")
    for module in sharded.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(look)
    x = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        sharded(x).float().sum().backward()
    return torch.tensor(found)


def main(folder, only_scores=False):
    torch.set_num_threads(1)
    process_group.join_group("cpu")
    out = {} if only_scores else {**train_all(folder), "channels_last": memory_formats()}
    torch.manual_seed(0)
    plain = plain_network()
    seen = score(
        plain,
        Feed((collectives.rank(), collectives.world_size()), shuffle=False, count=17),
        Classification(),
        autocast=torch.no_grad,
        device=torch.device("cpu"),
    )
    out["ids"], out["seen"] = torch.from_numpy(seen.ids), torch.from_numpy(seen.probabilities)
    save_file({k: v.contiguous() for k, v in out.items()}, folder / f"{collectives.rank()}.safetensors")
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort an interpreter that ends


if __name__ == "__main__":
    main(Path(sys.argv[1]), "only-scores" in sys.argv)
