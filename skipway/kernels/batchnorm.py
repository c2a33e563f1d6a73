"""Fast ways to train on a CPU: a table whose every entry stands beside the plain way, and gives what that gives.

Layers are told apart in `run`, which a Chain hands its layers to: a batch norm and what follows it, ReLU or a join,
go through memory once each way (`norm.c`). Where the condition of an entry does not hold (another device, type or
memory layout, hooks, evaluation, compiling and exporting, no C compiler) the plain way is taken, in silence, for the
result is the same up to rounding. SKIPWAY_KERNELS=off in the environment takes the plain way everywhere.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from skipway.errors import InputError
from skipway.kernels.build import library

__all__ = ["KERNELS", "Kernel", "joined", "run", "state", "wanted", "watched"]

_SUFFIX = {torch.bfloat16: "bf16", torch.float32: "float"}
_CHOSEN = (torch.bfloat16,)  # float32 gains nothing that could be measured, and needs a fifth more memory


@dataclass(frozen=True)
class Kernel:
    """One thing that can be computed in two ways: `fits` says of the same arguments whether the fast one may be."""

    plain: Callable[..., Any]
    fast: Callable[..., Any]
    fits: Callable[..., bool]

    def __call__(self, *args: Any) -> Any:
        """The fast way where it fits."""
        return self.fast(*args) if self.fits(*args) else self.plain(*args)


def run(layers: Sequence[nn.Module], x: Any) -> Any:
    """What `layers` make of x one after the other."""
    place, count = 0, len(layers)
    traced = torch.compiler.is_compiling()
    while place < count:
        layer = layers[place]
        place += 1
        if type(layer) is nn.Conv2d and not traced:
            x = KERNELS["conv"](layer, x)
            continue
        if type(layer) is not nn.BatchNorm2d or not layer.training or traced:
            x = layer(x)
            continue
        after = layers[place] if place < count else None
        if type(after) is nn.ReLU and not watched(after):
            place += 1
        else:
            after = None
        x = KERNELS["norm"](layer, x, None, after)
    return x


def joined(body: nn.Module, after: nn.Module | None) -> nn.BatchNorm2d | None:
    """The norm that ends a body, where it, an addition and `after` may be one kernel; else None."""
    if torch.compiler.is_compiling() or not isinstance(body, nn.Sequential) or len(body) < 2:
        return None
    last = body[-1]
    if type(last) is not nn.BatchNorm2d or not last.training or watched(body) or getattr(body, "forward_impl", None):
        return None
    return last if (after is None or (type(after) is nn.ReLU and not watched(after))) and wanted() else None


def state() -> str:
    """What a run's bits depend on: "on", "off", or "on, without a C compiler" where torch's own norm is used."""
    return "off" if not wanted() else "on" if _norm_library() is not None else "on, without a C compiler"


def wanted() -> bool:
    """Whether fast ways may be taken at all: SKIPWAY_KERNELS."""
    wish = os.environ.get("SKIPWAY_KERNELS", "on")
    if wish not in ("on", "off"):
        raise InputError(f"SKIPWAY_KERNELS is on or off, not {wish!r}; unset it, or set it to one of them")
    return wish == "on"


@cache
def _norm_library() -> ctypes.CDLL | None:
    found = library(Path(__file__).with_name("batchnorm.c"))
    if found is not None:
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        for suffix in _SUFFIX.values():
            forward, backward = getattr(found, f"forward_{suffix}"), getattr(found, f"backward_{suffix}")
            forward.argtypes = [pointer] * 2 + [number] * 2 + [pointer] * 2
            forward.argtypes += [ctypes.c_double, ctypes.c_int, number, pointer, pointer]
            backward.argtypes = [pointer] * 3 + [number] * 2 + [pointer] * 2 + [ctypes.c_int, number] + [pointer] * 4
            forward.restype = backward.restype = None
    return found


def watched(module: nn.Module) -> bool:
    """Whether somebody wants to see what goes in or out of this very module."""
    everywhere = nn.modules.module
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or everywhere._global_forward_hooks
        or everywhere._global_forward_pre_hooks
        or everywhere._global_backward_hooks
        or everywhere._global_backward_pre_hooks
    )


def _ordinary(*tensors: Tensor) -> bool:
    """Whether these are tensors with memory on the CPU that nothing but autograd follows."""
    return (
        all(type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" for t in tensors)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and _get_current_dispatch_mode() is None
        and torch._C._len_torch_function_stack() == 0
        and forward_ad._current_level < 0
    )


# Batch norm, an addition, ReLU: (norm, x, shortcut or None, a ReLU or None) -> tensor like x.


def _plain_norm(norm: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None, after: nn.Module | None) -> Tensor:
    y = norm(x)
    y = y if shortcut is None else y + shortcut
    return y if after is None else after(y)


def _norm_fits(norm: nn.BatchNorm2d, x: Any, shortcut: Tensor | None, after: nn.Module | None) -> bool:
    tensors = [t for t in (x, shortcut, norm.weight, norm.bias) if t is not None]
    return (
        norm.training
        and not watched(norm)
        and _ordinary(*tensors)
        and x.dim() == 4
        and x.dtype in _CHOSEN
        and x.shape[1] == norm.num_features
        and x.numel() > x.shape[1]
        and x.is_contiguous(memory_format=torch.channels_last)
        and (
            shortcut is None
            or (shortcut.shape == x.shape and shortcut.dtype == x.dtype and shortcut.stride() == x.stride())
        )
        and all(p is None or p.dtype == torch.float32 for p in (norm.weight, norm.bias))
        and wanted()
        and _norm_library() is not None  # last, for it may have to be compiled
    )


def _fast_norm(norm: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None, after: nn.Module | None) -> Tensor:
    y, mean, variance = _Norm.apply(x, shortcut, norm.weight, norm.bias, norm.eps, after is not None)
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        count = x.numel() // x.shape[1]
        norm.running_mean.mul_(1 - share).add_(mean, alpha=share)
        norm.running_var.mul_(1 - share).add_(variance, alpha=share * count / (count - 1))
    return y


class _Norm(torch.autograd.Function):
    """y, and the batch's mean and variance (biased), which have no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shortcut: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        stats = torch.empty(4, x.shape[1])  # mean, 1 / sqrt(variance + eps), weight times that, variance
        y = torch.empty_like(x)
        sizes = x.numel() // x.shape[1], x.shape[1]
        _call("forward", x, shortcut, *sizes, weight, bias, eps, relu, torch.get_num_threads(), y, stats)
        ctx.eps, ctx.relu, ctx.sizes = eps, relu, sizes
        # What ReLU lets through is worked out from x; where something was added to it, it is seen in the output.
        ctx.save_for_backward(x, shortcut, weight, bias, stats, y if relu and shortcut is not None else None)
        mean, variance = stats[0], stats[3]
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        dy = gradients[0]
        if dy is None:
            return (None,) * 6
        x, shortcut, weight, bias, stats, y = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants to differentiate once more
            return *_differentiable(ctx, (x, shortcut, weight, bias), dy), None, None
        dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dshortcut = torch.empty_like(x) if ctx.relu and shortcut is not None else None
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dweight, dbias = torch.empty(2, x.shape[1])
        threads = torch.get_num_threads()
        _call("backward", dy, x, y, *ctx.sizes, stats, bias, ctx.relu, threads, dshortcut, dx, dweight, dbias)
        if shortcut is not None and dshortcut is None:
            dshortcut = dy
        return dx, dshortcut, None if weight is None else dweight, None if bias is None else dbias, None, None


