"""Time budget: image size and epochs of a run from scratch on photographs, by number of images and by time.

The unit of time is a training step of the default network at 64 px, so that the rule holds on any machine. The
measurements are in benchmarks/results/2026-11-29-from-scratch.md.
"""

from typing import Any

import torch

from skipway.data.images.loader import Augmentation
from skipway.distributed import collectives
from skipway.model_factory import auto_model, create_model
from skipway.training.pace import step_seconds
from skipway.utils.console import duration
from skipway.utils.format_text import count_of

__all__ = [
    "FINISH_SECONDS",
    "budget_line",
    "image_size_for",
    "quick_step_seconds",
    "scratch_epochs",
    "size_growth",
    "step_seconds_of",
]

# Images that a run processes by default, which takes some minutes on two cores. Sets in the range below use the second
# number and larger images: they get enough epochs, and sets of this size gained accuracy from larger images.
_IMAGES, _LARGER_IMAGES = 60_000, 36_000
_LARGER_FROM, _LARGER_TO = 1_000, 4_000
_FEWEST_EPOCHS, _MOST_EPOCHS = 3, 60
_UNIT_SIZE, _UNIT_BATCH = 64, 32
# (epochs of the default network at 64 px that fit into the time, image sizes that are most accurate from there on).
_SIZES = ((0.0, "32:48"), (2.5, "32:64"), (14.0, "48:96"), (40.0, "64:128"))
FINISH_SECONDS = 3.0  # for tables, plots and the report


def image_size_for(count: int, seconds: float | None, per_image: float) -> str:
    """Return the image sizes "FIRST:FULL" that give the best accuracy from scratch within a time.

    Args:
        count: number of training photographs.
        seconds: training time, or None for the default number of epochs.
        per_image: result of `quick_step_seconds`.
    """
    if seconds is None:
        return "48:96" if _gains_from_larger(count) else "32:64"
    epochs = seconds / (max(count, 1) * per_image)
    return [size for least, size in _SIZES if epochs >= least][-1]


def quick_step_seconds(device: str, precision: str) -> float:
    """Measure the seconds of a training step of the default network per image of 64 px on this machine.

    Args:
        device: "cpu", or an accelerator such as "cuda".
        precision: "bf16" or "fp32".
    """
    name, options = auto_model(_UNIT_SIZE, 1)
    shape = (_UNIT_BATCH, 3, _UNIT_SIZE, _UNIT_SIZE)
    return step_seconds_of(name, options, shape=shape, device=device, precision=precision)


def step_seconds_of(
    name: str, options: dict[str, Any], *, shape: tuple[int, int, int, int], device: str, precision: str
) -> float:
    """Measure the seconds of a training step of a network per image on this machine.

    Args:
        name: name of the network.
        options: its other options.
        shape: (B, C, H, W) of a batch.
        device: "cpu", or an accelerator such as "cuda".
        precision: "bf16", "fp16" or "fp32".
    """
    with torch.random.fork_rng(devices=[]):  # the measurement must not change the run's random numbers
        network = create_model(name, in_chans=shape[1], **options).to(device)
    x = torch.zeros(shape, device=device).to(memory_format=torch.channels_last)
    return max(collectives.all_gather(step_seconds(list(network), x, precision)))


def _gains_from_larger(count: int) -> bool:
    return _LARGER_FROM <= count <= _LARGER_TO


def scratch_epochs(count: int) -> int:
    """Return the default number of epochs on `count` training photographs."""
    images = _LARGER_IMAGES if _gains_from_larger(count) else _IMAGES
    return min(max(round(images / max(count, 1)), _FEWEST_EPOCHS), _MOST_EPOCHS)


def size_growth(augmentation: Augmentation | None, size: int, epochs: int) -> list[float]:
    """Return the growth of the images in each epoch, by area: 0 at the first size, 1 at the full size.

    Args:
        augmentation: augmentation with the first size, or None.
        size: full size in pixels.
        epochs: number of epochs.
    """
    first = augmentation.first_size if augmentation is not None else 0
    if not first or first == size:
        return [1.0] * epochs
    sizes = [Augmentation(first_size=first, epochs=epochs).size_at(epoch, size) for epoch in range(epochs)]
    return [(s**2 - first**2) / (size**2 - first**2) for s in sizes]


def budget_line(epochs: int, seconds: float, limit: float) -> str:
    """Return the console line about the number of epochs that fit into a time limit.

    Args:
        epochs: number of epochs that fit.
        seconds: remaining seconds.
        limit: seconds of the time limit.
    """
    return f"  time limit {duration(limit)}: {count_of(epochs, 'epoch')} within the remaining {duration(seconds)}"
