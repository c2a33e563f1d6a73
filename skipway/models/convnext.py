"""ConvNeXt: residual convolutional networks with blocks in the style of transformers.

A body is a depthwise convolution, a layer norm over the channels, and two 1x1 convolutions with a GELU between them.
The join scales each channel of the body (LayerScale). Between stages, a norm and a strided convolution halve the
resolution.

Shapes: (B, in_chans, H, W) -> (B, num_classes). H and W are at least 2 to the power of the number of transitions, and 4
times that with the large stem.
Sources: Liu et al. 2022, arXiv:2201.03545 (tiny to large); LayerScale, Touvron et al. 2021, arXiv:2103.17239; atto to
nano, timm.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from skipway.errors import InputError
from skipway.models.architecture_plan import Plan
from skipway.models.head import POOLS, classifier, pooling
from skipway.nn.activations import ACTIVATIONS, make_activation
from skipway.nn.blocks import LayerNorm2d, SameConv2d, linear_rates, zero_last
from skipway.nn.chain import Chain
from skipway.nn.joins import Scale
from skipway.nn.skip import Skip
from skipway.nn.stochastic_depth import DROP_MODES

__all__ = ["JOINS", "NETWORKS", "STEMS", "ConvNeXtPlan", "convnext"]

STEMS = ("large", "small")
JOINS = ("layerscale", "add", "scale")
_POOLS = tuple(kind for kind in POOLS if kind != "catavgmax")  # the norm after the pool has the width of the last stage
_EPS = 1e-6
_MAX_SCALE = 1000
_MAX_BLOCKS = 1000  # a malicious plan must not fill the memory


@dataclass(frozen=True, kw_only=True)
class ConvNeXtPlan(Plan):
    """Values that define one ConvNeXt.

    Args:
        layers: blocks in each stage.
        widths: channels of each stage; every stage after the first halves the resolution.
        kernel: size of the depthwise convolutions, an odd number.
        expansion: channels between the two 1x1 convolutions, as a multiple of the channels of the block.
        stem: "large" (4x4, stride 4) or "small" (3x3, keeps the size).
        join: "layerscale", "add" or "scale" (ReZero).
        layer_scale: initial value of every LayerScale.
        activation: "gelu", "silu", "relu" or another key of `ACTIVATIONS`.
        head_init_scale: factor of the initial weights of the head.
        dropout: dropout rate before the head.
        drop_path: stochastic-depth rate of the last block; it rises linearly from 0 over the depth.
        drop_mode: "row" or "batch": see `Skip`.
        output_stride: 8, 16 or 32: the image is reduced at most by this factor. Further stages dilate their
            convolutions instead of striding. None for no limit.
        in_chans: channels of the images.
        num_classes: number of outputs; 0 for no classifier, so that the outputs are the pooled features.
        global_pool: "avg", "max", "avgmax" (mean of both), or "none" (the feature map; requires num_classes=0).

    >>> ConvNeXtPlan(layers=(1, 1), widths=(8, 16), num_classes=10).kernel
    7
    """

    FAMILY: ClassVar[str] = "convnext"

    layers: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    kernel: int = 7
    expansion: int = 4
    stem: str = "large"
    join: str = "layerscale"
    layer_scale: float = 1e-6
    activation: str = "gelu"
    head_init_scale: float = 1.0
    dropout: float = 0.0
    drop_path: float = 0.0
    drop_mode: str = "row"
    output_stride: int | None = None
    in_chans: int = 3
    num_classes: int = 1000
    global_pool: str = "avg"

    def __post_init__(self) -> None:
        self._check_head(pools=_POOLS)
        self._check_choices(stem=STEMS, join=JOINS, drop_mode=DROP_MODES, activation=ACTIVATIONS)
        self._check_output_stride()
        self._check_whole_numbers("layers", "widths", "kernel", "expansion", "in_chans")
        self._check_shares("dropout", "drop_path")
        if not self.layers or len(self.layers) != len(self.widths):
            raise InputError(
                f"convnext: expected one width for each stage, got {list(self.widths)} for layers "
                f"{list(self.layers)}. Make the lists equally long."
            )
        if sum(self.layers) > _MAX_BLOCKS:
            raise InputError(f"convnext: expected at most {_MAX_BLOCKS} blocks, got {sum(self.layers)}. Reduce layers.")
        if self.kernel % 2 == 0:
            raise InputError(f"convnext: expected an odd kernel, got {self.kernel}. Use {self.kernel + 1}.")
        if not 0 < self._number("layer_scale") <= 1:
            raise InputError(
                f"convnext: expected layer_scale above 0 and up to 1, got {self.layer_scale}. Use 1e-6, or join "
                '"scale" to start at 0.'
            )
        if not 0 <= self._number("head_init_scale") <= _MAX_SCALE:
            raise InputError(
                f"convnext: expected head_init_scale from 0 to {_MAX_SCALE}, got {self.head_init_scale!r}. Use 1."
            )
        for name in ("layer_scale", "head_init_scale"):
            object.__setattr__(self, name, self._number(name))


def convnext(plan: ConvNeXtPlan) -> Chain:
    """Build the ConvNeXt of `plan` with fresh weights."""
    first, last = plan.widths[0], plan.widths[-1]
    patches = (
        nn.Conv2d(plan.in_chans, first, 4, 4) if plan.stem == "large" else nn.Conv2d(plan.in_chans, first, 3, 1, 1)
    )
    parts: dict[str, nn.Module] = {"stem": Chain(conv=patches, norm=LayerNorm2d(first, _EPS))}
    rates = linear_rates(plan.drop_path, sum(plan.layers))
    before, reduction, dilation = first, 4 if plan.stem == "large" else 1, 1
    for stage, (count, width) in enumerate(zip(plan.layers, plan.widths, strict=True), 1):
        if stage > 1:
            dilates = plan.output_stride is not None and reduction >= plan.output_stride
            conv = SameConv2d(before, width, 2, dilation=dilation) if dilates else nn.Conv2d(before, width, 2, 2)
            parts[f"transition{stage - 1}"] = Chain(norm=LayerNorm2d(before, _EPS), conv=conv)
            reduction, dilation = (reduction, 2 * dilation) if dilates else (2 * reduction, dilation)
        parts[f"stage{stage}"] = Chain(*[_block(plan, width, dilation, next(rates)) for _ in range(count)])
        before = width
    network = Chain(
        **parts,
        **pooling(plan.global_pool),
        norm=LayerNorm2d(last, _EPS) if plan.global_pool == "none" else nn.LayerNorm(last, _EPS),
        **classifier(last, plan.num_classes, drop_rate=plan.dropout),
    )
    _initialize(network, plan)
    return network


def _block(plan: ConvNeXtPlan, width: int, dilation: int, drop_path: float) -> Skip:
    padding = dilation * (plan.kernel // 2)
    body = Chain(
        depthwise=nn.Conv2d(width, width, plan.kernel, padding=padding, dilation=dilation, groups=width),
        norm=LayerNorm2d(width, _EPS),
        expand=nn.Conv2d(width, plan.expansion * width, 1),
        act=make_activation(plan.activation),
        project=nn.Conv2d(plan.expansion * width, width, 1),
    )
    join = Scale(width, init=plan.layer_scale) if plan.join == "layerscale" else plan.join
    return Skip(body, join=join, drop_path=drop_path, drop_mode=plan.drop_mode)


def _initialize(network: Chain, plan: ConvNeXtPlan) -> None:
    """Draw weights from a truncated normal with a standard deviation of 0.02; with the join "add", zero every body."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
            nn.init.trunc_normal_(module.weight, std=0.02)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    head = network.get_submodule("head")
    if isinstance(head, nn.Linear) and plan.head_init_scale != 1:
        with torch.no_grad():
            head.weight.mul_(plan.head_init_scale)
            head.bias.mul_(plan.head_init_scale)
    for module in network.modules():
        if plan.join == "add" and isinstance(module, Skip) and isinstance(module.body, Chain):
            zero_last(module.body)


# Each model is one row of this table.


def _row(blocks: int, width: int, depth: int = 2) -> dict[str, Any]:
    """Return the row with `blocks` blocks in the third stage, `depth` in the others, and widths that double."""
    return {"layers": (depth, depth, blocks, depth), "widths": tuple(width * 2**stage for stage in range(4))}


NETWORKS: dict[str, dict[str, Any]] = {
    "convnext_atto": _row(6, 40),
    "convnext_femto": _row(6, 48),
    "convnext_pico": _row(6, 64),
    "convnext_nano": _row(8, 80),
    "convnext_tiny": _row(9, 96, depth=3),
    "convnext_small": _row(27, 96, depth=3),
    "convnext_base": _row(27, 128, depth=3),
    "convnext_large": _row(27, 192, depth=3),
}