def _call(name: str, first: Tensor, *rest: Any) -> None:
    """The C function of that name for the type of `first`; tensors are handed over as where they are in memory."""
    function = getattr(_norm_library(), f"{name}_{_SUFFIX[first.dtype]}")
    function(*(value.data_ptr() if isinstance(value, Tensor) else value for value in (first, *rest)))


def _differentiable(ctx: Any, inputs: tuple[Tensor | None, ...], dy: Tensor) -> list[Tensor | None]:
    """The gradients of `inputs` (x, shortcut, weight, bias), in operations of torch that have gradients themselves."""
    x, shortcut, weight, bias = inputs
    y = torch.nn.functional.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps)  # type: ignore[arg-type]
    y = y if shortcut is None else y + shortcut
    y = torch.relu(y) if ctx.relu else y
    wanted = [t for t, needed in zip(inputs, ctx.needs_input_grad, strict=False) if needed and t is not None]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return [next(found) if needed else None for needed in ctx.needs_input_grad[:4]]


# A convolution whose weight gradient is one product of matrices: (layer, x) -> tensor.


# At most so many positions in the output, at least so many channels in the input.
_FEW = {"1x1": (256, 64), "strided": (64, 128), "other": (49, 512)}


def _plain_conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return layer(x)


def _conv_fits(layer: nn.Conv2d, x: Any) -> bool:
    """Only in bfloat16, and only where the product was found to be faster: few positions, many channels."""
    if not torch.is_grad_enabled() or not isinstance(x, Tensor) or x.dim() != 4 or not wanted() or watched(layer):
        return False
    kernel, stride = layer.kernel_size, layer.stride
    plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.bias is None and layer.padding_mode == "zeros"
    if not plain or isinstance(layer.padding, str) or not _ordinary(x, layer.weight):
        return False
    height, width = (_out(x.shape[2 + i], kernel[i], stride[i], int(layer.padding[i])) for i in (0, 1))
    most, least = _FEW["1x1" if kernel == (1, 1) else "strided" if stride != (1, 1) else "other"]
    small = height * width <= most and layer.in_channels >= least
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    half = autocast or x.dtype == layer.weight.dtype == torch.bfloat16
    return small and half and layer.weight.requires_grad and x.is_contiguous(memory_format=torch.channels_last)


