"""Time budget: image size and epochs of a run from scratch on photographs, by rows and time and not by size of files.

Measured on 2,934 flower photographs (whole commands, two cores of an EPYC without AMX): ResNet-9 with Muon
reaches 75.5% in 46 s at 64 px, 80.7% in 49 s at 48 px, 83.3% in 65 s growing from 32 to 64 px and 88.2% in 347 s at
64 px; ResNet-18 at 128 px 76.6% in 344 s.
"""

from skipway.data.images.loader import Augmentation
from skipway.utils.console import duration

__all__ = ["FINISH_SECONDS", "budget_line", "image_size_for", "scratch_epochs", "size_growth"]

_IMAGES = 60_000  # that a run looks at by default: some minutes on two cores
_FEWEST_EPOCHS, _MOST_EPOCHS = 3, 60
# Seconds per training image that a size needs, on two cores with bfloat16; a GPU is taken to be 30 times as fast.
_SIZES = ((0.0, "32:48"), (0.025, "32:64"), (0.4, "64:128"))
_GPU_FACTOR = 30.0
FINISH_SECONDS = 3.0  # for tables, plots and the report


def image_size_for(count: int, time_limit: float | None, device: str) -> str:
    """Return the image sizes, first and full, at which `count` training photographs teach most in a time.

    Args:
        count: training images.
        time_limit: seconds, or None for the default number of epochs.
        device: "cpu" or "cuda".
    """
    if time_limit is None:
        return "32:64"
    seconds = time_limit / max(count, 1) * (_GPU_FACTOR if device == "cuda" else 1)
    return [size for least, size in _SIZES if seconds >= least][-1]


def scratch_epochs(count: int) -> int:
    """Return the default number of epochs on `count` training photographs."""
    return min(max(round(_IMAGES / max(count, 1)), _FEWEST_EPOCHS), _MOST_EPOCHS)


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
