"""Batches of a decoded set, in an order that is a function of (seed, epoch).

Shapes: a batch is x (B, C, S, S) float, normalised, channels_last; y (B,) int64; ids (B,), indices of
pictures.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.data.images.augment_ops import CHANCES, DISTORTIONS, MIX_CHANCES, mixed
from skipway.data.images.augment_policy import augment_random_table, augmented, centred, random_table
from skipway.data.images.decoded_cache import DecodedImages
from skipway.errors import InputError
from skipway.kernels.image_ops import NORMALIZE

__all__ = ["Augmentation", "ImageBatches", "batch_bounds", "evenly", "mean_and_std", "shuffled"]

# A picture's chances: those of `augmented`, of each distortion, of mixing. What one takes never depends on the others.
_OWN = 5
_MIX = _OWN + CHANCES * len(DISTORTIONS)
Batch = tuple[Tensor, Tensor, np.ndarray]


def evenly(rows: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` of the rows, as far from each other as they can be."""
    count = min(count, len(rows))
    return rows[np.arange(count) * len(rows) // max(1, count)]


def batch_bounds(count: int, batch_size: int, least: int = 2) -> list[tuple[int, int]]:
    """(begin, end) of each batch over `count` pictures: none left out, and the last joined to the one before it where
    it has less than `least`.

    >>> batch_bounds(9, 4)
    [(0, 4), (4, 9)]
    """
    bounds = [(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
    if len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] < least:  # a batch norm has no spread over one
        bounds[-2:] = [(bounds[-2][0], count)]
    return bounds


def shuffled(rows: np.ndarray, labels: np.ndarray | None, seed: int, epoch: int) -> np.ndarray:
    """`rows` in the order of an epoch; with `labels` (of all samples) every class as often as any other, by repeating
    or leaving out some of its rows, in each epoch others."""
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    order: np.ndarray = rows[random.permutation(len(rows))]
    if labels is None:
        return order
    classes = random.permutation(np.unique(labels[order]))  # who has one more where they do not divide
    shares = np.full(len(classes), len(order) // len(classes))
    shares[: len(order) % len(classes)] += 1
    drawn = [np.resize(order[labels[order] == c], share) for c, share in zip(classes, shares, strict=True)]
    return np.concatenate(drawn)[random.permutation(len(order))]


def mean_and_std(pixels: np.ndarray, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pictures `rows`, in units of 255, exact whatever their number."""
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
    """What training pictures go through before the network is given them.

    parts: as `augment.choose` gives them, such as "shift+flip".
    seed: with epoch and picture, what everything random is a function of.
    mixup, cutmix: how evenly pictures are mixed (the Beta distribution's parameter); 0 for not at all.
    first_size, epochs: the size in the first epoch, which grows to the full one over two thirds of the epochs; 0 for
        the full one throughout.
    balanced: every class as often as any other, by repeating or leaving out pictures in each epoch anew.
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
    """The pictures `rows` of a decoded set in batches; with an `augmentation`, shuffled and changed as it says.

    Of every batch `part` (k, n) takes the k-th of n parts: what each of n processes is given.
    """

    def __init__(
        self,
        images: DecodedImages,
        rows: np.ndarray,
        batch_size: int,
        normalise: tuple[tuple[float, ...], tuple[float, ...]],
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
        part: tuple[int, int] = (0, 1),
    ):
        least = 2 * part[1] if augmentation is not None else 1
        if augmentation is not None and len(rows) < least:
            raise InputError(
                f"there are {len(rows)} training pictures, but a batch norm needs at least 2"
                f"{f' in each of {part[1]} processes' if part[1] > 1 else ''}; add more"
            )
        self.images, self.rows, self.augmentation, self.device = images, rows, augmentation, device
        self.part = part
        self.bounds = batch_bounds(len(rows), batch_size, max(2, least))
        # x / 255, minus mean, over std, as one multiplication and one addition.
        mean, std = (torch.tensor(v, dtype=torch.float32, device=device).view(1, -1, 1, 1) for v in normalise)
        self.factor, self.offset = 1 / (255 * std), -mean / std

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self.bounds)

    @property
    def count(self) -> int:
        """Pictures in an epoch."""
        return len(self.rows)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from the `start`-th on."""
        change, order = self.augmentation, self.rows
        if change is not None:
            order = shuffled(self.rows, self.images.labels if change.balanced else None, change.seed, epoch)
        for begin, end in self.bounds[start:]:
            ids = order[begin:end][self.part[0] :: self.part[1]]
            x, y = self.pictures(ids, epoch), torch.from_numpy(self.images.labels[ids]).to(self.device)
            if change is not None and (change.mixup or change.cutmix):
                chances = random_table(change.seed, epoch, ids, _MIX + MIX_CHANCES)[:, _MIX:]
                x, y = mixed(x, y, chances, len(self.images.class_names), change.mixup, change.cutmix)
            yield x, y, ids

    def some(self, count: int) -> tuple[Tensor, Tensor]:
        """x (N, C, S, S) and y (N,) of up to `count` pictures, without augmentation and whatever part this process has.

        They are evenly chosen.
        """
        ids = evenly(self.rows, count)
        x = self._normalised(centred(self.images.pixels, ids, self.images.settings.size))
        return x, torch.from_numpy(self.images.labels[ids]).to(self.device)

    def pictures(self, ids: np.ndarray, epoch: int = 0) -> Tensor:
        """The pictures `ids` as the network is given them in that epoch, before any are mixed."""
        size, change = self.images.settings.size, self.augmentation
        if change is None:
            return self._normalised(centred(self.images.pixels, ids, size))
        parts, wanted = change.parts.split("+"), change.size_at(epoch, size)
        cut = wanted if "zoom" in parts else size
        x = augmented(self.images.pixels, ids, change.parts, cut, augment_random_table(change.seed, epoch, ids)).to(
            self.device
        )
        if wanted != cut:
            x = F.interpolate(x.float(), (wanted, wanted), mode="bilinear", antialias=True)
        if any(part in DISTORTIONS for part in parts):
            x = x.float()
            table = torch.from_numpy(random_table(change.seed, epoch, ids, _MIX)).to(self.device, torch.float32)
            for index, (name, distort) in enumerate(DISTORTIONS.items()):
                if name in parts:
                    x = distort(x, table[:, _OWN + index * CHANCES :][:, :CHANCES])
        if change.transform is not None:
            x = self._transformed(x.float(), ids, epoch)
        return self._normalised(x)

    def _transformed(self, x: Tensor, ids: np.ndarray, epoch: int) -> Tensor:
        assert self.augmentation is not None and self.augmentation.transform is not None
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(int(random_table(self.augmentation.seed, epoch, ids[:1], 1)[0, 0] * 2**53))
            changed = self.augmentation.transform(x / 255)
        if not isinstance(changed, Tensor) or changed.shape[:2] != x.shape[:2] or changed.dim() != 4:
            found = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise InputError(
                f"the transform made {found} of a batch {tuple(x.shape)}; it takes and gives (B, C, H, W) of the "
                "same pictures and channels"
            )
        return changed * 255

    def _normalised(self, x: Tensor) -> Tensor:
        normalised: Tensor = NORMALIZE(x.to(self.device), self.factor, self.offset)
        return normalised
