"""Linear layer on piecewise-linear inputs of an ensemble, in C: it looks cumulative weights up instead of multiplying.

Shapes: B rows, N numbers with P pieces in total, O other inputs, D = O + P inputs of the layer, k members, H outputs.
Source: piecewise-linear encoding, Gorishniy et al. 2022, arXiv:2203.05556. With cumulative sums of the weights, a
number needs two of them instead of its row of P / N pieces.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skipway.kernels.build import library
from skipway.kernels.double_backward import differentiable_gradients

__all__ = ["PieceTensors", "has_pieces_library", "linear_of_pieces"]


@dataclass(frozen=True)
class PieceTensors:
    """Pieces of the numbers of a table.

    Attributes:
        columns: (N', 3) int64: column, first piece, and pieces of each of the N' numbers with pieces.
        lower, slope, mean: (P,) lower edge, inverse width, and mean over the training rows of each piece.
        gain: factor of all pieces.
        numbers: number of columns of numbers, with or without pieces; they precede the pieces.
    """

    columns: Tensor
    lower: Tensor
    slope: Tensor
    mean: Tensor
    gain: float
    numbers: int


def has_pieces_library() -> bool:
    """Return True if the C library can be loaded. The first call compiles it."""
    return _library() is not None


def linear_of_pieces(
    x: Tensor,
    embedded: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    factors: Tensor,
    *,
    pieces: PieceTensors,
    repeats: bool,
    plain: Callable[..., Tensor],
) -> Tensor:
    """Compute a linear layer of numbers, their pieces and embeddings, multiplied by the factors of a member.

    Args:
        x: (B, N + K) rows, numbers first, without a gradient.
        embedded: (B, E) embeddings of the categories, or None.
        weight: (H, N + P + E).
        bias: (H,).
        factors: (k, N + P + E).
        pieces: the pieces.
        repeats: compute each row for all members, (B k, H); else row i for member i % k, (B, H).
        plain: the same function of the five tensors in operations of torch, for second derivatives.
    """
    how = _How(pieces, repeats, plain)
    outputs: Tensor = _LinearOfPieces.apply(x, embedded, weight, bias, factors, how)
    return outputs


@dataclass(frozen=True)
class _How:
    pieces: PieceTensors
    repeats: bool
    plain: Callable[..., Tensor]

    def by_member(self, rows: Tensor, members: int) -> Tensor:
        """Return rows (B, D) as (B, 1, D), which all members share, or as (B / k, k, D), one for each member."""
        return rows[:, None] if self.repeats else rows.reshape(-1, members, rows.shape[1])


@cache
def _library() -> ctypes.CDLL | None:
    functions = library(Path(__file__).with_name("pieces.c"))
    if functions is not None:
        pointer = ctypes.c_void_p
        functions.pieces_forward.argtypes = [*[pointer] * 5, ctypes.c_double, *[pointer] * 8]
        functions.pieces_backward.argtypes = [*[pointer] * 3, ctypes.c_double, *[pointer] * 9]
        functions.pieces_forward.restype = functions.pieces_backward.restype = None
    return functions


class _LinearOfPieces(torch.autograd.Function):
    """Autograd function of the kernel."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        embedded: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        factors: Tensor,
        how: _How,
    ) -> Tensor:
        pieces = how.pieces
        first, total, members, width = pieces.numbers, len(pieces.lower), len(factors), len(weight)
        others = x[:, :first] if embedded is None else torch.cat([x[:, :first], embedded], 1)
        inputs = (how.by_member(others, members) * _without(factors, first, total)).flatten(0, 1)
        y = torch.addmm(bias, inputs, _without(weight, first, total).T)
        numbers, edges = len(pieces.columns), total + len(pieces.columns)
        repeat = members if how.repeats else 1
        stride = weight.shape[1]
        sizes = torch.tensor([len(y), repeat, x.stride(0), numbers, total, width, stride, members], device="cpu")
        by_piece, table = x.new_empty(total, width), x.new_empty(members * edges, width)
        places, fractions = pieces.columns.new_empty(len(y), numbers), x.new_empty(len(y), numbers)
        tensors = x, pieces.columns, pieces.lower, pieces.slope, pieces.mean
        results = by_piece, table, places, fractions, y
        own = weight[:, first:], factors[:, first:]
        _call("pieces_forward", *tensors, pieces.gain, *own, sizes, *results)
        ctx.how, ctx.sizes = how, sizes
        ctx.save_for_backward(x, embedded, weight, bias, factors, others, inputs, by_piece, table, places, fractions)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, embedded, weight, bias, factors, others, inputs, by_piece, table, places, fractions = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True, for second derivatives
            tensors = x, embedded, weight, bias, factors
            return *differentiable_gradients(ctx.how.plain(*tensors), tensors, ctx.needs_input_grad[:5], dy), None
        pieces, dy = ctx.how.pieces, dy.contiguous()
        first, total = pieces.numbers, len(pieces.lower)
        dweight, dfactors = torch.empty_like(weight), torch.empty_like(factors)
        sums = x.new_empty(total + 3, len(weight))
        read = dy, pieces.columns, pieces.mean
        own = factors[:, first:], ctx.sizes, places, fractions, by_piece, table, sums
        _call("pieces_backward", *read, pieces.gain, *own, dweight[:, first:], dfactors[:, first:])
        members, rows = len(factors), len(others)
        of_others = torch.mm(dy.T, inputs)
        dinputs = torch.mm(dy, _without(weight, first, total)).view(-1, members, others.shape[1])
        of_factors = (dinputs * ctx.how.by_member(others, members)).sum(0)
        for gradient, others_of_it in ((dweight, of_others), (dfactors, of_factors)):
            gradient[:, :first] = others_of_it[:, :first]
            gradient[:, first + total :] = others_of_it[:, first:]
        dembedded = None
        if embedded is not None:
            dinputs = dinputs[:, :, first:] * factors[:, first + total :]
            dembedded = dinputs.sum(1) if ctx.how.repeats else dinputs.reshape(rows, -1)
        return None, dembedded, dweight, dy.sum(0), dfactors, None


def _without(tensor: Tensor, first: int, count: int) -> Tensor:
    """Return a tensor without the `count` columns from `first` on."""
    return torch.cat([tensor[:, :first], tensor[:, first + count :]], 1)


def _call(name: str, *values: Any) -> None:
    """Call the C function `name` with the addresses of tensors."""
    getattr(_library(), name)(*(value.data_ptr() if isinstance(value, Tensor) else value for value in values))
