"""Defaults for small datasets: batch size and epochs that give enough optimizer steps.

Validation accuracy on digits, 500 validation images (ResNet-9, Muon, last epoch; 20 images: mean of 2 seeds, else 1):

| training images, batch | 20 steps | 50 | 100 | 200 | 400 |
| 20, 8 | 45.9% | 66.0% | 73.0% | 78.8% | 78.7% |
| 20, 20 | 74.6% | 80.0% | 79.9% | 80.2% | 81.6% |
| 60, 8 | | 80.0% | | 91.8% | 93.2% |
| 60, 32 | | 92.4% | | 94.6% | 95.2% |
| 160, 8 | | 74.0% | | 96.4% | 97.2% |
| 160, 32 | | 97.4% | | 97.8% | 98.0% |

200 steps are nearly enough even with small batches, and fewer than 50 are too few. A step with a larger batch improves
the model more, but an epoch then has fewer steps and still costs a validation and a checkpoint. After 25 epochs on 60
images both batch sizes are equal: 91.8% and 92.4%. On 20 images 200 steps took 11 s with batch size 8 and 48 s with
batch size 20 (one thread of a busy machine).
"""

import math

from skipway.utils.format_text import count_of

__all__ = ["FEW_IMAGES", "MIN_STEPS", "epochs_for_steps", "few_steps_line", "held_out_count", "small_batch_size"]

MIN_STEPS = 200  # optimizer steps of a run without --epochs
FEW_STEPS = 50  # fewer optimizer steps cause a warning
FEW_IMAGES = 200  # training images, below which batches are small
_STEPS_PER_EPOCH = 6
_SMALLEST_BATCH, _USUAL_BATCH = 8, 32  # a batch norm needs several samples to measure their spread


def small_batch_size(count: int) -> int:
    """Return the batch size for fewer than `FEW_IMAGES` images: a power of 2 that gives several steps per epoch.

    >>> [small_batch_size(count) for count in (10, 60, 100, 199)]
    [8, 8, 16, 32]
    """
    size = 2 ** int(math.log2(max(count / _STEPS_PER_EPOCH, 1)))
    return min(max(size, _SMALLEST_BATCH), _USUAL_BATCH)


def held_out_count(count: int, fraction: float, has_validation: bool) -> int:
    """Estimate the number of training images before any image is read.

    Args:
        count: number of files for training.
        fraction: share that is split off for validation.
        has_validation: the dataset has its validation split.
    """
    return count if has_validation else max(count - round(count * fraction), 1)


def epochs_for_steps(epochs: int, count: int, batch_size: int, grad_accum_steps: int = 1) -> int:
    """Return the number of epochs for `MIN_STEPS` optimizer steps or more.

    Args:
        epochs: minimum number of epochs.
        count: number of training images.
        batch_size: images per batch.
        grad_accum_steps: batches per optimizer step.
    """
    return max(epochs, math.ceil(MIN_STEPS / _steps_per_epoch(count, batch_size, grad_accum_steps)))


def few_steps_line(epochs: int, count: int, batch_size: int, grad_accum_steps: int = 1) -> str:
    """Return a warning if the whole run has fewer than `FEW_STEPS` optimizer steps, else an empty text.

    Args:
        epochs: number of epochs.
        count: number of training samples.
        batch_size: samples per batch.
        grad_accum_steps: batches per optimizer step.
    """
    steps = epochs * _steps_per_epoch(count, batch_size, grad_accum_steps)
    if steps >= FEW_STEPS:
        return ""
    return (
        f"  warning: only {count_of(steps, 'optimizer step')} in the whole run, expected at least {FEW_STEPS}. "
        "Increase --epochs, or drop it for the default."
    )


def _steps_per_epoch(count: int, batch_size: int, grad_accum_steps: int) -> int:
    batches = max(count // batch_size + (count % batch_size > 1), 1)  # a last batch of 1 joins the previous one
    return math.ceil(batches / grad_accum_steps)
