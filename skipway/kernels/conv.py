"""Convolution with a weight gradient computed as a matrix product, for training on a CPU in bfloat16.

Arguments of the kernel: (layer, x). Shapes: (B, C, H, W) -> (B, C', H', W').
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skipway.kernels.kernel_eligibility import Kernel, are_plain_cpu_tensors, has_hooks, kernels_apply

__all__ = ["CONV"]


def _plain_conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return layer(x)


def _conv_fits(layer: nn.Conv2d, x: Any) -> bool:
    """Return True in bfloat16 if the matrix product is faster, that is for few positions and many channels."""
    if not kernels_apply(x) or not isinstance(x, Tensor) or x.dim() != 4 or not torch.is_grad_enabled():
        return False
    weight = layer._parameters.get("weight")
    if weight is None or not _is_bf16(weight, x):
        return False
    plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.bias is None and layer.padding_mode == "zeros"
    if not plain or isinstance(layer.padding, str):
        return False
    max_positions, min_channels = _limits(layer)
    return (
        layer.in_channels >= min_channels
        and math.prod(_output_size(layer, x)) <= max_positions
        and weight.requires_grad
        and not has_hooks(layer)
        and are_plain_cpu_tensors(x, weight)  # before the layout, which a tensor within vmap does not have
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _is_bf16(weight: Tensor, x: Tensor) -> bool:
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
        return True
    return x.dtype == weight.dtype == torch.bfloat16


def _limits(layer: nn.Conv2d) -> tuple[int, int]:
    """Return the measured limits of a speedup: the maximum output positions and the minimum input channels."""
    if layer.kernel_size == (1, 1):
        return 256, 64
    return (49, 512) if layer.stride == (1, 1) else (64, 128)


def _output_size(layer: nn.Conv2d, x: Tensor) -> tuple[int, int]:
    (height, width), kernel, stride, padding = x.shape[2:], layer.kernel_size, layer.stride, layer.padding
    rows = (height + 2 * int(padding[0]) - kernel[0]) // stride[0] + 1
    return rows, (width + 2 * int(padding[1]) - kernel[1]) // stride[1] + 1


def _fast_conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return _Conv.apply(x.to(torch.bfloat16), layer.weight.to(torch.bfloat16), layer.stride, layer.padding)


class _Conv(torch.autograd.Function):
    """Autograd function of the kernel: (B, C, H, W), (O, C, k, k) -> (B, O, H', W')."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.stride, ctx.padding = stride, padding
        ctx.save_for_backward(x, weight)
        return torch.nn.functional.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        differentiable = torch.is_grad_enabled()  # create_graph=True, for second derivatives
        needs_dx = ctx.needs_input_grad[0]
        dx = dweight = None
        if needs_dx or differentiable:
            needed = needs_dx, differentiable, False
            dx, dweight, _ = torch.ops.aten.convolution_backward(
                dy, x, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, needed
            )
        if not differentiable:
            rows = dy.permute(0, 2, 3, 1).reshape(-1, len(weight))
            columns = _columns(x, weight.shape[2:], ctx.stride, ctx.padding, dy.shape[2:])
            flat = (rows.T @ columns).view(len(weight), *weight.shape[2:], -1)
            dweight = flat.permute(0, 3, 1, 2)
        return dx, dweight, None, None


def _columns(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], out: Sequence[int]
) -> Tensor:
    """Unfold x (B, C, H, W) in channels_last to (B * H' * W', k * k * C): the inputs of each output position."""
    x = nn.functional.pad(x, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else x
    batch, down, right, channel = x.permute(0, 2, 3, 1).stride()
    strides = (batch, down * stride[0], right * stride[1], down, right, channel)
    return x.as_strided((len(x), *out, *kernel, x.shape[1]), strides).reshape(len(x) * out[0] * out[1], -1)


CONV = Kernel(_plain_conv, _fast_conv, _conv_fits)
