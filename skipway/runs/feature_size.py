"""The size of the images whose features a head is fitted to: as large as helps, and as the time allows.

Source: larger images in tests than in training, Touvron et al. 2019, arXiv:1906.06423.
"""

import time

import torch

from skipway.export.export_model import fuse
from skipway.models.network import Network
from skipway.runs.feature_cache import frozen_layers

__all__ = ["FIT_SECONDS", "feature_size", "largest_size", "seconds_for_features", "seconds_per_image"]

_TIMED = 16  # images by which the pace is measured
_START_AND_END_SECONDS = 4.0  # of a run: loading torch, plots and report
FIT_SECONDS = 0.0012  # of fitting the head, for each image
_MARGIN = 0.95  # share of the time limit that is planned for
_SMALLEST, _SIZE_STEP = 128, 16
_ENLARGED, _ENLARGED_FROM, _ENLARGED_STEP = 9 / 7, 192, 32  # over the size of the weights; smaller: no photographs
_MOST_ENLARGED = 10_000  # images


def feature_size(network: Network, precision: str, *, count: int, seconds: float | None) -> int:
    """Return the image size at which features are computed for a head alone.

    Images larger than those that the weights were trained on give better features, since objects in random crops look
    larger than in whole images (FixRes). At 288 px instead of 224 EfficientNet-Lite0's are right on 96.1% instead of
    94.8% of ants_bees, and on 89.6% instead of 87.5% of clothing-dataset-small, in 1.65 times the time.

    Args:
        network: a network with trained weights and a Spec.
        precision: of the features.
        count: images of the run.
        seconds: that the features may take; None for a size that goes by the number of images alone.
    """
    size = network.require_image_spec().size
    largest = largest_size(size)
    if size < _ENLARGED_FROM:
        return size
    if seconds is None:
        return largest if count <= _MOST_ENLARGED else size
    per_image = seconds_per_image(network, precision)
    sizes = range(largest, _SMALLEST - 1, -_SIZE_STEP)  # the time goes with the area
    return next((smaller for smaller in sizes if count * per_image * (smaller / size) ** 2 <= seconds), sizes[-1])


def largest_size(size: int) -> int:
    """Return the largest size of images for weights that were trained on `size`."""
    if size < _ENLARGED_FROM:
        return size
    return round(size * _ENLARGED / _ENLARGED_STEP) * _ENLARGED_STEP


def seconds_for_features(time_limit: float, count: int, decoding: float) -> float:
    """Return what a time limit leaves for features.

    Args:
        time_limit: seconds of the whole run.
        count: images of the run.
        decoding: seconds that decoding an image takes.
    """
    return _MARGIN * time_limit - _START_AND_END_SECONDS - count * (decoding + FIT_SECONDS)


def seconds_per_image(network: Network, precision: str) -> float:
    """Return the seconds that the features of one image of the network's own size take, by a few images."""
    trunk = frozen_layers(network)
    model, x = fuse(trunk, precision), torch.zeros(_TIMED, *trunk.require_image_spec().input_shape)
    x = x.to(next(trunk.parameters()).device)
    with torch.inference_mode():
        model(x)  # weights are packed
        begin = time.monotonic()
        model(x).sum().item()
    return (time.monotonic() - begin) / _TIMED
