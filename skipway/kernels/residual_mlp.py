"""Residual block of a feed-forward network in training, in C: one pass over blocks of rows that stay in the caches.

Shapes: B rows, W features, H hidden ones; W and H are multiples of PARTS.
Source: residual, He et al. 2015, arXiv:1512.03385, with the norm first, Gorishniy et al. 2021, arXiv:2106.11959.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from skipway.kernels.double_backward import differentiable_gradients
from skipway.kernels.mlp_library import BLOCK, call_mlp

__all__ = ["LEVELS", "DrawnDropout", "RunningStatistics", "residual_mlp"]

LEVELS = 1 << 16  # values of a random number of dropout


@dataclass(frozen=True)
class RunningStatistics:
    """Mean and variance (W,) of a batch norm, which are updated, its eps and its momentum."""

    mean: Tensor
    variance: Tensor
    eps: float
    momentum: float


@dataclass(frozen=True)
class DrawnDropout:
    """Dropout with its random numbers: (B, H) int16 `levels`; the lowest `dropped` of all LEVELS are dropped."""

    levels: Tensor
    dropped: int

    @property
    def lowest(self) -> int:
        """Lowest level that is kept."""
        return self.dropped - LEVELS // 2

    @property
    def factor(self) -> float:
        """Factor of the activations that are kept."""
        return LEVELS / (LEVELS - self.dropped)

    def mask(self) -> Tensor:
        """Return the factors (B, H) of the activations."""
        # Arithmetic is faster than a comparison: whole numbers from `lowest` on become 1, smaller ones 0.
        return self.levels.to(torch.float32).sub_(self.lowest - 1).clamp_(0, 1).mul_(self.factor)


def residual_mlp(
    x: Tensor, parameters: tuple[Tensor, ...], statistics: RunningStatistics, dropout: DrawnDropout | None
) -> Tensor:
    """Compute x + linear2(dropout(relu(linear1(batch_norm(x))))), and update the running statistics.

    Args:
        x: (B, W) rows.
        parameters: weight and bias of the norm (W,), the first layer (H, W), (H,), and the second (W, H), (W,).
        statistics: those of the norm.
        dropout: dropout of the activations, or None.
    """
    outputs: Tensor = _ResidualMLP.apply(x, *parameters, statistics, dropout)
    return outputs


class _ResidualMLP(torch.autograd.Function):
    """Autograd function of the kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *values: Any) -> Tensor:
        parameters, (statistics, dropout) = values[:6], values[6:]
        hidden, width = parameters[2].shape
        sizes = torch.tensor([len(x), width, hidden], device="cpu")
        transposed, stats, y = x.new_empty(2 * width * hidden), x.new_empty(2, width), torch.empty_like(x)
        normed, activations = torch.empty_like(x), x.new_empty(len(x), hidden)
        running = statistics.eps, statistics.momentum, statistics.mean, statistics.variance
        drawn = (None, 0, 1.0) if dropout is None else (dropout.levels, dropout.lowest, dropout.factor)
        results = transposed, stats, normed, activations, y
        call_mlp("block_forward", x, *parameters, sizes, *running, *drawn, *results)
        ctx.eps, ctx.dropout, ctx.sizes = statistics.eps, dropout, sizes
        ctx.save_for_backward(x, *parameters, stats, normed, activations)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, gamma, beta, weight1, bias1, weight2, bias2, stats, normed, activations = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True, for second derivatives
            tensors = x, gamma, beta, weight1, bias1, weight2, bias2
            outputs = _plain(*tensors, ctx.eps, ctx.dropout)
            return *differentiable_gradients(outputs, tensors, ctx.needs_input_grad[:7], dy), None, None
        factor = 1.0 if ctx.dropout is None else ctx.dropout.factor
        stored = stats, normed, activations, x.new_empty(BLOCK, len(bias1))
        gradients = [torch.empty_like(t) for t in (x, gamma, beta, weight1, bias1, weight2, bias2)]
        own = x, gamma, weight1, weight2
        call_mlp("block_backward", dy.contiguous(), *own, ctx.sizes, factor, *stored, *gradients)
        return *gradients, None, None


def _plain(x: Tensor, *values: Any) -> Tensor:
    gamma, beta, weight1, bias1, weight2, bias2, eps, dropout = values
    normed = F.batch_norm(x, None, None, gamma, beta, training=True, eps=eps)
    activations = F.relu(F.linear(normed, weight1, bias1))
    activations = activations if dropout is None else activations * dropout.mask()
    return x + F.linear(activations, weight2, bias2)
