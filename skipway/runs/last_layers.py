"""Training of the last layers on cached outputs of the frozen layers, computed once for a few augmented views.

A step costs as much as the last layers, a tenth of the network or less. The views of an image are functions of (seed,
view, image). A run with the same layers reuses them, and a resumed run is bit-identical. Norm layers keep the
statistics of the pretrained weights.

Shapes: N images, V views, (C, H, W) output of the last frozen layer for one image.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skipway.data.images.device_copy import to_device
from skipway.data.images.loader import ImageBatches
from skipway.errors import printable
from skipway.kernels.layer_dispatch import run_layers
from skipway.models.network import Network
from skipway.runs.feature_cache import FeatureFile
from skipway.runs.head_phase import feature_cache
from skipway.runs.image_datamodule import ImageDataModule
from skipway.training.trainer import Settings
from skipway.utils.console import Console
from skipway.utils.format_text import count_of
from skipway.utils.stop_signals import StopFlag

__all__ = ["FrozenOutputs", "frozen_batches", "layers_after"]


class FrozenOutputs(ImageBatches):
    """Batches of frozen-layer outputs (B, C, H, W) in float32, in the order of the image batches.

    Args:
        batches: image batches, for the order of the images.
        files: outputs of the frozen layers for the images `ids`, one file per view.
        ids: image indices in the order of the rows of the files.
    """

    def __init__(self, batches: ImageBatches, files: Sequence[FeatureFile], ids: np.ndarray):
        self.__dict__.update(batches.__dict__)
        self.files = files
        self.row_of = np.full(len(batches.images.keys), -1)
        self.row_of[ids] = np.arange(len(ids))
        seed = batches.augmentation.seed if batches.augmentation is not None else 0
        self.first_view = np.random.default_rng(seed).integers(len(files), size=len(self.row_of))

    def inputs_of(self, batches: Iterable[np.ndarray], epoch: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield the ids of each batch with its inputs."""
        return ((ids, self.inputs(ids, epoch)) for ids in batches)

    def inputs(self, ids: np.ndarray, epoch: int = 0) -> Tensor:
        """Return the frozen-layer outputs of the images `ids`; the view changes with the epoch."""
        view, rows = (self.first_view[ids] + epoch) % len(self.files), self.row_of[ids]
        outputs = torch.empty(len(ids), *self.files[0].shape)
        for index, file in enumerate(self.files):
            chosen = np.flatnonzero(view == index)
            if len(chosen):
                outputs[torch.from_numpy(chosen)] = file.take(rows[chosen]).float()
        return to_device(outputs, self.device).contiguous(memory_format=torch.channels_last)


def frozen_batches(
    network: Network,
    datamodule: ImageDataModule,
    settings: Settings,
    folder: Path,
    *,
    console: Console,
    stop: StopFlag,
) -> tuple[FrozenOutputs, FrozenOutputs]:
    """Return training and validation batches for the layers after `settings.freeze_until`.

    Args:
        network: network whose frozen layers compute the outputs that are not cached.
        datamodule: data after `prepare` and `setup`.
        settings: training settings.
        folder: run folder; the cache is next to it.
        console: console for progress.
        stop: flag that interrupts the computation.
    """
    images, views = datamodule.images, datamodule.recipe.views
    cache = feature_cache(
        network, datamodule, settings.precision, folder, console=console, stop=stop, last=settings.freeze_until
    )
    begin = time.monotonic()
    train, val = datamodule.batches("train", train=True), datamodule.batches("val")
    train_ids, val_ids = images.splits["train"], images.splits["val"]
    if datamodule.recipe.fold is not None:  # the other folds need views of these images too
        train_ids = val_ids = np.sort(np.concatenate([train_ids, val_ids]))
    stored = [cache.stored(train, train_ids, view) for view in range(1, views + 1)]
    stored.append(cache.stored(val, val_ids))
    files, computed = [file for file, _ in stored], sum(count for _, count in stored)
    source = "cached"
    if computed:
        source = f"computed at {computed / max(time.monotonic() - begin, 1e-9):,.0f} images/s with {cache.engine}"
    console.print(
        f"  outputs of {settings.freeze_until}: {count_of(views, 'view')} of {count_of(len(train_ids), 'image')}, "
        f"{count_of(len(val_ids), 'image')} without augmentation, {source}, "
        f"{sum(file.nbytes for file in files) / 1e6:,.1f} MB in {printable(cache.folder)}"
    )
    return FrozenOutputs(train, files[:-1], train_ids), FrozenOutputs(val, files[-1:], val_ids)


def layers_after(network: Network, last: str) -> Callable[[Sequence[nn.Module], Any], Any]:
    """Return a `forward_impl` that runs `network` on outputs of its layer `last`.

    Args:
        network: network whose first layers are frozen.
        last: name of the last frozen layer.
    """
    return partial(_run_from, first=list(network._modules).index(last) + 1)


def _run_from(layers: Sequence[nn.Module], x: Any, first: int) -> Any:
    return run_layers(layers[first:], x)
