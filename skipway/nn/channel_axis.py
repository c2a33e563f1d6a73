"""Channel axis: which axis of a tensor holds the channels, and how it is inferred from a layer.

Images and signals are (B, C, *), with the channels on axis 1. Sequences are (B, T, C), with the channels on the last
axis. Feature vectors (B, C) are both.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import activation, batchnorm, conv, dropout, instancenorm, padding, pooling

from skipway.errors import InputError, ShapeError
from skipway.utils.tracing import is_symbolic

__all__ = ["channel_axis_of", "check_dim", "resolve_dim"]

_ELEMENTWISE = (
    *(getattr(activation, name) for name in activation.__all__ if name != "MultiheadAttention"),
    dropout._DropoutNd,
    nn.Identity,
)
_ELEMENTWISE_FUNCTIONS = (torch.relu, torch.tanh, torch.sigmoid, F.relu, F.gelu, F.silu, F.leaky_relu, F.elu)
_FIRST = (
    conv._ConvNd,
    batchnorm._BatchNorm,
    instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.Upsample,
    padding._ConstantPadNd,
    *(getattr(pooling, name) for name in pooling.__all__),
)
_LAST = (
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
)


def channel_axis_of(layer: nn.Module) -> int | None:
    """Return the axis on which the output of `layer` has its channels: 1, -1, or None if unknown.

    The last layer with channels decides; activations and dropout after it do not count. A module of another kind may
    have an attribute `channel_axis`.

    >>> channel_axis_of(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8), nn.GELU()))
    -1
    """
    return _search(layer)[0]


def _search(layer: nn.Module) -> tuple[int | None, bool]:
    """Return the axis, and True if the layers before `layer` may decide instead."""
    axis = getattr(layer, "channel_axis", None)
    if axis is not None:
        return axis, False
    if isinstance(layer, nn.Sequential):
        for child in reversed(list(layer)):
            axis, is_open = _search(child)
            if not is_open:
                return axis, False
        return None, True
    if isinstance(layer, _ELEMENTWISE) or getattr(layer, "function", None) in _ELEMENTWISE_FUNCTIONS:
        return None, True
    if isinstance(layer, _FIRST):
        return 1, False
    # A subclass may move the axes, so that only the norms of torch itself are known.
    is_vector_norm = type(layer) in (nn.LayerNorm, nn.RMSNorm) and len(cast(Any, layer).normalized_shape) == 1
    return (-1, False) if isinstance(layer, _LAST) or is_vector_norm else (None, False)


def check_dim(owner: str, dim: Any) -> int | None:
    """Return `dim`, the channel axis of a layer or None.

    Raises:
        InputError: it is no integer, or the batch axis.
    """
    if dim is not None and (not isinstance(dim, int) or isinstance(dim, bool) or dim == 0):
        raise InputError(
            f"{owner}: expected dim to be the axis of the channels, 1 for (B, C, *) or -1 for (B, T, C), got {dim!r}. "
            "Axis 0 is the batch."
        )
    return dim


def resolve_dim(dim: int | None, layers: Iterable[nn.Module], x: Tensor) -> int:
    """Return the axis of the channels of `x`: `dim`, or that of the layers that computed it.

    Args:
        dim: explicit axis, or None.
        layers: layers whose outputs have the axes of `x`.
        x: tensor with at least 2 axes.

    Raises:
        ShapeError: `x` has no such axis, or 3 axes that could be (B, C, L) and (B, T, C) alike.
    """
    has_shape = not is_symbolic(x)
    if dim is not None:
        if has_shape and not -x.dim() < dim < x.dim():
            raise ShapeError(
                f"dim={dim}: expected a tensor with that axis next to the batch axis, got {tuple(x.shape)}. Change dim."
            )
        return dim
    if has_shape and x.dim() <= 2:
        return 1
    axes = {channel_axis_of(layer) for layer in layers} - {None}  # no walrus, which torch.compile cannot trace
    if len(axes) == 1:
        return axes.pop() or 1
    if has_shape and (axes or x.dim() == 3):
        shape = tuple(x.shape)
        raise ShapeError(
            f"ambiguous channel axis of {shape}: it may be (B, C, L) with {shape[1]} channels, or (B, T, C) with "
            f"{shape[-1]}. Set dim=1 or dim=-1 on this layer, or on the Chain around it."
        )
    return 1
