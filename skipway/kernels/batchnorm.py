"""Fused batch norm, addition and ReLU for training on a CPU, with one pass over memory for the forward output.

Arguments of the kernel: (norm, x, shortcut or None, ReLU or None). Shapes: x, shortcut and output (B, C, H, W).
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skipway.kernels.build import call_c, has_openmp, library, missing_reason
from skipway.kernels.double_backward import differentiable_gradients
from skipway.kernels.kernel_eligibility import Kernel, are_plain_cpu_tensors, has_hooks, kernels_apply

__all__ = ["BATCH_NORM", "fusable_norm", "has_norm_library", "missing_norm_reason"]

_SOURCE = Path(__file__).with_name("batchnorm.c")
_SUFFIX = {torch.bfloat16: "bf16", torch.float32: "float"}
_DTYPES = (torch.bfloat16,)  # float32 is not measurably faster, and needs 20% more memory


def fusable_norm(body: nn.Module, x: Any, after: nn.Module | None) -> nn.BatchNorm2d | None:
    """Return the last layer of `body` if it is a batch norm that can be fused with an addition and `after`, else None.

    Args:
        body: body of a residual block.
        x: input of the block.
        after: activation after the addition, or None.
    """
    if torch.compiler.is_compiling() or not kernels_apply(x) or not isinstance(body, nn.Sequential) or len(body) < 2:
        return None
    last = body[-1]
    if type(last) is not nn.BatchNorm2d or not last.training or has_hooks(body) or getattr(body, "forward_impl", None):
        return None
    fits = after is None or (type(after) is nn.ReLU and not has_hooks(after))
    return last if fits else None


def has_norm_library() -> bool:
    """Return True if the C library can be loaded. The first call compiles it."""
    return _norm_library() is not None


def missing_norm_reason() -> str:
    """Return the error for which the C library is missing; "" if it is loaded, or if there is no C compiler."""
    return missing_reason(_SOURCE)


@cache
def _norm_library() -> ctypes.CDLL | None:
    functions = library(_SOURCE)
    if functions is not None:
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        for suffix in _SUFFIX.values():
            forward, backward = getattr(functions, f"forward_{suffix}"), getattr(functions, f"backward_{suffix}")
            forward.argtypes = [pointer] * 2 + [number] * 2 + [pointer] * 2
            forward.argtypes += [ctypes.c_double, ctypes.c_int, number, pointer, pointer]
            backward.argtypes = [pointer] * 3 + [number] * 2 + [pointer] * 2 + [ctypes.c_int, number] + [pointer] * 4
            forward.restype = backward.restype = ctypes.c_int
    return functions


def _plain_norm(norm: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None, after: nn.Module | None) -> Tensor:
    y = norm(x)
    y = y if shortcut is None else y + shortcut
    return y if after is None else after(y)


def _norm_fits(norm: nn.BatchNorm2d, x: Any, shortcut: Tensor | None, after: nn.Module | None) -> bool:
    if not kernels_apply(x) or not isinstance(x, Tensor) or x.dtype not in _DTYPES:
        return False
    own = norm._parameters  # an attribute of a module takes half a microsecond
    if "weight" not in own or "bias" not in own:
        return False
    tensors = [t for t in (own["weight"], own["bias"]) if t is not None]
    return (
        norm.training
        and not has_hooks(norm)
        and are_plain_cpu_tensors(x, *tensors, *(() if shortcut is None else (shortcut,)))
        and x.dim() == 4
        and x.shape[1] == norm.num_features
        and x.numel() > x.shape[1]
        and x.is_contiguous(memory_format=torch.channels_last)
        and (
            shortcut is None
            or (shortcut.shape == x.shape and shortcut.dtype == x.dtype and shortcut.stride() == x.stride())
        )
        and all(t.dtype == torch.float32 for t in tensors)
        and (has_openmp() or torch.get_num_threads() == 1)  # torch uses all threads
        and has_norm_library()  # last, because it may compile the library
    )


def _fast_norm(norm: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None, after: nn.Module | None) -> Tensor:
    y, mean, variance = _Norm.apply(x, shortcut, norm.weight, norm.bias, norm.eps, after is not None)
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        count = x.numel() // x.shape[1]
        norm.running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
        norm.running_var.mul_(1 - momentum).add_(variance, alpha=momentum * count / (count - 1))
    return y


class _Norm(torch.autograd.Function):
    """Autograd function of the kernel. It returns y, and the mean and biased variance, which have no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shortcut: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        stats = torch.empty(4, x.shape[1])  # mean, 1 / sqrt(variance + eps), weight / sqrt(variance + eps), variance
        y = torch.empty_like(x)
        sizes = x.numel() // x.shape[1], x.shape[1]
        _call("forward", x, shortcut, *sizes, weight, bias, eps, relu, torch.get_num_threads(), y, stats)
        ctx.eps, ctx.relu, ctx.sizes = eps, relu, sizes
        # The mask of the ReLU is computed from x, or from the output if there is a shortcut.
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
        if torch.is_grad_enabled():  # create_graph=True, for second derivatives
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
    """Call the C function `name` for the dtype of `first`, with the addresses of tensors."""
    function = getattr(_norm_library(), f"{name}_{_SUFFIX[first.dtype]}")
    if not call_c(function, first, *rest):
        raise MemoryError("cannot normalize a batch: not enough memory for the sums of the channels")


def _differentiable(ctx: Any, inputs: tuple[Tensor | None, ...], dy: Tensor) -> list[Tensor | None]:
    """Compute the gradients of `inputs` (x, shortcut, weight, bias) with differentiable operations."""
    x, shortcut, weight, bias = inputs
    y = torch.nn.functional.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps)  # type: ignore[arg-type]
    y = y if shortcut is None else y + shortcut
    y = torch.relu(y) if ctx.relu else y
    return differentiable_gradients(y, inputs, ctx.needs_input_grad[:4], dy)


BATCH_NORM = Kernel(_plain_norm, _fast_norm, _norm_fits)
