"""Crops, zooms and flips of whole batches on a device, by the draws of the host.

Crops and flips are equal to those of the host to the last bit. Zooms are resampled by matrix products in float32, with
the weights and the rounding of Pillow, and differ from the host's by at most one level of 8 bits.

Shapes: B batch, P stored size, S input size, C channels. Pixels are (N, P, P, C) uint8, or int16 that has the bits of
uint16 for deep images, because few operators support uint16.
"""

import numpy as np
import torch
from torch import Tensor

from skipway.data.images.crop_zoom_flip import Crops, crop, crop_offset
from skipway.data.images.device_copy import to_device
from skipway.data.images.stored_pixels import Pixels, StoredPixels
from skipway.data.value_range import LEVEL_STEP

__all__ = [
    "as_torch_pixels",
    "augment_on_device",
    "center_crop_on_device",
    "crops_to_device",
    "pixels_on_device",
    "resident_lines",
]

_SHARE = 0.25  # of the free device memory that the images of a run may take; training needs the rest
_CHUNK = 64_000_000  # bytes of images per copy


def as_torch_pixels(pixels: np.ndarray) -> np.ndarray:
    """Return uint16 pixels as int16 of the same bits; others are returned unchanged."""
    return pixels.view(np.int16) if pixels.dtype == np.uint16 else pixels


def pixels_on_device(pixels: Pixels, device: torch.device | str) -> Tensor | None:
    """Copy all images to a CUDA device, or return None if they take more than a quarter of its free memory.

    Args:
        pixels: (N, P, P, C) pixels of all images. None is returned for images that must still be decoded.
        device: device of the run; None is returned for other devices than CUDA.
    """
    if torch.device(device).type != "cuda" or (isinstance(pixels, StoredPixels) and not pixels.is_decoded):
        return None
    nbytes = int(np.prod(pixels.shape)) * pixels.dtype.itemsize
    if nbytes > _SHARE * torch.cuda.mem_get_info(device)[0]:
        return None
    dtype = torch.uint8 if pixels.dtype == np.uint8 else torch.int16
    copied = torch.empty(pixels.shape, dtype=dtype, device=device)
    rows = max(1, _CHUNK * len(pixels) // max(1, nbytes))
    for begin in range(0, len(pixels), rows):
        part = np.array(pixels[begin : begin + rows])  # a copy, because torch warns of read-only files
        copied[begin : begin + rows].copy_(torch.from_numpy(as_torch_pixels(part)))
    return copied


def resident_lines(resident: Tensor | None, device: torch.device | str) -> list[str]:
    """Return the console line about images in the memory of a CUDA device, or about copies of each batch.

    Args:
        resident: result of `pixels_on_device`.
        device: device of the run; none is returned for other devices than CUDA.
    """
    if torch.device(device).type != "cuda":
        return []
    if resident is None:
        return [f"  each batch is copied to {device} while the one before it is computed"]
    return [f"  all images are kept on {device} ({resident.nbytes / 1e6:,.0f} MB)"]


def crops_to_device(crops: Crops, device: torch.device | str) -> Crops:
    """Return crops and flips as tensors on a device."""
    boxes = None if crops.boxes is None else to_device(crops.boxes, device)
    return Crops(to_device(crops.flip, device), to_device(crops.corners, device), boxes)


def augment_on_device(pixels: Tensor, rows: Tensor, crops: Crops, size: int) -> Tensor:
    """Crop, shift or zoom, and flip the images `rows`, as `augment_pixels` does on the host.

    Args:
        pixels: (N, P, P, C) on the device.
        rows: (B,) int64 indices into `pixels`, on the device.
        crops: tensors on the device, from `draw_crops`.
        size: size S of the output.

    Returns:
        (B, C, S, S) in channels_last memory format: uint8, or float32 levels of zooms and of deep images.
    """
    if crops.boxes is None:
        return _levels(crop(pixels, rows, crops, torch.arange(size, device=pixels.device))).permute(0, 3, 1, 2)
    with torch.autocast(pixels.device.type, enabled=False):
        return _zoom(pixels.index_select(0, rows), crops.boxes, crops.flip, size).permute(0, 3, 1, 2)


def center_crop_on_device(pixels: Tensor, rows: Tensor, size: int) -> Tensor:
    """Center-crop the images `rows`, as `center_crop` does on the host.

    Args:
        pixels: (N, P, P, C) on the device.
        rows: (B,) int64 indices into `pixels`, on the device.
        size: size S of the crop.

    Returns:
        (B, C, S, S) in channels_last memory format: uint8, or float32 levels of deep images.
    """
    start = crop_offset(pixels.shape[1], size)
    cropped = pixels[:, start : start + size, start : start + size]
    return _levels(cropped.index_select(0, rows)).permute(0, 3, 1, 2)


def _levels(pixels: Tensor) -> Tensor:
    """Convert int16 with the bits of uint16 to float32 levels in [0, 255]; bytes are returned unchanged."""
    return _numbers(pixels) / LEVEL_STEP if pixels.dtype == torch.int16 else pixels


def _numbers(pixels: Tensor) -> Tensor:
    """Return stored pixels as float32."""
    return (pixels.int() & 0xFFFF).float() if pixels.dtype == torch.int16 else pixels.float()


def _zoom(pixels: Tensor, boxes: Tensor, flip: Tensor, size: int) -> Tensor:
    """Resize a box of each image (B, P, P, C) to levels (B, S, S, C), antialiased and bilinear."""
    batch, stored_size, _, channels = pixels.shape
    across = _filter(boxes[:, 0], boxes[:, 2], stored_size, size)
    across = torch.where(flip[:, None, None], across.flip(1), across)
    planes = _numbers(pixels.permute(0, 3, 1, 2)).reshape(batch, channels * stored_size, stored_size)
    wide = planes @ across.transpose(1, 2)
    if pixels.dtype == torch.uint8:  # Pillow keeps bytes between the two directions
        wide = (wide + 0.5).floor()
    wide = wide.view(batch, channels, stored_size, size).permute(0, 2, 3, 1).reshape(batch, stored_size, -1)
    zoomed = (_filter(boxes[:, 1], boxes[:, 3], stored_size, size) @ wide).view(batch, size, size, channels)
    return (zoomed + 0.5).floor() if pixels.dtype == torch.uint8 else zoomed.round() / LEVEL_STEP


def _filter(begin: Tensor, end: Tensor, stored_size: int, size: int) -> Tensor:
    """Return the weights (B, S, P) of the stored pixels in each output pixel: triangles around its center."""
    scale = ((end - begin) / size)[:, None, None]
    output = torch.arange(size, device=begin.device)[None, :, None]
    stored = torch.arange(stored_size, device=begin.device)[None, None, :]
    centers = begin[:, None, None] + (output + 0.5) * scale
    weights = (1 - (stored + 0.5 - centers).abs() / scale.clamp(min=1)).clamp(min=0)
    return weights / weights.sum(2, keepdim=True)
