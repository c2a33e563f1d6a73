"""Trainer: the settings, model, optimizer, EMA, device and state of a training run."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from skipway.distributed import collectives, process_group
from skipway.distributed.fsdp import full_state_dict, full_tensor, is_sharded, shard_like, shard_model
from skipway.errors import InputError, printable
from skipway.nn.activation_checkpointing import recompute
from skipway.training import precision
from skipway.training.compiled_model import compiled_model
from skipway.training.losses import Classification, Task
from skipway.training.optimizers import make_optimizer, set_rates, step_unless
from skipway.training.schedules import make_schedule, momentum_at
from skipway.training.weight_average import make_average
from skipway.utils.devices import device_counts

__all__ = ["KeptEpoch", "Settings", "State", "Trainer", "preserve_global_state"]

KeptEpoch = Literal["best", "last"]
_SCALER_STATE = ("scale", "_growth_tracker")  # values of a GradScaler that change
_COLUMNS = "columns"  # first layer of the head of a network with feature columns


@dataclass(frozen=True)
class Settings:
    """Resolved training options; see the fields of a Recipe."""

    epochs: int
    lr: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_lr_mult: float = 1.0
    schedule: str = "one-cycle"
    head: str = "train"  # fit the head in the first epoch by gradient steps, or by "regression"
    freeze_epochs: int = 0  # epochs in which only the head is trained
    freeze_until: str | None = None  # last frozen layer; if set, all batch norms keep their statistics
    layer_decay: float = 1.0  # learning rate of each child of the network divided by that of the next one
    label_smoothing: float = 0.1
    class_weights: tuple[float, ...] | None = None
    huber: float | None = None  # error of a number from which its loss grows linearly, in standardized units
    l1: float = 0.0  # factor of the sum of absolute weights in the loss
    l2: float = 0.0  # factor of the sum of squared weights in the loss
    ema: float | None = None
    clip_grad: float | None = None
    grad_accum_steps: int = 1
    patience: int | None = None
    time_limit: float | None = None
    seed: int = 0
    precision: str = "fp32"
    device: str = "cpu"
    save_every: float = 120.0
    recompute: int | str = "none"  # activation checkpointing: blocks per checkpointed group, see `recompute`
    kept_epoch: KeptEpoch = "best"  # epoch of the weights that a run keeps: by the validation metric, or the last one
    calibrate: bool = False  # fit the temperature of the probabilities to the validation samples after training
    fsdp: bool = False  # shard weights, gradients and optimizer states over the processes


@dataclass
class State:
    """Progress of a run, saved in each checkpoint next to the tensors."""

    epoch: int = 0
    batch: int = 0  # completed batches of the epoch
    step: int = 0  # completed optimizer steps
    loss: float = 0.0  # loss, metric_sum and seen are sums over the epoch so far
    metric_sum: float = 0.0
    seen: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    total_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    status: str = "running"
    num_microbatches: int = 1  # more than 1 after running out of memory


@contextmanager
def preserve_global_state() -> Iterator[None]:
    """Restore the thread count and the random generators of the process when the context ends.

    An accelerator that is not initialized stays so, because a forked worker cannot initialize it. Only its seed is
    restored.
    """
    threads, seed, kind = torch.get_num_threads(), torch.initial_seed(), next(iter(device_counts()), "cuda")
    module = torch.get_device_module(kind)
    is_used = not hasattr(module, "is_initialized") or module.is_initialized()  # MPS always is
    devices = range(module.device_count()) if is_used else []
    with torch.random.fork_rng(devices=devices, device_type=kind):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            if not is_used and not module._is_in_bad_fork():
                module.manual_seed_all(seed)


class Trainer:
    """Model, optimizer, EMA, device and progress of a training run.

    Args:
        network: moved to the device, and sharded or replicated if several processes train.
        settings: resolved training options.
        name_of: returns the name of a sample id for error messages.
        task: loss and metrics, default a classification.

    Attributes:
        network: the network that is trained.
        model: `network`, wrapped in DistributedDataParallel if several processes train replicas.
        average: EMA of the weights, or None.
        scaler: scales the loss in fp16, else None.
        compiled: computes the outputs of `model` by compiled code, or None.
        takes_steps: the training steps of an epoch have begun, and not ended.
        has_outputs: the last forward pass has ended.
        defers_reading: losses and gradients stay on the device for several steps, and the optimizer is fused.
        state: progress of the run.
    """

    def __init__(
        self, network: nn.Module, settings: Settings, name_of: Callable[[int], str] = str, task: Task | None = None
    ):
        self.device = process_group.local_device(settings.device)
        self.settings, self.state, self.name_of = settings, State(), name_of
        self.takes_steps = self.has_outputs = False
        self.task = task or Classification(settings.label_smoothing, settings.class_weights)
        if settings.recompute != "none":
            recompute(network, settings.recompute)
        self.defers_reading = self.device.type == "cuda" and not settings.fsdp
        self.average = make_average(network, settings.ema, is_sharded=settings.fsdp)
        self.network = self._to_device(network)
        if self.average is not None:
            self.average.module = self._to_device(self.average.module)
        self.optimizer = make_optimizer(
            self.network,
            settings.optimizer,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            bias_lr_mult=settings.bias_lr_mult,
            layer_decay=settings.layer_decay,
            fused=self.defers_reading,
        )
        is_fp16 = settings.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type) if is_fp16 else None
        self.trainable_params = [p for p in self.network.parameters() if p.requires_grad]
        self.model = self._wrap_replicas()
        self.compiled: Callable[[Any], Tensor] | None = None
        self.frozen_params: set[nn.Parameter] = set()
        self.set_ends(settings)

    def set_ends(self, settings: Settings) -> None:
        """Use `settings`, which may differ only in the epochs, the frozen epochs and the time limit."""
        self.settings = settings
        self.lr_schedule = make_schedule(settings.schedule, min(settings.freeze_epochs / settings.epochs, 0.99))
        self.until = settings.epochs  # last epoch before the network grows or the run ends

    def _to_device(self, network: nn.Module) -> nn.Module:
        """Move a network to the device, and shard it if FSDP is used."""
        if self.settings.fsdp:
            return shard_model(network, self.device.type)
        return network.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _wrap_replicas(self) -> nn.Module:
        """Wrap the network in DistributedDataParallel if several processes train replicas of it."""
        if self.settings.fsdp or collectives.world_size() == 1:
            return self.network
        replicas = DistributedDataParallel(self.network)
        # Only the statistics of the first process are used: they are copied when the network is evaluated. Copies in
        # each forward pass would take time, and another one would follow if a pass runs out of memory.
        replicas.broadcast_buffers = False
        return replicas

    def renew_replicas(self) -> None:
        """Wrap the network again, after its parameters with gradients have changed or a step has failed."""
        self.model = self._wrap_replicas()
        if self.compiled is not None:
            self.compile_model()

    def compile_model(self) -> None:
        """Compile the forward and backward pass, by CUDA graphs if no gradients are accumulated."""
        accumulates = self.settings.grad_accum_steps > 1 or self.state.num_microbatches > 1
        graphs = self.device.type == "cuda" and collectives.world_size() == 1 and not accumulates
        self.compiled = compiled_model(self.model, cuda_graphs=graphs)

    @property
    def eval_model(self) -> nn.Module:
        """Network to evaluate and save: the EMA if there is one."""
        return self.network if self.average is None else self.average.module

    def to_train(self) -> None:
        """Set the training mode of the epoch: freeze layers, including the statistics of their batch norms."""
        self.takes_steps = True
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
        if not self.settings.fsdp:  # FSDP fixes the parameters with gradients when it shards the model
            for p in self.trainable_params:
                p.requires_grad_(p not in self.frozen_params)
        if previously_frozen != self.frozen_params:
            # DistributedDataParallel fixes the parameters with gradients when it is created.
            self.renew_replicas()

    def _frozen_layers(self) -> list[nn.Module]:
        """Return the frozen layers of this epoch: those before the head, those up to `freeze_until`, or none."""
        layers = dict(self.network.named_children())
        if self.state.epoch < self.settings.freeze_epochs:
            if _COLUMNS in layers:
                return list(layers.values())[: list(layers).index(_COLUMNS)]
            trunk = list(layers.values())
            while trunk and not any(True for _ in trunk.pop().parameters()):  # removes the head
                pass
            return trunk
        if self.settings.freeze_until is None:
            return []
        return list(layers.values())[: list(layers).index(self.settings.freeze_until) + 1]

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast context of a forward pass, or a null context for fp32."""
        return precision.autocast(self.device.type, self.settings.precision)

    def compute(self, x: Any, *, is_whole: bool = True) -> Tensor:
        """Compute the outputs of a microbatch in float32.

        Args:
            x: inputs (B, ...) on the device.
            is_whole: the batch has as many samples as most, so that compiling its steps pays. Others run uncompiled,
                as do epochs in which only the head is trained.
        """
        self.has_outputs = False
        is_compiled = is_whole and self.state.epoch >= self.settings.freeze_epochs
        model = self.compiled if self.compiled is not None and is_compiled else self.model
        with self.autocast():
            outputs: Tensor = model(x).float()
        self.has_outputs = True
        return outputs

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, in fp16 multiplied by the scale."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def synced(self, last: bool) -> AbstractContextManager[Any]:
        """Return a context that synchronizes gradients only in the `last` backward pass of a step."""
        if self.settings.fsdp:
            self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext() if last or not isinstance(self.model, DistributedDataParallel) else self.model.no_sync()

    @property
    def changes_gradients(self) -> bool:
        """True if `clip_gradients` changes gradients: it clips, unscales, or removes those of frozen layers."""
        return bool(self.settings.clip_grad or self.scaler is not None or self.frozen_params)

    def clip_gradients(self) -> Tensor:
        """Clip the norm of the gradients to `clip_grad` if it is set, and return their norm before clipping.

        In fp16, gradients that overflow are normal: the step is skipped, and halves the scale. Their norm is returned
        as 0 unless the scale is too small to be the reason.
        """
        for p in self.frozen_params:
            p.grad = None
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = _total_norm([p.grad for p in self.trainable_params if p.grad is not None])
        if self.settings.clip_grad:
            nn.utils.clip_grads_with_norm_(self.trainable_params, self.settings.clip_grad, norm)
        if self.scaler is None:
            return full_tensor(norm)
        self.overflow = ~torch.isfinite(norm)
        scale = self.scaler.scale(torch.ones_like(norm))
        return torch.where(self.overflow & (scale > 1), torch.zeros_like(norm), norm)

    def penalty(self) -> Tensor | float:
        """Compute the L1 and L2 penalty of the weights, without norms and biases."""
        weights = [p for p in self.trainable_params if p.dim() > 1] if self.settings.l1 or self.settings.l2 else []
        sizes = self.settings.l1 * sum(p.abs().sum() for p in weights) if self.settings.l1 else 0.0
        return sizes + (self.settings.l2 * sum(p.square().sum() for p in weights) if self.settings.l2 else 0.0)

    def rates(self, position: float) -> tuple[float, float]:
        """Return the learning rate and the momentum at `position` in [0, 1] of the run."""
        rate = self.lr_schedule(position)
        return rate * self.settings.lr, momentum_at(self.settings.schedule, self.settings.momentum, rate)

    def set_rates(self, position: float) -> None:
        """Set the learning rate and the momentum of the optimizer for `position` in [0, 1] of the run."""
        set_rates(self.optimizer, *self.rates(position))

    def step(self, skip: Tensor | None = None) -> None:
        """Take an optimizer step with the gradients, and delete them.

        Args:
            skip: boolean scalar on the device; if true, the step leaves the weights as they are.
        """
        if self.scaler is not None:
            skip = self.overflow if skip is None else skip | self.overflow
        step_unless(self.optimizer, skip)
        if self.scaler is not None:
            self.scaler.update()
        for p in self.trainable_params:
            p.grad = None

    def update_average(self) -> None:
        """Update the EMA, if there is one."""
        if self.average is not None:
            self.average.update_parameters(self.network)

    def tensors(self) -> dict[str, Tensor]:
        """Return the full tensors of a checkpoint by name. With FSDP, all processes must call it."""
        return full_state_dict(self.parts())

    def parts(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint by name; with FSDP, the shards of this process."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        names = {id(p): n for n, p in self.network.named_parameters()}
        for parameter, values in self.optimizer.state.items():
            tensors |= {f"optimizer.{names[id(parameter)]}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
        if self.scaler is not None:
            tensors |= {f"scaler.{k}": torch.tensor(self.scaler.state_dict()[k]) for k in _SCALER_STATE}
        return tensors

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Restore weights, buffers, EMA, optimizer and loss scale from `tensors`, and the progress from `state`."""
        self.optimizer.state.clear()
        _load(self.network, _strip_prefix("network.", tensors))
        if self.average is not None:
            _load(self.average, _strip_prefix("average.", tensors))
        for name, parameter in self.network.named_parameters():
            values = {
                k: _state_like(k, v, parameter, fused=self.defers_reading)
                for k, v in _strip_prefix(f"optimizer.{name}.", tensors).items()
                if "." not in k
            }
            if values:
                self.optimizer.state[parameter] = values
        if self.scaler is not None and (scaler := _strip_prefix("scaler.", tensors)):
            self.scaler.load_state_dict(self.scaler.state_dict() | {k: v.item() for k, v in scaler.items()})
        self.state = State(**state)
        if collectives.rank():  # rank 0 holds the sums of all processes
            self.state.loss, self.state.metric_sum, self.state.seen = 0.0, 0.0, 0


def _total_norm(gradients: list[Tensor]) -> Tensor:
    """Compute the norm of all gradients. On a CPU, torch takes half of its time to group them by device."""
    if not gradients or not all(type(gradient) is Tensor and gradient.is_cpu for gradient in gradients):
        return nn.utils.get_total_norm(gradients)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def _state_like(name: str, value: Tensor, parameter: Tensor, *, fused: bool) -> Tensor:
    """Return a value of a parameter's optimizer state where the optimizer creates it.

    A step count is on the CPU unless the optimizer is fused: reading it would wait for the device in each step. Other
    values have the memory format of the parameter.
    """
    if name == "step" and not fused:
        return value.cpu()
    if value.shape != parameter.shape or is_sharded(parameter):
        return shard_like(value, parameter)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


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
