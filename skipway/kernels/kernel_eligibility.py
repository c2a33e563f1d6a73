"""Kernel: one computation in a plain and a fast version, and the conditions that all fast versions share.

If the condition of a kernel does not hold (another device, dtype or memory layout, hooks, evaluation, tracing, no C
compiler), the plain version runs, silently: both give the same result up to rounding. SKIPWAY_KERNELS=off in the
environment selects the plain version everywhere.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from skipway.errors import InputError

__all__ = ["Kernel", "are_plain_cpu_tensors", "has_hooks", "is_cpu_tensor", "kernels_enabled"]

_TENSORS = (Tensor, nn.Parameter)


@dataclass(frozen=True)
class Kernel:
    """One computation in two versions; `fits` takes the same arguments and returns whether `fast` can run."""

    plain: Callable[..., Any]
    fast: Callable[..., Any]
    fits: Callable[..., bool]

    def __call__(self, *args: Any) -> Any:
        """Run the fast version if it fits, else the plain one."""
        return self.fast(*args) if self.fits(*args) else self.plain(*args)


def kernels_enabled() -> bool:
    """Return whether fast versions may run at all, as SKIPWAY_KERNELS sets it."""
    setting = os.environ.get("SKIPWAY_KERNELS", "on")
    if setting not in ("on", "off"):
        raise InputError(f"SKIPWAY_KERNELS is on or off, not {setting!r}; unset it, or set it to one of them")
    return setting == "on"


def has_hooks(module: nn.Module) -> bool:
    """Return whether a hook sees what goes into or comes out of `module` itself."""
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


def is_cpu_tensor(x: Any) -> bool:
    """Return whether `x` is a plain tensor on the CPU: the quick check that spares other devices all further ones."""
    return type(x) in _TENSORS and x.is_cpu


def are_plain_cpu_tensors(*tensors: Tensor) -> bool:
    """Return whether all tensors have memory on the CPU and nothing but autograd follows them."""
    return (
        all(map(is_cpu_tensor, tensors))
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and _get_current_dispatch_mode() is None
        and torch._C._len_torch_function_stack() == 0
        and forward_ad._current_level < 0
    )
