"""Bodies of the families, the layers they are made of, and how their weights begin.

Shapes: (B, C, H, W) in, (B, C', H/stride, W/stride) out, rounded up.
Sources: basic and bottleneck, He et al. 2015, arXiv:1512.03385; norm and activation first, He et al. 2016,
arXiv:1603.05027; the stride on the 3x3 of the bottleneck ("v1.5"), Goyal et al. 2017, arXiv:1706.02677, which also
zeroes the last norm of a body; groups, Xie et al. 2016, arXiv:1611.05431; squeeze and excitation, Hu et al. 2017,
arXiv:1709.01507; efficient channel attention, Wang et al. 2019, arXiv:1910.03151; initialisation, He et al. 2015,
arXiv:1502.01852, and Fixup, Zhang et al. 2019, arXiv:1901.09321; gates that begin nearly closed, Srivastava et al.
2015, arXiv:1505.00387.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.nn.chain import Chain
from skipway.nn.joins import Gate, make_join
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
    "init_weights",
    "init_fixup",
    "join_of",
    "pair",
    "linear_rates",
    "same_padding",
    "steps_of",
    "zero_last",
]

KINDS = (*NORMS, "fixup")  # what may keep a body's outputs in bounds: a norm, nothing, or Fixup's shifts and scales
ATTENTIONS = ("none", "se", "eca")
PADDINGS = ("torch", "same")
EXPANSION = {"basic": 1, "bottleneck": 4, "bottleneck_v1": 4, "preact_basic": 1, "preact_bottleneck": 4}


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's and Flax's "SAME": ceil(size / stride) out, an odd zero goes to the end.

    At stride 2 and an even size its taps lie one position later than those of torch's symmetric padding.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H/stride), ceil(W/stride))."""
        return super().forward(F.pad(x, same_padding(x, self.kernel_size, self.stride)))


class SameMaxPool2d(nn.MaxPool2d):
    """A maximum over windows that lie as those of `SameConv2d`; what is added at the edges never wins."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H/stride), ceil(W/stride))."""
        return super().forward(F.pad(x, same_padding(x, pair(self.kernel_size), pair(self.stride)), value=-math.inf))


def pair(size: int | tuple[int, ...]) -> tuple[int, ...]:
    """A size along both axes."""
    return (size, size) if isinstance(size, int) else size


