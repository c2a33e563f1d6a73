"""Context of a call: which transforms, tracers and modes of torch are active around it."""

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad
from torch.nn.utils import parametrize

__all__ = ["can_recompute", "is_transformed"]


def can_recompute(x: Any) -> bool:
    """Return True if a backward pass follows a call with input `x`, and may compute the call again.

    Tracers, function transforms (torch.func) and forward-mode derivatives need every operation of the call itself. A
    cache of parametrized weights would keep them without gradients.

    >>> can_recompute(torch.ones(2)), torch.func.vmap(lambda x: x + can_recompute(x))(torch.ones(2))
    (True, tensor([1., 1.]))
    """
    return (
        isinstance(x, Tensor)
        and torch.is_grad_enabled()
        and not x.is_meta
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not parametrize._cache_enabled
    )


def is_transformed() -> bool:
    """Return True inside torch.vmap or a forward-mode derivative, alone or inside another transform.

    Operations may not depend on values there, and need derivatives other than those of the backward pass.

    >>> is_transformed(), torch.vmap(lambda x: x + is_transformed())(torch.ones(2))
    (False, tensor([2., 2.]))
    """
    if torch.compiler.is_compiling():
        return False
    if forward_ad._current_level >= 0:
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    return any(level.key() != TransformType.Grad for level in get_interpreter_stack() or ())
