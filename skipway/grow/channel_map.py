"""Channels: which old one each channel of a grown network repeats, and what becomes of tensors that go by channels.

Shapes: a row (C',) for C old channels. Source: Chen et al. 2015, arXiv:1511.05641 (Net2WiderNet).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skipway.errors import InputError

__all__ = ["NEW", "Origin", "ChannelMap", "beside", "shares_of", "taken"]

NEW = -1
# What optimisers call sums of gradients, and of their squares; other things that they keep go along as they are.
_GRADIENTS = ("momentum_buffer", "exp_avg", "grad_avg", "prev", "exp_inf")
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")


class ChannelMap(NamedTuple):
    """Channels: for each new one the old one that it repeats, or NEW, and how many old ones there were."""

    old: Tensor
    width: int

    @classmethod
    def kept(cls, width: int) -> "ChannelMap":
        """As many channels as before."""
        return cls(torch.arange(width), width)

    @classmethod
    def spread(cls, width: int, size: int, repeat: bool) -> "ChannelMap":
        """`size` channels in place of `width`: those in addition repeat old ones, neighbours of each other, or are new.

        Neighbours, so that groups of channels stay groups of the same ones.
        """
        if repeat:
            return cls(torch.arange(size) * width // size, width)
        return cls(torch.cat([torch.arange(width), torch.full((size - width,), NEW)]), width)

    @property
    def unchanged(self) -> bool:
        """Whether every channel is where it was."""
        return len(self.old) == self.width and bool((self.old == torch.arange(self.width)).all())

    @property
    def whole(self) -> bool:
        """Whether no old channel is lost."""
        return len(self.old[self.old >= 0].unique()) == self.width

    def same(self, other: "ChannelMap") -> bool:
        """Whether both say the same of every channel."""
        return self.width == other.width and self.old.equal(other.old)

    def counts(self) -> Tensor:
        """How often the old channel of each new one is repeated; 1 for new ones."""
        counts = self.old[self.old >= 0].bincount(minlength=max(1, self.width))
        return torch.where(self.old < 0, 1, counts[self.old.clamp(min=0)])

    def repeated(self, times: int) -> "ChannelMap":
        """Each channel as `times` numbers beside each other, as flattening makes them."""
        inner = torch.arange(times)
        old = torch.where(self.old[:, None] < 0, NEW, self.old[:, None] * times + inner)
        return ChannelMap(old.flatten(), self.width * times)


class Origin(NamedTuple):
    """What a tensor of a grown network is made of: the old one's name, and rows and columns where they have changed."""

    name: str
    rows: ChannelMap | None = None
    columns: ChannelMap | None = None

    def behind(self, earlier: "Origin") -> "Origin":
        """What it is made of where the old network had grown itself, from `earlier`."""
        return Origin(earlier.name, _composed(self.rows, earlier.rows), _composed(self.columns, earlier.columns))

    def moved(self, values: dict[str, Any], shape: Sequence[int]) -> dict[str, Any]:
        """What an optimiser keeps of the old tensor, of that shape, as what it would keep of the new one."""
        powers = {key: 2 if key in _SQUARES else int(key in _GRADIENTS) for key in values}
        if "square_avg" in values:  # RMSprop's momentum is one of steps, which are as long for a share
            powers["momentum_buffer"] = 0
        return {key: self._moved(key, value, tuple(shape), powers[key]) for key, value in values.items()}

    def _moved(self, key: str, value: Any, shape: tuple[int, ...], power: int) -> Any:
        if not isinstance(value, Tensor) or not value.dim() or (self.rows is None and self.columns is None):
            return value
        if tuple(value.shape) != shape:
            raise InputError(
                f"what the optimiser keeps of {self.name} as {key} is {tuple(value.shape)} and cannot be widened with "
                f"a tensor of {shape}; leave the optimizer out, and make a new one"
            )
        for axis, row in enumerate((self.rows, self.columns)):
            value = value if row is None else taken(value, row, axis)
        if self.rows is not None and power:  # what flows back to a channel is shared by those that repeat it
            value = value / _along(self.rows.counts().to(value) ** power, value, 0)
        return value


def _composed(later: ChannelMap | None, earlier: ChannelMap | None) -> ChannelMap | None:
    if later is None or earlier is None:
        return earlier if later is None else later
    old = torch.where(later.old < 0, NEW, earlier.old[later.old.clamp(min=0)])
    return ChannelMap(old, earlier.width)


def taken(value: Tensor, row: ChannelMap, axis: int) -> Tensor:
    """`value` with the channels of `row` along `axis`; zeros for new ones."""
    found = value.index_select(axis, row.old.clamp(min=0).to(value.device))
    return found * _along((row.old >= 0).to(found), found, axis) if bool((row.old < 0).any()) else found


def shares_of(row: ChannelMap, outputs: int, generator: torch.Generator | None) -> Tensor:
    """(outputs, C'): the share of an old weight that each channel's has; those of channels that repeat one sum to 1.

    Equal shares without a `generator`: channels that start equal then get equal gradients, and stay equal for ever.
    """
    if generator is None:
        return (1 / row.counts().double())[None]
    drawn = 0.5 + torch.rand(outputs, len(row.old), generator=generator).double()
    drawn = torch.where(row.counts() == 1, 1.0, drawn)
    totals = torch.zeros(outputs, max(1, row.width), dtype=torch.float64).index_add_(
        1, row.old.clamp(min=0), drawn * (row.old >= 0)
    )
    return drawn / torch.where(row.old >= 0, totals[:, row.old.clamp(min=0)], 1.0)


def beside(*parts: ChannelMap) -> ChannelMap:
    """The channels of several rows one after the other."""
    widths = [part.width for part in parts]
    shifted = [torch.where(p.old < 0, NEW, p.old + sum(widths[:i])) for i, p in enumerate(parts)]
    return ChannelMap(torch.cat(shifted), sum(widths))


def _along(factors: Tensor, value: Tensor, axis: int) -> Tensor:
    return factors.view([-1 if i == axis else 1 for i in range(value.dim())])
