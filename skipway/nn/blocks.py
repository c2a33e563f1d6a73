"""Bodies of the model families, their layers, and weight initialization.

Shapes: (B, C, H, W) -> (B, C', H/stride, W/stride), rounded up.
Sources: basic and bottleneck, He et al. 2015, arXiv:1512.03385; norm and activation first, He et al. 2016,
arXiv:1603.05027; the stride on the 3x3 of the bottleneck ("v1.5"), Goyal et al. 2017, arXiv:1706.02677, which also
zeroes the last norm of a body; groups, Xie et al. 2016, arXiv:1611.05431; squeeze-and-excitation, Hu et al. 2017,
arXiv:1709.01507; efficient channel attention, Wang et al. 2019, arXiv:1910.03151; initialization, He et al. 2015,
arXiv:1502.01852, and Fixup, Zhang et al. 2019, arXiv:1901.09321; gates that are nearly closed at first, Srivastava et
al. 2015, arXiv:1505.00387.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.nn.activations import make_activation
from skipway.nn.anti_aliasing import BlurPool2d, make_aa_layer
from skipway.nn.block_steps import EXPANSION, Step, steps_of
from skipway.nn.chain import Chain
from skipway.nn.joins import Gate, make_join
from skipway.nn.normalization import (
    NORMS_WITH_ACTIVATION,
    EvoNorm2d,
    FilterResponseNorm2d,
    StandardizedConv2d,
    ThresholdedUnit,
)
from skipway.nn.shortcut_types import NORMS, make_norm
from skipway.nn.skip import named_skips

__all__ = [
    "ATTENTIONS",
    "EXPANSION",
    "KINDS",
    "PADDINGS",
    "EfficientChannelAttention",
    "LayerNorm2d",
    "Layers",
    "SameConv2d",
    "SameMaxPool2d",
    "Shift",
    "SqueezeExcite",
    "Step",
    "aa_of",
    "init_weights",
    "init_fixup",
    "join_of",
    "pair",
    "linear_rates",
    "same_padding",
    "steps_of",
    "zero_last",
]

KINDS = (*NORMS, "fixup")  # ways to bound activations: a norm, none, or Fixup
ATTENTIONS = ("none", "se", "eca")
PADDINGS = ("torch", "same")


class SameConv2d(nn.Conv2d):
    """A convolution with the "SAME" padding of TensorFlow and Flax: ceil(size / stride) outputs, an odd zero at the
    end.

    At stride 2 and even size, its windows lie one position later than those of torch's symmetric padding.

    >>> SameConv2d(3, 8, 3, 2)(torch.zeros(1, 3, 5, 5)).shape
    torch.Size([1, 8, 3, 3])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', ceil(H/stride), ceil(W/stride))."""
        reach = tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        return super().forward(F.pad(x, same_padding(x, reach, self.stride)))


class SameMaxPool2d(nn.MaxPool2d):
    """A max pool with the windows of `SameConv2d`, padded with minus infinity.

    >>> SameMaxPool2d(3, 2)(torch.zeros(1, 3, 5, 5)).shape
    torch.Size([1, 3, 3, 3])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H/stride), ceil(W/stride))."""
        return super().forward(F.pad(x, same_padding(x, pair(self.kernel_size), pair(self.stride)), value=-math.inf))


