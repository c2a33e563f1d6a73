"""ResNet-9 for small images: a residual network that trains in minutes on two CPU cores.

Shapes: (B, in_chans, H, W) -> (B, num_classes). H and W are at least 2 to the power of the number of stages, plus one
with a whitening stem.
Sources: D. Page, "How to train your ResNet" (2018 and 2019): the network, its whitening stem, fixed norm scales and
scaled logits; partial identities in its convolutions, Jordan 2024, arXiv:2404.00498.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.models.architecture_plan import Plan
from skipway.models.head import Scaled, classifier, pooled_channels, pooling
from skipway.nn.activations import ACTIVATIONS, make_activation
from skipway.nn.blocks import Layers, Step
from skipway.nn.chain import Chain
from skipway.nn.skip import Skip
from skipway.utils.devices import has_float64

__all__ = ["NETWORKS", "ResNet9Plan", "Whitening", "resnet9", "whiten"]

NETWORKS: dict[str, dict[str, Any]] = {
    "resnet9": {"widths": (64, 128, 256, 512), "num_classes": 10},
    "resnet9m": {"widths": (24, 64, 256, 256), "layers": (1, 1, 1), "stem": "whitening", "num_classes": 10},
    "resnet9m_gelu": {
        "widths": (24, 64, 256, 256),
        "layers": (1, 1, 1),
        "stem": "whitening",
        "activation": "gelu",
        "num_classes": 10,
    },
}
STEMS = ("small", "whitening")
_MAX_CONVOLUTIONS = 1000  # a malicious plan must not fill the memory
_SMALLEST_SPREAD = 5e-4  # limits the amplification of directions that contain only noise
_BATCH = 256  # images whose patches fit the CPU caches
_LOGIT_SCALE = 1 / 9  # a max pool, not a mean, feeds the head: unscaled logits would start too large


class Whitening(nn.Conv2d):
    """A stem of fixed 2x2 filters and a learned bias that whitens 2x2 patches of the image.

    The filters are the principal directions of the patches, divided by the root mean square of the patches along them,
    and the negatives of these filters. Their outputs are therefore uncorrelated and of equal scale. The filters are
    random until `fit` is called.

    Args:
        in_chans: channels C of the images.

    Shapes:
        (B, C, H, W) -> (B, 8C, H-1, W-1).

    >>> Whitening(3)(torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 24, 7, 7])
    """

    def __init__(self, in_chans: int):
        super().__init__(in_chans, 8 * in_chans, 2)
        self.weight.requires_grad_(False)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Compute the filters in float64 from images x (B, C, H, W), normalized as for training."""
        x = x if has_float64(x.device.type) else x.cpu()
        products, count = torch.zeros(4 * x.shape[1], 4 * x.shape[1], dtype=torch.float64, device=x.device), 0
        for part in x.split(_BATCH):
            patches = part.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, len(products)).double()
            products += patches.T @ patches
            count += len(patches)
        spread, directions = torch.linalg.eigh(products / count)
        filters = (directions / (spread.clamp_min(0) + _SMALLEST_SPREAD).sqrt()).T.reshape(-1, x.shape[1], 2, 2)
        self.weight.copy_(torch.cat([filters, -filters]))


def whiten(network: nn.Module, x: Tensor) -> None:
    """Fit every whitening stem in `network` to images x (B, C, H, W)."""
    for module in network.modules():
        if isinstance(module, Whitening):
            module.fit(x)


@dataclass(frozen=True, kw_only=True)
class ResNet9Plan(Plan):
    """Values that define one ResNet-9.

    Args:
        widths: channels of the stem and of each stage; every stage halves the resolution.
        layers: convolutions in the body of each stage's Skip; 0 for a stage without a Skip.
        stem: "small" (3x3 convolution) or "whitening" (fixed 2x2 filters that decorrelate the training images;
            `widths[0]` is not used).
        in_chans: channels of the images.
        activation: "relu", "gelu" or another key of `ACTIVATIONS`.
        num_classes: number of outputs; 0 for no classifier, so that the outputs are the pooled features.
        global_pool: "avg", "max", "avgmax" (mean of both), "catavgmax" (both, concatenated), or "none" (returns the
            feature map; requires num_classes=0).
        drop_rate: dropout rate before the head.

    >>> ResNet9Plan().layers
    (2, 0, 2)
    """

    FAMILY: ClassVar[str] = "resnet9"

    widths: tuple[int, ...] = (64, 128, 256, 512)
    layers: tuple[int, ...] = (2, 0, 2)
    stem: str = "small"
    activation: str = "relu"
    in_chans: int = 3
    num_classes: int = 10
    global_pool: str = "max"
    drop_rate: float = 0.0

    def __post_init__(self) -> None:
        self._check_head()
        self._check_whole_numbers("widths", "in_chans")
        self._check_whole_numbers("layers", minimum=0)
        if not self.layers or len(self.widths) != len(self.layers) + 1:
            raise InputError(
                f"resnet9: expected one more width than layers, for the stem, got {list(self.widths)} for "
                f"layers {list(self.layers)}. Change widths or layers."
            )
        if sum(self.layers) + len(self.layers) > _MAX_CONVOLUTIONS:
            raise InputError(
                f"resnet9: expected at most {_MAX_CONVOLUTIONS} convolutions, got {sum(self.layers) + len(self.layers)}"
                " in its blocks and between them. Reduce layers."
            )
        self._check_choices(stem=STEMS, activation=tuple(ACTIVATIONS))


def resnet9(plan: ResNet9Plan) -> Chain:
    """Build the ResNet-9 of `plan` with random initial weights."""
    if plan.stem == "whitening":
        white = Whitening(plan.in_chans)
        stem, channels = Chain(white=white, act=make_activation(plan.activation)), white.out_channels
    else:
        stem, channels = _conv(plan.in_chans, plan.widths[0], plan.activation), plan.widths[0]
    stages: dict[str, nn.Module] = {}
    for index, (width, count) in enumerate(zip(plan.widths[1:], plan.layers, strict=True)):
        inner = [_conv(width, width, plan.activation) for _ in range(count)]
        body: dict[str, nn.Module] = {"skip": Skip(inner)} if count else {}
        stages[f"stage{index + 1}"] = Chain(down=_down(channels, width, plan.activation), **body)
        channels = width
    features = pooled_channels(channels, plan.global_pool)
    return Chain(
        stem=stem,
        **stages,
        **pooling(plan.global_pool),
        **classifier(features, plan.num_classes, drop_rate=plan.drop_rate, bias=False),
        **({"scale": Scaled(_LOGIT_SCALE)} if plan.num_classes else {}),
    )


def _conv(in_channels: int, out_channels: int, activation: str) -> Chain:
    return Chain(
        conv=_partial_identity(in_channels, out_channels), norm=_norm(out_channels), act=make_activation(activation)
    )


def _down(in_channels: int, out_channels: int, activation: str) -> Chain:
    return Chain(
        conv=_partial_identity(in_channels, out_channels),
        pool=nn.MaxPool2d(2),
        norm=_norm(out_channels),
        act=make_activation(activation),
    )


def _partial_identity(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Build a convolution whose first filters pass each input channel unchanged."""
    layer = Layers().conv(in_channels, Step(out_channels, 3))
    nn.init.dirac_(layer.weight.data[:in_channels])
    return layer


def _norm(channels: int) -> nn.BatchNorm2d:
    """Build a norm with its scale fixed at 1, because later layers set the scale, and its bias trains faster without
    it.
    """
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm
