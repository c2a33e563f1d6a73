"""Mixup and CutMix: mix each image of a batch and its target with those of the previous image.

Shapes: x is (B, C, S, S) float; uniform (B, 4) random numbers in [0, 1); y (B,) class indices, or (B, K) labels or
numbers.
Sources: mixup, Zhang et al. 2017, arXiv:1710.09412; CutMix, Yun et al. 2019, arXiv:1905.04899.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.data.images.color_affine_erase import boxes_inside

__all__ = ["NUM_MIX_UNIFORM", "mix_samples"]

NUM_MIX_UNIFORM = 4


def mix_samples(
    x: Tensor, y: Tensor, uniform: np.ndarray, *, num_classes: int, mixup: float, cutmix: float
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

    Returns:
        Mixed images (B, C, S, S) and mixed targets (B, K).
    """
    from scipy.special import betaincinv

    cuts = uniform[:, 1] < 0.5 if mixup and cutmix else np.full(len(x), bool(cutmix))
    alpha = np.where(cuts, cutmix or 1.0, mixup or 1.0)
    share = torch.from_numpy(betaincinv(alpha, alpha, uniform[:, 0])).to(x.device, torch.float32)
    cut = torch.from_numpy(cuts).to(x.device)
    corners = torch.from_numpy(uniform[:, 2:4]).to(x.device, torch.float32)
    size = x.shape[-1]
    side = (size * (1 - share).sqrt()).round()
    inside = boxes_inside(corners[:, 0], corners[:, 1], height=side, width=side, size=size) & cut.view(-1, 1, 1, 1)
    share = torch.where(cut, 1 - (side / size) ** 2, share)
    partner = x.roll(1, 0)
    blended = torch.where(cut.view(-1, 1, 1, 1), x, torch.lerp(partner, x, share.view(-1, 1, 1, 1)))
    targets = (F.one_hot(y, num_classes) if y.dim() == 1 else y).float()
    return torch.where(inside, partner, blended), torch.lerp(targets.roll(1, 0), targets, share.view(-1, 1))
