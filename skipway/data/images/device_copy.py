"""Copies of host values to a device that the host does not wait for.

A copy from pageable memory makes the host wait for the device. One from pinned memory does not, and torch keeps the
pinned memory until the copy is complete.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["CopyStream", "to_device"]


def to_device(values: np.ndarray | Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Return `values` as a tensor on `device`; the host does not wait for a CUDA device.

    Args:
        values: array or CPU tensor of any shape.
        device: device of the result.
        dtype: data type of the result; default: that of `values`.

    >>> to_device(np.array([1.0, 2.0]), "cpu", torch.float32)
    tensor([1., 2.])
    """
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    if dtype is not None:
        tensor = tensor.to(dtype)
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class CopyStream:
    """Copies pinned tensors to a CUDA device on a stream of its own, while the device computes.

    Args:
        device: CUDA device.
    """

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def start(self, pinned: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """Start the copy of a pinned tensor, and return its target and the event to pass to `finish`."""
        with torch.cuda.stream(self.stream):
            copied = pinned.to(self.device, non_blocking=True)
        return copied, self.stream.record_event()

    def finish(self, copied: Tensor, event: torch.cuda.Event) -> Tensor:
        """Let the current stream, not the host, wait for the copy; the result can then be used."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(event)
        copied.record_stream(current)  # else its memory could be reused before the current stream has read it
        return copied
