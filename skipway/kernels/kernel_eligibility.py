"""Kernel: a computation with a plain and a fast version, and the conditions that all fast versions share.

The plain version runs, without a warning, if the conditions do not hold: another device, dtype or memory layout, hooks,
evaluation, tracing, no C compiler. Both return the same result up to rounding. The environment variable
SKIPWAY_KERNELS=off disables all fast versions.

Conditions that all layers share are checked once per call of a network (see `NetworkCall`), so that a network on a GPU
runs its layers without a check.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from skipway.errors import InputError

__all__ = [
    *("CURRENT_CALL", "Kernel", "NetworkCall", "are_plain_cpu_tensors", "has_hooks", "is_cpu_tensor", "kernels_apply"),
    "kernels_enabled",
]

_TENSORS = (Tensor, nn.Parameter)


@dataclass(frozen=True)
class Kernel:
    """A computation in two versions, which take the same arguments.

    Attributes:
        plain: plain version in torch.
        fast: fast version.
        fits: returns True if the fast version supports the arguments.

    >>> double = Kernel(plain=lambda x: x + x, fast=lambda x: 2 * x, fits=lambda x: x > 0)
    >>> double(3)
    6
    """

    plain: Callable[..., Any]
    fast: Callable[..., Any]
    fits: Callable[..., bool]

    def __call__(self, *args: Any) -> Any:
        """Run the fast version if it supports the arguments, else the plain one."""
        return self.fast(*args) if self.fits(*args) else self.plain(*args)


def kernels_enabled() -> bool:
    """Return True unless the environment variable SKIPWAY_KERNELS is "off".

    Raises:
        InputError: the variable has another value than "on" or "off".
    """
    setting = os.environ.get("SKIPWAY_KERNELS", "on")
    if setting not in ("on", "off"):
        raise InputError(f"cannot select kernels: expected SKIPWAY_KERNELS on or off, got {setting!r}. Unset it.")
    return setting == "on"


class NetworkCall(threading.local):
    """Decision for the network that this thread is running.

    Attributes:
        kernels: True if its layers may use kernels, None if no network is running.
    """

    kernels: bool | None = None


CURRENT_CALL = NetworkCall()


def kernels_apply(x: Any) -> bool:
    """Return the decision for the network that is running, else decide for its input `x`."""
    if CURRENT_CALL.kernels is not None:
        return CURRENT_CALL.kernels
    return not torch.compiler.is_compiling() and is_cpu_tensor(x) and kernels_enabled()


def has_hooks(module: nn.Module) -> bool:
    """Return True if `module` itself has forward or backward hooks, or if there are global ones."""
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
    """Return True if `x` is a plain CPU tensor."""
    return type(x) in _TENSORS and x.is_cpu


def are_plain_cpu_tensors(*tensors: Tensor) -> bool:
    """Return True if all tensors are plain CPU tensors, and no mode, transform or tracer but autograd is active."""
    return (
        all(map(is_cpu_tensor, tensors))
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and forward_ad._current_level < 0
    )