def _out(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1


def _fast_conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return _Conv.apply(x.to(torch.bfloat16), layer.weight.to(torch.bfloat16), layer.stride, layer.padding)


class _Conv(torch.autograd.Function):
    """(B, C, H, W), (O, C, k, k) -> (B, O, H', W')."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.stride, ctx.padding = stride, padding
        ctx.save_for_backward(x, weight)
        return torch.nn.functional.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        again = torch.is_grad_enabled()  # somebody wants to differentiate once more
        of_x = ctx.needs_input_grad[0]
        dx = dweight = None
        if of_x or again:
            dx, dweight, _ = torch.ops.aten.convolution_backward(
                dy, x, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, (of_x, again, False)
            )
        if not again:
            rows = dy.permute(0, 2, 3, 1).reshape(-1, len(weight))
            columns = _columns(x, weight.shape[2:], ctx.stride, ctx.padding, dy.shape[2:])
            flat = (rows.T @ columns).view(len(weight), *weight.shape[2:], -1)
            dweight = flat.permute(0, 3, 1, 2)
        return dx, dweight, None, None


def _columns(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], out: Sequence[int]
) -> Tensor:
    """(B, C, H, W) in channels_last -> (B * H' * W', k * k * C): what each output position sees."""
    x = nn.functional.pad(x, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else x
    batch, down, right, one = (x.permute(0, 2, 3, 1)).stride()
    steps = (batch, down * stride[0], right * stride[1], down, right, one)
    return x.as_strided((len(x), *out, *kernel, x.shape[1]), steps).reshape(len(x) * out[0] * out[1], -1)


KERNELS = {
    "norm": Kernel(_plain_norm, _fast_norm, _norm_fits),
    "conv": Kernel(_plain_conv, _fast_conv, _conv_fits),
}
