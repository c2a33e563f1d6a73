"""Run layers a second time in the backward pass, instead of keeping their activations.

The second pass uses the precision, the random numbers and the buffers of the first, and changes no buffer.
Shapes: those that the layers accept and return.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.nn.utils import parametrize

from skipway.errors import InputError
from skipway.kernels.layer_dispatch import call_layer, run_layers
from skipway.nn.layer_state import LayerState
from skipway.utils.tracing import is_recorded

__all__ = [
    "GeneratorStates",
    "RngSnapshot",
    "can_recompute",
    "differentiable_once",
    "gradients_of",
    "needed_gradients",
    "rerun_backward",
]

GeneratorStates = tuple[Tensor, ...]


def can_recompute(x: Any) -> bool:
    """Return True if a backward pass follows a call with input `x`, and may compute the call again.

    Tracers, function transforms (torch.func) and forward-mode derivatives need every operation of the call itself. A
    cache of parametrized weights would keep them without gradients.

    >>> can_recompute(torch.ones(2)), torch.func.vmap(lambda x: x + can_recompute(x))(torch.ones(2))
    (True, tensor([1., 1.]))
    """
    return (
        isinstance(x, Tensor)
        and torch.is_grad_enabled()
        and not x.is_meta
        and not is_recorded(x)
        and forward_ad._current_level < 0
        and not parametrize._cache_enabled
    )


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
    state: LayerState,
    gradients: dict[Tensor, Tensor | None],
    needs_x: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run `layers` again with gradients, and differentiate them.

    The layers use detached aliases of their parameters, so that the hooks of a parameter see its whole gradient once,
    when autograd gets it.

    Args:
        layers: layers to run one after the other.
        x: input of the first pass.
        out_gradient: gradient of the output.
        state: state of the layers at the start of the first pass.
        gradients: maps each parameter whose gradient is needed to its gradient so far, or None.
        needs_x: compute the gradient of x.
        dtype: dtype in which the layers run; None keeps that of x.

    Returns:
        The output, and the gradient of x, None if it is not needed or the output does not depend on x.
    """
    aliases = {leaf: _alias(leaf) for leaf in state.leaves}
    x = x.detach().requires_grad_(needs_x)
    with torch.enable_grad(), state.restored(aliases):
        # Never x itself: hooks that modules put on their inputs could not be on a leaf here.
        first = x.clone() if state.in_place else x.view_as(x)
        out = run_layers(layers, first if dtype is None else first.to(dtype), call_layer)
    _refuse_outsiders(out, {x, *aliases.values()})
    sources = {leaf: alias for leaf, alias in aliases.items() if leaf in gradients}
    if needs_x:
        sources[x] = x
    if not out.requires_grad or not sources:
        return out.detach(), None
    values = torch.autograd.grad(out, list(sources.values()), out_gradient.to(out.dtype), allow_unused=True)
    computed = {leaf: value for leaf, value in zip(sources, values, strict=True) if value is not None}
    x_gradient = computed.pop(x, None)
    for leaf, value in computed.items():
        earlier = gradients[leaf]
        gradients[leaf] = value if earlier is None else earlier + value
    return out.detach(), x_gradient


def needed_gradients(leaves: Sequence[Tensor], needed: Sequence[bool]) -> dict[Tensor, Tensor | None]:
    """Return the leaves whose gradient is needed, without gradients yet."""
    return {leaf: None for leaf, is_needed in zip(leaves, needed, strict=True) if is_needed}


def gradients_of(leaves: Sequence[Tensor], gradients: Mapping[Tensor, Tensor | None]) -> list[Tensor | None]:
    """Return the gradient of each leaf: None if it was not used, or zeros if it has hooks, which cannot take None."""
    found = [gradients.get(leaf) for leaf in leaves]
    has_hooks = [leaf._backward_hooks or leaf._post_accumulate_grad_hooks for leaf in leaves]
    return [
        torch.zeros_like(leaf) if value is None and hooks else value
        for leaf, value, hooks in zip(leaves, found, has_hooks, strict=True)
    ]


def differentiable_once(gradients: Sequence[Tensor | None], sources: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradients, such that a second derivative raises an error.

    Args:
        gradients: gradients that a backward pass returns.
        sources: tensors on which they depend.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    if not torch.is_grad_enabled() or not present:
        return list(gradients)
    # torch's once_differentiable would return None or zeros if only some tensors are differentiated.
    linked = iter(_Once.apply(len(present), *present, *sources))
    return [None if gradient is None else next(linked) for gradient in gradients]


class _Once(Function):
    """Return the first `count` tensors, with an error for their derivatives with respect to any of the tensors."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(
            "cannot differentiate twice: expected layers without recompute or Reversible, got one, which is "
            'once_differentiable. Use torch.func, recompute(network, every="none"), or a Chain of the Couplings.'
        )


def _alias(leaf: Tensor) -> Tensor:
    alias = leaf.detach()
    return nn.Parameter(alias) if isinstance(leaf, nn.Parameter) else alias.requires_grad_()


def _refuse_outsiders(out: Tensor, known: set[Tensor]) -> None:
    """Check that `out` depends on known tensors alone, because others would silently get no gradient.

    Raises:
        InputError: it depends on another tensor that needs a gradient.
    """
    seen, nodes = set(), [out.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = node.variable if type(node).__name__ == "AccumulateGrad" else None  # type: ignore[attr-defined]
        if leaf is not None and leaf not in known:
            raise InputError(
                "cannot recompute: expected layers that hold all their parameters, got one that uses a tensor of shape "
                f"{tuple(leaf.shape)} from elsewhere. Register it in that layer, or disable recompute."
            )
        nodes.extend(function for function, _ in node.next_functions)
