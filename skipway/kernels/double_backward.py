"""Gradients of kernels that can be differentiated again, as `create_graph=True` needs them."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["differentiable_gradients"]


def differentiable_gradients(
    outputs: Tensor, inputs: Sequence[Tensor | None], needed: Sequence[bool], dy: Tensor
) -> list[Tensor | None]:
    """Compute the gradients of inputs, None for those that are not needed.

    Args:
        outputs: what differentiable operations compute from the inputs.
        inputs: tensors, or None.
        needed: whether each of the inputs needs a gradient.
        dy: gradient of the outputs.
    """
    leaves = [tensor for tensor, is_needed in zip(inputs, needed, strict=True) if is_needed and tensor is not None]
    gradients = iter(torch.autograd.grad(outputs, leaves, dy, create_graph=True))
    return [next(gradients) if is_needed else None for is_needed in needed]
