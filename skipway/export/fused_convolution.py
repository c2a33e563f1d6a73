"""Convolution of a fused network, with batch norm, activation and residual addition in one operation.

Shapes: (B, C, H, W) -> (B, C', H', W').
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.export.quantization import Observer, QuantizationParams, QuantizedTensor, quantize
from skipway.nn.blocks import SameConv2d, same_padding
from skipway.utils.tracing import is_recorded

__all__ = ["ACTIVATIONS", "Convolution", "dequantize", "values_of"]

# The oneDNN name and bounds of each activation that can follow a convolution.
ACTIVATIONS: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
    "silu": ("swish", []),
}
_ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": lambda y: y.relu_(),
    "relu6": lambda y: F.hardtanh_(y, 0, 6),  # vmap has no rule for clamp_
    "silu": F.silu,
}


class Convolution(nn.Module):
    """Fused convolution `activation(conv2d(x) + shortcut)` in float32, bfloat16 or int8.

    The weights stay in float32 and are packed for the processor on first use. The padding of a `SameConv2d` depends
    on the input size. Its extra zero at the end is realized as a zero in front of the kernel, which saves a copy.

    Args:
        conv: Convolution to replace.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        bias = torch.zeros(conv.out_channels, device=conv.weight.device) if conv.bias is None else conv.bias
        self.weight = nn.Parameter(conv.weight.detach().float(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
        assert not isinstance(conv.padding, str)
        self.kernel_size = conv.kernel_size
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.groups, self.activation, self.dtype = conv.groups, "none", torch.float32
        self.is_same = isinstance(conv, SameConv2d)
        self.quantizes_output = False
        # Input and output observers during calibration, and input and output parameters in int8.
        self.observers: tuple[Observer, Observer] | None = None
        self.quantization: tuple[QuantizationParams, QuantizationParams] | None = None
        self._packed: tuple[Any, list[Tensor], tuple[Tensor, Tensor]] | None = None

    def forward(
        self, x: Tensor | QuantizedTensor, shortcut: Tensor | QuantizedTensor | None = None, reuse: bool = False
    ) -> Tensor | QuantizedTensor:
        """Map x (B, C, H, W), and an optional shortcut (B, C', H', W'), to (B, C', H', W').

        Args:
            x: Input values or codes.
            shortcut: Values or codes that are added before the activation.
            reuse: Allow the output to overwrite the memory of `shortcut`.
        """
        recorded = is_recorded(x)
        if self.quantization is not None:
            if recorded:
                raise InputError(
                    "network fused in int8: expected a plain call, got one inside torch.compile, torch.export, "
                    'torch.jit, torch.fx or torch.func. Fuse it in "fp32" for these.'
                )
            if type(values_of(x)) is Tensor and not values_of(x).is_meta:
                return self._int8_forward(x, shortcut, reuse)
        x, shortcut = self._cast(x), None if shortcut is None else self._cast(shortcut)
        if recorded:
            return self._recorded_forward(x, shortcut)
        y = self._onednn_forward(x, shortcut, reuse) if _has_onednn(x) else self._torch_forward(x, shortcut)
        if self.observers is not None:
            self.observers[0].observe(x)
            self.observers[1].observe(y)
        return y

    def _cast(self, x: Tensor | QuantizedTensor) -> Tensor:
        values: Tensor = dequantize(x)
        return values.to(self.dtype)

    def with_activation(self, name: str) -> "Convolution":
        """Return a copy that shares the weights and ends with this activation, a key of `ACTIVATIONS`."""
        twin = copy.copy(self)
        twin.activation = name
        return twin

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the output shape (*, C', H', W') for an input shape (*, C, H, W)."""
        if self.is_same:
            return *shape[:-3], len(self.weight), *(-(-n // s) for n, s in zip(shape[-2:], self.stride, strict=True))
        kernel = self.weight.shape[2:]
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilation, strict=True)]
        sizes = zip(shape[-2:], reach, self.padding, self.stride, strict=True)
        return *shape[:-3], len(self.weight), *((size + 2 * p - r) // s + 1 for size, r, p, s in sizes)

    def start_calibration(self, batches: int) -> None:
        """Start to observe inputs and outputs, for this number of batches."""
        self.observers = Observer(batches), Observer(batches)

    def finish_calibration(self) -> None:
        """Switch to int8 if inputs were observed."""
        if self.observers is not None and self.observers[0].sample:
            self.quantization = self.observers[0].choose_params(), self.observers[1].choose_params()
        self.observers = None

    def extra_repr(self) -> str:
        """Return channels, kernel size, precision and activation."""
        out_channels, in_channels, *kernel = self.weight.shape
        kind = "int8" if self.quantization is not None else str(self.dtype).removeprefix("torch.")
        sizes = f"{in_channels * self.groups}, {out_channels}, {'x'.join(map(str, kernel))}"
        return ", ".join([sizes, kind, *([] if self.activation == "none" else [self.activation])])

    def __getstate__(self) -> dict[str, Any]:  # packed weights cannot be copied
        return self.__dict__ | {"_packed": None}

    def _apply(self, fn: Any, recurse: bool = True) -> "Convolution":
        self._packed = None  # packed weights do not move with the parameters
        return super()._apply(fn, recurse)

    def _pack(self, kind: str, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Return the packed weights from the cache, or call `make` if the weights have changed."""
        tensors = self.weight, self.bias
        if any(type(t) not in (Tensor, nn.Parameter) or t.is_meta or t.is_inference() for t in tensors):
            return make()  # their changes cannot be detected, or they hold no values
        state = kind, *((id(t), t._version) for t in tensors)
        if self._packed is None or self._packed[0] != state:
            self._packed = state, make(), tensors  # the references keep the ids unique
        return self._packed[1]

    def _place(self, x: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the zeros on both sides of each axis of x, and the zeros in front of the kernel."""
        if not self.is_same:
            return (int(self.padding[0]), int(self.padding[1])), (0, 0)
        left, right, top, bottom = same_padding(x, self.kernel_size, self.stride)
        return (bottom, right), (bottom - top, right - left)

    def _kernel(self, front: tuple[int, int]) -> Tensor:
        return F.pad(self.weight, (front[1], 0, front[0], 0)) if any(front) else self.weight

    def _recorded_forward(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        """Compute with operations that every tracer records, for inputs of any size, and without packed weights."""
        padding = self.padding
        if self.is_same:
            x, padding = F.pad(x, same_padding(x, self.kernel_size, self.stride)), (0, 0)
        weight = self.weight.to(self.dtype, memory_format=torch.channels_last)
        y = F.conv2d(x, weight, self.bias.to(self.dtype), self.stride, padding, self.dilation, self.groups)
        return _ACTIVATE[self.activation](y if shortcut is None else y + shortcut)

    def _torch_forward(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        padding, front = self._place(x)

        def cast() -> list[Tensor]:
            return [self._kernel(front).to(x.dtype, memory_format=torch.channels_last), self.bias.to(x.dtype)]

        weight, bias = self._pack(f"plain {front}", cast)
        y = F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)
        y = y if shortcut is None else y + shortcut
        return _ACTIVATE[self.activation](y)

    def _onednn_forward(self, x: Tensor, shortcut: Tensor | None, reuse: bool) -> Tensor:
        padding, front = self._place(x)
        geometry = padding, self.stride, self.dilation, self.groups

        def reordered() -> list[Tensor]:
            weight = self._kernel(front).to(x.dtype, memory_format=torch.channels_last)
            packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(x.shape))
            return [packed, self.bias.to(x.dtype)]

        convolution = *self._pack(f"onednn {front}", reordered), *geometry
        name, bounds = ACTIVATIONS[self.activation]
        if shortcut is None:
            return torch.ops.mkldnn._convolution_pointwise(x, *convolution, name, bounds, "")
        join: tuple[Any, ...] = ("add", 1.0, None if name == "none" else name, bounds, "")
        if reuse and shortcut.is_contiguous(memory_format=torch.channels_last):
            return torch.ops.mkldnn._convolution_pointwise_.binary(shortcut, x, *convolution, *join)
        return torch.ops.mkldnn._convolution_pointwise.binary(x, shortcut, *convolution, *join)

    def _int8_forward(
        self, x: Tensor | QuantizedTensor, shortcut: Tensor | QuantizedTensor | None, reuse: bool
    ) -> Tensor | QuantizedTensor:
        assert self.quantization is not None
        _need_images_on_a_cpu(values_of(x))
        x = x if isinstance(x, QuantizedTensor) else quantize(x, self.quantization[0])
        padding, front = self._place(values_of(x))
        weight, scales, zeros = self._pack(f"int8 {front}", partial(self._int8_weights, x))
        ops, (name, bounds) = torch.ops.onednn, ACTIVATIONS[self.activation]
        inputs = x.values, x.scale, x.zero_point, weight, scales, zeros
        geometry = self.bias, self.stride, padding, self.dilation, self.groups
        # A float shortcut has another scale than the codes, so the output is quantized after the addition.
        fused = self.quantizes_output and not isinstance(shortcut, Tensor)
        params, dtype = (self.quantization[1], torch.uint8) if fused else (QuantizationParams(1.0, 0), self.dtype)
        if shortcut is None:
            y = ops.qconv2d_pointwise(*inputs, *geometry, *params, dtype, name, bounds, "")
        else:
            other = shortcut if isinstance(shortcut, QuantizedTensor) else QuantizedTensor(shortcut, 1.0, 0)
            values = other.values.to(dtype, copy=not reuse, memory_format=torch.channels_last)  # becomes the output
            operands = *inputs, values, *geometry, *params, dtype, other.scale, other.zero_point
            y = ops.qconv2d_pointwise.binary(*operands, "sum", 1.0, name, bounds, "")
        if self.quantizes_output:
            return QuantizedTensor(y, *params) if fused else quantize(y, self.quantization[1])
        return y

    def _int8_weights(self, x: QuantizedTensor) -> list[Tensor]:
        """Return the packed int8 weights, the scale of each output channel, and zero points of 0.

        Weights are between -64 and 64. Processors without VNNI add pairs of products in 16 bits, and 2 * 255 * 127
        would overflow.
        """
        padding, front = self._place(x.values)
        weight = self._kernel(front)
        scales = weight.abs().amax((1, 2, 3)).clamp_(min=1e-12) / 64
        whole = (weight / scales.view(-1, 1, 1, 1)).round_().to(torch.int8)
        geometry = list(self.stride), list(padding), list(self.dilation), self.groups
        packed = torch.ops.onednn.qconv_prepack(whole, scales, x.scale, x.zero_point, *geometry, list(x.values.shape))
        return [packed, scales, torch.zeros(len(whole), dtype=torch.int64)]


def dequantize(x: Any) -> Any:
    """Return the float32 values of a QuantizedTensor; return any other object unchanged."""
    return x.dequantize() if isinstance(x, QuantizedTensor) else x


def values_of(x: Tensor | QuantizedTensor) -> Tensor:
    """Return the codes of a QuantizedTensor; return a tensor unchanged."""
    return x.values if isinstance(x, QuantizedTensor) else x


def _need_images_on_a_cpu(x: Tensor) -> None:
    if x.device.type != "cpu" or x.dim() != 4:
        raise InputError(
            f"network fused in int8: expected (B, C, H, W) on a CPU, got {tuple(x.shape)} on {x.device.type}. "
            'Fuse it in "bf16" for other devices and shapes.'
        )


def _has_onednn(x: Tensor) -> bool:
    """Return True if oneDNN's convolution can run on x."""
    available = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    plain = type(x) is Tensor and x.device.type == "cpu" and x.dim() == 4 and x.numel() > 0
    if not available or not plain or torch.is_grad_enabled():
        return False
    return x.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
