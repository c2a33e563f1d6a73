"""Small sets: batch size and epochs by the optimizer steps that they give, since those are what a small set lacks.

Measured on digits, 500 of them to validate on (ResNet-9, Muon, last epoch; 20 images: means of 2 seeds, else 1 seed):

| training images, batch | 20 steps | 50 | 100 | 200 | 400 |
| 20, 8 | 45.9% | 66.0% | 73.0% | 78.8% | 78.7% |
| 20, 20 | 74.6% | 80.0% | 79.9% | 80.2% | 81.6% |
| 60, 8 | | 80.0% | | 91.8% | 93.2% |
| 60, 32 | | 92.4% | | 94.6% | 95.2% |
| 160, 8 | | 74.0% | | 96.4% | 97.2% |
| 160, 32 | | 97.4% | | 97.8% | 98.0% |

So 200 steps are nearly enough for small batches too, and less than 50 are too few. A step of a larger batch teaches
more, but an epoch has fewer of them, and costs a validation and a checkpoint. After 25 epochs on 60 images both are
alike: 91.8 and 92.4%. On 20 images 200 steps took 11 s with batch 8 and 48 s with batch 20 (one thread of a busy
machine).
"""

import math

__all__ = ["FEW_IMAGES", "MIN_STEPS", "epochs_for_steps", "few_steps_line", "held_out_count", "small_batch_size"]

MIN_STEPS = 200  # of a run whose epochs are left open
FEW_STEPS = 50  # below which a run is warned of
FEW_IMAGES = 200  # training images, below which batches are small
_STEPS_PER_EPOCH = 6
_SMALLEST_BATCH, _USUAL_BATCH = 8, 32  # a batch norm needs several samples to measure their spread


def small_batch_size(count: int) -> int:
    """Return the batch size for less than `FEW_IMAGES` images: a power of 2 that gives several steps per epoch.

    >>> [small_batch_size(count) for count in (10, 60, 100, 199)]
    [8, 8, 16, 32]
    """
    size = 2 ** int(math.log2(max(count / _STEPS_PER_EPOCH, 1)))
    return min(max(size, _SMALLEST_BATCH), _USUAL_BATCH)


def held_out_count(count: int, fraction: float, has_validation: bool) -> int:
    """Return about how many of `count` images are trained on, before it is known which ones can be read."""
    return count if has_validation else max(count - round(count * fraction), 1)


def epochs_for_steps(epochs: int, count: int, batch_size: int, grad_accum_steps: int = 1) -> int:
    """Return the epochs that make at least `MIN_STEPS` optimizer steps, at least `epochs`."""
    return max(epochs, math.ceil(MIN_STEPS / _steps_per_epoch(count, batch_size, grad_accum_steps)))


def few_steps_line(epochs: int, count: int, batch_size: int, grad_accum_steps: int = 1) -> str:
    """Return a warning if the whole run has less than `FEW_STEPS` optimizer steps, else nothing."""
    steps = epochs * _steps_per_epoch(count, batch_size, grad_accum_steps)
    if steps >= FEW_STEPS:
        return ""
    plural = "s" * (steps != 1)
    return (
        f"  warning: {steps} optimizer step{plural} in all, too few to learn from: at least {FEW_STEPS} are expected. "
        "Give more --epochs, or leave --epochs out"
    )


def _steps_per_epoch(count: int, batch_size: int, grad_accum_steps: int) -> int:
    batches = max(count // batch_size + (count % batch_size > 1), 1)  # a last batch of one joins the one before
    return math.ceil(batches / grad_accum_steps)
