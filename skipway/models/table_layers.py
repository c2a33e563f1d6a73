"""Layers of the network for tables: piecewise-linear inputs, embeddings, and an ensemble that shares its weights.

Shapes: B rows, D inputs, F of them numbers and K categories, k members, K outputs of a member.
Sources: piecewise-linear encoding of numbers, Gorishniy et al. 2022, arXiv:2203.05556; members that differ in factors
of their inputs and in their heads, Gorishniy et al. 2024, arXiv:2410.24210; random signs as factors, Wen et al. 2020,
arXiv:2002.06715.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from skipway.kernels.first_layer import PieceTensors

__all__ = [
    *("Embed", "Members", "MergeMembers", "Pieces", "fit_pieces", "known_indices", "quantile_edges", "times_factors"),
]

_GAIN = 0.5  # of the pieces: their inputs are many, and would dominate the linear ones
_FEWEST_VALUES = 3  # distinct values of a number from which it has pieces


class Pieces(nn.Module):
    """Insert the pieces of numbers after the numbers: (B, F + K) -> (B, F + P + K), P = sum(counts).

    The piece between two edges is 0 for a number below them and 1 above them, and rises linearly between them. Its mean
    over the training rows is subtracted. The edges are data, which `fit_pieces` sets.

    Args:
        counts: number of pieces of each of the first F inputs, the numbers.

    >>> layer = Pieces((2,))
    >>> layer.set_edges([torch.tensor([0.0, 1.0, 3.0])], torch.zeros(1, 1))
    >>> layer(torch.tensor([[2.0]]))
    tensor([[2.0000, 0.5000, 0.2500]])
    """

    inputs: Tensor
    lower: Tensor
    slope: Tensor
    mean: Tensor

    def __init__(self, counts: tuple[int, ...]):
        super().__init__()
        self.counts, total = tuple(counts), sum(counts)
        self.register_buffer("inputs", torch.tensor(np.repeat(np.arange(len(self.counts)), self.counts).tolist()))
        self.register_buffer("lower", torch.zeros(total))
        self.register_buffer("slope", torch.ones(total))
        self.register_buffer("mean", torch.zeros(total))

    def set_edges(self, edges: list[Tensor], x: Tensor) -> None:
        """Set the edges, `count + 1` for each number with pieces in their order, and the means over the rows x."""
        self.lower.copy_(torch.cat([e[:-1] for e in edges]))
        self.slope.copy_(1 / torch.cat([e[1:] - e[:-1] for e in edges]))
        self.mean.copy_(self._pieces(x).mean(0))

    def forward(self, x: Tensor) -> Tensor:
        """Return the numbers, their pieces, and the further inputs."""
        numbers = len(self.counts)
        pieces = self._pieces(x).sub_(self.mean).mul_(_GAIN)
        return torch.cat([x[:, :numbers], pieces, x[:, numbers:]], dim=1)

    @cached_property
    def _columns(self) -> Tensor:
        starts = np.cumsum([0, *self.counts])[:-1].tolist()
        used = [(i, start, n) for i, (start, n) in enumerate(zip(starts, self.counts, strict=True)) if n]
        return torch.tensor(used, dtype=torch.int64, device="cpu").view(-1, 3)

    def tensors(self) -> PieceTensors:
        """Return the pieces as the kernel reads them."""
        edges = self.lower, self.slope, self.mean
        return PieceTensors(self._columns, *edges, gain=_GAIN, numbers=len(self.counts))

    def _pieces(self, x: Tensor) -> Tensor:
        # In place: memory takes more time than arithmetic.
        return (x.index_select(1, self.inputs) - self.lower).mul_(self.slope).clamp_(0, 1)

    def extra_repr(self) -> str:
        """Return the total number of pieces, and the number of inputs that have some."""
        return f"{sum(self.counts)} pieces of {sum(count > 0 for count in self.counts)} numbers"


class Embed(nn.Module):
    """Embed categorical columns: (B, F + K) -> (B, F + the sizes of the K embeddings).

    An index outside a table is mapped to index 0. The embeddings of indices 0 (unseen) and 1 (missing) start at zero.

    Args:
        numbers: number F of numeric columns, which come first.
        categories: number of indices of each of the K categorical columns.
        max_width: maximum size of an embedding.

    >>> Embed(2, (6,), 16)(torch.tensor([[0.5, 1.5, 3.0]])).shape
    torch.Size([1, 5])
    """

    def __init__(self, numbers: int, categories: tuple[int, ...], max_width: int):
        super().__init__()
        self.numbers, self.categories, self.max_width = numbers, tuple(categories), max_width
        widths = [min(max_width, (slots + 1) // 2) for slots in self.categories]
        self.tables = nn.ModuleList(nn.Embedding(*size) for size in zip(self.categories, widths, strict=True))
        self.out_features = numbers + sum(widths)
        for table in self.tables:
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=table.embedding_dim**-0.5)
            with torch.no_grad():
                table.weight[:2] = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the numbers unchanged, followed by the embedding of each category."""
        known = known_indices(x[:, self.numbers :], self.categories)
        embeddings = (table(known[:, i]) for i, table in enumerate(self.tables))
        return torch.cat([x[:, : self.numbers], *embeddings], dim=1)

    def extra_repr(self) -> str:
        """Return the constructor arguments."""
        return f"{self.numbers}, {self.categories}, {self.max_width}"


