"""Batches of a decoded set, in an order that is a function of (seed, epoch).

Shapes: a batch is x (B, C, S, S) float, normalised, channels_last; y (B,) int64; ids (B,), indices of
images.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.data.images.augment_policy import augment_random_table, random_table
from skipway.data.images.color_affine_erase import AUGMENT_OPS, NUM_UNIFORM
from skipway.data.images.crop_zoom_flip import augment_pixels, center_crop
from skipway.data.images.decoded_cache import DecodedImages
from skipway.data.images.mixup_cutmix import NUM_MIX_UNIFORM, mix_samples
from skipway.data.sample_order import Shard, batch_bounds, evenly_spaced, shuffle_rows, training_bounds
from skipway.errors import InputError
from skipway.kernels.image_ops import NORMALIZE

__all__ = ["Augmentation", "ImageBatches", "mean_and_std"]

# Columns of an image's random numbers: first those of moving it, then of each operation, then of mixing.
_OPS_START = 5
_MIX_START = _OPS_START + NUM_UNIFORM * len(AUGMENT_OPS)
Batch = tuple[Tensor, Tensor, np.ndarray]


def mean_and_std(pixels: np.ndarray, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of images `rows`, in units of 255.

    Both are exact, however many images there are.
    """
    counts = np.zeros((pixels.shape[3], 256), np.int64)
    for begin in range(0, len(rows), 256):
        chunk = pixels[rows[begin : begin + 256]]
        for channel in range(pixels.shape[3]):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt(np.maximum(share @ values**2 - mean**2, 0))
    return tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist())


