"""The body of a residual block of a feed-forward network, with its addition as one step, in training on a CPU.

Its layers, one by one, compute the same up to rounding; see `residual_mlp`. Shapes: (B, width) -> (B, width).
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from skipway.kernels.kernel_eligibility import are_plain_cpu_tensors, has_hooks, kernels_apply
from skipway.kernels.mlp_library import PARTS, has_mlp_library
from skipway.kernels.residual_mlp import RunningStatistics, residual_mlp
from skipway.nn.dropout import Dropout

__all__ = ["MLPBlock", "fusable_mlp"]

_FEWEST_ROWS = 32  # from which the kernel is faster
_MOST_ROWS = 16_384  # sums of more rows would lose digits in float32
_LARGEST = 256  # width and hidden width up to which the kernel is faster than the products of torch
_LAYERS = [nn.BatchNorm1d, nn.Linear, nn.ReLU, nn.Linear]
_WITH_DROPOUT = [nn.BatchNorm1d, nn.Linear, nn.ReLU, Dropout, nn.Linear]


@dataclass(frozen=True)
class MLPBlock:
    """Layers of a body that the kernel computes.

    Attributes:
        norm: the batch norm.
        dropout: the dropout, or None.
        parameters: weight and bias of the norm and of both linear layers.
    """

    norm: nn.BatchNorm1d
    dropout: Dropout | None
    parameters: tuple[Tensor, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the sum of x and the body of x."""
        norm, dropout = self.norm, self.dropout
        assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        statistics = RunningStatistics(norm.running_mean, norm.running_var, norm.eps, norm.momentum)
        drawn = None if dropout is None else dropout.draw((len(x), len(self.parameters[2])))
        return residual_mlp(x, self.parameters, statistics, drawn)


def fusable_mlp(body: nn.Module, x: Any) -> MLPBlock | None:
    """Return the layers of the body of a residual block if the kernel can compute them and the addition, else None.

    Args:
        body: body of a block without a shortcut layer and without an activation after the addition.
        x: input of the block.
    """
    if torch.compiler.is_compiling() or not kernels_apply(x):
        return None
    layers: list[Any] = list(body._modules.values())
    if [type(layer) for layer in layers] not in (_LAYERS, _WITH_DROPOUT) or not isinstance(body, nn.Sequential):
        return None
    norm, linear1, _, *dropout, linear2 = layers
    # An attribute of a module takes half a microsecond.
    own = (layer._parameters for layer in (norm, linear1, linear2))
    parameters = tuple(chain.from_iterable((p.get("weight"), p.get("bias")) for p in own))
    if any(p is None for p in parameters):
        return None
    block = MLPBlock(norm, dropout[0] if dropout else None, parameters)
    return block if _fits(block, body, x) else None


def _fits(block: MLPBlock, body: nn.Module, x: Any) -> bool:
    norm, dropout = block.norm, block.dropout
    if not norm.training or torch.get_num_threads() > 1 or x.dim() != 2:
        return False
    if not _FEWEST_ROWS <= len(x) <= _MOST_ROWS or torch.is_autocast_enabled("cpu"):
        return False
    if norm.running_mean is None or norm.running_var is None or norm.momentum is None:
        return False
    tensors = (x, *block.parameters, norm.running_mean, norm.running_var)
    return (
        _have_sizes(block.parameters, x.shape[1])
        and (dropout is None or (dropout.training and dropout.is_fast(x)))
        and all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors)
        and are_plain_cpu_tensors(*tensors)
        and not any(map(has_hooks, (body, *body.children())))
        and getattr(body, "forward_impl", None) is None
        and has_mlp_library()  # last, because it may compile the library
    )


def _have_sizes(parameters: tuple[Tensor, ...], width: int) -> bool:
    """Return True if the sizes of all tensors agree with inputs of this width: the kernel does not check them."""
    hidden = len(parameters[2])
    return (
        width % PARTS == 0 == hidden % PARTS
        and max(width, hidden) <= _LARGEST
        and [p.shape for p in parameters] == [(width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,)]
    )
