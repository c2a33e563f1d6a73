"""Inverted residual networks for images: MobileNetV2, EfficientNet and EfficientNet-Lite are rows of one table.

A body expands its input by a 1x1 convolution, filters each channel separately (depthwise), and projects it by a 1x1
convolution without an activation (linear bottleneck). The shortcut connects the narrow ends.

Shapes: (B, in_chans, H, W) -> (B, num_classes), any H and W.
Sources: MobileNetV2, Sandler et al. 2018, arXiv:1801.04381; EfficientNet, Tan and Le 2019, arXiv:1905.11946;
EfficientNet-Lite (no squeeze-and-excitation, ReLU6, stem and head of a fixed size), R. Liu, TensorFlow blog 2020;
squeeze-and-excitation, Hu et al. 2017, arXiv:1709.01507; `mobilenetv2_110d` and `mobilenetv2_120d`, timm.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from skipway.errors import InputError
from skipway.models.architecture_plan import Plan
from skipway.models.head import classifier, pooled_channels, pooling
from skipway.nn.activations import ACTIVATIONS as ALL_ACTIVATIONS
from skipway.nn.activations import make_activation
from skipway.nn.blocks import PADDINGS, Layers, SqueezeExcite, Step, init_weights, linear_rates, zero_last
from skipway.nn.chain import Chain
from skipway.nn.shortcut_types import make_norm
from skipway.nn.skip import Skip
from skipway.nn.stochastic_depth import DROP_MODES

__all__ = ["ACTIVATIONS", "NETWORKS", "NORMS", "STEMS", "InvertedResidualPlan", "inverted_residual"]

ACTIVATIONS = tuple(name for name in ALL_ACTIVATIONS if name != "identity")  # two linear layers would be one
ATTENTIONS = ("none", "se")
STEMS = ("large", "small")
NORMS = ("batch", "group")
_MAX_BLOCKS = 1000  # a malicious plan must not fill the memory
_PER_STAGE = ("layers", "widths", "kernels", "strides", "expansions")


@dataclass(frozen=True, kw_only=True)
class InvertedResidualPlan(Plan):
    """Values that define one inverted residual network.

    Args:
        layers: blocks in each stage.
        widths: output channels of the blocks of each stage.
        kernels: size of the depthwise convolutions of each stage, an odd number.
        strides: stride of the first block of each stage, 1 or 2.
        expansions: channels of the depthwise convolutions of each stage, as a multiple of the input channels of the
            block. At 1, a body has no first 1x1 convolution.
        stem: "large" (3x3, stride 2) or "small" (3x3, keeps the size).
        stem_channels: output channels of the stem.
        final_channels: output channels of the 1x1 convolution before the pool.
        activation: "relu6", "relu", "silu" or another of `ACTIVATIONS`.
        norm: "batch" or "group".
        attention: "none", or "se" after every depthwise convolution.
        attention_ratio: inner channels of "se", as a fraction of the input channels of the block.
        norm_eps: epsilon of every norm (1e-3 in TensorFlow's networks).
        padding: "torch", or "same" for TensorFlow's padding of strided convolutions, which depends on the input size
            and adds an odd zero at the end.
        dropout: dropout rate before the head.
        drop_path: stochastic-depth rate of the last block; it rises linearly from 0 over the depth.
        drop_mode: "row" or "batch": see `Skip`.
        output_stride: 8, 16 or 32: the image is reduced at most by this factor. Further stages dilate their
            convolutions instead of striding. None for no limit.
        in_chans: channels of the images.
        num_classes: number of outputs; 0 for no classifier, so that the outputs are the pooled features.
        global_pool: "avg", "max", "avgmax" (mean of both), "catavgmax" (both, concatenated), or "none" (returns the
            feature map; requires num_classes=0).

    >>> InvertedResidualPlan(num_classes=10).widths
    (16, 24, 40, 80, 112, 192, 320)
    """

    FAMILY: ClassVar[str] = "inverted_residual"

    layers: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    widths: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    kernels: tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    expansions: tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    stem: str = "large"
    stem_channels: int = 32
    final_channels: int = 1280
    activation: str = "silu"
    norm: str = "batch"
    attention: str = "none"
    attention_ratio: float = 0.25
    norm_eps: float = 1e-5
    padding: str = "torch"
    dropout: float = 0.0
    drop_path: float = 0.0
    drop_mode: str = "row"
    output_stride: int | None = None
    in_chans: int = 3
    num_classes: int = 1000
    global_pool: str = "avg"

    def __post_init__(self) -> None:
        self._check_head()
        self._check_choices(stem=STEMS, activation=ACTIVATIONS, attention=ATTENTIONS, padding=PADDINGS)
        self._check_choices(drop_mode=DROP_MODES, norm=NORMS)
        self._check_output_stride()
        self._check_whole_numbers(*_PER_STAGE, "stem_channels", "final_channels", "in_chans")
        self._check_shares("attention_ratio", "dropout", "drop_path")
        counts = {len(getattr(self, name)) for name in _PER_STAGE}
        if len(counts) > 1 or not self.layers:
            lengths = ", ".join(f"{len(getattr(self, name))} {name}" for name in _PER_STAGE)
            raise InputError(
                f"inverted_residual: expected one value per stage in each list, got {lengths}. Make the "
                "lists equally long."
            )
        if any(kernel % 2 == 0 for kernel in self.kernels) or max(self.strides) > 2:
            raise InputError(
                f"inverted_residual: expected odd kernels and strides of 1 or 2, got {list(self.kernels)} "
                f"and {list(self.strides)}. Change kernels or strides."
            )
        if sum(self.layers) > _MAX_BLOCKS:
            raise InputError(
                f"inverted_residual: expected at most {_MAX_BLOCKS} blocks, got {sum(self.layers)}. Reduce layers."
            )
        if not 0 < self._number("norm_eps") < 1:
            raise InputError(
                f"inverted_residual: expected norm_eps between 0 and 1, got {self.norm_eps}. Use 1e-5 or 1e-3."
            )
        object.__setattr__(self, "norm_eps", float(self.norm_eps))


def inverted_residual(plan: InvertedResidualPlan) -> Chain:
    """Build the inverted residual network of `plan` with random initial weights."""
    parts = Layers(padding=plan.padding, norm=plan.norm)
    channels = plan.stem_channels
    stem = Chain(**_conv_norm_act(plan, parts, plan.in_chans, Step(channels, 3, 2 if plan.stem == "large" else 1)))
    stages: dict[str, nn.Module] = {}
    rates = linear_rates(plan.drop_path, sum(plan.layers))
    depthwise = _depthwise_steps(plan)
    for stage, count in enumerate(plan.layers):
        blocks: list[nn.Module] = []
        for _ in range(count):
            blocks.append(_block(plan, parts, channels, stage=stage, depthwise=next(depthwise), drop_path=next(rates)))
            channels = plan.widths[stage]
        stages[f"stage{stage + 1}"] = Chain(*blocks)
    network = Chain(
        stem=stem,
        **stages,
        final=Chain(**_conv_norm_act(plan, parts, channels, Step(plan.final_channels, 1))),
        **pooling(plan.global_pool),
        **classifier(pooled_channels(plan.final_channels, plan.global_pool), plan.num_classes, drop_rate=plan.dropout),
    )
    _initialize(network, plan)
    return network


def _depthwise_steps(plan: InvertedResidualPlan) -> Iterator[Step]:
    """Yield the depthwise convolution of each block, for one channel.

    Once `output_stride` is reached, a stage dilates instead of striding, from its second block on.
    """
    reduction, dilation = 2 if plan.stem == "large" else 1, 1
    for count, kernel, stride in zip(plan.layers, plan.kernels, plan.strides, strict=True):
        before = dilation
        if plan.output_stride is not None and reduction * stride > plan.output_stride:
            dilation, stride = dilation * stride, 1
        reduction *= stride
        yield Step(1, kernel, stride, dilation=before)
        yield from [Step(1, kernel, dilation=dilation)] * (count - 1)


def _block(
    plan: InvertedResidualPlan, parts: Layers, in_channels: int, *, stage: int, depthwise: Step, drop_path: float
) -> Chain | Skip:
    """Build a Skip if the block keeps the shape of its input, else a Chain with only the body."""
    width = plan.widths[stage]
    inner = in_channels * plan.expansions[stage]
    body: dict[str, nn.Module] = {}
    if plan.expansions[stage] > 1:
        body |= _conv_norm_act(plan, parts, in_channels, Step(inner, 1), "expand")
    body |= _conv_norm_act(plan, parts, inner, replace(depthwise, channels=inner, groups=inner), "depthwise")
    if plan.attention == "se":
        squeezed = max(1, round(in_channels * plan.attention_ratio))
        body["attention"] = SqueezeExcite(inner, squeezed, plan.activation)
    body["project"] = parts.conv(inner, Step(width, 1))
    body["project_norm"] = _norm(plan, width)
    if depthwise.stride != 1 or in_channels != width:
        return Chain(body=Chain(**body))
    return Skip(Chain(**body), drop_path=drop_path, drop_mode=plan.drop_mode)


def _conv_norm_act(
    plan: InvertedResidualPlan, parts: Layers, in_channels: int, step: Step, name: str = ""
) -> dict[str, nn.Module]:
    """Build a convolution, a norm and an activation by name, with `name` as the prefix if it is set."""
    names = (name, f"{name}_norm", f"{name}_act") if name else ("conv", "norm", "act")
    layers = parts.conv(in_channels, step), _norm(plan, step.channels), make_activation(plan.activation)
    return dict(zip(names, layers, strict=True))


def _norm(plan: InvertedResidualPlan, channels: int) -> nn.Module:
    norm = make_norm(plan.norm, channels)
    assert isinstance(norm, nn.BatchNorm2d | nn.GroupNorm)
    norm.eps = plan.norm_eps
    return norm


def _initialize(network: Chain, plan: InvertedResidualPlan) -> None:
    """Initialize the weights: a depthwise filter has the fan-out of one channel, and every body starts at zero."""
    init_weights(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and not module.weight.is_meta:
            nn.init.normal_(module.weight, std=math.sqrt(2 / math.prod(module.kernel_size)))
        elif isinstance(module, Skip) and isinstance(module.body, Chain):
            zero_last(module.body)


# Each model is one row of these tables.

_MOBILENET: dict[str, Any] = {
    "layers": (1, 2, 3, 4, 3, 3, 1),
    "widths": (16, 24, 32, 64, 96, 160, 320),
    "kernels": (3,) * 7,
    "strides": (1, 2, 2, 2, 1, 2, 1),
    "activation": "relu6",
}
_EFFICIENTNET: dict[str, Any] = {"attention": "se"}
_LITE: dict[str, Any] = {"activation": "relu6"}
_TENSORFLOW: dict[str, Any] = {"padding": "same", "norm_eps": 1e-3}
# Factors of width and depth: Tan and Le 2019, arXiv:1905.11946, and its code.
_FACTORS = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1))


def _rounded(channels: float) -> int:
    """Round channels to the nearest multiple of 8 that keeps at least 90% of them."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


def _scaled(row: dict[str, Any], width: float, depth: float = 1.0, *, fixed_ends: bool = False) -> dict[str, Any]:
    """Scale the channels and blocks of a row.

    With `fixed_ends`, the stem, the final convolution and the depth of the first and last stage are not scaled.
    """
    plan = InvertedResidualPlan(**row)
    ends = (0, len(plan.layers) - 1) if fixed_ends else ()
    layers = [count if i in ends else math.ceil(count * depth) for i, count in enumerate(plan.layers)]
    scaled = {**row, "layers": tuple(layers), "widths": tuple(_rounded(channels * width) for channels in plan.widths)}
    if not fixed_ends:
        scaled["stem_channels"] = _rounded(plan.stem_channels * width)
        scaled["final_channels"] = _rounded(plan.final_channels * width)
    return scaled


def _with_full_head(row: dict[str, Any]) -> dict[str, Any]:
    """Keep at least the final channels of the unscaled network, as MobileNetV2 does."""
    return {**row, "final_channels": max(1280, row["final_channels"])}


_EFFICIENTNETS = {f"efficientnet_b{i}": _scaled(_EFFICIENTNET, *factors) for i, factors in enumerate(_FACTORS)}
_LITES = {f"efficientnet_lite{i}": _scaled(_LITE, *factors, fixed_ends=True) for i, factors in enumerate(_FACTORS[:5])}

NETWORKS: dict[str, dict[str, Any]] = {
    "mobilenetv2_050": _with_full_head(_scaled(_MOBILENET, 0.5)),
    "mobilenetv2_100": _MOBILENET,
    "mobilenetv2_140": _with_full_head(_scaled(_MOBILENET, 1.4)),
    "mobilenetv2_110d": _scaled(_MOBILENET, 1.1, 1.2, fixed_ends=True),
    "mobilenetv2_120d": _scaled(_MOBILENET, 1.2, 1.4, fixed_ends=True),
    **_LITES,
    **_EFFICIENTNETS,
    **{f"tf_{name}": {**row, **_TENSORFLOW} for name, row in (_LITES | _EFFICIENTNETS).items()},
}
