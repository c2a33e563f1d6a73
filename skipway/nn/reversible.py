"""Reversible blocks: recompute the input of a block from its output, so that memory does not grow with depth.

    y1 = x1 + f(x2)        x2 = y2 - g(y1)
    y2 = x2 + g(y1)        x1 = y1 - f(x2)

Shapes: B batch, C channels (half of them in x1, half in x2), * any further axes; sequences are (B, T, C) with dim=-1.
Source: Gomez et al. 2017, arXiv:1707.04585.
"""

from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.autograd import Function

from skipway.errors import InputError, ShapeError
from skipway.nn.chain import Chain, Layer, as_module
from skipway.nn.channel_axis import channel_axis_of, check_dim, resolve_dim
from skipway.nn.in_place import refuse_in_place_change, refuse_in_place_layers, version_of
from skipway.nn.joins import add
from skipway.nn.layer_state import LayerState, differentiable_tensors
from skipway.nn.named_errors import NamedErrors, named_errors
from skipway.nn.rng_replay import (
    GeneratorStates,
    RngSnapshot,
    can_recompute,
    differentiable_once,
    gradients_of,
    needed_gradients,
    rerun_backward,
)
from skipway.utils.tracing import is_forward_transformed, is_symbolic, is_traced

__all__ = ["Coupling", "Reversible"]