def same_padding(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> list[int]:
    """Return the zeros to add at each edge, last axis first, as F.pad takes them."""
    edges: list[int] = []
    for size, k, s in zip(reversed(x.shape[-2:]), reversed(kernel), reversed(stride), strict=True):
        short = max((-(-size // s) - 1) * s + k - size, 0)
        edges += [short // 2, short - short // 2]
    return edges


class Shift(nn.Module):
    """x plus one learned number, zero at first: Fixup's stand-in for the bias of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return x + self.bias


class SqueezeExcite(nn.Module):
    """(B, C, H, W), kept: every channel times a number in (0, 1) that two small layers draw from all channels' means.

    `width` channels stand between the two, behind `activation`: "relu", "relu6" or "silu".
    """

    def __init__(self, channels: int, width: int, activation: str = "relu"):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, width, 1)
        self.excite = nn.Conv2d(width, channels, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        squeezed = getattr(F, self.activation)(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * self.excite(squeezed).sigmoid()


class EfficientChannelAttention(nn.Module):
    """(B, C, H, W), kept: every channel times a number in (0, 1) drawn from the means of its neighbours in the order.

    The number of neighbours grows with the logarithm of the channels.
    """

    def __init__(self, channels: int):
        super().__init__()
        reach = int(abs(math.log2(channels) + 1) / 2)
        size = max(reach if reach % 2 else reach + 1, 3)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        weights = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * weights.transpose(1, 2).unsqueeze(-1)


class LayerNorm2d(nn.LayerNorm):
    """(B, C, H, W), kept: a layer norm over the channels of each position."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), in channels_last memory."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Step:
    """One convolution of a body."""

    channels: int
    kernel: int
    stride: int = 1
    groups: int = 1


def steps_of(block: str, width: int, stride: int = 1, cardinality: int = 1, base_width: int = 64) -> list[Step]:
    """The convolutions of a block of the `EXPANSION` table; its output has `width * EXPANSION[block]` channels.

    `cardinality` groups of `base_width` channels (at 64 of width) work in the 3x3 of a bottleneck: ResNeXt-50 32x4d has
    32 and 4, Wide ResNet-50-2 has 1 and 128.
    """
    if EXPANSION[block] == 1:
        if cardinality != 1 or base_width != 64:
            raise InputError(
                f"block {block!r} has no groups and no inner width, but cardinality {cardinality} and base_width "
                f'{base_width} were asked for; use a "bottleneck", or other widths'
            )
        return [Step(width, 3, stride), Step(width, 3)]
    inner = max(1, int(width * base_width / 64)) * cardinality
    first, second = (stride, 1) if block == "bottleneck_v1" else (1, stride)
    return [Step(inner, 1, first), Step(inner, 3, second, cardinality), Step(4 * width, 1)]


@dataclass(frozen=True)
class Layers:
    """What all layers of one network have in common, and the parts that are made of them."""

    norm: str = "batch"
    padding: str = "torch"
    attention: str = "none"
    attention_ratio: float = 1 / 16
    dropout: float = 0.0

    def conv(self, in_channels: int, step: Step) -> nn.Conv2d:
        """A convolution that keeps the size at stride 1; with a bias only where nothing else shifts its output."""
        shape = (in_channels, step.channels, step.kernel, step.stride)
        if self.padding == "same" and step.stride != 1:
            return SameConv2d(*shape, groups=step.groups, bias=self.norm == "none")
        return nn.Conv2d(*shape, step.kernel // 2, groups=step.groups, bias=self.norm == "none")

    def max_pool(self) -> nn.MaxPool2d:
        """A 3x3 maximum at stride 2."""
        return SameMaxPool2d(3, 2) if self.padding == "same" else nn.MaxPool2d(3, 2, padding=1)

    def norm_of(self, channels: int, number: int | str = "") -> dict[str, nn.Module]:
        """The norm under its name, a Fixup shift under its own, or nothing."""
        if self.norm == "fixup":
            return {f"shift{number}": Shift()}
        norm = make_norm(self.norm, channels)
        return {} if norm is None else {f"norm{number}": norm}

    def conv_norm_act(self, in_channels: int, step: Step) -> Chain:
        """Convolution, norm, ReLU."""
        return Chain(
            conv=self.conv(in_channels, step),
            **self.norm_of(step.channels),
            act=nn.ReLU(inplace=True),  # in place on what the layers before it gave, never on the chain's input
        )

    def body(self, in_channels: int, steps: list[Step], preact: bool = False) -> Chain:
        """The convolutions of `steps`; each is followed by its norm and activation, the last by its norm alone.

        With `preact` each norm and activation goes before its convolution instead.
        """
        parts: dict[str, nn.Module] = {}
        for number, step in enumerate(steps, 1):
            last = number == len(steps)
            if preact:
                parts |= self.first(in_channels, number)
            if self.dropout and last and number > 1:
                parts["dropout"] = nn.Dropout(self.dropout)
            if self.norm == "fixup":
                parts[f"before{number}"] = Shift()
            parts[f"conv{number}"] = self.conv(in_channels, step)
            if not preact:
                parts |= self.norm_of(step.channels, number)
            if not preact and not last:
                parts[f"act{number}"] = nn.ReLU(inplace=True)
            in_channels = step.channels
        return Chain(**parts, **self.attention_of(in_channels))

    def first(self, channels: int, number: int | str = "") -> dict[str, nn.Module]:
        """The norm and activation that go before a convolution; the first of a body must not touch what it is given."""
        norm = self.norm_of(channels, number)
        return {**norm, f"act{number}": nn.ReLU(inplace=bool(norm) or number != 1)}

    def attention_of(self, channels: int) -> dict[str, nn.Module]:
        """The attention over a body's output channels under its name, or nothing."""
        if self.attention == "se":
            width = max(8, int(channels * self.attention_ratio + 4) // 8 * 8)  # the nearest multiple of 8
            return {"attention": SqueezeExcite(channels, width)}
        return {"attention": EfficientChannelAttention(channels)} if self.attention == "eca" else {}


def linear_rates(top: float, count: int) -> Iterator[float]:
    """`count` rates of drop path from 0 to `top`, evenly over the depth; one block alone gets `top`."""
    return (top * (i / (count - 1) if count > 1 else 1.0) for i in range(count))


def join_of(kind: str, channels: int, depth: int) -> Callable[..., Tensor]:
    """The join `kind` for one of `depth` blocks.

    A gate opens by 1/depth at first, an eighth at most: an input that passes all of them keeps a third of itself.
    """
    if kind == "gate":
        return Gate(channels, bias=-max(2.0, math.log(depth)))
    return make_join(kind, channels)


def init_weights(network: nn.Module) -> None:
    """He initialisation of every convolution (normal, fan out), ones and zeros in every norm."""
    if next(network.parameters()).is_meta:  # there is nothing to draw, and it would take longer than all the building
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
    """Make the body give zeros at first, so that its Skip starts as its shortcut: its last norm, else its last weight.

    Nothing nonlinear may follow: an activation there would never get a gradient.
    """
    layers = [layer for layer in body if not isinstance(layer, SqueezeExcite | EfficientChannelAttention | Shift)]
    last = layers[-1]
    if not isinstance(last, nn.BatchNorm2d | nn.GroupNorm | nn.Conv2d | nn.Linear):
        raise ValueError(f"zero_last needs a body that ends with its norm or its weights, not with {last}")
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)


def init_fixup(network: nn.Module) -> None:
    """Fixup: zeros in the head and the last of m weights of each of L bodies, the others times L^(-1/(2m-2)).

    L bodies then change the output by a learning rate, not by L of them, so that no norm is needed. The joins are to be
    scales that begin at one.
    """
    skips = [skip for _, skip in named_skips(network)]
    for skip in skips:
        weights = [m for m in skip.body.children() if isinstance(m, nn.Conv2d | nn.Linear)]  # not those of attention
        for layer in weights[:-1]:
            layer.weight.data.mul_(len(skips) ** (-1 / (2 * len(weights) - 2)))
        nn.init.zeros_(weights[-1].weight)
    head = network.get_submodule("head")
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