@dataclass(frozen=True)
class Augmentation:
    """What training images go through before the network is given them.

    parts: as `resolve_policy` returns them, such as "shift+flip".
    seed: with epoch and image, what everything random is a function of.
    mixup, cutmix: how evenly images are mixed (the Beta distribution's parameter); 0 for not at all.
    first_size, epochs: the size in the first epoch, which grows to the full one over two thirds of the epochs; 0 for
        the full one throughout.
    balanced: every class as often as any other, by repeating or leaving out images in each epoch anew.
    transform: what is done to a batch (B, C, S, S) in 0 to 1 on top of it all, on the device; its random numbers are
        torch's, seeded for each batch.
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
        """Height and width in an epoch: multiples of 4 on the way from `first_size` to `size`."""
        grown = min(1.0, epoch / max(1, math.ceil(2 / 3 * self.epochs)))
        if not self.first_size or grown == 1.0:
            return size
        return max(4, round((self.first_size + grown * (size - self.first_size)) / 4) * 4)


class ImageBatches:
    """The images `rows` of a decoded set in batches; with an `augmentation`, shuffled and changed as it says.

    Args:
        images: the decoded set.
        rows: the images to take from it, such as those of a split.
        batch_size: images in a batch of all processes together.
        mean, std: per channel, in units of 255, to normalise with.
        augmentation: for training; None for evaluation, in the order of `rows`.
        device: where the batches go.
        shard: the part of every batch that this process takes.
    """

    def __init__(
        self,
        images: DecodedImages,
        rows: np.ndarray,
        batch_size: int,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
        shard: Shard | None = None,
    ):
        self.shard = shard or Shard()
        self.images, self.rows, self.augmentation, self.device = images, rows, augmentation, device
        if augmentation is None:
            self.bounds = batch_bounds(len(rows), batch_size)
        else:
            self.bounds = training_bounds(len(rows), batch_size, self.shard, "images")
        # x / 255, minus mean, over std, as one multiplication and one addition.
        per_channel = partial(torch.tensor, dtype=torch.float32, device=device)
        mean_tensor, std_tensor = per_channel(mean).view(1, -1, 1, 1), per_channel(std).view(1, -1, 1, 1)
        self.factor, self.offset = 1 / (255 * std_tensor), -mean_tensor / std_tensor

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self.bounds)

    @property
    def count(self) -> int:
        """Images in an epoch."""
        return len(self.rows)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of an epoch from the `start`-th on."""
        augmentation, order = self.augmentation, self.rows
        if augmentation is not None:
            labels = self.images.labels if augmentation.balanced else None
            order = shuffle_rows(self.rows, labels, seed=augmentation.seed, epoch=epoch)
        for begin, end in self.bounds[start:]:
            ids = self.shard.take(order[begin:end])
            x, y = self.inputs(ids, epoch), torch.from_numpy(self.images.labels[ids]).to(self.device)
            if augmentation is not None and (augmentation.mixup or augmentation.cutmix):
                count = _MIX_START + NUM_MIX_UNIFORM
                uniform = random_table(augmentation.seed, epoch, ids, count=count)[:, _MIX_START:]
                x, y = mix_samples(
                    x,
                    y,
                    uniform,
                    num_classes=len(self.images.class_names),
                    mixup=augmentation.mixup,
                    cutmix=augmentation.cutmix,
                )
            yield x, y, ids

    def some(self, count: int) -> tuple[Tensor, Tensor]:
        """x (N, C, S, S) and y (N,) of up to `count` images, without augmentation and whatever part this process has.

        They are evenly chosen.
        """
        ids = evenly_spaced(self.rows, count)
        x = self._normalize(center_crop(self.images.pixels, ids, self.images.settings.size))
        return x, torch.from_numpy(self.images.labels[ids]).to(self.device)

    def inputs(self, ids: np.ndarray, epoch: int = 0) -> Tensor:
        """Return the images `ids` as the network gets them in that epoch, before any are mixed."""
        size, augmentation = self.images.settings.size, self.augmentation
        if augmentation is None:
            return self._normalize(center_crop(self.images.pixels, ids, size))
        parts, epoch_size = augmentation.parts.split("+"), augmentation.size_at(epoch, size)
        crop_size = epoch_size if "zoom" in parts else size
        uniform = augment_random_table(augmentation.seed, epoch, ids)
        x = augment_pixels(self.images.pixels, ids, uniform, parts=augmentation.parts, size=crop_size).to(self.device)
        if epoch_size != crop_size:
            x = F.interpolate(x.float(), (epoch_size, epoch_size), mode="bilinear", antialias=True)
        if any(part in AUGMENT_OPS for part in parts):
            x = self._apply_ops(x.float(), parts, ids=ids, epoch=epoch)
        if augmentation.transform is not None:
            x = self._apply_transform(x.float(), ids, epoch)
        return self._normalize(x)

    def _apply_ops(self, x: Tensor, parts: list[str], *, ids: np.ndarray, epoch: int) -> Tensor:
        assert self.augmentation is not None
        table = random_table(self.augmentation.seed, epoch, ids, count=_MIX_START)
        uniform = torch.from_numpy(table).to(self.device, torch.float32)
        for index, (name, augment_op) in enumerate(AUGMENT_OPS.items()):
            if name in parts:
                x = augment_op(x, uniform[:, _OPS_START + index * NUM_UNIFORM :][:, :NUM_UNIFORM])
        return x

    def _apply_transform(self, x: Tensor, ids: np.ndarray, epoch: int) -> Tensor:
        assert self.augmentation is not None and self.augmentation.transform is not None
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            seed = random_table(self.augmentation.seed, epoch, ids[:1], count=1)[0, 0]
            torch.manual_seed(int(seed * 2**53))
            output = self.augmentation.transform(x / 255)
        if not isinstance(output, Tensor) or output.shape[:2] != x.shape[:2] or output.dim() != 4:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(
                f"the transform made {shape} of a batch {tuple(x.shape)}; it takes and gives (B, C, H, W) of the "
                "same images and channels"
            )
        return output * 255

    def _normalize(self, x: Tensor) -> Tensor:
        normalized: Tensor = NORMALIZE(x.to(self.device), self.factor, self.offset)
        return normalized
