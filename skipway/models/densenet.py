"""Densely connected networks for images: every layer takes the outputs of all earlier layers of its block.

Shapes: (B, in_chans, H, W) -> (B, num_classes). H and W are at least 2 to the power of the number of transitions, and 4
times that with the large stem.
Sources: Huang et al. 2016, arXiv:1608.06993 (121 to 264 for ImageNet; the plain and BC networks for CIFAR); the deep
stem of `densenet264d` and `densenetblur121d`, timm.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from skipway.errors import InputError
from skipway.models.architecture_plan import Plan
from skipway.models.head import classifier, pooled_channels, pooling
from skipway.nn.activations import ACTIVATIONS
from skipway.nn.anti_aliasing import AA_LAYERS
from skipway.nn.blocks import Layers, Step, init_weights
from skipway.nn.chain import Chain
from skipway.nn.skip import Skip

__all__ = ["NETWORKS", "NORMS", "STEMS", "DenseNetPlan", "densenet"]

STEMS = ("large", "small", "deep")
NORMS = ("batch", "group")
_MAX_LAYERS = 1000  # a malicious plan must not fill the memory


@dataclass(frozen=True, kw_only=True)
class DenseNetPlan(Plan):
    """Values that define one DenseNet.

    Args:
        layers: dense layers in each block; a transition between blocks halves the resolution.
        growth: channels that each layer adds (growth rate).
        stem: "large" (7x7, stride 2, max pool), "small" (3x3, keeps the size) or "deep" (three 3x3, stride 2, max
            pool; half as many channels inside).
        stem_channels: output channels of the stem; None is twice `growth`.
        bottleneck: channels of the 1x1 convolution before each 3x3, as a multiple of `growth`; 0 for none (plain
            DenseNet).
        compression: fraction of the channels that a transition keeps.
        dropout: dropout rate of the output of each layer.
        activation: "relu", "silu", "gelu" or another key of `ACTIVATIONS`.
        norm: "batch" or "group".
        aa_layer: layer that strides instead of the pool of the stem: "none", "blurpool" or "avg".
        in_chans: channels of the images.
        num_classes: number of outputs; 0 for no classifier, so that the outputs are the pooled features.
        global_pool: "avg", "max", "avgmax" (mean of both), "catavgmax" (both, concatenated), or "none" (returns the
            feature map; requires num_classes=0).
        drop_rate: dropout rate before the head.

    >>> DenseNetPlan(layers=(2, 2), growth=12).compression
    0.5
    """

    FAMILY: ClassVar[str] = "densenet"

    layers: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    stem: str = "large"
    stem_channels: int | None = None
    bottleneck: int = 4
    compression: float = 0.5
    dropout: float = 0.0
    activation: str = "relu"
    norm: str = "batch"
    aa_layer: str = "none"
    in_chans: int = 3
    num_classes: int = 1000
    global_pool: str = "avg"
    drop_rate: float = 0.0

    def __post_init__(self) -> None:
        self._check_head()
        self._check_choices(stem=STEMS, activation=ACTIVATIONS, aa_layer=AA_LAYERS, norm=NORMS)
        self._check_whole_numbers("layers", "growth", "in_chans")
        self._check_whole_numbers("bottleneck", minimum=0)
        if self.stem_channels is not None:
            self._check_whole_numbers("stem_channels")
        self._check_shares("dropout")
        if not 0 < self._number("compression") <= 1:
            raise InputError(
                f"densenet: expected compression above 0 and up to 1, got {self.compression}. Use 1 for no compression."
            )
        object.__setattr__(self, "compression", float(self.compression))
        if not 1 <= sum(self.layers) <= _MAX_LAYERS:
            raise InputError(f"densenet: expected 1 to {_MAX_LAYERS} layers, got {sum(self.layers)}. Change layers.")


def densenet(plan: DenseNetPlan) -> Chain:
    """Build the DenseNet of `plan` with random initial weights."""
    parts = Layers(norm=plan.norm, activation=plan.activation)
    channels = plan.stem_channels or 2 * plan.growth
    stages: dict[str, nn.Module] = {}
    stem = _stem(plan, parts, channels)
    for index, count in enumerate(plan.layers, 1):
        layers = []
        for _ in range(count):
            layers.append(Skip(_layer(plan, parts, channels), join="append"))
            channels += plan.growth
        stages[f"stage{index}"] = Chain(*layers)
        if index < len(plan.layers):
            compressed = max(1, int(channels * plan.compression))
            stages[f"transition{index}"] = _transition(parts, channels, compressed)
            channels = compressed
    network = Chain(
        stem=stem,
        **stages,
        **parts.first(channels),
        **pooling(plan.global_pool),
        **classifier(pooled_channels(channels, plan.global_pool), plan.num_classes, drop_rate=plan.drop_rate),
    )
    init_weights(network)
    return network


def _stem(plan: DenseNetPlan, parts: Layers, channels: int) -> Chain:
    if plan.stem == "small":  # the first dense layer starts with a norm and an activation
        return Chain(conv=parts.conv(plan.in_chans, Step(channels, 3)))
    if plan.stem == "large":
        steps = {"step": parts.conv_norm_act(plan.in_chans, Step(channels, 7, 2))}
    else:
        inner = max(1, channels // 2)
        chans, deep = (plan.in_chans, inner, inner), (Step(inner, 3, 2), Step(inner, 3), Step(channels, 3))
        steps = {f"step{i}": parts.conv_norm_act(c, s) for i, (c, s) in enumerate(zip(chans, deep, strict=True), 1)}
    return Chain(**steps, pool=parts.max_pool(plan.aa_layer))


def _layer(plan: DenseNetPlan, parts: Layers, channels: int) -> Chain:
    steps = [Step(plan.bottleneck * plan.growth, 1)] if plan.bottleneck else []
    body = parts.body(channels, [*steps, Step(plan.growth, 3)], preact=True)
    return Chain(**dict(body.named_children()), dropout=nn.Dropout(plan.dropout)) if plan.dropout else body


def _transition(parts: Layers, channels: int, out_channels: int) -> Chain:
    return Chain(**parts.first(channels), conv=parts.conv(channels, Step(out_channels, 1)), pool=nn.AvgPool2d(2))


def _cifar(depth: int, growth: int, bottleneck: bool) -> dict[str, Any]:
    """Return the row of three equal blocks; the depth counts stem, transitions and head. BC halves the channels."""
    count = (depth - 4) // 3 // (2 if bottleneck else 1)
    options: dict[str, Any] = {"layers": (count,) * 3, "growth": growth, "stem": "small", "num_classes": 10}
    return options if bottleneck else {**options, "stem_channels": 16, "bottleneck": 0, "compression": 1.0}


NETWORKS: dict[str, dict[str, Any]] = {
    "densenet121": {"layers": (6, 12, 24, 16)},
    "densenet169": {"layers": (6, 12, 32, 32)},
    "densenet201": {"layers": (6, 12, 48, 32)},
    "densenet264": {"layers": (6, 12, 64, 48)},
    "densenet161": {"layers": (6, 12, 36, 24), "growth": 48},
    "densenet264d": {"layers": (6, 12, 64, 48), "growth": 48, "stem": "deep"},
    "densenetblur121d": {"layers": (6, 12, 24, 16), "stem": "deep", "aa_layer": "blurpool"},
    **{f"densenet{depth}_{k}": _cifar(depth, k, bottleneck=False) for depth, k in ((40, 12), (100, 12), (100, 24))},
    **{f"densenetbc{depth}_{k}": _cifar(depth, k, bottleneck=True) for depth, k in ((100, 12), (250, 24), (190, 40))},
}
