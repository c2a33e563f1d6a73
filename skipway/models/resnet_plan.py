"""Values that define a residual network for images, and their checks. `skipway.models.resnet` builds it."""

from dataclasses import dataclass
from typing import ClassVar

from skipway.errors import InputError, did_you_mean
from skipway.models.architecture_plan import Plan
from skipway.nn.activations import ACTIVATIONS
from skipway.nn.anti_aliasing import AA_LAYERS
from skipway.nn.block_steps import EXPANSION
from skipway.nn.blocks import ATTENTIONS, KINDS, PADDINGS
from skipway.nn.normalization import NORMS_WITH_ACTIVATION
from skipway.nn.shortcut_types import SHORTCUTS
from skipway.nn.stochastic_depth import DROP_MODES

__all__ = ["JOINS", "STEMS", "ResNetPlan"]

STEMS = ("large", "small", "deep", "tiered", "deep_conv", "fixed")
JOINS = ("add", "scale", "layerscale", "gate")
_MAX_BLOCKS = 3000  # a malicious plan must not fill the memory


@dataclass(frozen=True, kw_only=True)
class ResNetPlan(Plan):
    """Values that define one residual network.

    Args:
        block: "basic" (two 3x3), "bottleneck" (1x1, 3x3 with the stride, 1x1), "bottleneck_v1" (stride on the first
            1x1), "preact_basic" or "preact_bottleneck" (norm and activation first), or a list with one for each stage.
        layers: blocks in each stage; every stage after the first halves the resolution.
        widths: channels in each stage; the output of a bottleneck has 4 times as many.
        stem: "large" (7x7, stride 2, max pool), "small" (3x3, keeps the size), "deep" (three 3x3, stride 2, max pool),
            "tiered" (deep, the first convolution narrower), "deep_conv" (deep, a convolution instead of the pool) or
            "fixed" (large, zeros around the input of the pool).
        stem_channels: output channels of the stem; a deep stem has half as many inside. None is the first of `widths`.
        shortcut: "auto" (option B: project if the shape changes), "project" (C: always), "pad" (A), "pool" (D: average,
            then project) or "none" (no shortcuts: the plain network of the same layers).
        join: "add", "scale" (ReZero, or SkipInit with norm "none"), "layerscale" or "gate" (highway).
        norm: "batch", "group", "none" (convolutions with biases), "fixup" (Fixup's initialization, shifts and
            scales), or in pre-activation networks "frn" or "evonorm", which bring their own activation.
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
        output_stride: 8, 16 or 32: the image is reduced at most by this factor. Further stages dilate their 3x3
            convolutions instead of striding. None for no limit.
        activation: "relu", "silu", "gelu" or another key of `ACTIVATIONS`.
        aa_layer: layer that strides instead of convolutions and the pool of the stem: "none", "blurpool" or "avg".
            Images must then be large enough that it never gets less than 2x2 positions.
        zero_init_last: initialize the last norm or convolution of every body with zeros, so that a block starts as its
            shortcut. None is True, but False for a join that does so and for pre-activation networks with a norm.
        block_reduce_first: factor by which the first convolution of a body has fewer channels than the second.
        down_kernel_size: kernel size of projections that stride or dilate.
        weight_standardization: standardize the filters of all convolutions (BiT).
        inner_widths: channels inside of each block, one block after the other, for pruned networks; empty for those of
            `widths`.
        out_widths: output channels of each stage, for pruned networks; empty for those of `widths`.
        in_chans: channels of the images.
        num_classes: number of outputs; 0 for no classifier, so that the outputs are the pooled features.
        global_pool: "avg", "max", "avgmax" (mean of both), "catavgmax" (both, concatenated), or "none" (the feature
            map; requires num_classes=0).
        drop_rate: dropout rate before the head.

    >>> ResNetPlan(block="bottleneck", layers=(3, 4, 6, 3)).preact
    False
    """

    FAMILY: ClassVar[str] = "resnet"

    block: str | tuple[str, ...] = "basic"
    layers: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
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
    output_stride: int | None = None
    activation: str = "relu"
    aa_layer: str = "none"
    zero_init_last: bool | None = None
    block_reduce_first: int = 1
    down_kernel_size: int = 1
    weight_standardization: bool = False
    inner_widths: tuple[int, ...] = ()
    out_widths: tuple[int, ...] = ()
    in_chans: int = 3
    num_classes: int = 1000
    global_pool: str = "avg"
    drop_rate: float = 0.0

    def __post_init__(self) -> None:
        self._check_head()
        self._check_blocks()
        norms = (*KINDS, *NORMS_WITH_ACTIVATION)
        self._check_choices(stem=STEMS, shortcut=(*SHORTCUTS, "none"), join=JOINS, norm=norms, aa_layer=AA_LAYERS)
        self._check_choices(attention=ATTENTIONS, padding=PADDINGS, drop_mode=DROP_MODES, activation=ACTIVATIONS)
        self._check_whole_numbers("layers", "widths", "inner_widths", "out_widths", "cardinality", "base_width")
        self._check_whole_numbers("in_chans", "block_reduce_first", "down_kernel_size")
        if self.stem_channels is not None:
            self._check_whole_numbers("stem_channels")
        self._check_shares("attention_ratio", "dropout", "drop_path")
        self._check_switches("reversible", "weight_standardization")
        if self.zero_init_last is not None:
            self._check_switches("zero_init_last")
        self._check_stages()
        self._check_combinations()
        if self.reversible:
            self._check_reversible()

    def _check_blocks(self) -> None:
        """Check the block types; a list of equal ones becomes one."""
        blocks = (self.block,) if isinstance(self.block, str) else tuple(self.block)
        for block in blocks:
            if block not in EXPANSION:
                raise InputError(
                    f"resnet: unknown block {block!r}{did_you_mean(str(block), EXPANSION)}: expected one of "
                    f"{', '.join(EXPANSION)}. Change block."
                )
        if len({block.startswith("preact") for block in blocks}) != 1:
            raise InputError(
                f"resnet: expected blocks that are all pre-activation or none, got {list(blocks)}. Change block."
            )
        object.__setattr__(self, "block", blocks[0] if len(set(blocks)) == 1 else blocks)

    def _check_stages(self) -> None:
        """Check that the lists have a value for each stage or block."""
        stages = len(self.layers)
        if not self.layers or stages != len(self.widths):
            raise InputError(
                f"resnet: expected one width for each stage, got {list(self.widths)} for layers "
                f"{list(self.layers)}. Make the lists equally long."
            )
        if sum(self.layers) > _MAX_BLOCKS:
            raise InputError(f"resnet: expected at most {_MAX_BLOCKS} blocks, got {sum(self.layers)}. Reduce layers.")
        if isinstance(self.block, tuple) and len(self.block) != stages:
            raise InputError(
                f"resnet: expected one block for each of {stages} stages, got {len(self.block)}. Change block."
            )
        if self.out_widths and len(self.out_widths) != stages:
            raise InputError(
                f"resnet: expected one of out_widths for each of {stages} stages, got {len(self.out_widths)}. "
                "Change out_widths."
            )
        inner = sum(self.layers) * self.inner_convolutions
        if self.inner_widths and (len(self.inner_widths) != inner or self.cardinality != 1 or not self.out_widths):
            raise InputError(
                f"resnet with inner_widths: expected {inner} values for {sum(self.layers)} blocks, out_widths, one "
                f"type of block and cardinality 1, got {len(self.inner_widths)} values. Remove inner_widths."
            )

    def _check_combinations(self) -> None:
        """Check that options fit together."""
        self._check_output_stride()
        if self.down_kernel_size % 2 == 0:
            raise InputError(f"resnet: expected an odd down_kernel_size, got {self.down_kernel_size}. Use 1 or 3.")
        if self.shortcut == "none" and (self.join != "add" or self.drop_path or self.norm == "fixup"):
            raise InputError(
                'resnet with shortcut "none": expected join "add", drop_path 0 and a norm other than "fixup", got '
                f'join "{self.join}", drop_path {self.drop_path} and norm "{self.norm}". Use another shortcut.'
            )
        if self.norm == "fixup" and self.join != "add":
            raise InputError(f'resnet with norm "fixup": expected join "add", got "{self.join}". Remove join.')
        if self.norm in NORMS_WITH_ACTIVATION and not self.preact:
            raise InputError(
                f'resnet with norm "{self.norm}": expected block "preact_basic" or "preact_bottleneck", got '
                f'"{self.block}". Change block.'
            )
        if self.norm in NORMS_WITH_ACTIVATION and self.activation != "relu":
            raise InputError(
                f'resnet with norm "{self.norm}": expected no activation, because the norm has its own, got '
                f'"{self.activation}". Remove activation.'
            )
        if self.weight_standardization and self.padding == "same":
            raise InputError(
                'resnet with weight_standardization: expected padding "torch", got "same". Remove padding.'
            )
        if self.zero_init_last and self.join != "add":
            raise InputError(
                f'resnet with zero_init_last=True: expected join "add", got "{self.join}", which already starts at or '
                "near zero. Remove zero_init_last."
            )
        if self.zero_init_last is False and self.norm == "fixup":
            raise InputError(
                'resnet with norm "fixup": expected zero_init_last None or True, because Fixup needs zeros, got False. '
                "Remove zero_init_last."
            )

    def _check_reversible(self) -> None:
        identity = self.shortcut in ("auto", "pad", "pool")  # the identity if the shape is unchanged
        barred = self.norm == "fixup" or self.drop_path or self.zero_init_last or self.out_widths
        if not self.preact or self.join != "add" or not identity or barred:
            raise InputError(
                'resnet with reversible=True: expected block "preact_basic" or "preact_bottleneck", join '
                '"add", shortcut "auto", "pad" or "pool", norm "batch", "group" or "none", and no '
                "drop_path, zero_init_last or out_widths. Change these options."
            )
        odd = [width for width in (*self.widths, self.stem_channels or 2) if width % 2]
        if odd:
            raise InputError(f"resnet with reversible=True: expected even widths, got {odd[0]}. Make it even.")

    @property
    def blocks(self) -> tuple[str, ...]:
        """The block type of each stage."""
        return self.block if isinstance(self.block, tuple) else (self.block,) * len(self.layers)

    @property
    def preact(self) -> bool:
        """True if norm and activation come before each convolution."""
        return self.blocks[0].startswith("preact") if self.layers else str(self.block).startswith("preact")

    @property
    def inner_convolutions(self) -> int:
        """The number of convolutions of a body without the last; 0 if the stages have several types of block."""
        if isinstance(self.block, tuple):
            return 0
        return 1 if EXPANSION[self.block] == 1 else 2

    @property
    def zeroes_last(self) -> bool:
        """True if the last norm or convolution of every body starts with zeros."""
        if self.zero_init_last is not None:
            return self.zero_init_last
        return self.join == "add" and self.norm != "fixup" and (not self.preact or self.norm == "none")

    def out_channels(self, stage: int) -> int:
        """Return the output channels of a stage, counted from 0."""
        return self.out_widths[stage] if self.out_widths else self.nominal_channels(stage)

    def nominal_channels(self, stage: int) -> int:
        """Return the output channels of a stage before pruning."""
        return self.widths[stage] * EXPANSION[self.blocks[stage]]
