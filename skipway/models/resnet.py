"""Residual networks for images: tables of the ImageNet and CIFAR families, and one function that builds them.

Shapes: (B, in_chans, H, W) -> (B, num_classes), any H and W.
Sources: He et al. 2015, arXiv:1512.03385 (18 to 152 and CIFAR's 20 to 1202; options A and B); norm and activation
first, 200, 164 and 1001 layers, He et al. 2016, arXiv:1603.05027; deep stem and pooled projection (C and D of "bag of
tricks", fastai's XResNet), He et al. 2018, arXiv:1812.01187; wide, Zagoruyko and Komodakis 2016, arXiv:1605.07146;
groups (ResNeXt), Xie et al. 2016, arXiv:1611.05431; SE, Hu et al. 2017, arXiv:1709.01507; ECA, Wang et al. 2019,
arXiv:1910.03151; ResNet-RS, Bello et al. 2021, arXiv:2103.07579; the tiered stem, 14 and 26 layers, timm.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from skipway.errors import InputError
from skipway.models.architecture_plan import Plan
from skipway.models.head import classifier, pooled_channels, pooling
from skipway.nn.blocks import (
    ATTENTIONS,
    EXPANSION,
    KINDS,
    PADDINGS,
    Layers,
    Step,
    init_fixup,
    init_weights,
    join_of,
    linear_rates,
    steps_of,
    zero_last,
)
from skipway.nn.chain import Chain
from skipway.nn.joins import Scale
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.shortcut_types import SHORTCUTS, make_shortcut
from skipway.nn.skip import Skip
from skipway.nn.stochastic_depth import DROP_MODES

__all__ = ["JOINS", "NETWORKS", "STEMS", "ResNetPlan", "resnet"]

_FOUR = (64, 128, 256, 512)
_THREE = (16, 32, 64)
STEMS = ("large", "small", "deep", "tiered", "deep_conv")
JOINS = ("add", "scale", "layerscale", "gate")
_MAX_BLOCKS = 3000  # a malicious plan must not fill the memory


@dataclass(frozen=True, kw_only=True)
class ResNetPlan(Plan):
    """Values that define one residual network.

    Args:
        block: "basic" (two 3x3), "bottleneck" (1x1, 3x3 with the stride, 1x1), "bottleneck_v1" (stride on the first
            1x1), "preact_basic" or "preact_bottleneck" (norm and activation first).
        layers: blocks in each stage; every stage after the first halves the resolution.
        widths: channels in each stage; the output of a bottleneck has 4 times as many.
        stem: "large" (7x7, stride 2, max pool), "small" (3x3, keeps the size), "deep" (three 3x3, stride 2, max pool),
            "tiered" (deep, the first convolution narrower) or "deep_conv" (deep, a convolution instead of the pool).
        stem_channels: output channels of the stem; a deep stem has half as many inside. None is the first of `widths`.
        shortcut: "auto" (option B: project if the shape changes), "project" (C: always), "pad" (A), "pool" (D: average,
            then project) or "none" (no shortcuts: the plain network of the same layers).
        join: "add", "scale" (ReZero, or SkipInit with norm "none"), "layerscale" or "gate" (highway).
        norm: "batch", "group", "none" (convolutions with biases) or "fixup" (Fixup's initialization, shifts and
            scales).
        attention: "none", "se" or "eca", at the end of every body.
        attention_ratio: inner channels of "se", as a fraction of those of the body.
        cardinality: groups in the 3x3 of a bottleneck.
        base_width: channels of each group at a width of 64.
        padding: "torch", or "same" for strided convolutions (Flax and TensorFlow).
        dropout: dropout rate between the convolutions of a body.
        drop_path: stochastic-depth rate of the last block; it rises linearly from 0 over the depth.
        drop_mode: "row" or "batch": see `Skip`.
        reversible: use Couplings of two bodies on half of the channels each, so that memory does not grow with depth.
            Blocks that change the shape keep their activations.
        in_chans: channels of the images.
        num_classes: number of outputs; 0 for no classifier, so that the outputs are the pooled features.
        global_pool: "avg", "max", "avgmax" (mean of both), "catavgmax" (both, concatenated), or "none" (returns the
            feature map; requires num_classes=0).
        drop_rate: dropout rate before the head.

    >>> ResNetPlan(block="bottleneck", layers=(3, 4, 6, 3)).preact
    False
    """

    FAMILY: ClassVar[str] = "resnet"

    block: str = "basic"
    layers: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = _FOUR
    stem: str = "large"
    stem_channels: int | None = None
    shortcut: str = "auto"
    join: str = "add"
    norm: str = "batch"
    attention: str = "none"
    attention_ratio: float = 1 / 16
    cardinality: int = 1
    base_width: int = 64
    padding: str = "torch"
    dropout: float = 0.0
    drop_path: float = 0.0
    drop_mode: str = "row"
    reversible: bool = False
    in_chans: int = 3
    num_classes: int = 1000
    global_pool: str = "avg"
    drop_rate: float = 0.0

    def __post_init__(self) -> None:
        self._check_head()
        self._check_choices(block=EXPANSION, stem=STEMS, shortcut=(*SHORTCUTS, "none"), join=JOINS, norm=KINDS)
        self._check_choices(attention=ATTENTIONS, padding=PADDINGS, drop_mode=DROP_MODES)
        self._check_switches("reversible")
        self._check_whole_numbers("layers", "widths", "cardinality", "base_width", "in_chans")
        if self.stem_channels is not None:
            self._check_whole_numbers("stem_channels")
        self._check_shares("attention_ratio", "dropout", "drop_path")
        if not self.layers or len(self.layers) != len(self.widths):
            raise InputError(
                f"resnet: expected one width for each stage, got {list(self.widths)} for layers "
                f"{list(self.layers)}. Make the lists equally long."
            )
        if sum(self.layers) > _MAX_BLOCKS:
            raise InputError(f"resnet: expected at most {_MAX_BLOCKS} blocks, got {sum(self.layers)}. Reduce layers.")
        if self.shortcut == "none" and (self.join != "add" or self.drop_path or self.norm == "fixup"):
            raise InputError(
                'resnet with shortcut "none": expected join "add", drop_path 0 and a norm other than "fixup", got '
                f'join "{self.join}", drop_path {self.drop_path} and norm "{self.norm}". Use another shortcut.'
            )
        if self.reversible:
            self._check_reversible()
        if self.norm == "fixup" and self.join != "add":
            raise InputError(f'resnet with norm "fixup": expected join "add", got "{self.join}". Remove join.')

    def _check_reversible(self) -> None:
        identity = self.shortcut in ("auto", "pad", "pool")  # the identity if the shape is unchanged
        if not self.preact or self.join != "add" or not identity or self.norm == "fixup" or self.drop_path:
            raise InputError(
                'resnet with reversible=True: expected block "preact_basic" or "preact_bottleneck", join '
                '"add", shortcut "auto", "pad" or "pool", norm "batch", "group" or "none", and no '
                "drop_path. Change these options."
            )
        odd = [width for width in (*self.widths, self.stem_channels or 2) if width % 2]
        if odd:
            raise InputError(f"resnet with reversible=True: expected even widths, got {odd[0]}. Make it even.")

    @property
    def preact(self) -> bool:
        """True if norm and activation come before each convolution."""
        return self.block.startswith("preact")


def resnet(plan: ResNetPlan) -> Chain:
    """Build the residual network of `plan` with random initial weights."""
    parts = Layers(
        norm=plan.norm,
        padding=plan.padding,
        attention=plan.attention,
        attention_ratio=plan.attention_ratio,
        dropout=plan.dropout,
    )
    channels = plan.stem_channels or plan.widths[0]
    stem = _stem(plan, parts, channels)
    stages: dict[str, nn.Module] = {}
    rates = linear_rates(plan.drop_path, sum(plan.layers))
    for stage, (count, width) in enumerate(zip(plan.layers, plan.widths, strict=True)):
        blocks: list[nn.Module] = []
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            if plan.reversible:
                blocks.append(_coupling(plan, parts, in_channels=channels, width=width, stride=stride))
            else:
                rate = next(rates)
                blocks.append(_block(plan, parts, in_channels=channels, width=width, stride=stride, drop_path=rate))
            channels = width * EXPANSION[plan.block]
        stages[f"stage{stage + 1}"] = _reversible_stage(blocks) if plan.reversible else Chain(*blocks)
    network = Chain(
        stem=stem,
        **stages,
        **(parts.first(channels) if plan.preact else {}),
        **pooling(plan.global_pool),
        **classifier(pooled_channels(channels, plan.global_pool), plan.num_classes, drop_rate=plan.drop_rate),
    )
    _initialize(network, plan)
    return network


def _initialize(network: Chain, plan: ResNetPlan) -> None:
    """Initialize the weights; every body starts at zero, unless a learned scale or a gate follows it."""
    init_weights(network)
    if plan.norm == "fixup":
        init_fixup(network)
    elif plan.join == "add" and (not plan.preact or plan.norm == "none"):
        for module in network.modules():
            if isinstance(module, Skip) and isinstance(module.body, Chain):
                zero_last(module.body)


def _block(
    plan: ResNetPlan, parts: Layers, *, in_channels: int, width: int, stride: int, drop_path: float
) -> Chain | Skip:
    out_channels = width * EXPANSION[plan.block]
    steps = _steps(plan, width, stride)
    after = None if plan.preact else nn.ReLU(inplace=True)
    if plan.shortcut == "none":
        return Chain(body=parts.body(in_channels, steps, plan.preact), **({} if after is None else {"act": after}))
    # In a pre-activation network, the next block already normalizes the projection.
    norm = plan.norm if plan.norm in ("batch", "group") and not plan.preact else "none"
    shortcut = make_shortcut(plan.shortcut, in_channels, out_channels, stride, norm=norm)
    join = Scale(init=1.0) if plan.norm == "fixup" else join_of(plan.join, out_channels, sum(plan.layers))
    body = parts.body(in_channels, steps, plan.preact)
    first: dict[str, nn.Module] = {}
    if plan.preact and shortcut is not None:  # body and shortcut share the first norm and activation
        first = {name: layer for name, layer in body.named_children() if name in ("norm1", "shift1", "act1")}
        body = Chain(**{name: layer for name, layer in body.named_children() if name not in first})
    skip = Skip(body, shortcut, join=join, after=after, drop_path=drop_path, drop_mode=plan.drop_mode)
    return Chain(**first, skip=skip) if first else skip


def _steps(plan: ResNetPlan, width: int, stride: int) -> list[Step]:
    return steps_of(plan.block, width, stride, cardinality=plan.cardinality, base_width=plan.base_width)


def _coupling(plan: ResNetPlan, parts: Layers, *, in_channels: int, width: int, stride: int) -> Coupling:
    """Build two bodies on half of the channels each, with a shortcut for each half if the shape changes."""
    halves = in_channels // 2, width * EXPANSION[plan.block] // 2
    steps = _steps(plan, width // 2, stride)
    around = [make_shortcut(plan.shortcut, *halves, stride, norm="none") for _ in range(2)]
    return Coupling(
        parts.body(halves[0], steps, preact=True),
        parts.body(halves[1], [replace(step, stride=1) for step in steps], preact=True),
        None if around[0] is None or around[1] is None else (around[0], around[1]),
    )


def _reversible_stage(blocks: list[nn.Module]) -> Chain:
    """Build a stage: the block that changes the shape, if there is one, then a Reversible of all others."""
    first = [block for block in blocks if isinstance(block, Coupling) and block.shortcuts is not None]
    rest = [block for block in blocks if isinstance(block, Coupling) and block.shortcuts is None]
    return Chain(**({"change": first[0]} if first else {}), **({"rest": Reversible(*rest)} if rest else {}))


def _stem(plan: ResNetPlan, parts: Layers, channels: int) -> Chain:
    """Build the stem; in a pre-activation network, no norm or activation follows its last convolution."""
    inner = max(1, channels // 2)
    first = max(1, 3 * (inner // 4)) if plan.stem == "tiered" else inner
    deep = [Step(first, 3, 2), Step(inner, 3), Step(channels, 3)]
    steps = {"large": [Step(channels, 7, 2)], "small": [Step(channels, 3)]}.get(plan.stem, deep)
    symmetric = Layers(plan.norm)  # only the stages use "same" padding
    layers: list[Chain] = []
    in_channels = plan.in_chans
    for step in steps:
        bare = plan.preact and step is steps[-1]
        if bare:
            layers.append(Chain(conv=symmetric.conv(in_channels, step)))
        else:
            layers.append(symmetric.conv_norm_act(in_channels, step))
        in_channels = step.channels
    if plan.stem == "small":
        return layers[0]
    names = ["step"] if len(layers) == 1 else [f"step{i}" for i in range(1, len(layers) + 1)]
    if plan.stem == "deep_conv":
        down = Step(channels, 3, 2)
        pool: nn.Module = Chain(conv=parts.conv(channels, down)) if plan.preact else parts.conv_norm_act(channels, down)
    else:
        pool = parts.max_pool()
    return Chain(**dict(zip(names, layers, strict=True)), pool=pool)


# Each model is one row of these tables.

_DEPTHS: dict[int, dict[str, Any]] = {
    10: {"block": "basic", "layers": (1, 1, 1, 1)},
    14: {"block": "bottleneck", "layers": (1, 1, 1, 1)},
    18: {"block": "basic", "layers": (2, 2, 2, 2)},
    26: {"block": "bottleneck", "layers": (2, 2, 2, 2)},
    34: {"block": "basic", "layers": (3, 4, 6, 3)},
    50: {"block": "bottleneck", "layers": (3, 4, 6, 3)},
    101: {"block": "bottleneck", "layers": (3, 4, 23, 3)},
    152: {"block": "bottleneck", "layers": (3, 8, 36, 3)},
    200: {"block": "bottleneck", "layers": (3, 24, 36, 3)},
    269: {"block": "bottleneck", "layers": (3, 30, 48, 8)},
}
_VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "c": {"stem": "deep"},
    "d": {"stem": "deep", "shortcut": "pool"},
    "s": {"stem": "deep", "stem_channels": 128},
    "t": {"stem": "tiered", "shortcut": "pool"},
}
_SE, _ECA = {"attention": "se"}, {"attention": "eca"}


def _rows(pattern: str, depths: dict[int, str], **options: Any) -> dict[str, dict[str, Any]]:
    """Return one row for each variant ("-" is the plain one) of each depth, named by `pattern`."""
    rows = {}
    for depth, variants in depths.items():
        for letter in variants:
            variant = letter.strip("-")
            rows[pattern.format(f"{depth}{variant}")] = {**_DEPTHS[depth], **_VARIANTS[variant], **options}
    return rows


def _cifar(blocks: int, block: str = "basic", factor: int = 1, **options: Any) -> dict[str, Any]:
    return {
        "block": block,
        "layers": (blocks,) * 3,
        "widths": tuple(width * factor for width in _THREE),
        "stem": "small",
        "num_classes": 10,
        **options,
    }


def _deep_xresnet(depth: int, more: int) -> dict[str, Any]:
    """Return the row of a depth with `more` additional stages of one block each."""
    layers, widths = (*_DEPTHS[depth]["layers"], *[1] * more), (*_FOUR, *[256] * more)
    return {**_DEPTHS[depth], **_VARIANTS["d"], "layers": layers, "widths": widths}


_RS = {"stem": "deep_conv", "shortcut": "pool", "attention": "se", "attention_ratio": 0.25, "block": "bottleneck"}

NETWORKS: dict[str, dict[str, Any]] = {
    **_rows("resnet{}", {10: "-t", 14: "t", 18: "-d", 26: "-dt", 34: "-d", 50: "-cdst"}),
    **_rows("resnet{}", {101: "-cds", 152: "-cds", 200: "-d"}),
    **_rows("resnet{}_v1", {50: "-", 101: "-", 152: "-", 200: "-"}, block="bottleneck_v1"),
    **_rows("resnet{}_gn", {50: "-"}, norm="group"),
    **{
        name.replace("resnet", "resnetv2_"): {**row, "block": f"preact_{row['block']}"}
        for name, row in _rows("resnet{}", {18: "-d", 34: "-d", 50: "-dt", 101: "-d", 152: "-d", 200: "-"}).items()
    },
    **_rows("xresnet{}", dict.fromkeys((18, 34, 50, 101, 152), "-"), **_VARIANTS["d"]),
    **{f"xresnet{depth}_deep": _deep_xresnet(depth, more=2) for depth in (18, 34, 50)},
    **{f"xresnet{depth}_deeper": _deep_xresnet(depth, more=4) for depth in (18, 34, 50)},
    "xresnet18_deeper": {**_deep_xresnet(18, more=4), "layers": (2, 2, *[1] * 6)},
    **_rows("wide_resnet{}_2", {50: "-", 101: "-"}, base_width=128),
    **_rows("resnext{}_32x4d", {50: "-d", 101: "-"}, cardinality=32, base_width=4),
    **_rows("resnext{}_32x8d", {101: "-"}, cardinality=32, base_width=8),
    **_rows("resnext{}_32x16d", {101: "-"}, cardinality=32, base_width=16),
    **_rows("resnext{}_32x32d", {101: "-"}, cardinality=32, base_width=32),
    **_rows("resnext{}_64x4d", {101: "-"}, cardinality=64, base_width=4),
    **_rows("seresnet{}", {18: "-", 34: "-", 50: "-t", 101: "-", 152: "-d", 200: "d", 269: "d"}, **_SE),
    **_rows("seresnext{}_32x4d", {26: "dt", 50: "-", 101: "-"}, cardinality=32, base_width=4, **_SE),
    **_rows("seresnext{}_32x8d", {101: "-d"}, cardinality=32, base_width=8, **_SE),
    **_rows("seresnext{}_64x4d", {101: "-"}, cardinality=64, base_width=4, **_SE),
    **_rows("ecaresnet{}", {26: "t", 50: "dt", 101: "d", 200: "d", 269: "d"}, **_ECA),
    **_rows("ecaresnext{}_32x4d", {26: "t", 50: "t"}, cardinality=32, base_width=4, **_ECA),
    "ecaresnetlight": {"block": "bottleneck", "layers": (1, 1, 11, 3), "shortcut": "pool", **_ECA},
    "resnetrs50": {"layers": (3, 4, 6, 3), **_RS},
    "resnetrs101": {"layers": (3, 4, 23, 3), **_RS},
    "resnetrs152": {"layers": (3, 8, 36, 3), **_RS},
    "resnetrs200": {"layers": (3, 24, 36, 3), **_RS},
    "resnetrs270": {"layers": (4, 29, 53, 4), **_RS},
    "resnetrs350": {"layers": (4, 36, 72, 4), **_RS},
    "resnetrs420": {"layers": (4, 44, 87, 4), **_RS},
    **{f"resnet{6 * n + 2}": _cifar(n, shortcut="pad") for n in (3, 5, 7, 9, 18, 200)},
    "resnetv2_110": _cifar(18, "preact_basic"),
    **{f"resnetv2_{9 * n + 2}": _cifar(n, "preact_bottleneck") for n in (18, 111)},
    "revnet38": _cifar(3, "preact_basic", reversible=True, widths=(32, 64, 112)),
    "revnet110": _cifar(9, "preact_basic", reversible=True, widths=(32, 64, 128)),
    "revnet164": _cifar(9, "preact_bottleneck", reversible=True, widths=(32, 64, 128), stem_channels=128),
    **{
        f"wide_resnet{depth}_{factor}": _cifar((depth - 4) // 6, "preact_basic", factor, stem_channels=16)
        for depth, factor in ((16, 8), (22, 8), (28, 10), (28, 12), (40, 1), (40, 2), (40, 4))
    },
}
