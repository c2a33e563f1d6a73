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

KINDS = (*NORMS, "fixup")  # ways to bound activations: a norm, none, or Fixup
ATTENTIONS = ("none", "se", "eca")
PADDINGS = ("torch", "same")
EXPANSION = {"basic": 1, "bottleneck": 4, "bottleneck_v1": 4, "preact_basic": 1, "preact_bottleneck": 4}


class SameConv2d(nn.Conv2d):
    """A convolution with the "SAME" padding of TensorFlow and Flax: ceil(size / stride) outputs, an odd zero at the
    end.

    At stride 2 and even size, its windows lie one position later than those of torch's symmetric padding.

    >>> SameConv2d(3, 8, 3, 2)(torch.zeros(1, 3, 5, 5)).shape
    torch.Size([1, 8, 3, 3])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', ceil(H/stride), ceil(W/stride))."""
        return super().forward(F.pad(x, same_padding(x, self.kernel_size, self.stride)))


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
class Step:
    """One convolution of a body."""

    channels: int
    kernel: int
    stride: int = 1
    groups: int = 1


def steps_of(block: str, width: int, stride: int = 1, cardinality: int = 1, base_width: int = 64) -> list[Step]:
    """Return the convolutions of a block.

    Args:
        block: block type, a key of `EXPANSION`. The output has `width * EXPANSION[block]` channels.
        width: channels of the block.
        stride: stride of the block.
        cardinality: groups in the 3x3 convolution of a bottleneck.
        base_width: channels of each group at a width of 64. ResNeXt-50 32x4d has a cardinality of 32 and a base width
            of 4; Wide ResNet-50-2 has 1 and 128.

    Raises:
        InputError: a basic block has a `cardinality` or `base_width` other than the default.

    >>> steps_of("basic", 16)
    [Step(channels=16, kernel=3, stride=1, groups=1), Step(channels=16, kernel=3, stride=1, groups=1)]
    """
    if EXPANSION[block] == 1:
        if cardinality != 1 or base_width != 64:
            raise InputError(
                f"block {block!r}: expected cardinality 1 and base_width 64, got {cardinality} and "
                f'{base_width}. Use a "bottleneck" block, or change widths.'
            )
        return [Step(width, 3, stride), Step(width, 3)]
    inner = max(1, int(width * base_width / 64)) * cardinality
    first, second = (stride, 1) if block == "bottleneck_v1" else (1, stride)
    return [Step(inner, 1, first), Step(inner, 3, second, cardinality), Step(4 * width, 1)]


@dataclass(frozen=True)
class Layers:
    """Options shared by all layers of a network, and builders for its parts."""

    norm: str = "batch"
    padding: str = "torch"
    attention: str = "none"
    attention_ratio: float = 1 / 16
    dropout: float = 0.0

    def conv(self, in_channels: int, step: Step) -> nn.Conv2d:
        """Build a convolution that keeps the size at stride 1; it has a bias only if no norm or shift follows."""
        shape = (in_channels, step.channels, step.kernel, step.stride)
        if self.padding == "same" and step.stride != 1:
            return SameConv2d(*shape, groups=step.groups, bias=self.norm == "none")
        return nn.Conv2d(*shape, step.kernel // 2, groups=step.groups, bias=self.norm == "none")

    def max_pool(self) -> nn.MaxPool2d:
        """Build a 3x3 max pool with stride 2."""
        return SameMaxPool2d(3, 2) if self.padding == "same" else nn.MaxPool2d(3, 2, padding=1)

    def norm_of(self, channels: int, number: int | str = "") -> dict[str, nn.Module]:
        """Build the norm or Fixup shift by name; return an empty dict for norm "none"."""
        if self.norm == "fixup":
            return {f"shift{number}": Shift()}
        norm = make_norm(self.norm, channels)
        return {} if norm is None else {f"norm{number}": norm}

    def conv_norm_act(self, in_channels: int, step: Step) -> Chain:
        """Build a convolution, a norm and a ReLU."""
        return Chain(
            conv=self.conv(in_channels, step),
            **self.norm_of(step.channels),
            act=nn.ReLU(inplace=True),  # in place on the output of the norm or convolution, never on the input
        )

    def body(self, in_channels: int, steps: list[Step], preact: bool = False) -> Chain:
        """Build the convolutions of `steps`, each followed by a norm and an activation, the last by a norm only.

        With `preact`, each norm and activation comes before its convolution.
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
        """Build the norm and activation before a convolution; the first of a body does not modify its input."""
        norm = self.norm_of(channels, number)
        return {**norm, f"act{number}": nn.ReLU(inplace=bool(norm) or number != 1)}

    def attention_of(self, channels: int) -> dict[str, nn.Module]:
        """Build the attention over the output channels of a body by name; return an empty dict for "none"."""
        if self.attention == "se":
            width = max(8, int(channels * self.attention_ratio + 4) // 8 * 8)  # nearest multiple of 8
            return {"attention": SqueezeExcite(channels, width)}
        return {"attention": EfficientChannelAttention(channels)} if self.attention == "eca" else {}


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
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
