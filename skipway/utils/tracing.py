"""Tracers and transforms of torch: which of them are active around a call, and values that have no shape.

Layers skip the checks of a traced value, because a graph serves inputs of any size. A function whose operations depend
on the number of axes is decorated with `torch.fx.wrap`, so that it runs when the graph runs.
"""

from typing import Any

import torch
from torch import fx
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

__all__ = ["is_forward_transformed", "is_recorded", "is_symbolic", "is_traced", "is_transformed"]


def is_symbolic(x: Any) -> bool:
    """Return True if `x` is a value of torch.fx, which has no shape, device or dtype.

    >>> is_symbolic(torch.ones(1))
    False
    """
    return isinstance(x, fx.Proxy)


def is_traced(x: Any) -> bool:
    """Return True if `x` is recorded by torch.fx or torch.jit.trace, so that the checks of this call do not count.

    >>> is_traced(1.0)
    False
    """
    return is_symbolic(x) or torch.jit.is_tracing()


def is_transformed() -> bool:
    """Return True inside a transform of torch.func, such as vmap or grad, where tensors have no memory format.

    >>> is_transformed(), torch.vmap(lambda x: x + is_transformed())(torch.ones(2))
    (False, tensor([2., 2.]))
    """
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def is_forward_transformed() -> bool:
    """Return True inside torch.vmap or a forward-mode derivative, which transform the forward pass itself.

    Operations may not depend on values there, and need derivatives other than those of the backward pass. Transforms
    around or inside these, such as torch.func.grad, do not change that.

    >>> torch.func.grad(lambda x: x * (1 + is_forward_transformed()))(torch.tensor(1.0))
    tensor(1.)
    """
    if torch.compiler.is_compiling():
        return False
    if forward_ad._current_level >= 0:
        return True
    return is_transformed() and any(level.key() != TransformType.Grad for level in get_interpreter_stack() or ())


def is_recorded(x: Any) -> bool:
    """Return True if a compiler or a tracer records what happens to `x`, or if a transform such as vmap changes it.

    >>> is_recorded(torch.ones(1))
    False
    """
    return torch.compiler.is_compiling() or is_traced(x) or is_transformed()
