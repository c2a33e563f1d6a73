"""What a training run consists of: settings, network, optimiser, average, device, and where it is."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from skipway.distributed import collectives, process_group
from skipway.distributed.fsdp import full_state_dict, full_tensor, shard_like, shard_model
from skipway.errors import InputError, printable
from skipway.nn.activation_checkpointing import recompute
from skipway.training.losses import Classification, Task
from skipway.training.optimizers import make_optimizer, set_rates
from skipway.training.schedules import make_schedule, momentum_at

__all__ = ["Settings", "State", "Trainer", "preserve_global_state", "has_bf16"]

# The type that autocast computes in, by precision.
_AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """How to train; the fields are those of a Recipe with everything decided."""

    epochs: int
    lr: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_lr_mult: float = 1.0
    schedule: str = "one-cycle"
    head: str = "train"  # how the first epoch fits the head: by gradient steps, or by "regression"
    freeze_epochs: int = 0  # epochs in which only the head learns
    freeze_until: str | None = None  # layer up to which none learns; then the norms of all keep their statistics
    layer_decay: float = 1.0  # learning rate of each part of the network over that of the part behind it
    label_smoothing: float = 0.1
    class_weights: tuple[float, ...] | None = None
    l1: float = 0.0  # times the sum of the weights' sizes, added to the loss
    l2: float = 0.0  # times the sum of their squares
    ema: float | None = None
    clip_grad: float | None = None
    grad_accum_steps: int = 1
    patience: int | None = None
    time_limit: float | None = None
    seed: int = 0
    precision: str = "fp32"
    device: str = "cpu"
    save_every: float = 120.0
    recompute: int | str = "none"  # blocks in a group of which only the input is kept: see `recompute`
    fsdp: bool = False  # weights, gradients and optimiser states split over the processes


@dataclass
class State:
    """Where a run is: what stands in a checkpoint beside the tensors."""

    epoch: int = 0
    batch: int = 0  # batches of the epoch that are done
    step: int = 0  # optimiser steps that are done
    loss: float = 0.0  # sums over the epoch so far
    metric_sum: float = 0.0
    seen: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    total_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    status: str = "running"
    num_microbatches: int = 1  # that a batch is computed in, since memory does not hold it whole


def has_bf16(device: str) -> bool:
    """Whether the hardware multiplies bfloat16 matrices itself (AMX, AVX512-BF16, recent GPUs)."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


@contextmanager
def preserve_global_state() -> Iterator[None]:
    """Restore the caller's thread count and random number generators, of which each process has one.

    CUDA is left alone if the process has not used it: in a forked worker it cannot be. It is seeded as before then.
    """
    threads, seed, has_cuda = torch.get_num_threads(), torch.initial_seed(), torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if has_cuda else []):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            if not has_cuda and not torch.cuda._is_in_bad_fork():
                torch.cuda.manual_seed_all(seed)


