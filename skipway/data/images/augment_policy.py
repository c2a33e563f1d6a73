"""Augmentation policies: the operations of each level, and the random numbers that they use.

The augmentation of an image is a function of (seed, epoch, image). It does not depend on the number of workers, the
batch size or whether the run was resumed.

Source: alternating flips, Jordan 2024, arXiv:2404.00498.
"""

import numpy as np

from skipway.data.images.crop_zoom_flip import ZOOM_AREA, max_shift

__all__ = ["augment_random_table", "describe_policy", "random_table", "resolve_policy"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LEVELS = {
    "auto": "{moved}",
    "none": "none",
    "light": "{moved}",
    "medium": "{moved}+affine+color",
    "strong": "{moved}+trivial+erase",
}


def random_table(seed: int, epoch: int, ids: np.ndarray, count: int) -> np.ndarray:
    """Return uniform random numbers that depend only on (seed, epoch, id, column).

    SplitMix64 (Steele et al. 2014) is used as a hash of these four values.

    Args:
        seed: seed of the run.
        epoch: index of the epoch.
        ids: (B,) indices of samples.
        count: random numbers per sample.

    Returns:
        (B, count) float64 in [0, 1).

    >>> random_table(seed=0, epoch=1, ids=np.array([5, 7]), count=3).shape
    (2, 3)
    """
    with np.errstate(over="ignore"):
        state = _mix_bits(np.full(len(ids), seed, np.uint64) * _GOLDEN + np.uint64(epoch))
        state = _mix_bits(state + _GOLDEN * (ids.astype(np.uint64) + np.uint64(1)))
        columns = _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
        bits = _mix_bits(state[:, None] + columns[None, :])
    return (bits >> np.uint64(11)) / float(1 << 53)


def augment_random_table(seed: int, epoch: int, ids: np.ndarray) -> np.ndarray:
    """Return the random numbers for `augment_pixels`; the first column decides on the flip.

    Flips alternate from epoch to epoch, so that any two consecutive epochs contain both orientations of every image.

    Args:
        seed: seed of the run.
        epoch: index of the epoch.
        ids: (B,) indices of images.

    Returns:
        (B, 5) float64 in [0, 1).
    """
    table = random_table(seed, epoch, ids, count=5)
    flip = random_table(seed, 0, ids, count=1)[:, 0]
    table[:, 0] = flip if epoch % 2 == 0 else 1 - flip
    return table


def _mix_bits(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def resolve_policy(level: str, *, stored_size: int, size: int, mirrored: bool) -> str:
    """Resolve an augmentation level to its operations, joined by "+".

    "light" and "auto" zoom or shift, "medium" adds affine and color changes, "strong" adds TrivialAugment and erasing.

    Args:
        level: a level, or operations such as "shift+flip", which are returned unchanged.
        stored_size: size of the stored images; if larger than `size`, images are zoomed instead of shifted.
        size: size of the model's input.
        mirrored: True if flips preserve the class.

    >>> resolve_policy("medium", stored_size=8, size=8, mirrored=False)
    'shift+affine+color'
    """
    if level not in _LEVELS:
        return level
    moved = ("zoom" if stored_size > size else "shift") + ("+flip" if mirrored else "")
    return _LEVELS[level].format(moved=moved)


def describe_policy(level: str, size: int, channels: int = 3) -> str:
    """Describe the operations of a policy and their strengths, for console and report.

    Args:
        level: operations joined by "+", as `resolve_policy` returns them.
        size: size of the model's input, in pixels.
        channels: channels of the images; changes of saturation need RGB.
    """
    no_saturation = "" if channels in (1, 3) else ", without saturation, which needs RGB"
    descriptions = {
        "none": "none",
        "flip": "flip",
        "shift": f"shift by up to {max_shift(size)} px",
        "zoom": f"zoom to {ZOOM_AREA[0]:.0%} to 100% of the area",
        "affine": "small rotation, scaling and shear",
        "color": f"brightness and contrast{no_saturation}" if no_saturation else "brightness, contrast and saturation",
        "trivial": f"TrivialAugment{no_saturation}",
        "erase": "random erasing in 25% of the images",
    }
    return ", ".join(descriptions[part] for part in level.split("+"))
