"""Batches of decoded images, in an order that is a function of (seed, epoch).

Shapes: a batch is x (B, C, S, S) float, normalized, channels_last; y its targets: classes (B,)
int64, labels (B, K) or standardized numbers (B, T) float32; ids (B,) indices of images.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.data.image_spec import Spec
from skipway.data.images.augment_policy import augment_random_table, random_table
from skipway.data.images.color_affine_erase import AUGMENT_OPS, NUM_UNIFORM
from skipway.data.images.crop_zoom_flip import Crops, augment_pixels, center_crop, draw_crops
from skipway.data.images.decode_pass import channel_sums
from skipway.data.images.decoded_images import DecodedImages
from skipway.data.images.device_copy import to_device
from skipway.data.images.device_feed import DeviceBatch, DeviceFeed
from skipway.data.images.device_pixels import augment_on_device, center_crop_on_device
from skipway.data.images.image_rows import ImageRows, encode_columns
from skipway.data.images.mixup_cutmix import NUM_MIX_UNIFORM, mix_samples, mix_weights
from skipway.data.images.stored_pixels import gather, gather_ahead
from skipway.data.sample_order import Shard, batch_bounds, evenly_spaced, shuffle_rows, training_bounds
from skipway.data.sample_weights import loss_weights
from skipway.errors import InputError
from skipway.kernels.image_ops import NORMALIZE
from skipway.utils.devices import forked_rng

__all__ = ["Augmentation", "ImageBatches", "mean_and_std"]

# Columns of an image's random numbers: crop and flip, then one block per operation, then mixup and CutMix.
_OPS_START = 5
_MIX_START = _OPS_START + NUM_UNIFORM * len(AUGMENT_OPS)
_SUMMED = 16_384  # images whose sums are added in 64 bits
Batch = tuple[Any, Tensor, np.ndarray]  # x is a tensor, or ImageRows if there are feature columns


def mean_and_std(images: DecodedImages, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute the mean and standard deviation of each channel, for pixels in [0, 1].

    Both are exact: they are computed from sums of integers, which are taken when the images are decoded.

    Args:
        images: decoded images.
        rows: indices of the images to use.

    Returns:
        Means and standard deviations, of length C each; a standard deviation is at least one level: 1 / 255, or
        1 / 65535 for deep images.
    """
    size, channels = images.pixels.shape[1], images.pixels.shape[3]
    totals = [[0] * channels, [0] * channels]
    for begin in range(0, len(rows), _SUMMED):
        part = rows[begin : begin + _SUMMED]
        if images.sums is None:
            sums = np.array([channel_sums(images.pixels[row]) for row in part])
        else:
            sums = images.sums[part]
        for power, total in enumerate(sums.sum(axis=0).tolist()):
            totals[power] = [a + b for a, b in zip(totals[power], total, strict=True)]
    count, highest = len(rows) * size * size, int(np.iinfo(images.pixels.dtype).max)
    mean = [total / (highest * count) for total in totals[0]]
    variance = [count * square - total**2 for total, square in zip(*totals, strict=True)]
    std = [max(math.sqrt(value) / (highest * count), 1 / highest) for value in variance]
    return tuple(mean), tuple(std)


@dataclass(frozen=True)
class Augmentation:
    """Augmentation and sampling of training images.

    Args:
        parts: operations joined by "+", as `resolve_policy` returns them, such as "shift+flip".
        seed: seed of sample order and augmentation.
        mixup, cutmix: alpha of the Beta distribution; 0 disables.
        first_size: image size of the first epoch, for progressive resizing; it reaches the full size after two thirds
            of the epochs. 0 disables.
        epochs: number of epochs, for progressive resizing.
        balanced: True for class-balanced sampling: classes, or the rarest label of each image, are equally frequent.
        transform: custom transform of a batch (B, C, S, S) in [0, 1], applied last, on the device. torch's random
            number generator is seeded for each batch.
    """

    parts: str = "none"
    seed: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    first_size: int = 0
    epochs: int = 1
    balanced: bool = False
    transform: Callable[[Tensor], Tensor] | None = None

    def size_at(self, epoch: int, size: int) -> int:
        """Return the image size of an epoch: a multiple of 4 between `first_size` and `size`."""
        grown = min(1.0, epoch / max(1, math.ceil(2 / 3 * self.epochs)))
        if not self.first_size or grown == 1.0:
            return size
        return max(4, round((self.first_size + grown * (size - self.first_size)) / 4) * 4)

    def crop_size(self, epoch: int, size: int) -> int:
        """Return the size of the crops of an epoch: a zoom resizes them to the size of the epoch at once."""
        return self.size_at(epoch, size) if "zoom" in self.parts.split("+") else size


