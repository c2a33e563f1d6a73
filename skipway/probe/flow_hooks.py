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

__all__ = ["BlockCall", "FlowRecorder", "MeanSquare", "norm_of", "record_flow", "weights_of"]


class MeanSquare:
    """Root mean square of all the values that were added, of which there may be two halves."""

    def __init__(self) -> None:
        self.squares: list[Tensor] = []
        self.count = 0

    def add(self, value: Any) -> None:
        """One tensor of real numbers; of anything else nothing is known."""
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            self.squares.append(norm_of(value) ** 2)
            self.count += value.numel()

    def root(self) -> float | None:
        """Return the root mean square; None if nothing was added."""
        return math.sqrt(sum(float(s) for s in self.squares) / self.count) if self.squares else None


def norm_of(value: Tensor) -> Tensor:
    """Return the norm of a tensor in float64."""
    return torch.linalg.vector_norm(value.detach(), dtype=torch.float64)


class BlockCall:
    """One call of a block, while it is under way and after."""

    def __init__(self, block: Block, x: Any):
        self.block, self.open = block, True
        self.into, self.body, self.shortcut, self.added, self.out = (MeanSquare() for _ in range(5))
        self.gradients: dict[str, Tensor] = {}
        self.into.add(x)
        self.follow("in", x)

    def follow(self, side: str, value: Any) -> None:
        """Remember the gradient by `value` once it comes."""
        if isinstance(value, Tensor) and value.requires_grad:
            value.register_hook(lambda gradient: self.gradients.__setitem__(side, norm_of(gradient)))

    def gradient(self, side: str) -> float | None:
        """Return the norm of the gradient by what comes "in" or goes "out"; None if there is none."""
        return float(self.gradients[side]) if side in self.gradients else None


class FlowRecorder:
    """Hooks that record the calls of blocks in their order, and the outputs of layers."""

    def __init__(self) -> None:
        self.running = True  # the way back may call layers again
        self.calls: list[BlockCall] = []
        self.latest: dict[Block, BlockCall] = {}
        self.outputs: dict[nn.Module, MeanSquare] = {}

    def enter(self, block: Block, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A block is called."""
        if self.running:
            self.latest[block] = BlockCall(block, inputs[0] if inputs else None)
            self.calls.append(self.latest[block])

    def leave(self, block: Block, module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        """A block has given `out`."""
        if self.running:
            call = self.latest[block]
            call.out.add(out)
            call.follow("out", out)
            call.open = False

    def part(self, block: Block, name: str, module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        """The "body" or the "shortcut" of a block has given `out`, or its join ("added")."""
        if self.running and block in self.latest and self.latest[block].open:
            getattr(self.latest[block], name).add(out.detach() - inputs[1] if name == "added" else out)

    def layer(self, module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        """A layer has given `out`; of several calls the first counts."""
        if self.running and module not in self.outputs:
            self.outputs[module] = MeanSquare()
            self.outputs[module].add(out)


@contextmanager
def record_flow(network: nn.Module) -> Iterator[FlowRecorder]:
    """Record every pass through `network` inside the context."""
    recorder, blocks, handles = FlowRecorder(), blocks_of(network), []
    try:
        for block in blocks:  # before the parts of any, so that a block that is a body is left when its body is noted
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
    """Return the parameters of two or more axes that a module holds itself."""
    return [p for p in module.parameters(recurse=False) if p.dim() > 1]
