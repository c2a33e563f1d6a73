"""Symbolic tracing with torch.fx: values without a shape, and functions that stay single calls in the graph.

Layers skip the checks of a traced value, because a graph serves inputs of any size. A function whose operations depend
on the number of axes is decorated with `torch.fx.wrap`, so that it runs when the graph runs.
"""

from typing import Any

from torch import fx

__all__ = ["is_traced"]


def is_traced(x: Any) -> bool:
    """Return True if `x` is the proxy of a tensor in a symbolic trace, of unknown shape, device and dtype.

    >>> is_traced(1.0)
    False
    """
    return isinstance(x, fx.Proxy)