class Trainer:
    """What one run of `fit` holds: network, optimiser, average, device, and where it is.

    `name_of(id)` is what errors call an image.
    """

    def __init__(
        self, network: nn.Module, settings: Settings, name_of: Callable[[int], str] = str, task: Task | None = None
    ):
        self.device = process_group.local_device(settings.device)
        self.settings, self.state, self.name_of = settings, State(), name_of
        self.task = task or Classification(settings.label_smoothing, settings.class_weights)
        if settings.recompute != "none":
            recompute(network, settings.recompute)
        self.average = _make_average(network, settings)
        self.network = self._to_device(network)
        if self.average is not None:
            self.average.module = self._to_device(self.average.module)
            self.average.n_averaged = self.average.n_averaged.to(self.device)
        self.optimizer = make_optimizer(
            self.network,
            settings.optimizer,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            bias_lr_mult=settings.bias_lr_mult,
            layer_decay=settings.layer_decay,
        )
        self.trainable_params = [p for p in self.network.parameters() if p.requires_grad]
        self.model = self._wrap_replicas()
        self.frozen_params: set[nn.Parameter] = set()
        self.set_ends(settings)

    def set_ends(self, settings: Settings) -> None:
        """Train by `settings`, of which only the epochs, frozen ones included, and the time limit may have changed."""
        self.settings = settings
        self.lr_schedule = make_schedule(settings.schedule, min(settings.freeze_epochs / settings.epochs, 0.99))
        self.until = settings.epochs  # where this network's part of the run ends

    def _to_device(self, network: nn.Module) -> nn.Module:
        """`network` on the device: whole, or where it is to be shared out this process's part of it."""
        if self.settings.fsdp:
            return shard_model(network, self.device.type)
        return network.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _wrap_replicas(self) -> nn.Module:
        """Wrap the network in DistributedDataParallel if several processes train replicas of it."""
        if self.settings.fsdp or collectives.world_size() == 1:
            return self.network
        return DistributedDataParallel(self.network)

    @property
    def eval_model(self) -> nn.Module:
        """The network whose accuracy counts: the average where there is one."""
        return self.network if self.average is None else self.average.module

    def to_train(self) -> None:
        """Training mode as the epoch has it: norms of layers that are frozen keep their statistics too."""
        self.network.train()
        frozen = self._frozen_layers()
        previously_frozen = self.frozen_params
        self.frozen_params = set(nn.ModuleList(frozen).parameters())
        for layer in frozen:
            layer.eval()
        if self.settings.freeze_until is not None:
            for layer in self.network.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        if not self.settings.fsdp:  # FSDP settles which parameters have gradients when it shards the model
            for p in self.trainable_params:
                p.requires_grad_(p not in self.frozen_params)
        if previously_frozen != self.frozen_params:
            self.model = (
                self._wrap_replicas()
            )  # DistributedDataParallel expects gradients of what learns now, no others

    def _frozen_layers(self) -> list[nn.Module]:
        """Return the layers that do not learn in this epoch: those before the head, fewer, or none."""
        layers = dict(self.network.named_children())
        if self.state.epoch < self.settings.freeze_epochs:
            trunk = list(layers.values())
            while trunk and not any(True for _ in trunk.pop().parameters()):  # what is left stands before the head
                pass
            return trunk
        if self.settings.freeze_until is None:
            return []
        return list(layers.values())[: list(layers).index(self.settings.freeze_until) + 1]

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass: autocast if the precision is lower than fp32."""
        dtype = _AUTOCAST_DTYPES[self.settings.precision]
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def synced(self, last: bool) -> AbstractContextManager[Any]:
        """Where processes share their gradients: after the `last` backward pass of a step alone."""
        if self.settings.fsdp:
            self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext() if last or not isinstance(self.model, DistributedDataParallel) else self.model.no_sync()

    def clip_gradients(self) -> Tensor:
        """Scale the gradients down to a norm of at most `clip`, if it is set; return the norm they had."""
        for p in self.frozen_params:
            p.grad = None
        return full_tensor(nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_grad or float("inf")))

    def penalty(self) -> Tensor | float:
        """What the sizes of the weights add to the loss; norms and biases add nothing."""
        weights = [p for p in self.trainable_params if p.dim() > 1] if self.settings.l1 or self.settings.l2 else []
        sizes = self.settings.l1 * sum(p.abs().sum() for p in weights) if self.settings.l1 else 0.0
        return sizes + (self.settings.l2 * sum(p.square().sum() for p in weights) if self.settings.l2 else 0.0)

    def rates(self, position: float) -> tuple[float, float]:
        """Learning rate and momentum at `position` in [0, 1] of the run."""
        rate = self.lr_schedule(position)
        return rate * self.settings.lr, momentum_at(self.settings.schedule, self.settings.momentum, rate)

    def set_rates(self, position: float) -> None:
        """Let the optimiser have the rates of the step at `position`."""
        set_rates(self.optimizer, *self.rates(position))

    def update_average(self) -> None:
        """Let the average, where there is one, follow the step that was just taken."""
        if self.average is not None:
            self.average.update_parameters(self.network)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold in tensors, by name; all processes ask together."""
        return full_state_dict(self.parts())

    def parts(self) -> dict[str, Tensor]:
        """The same as far as this process has it."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        names = {id(p): n for n, p in self.network.named_parameters()}
        for parameter, values in self.optimizer.state.items():
            tensors |= {f"optimizer.{names[id(parameter)]}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
        return tensors

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go back to what `tensors` and `state` say."""
        self.optimizer.state.clear()
        _load(self.network, _strip_prefix("network.", tensors))
        if self.average is not None:
            _load(self.average, _strip_prefix("average.", tensors))
        for name, parameter in self.network.named_parameters():
            values = {
                k: shard_like(v, parameter)
                for k, v in _strip_prefix(f"optimizer.{name}.", tensors).items()
                if "." not in k
            }
            if values:
                self.optimizer.state[parameter] = values
        self.state = State(**state)
        if collectives.rank():  # the sums of all processes stand with the first
            self.state.loss, self.state.metric_sum, self.state.seen = 0.0, 0.0, 0


def _make_average(network: nn.Module, settings: Settings) -> AveragedModel | None:
    if settings.ema is None:
        return None
    if settings.fsdp:  # parts of tensors are averaged one by one
        return AveragedModel(network, avg_fn=get_ema_avg_fn(settings.ema), use_buffers=True)
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True)


def _load(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = module.state_dict()
    for name, tensor in tensors.items():
        if name in own and tensor.dtype != own[name].dtype:
            raise InputError(
                f"cannot restore {printable(name)}: expected {own[name].dtype}, got {tensor.dtype}. Start a new run."
            )
    module.load_state_dict({name: shard_like(t, own[name]) if name in own else t for name, t in tensors.items()})


def _strip_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
