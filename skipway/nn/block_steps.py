"""The convolutions of a block as plain values, before any layer is built.

Sources: basic and bottleneck, He et al. 2015, arXiv:1512.03385; the stride on the 3x3 of the bottleneck ("v1.5"), Goyal
et al. 2017, arXiv:1706.02677; groups, Xie et al. 2016, arXiv:1611.05431; dilation in place of strides, Yu et al. 2017,
arXiv:1705.09914.
"""

from dataclasses import dataclass, replace

from skipway.errors import InputError

__all__ = ["EXPANSION", "Step", "dilated_steps", "steps_of"]

EXPANSION = {"basic": 1, "bottleneck": 4, "bottleneck_v1": 4, "preact_basic": 1, "preact_bottleneck": 4}


@dataclass(frozen=True)
class Step:
    """One convolution of a body; `aa_layer` is the layer that strides in its place, after the next activation."""

    channels: int
    kernel: int
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    aa_layer: str = "none"


def steps_of(
    block: str, width: int, stride: int = 1, *, cardinality: int = 1, base_width: int = 64, reduce_first: int = 1
) -> list[Step]:
    """Return the convolutions of a block.

    Args:
        block: block type, a key of `EXPANSION`. The output has `width * EXPANSION[block]` channels.
        width: channels of the block.
        stride: stride of the block.
        cardinality: groups in the 3x3 convolution of a bottleneck.
        base_width: channels of each group at a width of 64. ResNeXt-50 32x4d has a cardinality of 32 and a base width
            of 4; Wide ResNet-50-2 has 1 and 128.
        reduce_first: factor by which the first convolution has fewer channels than the second.

    Raises:
        InputError: a basic block has a `cardinality` or `base_width` other than the default.

    >>> [(step.channels, step.kernel, step.stride) for step in steps_of("bottleneck", 16, 2)]
    [(16, 1, 1), (16, 3, 2), (64, 1, 1)]
    """
    if EXPANSION[block] == 1:
        if cardinality != 1 or base_width != 64:
            raise InputError(
                f"block {block!r}: expected cardinality 1 and base_width 64, got {cardinality} and "
                f'{base_width}. Use a "bottleneck" block, or change widths.'
            )
        return [Step(max(1, width // reduce_first), 3, stride), Step(width, 3)]
    inner = max(1, int(width * base_width / 64)) * cardinality
    first, second = (stride, 1) if block == "bottleneck_v1" else (1, stride)
    reduced = max(1, inner // reduce_first // cardinality) * cardinality  # the groups of the 3x3 divide them
    return [Step(reduced, 1, first), Step(inner, 3, second, cardinality), Step(4 * width, 1)]


def dilated_steps(steps: list[Step], first: int, following: int, aa_layer: str = "none") -> list[Step]:
    """Return the convolutions of a block with dilation, and with anti-aliasing in place of its stride.

    Args:
        steps: convolutions without dilation.
        first: dilation of the first 3x3 convolution.
        following: dilation of all others.
        aa_layer: kind of the anti-aliasing layer: see `make_aa_layer`.

    >>> [step.dilation for step in dilated_steps(steps_of("basic", 16), 1, 2)]
    [1, 2]
    """
    dilated, dilation = [], first
    for step in steps:
        moves = step.stride != 1 or (step.kernel > 1 and dilation != following)
        kept = step if step.kernel == 1 else replace(step, dilation=dilation)
        dilated.append(replace(kept, aa_layer=aa_layer) if moves else kept)
        dilation = dilation if step.kernel == 1 else following
    return dilated
