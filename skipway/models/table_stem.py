"""The first layers of the network for tables as one step: pieces, embeddings, members and the first linear layer.

Both versions are equal up to rounding. The fast one is for the CPU; see `first_layer`.
Shapes: see `table_layers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skipway.kernels.first_layer import first_layer
from skipway.kernels.kernel_eligibility import Kernel, are_plain_cpu_tensors, has_hooks, kernels_apply
from skipway.kernels.layer_dispatch import call_layer, run_layers
from skipway.kernels.mlp_library import has_mlp_library
from skipway.models.table_layers import Embed, Members, Pieces, known_indices, times_factors

__all__ = ["TABLE_STEM", "run_stem"]

Layer = TypeVar("Layer", bound=nn.Module)

_FEWEST_ROWS = 32  # from which the kernel is faster


@dataclass(frozen=True)
class _Stem:
    """The layers in order; a table may have no categories, and a network no members."""

    pieces: Pieces
    embed: Embed | None
    members: Members | None
    linear: nn.Linear

    def layers(self) -> list[nn.Module]:
        return [layer for layer in (self.pieces, self.embed, self.members, self.linear) if layer is not None]

    @cached_property
    def tables(self) -> list[nn.Module]:
        """Return the layers of the categories."""
        return [] if self.embed is None else list(self.embed.tables)

    @cached_property
    def embeddings(self) -> list[Tensor]:
        """Return the embeddings of the categories. An attribute of a module takes half a microsecond."""
        return [weight for table in self.tables if (weight := table._parameters["weight"]) is not None]

    def tensors(self) -> list[Tensor]:
        """Return the floating-point tensors of the layers. `parameters()` takes several times as long."""
        pieces, modules = self.pieces, [self.linear] if self.members is None else [self.members, self.linear]
        parameters = [p for module in modules for p in module._parameters.values() if p is not None]
        return [pieces.lower, pieces.slope, pieces.mean, *self.embeddings, *parameters]

    def agrees(self, x: Tensor) -> bool:
        """Return True if the sizes of rows `x` (B, F + K) and of all tensors agree: the kernel does not check them."""
        numbers, total = len(self.pieces.counts), sum(self.pieces.counts)
        categories = () if self.embed is None else self.embed.categories
        shapes = [table.shape for table in self.embeddings]
        inputs = numbers + total + sum(size for _, size in shapes)
        return (
            x.dim() == 2
            and x.shape[1] == numbers + len(categories)
            and tuple(count for count, _ in shapes) == categories
            and (self.embed is None or self.embed.numbers == numbers + total)
            and (self.members is None or self.members.factors.numel() == self.members.count * inputs)
            and self.linear.weight.shape[1] == inputs
            and all(len(edges) == total for edges in (self.pieces.lower, self.pieces.slope, self.pieces.mean))
        )


def _plain_stem(stem: _Stem, x: Tensor) -> Tensor:
    outputs: Tensor = run_layers(stem.layers(), x, call_layer)
    return outputs


def _fits(stem: _Stem, x: Any) -> bool:
    tables = stem.tables
    if not kernels_apply(x) or len(x) < _FEWEST_ROWS or torch.is_autocast_enabled("cpu"):
        return False
    if not all(map(_is_plain_table, tables)) or any(map(has_hooks, (*stem.layers(), *tables))):
        return False
    tensors = stem.tensors()
    return (
        stem.agrees(x)
        and x.stride(1) == 1
        and not x.requires_grad
        and stem.linear.bias is not None
        and all(tensor.dtype == torch.float32 for tensor in (x, *tensors))
        and all(tensor.is_contiguous() for tensor in tensors)
        and are_plain_cpu_tensors(x, *tensors)
        and has_mlp_library()  # last, because it may compile the library
    )


def _is_plain_table(table: nn.Module) -> bool:
    """Return True for an embedding without the options of torch that its gradient or its lookup would need."""
    if type(table) is not nn.Embedding:
        return False
    return table.max_norm is None and table.padding_idx is None and not (table.sparse or table.scale_grad_by_freq)


def _fast_stem(stem: _Stem, x: Tensor) -> Tensor:
    pieces, members, linear = stem.pieces, stem.members, stem.linear
    factors = (
        linear.weight.new_ones(1, linear.in_features) if members is None else members.factors.view(members.count, -1)
    )
    repeats = members is not None and not members.training
    plain = partial(_stem_of_tensors, pieces, repeats)
    return first_layer(
        x, linear.weight, linear.bias, factors, stem.embeddings, pieces=pieces.tensors(), repeats=repeats, plain=plain
    )


def _stem_of_tensors(
    pieces: Pieces, repeats: bool, x: Tensor, weight: Tensor, bias: Tensor, factors: Tensor, *tables: Tensor
) -> Tensor:
    count = len(pieces.counts)
    known = known_indices(x[:, count:], [len(table) for table in tables])
    embeddings = (F.embedding(known[:, i], table) for i, table in enumerate(tables))
    inputs = torch.cat([pieces(x[:, :count]), *embeddings], 1)
    return F.linear(times_factors(inputs, factors, repeats=repeats), weight, bias)


TABLE_STEM = Kernel(_plain_stem, _fast_stem, _fits)  # (stem, x)


def run_stem(layers: Sequence[nn.Module], index: int, x: Any) -> tuple[Any, int]:
    """Run the pieces at `index` and the layers up to the linear one as one step, or the pieces alone if it is missing.

    See `run_layers`.
    """
    pieces, *following = layers[index : index + 4]
    assert isinstance(pieces, Pieces)
    embed, members, linear = _take(following, Embed), _take(following, Members), _take(following, nn.Linear)
    if linear is None:
        return pieces(x), index + 1
    stem = _Stem(pieces, embed, members, linear)
    return TABLE_STEM(stem, x), index + len(stem.layers())


def _take(layers: list[nn.Module], kind: type[Layer]) -> Layer | None:
    """Remove and return the first layer if it is of this class and of no subclass, which may compute something else."""
    if layers and type(layers[0]) is kind:
        return cast(Layer, layers.pop(0))
    return None