class ImageBatches:
    """Batches of decoded images: shuffled and augmented for training, in a fixed order for evaluation.

    Args:
        images: decoded images.
        rows: indices of the images to use, such as those of a split.
        batch_size: images per batch, over all processes.
        spec: normalization of the channels, and the standardization of the targets of a regression.
        augmentation: augmentation for training; None for evaluation, in the order of `rows`.
        device: device of the batches.
        shard: the part of every batch that this process loads; default: all of it.
        resident: pixels of all images on the device, as `pixels_on_device` returns them; default: those of each batch
            are copied to it.
    """

    def __init__(
        self,
        images: DecodedImages,
        rows: np.ndarray,
        batch_size: int,
        *,
        spec: Spec,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
        shard: Shard | None = None,
        resident: Tensor | None = None,
    ):
        self.shard = shard or Shard()
        self.images, self.rows, self.augmentation, self.device = images, rows, augmentation, device
        place = torch.device(device)
        self.feed = DeviceFeed(images.pixels, place, resident) if place.type == "cuda" else None
        if augmentation is None:
            self.bounds = batch_bounds(len(rows), batch_size)
        else:
            self.bounds = training_bounds(len(rows), batch_size, self.shard, "images")
        # (x / 255 - mean) / std as one multiplication and one addition.
        per_channel = partial(torch.tensor, dtype=torch.float32, device=device)
        mean, std = per_channel(spec.mean).view(1, -1, 1, 1), per_channel(spec.std).view(1, -1, 1, 1)
        self.factor, self.offset = 1 / (255 * std), -mean / std
        self.targets = spec.standardized(images.targets)
        self.columns: Tensor | None = None
        self.column_remarks: list[str] = []
        if spec.feature_columns:
            encoded = encode_columns(images, spec)
            self.columns, self.column_remarks = torch.from_numpy(encoded.x).to(device), encoded.remarks()
        self.loss_weights = loss_weights(images.weights, images.splits.get("train", rows))

    @property
    def steps(self) -> int:
        """Number of batches per epoch."""
        return len(self.bounds)

    @property
    def count(self) -> int:
        """Number of images per epoch."""
        return len(self.rows)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Iterate over (x, y, ids) of an epoch, beginning with batch `start`."""
        augmentation, order = self.augmentation, self.rows
        if augmentation is not None:
            labels = self.images.strata if augmentation.balanced else None
            order = shuffle_rows(self.rows, labels, seed=augmentation.seed, epoch=epoch)
        batches = (self.shard.take(order[begin:end]) for begin, end in self.bounds[start:])
        for ids, x in self.inputs_of(batches, epoch):
            y = self._targets(ids)
            if augmentation is not None and (augmentation.mixup or augmentation.cutmix):
                x, y = mix_samples(
                    x,
                    y,
                    _mix_uniform(augmentation.seed, epoch, ids),
                    num_classes=len(self.images.class_names),
                    mixup=augmentation.mixup,
                    cutmix=augmentation.cutmix,
                    weights=self._sample_weights(ids),
                )
            yield self._with_columns(x, ids), y, ids

    def _with_columns(self, x: Tensor, ids: np.ndarray) -> Any:
        return x if self.columns is None else ImageRows(x, self.columns[to_device(ids, self.device)])

    def weights(self, ids: np.ndarray, epoch: int = 0) -> Tensor | None:
        """Return the weights (B,) of the images `ids` of a batch, mixed as they are, or None for equal weights."""
        weights, augmentation = self._sample_weights(ids), self.augmentation
        if weights is None or augmentation is None or not (augmentation.mixup or augmentation.cutmix):
            return weights
        return mix_weights(
            weights,
            _mix_uniform(augmentation.seed, epoch, ids),
            size=augmentation.size_at(epoch, self.images.settings.size),
            mixup=augmentation.mixup,
            cutmix=augmentation.cutmix,
        )

    def _sample_weights(self, ids: np.ndarray) -> Tensor | None:
        return None if self.loss_weights is None else to_device(self.loss_weights[ids], self.device)

    def _targets(self, ids: np.ndarray) -> Tensor:
        return to_device(self.targets[ids], self.device)

    def some(self, count: int) -> tuple[Any, Tensor]:
        """Return inputs x, with feature columns if there are any, and targets y of up to `count` images.

        The images are evenly spaced, and not augmented.

        The sample is the same in every process.
        """
        ids = evenly_spaced(self.rows, count)
        pixels, rows = gather(self.images.pixels, ids)
        x = self._normalize(center_crop(pixels, rows, self.images.settings.size))
        return self._with_columns(x, ids), self._targets(ids)

    def inputs(self, ids: np.ndarray, epoch: int = 0) -> Tensor:
        """Return the inputs (B, C, S, S) for the images `ids` in an epoch, before mixup and CutMix."""
        if self.feed is not None:
            (batch,) = self.feed.batches([ids], partial(self._draw, epoch=epoch))
            return self._inputs_on_device(batch, epoch)
        pixels, rows = gather(self.images.pixels, ids)
        return self._inputs(pixels, rows, ids=ids, epoch=epoch)

    def inputs_of(self, batches: Iterable[np.ndarray], epoch: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield the ids of each batch with its inputs.

        Pixels on the disk are read ahead, and pixels for a CUDA device are copied ahead.
        """
        if self.feed is not None:
            for batch in self.feed.batches(batches, partial(self._draw, epoch=epoch)):
                yield batch.ids, self._inputs_on_device(batch, epoch)
            return
        for ids, (pixels, rows) in gather_ahead(self.images.pixels, batches):
            yield ids, self._inputs(pixels, rows, ids=ids, epoch=epoch)

    def _inputs(self, pixels: np.ndarray, rows: np.ndarray, *, ids: np.ndarray, epoch: int) -> Tensor:
        """Return the inputs for the images `ids`, which are the `rows` of `pixels`; pixels are cropped on the host."""
        size, augmentation = self.images.settings.size, self.augmentation
        if augmentation is None:
            return self._normalize(center_crop(pixels, rows, size))
        uniform, parts = augment_random_table(augmentation.seed, epoch, ids), augmentation.parts
        x = augment_pixels(pixels, rows, uniform, parts=parts, size=augmentation.crop_size(epoch, size))
        return self._augmented(x.to(self.device), ids, epoch)

    def _inputs_on_device(self, batch: DeviceBatch, epoch: int) -> Tensor:
        size = self.images.settings.size
        if self.augmentation is None or batch.crops is None:
            return self._normalize(center_crop_on_device(batch.pixels, batch.rows, size))
        crop_size = self.augmentation.crop_size(epoch, size)
        x = augment_on_device(batch.pixels, batch.rows, batch.crops, crop_size)
        return self._augmented(x, batch.ids, epoch)

    def _draw(self, ids: np.ndarray, epoch: int) -> Crops | None:
        """Return the crops of the images `ids`, or None for evaluation."""
        augmentation, settings = self.augmentation, self.images.settings
        if augmentation is None:
            return None
        return draw_crops(
            augment_random_table(augmentation.seed, epoch, ids),
            parts=augmentation.parts,
            stored_size=self.images.pixels.shape[1],
            size=augmentation.crop_size(epoch, settings.size),
        )

    def _augmented(self, x: Tensor, ids: np.ndarray, epoch: int) -> Tensor:
        """Return the inputs for cropped images x (B, C, S, S) on the device: further operations, then normalization."""
        augmentation = self.augmentation
        assert augmentation is not None
        epoch_size = augmentation.size_at(epoch, self.images.settings.size)
        if epoch_size != x.shape[-1]:
            x = F.interpolate(x.float(), (epoch_size, epoch_size), mode="bilinear", antialias=True)
        parts = augmentation.parts.split("+")
        if any(part in AUGMENT_OPS for part in parts):
            x = self._apply_ops(x.float(), parts, ids=ids, epoch=epoch)
        if augmentation.transform is not None:
            x = self._apply_transform(x.float(), ids, epoch)
        return self._normalize(x)

    def _apply_ops(self, x: Tensor, parts: list[str], *, ids: np.ndarray, epoch: int) -> Tensor:
        assert self.augmentation is not None
        table = random_table(self.augmentation.seed, epoch, ids, count=_MIX_START)
        uniform = torch.from_numpy(table).float()
        for index, (name, augment_op) in enumerate(AUGMENT_OPS.items()):
            if name in parts:
                x = augment_op(x, uniform[:, _OPS_START + index * NUM_UNIFORM :][:, :NUM_UNIFORM])
        return x

    def _apply_transform(self, x: Tensor, ids: np.ndarray, epoch: int) -> Tensor:
        assert self.augmentation is not None and self.augmentation.transform is not None
        with forked_rng(x.device):
            seed = random_table(self.augmentation.seed, epoch, ids[:1], count=1)[0, 0]
            torch.manual_seed(int(seed * 2**53))
            output = self.augmentation.transform(x / 255)
        if not isinstance(output, Tensor) or output.shape[:2] != x.shape[:2] or output.dim() != 4:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(
                f"cannot use the output of the transform: expected a tensor (B, C, H, W) with the batch size and "
                f"channels of its input {tuple(x.shape)}, got {shape}. Return one image per input image."
            )
        return output * 255

    def _normalize(self, x: Tensor) -> Tensor:
        normalized: Tensor = NORMALIZE(x.to(self.device), self.factor, self.offset)
        return normalized


def _mix_uniform(seed: int, epoch: int, ids: np.ndarray) -> np.ndarray:
    """Return the (B, 4) random numbers of mixup and CutMix of a batch."""
    return random_table(seed, epoch, ids, count=_MIX_START + NUM_MIX_UNIFORM)[:, _MIX_START:]
