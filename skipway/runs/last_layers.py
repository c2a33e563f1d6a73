"""Training the last layers of a network on outputs of the frozen ones, which are computed once for a few views.

A step costs what the last layers cost, a tenth of the network or less. The views of an image are functions of (seed,
view, image), so that a run with the same layers finds them again, and a resumed one goes on to the same bits. Norms
keep the statistics that the weights came with.

Shapes: N images, V views, (C, H, W) what the last frozen layer gives for one image.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skipway.data.image_spec import Spec
from skipway.data.images.decoded_cache import SMALL, pixels_fingerprint
from skipway.data.images.loader import ImageBatches
from skipway.errors import InputError, did_you_mean, printable
from skipway.kernels.layer_dispatch import run_layers
from skipway.models.network import Network
from skipway.runs.feature_cache import FeatureCache, FeatureFile, cache_folder, frozen_layers, output_shape
from skipway.runs.feature_size import FIT_SECONDS, seconds_per_image
from skipway.runs.image_datamodule import ImageDataModule
from skipway.runs.recipe import Recipe
from skipway.training.trainer import Settings
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag

__all__ = [
    "FrozenOutputs",
    "LastLayersPlan",
    "default_frozen_layer",
    "frozen_batches",
    "layers_after",
    "plan_last_layers",
    "frozen_layer_for",
]

_PLANS = ((4, 8), (4, 4), (2, 4))  # (views, epochs), the best first; 2 epochs were hardly better than the head
_MAX_BYTES = 2 << 30  # of the outputs for all views
_TIMED_BATCH, _TIMED_STEPS = 32, 3


@dataclass(frozen=True)
class LastLayersPlan:
    """What a time leaves room for: the last layer that stays frozen, the views of each image, and the epochs."""

    freeze_until: str
    views: int
    epochs: int


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

    def pictures(self, ids: np.ndarray, epoch: int = 0) -> Tensor:
        """Return what the frozen layers made of the images: of another view in each epoch, in turn."""
        view, rows = (self.first_view[ids] + epoch) % len(self.files), self.row_of[ids]
        outputs = torch.empty(len(ids), *self.files[0].shape)
        for index, file in enumerate(self.files):
            chosen = np.flatnonzero(view == index)
            if len(chosen):
                outputs[torch.from_numpy(chosen)] = file.take(rows[chosen]).float()
        return outputs.to(self.device).contiguous(memory_format=torch.channels_last)


def default_frozen_layer(network: Network) -> str | None:
    """Return the name of the layer before the last stage of a network of photographs, or None if it has no stages.

    On small images a step of the whole network costs little, and the features of the layers before are others'.
    """
    if not isinstance(network.spec, Spec) or network.spec.size <= SMALL:
        return None
    names = list(network._modules)
    stages = [name for name in names if name.startswith("stage")]
    return names[names.index(stages[-1]) - 1] if len(stages) > 1 else None


def frozen_layer_for(network: Network, recipe: Recipe, head: str, has_transform: bool) -> str | None:
    """Return the layer up to which the network stays as it is, or None if all layers are trained.

    Args:
        network: the run's.
        recipe: `freeze_until` is a layer, none, or auto: the layer before the last stage if images are large.
        head: how the head is fitted in the first epoch.
        has_transform: whether the images of a batch go through a function of the user's.

    Raises:
        InputError: there is no such layer, or its outputs cannot be computed once.
    """
    obstacles = {
        "weights that are not pretrained, or a head that is not fitted by regression": head != "regression",
        "--mixup": recipe.mixup > 0,
        "--cutmix": recipe.cutmix > 0,
        "--recompute": recipe.recompute != "none",
        "--watch": recipe.watch,
        "images that grow": ":" in str(recipe.img_size),
        "a transform": has_transform,
    }
    present = [name for name, is_there in obstacles.items() if is_there]
    if recipe.freeze_until == "none" or (recipe.freeze_until == "auto" and (present or recipe.epochs == 1)):
        return None
    if recipe.freeze_until == "auto":
        return default_frozen_layer(network)
    layers = [name for name in network._modules if name != "head"]
    if recipe.freeze_until not in layers:
        raise InputError(
            f"cannot freeze {printable(recipe.freeze_until)}: expected a layer of {network.plan['name']} before its "
            f"head, one of {', '.join(layers)}{did_you_mean(recipe.freeze_until, layers)}"
        )
    if present:
        raise InputError(
            f"cannot compute the outputs of {recipe.freeze_until} once: expected a pretrained network and images that "
            f"are augmented alone, got {' and '.join(present)}. Leave --freeze-until out, or that."
        )
    return recipe.freeze_until


def plan_last_layers(
    network: Network, freeze_until: str, precision: str, counts: Mapping[str, int], *, seconds: float, room: int
) -> LastLayersPlan | None:
    """Return how the layers after `freeze_until` are trained after the head in a time, or None if there is no time.

    Args:
        network: with trained weights and a Spec.
        freeze_until: the last layer that stays as it is.
        precision: of the run.
        counts: images of train, val and test.
        seconds: from decoding on: for features and the head, the views, training, and evaluating.
        room: bytes that the outputs may take.
    """
    shape = output_shape(frozen_layers(network, freeze_until))
    train, val, total = counts["train"], counts["val"], sum(counts.values())
    num_bytes = train * math.prod(shape) * (2 if precision == "bf16" else 4)
    for_output, for_step = seconds_per_image(network, precision), _step_seconds(network, precision, freeze_until, shape)
    of_head = total * (for_output + FIT_SECONDS)
    for views, epochs in _PLANS:
        of_views = (views * train + val) * for_output
        needed = of_head + of_views + epochs * (train + val) * for_step + (total - train) * for_output
        if needed <= seconds and views * num_bytes <= min(room, _MAX_BYTES):
            return LastLayersPlan(freeze_until, views, epochs)
    return None


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
    cache = FeatureCache(
        network,
        settings.precision,
        cache_folder(folder),
        pixels_fingerprint(images),
        len(images.labels),
        console,
        stop,
        last=settings.freeze_until,
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


def _step_seconds(network: Network, precision: str, freeze_until: str, shape: tuple[int, ...]) -> float:
    """Return the seconds that training the layers after `freeze_until` takes for an image, by a few steps on zeros."""
    layers = list(network)[list(network._modules).index(freeze_until) + 1 :]
    device, was_training = next(network.parameters()).device, network.training
    x = torch.zeros(_TIMED_BATCH, *shape, device=device)
    seconds = []
    network.eval()
    for _ in range(_TIMED_STEPS):
        begin = time.monotonic()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            run_layers(layers, x).float().sum().backward()
        seconds.append(time.monotonic() - begin)
    network.train(was_training)
    network.zero_grad(set_to_none=True)
    return min(seconds) / _TIMED_BATCH
