"""Residual networks for images: one function builds all of the ImageNet and CIFAR families.

Shapes: (B, in_chans, H, W) -> (B, num_classes), any H and W.
Sources: He et al. 2015, arXiv:1512.03385 (18 to 152 and CIFAR's 20 to 1202; options A and B); norm and activation
first, 200, 164 and 1001 layers, He et al. 2016, arXiv:1603.05027; deep stem and pooled projection (C and D of "bag of
tricks", fastai's XResNet), He et al. 2018, arXiv:1812.01187; wide, Zagoruyko and Komodakis 2016, arXiv:1605.07146;
groups (ResNeXt), Xie et al. 2016, arXiv:1611.05431; SE, Hu et al. 2017, arXiv:1709.01507; ECA, Wang et al. 2019,
arXiv:1910.03151; ResNet-RS, Bello et al. 2021, arXiv:2103.07579; dilation in place of strides, Yu et al. 2017,
arXiv:1705.09914; the tiered and fixed stems, 14 and 26 layers, timm.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from skipway.models.head import classifier, pooled_channels, pooling
from skipway.models.resnet_plan import JOINS, STEMS, ResNetPlan
from skipway.models.resnet_rows import NETWORKS
from skipway.nn.anti_aliasing import TrailingAvgPool2d
from skipway.nn.block_steps import Step, dilated_steps, steps_of
from skipway.nn.blocks import Layers, aa_of, init_fixup, init_weights, join_of, linear_rates, zero_last
from skipway.nn.chain import Chain
from skipway.nn.joins import Scale
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.shortcut_types import make_norm, make_shortcut
from skipway.nn.skip import Skip

__all__ = ["JOINS", "NETWORKS", "STEMS", "ResNetPlan", "resnet"]


@dataclass(frozen=True)
class _Place:
    """A block in the network: its number over all stages, its stage, its channels, its stride and its dilations."""

    number: int
    stage: int
    in_channels: int
    out_channels: int
    stride: int
    dilations: tuple[int, int]  # of the first 3x3 convolution, and of all others

    @property
    def changes_shape(self) -> bool:
        return self.stride != 1 or self.in_channels != self.out_channels


def resnet(plan: ResNetPlan) -> Chain:
    """Build the residual network of `plan` with random initial weights."""
    parts = Layers(
        norm=plan.norm,
        padding=plan.padding,
        attention=plan.attention,
        attention_ratio=plan.attention_ratio,
        dropout=plan.dropout,
        activation=plan.activation,
        standardized=plan.weight_standardization,
    )
    channels = plan.stem_channels or plan.widths[0]
    stem = _stem(plan, parts, channels)
    stages: list[list[nn.Module]] = [[] for _ in plan.layers]
    rates = linear_rates(plan.drop_path, sum(plan.layers))
    for place, rate in zip(_places(plan, channels), rates, strict=True):
        block = _coupling(plan, parts, place) if plan.reversible else _block(plan, parts, place, rate)
        stages[place.stage].append(block)
    channels = plan.out_channels(len(stages) - 1)
    network = Chain(
        stem=stem,
        **{
            f"stage{number}": _reversible_stage(blocks) if plan.reversible else Chain(*blocks)
            for number, blocks in enumerate(stages, 1)
        },
        **(parts.first(channels) if plan.preact else {}),
        **pooling(plan.global_pool),
        **classifier(pooled_channels(channels, plan.global_pool), plan.num_classes, drop_rate=plan.drop_rate),
    )
    _initialize(network, plan)
    return network


def _places(plan: ResNetPlan, channels: int) -> Iterator[_Place]:
    """Yield the place of each block; once `output_stride` is reached, dilation replaces strides."""
    reduction, dilation, previous, number = 1 if plan.stem == "small" else 4, 1, 1, 0
    for stage, count in enumerate(plan.layers):
        stride = 1 if stage == 0 else 2
        if plan.output_stride is not None and reduction >= plan.output_stride:
            dilation, stride = dilation * stride, 1
        reduction *= stride
        for index in range(count):
            out = plan.out_channels(stage)
            yield _Place(number, stage, channels, out, stride if index == 0 else 1, (previous, dilation))
            channels, previous, number = out, dilation, number + 1


def _initialize(network: Chain, plan: ResNetPlan) -> None:
    """Initialize the weights; every body starts at zero, unless a learned scale or a gate follows it."""
    init_weights(network)
    if plan.norm == "fixup":
        init_fixup(network)
    elif plan.zeroes_last:
        for module in network.modules():
            if isinstance(module, Skip) and isinstance(module.body, Chain):
                zero_last(module.body)


def _block(plan: ResNetPlan, parts: Layers, place: _Place, drop_path: float) -> Chain | Skip:
    steps = _steps(plan, place)
    after = {} if plan.preact else parts.act_of(place.out_channels)
    nominal = plan.nominal_channels(place.stage)
    if plan.shortcut == "none":
        return Chain(body=parts.body(place.in_channels, steps, plan.preact, nominal), **after)
    shortcut = _shortcut(plan, parts, place)
    join = Scale(init=1.0) if plan.norm == "fixup" else join_of(plan.join, place.out_channels, sum(plan.layers))
    body = parts.body(place.in_channels, steps, plan.preact, nominal)
    first: dict[str, nn.Module] = {}
    if plan.preact and shortcut is not None:  # body and shortcut share the first norm and activation
        first = {name: layer for name, layer in body.named_children() if name in ("norm1", "shift1", "act1")}
        body = Chain(**{name: layer for name, layer in body.named_children() if name not in first})
    skip = Skip(body, shortcut, join=join, after=after.get("act"), drop_path=drop_path, drop_mode=plan.drop_mode)
    return Chain(**first, skip=skip) if first else skip


def _shortcut(plan: ResNetPlan, parts: Layers, place: _Place) -> nn.Module | None:
    """Build the shortcut of a block: one of `make_shortcut`, or a projection with the same options as the body."""
    # In a pre-activation network, the next block already normalizes the projection.
    norm = plan.norm if plan.norm in ("batch", "group") and not plan.preact else "none"
    channels, (first, dilation) = (place.in_channels, place.out_channels), place.dilations
    dilated_pool = plan.shortcut == "pool" and dilation > 1 and place.stride == 1
    special = plan.down_kernel_size != 1 or plan.weight_standardization or dilated_pool
    identity = not place.changes_shape and plan.shortcut != "project"
    if plan.shortcut == "pad" or identity or not special:
        return make_shortcut(plan.shortcut, *channels, place.stride, norm=norm)
    layers: dict[str, nn.Module | None] = {}
    if plan.shortcut == "pool":
        same = place.in_channels, place.in_channels
        layers["pool"] = TrailingAvgPool2d() if dilated_pool else make_shortcut("pool", *same, place.stride)
        step = Step(place.out_channels, 1)
    else:
        kernel = 1 if place.stride == 1 and dilation == 1 else plan.down_kernel_size
        step = Step(place.out_channels, kernel, place.stride, dilation=first)
    layers["conv"] = parts.conv(place.in_channels, step, bias=False)
    layers["norm"] = make_norm(norm, place.out_channels)
    return Chain(**{name: layer for name, layer in layers.items() if layer is not None})


def _steps(plan: ResNetPlan, place: _Place) -> list[Step]:
    """Return the convolutions of the body of a block; of each of both bodies if it is reversible."""
    width = plan.widths[place.stage] // (2 if plan.reversible else 1)
    counts = {"cardinality": plan.cardinality, "base_width": plan.base_width, "reduce_first": plan.block_reduce_first}
    steps = steps_of(plan.blocks[place.stage], width, place.stride, **counts)
    if plan.out_widths:
        begin = place.number * plan.inner_convolutions
        inner = plan.inner_widths[begin : begin + plan.inner_convolutions] or [step.channels for step in steps[:-1]]
        channels = [*inner, place.out_channels]
        steps = [replace(step, channels=count) for step, count in zip(steps, channels, strict=True)]
    return dilated_steps(steps, *place.dilations, aa_layer=plan.aa_layer)


def _coupling(plan: ResNetPlan, parts: Layers, place: _Place) -> Coupling:
    """Build two bodies on half of the channels each, with a shortcut for each half if the shape changes."""
    half = replace(place, in_channels=place.in_channels // 2, out_channels=place.out_channels // 2)
    steps = _steps(plan, place)
    around = [_shortcut(plan, parts, half) for _ in range(2)]
    return Coupling(
        parts.body(half.in_channels, steps, preact=True),
        parts.body(half.out_channels, [replace(step, stride=1, aa_layer="none") for step in steps], preact=True),
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
    large = [Step(channels, 7, 2)]
    steps = {"large": large, "fixed": large, "small": [Step(channels, 3)]}.get(plan.stem, deep)
    symmetric = replace(parts, padding="torch")  # only the stages use "same" padding
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
    return Chain(**dict(zip(names, layers, strict=True)), pool=_stem_pool(plan, parts, channels))


def _stem_pool(plan: ResNetPlan, parts: Layers, channels: int) -> nn.Module:
    if plan.stem == "deep_conv":
        down = Step(channels, 3, 2, aa_layer=plan.aa_layer)
        if plan.preact:
            return Chain(conv=parts.conv(channels, down), **aa_of(down))
        return parts.conv_norm_act(channels, down)
    if plan.stem == "fixed" and plan.aa_layer == "none":
        return Chain(pad=nn.ConstantPad2d(1, 0.0), max=nn.MaxPool2d(3, 2))
    return parts.max_pool(plan.aa_layer)
