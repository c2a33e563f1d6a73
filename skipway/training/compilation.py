"""Decision if torch.compile pays in a training, by its time, and the first compilation.

Compiled code saves a share of each step, and takes a minute or more before the first one. `auto` therefore measures a
few steps on a CUDA device, and compiles if the estimated saving is more than twice the estimated time of compilation.
On a CPU, skipway's own kernels are as fast: on two Zen 4 cores, ResNet-18 at 32 px trains on 101 images per second
compiled, and on 110 with them. Steps of tables are too short to gain.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skipway.distributed import collectives
from skipway.errors import InputError, is_out_of_memory, reason_of
from skipway.training.compiled_model import compile_obstacle
from skipway.training.lr_finder import preserve_trainer
from skipway.training.metrics import Batches
from skipway.training.release_memory import release_memory
from skipway.training.trainer import Trainer
from skipway.utils.console import duration
from skipway.utils.format_text import count_of

__all__ = ["Compilation", "begin_compilation", "refuse_late_failure"]

# Estimates from published results; we have measured none of them on a GPU.
_SAVED_SHARE = 0.15  # of the time of a step
_START_SECONDS, _LAYER_SECONDS = 10.0, 0.5  # of a compilation, and of each layer with weights
_MARGIN = 2.0  # least saving per second of compilation
_FEWEST_STEPS = 200  # a run with fewer steps never gains, and its steps are not measured
_WARM_UP, _MEASURED = 2, 3  # steps
_LONGEST = 200  # characters of the reason of torch
_LATEST = 10**9  # an epoch at which images have reached their full size


@dataclass(frozen=True)
class Compilation:
    """Decision about torch.compile, with the reason for the console.

    Attributes:
        is_on: the training steps are compiled.
        reason: the reason of `auto`, or the time of the compilation; "" if there is nothing to report.
    """

    is_on: bool
    reason: str

    @property
    def value(self) -> str:
        """The decision as the value of the option `compile`."""
        return "on" if self.is_on else "off"


def begin_compilation(
    trainer: Trainer,
    train: Batches,
    *,
    option: str,
    earlier: str | None,
    growth: Sequence[float],
    is_table: bool,
) -> Compilation:
    """Decide if the steps of a training are compiled, and compile those of the first batch.

    The seconds that it takes count as seconds of the training.

    Args:
        trainer: trainer before its first step; restored completely.
        train: training batches.
        option: "auto", "on" or "off".
        earlier: decision of the run that is resumed, which "auto" keeps; None for a new one.
        growth: image size of each epoch to train, linear in the area: 0 is the first size, 1 the full size.
        is_table: the samples are rows of a table.

    Returns:
        The decision. With "auto", code that cannot be compiled means no.

    Raises:
        InputError: `option` is "on", and the network cannot be compiled here.
    """
    begin = time.monotonic()
    decision = _decide(trainer, train, option=option, earlier=earlier, growth=growth, is_table=is_table)
    if decision.is_on:
        problem = next(filter(None, collectives.all_gather(_problem(trainer, train))), "")
        if problem and option == "on":
            raise InputError(
                f"cannot use --compile on: expected code that torch.compile supports here, got {problem}. Use "
                "--compile off."
            )
        if problem:
            trainer.compiled = None
            decision = Compilation(False, f"torch.compile failed: {problem}")
        else:
            parts = f"compiled in {duration(time.monotonic() - begin)}", decision.reason
            decision = Compilation(True, "; ".join(filter(None, parts)))
    trainer.state.total_seconds += time.monotonic() - begin
    return decision


@contextmanager
def refuse_late_failure(trainer: Trainer) -> Iterator[None]:
    """Name the option, if code for another size of images or microbatches cannot be compiled in the middle of a run.

    Raises:
        InputError: torch.compile failed.
    """
    try:
        yield
    except RuntimeError as error:
        if trainer.compiled is None or not isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise
        reason = reason_of(getattr(error, "inner_exception", error))[:_LONGEST]
        raise InputError(
            f"cannot compile step {trainer.state.step + 1}: expected code that torch.compile supports here, got "
            f"{reason}. Resume with --compile off."
        ) from error


def _decide(
    trainer: Trainer, train: Batches, *, option: str, earlier: str | None, growth: Sequence[float], is_table: bool
) -> Compilation:
    """Return the decision before anything is compiled."""
    if option != "auto":
        return Compilation(option == "on", "")
    may_gain = trainer.device.type == "cuda" and not is_table
    if earlier not in (None, "on") or (earlier is None and not may_gain):
        return Compilation(False, "")
    settings, deterministic = trainer.settings, torch.are_deterministic_algorithms_enabled()
    if obstacle := compile_obstacle(fsdp=settings.fsdp, recompute=settings.recompute, deterministic=deterministic):
        return Compilation(False, f"it excludes {obstacle}")
    if earlier == "on":
        return Compilation(True, "")
    steps = len(growth) * train.steps
    if steps < _FEWEST_STEPS:
        return Compilation(False, f"the run has only {count_of(steps, 'step')}")
    seconds = _training_seconds(trainer, train, growth)
    if seconds is None:
        return Compilation(False, "a step with the whole batch runs out of memory")
    return _weigh(seconds, _compile_seconds(trainer.network) * len(set(growth)))


def _weigh(seconds: float, cost: float) -> Compilation:
    """Return the decision from the seconds of the training and those of its compilation."""
    saved = _SAVED_SHARE * seconds
    is_on = saved > _MARGIN * cost
    verbs = ("saves", "takes") if is_on else ("would save", "take")
    return Compilation(
        is_on,
        f"it {verbs[0]} about {duration(saved)} of {duration(seconds)} and {verbs[1]} {duration(cost)} (estimates)",
    )


def _compile_seconds(network: nn.Module) -> float:
    """Estimate the seconds of a compilation for one image size, forward and backward."""
    layers = sum(any(True for _ in module.parameters(recurse=False)) for module in network.modules())
    return _START_SECONDS + _LAYER_SECONDS * layers


def _training_seconds(trainer: Trainer, train: Batches, growth: Sequence[float]) -> float | None:
    """Estimate the seconds of all steps without compilation, or return None if one does not fit into memory."""
    try:
        with preserve_trainer(trainer):
            seconds = tuple(_step_seconds(trainer, train, epoch) for epoch in (0, _LATEST))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        seconds = None
    release_memory(trainer.device)
    of_processes = collectives.all_gather(seconds)
    if None in of_processes:
        return None
    first, full = map(max, zip(*of_processes, strict=True))
    return train.steps * sum(first + share * (full - first) for share in growth)


def _step_seconds(trainer: Trainer, train: Batches, epoch: int) -> float:
    """Measure the best step of a few on the first batch of an epoch: forward and backward, in this process alone."""
    x, y, _ = next(iter(train.epoch(epoch)))
    seconds = []
    for _ in range(_WARM_UP + _MEASURED):
        begin = time.monotonic()
        _step(trainer, x, y)
        seconds.append(time.monotonic() - begin)
    return min(seconds[_WARM_UP:])


def _problem(trainer: Trainer, train: Batches) -> str:
    """Compile the step of the first batch, and return the reason if that fails, else "".

    A batch that does not fit into memory is left to the training, which splits it.
    """
    try:
        trainer.compile_model()
    except RuntimeError as error:  # this version of Python, for example
        return reason_of(error)[:_LONGEST]
    try:
        with preserve_trainer(trainer):
            x, y, _ = next(iter(train.epoch(trainer.state.epoch)))
            _step(trainer, x, y)
    except torch._dynamo.exc.TorchDynamoException as error:
        if not is_out_of_memory(error):
            return reason_of(getattr(error, "inner_exception", error))[:_LONGEST]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    release_memory(trainer.device)
    return ""


def _step(trainer: Trainer, x: Tensor, y: Tensor) -> None:
    """Compute the gradients of a batch as the training does, wait for them, and delete them."""
    trainer.state.epoch = trainer.until - 1  # earlier epochs may train the head alone
    trainer.to_train()
    pieces = trainer.state.num_microbatches
    x, y = x.to(trainer.device), y.to(trainer.device)
    size = -(-len(y) // pieces)
    with trainer.synced(False):
        loss = trainer.task.loss(trainer.compute(x[:size]), y[:size]) + trainer.penalty()
        trainer.backward(loss)
    loss.item()
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.takes_steps = False
