"""Channel maps: the old channel that each channel of a grown network copies, applied to weights and optimizer states.

Shapes: a map (C',) for C old channels. Source: Chen et al. 2015, arXiv:1511.05641 (Net2WiderNet).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skipway.errors import InputError

__all__ = ["NEW", "Origin", "ChannelMap", "concat_maps", "copy_shares", "select_channels"]

NEW = -1
# Optimizer state keys for averages of gradients and of squared gradients. Other entries are copied unchanged.
_GRADIENTS = ("momentum_buffer", "exp_avg", "grad_avg", "prev", "exp_inf")
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")


class ChannelMap(NamedTuple):
    """Map from the channels of a wider tensor to the old channels.

    Attributes:
        source: The old channel that each channel copies, or NEW.
        old_width: Number of old channels.
    """

    source: Tensor
    old_width: int

    @classmethod
    def identity(cls, width: int) -> "ChannelMap":
        """Return the map of a tensor with unchanged channels."""
        return cls(torch.arange(width), width)

    @classmethod
    def widened(cls, width: int, size: int, *, repeat: bool, block: int = 1) -> "ChannelMap":
        """Return a map from `width` to `size` channels, in which additional channels are copies or new.

        Copies are adjacent, so that channel groups keep their members. A whole factor can repeat blocks of `block`
        adjacent channels instead, which are whole groups of a group norm.
        """
        if repeat and block > 1:
            return cls(torch.arange(width).view(-1, block).repeat(1, size // width).flatten(), width)
        if repeat:
            return cls(torch.arange(size) * width // size, width)
        return cls(torch.cat([torch.arange(width), torch.full((size - width,), NEW)]), width)

    @property
    def is_identity(self) -> bool:
        """True if all channels are unchanged."""
        return len(self.source) == self.old_width and bool((self.source == torch.arange(self.old_width)).all())

    @property
    def keeps_all(self) -> bool:
        """True if every old channel has a copy."""
        return len(self.source[self.source >= 0].unique()) == self.old_width

    def equals(self, other: "ChannelMap") -> bool:
        """Compare two maps, channel by channel."""
        return self.old_width == other.old_width and self.source.equal(other.source)

    def copy_counts(self) -> Tensor:
        """Return, for each channel, the number of channels that copy the same old one; 1 for new channels."""
        counts = self.source[self.source >= 0].bincount(minlength=max(1, self.old_width))
        return torch.where(self.source < 0, 1, counts[self.source.clamp(min=0)])

    def flattened(self, times: int) -> "ChannelMap":
        """Return the map after flattening, when each channel becomes `times` values."""
        inner = torch.arange(times)
        source = torch.where(self.source[:, None] < 0, NEW, self.source[:, None] * times + inner)
        return ChannelMap(source.flatten(), self.old_width * times)

    def keeps_group_means(self, before: int, groups: int) -> bool:
        """Check that each new group holds equally many copies of all channels of one old group."""
        size = self.old_width // before
        for members in self.source.view(groups, -1):
            inside = members - members[0] // size * size
            if bool((members < 0).any()) or bool(((inside < 0) | (inside >= size)).any()):
                return False
            counts = inside.bincount(minlength=size)
            if bool((counts != counts[0]).any()):
                return False
        return True

    def within_group(self, groups: int) -> "ChannelMap | None":
        """Return the map inside one group, or None if groups differ or take channels of another group."""
        if len(self.source) % groups:
            return None
        size, starts = self.old_width // groups, torch.arange(groups)[:, None]
        inside = self.source.view(groups, -1) - size * starts
        if bool(((inside < 0) | (inside >= size)).any()) or bool((inside != inside[0]).any()):
            return None
        return ChannelMap(inside[0], size)


class Origin(NamedTuple):
    """Origin of a tensor of a grown network: name of the old tensor, and maps of its changed rows and columns."""

    name: str
    rows: ChannelMap | None = None
    columns: ChannelMap | None = None

    def compose(self, earlier: "Origin") -> "Origin":
        """Compose two growth steps: return the origin in the network before `earlier`."""
        return Origin(earlier.name, _compose(self.rows, earlier.rows), _compose(self.columns, earlier.columns))

    def transform_state(self, values: dict[str, Any], shape: Sequence[int]) -> dict[str, Any]:
        """Convert the optimizer state of the old tensor, of shape `shape`, to that of the new one."""
        powers = {key: 2 if key in _SQUARES else int(key in _GRADIENTS) for key in values}
        if "square_avg" in values:  # RMSprop averages updates, which do not scale with the gradient
            powers["momentum_buffer"] = 0
        return {key: self._transform(key, value, tuple(shape), powers[key]) for key, value in values.items()}

    def _transform(self, key: str, value: Any, shape: tuple[int, ...], power: int) -> Any:
        if not isinstance(value, Tensor) or not value.dim() or (self.rows is None and self.columns is None):
            return value
        if tuple(value.shape) != shape:
            raise InputError(
                f"cannot widen the optimizer state {key!r} of {self.name}: expected shape {shape} of the parameter, "
                f"got {tuple(value.shape)}. Leave out optimizer=, and create a new optimizer."
            )
        for axis, channels in enumerate((self.rows, self.columns)):
            value = value if channels is None else select_channels(value, channels, axis)
        if self.rows is not None and power:  # copies share the gradient of their channel
            value = value / _broadcast_along(self.rows.copy_counts().to(value) ** power, value, 0)
        return value


def _compose(later: ChannelMap | None, earlier: ChannelMap | None) -> ChannelMap | None:
    if later is None or earlier is None:
        return earlier if later is None else later
    source = torch.where(later.source < 0, NEW, earlier.source[later.source.clamp(min=0)])
    return ChannelMap(source, earlier.old_width)


def select_channels(value: Tensor, channels: ChannelMap, axis: int) -> Tensor:
    """Gather the source channels along `axis` of `value`; new channels are zero."""
    selected = value.index_select(axis, channels.source.clamp(min=0).to(value.device))
    if not bool((channels.source < 0).any()):
        return selected
    return selected * _broadcast_along((channels.source >= 0).to(selected), selected, axis)


def copy_shares(channels: ChannelMap, outputs: int, generator: torch.Generator | None) -> Tensor:
    """Return the share (outputs, C') of each channel in an old weight; the shares of all copies sum to 1.

    Without a `generator` the shares are equal. Copies then receive equal gradients and stay equal during training.
    """
    if generator is None:
        return (1 / channels.copy_counts().double())[None]
    shares = 0.5 + torch.rand(outputs, len(channels.source), generator=generator).double()
    shares = torch.where(channels.copy_counts() == 1, 1.0, shares)
    totals = torch.zeros(outputs, max(1, channels.old_width), dtype=torch.float64).index_add_(
        1, channels.source.clamp(min=0), shares * (channels.source >= 0)
    )
    return shares / torch.where(channels.source >= 0, totals[:, channels.source.clamp(min=0)], 1.0)


def concat_maps(*parts: ChannelMap) -> ChannelMap:
    """Concatenate the maps of several tensors along the channel axis."""
    widths = [part.old_width for part in parts]
    shifted = [torch.where(part.source < 0, NEW, part.source + sum(widths[:i])) for i, part in enumerate(parts)]
    return ChannelMap(torch.cat(shifted), sum(widths))


def _broadcast_along(factors: Tensor, value: Tensor, axis: int) -> Tensor:
    return factors.view([-1 if i == axis else 1 for i in range(value.dim())])
