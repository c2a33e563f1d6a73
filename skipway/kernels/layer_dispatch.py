"""Sequential execution of layers, and the choice of kernels.

`run_layers` is the only loop over layers. Its step runs the layer at an index, possibly fused with the following
layers, and returns the output and the index of the next layer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from skipway.kernels.batchnorm import BATCH_NORM, has_norm_library, missing_norm_reason
from skipway.kernels.conv import CONV
from skipway.kernels.kernel_eligibility import CURRENT_CALL, has_hooks, kernels_apply, kernels_enabled

__all__ = ["FUSED_STEPS", "call_layer", "call_with_kernels", "kernel_status", "run_layers"]

Step = Callable[[Sequence[nn.Module], int, Any], tuple[Any, int]]
FUSED_STEPS: dict[type[nn.Module], Step] = {}  # steps that fuse a layer of such a class with the following layers


def run_layers(layers: Sequence[nn.Module], x: Any, step: Step | None = None) -> Any:
    """Run layers in sequence.

    The outermost call decides for all calls within it if layers may use kernels: they may not on a GPU, for example.

    Args:
        layers: layers in order.
        x: input of the first layer.
        step: runs the layer at an index; default `call_with_kernels`, or `call_layer` if kernels do not apply.

    Returns:
        The output of the last layer, or `x` if there are no layers.

    >>> run_layers([nn.Flatten(), nn.Identity()], torch.ones(2, 3, 4)).shape
    torch.Size([2, 12])
    """
    if step is not None or torch.compiler.is_compiling():
        return _run(layers, x, step or call_layer)
    if CURRENT_CALL.kernels is not None or not isinstance(x, torch.Tensor):
        return _run(layers, x, call_layer if CURRENT_CALL.kernels is False else call_with_kernels)
    CURRENT_CALL.kernels = kernels_apply(x)
    try:
        return _run(layers, x, call_with_kernels if CURRENT_CALL.kernels else call_layer)
    finally:
        CURRENT_CALL.kernels = None


def _run(layers: Sequence[nn.Module], x: Any, step: Step) -> Any:
    index, count = 0, len(layers)
    while index < count:
        x, index = step(layers, index, x)
    return x


def call_layer(layers: Sequence[nn.Module], index: int, x: Any) -> tuple[Any, int]:
    """Call the layer at `index` without kernels. See `run_layers`."""
    return layers[index](x), index + 1


def call_with_kernels(layers: Sequence[nn.Module], index: int, x: Any) -> tuple[Any, int]:
    """Run the layer at `index` with a kernel if there is one for it, fused with the following layers that it needs."""
    layer = layers[index]
    if type(layer) in FUSED_STEPS:
        return FUSED_STEPS[type(layer)](layers, index, x)
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
    """Return "on", "off", or "on, without C code" if the C library is missing.

    Args:
        with_reason: append the reason for a missing library. The results of a run do not depend on it.
    """
    if not kernels_enabled():
        return "off"
    if has_norm_library():
        return "on"
    if not with_reason:
        return "on, without C code"
    reason = missing_norm_reason()
    return f"on, without C code: {reason}" if reason else "on, without a C compiler"