class Members(nn.Module):
    """Multiply the inputs of each ensemble member by factors of its own, initially random signs.

    In training, (B, D) -> (B, D): row i is that of member i % k. In evaluation, (B, D) -> (B k, D): the k rows of each
    input row are those of all members.

    Args:
        count: number k of members.
        in_features: number D of inputs.
    """

    def __init__(self, count: int, in_features: int):
        super().__init__()
        self.count = count
        # One axis, so that optimizers do not decay the factors.
        self.factors = nn.Parameter(torch.randint(0, 2, (count * in_features,)) * 2.0 - 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows of the members."""
        return times_factors(x, self.factors.reshape(self.count, -1), repeats=not self.training)

    def extra_repr(self) -> str:
        """Return the number of members."""
        return f"{self.count} members"


class MergeMembers(nn.Module):
    """Select the outputs of each row's member in training, and average the members in evaluation; see `Members`.

    In training, (B, k K) -> (B, K); in evaluation, (B k, k K) -> (B, K). Features, which the members share, are
    unchanged in training and averaged in evaluation.

    Args:
        count: number k of members.
        has_heads: True if the inputs are the outputs of k heads, False if they are features (B, K).
    """

    def __init__(self, count: int, *, has_heads: bool = True):
        super().__init__()
        self.count, self.has_heads = count, has_heads

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        if not self.training:
            members = x.view(-1, self.count, self.count, x.shape[1] // self.count) if self.has_heads else None
            if members is None:
                return x.view(-1, self.count, x.shape[1]).mean(1)
            return members.diagonal(dim1=1, dim2=2).mean(-1)
        if not self.has_heads:
            return x
        if len(x) % self.count == 0:
            members = x.view(-1, self.count, self.count, x.shape[1] // self.count)
            return members.diagonal(dim1=1, dim2=2).transpose(1, 2).flatten(0, 1)
        members = torch.eye(self.count, dtype=x.dtype, device=x.device).repeat(-(-len(x) // self.count), 1)[: len(x)]
        return (x.view(len(x), self.count, -1) * members[:, :, None]).sum(1)

    def extra_repr(self) -> str:
        """Return the number of members."""
        return f"{self.count} members"


def times_factors(x: Tensor, factors: Tensor, *, repeats: bool) -> Tensor:
    """Multiply rows (B, D) by the factors (k, D) of the members; see `Members`.

    Args:
        x: the rows.
        factors: the factors of each member.
        repeats: multiply each row by those of all members, (B k, D); else row i by those of member i % k, (B, D).
    """
    if repeats:
        return (x[:, None] * factors).flatten(0, 1)
    if len(x) % len(factors) == 0:  # without a copy of the factors for each row
        return (x.view(-1, *factors.shape) * factors).view_as(x)
    return x * factors.repeat(-(-len(x) // len(factors)), 1)[: len(x)]


def known_indices(indices: Tensor, categories: Sequence[int]) -> Tensor:
    """Return indices (B, K) of K categories as int64, with 0 for those outside of the table of a category."""
    indices = indices.long()
    return torch.where((indices >= 0) & (indices < indices.new_tensor(categories)), indices, 0)


def quantile_edges(x: Tensor, most: int) -> list[Tensor]:
    """Return the edges of the pieces of each number: distinct quantiles of the rows.

    Args:
        x: (N, F) numbers.
        most: most pieces of a number. A number with at most as many distinct values has an edge at each of them.

    Returns:
        For each number its edges, ascending, or none if it has fewer than three distinct values.

    >>> [edges.tolist() for edges in quantile_edges(torch.tensor([[0.0, 5.0], [1.0, 5.0], [4.0, 5.0]]), 8)]
    [[0.0, 1.0, 4.0], []]
    """
    shares = torch.linspace(0, 1, most + 1)
    edges = []
    for values in x.float().T:
        distinct = values.unique()
        if len(distinct) > most + 1:
            ordered = values.sort().values
            distinct = ordered[(shares * (len(ordered) - 1)).round().long()].unique()
        edges.append(distinct if most and len(distinct) >= _FEWEST_VALUES else distinct[:0])
    return edges


def fit_pieces(network: nn.Module, edges: list[Tensor], x: Tensor) -> None:
    """Set the edges of every `Pieces` layer of a network.

    Args:
        network: a network for tables.
        edges: see `quantile_edges`.
        x: (N, D) inputs of training rows, numbers first.
    """
    for layer in network.modules():
        if isinstance(layer, Pieces):
            layer.set_edges([e for e in edges if len(e)], x)
