"""First linear layer of a network for tables, in C: numbers, their pieces, embeddings, and factors of the members.

Shapes: B rows, F numbers of which F' have P pieces in total, K categories whose embeddings have E numbers in total,
D = F + P + E inputs of the layer, k members, H outputs.
Source: piecewise-linear encoding, Gorishniy et al. 2022, arXiv:2203.05556. With cumulative sums of the weights, a
number needs two of them instead of its row of P / F' pieces.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skipway.kernels.double_backward import differentiable_gradients
from skipway.kernels.mlp_library import BLOCK, PARTS, call_mlp

__all__ = ["PieceTensors", "first_layer"]


@dataclass(frozen=True)
class PieceTensors:
    """Pieces of the numbers of a table.

    Attributes:
        columns: (F', 3) int64: column, first piece, and pieces of each of the F' numbers with pieces.
        lower, slope, mean: (P,) lower edge, inverse width, and mean over the training rows of each piece.
        gain: factor of all pieces.
        numbers: number F of columns of numbers, with or without pieces.
    """

    columns: Tensor
    lower: Tensor
    slope: Tensor
    mean: Tensor
    gain: float
    numbers: int


def first_layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    factors: Tensor,
    tables: Sequence[Tensor],
    *,
    pieces: PieceTensors,
    repeats: bool,
    plain: Callable[..., Tensor],
) -> Tensor:
    """Compute a linear layer of numbers, their pieces and embeddings, multiplied by the factors of a member.

    Args:
        x: (B, F + K) rows, numbers first, then indices of the categories, without a gradient.
        weight: (H, D).
        bias: (H,).
        factors: (k, D).
        tables: embeddings of each of the K categories.
        pieces: the pieces.
        repeats: compute each row for all members, (B k, H); else row i for member i % k, (B, H).
        plain: the same function of x, weight, bias, factors and the tables in operations of torch, for second
            derivatives.
    """
    outputs: Tensor = _FirstLayer.apply(_How(pieces, repeats, plain), x, weight, bias, factors, *tables)
    return outputs


@dataclass(frozen=True)
class _How:
    pieces: PieceTensors
    repeats: bool
    plain: Callable[..., Tensor]


class _FirstLayer(torch.autograd.Function):
    """Autograd function of the kernel."""

    @staticmethod
    def forward(
        ctx: Any, how: _How, x: Tensor, weight: Tensor, bias: Tensor, factors: Tensor, *tables: Tensor
    ) -> Tensor:
        pieces, width, members = how.pieces, len(weight), len(factors)
        first, stepped, total = pieces.numbers, len(pieces.columns), len(pieces.lower)
        embedded, edges = weight.shape[1] - first - total, total + stepped
        padded = -(-(first + embedded) // PARTS) * PARTS
        repeat = members if how.repeats else 1
        rows = len(x) * repeat
        shape = [rows, repeat, x.stride(0), first, stepped, total, len(tables), embedded, width, members]
        sizes = torch.tensor(shape, device="cpu")
        slots = torch.tensor([table.shape for table in tables], dtype=torch.int64, device="cpu")
        by_piece, table = x.new_empty(total, width), x.new_empty(members * edges, width)
        places, fractions = pieces.columns.new_empty(rows, stepped), x.new_empty(rows, stepped)
        inputs, work, y = x.new_empty(rows, padded), x.new_empty(padded, width), x.new_empty(rows, width)
        of_pieces = pieces.columns, pieces.lower, pieces.slope, pieces.mean, pieces.gain
        own = slots, _addresses(tables), weight, bias, factors, sizes
        call_mlp("first_layer_forward", x, *of_pieces, *own, by_piece, table, places, fractions, inputs, work, y)
        ctx.how, ctx.sizes, ctx.slots = how, sizes, slots
        ctx.save_for_backward(x, weight, bias, factors, by_piece, table, places, fractions, inputs, *tables)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, bias, factors, *stored = ctx.saved_tensors
        (by_piece, table, places, fractions, inputs), tables = stored[:5], stored[5:]
        if torch.is_grad_enabled():  # create_graph=True, for second derivatives
            tensors = x, weight, bias, factors, *tables
            return None, *differentiable_gradients(ctx.how.plain(*tensors), tensors, ctx.needs_input_grad[1:], dy)
        pieces, width, padded = ctx.how.pieces, len(weight), inputs.shape[1]
        gradients = [torch.empty_like(tensor) for tensor in (weight, bias, factors, *tables)]
        sums = x.new_empty(len(pieces.lower) + 3, width)
        work = x.new_empty((2 * width + BLOCK + 1) * padded)
        read = dy.contiguous(), x, pieces.columns, pieces.mean, pieces.gain
        own = ctx.slots, _addresses(tables), weight, factors, ctx.sizes, by_piece, table, places, fractions, inputs
        results = sums, work, *gradients[:3], _addresses(gradients[3:])
        call_mlp("first_layer_backward", *read, *own, *results)
        return None, None, *gradients


def _addresses(tensors: Sequence[Tensor]) -> Any:
    """Return an array of the addresses of tensors."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
