"""Run layers a second time in the backward pass, instead of keeping their activations.

The second pass uses the precision and the random numbers of the first, and does not update running statistics.
Shapes: those that the layers accept and return.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from skipway.kernels.layer_dispatch import call_layer, run_layers

__all__ = ["GeneratorStates", "RngSnapshot", "rerun_backward"]

GeneratorStates = tuple[Tensor, ...]


class RngSnapshot:
    """The autocast precision of the first pass, and access to the random generators of `device`."""

    def __init__(self, device: torch.device):
        self.device, kind = device, device.type
        self.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

    def autocast_context(self) -> AbstractContextManager[None]:
        """Return the autocast context of the first pass, without its cache of casts that have no gradient."""
        kind, dtype, enabled = self.autocast
        return torch.autocast(kind, dtype, enabled=enabled, cache_enabled=False)

    def generator_states(self) -> GeneratorStates:
        """Return the states of the random generators of the CPU and of the device."""
        cpu = torch.get_rng_state()
        return (cpu,) if self.device.type == "cpu" else (cpu, self._module().get_rng_state(self.device))

    def restore_generators(self, states: GeneratorStates) -> None:
        """Restore the generators to `states`."""
        torch.set_rng_state(states[0])
        if len(states) > 1:
            self._module().set_rng_state(states[1], self.device)

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Run the block in the precision of the first pass, and restore the generators afterwards."""
        before = self.generator_states()
        try:
            with self.autocast_context():
                yield
        finally:
            self.restore_generators(before)

    def _module(self) -> Any:
        return torch.get_device_module(self.device)


def rerun_backward(
    layers: Sequence[nn.Module],
    x: Tensor,
    out_gradient: Tensor,
    *,
    parameters: Sequence[nn.Parameter],
    gradients: dict[nn.Parameter, Tensor],
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `layers` again with gradients, and differentiate them.

    Args:
        layers: layers to run one after the other.
        x: input of the first pass.
        out_gradient: gradient of the output.
        parameters: parameters that need a gradient; may include those of other layers.
        gradients: accumulates the gradients of the parameters of `layers`.
        dtype: dtype in which the layers run; None keeps that of x.

    Returns:
        The output and the gradient of x.
    """
    layer_parameters = set(nn.ModuleList(layers).parameters())
    leaves = [p for p in parameters if p in layer_parameters]
    x = x.detach().requires_grad_()
    with torch.enable_grad(), _copied_buffers(layers):
        out = run_layers(layers, x if dtype is None else x.to(dtype), call_layer)
    if not out.requires_grad:  # the output does not depend on the input
        return out, torch.zeros_like(x)
    x_gradient, *values = torch.autograd.grad(out, [x, *leaves], out_gradient.to(out.dtype), allow_unused=True)
    for parameter, value in zip(leaves, values, strict=True):
        if value is not None:
            gradients[parameter] = gradients[parameter] + value if parameter in gradients else value
    return out.detach(), torch.zeros_like(x) if x_gradient is None else x_gradient


@contextmanager
def _copied_buffers(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Replace buffers by copies temporarily, so that norms update their statistics only in the first pass."""
    originals = [(module._buffers, dict(module._buffers)) for module in nn.ModuleList(layers).modules()]
    for buffers, values in originals:
        buffers.update((name, value.clone()) for name, value in values.items() if value is not None)
    try:
        yield
    finally:
        for buffers, values in originals:
            buffers.update((name, value) for name, value in values.items() if value is not None)
