"""Stochastic depth: bodies left out at random while training, and not computed where they are left out.

Shapes: B batch, C channels, * any further axes.
Source: Huang et al. 2016, arXiv:1603.09382.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from skipway.errors import ShapeError

__all__ = ["DROP_MODES", "thinned"]

DROP_MODES = ("row", "batch")


def thinned(body: nn.Module, x: Tensor, kept: Tensor, rate: float, mode: str = "row", where: str = "Skip") -> Tensor:
    """(B, C, *) -> the shape of `kept`: body(x) / (1 - rate) with chance 1 - rate, else zeros; body(x) on average.

    Args:
        body: what may be left out. Its norms see the rows that stay, and those alone.
        x: the body's input.
        kept: what the shortcut gives; the body's output must have its shape.
        rate: chance to leave out.
        mode: "row" draws for every sample and computes those that stay; "batch" draws once for all.
        where: the place that an error names.

    The draws come from torch's generator of the CPU, whatever the device, so that no GPU has to be waited for. A body
    that is left out gives its parameters gradients of zero, not None, so that every process of a distributed run has
    the same. Compiled code and a single row that stays compute all rows and mask them: the same distribution.
    """
    count = len(x)
    stays = torch.rand(1 if mode == "batch" else count) >= rate
    if torch.compiler.is_compiling():
        return _masked(body(x), kept, stays, rate, where)
    left = int(stays.sum())
    if left == len(stays):
        return _fitting(body(x), kept, where) / (1 - rate)
    if left == 0:
        return _absent(body, kept)
    if left == 1:  # a norm could not tell the mean of one row from the row
        return _masked(body(x), kept, stays, rate, where)
    rows = stays.nonzero().squeeze(1).to(x.device)
    some = _fitting(body(x.index_select(0, rows)), kept, where) / (1 - rate)
    return torch.zeros_like(kept, dtype=some.dtype).index_copy_(0, rows, some)  # in place: it keeps the layout


def _masked(branch: Any, kept: Tensor, stays: Tensor, rate: float, where: str) -> Tensor:
    branch = _fitting(branch, kept, where)
    mask = stays.to(branch.device).view(-1, *[1] * (branch.dim() - 1))
    return torch.where(mask, branch / (1 - rate), torch.zeros_like(branch))


def _fitting(branch: Any, kept: Tensor, where: str) -> Tensor:
    if not isinstance(branch, Tensor) or branch.shape[1:] != kept.shape[1:]:
        found = tuple(branch.shape) if isinstance(branch, Tensor) else type(branch).__name__
        raise ShapeError(
            f"{where}: drop_path leaves out a body that gives what the shortcut gives, but got {found} beside "
            f'{tuple(kept.shape)}; give the Skip shortcut="project", or no drop_path'
        )
    return branch


def _absent(body: nn.Module, kept: Tensor) -> Tensor:
    parameters = [p for p in body.parameters() if p.requires_grad]
    zeros = torch.zeros_like(kept)
    return _Absent.apply(zeros, *parameters) if parameters and torch.is_grad_enabled() else zeros


class _Absent(torch.autograd.Function):
    """`out` as it is, with gradients of zero for the parameters beside it."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, *(torch.zeros_like(p) for p in ctx.saved_tensors)
