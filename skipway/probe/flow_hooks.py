"""Record the sizes of activations and gradients while a network runs.

Shapes: B samples of a batch, C channels, * any further axes.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skipway.nn.joins import Gate, Scale
from skipway.nn.reversible import Coupling
from skipway.nn.skip import Skip
from skipway.probe.block_stats import Block, blocks_of
from skipway.utils.devices import has_float64

__all__ = ["BlockCall", "FlowRecorder", "MeanSquare", "norm_of", "record_flow", "weights_of"]


class MeanSquare:
    """Running root mean square over one or more tensors."""

    def __init__(self) -> None:
        self.squares: list[Tensor] = []
        self.count = 0

    def add(self, value: Any) -> None:
        """Add a tensor of real numbers; ignore any other value."""
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            self.squares.append(norm_of(value) ** 2)
            self.count += value.numel()

    def root(self) -> float | None:
        """Return the root mean square, or None if no tensor was added."""
        return math.sqrt(sum(float(s) for s in self.squares) / self.count) if self.squares else None


def norm_of(value: Tensor) -> Tensor:
    """Return the norm of a tensor in float64, or in float32 on a device without it."""
    dtype = torch.float64 if has_float64(value.device.type) else torch.float32
    return torch.linalg.vector_norm(value.detach(), dtype=dtype)


class BlockCall:
    """Measurements of one call of a block, during the call and after it."""

    def __init__(self, block: Block, x: Any):
        self.block, self.open = block, True
        self.into, self.body, self.shortcut, self.added, self.out = (MeanSquare() for _ in range(5))
        self.gradients: dict[str, Tensor] = {}
        self.into.add(x)
        self.follow("in", x)

    def follow(self, side: str, value: Any) -> None:
        """Store the gradient norm of `value` during the backward pass."""
        if isinstance(value, Tensor) and value.requires_grad:
            value.register_hook(lambda gradient: self.gradients.__setitem__(side, norm_of(gradient)))

    def gradient(self, side: str) -> float | None:
        """Return the gradient norm of the input ("in") or the output ("out"), or None if it has no gradient."""
        return float(self.gradients[side]) if side in self.gradients else None


class FlowRecorder:
    """Hooks that record the calls of blocks, in order, and the outputs of layers."""

    def __init__(self) -> None:
        self.running = True  # False during the backward pass, which may call layers again
        self.calls: list[BlockCall] = []
        self.latest: dict[Block, BlockCall] = {}
        self.outputs: dict[nn.Module, MeanSquare] = {}

    def enter(self, block: Block, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Record the start of a block's call."""
        if self.running:
            self.latest[block] = BlockCall(block, inputs[0] if inputs else None)
            self.calls.append(self.latest[block])

    def leave(self, block: Block, module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        """Record the output of a block."""
        if self.running:
            call = self.latest[block]
            call.out.add(out)
            call.follow("out", out)
            call.open = False

    def part(self, block: Block, name: str, module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        """Record the output of a block's "body", "shortcut" or join ("added")."""
        if self.running and block in self.latest and self.latest[block].open:
            getattr(self.latest[block], name).add(out.detach() - inputs[1] if name == "added" else out)

    def layer(self, module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        """Record the output of a layer's first call."""
        if self.running and module not in self.outputs:
            self.outputs[module] = MeanSquare()
            self.outputs[module].add(out)


@contextmanager
def record_flow(network: nn.Module) -> Iterator[FlowRecorder]:
    """Record every call of `network` inside the context."""
    recorder, blocks, handles = FlowRecorder(), blocks_of(network), []
    try:
        for block in blocks:  # before the hooks of the parts: a block that is a body ends before its output is recorded
            handles.append(block.module.register_forward_pre_hook(partial(recorder.enter, block)))
            handles.append(block.module.register_forward_hook(partial(recorder.leave, block)))
        for block in blocks:
            for name, module in _parts(block):
                handles.append(module.register_forward_hook(partial(recorder.part, block, name)))
        for module in network.modules():
            if weights_of(module):
                handles.append(module.register_forward_hook(recorder.layer))
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _parts(block: Block) -> Iterator[tuple[str, nn.Module]]:
    module = block.module
    if isinstance(module, Skip):
        yield "body", module.body
        if module.shortcut is not None:
            yield "shortcut", module.shortcut
        if isinstance(module.join, Scale | Gate):
            yield "added", module.join
    elif isinstance(module, Coupling):
        yield from (("body", module.f), ("body", module.g))
        yield from (("shortcut", shortcut) for shortcut in module.shortcuts or ())
    else:
        body = getattr(module, "body", None)
        if isinstance(body, nn.Module):
            yield "body", body


def weights_of(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters with two or more axes that a module holds directly."""
    return [p for p in module.parameters(recurse=False) if p.dim() > 1]
