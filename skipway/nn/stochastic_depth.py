"""Stochastic depth: skip a body in training for some samples, or for the whole batch, without computing it.

Shapes: B batch, C channels, * any further axes.
Source: Huang et al. 2016, arXiv:1603.09382.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.autograd import Function

from skipway.errors import ShapeError
from skipway.nn.join_errors import need_tensors
from skipway.utils.tracing import is_forward_transformed, is_traced

__all__ = ["DROP_MODES", "masked_depth", "stochastic_depth"]

DROP_MODES = ("row", "batch")


def stochastic_depth(body: nn.Module, x: Tensor, shortcut: Tensor, rate: float, mode: str = "row") -> Tensor:
    """Return body(x) / (1 - rate) with probability 1 - rate, and zeros otherwise.

    The expected value is body(x). Random numbers come from torch's CPU generator on every device, so that no GPU
    synchronization is needed. A skipped body has gradients of zero, not None, so that all processes of a distributed
    run agree.

    All rows are computed and masked, with the same distribution, if rows cannot be selected freely. This happens in
    compiled and traced code, in torch.vmap and forward-mode derivatives, if a single row is kept, and around a norm
    over all processes.

    Args:
        body: module to skip. Its norms see only the kept rows.
        x: input of the body, (B, C, *).
        shortcut: output of the shortcut. The output of the body must have its shape.
        rate: probability of skipping the body.
        mode: "row" draws for each sample and computes the kept ones; "batch" draws once for all.

    Returns:
        A tensor of the shape of `shortcut`.

    Raises:
        ShapeError: the shapes of the body's output and of the shortcut differ, or the output is no tensor.
    """
    if torch.compiler.is_compiling() or is_traced(x) or is_forward_transformed():
        return _masked(body, x, shortcut, stays=_draw(x, rate, mode), rate=rate)
    draws = 1 if mode == "batch" else len(x)
    stays = _draw(x, rate, mode)
    count = int(stays.sum())
    if count == draws:
        return _checked_shape(body(x), shortcut, len(x)) / (1 - rate)
    if count == 1 or _syncs_statistics(body):  # a norm over a single row would return zeros
        return _masked(body, x, shortcut, stays=stays, rate=rate)
    if count == 0:
        return _zeros(body, shortcut)
    rows = stays.nonzero().squeeze(1).to(x.device, non_blocking=True)
    computed = _checked_shape(body(_Gather.apply(x, rows)), shortcut, count) / (1 - rate)
    return _Scatter.apply(computed, rows, len(x))


def masked_depth(branch: Any, shortcut: Tensor, *, rate: float, mode: str = "row") -> Tensor:
    """Return branch / (1 - rate) with probability 1 - rate, and zeros otherwise, for a computed branch.

    Args:
        branch: output of the body for all rows, of the shape of `shortcut`.
        shortcut: output of the shortcut.
        rate: probability of dropping the branch.
        mode: "row" draws for each sample, "batch" once for all.
    """
    return _mask(branch, shortcut, _draw(shortcut, rate, mode), rate)


@fx.wrap
def _draw(x: Tensor, rate: float, mode: str) -> Tensor:
    """Return which rows stay, (B,), or whether the batch stays, (1,)."""
    draws = 1 if mode == "batch" else x.shape[0]
    return torch.rand(draws, device=x.device if torch.compiler.is_compiling() else "cpu") >= rate


def _masked(body: nn.Module, x: Tensor, shortcut: Tensor, *, stays: Tensor, rate: float) -> Tensor:
    return _mask(body(x), shortcut, stays, rate)


@fx.wrap
def _mask(branch: Any, shortcut: Tensor, stays: Tensor, rate: float) -> Tensor:
    branch = _checked_shape(branch, shortcut, shortcut.shape[0])
    mask = stays.to(branch.device, non_blocking=True).view(-1, *[1] * (branch.dim() - 1))
    return torch.where(mask, branch / (1 - rate), 0.0)


def _checked_shape(branch: Any, shortcut: Tensor, count: int) -> Tensor:
    """Return `branch` if it has `count` rows of the shape of the rows of `shortcut`, else raise."""
    need_tensors("drop_path", (branch, shortcut))
    if branch.shape != (count, *shortcut.shape[1:]):
        raise ShapeError(
            f"cannot use drop_path: expected an output of the body of shape {(count, *shortcut.shape[1:])}, as the "
            f'shortcut has, got {tuple(branch.shape)}. Set shortcut="project" on the Skip, or drop_path=0.'
        )
    return branch


def _syncs_statistics(body: nn.Module) -> bool:
    """Return True if every process must compute the body, because its norms wait for all processes."""
    distributed = dist.is_available() and dist.is_initialized()
    return distributed and any(isinstance(module, nn.SyncBatchNorm) for module in body.modules())


def _zeros(body: nn.Module, shortcut: Tensor) -> Tensor:
    parameters = [p for p in body.parameters() if p.requires_grad]
    zeros = torch.zeros_like(shortcut)
    return _ZeroGradients.apply(zeros, *parameters) if parameters and torch.is_grad_enabled() else zeros


class _ZeroGradients(Function):
    """Return `out` unchanged, with gradients of zero for the parameters."""

    generate_vmap_rule = True  # for derivatives of many outputs at once

    @staticmethod
    def forward(out: Tensor, *parameters: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, *(torch.zeros_like(p) for p in ctx.saved_tensors)


# torch's index_select loses channels_last, and the gradient of indexing sums over rows as if they could repeat.


class _Gather(Function):
    """Select rows: (B, *), (N) -> (N, *), in the same memory format."""

    generate_vmap_rule = True  # for derivatives of many outputs at once

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
    """Place rows in zeros: (N, *), (N) -> (count, *), in the memory format of `values`."""

    generate_vmap_rule = True  # for derivatives of many outputs at once

    @staticmethod
    def forward(values: Tensor, rows: Tensor, count: int) -> Tensor:
        like = values[:1].expand(count, *values.shape[1:])  # zeros_like copies its memory format
        out = torch.zeros_like(like)
        # Only index_put_ works on many values at once, but index_copy_ is faster.
        return out.index_put_((rows,), values) if is_forward_transformed() else out.index_copy_(0, rows, values)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Gather.apply(gradient, *ctx.saved_tensors), None, None
