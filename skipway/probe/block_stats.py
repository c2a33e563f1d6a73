"""What the probes share: the blocks of a network, ways to run it that leave it as it was, and figures over batches.

Shapes: B samples of a batch, N of a set, K classes, * any further axes.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from skipway.errors import InputError, ShapeError, did_you_mean
from skipway.nn.chain import Chain
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.skip import Skip

__all__ = [
    "MODES",
    "Block",
    "Plain",
    "batches_accuracy",
    "batches_loss",
    "blocks_of",
    "in_mode",
    "natural_loss",
    "unrolled",
    "untouched",
]

MODES = ("training", "evaluation")
_NORMS = nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm


class Plain:
    """A frozen dataclass of plain values."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON; None stands for a number that is not finite."""
        return _finite(dataclasses.asdict(self))  # type: ignore[call-overload]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of a network: a Skip, a Coupling, or a plain row of layers that stands where others have a Skip."""

    path: str
    module: nn.Module

    @property
    def kind(self) -> str:
        """What it is: "skip", "coupling" or "plain"."""
        if isinstance(self.module, Skip):
            return "skip"
        return "coupling" if isinstance(self.module, Coupling) else "plain"


def blocks_of(network: nn.Module) -> list[Block]:
    """Every Skip and Coupling, outermost first, and every plain block.

    A plain block is an nn.Sequential with weights and no shortcut in it, one of the numbered layers of another (as in
    the stages of networks with shortcut "none"), and not itself a row of several such blocks.
    """
    return list(_blocks(network, "", False))


def _blocks(module: nn.Module, path: str, inside: bool) -> Iterator[Block]:
    block = isinstance(module, Skip | Coupling)
    if block:
        yield Block(path, module)
    for name, child in module.named_children():
        where = f"{path}.{name}" if path else name
        numbered = isinstance(module, nn.Sequential) and name.isdigit() and not (block or inside)
        if numbered and _is_plain(child):
            yield Block(where, child)
        else:
            yield from _blocks(child, where, block or inside)


def _is_plain(layer: nn.Module) -> bool:
    if not _is_weighted_sequence(layer) or any(isinstance(m, Skip | Coupling) for m in layer.modules()):
        return False
    return sum(_is_weighted_sequence(child) for name, child in layer.named_children() if name.isdigit()) < 2


def _is_weighted_sequence(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Sequential) and any(p.dim() > 1 for p in layer.parameters())


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Whatever is computed meanwhile, each module's mode, the buffers and the random state are then as before.

    Raises:
        ShapeError: sizes are left open in the network.
    """
    if any(is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        raise ShapeError(
            "sizes of the network are open yet; call skipway.output_shape(network, input_shape) once before"
        )
    modes = {m: m.training for m in network.modules()}
    held = [(buffers, dict(buffers)) for m in modes if (buffers := vars(m).get("_buffers"))]
    copies: dict[Tensor | None, Tensor | None] = {None: None}  # one for each, however many modules share it
    devices = sorted({p.device.index for p in network.parameters() if p.device.type == "cuda"})
    try:
        for buffers, values in held:
            for name, value in values.items():
                if value not in copies:
                    copies[value] = value.clone()
                buffers[name] = copies[value]
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for buffers, values in held:
            buffers.update(values)
        for module, training in modes.items():
            module.training = training


def in_mode(network: nn.Module, mode: str) -> None:
    """Put `network` in "evaluation" mode, or its norms in "training" mode, which is all of that that is not random.

    Raises:
        InputError: the mode is neither.
    """
    if mode not in MODES:
        raise InputError(f"mode is {' or '.join(MODES)}, not {mode!r}{did_you_mean(str(mode), MODES)}")
    for module in network.modules():
        module.training = mode == "training" and isinstance(module, _NORMS)


@contextmanager
def unrolled(network: nn.Module) -> Iterator[None]:
    """Every layer is called once and in full view: what is reversible or computed again runs as a Chain meanwhile."""
    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, Reversible):
                stack.enter_context(_attribute_set(module, "forward", partial(Chain.forward, module)))
            if isinstance(module, Chain) and module.forward_impl is not None:
                stack.enter_context(_attribute_set(module, "forward_impl", None))
        yield


@contextmanager
def _attribute_set(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """An attribute of this one module, meanwhile."""
    own = vars(module)
    before = {name: own[name]} if name in own else {}
    own[name] = value
    try:
        yield
    finally:
        del own[name]
        own.update(before)


def natural_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of outputs (B, K, *) against classes (B, *), or mean squared error against real numbers.

    Raises:
        InputError: the two do not fit.
    """
    if isinstance(outputs, Tensor) and y.is_floating_point():
        outputs = outputs[:, 0] if outputs.shape == (*y.shape, 1) else outputs
        if outputs.shape == y.shape:
            return F.mse_loss(outputs, y.to(outputs.dtype))
    elif isinstance(outputs, Tensor) and outputs.dim() > 1 and outputs.shape[:1] + outputs.shape[2:] == y.shape:
        if y.numel() and 0 <= int(y.min()) and int(y.max()) < outputs.shape[1]:
            return F.cross_entropy(outputs, y.long())
    kind = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    span = f" from {y.min():g} to {y.max():g}" if y.numel() else ""
    raise InputError(
        f"y {tuple(y.shape)} of {str(y.dtype).removeprefix('torch.')}{span} does not fit outputs {kind}: expected "
        "classes (B, *) from 0 to K - 1 beside (B, K, *), or real numbers of one shape; mend y, or give a loss"
    )


def batches_loss(x: Tensor, y: Tensor, batch_size: int = 500, mode: str = "evaluation") -> Callable[[nn.Module], Any]:
    """Return a function that computes a network's mean loss, and accuracy for classes, on samples x (N, *).

    It gives (loss, accuracy) for classes y (N,), and the loss alone for real numbers. The network is left as it was.

    Args:
        x: samples.
        y: classes (N,) or real numbers.
        batch_size: samples at a time.
        mode: "evaluation" takes the running statistics of the norms, as Li et al. 2018 do; "training" those of each
            batch.
    """
    _check_samples(x, y)

    def evaluate(network: nn.Module) -> Any:
        device = next(network.parameters(), x).device
        loss = right = 0.0
        with untouched(network), torch.no_grad():
            in_mode(network, mode)
            for batch, targets in zip(x.split(batch_size), y.to(device).split(batch_size), strict=True):
                outputs = network(batch.to(device))
                loss += float(natural_loss(outputs, targets)) * len(batch)
                if not y.is_floating_point():
                    right += float((outputs.argmax(1) == targets).double().mean()) * len(batch)
        return loss / len(x) if y.is_floating_point() else (loss / len(x), right / len(x))

    return evaluate


def batches_accuracy(
    x: Tensor, y: Tensor, batch_size: int = 500, mode: str = "evaluation"
) -> Callable[[nn.Module], float]:
    """As `batches_loss`, for the share of samples x (N, *) whose class y (N,) is found, alone."""
    evaluate = batches_loss(x, y, batch_size, mode)
    if y.is_floating_point():
        raise InputError("accuracy takes classes (N,) as whole numbers, not real numbers; use batches_loss for those")
    return lambda network: evaluate(network)[1]


def _check_samples(x: Any, y: Any) -> None:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or not len(x) or len(x) != len(y):
        kinds = [tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in (x, y)]
        raise InputError(f"x and y are tensors of as many samples, at least one, not {kinds[0]} and {kinds[1]}")
