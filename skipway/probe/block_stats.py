"""Shared tools of the probes: find blocks, run a network without changing it, and compute metrics over batches.

Shapes: B samples of a batch, N samples of a dataset, K classes, * any further axes.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from skipway.errors import InputError, ShapeError, did_you_mean
from skipway.nn.chain import Chain
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.skip import Skip
from skipway.probe.call_inputs import call_network
from skipway.utils.devices import forked_rng
from skipway.utils.finite_values import finite_values

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
    """Base of the frozen dataclasses that hold plain values."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can store, with None for each number that is not finite."""
        return finite_values(dataclasses.asdict(self))  # type: ignore[call-overload]


@dataclasses.dataclass(frozen=True)
class Block:
    """Block of a network: a Skip, a Coupling, or a plain sequence of layers in the place of a Skip."""

    path: str
    module: nn.Module

    @property
    def kind(self) -> str:
        """Kind of block: "skip", "coupling" or "plain"."""
        if isinstance(self.module, Skip):
            return "skip"
        return "coupling" if isinstance(self.module, Coupling) else "plain"


def blocks_of(network: nn.Module) -> list[Block]:
    """Return every Skip and Coupling, outermost first, and every plain block.

    A plain block is an nn.Sequential with weights and without shortcuts. It is an indexed child of another
    nn.Sequential, as in the stages of networks with shortcut "none", and does not contain several such blocks itself.
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
    """Restore each module's mode, the buffers and the random state after the context.

    Raises:
        ShapeError: the network has uninferred sizes.
    """
    if any(is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        raise ShapeError(
            "cannot run the network: expected inferred sizes, got lazy parameters or buffers. Call "
            "skipway.output_shape(network, input_shape) first."
        )
    modes = {m: m.training for m in network.modules()}
    held = [(buffers, dict(buffers)) for m in modes if (buffers := vars(m).get("_buffers"))]
    copies: dict[Tensor | None, Tensor | None] = {None: None}  # modules that share a buffer share its copy
    devices = sorted({p.device for p in network.parameters()}, key=str)
    try:
        for buffers, values in held:
            for name, value in values.items():
                if value not in copies:
                    copies[value] = value.clone()
                buffers[name] = copies[value]
        with ExitStack() as stack:
            for device in devices:
                stack.enter_context(forked_rng(device))
            yield
    finally:
        for buffers, values in held:
            buffers.update(values)
        for module, training in modes.items():
            module.training = training


def in_mode(network: nn.Module, mode: str) -> None:
    """Set `network` to "evaluation" mode, or only its norm layers to "training" mode.

    The other layers stay in evaluation mode in both cases, because dropout and similar layers would be random.

    Raises:
        InputError: `mode` is not one of the two.
    """
    if mode not in MODES:
        raise InputError(
            f"invalid mode: expected {' or '.join(MODES)}, got {mode!r}{did_you_mean(str(mode), MODES)}. Pass "
            "one of these."
        )
    for module in network.modules():
        module.training = mode == "training" and isinstance(module, _NORMS)


@contextmanager
def unrolled(network: nn.Module) -> Iterator[None]:
    """Run Reversible and checkpointed layers as a plain Chain inside the context, so that hooks see each call once."""
    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, Reversible):
                stack.enter_context(_attribute_set(module, "forward", partial(Chain.forward, module)))
            if isinstance(module, Chain) and module.forward_impl is not None:
                stack.enter_context(_attribute_set(module, "forward_impl", None))
        yield


@contextmanager
def _attribute_set(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of one module inside the context."""
    own = vars(module)
    before = {name: own[name]} if name in own else {}
    own[name] = value
    try:
        yield
    finally:
        del own[name]
        own.update(before)


def natural_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy for class targets, or the mean squared error for real-valued targets.

    Args:
        outputs: logits (B, K, *), or predictions of the shape of `y` (also (B, 1) for `y` (B,)).
        y: class indices (B, *), or real numbers.

    Raises:
        InputError: `outputs` and `y` do not match.
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
        "y does not match the outputs: expected class indices (B, *) from 0 to K - 1 for outputs (B, K, *), or real "
        f"numbers of the same shape, got y {tuple(y.shape)} of {str(y.dtype).removeprefix('torch.')}{span} and "
        f"outputs {kind}. Correct y, or pass another loss."
    )


def batches_loss(
    x: Any,
    y: Tensor,
    batch_size: int = 500,
    mode: str = "evaluation",
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Callable[[nn.Module], Any]:
    """Return a function that computes the mean loss of a network on fixed samples, and the accuracy for classes.

    The function does not change the network.

    Args:
        x: samples (N, *), or a tuple with one tensor for each input.
        y: class indices (N,), or real numbers.
        batch_size: samples per forward pass.
        mode: "evaluation" normalizes with the running statistics, as Li et al. 2018 do; "training" with those of each
            batch.
        loss: function of (outputs, y). None uses cross entropy for classes and the mean squared error for numbers.

    Returns:
        A function from a network to (loss, accuracy) for class indices, or to the loss for real numbers.

    Raises:
        InputError: `x` and `y` are not tensors of the same number of samples.

    Example:
        >>> measure = batches_loss(torch.zeros(4, 2), torch.zeros(4))
        >>> measure(nn.Linear(2, 1, bias=False))
        0.0
    """
    _check_samples(x, y)

    def evaluate(network: nn.Module) -> Any:
        device = next(network.parameters(), y).device
        total = right = 0.0
        with untouched(network), torch.no_grad():
            in_mode(network, mode)
            for start in range(0, len(y), batch_size):
                part = slice(start, start + batch_size)
                targets = y[part].to(device)
                outputs = call_network(network, tree_map(lambda tensor, part=part: tensor[part].to(device), x))
                total += float((loss or natural_loss)(outputs, targets)) * len(targets)
                if not y.is_floating_point():
                    right += int((outputs.argmax(1) == targets).sum())
        return total / len(y) if y.is_floating_point() else (total / len(y), right / len(y))

    return evaluate


def batches_accuracy(
    x: Any, y: Tensor, batch_size: int = 500, mode: str = "evaluation"
) -> Callable[[nn.Module], float]:
    """Return a function that computes the accuracy of a network on fixed samples.

    Args:
        x: samples (N, *), or a tuple with one tensor for each input.
        y: class indices (N,).
        batch_size: samples per forward pass.
        mode: as for `batches_loss`.

    Returns:
        A function from a network to its accuracy, between 0 and 1.

    Raises:
        InputError: `y` holds real numbers, or `x` and `y` are not tensors of the same number of samples.

    Example:
        >>> accuracy = batches_accuracy(torch.eye(3), torch.tensor([0, 1, 2]))
        >>> accuracy(nn.Sequential(nn.Identity(), nn.Flatten()))
        1.0
    """
    evaluate = batches_loss(x, y, batch_size, mode)
    if y.is_floating_point():
        raise InputError(
            "cannot compute the accuracy: expected integer class indices (N,), got real numbers. Use batches_loss."
        )
    return lambda network: evaluate(network)[1]


def _check_samples(x: Any, y: Any) -> None:
    tensors = tree_leaves(x)
    if not all(isinstance(v, Tensor) and v.dim() and len(v) == len(tensors[0]) > 0 for v in (*tensors, y)):
        kinds = [tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in (x, y)]
        raise InputError(
            "invalid x and y: expected tensors of the same number of samples, at least 1, got "
            f"{kinds[0]} and {kinds[1]}. Pass one target for each sample."
        )
