"""Mixup and CutMix: mix each image of a batch and its target with those of the previous image.

Shapes: x is (B, C, S, S) float; uniform (B, 4) random numbers in [0, 1); y (B,) class indices, or (B, K) labels or
numbers.
Sources: mixup, Zhang et al. 2017, arXiv:1710.09412; CutMix, Yun et al. 2019, arXiv:1905.04899.
"""

import numpy as np
import torch
from torch import Tensor

from skipway.data.images.color_affine_erase import boxes_inside
from skipway.data.images.device_copy import to_device

__all__ = ["NUM_MIX_UNIFORM", "mix_samples", "mix_weights"]

NUM_MIX_UNIFORM = 4


def mix_samples(
    x: Tensor,
    y: Tensor,
    uniform: np.ndarray,
    *,
    num_classes: int,
    mixup: float,
    cutmix: float,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mix each image of a batch with the previous one.

    Mixup blends the two images, CutMix pastes a rectangle of the other image. If both are enabled, each image uses
    one of them with equal probability. The mixing ratio follows Beta(alpha, alpha).

    Args:
        x: (B, C, S, S) images.
        y: (B,) class indices, or (B, K) labels or numbers.
        uniform: (B, 4) random numbers in [0, 1).
        num_classes: number of classes K.
        mixup: alpha of mixup; 0 disables it.
        cutmix: alpha of CutMix; 0 disables it.
        weights: (B,) weights of the samples, or None. Targets are mixed in proportion to weight and ratio, so that the
            loss times the weight of `mix_weights` is the mean loss of both targets.

    Returns:
        Mixed images (B, C, S, S) and mixed targets (B, K).
    """
    size = x.shape[-1]
    share, cut, side = _ratios(uniform, size, mixup, cutmix, x.device)
    corners = to_device(uniform[:, 2:4], x.device, torch.float32)
    inside = boxes_inside(corners[:, 0], corners[:, 1], height=side, width=side, size=size) & cut.view(-1, 1, 1, 1)
    partner = x.roll(1, 0)
    blended = torch.where(cut.view(-1, 1, 1, 1), x, torch.lerp(partner, x, share.view(-1, 1, 1, 1)))
    if y.dim() == 1:  # F.one_hot waits for some devices
        y = y[:, None] == torch.arange(num_classes, device=y.device)
    targets = y.float()
    if weights is not None:
        mixed = torch.lerp(weights.roll(1, 0), weights, share)
        share = torch.where(mixed > 0, share * weights / mixed.clamp(min=1e-30), share)
    return torch.where(inside, partner, blended), torch.lerp(targets.roll(1, 0), targets, share.view(-1, 1))


def mix_weights(weights: Tensor, uniform: np.ndarray, *, size: int, mixup: float, cutmix: float) -> Tensor:
    """Return the weights (B,) of mixed samples: the mean of both weights, by the ratio of `mix_samples`.

    Args:
        weights: (B,) weights of the samples.
        uniform: (B, 4) random numbers in [0, 1).
        size: size S of the images.
        mixup, cutmix: alpha of each; 0 disables it.
    """
    share, _, _ = _ratios(uniform, size, mixup, cutmix, weights.device)
    return torch.lerp(weights.roll(1, 0), weights, share)


def _ratios(
    uniform: np.ndarray, size: int, mixup: float, cutmix: float, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the share (B,) of each image in its mixture, True (B,) for CutMix, and the side (B,) of the rectangle."""
    from scipy.special import betaincinv

    cuts = uniform[:, 1] < 0.5 if mixup and cutmix else np.full(len(uniform), bool(cutmix))
    alpha = np.where(cuts, cutmix or 1.0, mixup or 1.0)
    share = to_device(betaincinv(alpha, alpha, uniform[:, 0]), device, torch.float32)
    cut = to_device(cuts, device)
    side = (size * (1 - share).sqrt()).round()
    return torch.where(cut, 1 - (side / size) ** 2, share), cut, side
