"""Running layers one after the other, and which kernel runs a layer.

`run_layers` is the one loop over layers. Its step runs the layer at an index, possibly with the layers after it, and
returns the output with the index of the next layer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from skipway.kernels.batchnorm import BATCH_NORM, has_norm_library, missing_norm_reason
from skipway.kernels.conv import CONV
from skipway.kernels.kernel_eligibility import has_hooks, kernels_enabled

__all__ = ["call_layer", "call_with_kernels", "kernel_status", "run_layers"]

Step = Callable[[Sequence[nn.Module], int, Any], tuple[Any, int]]


def run_layers(layers: Sequence[nn.Module], x: Any, step: Step | None = None) -> Any:
    """Run `layers` one after the other.

    Args:
        layers: the layers, in order.
        x: the input of the first one.
        step: runs the layer at an index; by default with kernels, or without them in code that is being traced.

    Returns:
        The output of the last layer, or `x` if there is none.
    """
    if step is None:
        step = call_layer if torch.compiler.is_compiling() else call_with_kernels
    index, count = 0, len(layers)
    while index < count:
        x, index = step(layers, index, x)
    return x


def call_layer(layers: Sequence[nn.Module], index: int, x: Any) -> tuple[Any, int]:
    """Call the layer at `index` as it is."""
    return layers[index](x), index + 1


def call_with_kernels(layers: Sequence[nn.Module], index: int, x: Any) -> tuple[Any, int]:
    """Run the layer at `index` by its kernel: a convolution, or a batch norm with the ReLU that follows it."""
    layer = layers[index]
    index += 1
    if type(layer) is nn.Conv2d:
        return CONV(layer, x), index
    if type(layer) is not nn.BatchNorm2d or not layer.training:
        return layer(x), index
    after = layers[index] if index < len(layers) else None
    if type(after) is nn.ReLU and not has_hooks(after):
        return BATCH_NORM(layer, x, None, after), index + 1
    return BATCH_NORM(layer, x, None, None), index


def kernel_status(*, with_reason: bool = True) -> str:
    """Return what the numbers of a run depend on: "on", "off", or why torch's own norm is used although they are on.

    Args:
        with_reason: name the reason, which the numbers do not depend on.
    """
    if not kernels_enabled():
        return "off"
    if has_norm_library():
        return "on"
    if not with_reason:
        return "on, without C code"
    reason = missing_norm_reason()
    return f"on, without C code: {reason}" if reason else "on, without a C compiler"
