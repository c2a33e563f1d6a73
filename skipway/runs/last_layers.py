"""Training the last layers of a network on outputs of the frozen ones, which are computed once for a few views.

A step costs what the last layers cost, a tenth of the network or less. The views of an image are functions of (seed,
view, image), so that a run with the same layers finds them again, and a resumed one goes on to the same bits. Norms
keep the statistics that the weights came with.

Shapes: N images, V views, (C, H, W) what the last frozen layer gives for one image.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skipway.data.images.loader import ImageBatches
from skipway.errors import printable
from skipway.kernels.layer_dispatch import run_layers
from skipway.models.network import Network
from skipway.runs.feature_cache import FeatureFile
from skipway.runs.head_phase import feature_cache
from skipway.runs.image_datamodule import ImageDataModule
from skipway.training.trainer import Settings
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag

__all__ = ["FrozenOutputs", "frozen_batches", "layers_after"]


class FrozenOutputs(ImageBatches):
    """Batches whose inputs are outputs of the frozen layers, (B, C, H, W) in float32, in the order of `batches`."""

    def __init__(self, batches: ImageBatches, files: Sequence[FeatureFile], ids: np.ndarray):
        """Take the order of images from `batches`, and their inputs from one file per view.

        Args:
            batches: those of the images.
            files: the outputs for the images `ids`, one file for each view.
            ids: images, in the order of the rows of the files.
        """
        self.__dict__.update(batches.__dict__)
        self.files = files
        self.row_of = np.full(len(batches.images.labels), -1)
        self.row_of[ids] = np.arange(len(ids))
        seed = batches.augmentation.seed if batches.augmentation is not None else 0
        self.first_view = np.random.default_rng(seed).integers(len(files), size=len(self.row_of))

    def inputs(self, ids: np.ndarray, epoch: int = 0) -> Tensor:
        """Return what the frozen layers made of the images: of another view in each epoch, in turn."""
        view, rows = (self.first_view[ids] + epoch) % len(self.files), self.row_of[ids]
        outputs = torch.empty(len(ids), *self.files[0].shape)
        for index, file in enumerate(self.files):
            chosen = np.flatnonzero(view == index)
            if len(chosen):
                outputs[torch.from_numpy(chosen)] = file.take(rows[chosen]).float()
        return outputs.to(self.device).contiguous(memory_format=torch.channels_last)


def frozen_batches(
    network: Network,
    datamodule: ImageDataModule,
    settings: Settings,
    folder: Path,
    *,
    console: Console,
    stop: StopFlag,
) -> tuple[FrozenOutputs, FrozenOutputs]:
    """Return the batches of training and of validation of the layers after `settings.freeze_until`.

    Args:
        network: its frozen layers compute what is not in the cache.
        datamodule: prepared and set up.
        settings, folder, console, stop: those of the run.
    """
    images, views = datamodule.images, datamodule.recipe.views
    cache = feature_cache(
        network, datamodule, settings.precision, folder, console=console, stop=stop, last=settings.freeze_until
    )
    begin = time.monotonic()
    train, val = datamodule.batches("train", train=True), datamodule.batches("val")
    train_ids, val_ids = images.splits["train"], images.splits["val"]
    if datamodule.recipe.fold is not None:  # other folds need the views of all images
        train_ids = val_ids = np.sort(np.concatenate([train_ids, val_ids]))
    stored = [cache.stored(train, train_ids, view) for view in range(1, views + 1)]
    stored.append(cache.stored(val, val_ids))
    files, computed = [file for file, _ in stored], sum(count for _, count in stored)
    source = "found"
    if computed:
        source = f"{computed / max(time.monotonic() - begin, 1e-9):,.0f} images/s by {cache.engine}"
    console.print(
        f"  outputs of {settings.freeze_until}: {views} views of {len(train_ids):,} images and {len(val_ids):,} as "
        f"they are, {source}, {sum(file.nbytes for file in files) / 1e6:,.1f} MB in {printable(cache.folder)}"
    )
    return FrozenOutputs(train, files[:-1], train_ids), FrozenOutputs(val, files[-1:], val_ids)


def layers_after(network: Network, last: str) -> Callable[[Sequence[nn.Module], Any], Any]:
    """Return how `network` runs on outputs of its layer `last`: for its `forward_impl`."""
    return partial(_run_from, first=list(network._modules).index(last) + 1)


def _run_from(layers: Sequence[nn.Module], x: Any, first: int) -> Any:
    return run_layers(layers[first:], x)
