"""Time budget: image size and epochs of a run from scratch on photographs, by rows and time and not by size of files.

The unit of time is a training step of the quick network at 64 px, so that the rule holds on any machine; its table is
benchmarks/results/2026-11-29-from-scratch.md.
"""

import torch

from skipway.data.images.loader import Augmentation
from skipway.distributed import collectives
from skipway.model_factory import auto_model, create_model
from skipway.training.pace import step_seconds
from skipway.utils.console import duration

__all__ = ["FINISH_SECONDS", "budget_line", "image_size_for", "quick_step_seconds", "scratch_epochs", "size_growth"]

# Images that a run looks at by default, which takes some minutes on two cores: small ones, or larger ones for sets on
# which that makes enough epochs, and which are no smaller than those that larger images were seen to help.
_IMAGES, _LARGER_IMAGES = 60_000, 36_000
_LARGER_FROM, _LARGER_TO = 1_000, 4_000
_FEWEST_EPOCHS, _MOST_EPOCHS = 3, 60
_UNIT_SIZE, _UNIT_BATCH = 64, 32
# Epochs of the quick network at 64 px that a time leaves room for, from which on a size teaches more.
_SIZES = ((0.0, "32:48"), (2.5, "32:64"), (14.0, "48:96"), (40.0, "64:128"))
FINISH_SECONDS = 3.0  # for tables, plots and the report


def image_size_for(count: int, seconds: float | None, per_image: float) -> str:
    """Return the image sizes, first and full, at which `count` training photographs teach most in a time.

    Args:
        count: training images.
        seconds: for training, or None for the default number of epochs.
        per_image: what `quick_step_seconds` measured.
    """
    if seconds is None:
        return "48:96" if _gains_from_larger(count) else "32:64"
    room = seconds / (max(count, 1) * per_image)
    return [size for least, size in _SIZES if room >= least][-1]


def quick_step_seconds(device: str, precision: str) -> float:
    """Return the seconds that a training step of the quick network takes for an image of 64 px on this machine."""
    name, options = auto_model(_UNIT_SIZE, 1)
    with torch.random.fork_rng(devices=[]):  # what is measured must not change what is drawn
        network = create_model(name, **options).to(device)
    x = torch.zeros(_UNIT_BATCH, 3, _UNIT_SIZE, _UNIT_SIZE, device=device).to(memory_format=torch.channels_last)
    return max(collectives.all_gather(step_seconds(list(network), x, precision)))


def _gains_from_larger(count: int) -> bool:
    return _LARGER_FROM <= count <= _LARGER_TO


def scratch_epochs(count: int) -> int:
    """Return the default number of epochs on `count` training photographs."""
    images = _LARGER_IMAGES if _gains_from_larger(count) else _IMAGES
    return min(max(round(images / max(count, 1)), _FEWEST_EPOCHS), _MOST_EPOCHS)


def size_growth(augmentation: Augmentation | None, size: int, epochs: int) -> list[float]:
    """Return how far images have grown in each epoch, by area: 0 for their first size, 1 for the full one."""
    first = augmentation.first_size if augmentation is not None else 0
    if not first or first == size:
        return [1.0] * epochs
    sizes = [Augmentation(first_size=first, epochs=epochs).size_at(epoch, size) for epoch in range(epochs)]
    return [(s**2 - first**2) / (size**2 - first**2) for s in sizes]


def budget_line(epochs: int, seconds: float, limit: float) -> str:
    """Return the line about the epochs that a time limit leaves room for."""
    return (
        f"  time limit {duration(limit)}: {epochs} epoch{'s' * (epochs != 1)} in the {duration(seconds)} that are left"
    )
