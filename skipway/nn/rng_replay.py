"""Computing a body a second time, on the way back, instead of keeping what is inside it.

Both times are alike: the second has the first one's precision and random numbers, and changes no statistics.
Shapes: whatever the body takes and gives.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["RngSnapshot", "gradient_of", "in_turn"]

Draws = tuple[Tensor, ...]


class RngSnapshot:
    """What the first pass has beside its input: the precision of autocast and the random generators of `device`."""

    def __init__(self, device: torch.device):
        self.device, kind = device, device.type
        self.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

    def precision(self) -> AbstractContextManager[None]:
        """Autocast as it was, without its cache: that would keep casts of weights that have no gradient."""
        kind, dtype, enabled = self.autocast
        return torch.autocast(kind, dtype, enabled=enabled, cache_enabled=False)

    def draws(self) -> Draws:
        """Where the generators stand."""
        cpu = torch.get_rng_state()
        return (cpu,) if self.device.type == "cpu" else (cpu, self._module().get_rng_state(self.device))

    def draw_again(self, draws: Draws) -> None:
        """Let them stand there once more."""
        torch.set_rng_state(draws[0])
        if len(draws) > 1:
            self._module().set_rng_state(draws[1], self.device)

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Inside it the precision is as it was; after it the generators stand where they stood before it."""
        before = self.draws()
        try:
            with self.precision():
                yield
        finally:
            self.draw_again(before)

    def _module(self) -> Any:
        return torch.get_device_module(self.device)


def in_turn(layers: Sequence[nn.Module], x: Any) -> Any:
    """What `layers` make of x one after the other."""
    for layer in layers:
        x = layer(x)
    return x


def gradient_of(
    layers: Sequence[nn.Module],
    x: Tensor,
    gradient: Tensor,
    parameters: Sequence[nn.Parameter],
    found: dict[nn.Parameter, Tensor],
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(what `layers` give one after the other, gradient of x), for the gradient of what they give.

    The gradients of those of `parameters` that are theirs are added to `found`. They are given x in `dtype`.
    """
    own = {id(p) for layer in layers for p in layer.parameters()}
    asked = [p for p in parameters if id(p) in own]
    x = x.detach().requires_grad_()
    with torch.enable_grad(), _at_rest(layers):
        out = in_turn(layers, x if dtype is None else x.to(dtype))
    if not out.requires_grad:  # they give the same whatever they are given
        return out, torch.zeros_like(x)
    first, *rest = torch.autograd.grad(out, [x, *asked], gradient.to(out.dtype), allow_unused=True)
    for p, value in zip(asked, rest, strict=True):
        if value is not None:
            found[p] = found[p] + value if p in found else value
    return out.detach(), torch.zeros_like(x) if first is None else first


@contextmanager
def _at_rest(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside it layers have copies of their buffers, so that what they do to them, as norms do, is done once only."""
    modules = {module for layer in layers for module in layer.modules()}
    own = [(m._buffers, name, buffer) for m in modules for name, buffer in m._buffers.items() if buffer is not None]
    for buffers, name, buffer in own:
        buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for buffers, name, buffer in own:
            buffers[name] = buffer
