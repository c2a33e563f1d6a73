"""Samples of a map-style dataset, whose code is the user's and may raise anything."""

from typing import Any

from skipway.data.sources.decode import BadImage
from skipway.errors import InputError, printable

__all__ = ["fetch_sample", "labeled_sample"]


def fetch_sample(x: Any, i: int) -> Any:
    """Return a sample of a dataset, or the reason why its code cannot read it."""
    try:
        return x[i]
    except Exception as error:  # code of the user, with any type of exception
        return BadImage(f"not readable: {type(error).__name__}: {printable(error)[:200]}".removesuffix(": "))


def labeled_sample(x: Any, i: int) -> tuple[Any, Any]:
    """Return the image and the target of a sample.

    Raises:
        InputError: the sample cannot be read, or is no pair.
    """
    sample = fetch_sample(x, i)
    if isinstance(sample, BadImage):
        raise InputError(
            f"cannot use sample {i} of the {type(x).__name__}: {sample}. Correct its __getitem__, or leave it out."
        )
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise InputError(
            f"cannot use sample {i} of the {type(x).__name__}: expected (image, target), got {type(sample).__name__}. "
            "Pass the images and y separately."
        )
    return sample[0], sample[1]
