"""Image size for the features of a head that is fitted by regression, by accuracy and by time.

Source: higher resolution at test time than in training (FixRes), Touvron et al. 2019, arXiv:1906.06423.
"""

import time

import torch

from skipway.export.export_model import fuse
from skipway.models.network import Network
from skipway.runs.feature_cache import frozen_layers
from skipway.training.precision import feature_precision

__all__ = ["FIT_SECONDS", "feature_size", "largest_size", "seconds_for_features", "seconds_per_image"]

_TIMED = 16  # images for measuring the pace
_START_AND_END_SECONDS = 4.0  # overhead of a run: importing torch, plots and report
FIT_SECONDS = 0.0012  # seconds per image for fitting the head
_MARGIN = 0.95  # planned share of the time limit
_SMALLEST, _SIZE_STEP = 128, 16
_ENLARGED, _ENLARGED_FROM, _ENLARGED_STEP = 9 / 7, 192, 32  # ratio to the size of the weights, smallest size to enlarge
_MOST_ENLARGED = 10_000  # images


def feature_size(network: Network, precision: str, *, count: int, seconds: float | None) -> int:
    """Return the image size for the features of a head without fine-tuning.

    Images larger than in pretraining give better features, because objects in random crops appear larger than in whole
    images (FixRes). EfficientNet-Lite0 at 288 px instead of 224 px takes 1.65 times the time. Its accuracy is 96.1%
    instead of 94.8% on ants_bees, and 89.6% instead of 87.5% on clothing-dataset-small.

    Args:
        network: network with pretrained weights and a Spec.
        precision: "bf16" or "fp32".
        count: number of images of the run.
        seconds: time for the features; None to decide by the number of images alone.
    """
    size = network.require_image_spec().size
    largest = largest_size(size)
    if size < _ENLARGED_FROM:
        return size
    if seconds is None:
        return largest if count <= _MOST_ENLARGED else size
    per_image = seconds_per_image(network, precision)
    sizes = range(largest, _SMALLEST - 1, -_SIZE_STEP)  # time is proportional to the area
    return next((smaller for smaller in sizes if count * per_image * (smaller / size) ** 2 <= seconds), sizes[-1])


def largest_size(size: int) -> int:
    """Return the largest useful image size for weights that were trained at `size`."""
    if size < _ENLARGED_FROM:
        return size
    return round(size * _ENLARGED / _ENLARGED_STEP) * _ENLARGED_STEP


def seconds_for_features(time_limit: float, count: int, decoding: float) -> float:
    """Return the seconds of a time limit that remain for features.

    Args:
        time_limit: seconds for the whole run.
        count: number of images of the run.
        decoding: seconds for decoding one image.
    """
    return _MARGIN * time_limit - _START_AND_END_SECONDS - count * (decoding + FIT_SECONDS)


def seconds_per_image(network: Network, precision: str) -> float:
    """Measure the seconds per image for computing features at the network's image size.

    Args:
        network: network with a Spec and a linear head.
        precision: "bf16" or "fp32".
    """
    trunk = frozen_layers(network)
    model, x = fuse(trunk, feature_precision(precision)), torch.zeros(_TIMED, *trunk.require_image_spec().input_shape)
    x = x.to(next(trunk.parameters()).device)
    with torch.inference_mode():
        model(x)  # the first call packs the weights
        begin = time.monotonic()
        model(x).sum().item()
    return (time.monotonic() - begin) / _TIMED
