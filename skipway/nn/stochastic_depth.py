"""Stochastic depth: a body is left out while training, for some rows of a batch or for all, and then not computed.

Shapes: B batch, C channels, * any further axes.
Source: Huang et al. 2016, arXiv:1603.09382.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function

from skipway.errors import ShapeError

__all__ = ["DROP_MODES", "stochastic_depth"]

DROP_MODES = ("row", "batch")


def stochastic_depth(body: nn.Module, x: Tensor, shortcut: Tensor, rate: float, mode: str = "row") -> Tensor:
    """(B, C, *) -> the shape of `shortcut`: body(x) / (1 - rate) with chance 1 - rate, else zeros; body(x) on average.

    Args:
        body: what may be left out. Its norms see the rows that stay, and those alone.
        x: the body's input.
        shortcut: what the shortcut gives; the body's output must have its shape.
        rate: chance to leave out.
        mode: "row" draws for every sample and computes those that stay; "batch" draws once for all.

    The draws come from torch's generator of the CPU, whatever the device, so that no GPU has to be waited for. A body
    that is left out gives its parameters gradients of zero, not None, so that every process of a distributed run has
    the same. All rows are computed and masked, which is the same distribution, where the rows cannot be chosen freely:
    in compiled code, where a single row stays, and around a norm over all processes.

    Raises:
        ShapeError: the body gives another shape than the shortcut.
    """
    draws = 1 if mode == "batch" else len(x)
    if torch.compiler.is_compiling():
        return _masked(body, x, shortcut, stays=torch.rand(draws, device=x.device) >= rate, rate=rate)
    stays = torch.rand(draws, device="cpu") >= rate
    count = int(stays.sum())
    if count == draws:
        return _checked_shape(body(x), shortcut, len(x)) / (1 - rate)
    if count == 1 or _syncs_statistics(body):  # a norm could not tell the mean of one row from the row
        return _masked(body, x, shortcut, stays=stays, rate=rate)
    if count == 0:
        return _zeros(body, shortcut)
    rows = stays.nonzero().squeeze(1).to(x.device, non_blocking=True)
    computed = _checked_shape(body(_Gather.apply(x, rows)), shortcut, count) / (1 - rate)
    return _Scatter.apply(computed, rows, len(x))


def _masked(body: nn.Module, x: Tensor, shortcut: Tensor, *, stays: Tensor, rate: float) -> Tensor:
    branch = _checked_shape(body(x), shortcut, len(x))
    mask = stays.to(branch.device, non_blocking=True).view(-1, *[1] * (branch.dim() - 1))
    return torch.where(mask, branch / (1 - rate), 0.0)


def _checked_shape(branch: Any, shortcut: Tensor, count: int) -> Tensor:
    """`branch` if it is `count` rows of the shape that `shortcut` has."""
    if not isinstance(branch, Tensor) or branch.shape != (count, *shortcut.shape[1:]):
        output = tuple(branch.shape) if isinstance(branch, Tensor) else type(branch).__name__
        raise ShapeError(
            f"drop_path leaves out a body that gives what the shortcut gives, but got {output} beside "
            f'{(count, *shortcut.shape[1:])}; give the Skip shortcut="project", or no drop_path'
        )
    return branch


def _syncs_statistics(body: nn.Module) -> bool:
    """Whether every process must compute the body: one that left it out would keep the others waiting for ever."""
    distributed = dist.is_available() and dist.is_initialized()
    return distributed and any(isinstance(module, nn.SyncBatchNorm) for module in body.modules())


def _zeros(body: nn.Module, shortcut: Tensor) -> Tensor:
    parameters = [p for p in body.parameters() if p.requires_grad]
    zeros = torch.zeros_like(shortcut)
    return _ZeroGradients.apply(zeros, *parameters) if parameters and torch.is_grad_enabled() else zeros


class _ZeroGradients(Function):
    """`out` as it is, with gradients of zero for the parameters beside it."""

    @staticmethod
    def forward(out: Tensor, *parameters: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, *(torch.zeros_like(p) for p in ctx.saved_tensors)


# torch's own index_select gives up channels_last, and the gradient of indexing sums as if a row could come twice.


class _Gather(Function):
    """(B, *), (N) -> (N, *): the rows of those numbers, in the memory format of all."""

    @staticmethod
    def forward(x: Tensor, rows: Tensor) -> Tensor:
        return x[rows]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.count = len(inputs[0])
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Scatter.apply(gradient, *ctx.saved_tensors, ctx.count), None


class _Scatter(Function):
    """(N, *), (N) -> (count, *): zeros with `values` in the rows of those numbers, in the memory format of `values`."""

    @staticmethod
    def forward(values: Tensor, rows: Tensor, count: int) -> Tensor:
        like = values[:1].expand(count, *values.shape[1:])  # zeros_like takes its memory format
        return torch.zeros_like(like).index_copy_(0, rows, values)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Gather.apply(gradient, *ctx.saved_tensors), None, None
