"""Reversible blocks: recompute the input of a block from its output, so that memory does not grow with depth.

    y1 = x1 + f(x2)        x2 = y2 - g(y1)
    y2 = x2 + g(y1)        x1 = y1 - f(x2)

Shapes: B batch, C channels (half of them in x1, half in x2), * any further axes.
Source: Gomez et al. 2017, arXiv:1707.04585.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import Function, once_differentiable

from skipway.errors import InputError, ShapeError
from skipway.nn.chain import Chain, Layer, as_module
from skipway.nn.joins import add
from skipway.nn.named_errors import NamedErrors, named_errors
from skipway.nn.rng_replay import GeneratorStates, RngSnapshot, rerun_backward
from skipway.utils.tracing import is_traced

__all__ = ["Coupling", "Reversible"]


class Coupling(NamedErrors):
    """Two bodies on half of the channels each, each added to the other half.

    Args:
        f: body whose output for the second half is added to the first half.
        g: body whose output for the new first half is added to the second half.
        shortcuts: a shortcut for each half, needed if f and g change its shape. Such a Coupling is not reversible.

    Shapes:
        (B, C, *) -> (B, C', *), with even C.

    Raises:
        ShapeError: the number of channels is odd, or a body changes the shape without shortcuts.

    >>> Coupling(nn.Linear(4, 4), nn.Linear(4, 4))(torch.ones(2, 8)).shape
    torch.Size([2, 8])
    """

    def __init__(self, f: Layer, g: Layer, shortcuts: tuple[Layer, Layer] | None = None):
        super().__init__()
        self.f, self.g = as_module(f), as_module(g)
        self.shortcuts = None if shortcuts is None else nn.ModuleList(as_module(s) for s in shortcuts)

    @named_errors
    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, *) to (B, C', *)."""
        x1, x2 = _halves(x)
        shortcut1, shortcut2 = (x1, x2) if self.shortcuts is None else (self.shortcuts[0](x1), self.shortcuts[1](x2))
        y1 = add(self.f(x2), shortcut1)
        return torch.cat([y1, add(self.g(y1), shortcut2)], 1)

    def parts(self) -> list[tuple[str, nn.Module | str]]:
        """Return the bodies, and the shortcuts if there are any."""
        shortcuts = [] if self.shortcuts is None else [("shortcuts", self.shortcuts)]
        return [("f", self.f), ("g", self.g), *shortcuts]


class Reversible(Chain):
    """Apply Couplings one after the other, and keep only the last output for the backward pass.

    The backward pass recomputes the input of each Coupling from its output, so that memory does not grow with depth.
    The halves are in float32 or wider, because rounding in lower precision could not be undone. Gradients equal those
    of the same Couplings in a Chain up to rounding: 1e-5 relative in float32 at ten blocks. Norms update their
    statistics once, and dropout is identical in both passes. Autograd raises an error for second derivatives.

    Args:
        couplings: Couplings without shortcuts, named by position.
        named: Couplings without shortcuts, with names.

    Raises:
        InputError: there is no Coupling, or a layer is not a Coupling without shortcuts.

    >>> body = lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    >>> Reversible(*(Coupling(body(), body()) for _ in range(3)))(torch.ones(2, 8)).shape
    torch.Size([2, 8])
    """

    def __init__(self, *couplings: Coupling, **named: Coupling):
        super().__init__(*couplings, **named)
        if not len(self):
            raise InputError("Reversible: expected at least one Coupling, got none. Pass Couplings.")
        for coupling in self:
            if not isinstance(coupling, Coupling) or coupling.shortcuts is not None:
                raise InputError(
                    "Reversible: expected Couplings without shortcuts, got "
                    f"{type(coupling).__name__}{' with shortcuts' if isinstance(coupling, Coupling) else ''}. "
                    "Move it into a Chain before the Reversible."
                )

    @named_errors
    def forward(self, input: Tensor) -> Tensor:
        """Apply all couplings; the shape (B, C, *) is unchanged."""
        x1, x2 = map(_wide, _halves(input))
        plain = is_traced(x1) or x1.is_meta or torch.compiler.is_compiling()
        if torch.is_grad_enabled() and not plain:
            x1, x2 = _Reversed.apply(self, input.dtype, x1, x2, *(p for p in self.parameters() if p.requires_grad))
        else:
            for f, g in self.bodies():
                x1 = add(f(x2.to(input.dtype)), x1)
                x2 = add(g(x1.to(input.dtype)), x2)
        return torch.cat([x1, x2], 1).to(input.dtype)

    def bodies(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return (f, g) of each Coupling."""
        return [(coupling.f, coupling.g) for coupling in self if isinstance(coupling, Coupling)]


class _Reversed(Function):
    """The outputs of all couplings; the parameters are arguments so that autograd requests their gradients."""

    @staticmethod
    def forward(
        ctx: Any, couplings: Reversible, dtype: torch.dtype, x1: Tensor, x2: Tensor, *parameters: nn.Parameter
    ) -> Any:
        ctx.couplings, ctx.dtype, ctx.parameters = couplings, dtype, parameters
        ctx.rng = RngSnapshot(x1.device)
        states: list[tuple[GeneratorStates, GeneratorStates]] = []
        with ctx.rng.autocast_context():
            for f, g in couplings.bodies():
                before_f = ctx.rng.generator_states()
                x1 = add(f(x2.to(dtype)), x1)
                states.append((before_f, ctx.rng.generator_states()))
                x2 = add(g(x1.to(dtype)), x2)
        ctx.generator_states = states
        ctx.save_for_backward(x1, x2)
        return x1, x2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d1: Tensor, d2: Tensor) -> Any:
        y1, y2 = ctx.saved_tensors
        gradients: dict[nn.Parameter, Tensor] = {}
        differentiate = partial(rerun_backward, parameters=ctx.parameters, gradients=gradients, dtype=ctx.dtype)
        couplings = list(zip(ctx.couplings.bodies(), ctx.generator_states, strict=True))
        with ctx.rng.replay():
            for (f, g), (before_f, before_g) in reversed(couplings):
                ctx.rng.restore_generators(before_g)
                out, gradient = differentiate([g], y1, d2)
                y2, d1 = y2 - out, d1 + gradient  # y2 is x2 from here on
                ctx.rng.restore_generators(before_f)
                out, gradient = differentiate([f], y2, d1)
                y1, d2 = y1 - out, d2 + gradient
        return None, None, d1, d2, *(gradients.get(p) for p in ctx.parameters)


@fx.wrap
def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    if not is_traced(x) and (x.dim() < 2 or x.shape[1] % 2):
        raise ShapeError(
            f"Coupling: expected (B, C, *) with an even number of channels C, got {tuple(x.shape)}. "
            "Change the layer before it."
        )
    halves = _split(x)
    return halves[0], halves[1]


@fx.wrap
def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return copies of both halves, because strided views would slow down every later operation."""
    first, second = x.chunk(2, 1)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        layout = torch.channels_last
    else:
        layout = torch.contiguous_format
    return first.contiguous(memory_format=layout), second.contiguous(memory_format=layout)
