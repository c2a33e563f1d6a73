"""Tracing: values without a shape, and functions that stay single calls in a graph of torch.fx.

Layers skip the checks of a traced value, because a graph serves inputs of any size. A function whose operations depend
on the number of axes is decorated with `torch.fx.wrap`, so that it runs when the graph runs.
"""

from typing import Any

import torch
from torch import fx

__all__ = ["is_mapped", "is_recorded", "is_symbolic", "is_traced"]


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


def is_mapped() -> bool:
    """Return True inside a transform of torch.func, such as vmap, where tensors have no memory format.

    >>> is_mapped()
    False
    """
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def is_recorded(x: Any) -> bool:
    """Return True if a compiler or a tracer records what happens to `x`, or if a transform such as vmap changes it.

    >>> is_recorded(torch.ones(1))
    False
    """
    return torch.compiler.is_compiling() or is_traced(x) or is_mapped()