def pair(size: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return a size as a tuple for both axes."""
    return (size, size) if isinstance(size, int) else size


def same_padding(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> list[int]:
    """Return the number of zeros for each edge, last axis first, as F.pad expects.

    Args:
        x: input, (B, C, H, W).
        kernel: kernel size for H and W.
        stride: stride for H and W.

    >>> same_padding(torch.zeros(1, 1, 8, 8), (3, 3), (2, 2))
    [0, 1, 0, 1]
    """
    edges: list[int] = []
    for axis in (-1, -2):
        # Not max(), which cannot be traced. A kernel of at least the stride needs no positions less than zero.
        short = kernel[axis] - 1 - (x.shape[axis] - 1) % stride[axis]
        if kernel[axis] < stride[axis]:
            short = torch.sym_max(short, 0)
        edges += [short // 2, short - short // 2]
    return edges


class Shift(nn.Module):
    """Add one learned scalar, initially zero. Fixup uses it in place of the bias of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus the scalar, in the shape of x."""
        return x + self.bias


class SqueezeExcite(nn.Module):
    """Scale each channel by a factor in (0, 1), computed by two small layers from the means of all channels.

    Args:
        channels: channels C of the input (B, C, H, W).
        width: channels between the two layers.
        activation: activation between them: "relu", "relu6" or "silu".

    >>> SqueezeExcite(64, 8)(torch.zeros(1, 64, 4, 4)).shape
    torch.Size([1, 64, 4, 4])
    """

    def __init__(self, channels: int, width: int, activation: str = "relu"):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, width, 1)
        self.excite = nn.Conv2d(width, channels, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of x (B, C, H, W)."""
        squeezed = getattr(F, self.activation)(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * self.excite(squeezed).sigmoid()


class EfficientChannelAttention(nn.Module):
    """Scale each channel by a factor in (0, 1), computed from the means of adjacent channels.

    The number of adjacent channels grows with the logarithm of the number of channels.

    Args:
        channels: channels C of the input (B, C, H, W).

    >>> EfficientChannelAttention(64)(torch.zeros(1, 64, 4, 4)).shape
    torch.Size([1, 64, 4, 4])
    """

    def __init__(self, channels: int):
        super().__init__()
        reach = int(abs(math.log2(channels) + 1) / 2)
        size = max(reach if reach % 2 else reach + 1, 3)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of x (B, C, H, W)."""
        weights = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * weights.transpose(1, 2).unsqueeze(-1)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each position of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (B, C, H, W); the output is in channels_last memory."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Layers:
    """Options shared by all layers of a network, and builders for its parts."""

    norm: str = "batch"
    padding: str = "torch"
    attention: str = "none"
    attention_ratio: float = 1 / 16
    dropout: float = 0.0
    activation: str = "relu"
    standardized: bool = False

    def conv(self, in_channels: int, step: Step, bias: bool | None = None) -> nn.Conv2d:
        """Build a convolution that keeps the size at stride 1; by default with a bias if no norm or shift follows."""
        bias = self.norm == "none" if bias is None else bias
        stride = step.stride if step.aa_layer == "none" else 1
        shape = (in_channels, step.channels, step.kernel, stride)
        if self.padding == "same" and stride != 1:
            return SameConv2d(*shape, groups=step.groups, bias=bias)
        kind = StandardizedConv2d if self.standardized else nn.Conv2d
        padding = step.dilation * (step.kernel // 2)
        return kind(*shape, padding, step.dilation, step.groups, bias)

    def max_pool(self, aa_layer: str = "none") -> nn.Module:
        """Build a 3x3 max pool with stride 2; an anti-aliasing layer strides in its place, or replaces it."""
        if aa_layer == "avg":
            return nn.AvgPool2d(2)
        if aa_layer == "blurpool":
            return Chain(max=nn.MaxPool2d(3, 1, padding=1), aa=BlurPool2d(2))
        return SameMaxPool2d(3, 2) if self.padding == "same" else nn.MaxPool2d(3, 2, padding=1)

    def norm_of(self, channels: int, number: int | str = "") -> dict[str, nn.Module]:
        """Build the norm or Fixup shift by name; return an empty dict for norm "none"."""
        if self.norm == "fixup":
            return {f"shift{number}": Shift()}
        if self.norm in NORMS_WITH_ACTIVATION:
            return {f"norm{number}": (FilterResponseNorm2d if self.norm == "frn" else EvoNorm2d)(channels)}
        norm = make_norm(self.norm, channels)
        return {} if norm is None else {f"norm{number}": norm}

    def act_of(self, channels: int, number: int | str = "", inplace: bool = True) -> dict[str, nn.Module]:
        """Build the activation by name; "evonorm" contains it, and "frn" needs one with a learned threshold."""
        if self.norm == "evonorm":
            return {}
        unit = ThresholdedUnit(channels) if self.norm == "frn" else make_activation(self.activation, inplace)
        return {f"act{number}": unit}

    def conv_norm_act(self, in_channels: int, step: Step) -> Chain:
        """Build a convolution, a norm and an activation, with the anti-aliasing layer of `step` before the norm."""
        return Chain(
            conv=self.conv(in_channels, step),
            **aa_of(step),
            **self.norm_of(step.channels),
            **self.act_of(step.channels),  # in place on the output of the norm or convolution, never on the input
        )

    def body(self, in_channels: int, steps: list[Step], preact: bool = False, nominal: int | None = None) -> Chain:
        """Build the convolutions of `steps`, each followed by a norm and an activation, the last by a norm only.

        With `preact`, each norm and activation comes before its convolution. `nominal` are the output channels before
        pruning.
        """
        parts: dict[str, nn.Module] = {}
        for number, step in enumerate(steps, 1):
            last = number == len(steps)
            if preact:
                parts |= self.first(in_channels, number)
                parts |= aa_of(steps[number - 2]) if number > 1 else {}
            if self.dropout and last and number > 1:
                parts["dropout"] = nn.Dropout(self.dropout)
            if self.norm == "fixup":
                parts[f"before{number}"] = Shift()
            parts[f"conv{number}"] = self.conv(in_channels, step)
            if not preact:
                parts |= self.norm_of(step.channels, number)
            if not preact and not last:
                parts |= self.act_of(step.channels, number) | aa_of(step)
            in_channels = step.channels
        return Chain(**parts, **self.attention_of(in_channels, nominal))

    def first(self, channels: int, number: int | str = "") -> dict[str, nn.Module]:
        """Build the norm and activation before a convolution; the first of a body does not modify its input."""
        norm = self.norm_of(channels, number)
        return {**norm, **self.act_of(channels, number, inplace=bool(norm) or number != 1)}

    def attention_of(self, channels: int, nominal: int | None = None) -> dict[str, nn.Module]:
        """Build the attention over the output channels of a body by name; return an empty dict for "none".

        The reach of "eca" follows the `nominal` channels, of which pruning left `channels`.
        """
        if self.attention == "se":
            width = max(8, int(channels * self.attention_ratio + 4) // 8 * 8)  # nearest multiple of 8
            return {"attention": SqueezeExcite(channels, width)}
        return {"attention": EfficientChannelAttention(nominal or channels)} if self.attention == "eca" else {}


def aa_of(step: Step) -> dict[str, nn.Module]:
    """Build the anti-aliasing layer of a step by name; return an empty dict if there is none."""
    layer = make_aa_layer(step.aa_layer, step.stride)
    return {} if layer is None else {"aa": layer}


def linear_rates(top: float, count: int) -> Iterator[float]:
    """Yield `count` stochastic-depth rates that increase linearly from 0 to `top`; a single block gets `top`.

    >>> list(linear_rates(0.2, 3))
    [0.0, 0.1, 0.2]
    """
    return (top * (i / (count - 1) if count > 1 else 1.0) for i in range(count))


def join_of(kind: str, channels: int, depth: int) -> Callable[..., Tensor]:
    """Build a join for one of `depth` blocks.

    A gate initially opens by about 1/depth, and by at most one eighth. An input that passes all gates then keeps about
    a third of its value.

    Args:
        kind: name of the join.
        channels: channels of its inputs.
        depth: number of blocks in the network.
    """
    if kind == "gate":
        return Gate(channels, bias=-max(2.0, math.log(depth)))
    return make_join(kind, channels)


def init_weights(network: nn.Module) -> None:
    """Initialize every convolution by He et al. (normal, fan out), and every norm with ones and zeros."""
    if next(network.parameters()).is_meta:  # no values to draw, and trying would take longer than building
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def zero_last(body: Chain) -> None:
    """Zero the last norm of a body, or its last weights, so that its Skip initially equals its shortcut.

    No nonlinearity may follow: an activation there would never get a gradient.

    Raises:
        ValueError: the body ends with another layer.
    """
    layers = [layer for layer in body if not isinstance(layer, SqueezeExcite | EfficientChannelAttention | Shift)]
    last = layers[-1]
    if not isinstance(last, nn.BatchNorm2d | nn.GroupNorm | nn.Conv2d | nn.Linear):
        raise ValueError(
            f"zero_last: expected a body that ends with a norm or with weights, got {last}. Remove "
            "the layers after them."
        )
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)


def init_fixup(network: nn.Module) -> None:
    """Initialize a network by Fixup, so that it trains without norms.

    The head and the last of m weights of each of L bodies are zero. The other weights are scaled by L^(-1/(2m-2)). One
    step then changes the output by about the learning rate, not by L times that. The joins should be scales that start
    at one.
    """
    skips = [skip for _, skip in named_skips(network)]
    for skip in skips:
        # Direct children only, without the layers of attention.
        weights = [m for m in skip.body.children() if isinstance(m, nn.Conv2d | nn.Linear)]
        for layer in weights[:-1]:
            layer.weight.data.mul_(len(skips) ** (-1 / (2 * len(weights) - 2)))
        nn.init.zeros_(weights[-1].weight)
    head = network.get_submodule("head")
    if isinstance(head, nn.Linear):  # not nn.Identity, the head of a network without a classifier
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
