"""Reversible blocks: their input is worked out from their output, so that training keeps nothing inside, at any depth.

    y1 = x1 + f(x2)        x2 = y2 - g(y1)
    y2 = x2 + g(y1)        x1 = y1 - f(x2)

Shapes: B batch, C channels (x1 and x2 have half of them each), * any further axes.
Source: Gomez et al. 2017, arXiv:1707.04585.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from skipway.errors import InputError, ShapeError
from skipway.nn.chain import Chain, Layer, as_module
from skipway.nn.joins import add
from skipway.nn.rng_replay import GeneratorStates, RngSnapshot, rerun_backward
from skipway.nn.shape_inference import NamedErrors, named_errors

__all__ = ["Coupling", "Reversible"]


class Coupling(NamedErrors):
    """(B, C, *) -> (B, C', *): two bodies on half of the channels each, each adding to the other's half.

    Args:
        f: what is added to the first half, from the second as it came.
        g: what is added to the second half, from the first as it has become.
        shortcuts: what takes each half around where f and g change its shape; such a Coupling cannot be reversed.
    """

    def __init__(self, f: Layer, g: Layer, shortcuts: tuple[Layer, Layer] | None = None):
        super().__init__()
        self.f, self.g = as_module(f), as_module(g)
        self.shortcuts = None if shortcuts is None else nn.ModuleList(as_module(s) for s in shortcuts)

    @named_errors
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *) -> (B, C', *)."""
        x1, x2 = _halves(x)
        shortcut1, shortcut2 = (x1, x2) if self.shortcuts is None else (self.shortcuts[0](x1), self.shortcuts[1](x2))
        y1 = add(self.f(x2), shortcut1)
        return torch.cat([y1, add(self.g(y1), shortcut2)], 1)

    def parts(self) -> list[tuple[str, nn.Module | str]]:
        """The bodies, and the shortcuts where there are any."""
        shortcuts = [] if self.shortcuts is None else [("shortcuts", self.shortcuts)]
        return [("f", self.f), ("g", self.g), *shortcuts]


class Reversible(Chain):
    """Couplings one after the other, of which training keeps the output alone: memory does not grow with depth.

    On the way back each Coupling's input is worked out from its output, and its bodies are computed again. The halves
    travel in at least float32, for what rounding takes away cannot be worked out: gradients are those of the same
    Couplings in a Chain up to rounding (1e-5 of their size in float32 at ten blocks). Norms' statistics are updated
    once, and what is dropped is the same both times. Second derivatives are refused by autograd.

    >>> body = lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    >>> Reversible(*(Coupling(body(), body()) for _ in range(3)))(torch.ones(2, 8)).shape
    torch.Size([2, 8])
    """

    def __init__(self, *couplings: Coupling, **named: Coupling):
        super().__init__(*couplings, **named)
        if not len(self):
            raise InputError("Reversible takes at least one Coupling")
        for coupling in self:
            if not isinstance(coupling, Coupling) or coupling.shortcuts is not None:
                raise InputError(
                    f"Reversible takes Couplings without shortcuts, not {type(coupling).__name__}"
                    f"{' with shortcuts' if isinstance(coupling, Coupling) else ''}; put that before it in a Chain"
                )

    @named_errors
    def forward(self, input: Tensor) -> Tensor:
        """(B, C, *), kept."""
        wide = torch.promote_types(input.dtype, torch.float32)
        x1, x2 = (half.to(wide) for half in _halves(input))
        if torch.is_grad_enabled() and not x1.is_meta and not torch.compiler.is_compiling():
            x1, x2 = _Reversed.apply(self, input.dtype, x1, x2, *(p for p in self.parameters() if p.requires_grad))
        else:
            for f, g in self.bodies():
                x1 = add(f(x2.to(input.dtype)), x1)
                x2 = add(g(x1.to(input.dtype)), x2)
        return torch.cat([x1, x2], 1).to(input.dtype)

    def bodies(self) -> list[tuple[nn.Module, nn.Module]]:
        """(f, g) of each Coupling."""
        return [(coupling.f, coupling.g) for coupling in self if isinstance(coupling, Coupling)]


class _Reversed(Function):
    """All couplings of a Reversible; the parameters are named so that autograd asks for their gradients."""

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


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.dim() < 2 or x.shape[1] % 2:
        raise ShapeError(f"a Coupling takes (B, C, *) with an even number of channels C, but got {tuple(x.shape)}")
    first, second = x.chunk(2, 1)
    # Views of every other half would be slow in all that follows.
    layout = torch.channels_last if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) else None
    return tuple(h.contiguous(memory_format=layout or torch.contiguous_format) for h in (first, second))  # type: ignore[return-value]
