"""The first layers of the network for tables as one step: pieces, embeddings, members and the first linear layer.

Both versions are equal up to rounding. The fast one is for the CPU; see `linear_of_pieces`.
Shapes: see `table_layers`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skipway.kernels.kernel_eligibility import Kernel, are_plain_cpu_tensors, has_hooks, kernels_apply
from skipway.kernels.layer_dispatch import FUSED_STEPS
from skipway.kernels.pieces import has_pieces_library, linear_of_pieces
from skipway.models.table_layers import Embed, Members, Pieces

__all__ = ["TABLE_STEM"]

_FEWEST_PIECES = 300  # pieces and rows from which the kernel is faster
_FEWEST_ROWS = 32


def _plain_stem(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _fits(layers: Sequence[nn.Module], x: Any) -> bool:
    pieces, linear = layers[0], layers[-1]
    members = layers[-2] if len(layers) > 2 and isinstance(layers[-2], Members) else None
    assert isinstance(pieces, Pieces) and isinstance(linear, nn.Linear)
    if not (kernels_apply(x) and sum(pieces.counts) >= _FEWEST_PIECES and len(x) >= _FEWEST_ROWS):
        return False
    tensors = [x, pieces.lower, *(tensor for layer in layers[1:] for tensor in layer.parameters())]
    return (
        x.dim() == 2
        and x.stride(1) == 1
        and not x.requires_grad
        and linear.bias is not None
        and (members is None or not members.training or len(x) % members.count == 0)
        and all(tensor.dtype == torch.float32 for tensor in tensors)
        and linear.weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and are_plain_cpu_tensors(*tensors)
        and not any(map(has_hooks, layers))
        and has_pieces_library()  # last, because it may compile the library
    )


def _fast_stem(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    pieces, linear = layers[0], layers[-1]
    assert isinstance(pieces, Pieces) and isinstance(linear, nn.Linear)
    embed = next((layer for layer in layers if isinstance(layer, Embed)), None)
    members = next((layer for layer in layers if isinstance(layer, Members)), None)
    factors = torch.ones(1, linear.in_features) if members is None else members.factors.view(members.count, -1)
    repeats = members is not None and not members.training
    embedded = None if embed is None else embed.embeddings(x[:, len(pieces.counts) :])
    plain = partial(_stem_of_tensors, pieces, repeats)
    return linear_of_pieces(
        x, embedded, linear.weight, linear.bias, factors, pieces=pieces.tensors(), repeats=repeats, plain=plain
    )


def _stem_of_tensors(
    pieces: Pieces,
    repeats: bool,
    x: Tensor,
    embedded: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    factors: Tensor,
) -> Tensor:
    numbers = pieces(x[:, : len(pieces.counts)])
    inputs = numbers if embedded is None else torch.cat([numbers, embedded], 1)
    rows = inputs[:, None] if repeats else inputs.reshape(-1, *factors.shape)
    return nn.functional.linear((rows * factors).flatten(0, 1), weight, bias)


TABLE_STEM = Kernel(_plain_stem, _fast_stem, _fits)  # (layers from the pieces to the linear one, x)


def _run_stem(layers: Sequence[nn.Module], index: int, x: Any) -> tuple[Any, int]:
    """Run the layers from the pieces on as one step if the linear layer follows them. See `run_layers`."""
    end = index + 1
    while end < len(layers) and type(layers[end]) in (Embed, Members):
        end += 1
    if end == len(layers) or type(layers[end]) is not nn.Linear:
        return layers[index](x), index + 1
    return TABLE_STEM(layers[index : end + 1], x), end + 1


FUSED_STEPS[Pieces] = _run_stem
