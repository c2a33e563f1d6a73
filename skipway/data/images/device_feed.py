"""DeviceFeed: batches of stored pixels on a CUDA device, prepared while it computes the batch before.

A thread gathers the pixels of a batch into pinned memory and draws its crops. The loop's thread then starts the copy on
a stream of its own. While the device computes batch n, batch n + 1 is copied and batch n + 2 is gathered, so at most
three batches are in memory. Images that must be decoded for each batch are decoded by several threads, with a batch
each. Images that live on the device are not copied.

The order and the draws are arguments of the thread, so prefetching cannot change them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skipway.data.images.crop_zoom_flip import Crops
from skipway.data.images.device_copy import CopyStream, to_device
from skipway.data.images.device_pixels import crops_to_device
from skipway.data.images.stored_pixels import Pixels, gather_into, threads_ahead
from skipway.utils.map_ahead import map_ahead

__all__ = ["DeviceBatch", "DeviceFeed"]

Draw = Callable[[np.ndarray], Crops | None]


@dataclass(frozen=True)
class DeviceBatch:
    """A batch of stored images on a device.

    Attributes:
        ids: (B,) indices of the images.
        pixels: (N, P, P, C) stored pixels.
        rows: (B,) indices of the images in `pixels`.
        crops: crops and flips as tensors on the device, or None.
    """

    ids: np.ndarray
    pixels: Tensor
    rows: Tensor
    crops: Crops | None


@dataclass(frozen=True)
class _Request:
    ids: np.ndarray
    pinned: Tensor | None  # (B, P, P, C) for the pixels; None if they are on the device


class DeviceFeed:
    """Batches of stored pixels on a CUDA device.

    Args:
        pixels: (N, P, P, C) pixels of all images on the host.
        device: CUDA device.
        resident: the same pixels on the device, as `pixels_on_device` returns them, or None to copy each batch.
    """

    def __init__(self, pixels: Pixels, device: torch.device, resident: Tensor | None = None):
        self.pixels, self.device, self.resident = pixels, device, resident
        self.copies = CopyStream(device)

    def batches(self, batches: Iterable[np.ndarray], draw: Draw) -> Iterator[DeviceBatch]:
        """Yield a DeviceBatch for the ids of each batch.

        If the consumer stops early, the thread ends after the batch that it gathers. An error in the thread is raised
        here.

        Args:
            batches: (B,) ids of each batch.
            draw: returns the crops of the images with these ids, or None; called in a thread.
        """

        def prepare(request: _Request) -> tuple[_Request, Crops | None]:
            if request.pinned is not None:
                gather_into(self.pixels, request.ids, request.pinned.numpy().view(self.pixels.dtype))
            return request, draw(request.ids)

        # Pinned memory is requested in the consumer's thread.
        requests = (_Request(ids, self._pinned(len(ids))) for ids in batches)
        threads = threads_ahead(self.pixels)
        copied: deque[tuple[DeviceBatch, torch.cuda.Event | None]] = deque()
        for request, crops in map_ahead(prepare, requests, threads=threads, ahead=threads):
            copied.append(self._start(request, crops))
            if len(copied) > 1:
                yield self._finish(*copied.popleft())
        while copied:
            yield self._finish(*copied.popleft())

    def _pinned(self, count: int) -> Tensor | None:
        if self.resident is not None:
            return None
        dtype = torch.uint8 if self.pixels.dtype == np.uint8 else torch.int16
        return torch.empty((count, *self.pixels.shape[1:]), dtype=dtype, pin_memory=True)

    def _start(self, request: _Request, crops: Crops | None) -> tuple[DeviceBatch, torch.cuda.Event | None]:
        """Start the copy of a batch; return it with the event of its copy, or None if there is nothing to wait for."""
        ids, event, pixels = request.ids, None, self.resident
        rows = ids if pixels is not None else np.arange(len(ids))
        if request.pinned is not None:
            pixels, event = self.copies.start(request.pinned)
        assert pixels is not None
        on_device = None if crops is None else crops_to_device(crops, self.device)
        return DeviceBatch(ids, pixels, to_device(rows.astype(np.int64), self.device), on_device), event

    def _finish(self, batch: DeviceBatch, event: torch.cuda.Event | None) -> DeviceBatch:
        if event is not None:
            self.copies.finish(batch.pixels, event)
        return batch