class Coupling(NamedErrors):
    """Two bodies on half of the channels each, each added to the other half.

    Args:
        f: body whose output for the second half is added to the first half.
        g: body whose output for the new first half is added to the second half.
        shortcuts: a shortcut for each half, needed if f and g change its shape. Such a Coupling is not reversible.
        dim: axis of the channels, which is halved: 1 for (B, C, *), -1 for sequences (B, T, C). None takes that of the
            Chain around it, or the axis on which the last layers of f and g have their channels.

    Shapes:
        (B, C, *) -> (B, C', *), with even C.

    Raises:
        InputError: a body starts with an in-place layer, or modifies its input in place.
        ShapeError: the number of channels is odd, its axis is unknown, or a body changes the shape without shortcuts.

    >>> Coupling(nn.Linear(4, 4), nn.Linear(4, 4))(torch.ones(2, 8)).shape
    torch.Size([2, 8])
    """

    def __init__(self, f: Layer, g: Layer, shortcuts: tuple[Layer, Layer] | None = None, *, dim: int | None = None):
        super().__init__()
        self.f, self.g = as_module(f), as_module(g)
        self.shortcuts = None if shortcuts is None else nn.ModuleList(as_module(s) for s in shortcuts)
        self.dim = check_dim("Coupling", dim)
        refuse_in_place_layers("Coupling", self.f, self.g, *(self.shortcuts or ()))

    @named_errors
    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, *) to (B, C', *)."""
        axis = self.axis_of(x)
        x1, x2 = _halves(x, axis)
        shortcut1, shortcut2 = x1, x2
        if self.shortcuts is not None:
            shortcut1, shortcut2 = (_unchanged(s, x) for s, x in zip(self.shortcuts, (x1, x2), strict=True))
        y1 = add(_unchanged(self.f, x2), shortcut1)
        return torch.cat([y1, add(_unchanged(self.g, y1), shortcut2)], axis)

    def axis_of(self, x: Tensor) -> int:
        """Return the axis of the channels of `x`."""
        return resolve_dim(self.dim, [self.f, self.g], x)

    @property
    def channel_axis(self) -> int | None:
        """Axis of the channels of the output, None if neither `dim` nor the bodies determine it."""
        return channel_axis_of(self.g) or channel_axis_of(self.f) if self.dim is None else self.dim

    def parts(self) -> list[tuple[str, nn.Module | str]]:
        """Return the bodies, and the shortcuts and the axis of the channels if they are set."""
        optional = {"shortcuts": self.shortcuts, "dim": None if self.dim is None else str(self.dim)}
        return [("f", self.f), ("g", self.g), *((name, part) for name, part in optional.items() if part is not None)]


class Reversible(Chain):
    """Apply Couplings one after the other, and keep only the last output for the backward pass.

    The backward pass recomputes the input of each Coupling from its output, so that memory does not grow with depth.
    The halves are in float32 or wider, because rounding in lower precision could not be undone. Gradients equal those
    of the same Couplings in a Chain up to rounding: 1e-5 relative in float32 at ten blocks. Norms update their
    statistics once, and dropout is identical in both passes. Autograd raises an error for second derivatives.

    Args:
        couplings: Couplings without shortcuts, named by position.
        dim: axis of the channels, for all couplings: see `Coupling`.
        named: Couplings without shortcuts, with names.

    Raises:
        InputError: there is no Coupling, a layer is not a Coupling without shortcuts, or their axes differ.

    >>> body = lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    >>> Reversible(*(Coupling(body(), body()) for _ in range(3)))(torch.ones(2, 8)).shape
    torch.Size([2, 8])
    """

    def __init__(self, *couplings: Coupling, dim: int | None = None, **named: Coupling):
        super().__init__(*couplings, dim=dim, **named)
        if not len(self):
            raise InputError("Reversible: expected at least one Coupling, got none. Pass Couplings.")
        for coupling in self:
            if not isinstance(coupling, Coupling) or coupling.shortcuts is not None:
                raise InputError(
                    "Reversible: expected Couplings without shortcuts, got "
                    f"{type(coupling).__name__}{' with shortcuts' if isinstance(coupling, Coupling) else ''}. "
                    "Move it into a Chain before the Reversible."
                )
        dims = {d for d in (dim, *(c.dim for c in self if isinstance(c, Coupling))) if d is not None}
        if len(dims) > 1:
            raise InputError(
                f"Reversible: expected Couplings with the same dim, got {' and '.join(map(str, sorted(dims)))}. Put "
                "them into two Reversibles."
            )
        self.dim = dims.pop() if dims else None
        self.share_dim()

    @named_errors
    def forward(self, input: Tensor) -> Tensor:
        """Apply all couplings; the shape (B, C, *) is unchanged."""
        bodies = self.bodies()
        axis = resolve_dim(self.dim, chain.from_iterable(bodies), input)
        x1, x2 = map(_wide, _halves(input, axis))
        leaves = differentiable_tensors([self])
        if can_recompute(x1) and (leaves or x1.requires_grad):
            x1, x2 = _Reversed.apply(self, input.dtype, x1, x2, *leaves)
        else:
            for f, g in bodies:
                x1 = add(_unchanged(f, x2.to(input.dtype)), x1)
                x2 = add(_unchanged(g, x1.to(input.dtype)), x2)
        return torch.cat([x1, x2], axis).to(input.dtype)

    def bodies(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return (f, g) of each Coupling."""
        return [(coupling.f, coupling.g) for coupling in self if isinstance(coupling, Coupling)]


class _Reversed(Function):
    """The outputs of all couplings; the parameters are arguments so that autograd requests their gradients."""

    @staticmethod
    def forward(ctx: Any, couplings: Reversible, dtype: torch.dtype, x1: Tensor, x2: Tensor, *leaves: Tensor) -> Any:
        ctx.dtype, ctx.leaves, ctx.rng = dtype, leaves, RngSnapshot(x1.device)
        ctx.calls = []
        with ctx.rng.autocast_context():
            for f, g in couplings.bodies():
                x1 = add(_first_pass(ctx, f, x2), x1)
                x2 = add(_first_pass(ctx, g, x1), x2)
        ctx.save_for_backward(x1, x2)
        return x1, x2

    @staticmethod
    def backward(ctx: Any, d1: Tensor, d2: Tensor) -> Any:
        y1, y2 = ctx.saved_tensors
        sources = [d1, d2, y1, y2, *ctx.leaves]
        gradients = needed_gradients(ctx.leaves, ctx.needs_input_grad[4:])
        with torch.no_grad(), ctx.rng.replay():
            # The last call added a function of the first half to the second half; the halves swap from call to call.
            for call in reversed(ctx.calls):
                ctx.rng.restore_generators(call.generator_states)
                out, gradient = rerun_backward(
                    [call.body], y1, d2, state=call.state, gradients=gradients, dtype=ctx.dtype
                )
                y1, y2 = y2 - out, y1
                d1, d2 = d2, d1 if gradient is None else d1 + gradient
            found = [d1, d2, *gradients_of(ctx.leaves, gradients)]
        return None, None, *differentiable_once(found, sources)


class _Call(NamedTuple):
    """A call of a body in the first pass."""

    body: nn.Module
    state: LayerState
    generator_states: GeneratorStates


def _first_pass(ctx: Any, body: nn.Module, x: Tensor) -> Tensor:
    """Return body(x), and keep what a second pass needs."""
    ctx.calls.append(_Call(body, LayerState([body]), ctx.rng.generator_states()))
    out: Tensor = _unchanged(body, x.to(ctx.dtype))
    ctx.calls[-1].state.end_pass()
    return out


def _unchanged(body: nn.Module, x: Tensor) -> Any:
    """Return body(x), and check that x is unchanged."""
    version = version_of(x)
    out = body(x)
    refuse_in_place_change(x, version, f"the body {type(body).__name__}")
    return out


@fx.wrap
def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x


def _halves(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    if not is_traced(x) and (x.dim() < 2 or x.shape[axis] % 2):
        shape = "(B, C, *)" if axis == 1 else "a tensor"
        raise ShapeError(
            f"cannot halve the channels: expected {shape} with an even number of channels C on axis {axis}, got "
            f"{tuple(x.shape)}. Change the layer before it."
        )
    if not is_symbolic(x) and is_forward_transformed():  # the memory format is unknown
        first, second = x.chunk(2, axis)
        return first.contiguous(), second.contiguous()
    halves = _split(x, axis)
    return halves[0], halves[1]


@fx.wrap
def _split(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return copies of both halves, because strided views would slow down every later operation."""
    first, second = x.chunk(2, axis)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        layout = torch.channels_last
    else:
        layout = torch.contiguous_format
    return first.contiguous(memory_format=layout), second.contiguous(memory_format=layout)
