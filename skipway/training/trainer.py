"""What a training run consists of: settings, network, optimiser, average, engine, and where it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = ["Settings", "State", "Trainer", "as_found", "has_bf16", "make_optimizer"]


@dataclass(frozen=True)
class Settings:
    """How to train; the fields are those of a Recipe with everything decided."""

    epochs: int
    lr: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_lr: float = 1.0
    schedule: str = "one-cycle"
    label_smoothing: float = 0.1
    ema: float | None = None
    clip: float | None = None
    accumulate: int = 1
    patience: int | None = None
    time_limit: float | None = None
    seed: int = 0
    precision: str = "fp32"
    device: str = "cpu"
    save_every: float = 120.0


@dataclass
class State:
    """Where a run is: what stands in a checkpoint beside the tensors."""

    epoch: int = 0
    batch: int = 0  # batches of the epoch that are done
    step: int = 0  # optimiser steps that are done
    loss: float = 0.0  # sums over the epoch so far
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    total_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    status: str = "running"


def has_bf16(device: str) -> bool:
    """Whether the hardware multiplies bfloat16 matrices itself (AMX, AVX512-BF16, recent GPUs)."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def make_optimizer(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """The optimiser by name; weight decay on weights alone, not on norms and biases.

    Each group carries the `factor` that the loop multiplies its learning rate by.
    """
    decayed = [p for p in network.parameters() if p.requires_grad and p.dim() > 1]
    others = [p for p in network.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay, "factor": 1.0},
        {"params": others, "weight_decay": 0.0, "factor": settings.bias_lr},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.momentum, 0.99))
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)


@contextmanager
def as_found() -> Iterator[None]:
    """After it the caller's threads, random numbers and accelerate are as before: all are one per process."""
    threads = torch.get_num_threads()
    shared = [(c._shared_state, dict(c._shared_state)) for c in (AcceleratorState, PartialState, GradientState)]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            for state, before in shared:
                state.clear()
                state.update(before)


class Trainer:
    """What one run of `fit` holds: network, optimiser, average, engine, and where it is.

    `name_of(id)` is what errors call a picture.
    """

    def __init__(self, network: nn.Module, settings: Settings, name_of: Callable[[int], str] = str):
        AcceleratorState._reset_state(reset_partial_state=True)  # it is one per process, with the last run's precision
        self.engine = Accelerator(
            mixed_precision="bf16" if settings.precision == "bf16" else "no", cpu=settings.device == "cpu"
        )
        self.settings, self.state, self.name_of = settings, State(), name_of
        self.network = network.to(device=self.engine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.network, settings)
        self.average = None
        if settings.ema is not None:
            self.average = AveragedModel(
                self.network, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True
            )
        self.model, self.stepper = self.engine.prepare(self.network, self.optimizer)

    @property
    def judged(self) -> nn.Module:
        """The network whose accuracy counts: the average where there is one."""
        return self.network if self.average is None else self.average.module

    def update_average(self) -> None:
        """Let the average, where there is one, follow the step that was just taken."""
        if self.average is not None:
            self.average.update_parameters(self.network)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold in tensors, by name."""
        found = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.average is not None:
            found |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        names = {id(p): n for n, p in self.network.named_parameters()}
        for parameter, values in self.optimizer.state.items():
            found |= {f"optimizer.{names[id(parameter)]}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
        return found

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go back to what `tensors` and `state` say."""
        self.network.load_state_dict(_under("network.", tensors))
        if self.average is not None:
            self.average.load_state_dict(_under("average.", tensors))
        for name, parameter in self.network.named_parameters():
            values = {
                k: v.to(parameter.device) for k, v in _under(f"optimizer.{name}.", tensors).items() if "." not in k
            }
            if values:
                self.optimizer.state[parameter] = values
        self.state = State(**state)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
