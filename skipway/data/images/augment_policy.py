"""Augmentation policy: which operations a level stands for, and the random numbers that they take.

What happens to an image is a function of (seed, epoch, image), nothing else. So the number of workers, the batch size
and a resumed run cannot change it.

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
    """Return (len(ids), count) numbers in [0, 1) that depend on (seed, epoch, id, column) alone.

    SplitMix64 (Steele et al. 2014) used as a hash: each input is mixed in, then the bits are stirred.
    """
    with np.errstate(over="ignore"):
        state = _mix_bits(np.full(len(ids), seed, np.uint64) * _GOLDEN + np.uint64(epoch))
        state = _mix_bits(state + _GOLDEN * (ids.astype(np.uint64) + np.uint64(1)))
        columns = _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
        bits = _mix_bits(state[:, None] + columns[None, :])
    return (bits >> np.uint64(11)) / float(1 << 53)


def augment_random_table(seed: int, epoch: int, ids: np.ndarray) -> np.ndarray:
    """Return (len(ids), 5) numbers that `augment_pixels` takes; the first decides on the flip.

    Whether an image is flipped alternates from epoch to epoch, so that any two epochs in a row show both sides of
    every image.
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
    """Return the parts that a level stands for.

    Light ones move, medium ones also turn and recolor, strong ones do anything.
    Moving is a zoom where there is room to crop from, else a shift, with flips where a mirror is harmless. What names
    its parts itself stays as it is.
    """
    if level not in _LEVELS:
        return level
    moved = ("zoom" if stored_size > size else "shift") + ("+flip" if mirrored else "")
    return _LEVELS[level].format(moved=moved)


def describe_policy(level: str, size: int) -> str:
    """Describe the parts with their amounts."""
    descriptions = {
        "none": "none",
        "flip": "flip",
        "shift": f"shift by up to {max_shift(size)} px",
        "zoom": f"zoom to {ZOOM_AREA[0]:.0%} to 100% of the area",
        "affine": "turn, enlarge and shear a little",
        "color": "brightness, contrast and saturation",
        "trivial": "TrivialAugment",
        "erase": "erase a rectangle of a quarter of the images",
    }
    return ", ".join(descriptions[part] for part in level.split("+"))
