"""Plan for training the last layers of a pretrained network after its head: layers, views and epochs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from skipway.data.image_spec import Spec
from skipway.data.images.choose_decode_settings import SMALL
from skipway.errors import InputError, did_you_mean, printable
from skipway.models.network import Network
from skipway.runs.feature_cache import frozen_layers, output_shape
from skipway.runs.feature_size import FIT_SECONDS, largest_size, seconds_per_image
from skipway.runs.recipe import Recipe
from skipway.training.pace import step_seconds

__all__ = ["LastLayersPlan", "default_frozen_layer", "frozen_layer_for", "plan_last_layers", "size_for_last_layers"]

_PLANS = ((4, 8), (4, 4), (2, 4))  # (views, epochs), best first; 2 epochs were hardly better than the head alone
_STEP_DOWN = 32  # pixels
_MAX_BYTES = 2 << 30  # for the outputs of all views
_TIMED_BATCH = 32


@dataclass(frozen=True)
class LastLayersPlan:
    """Plan for training the last layers.

    Attributes:
        freeze_until: name of the last frozen layer.
        views: augmented views of each image.
        epochs: epochs after the fit of the head.
    """

    freeze_until: str
    views: int
    epochs: int


def default_frozen_layer(network: Network) -> str | None:
    """Return the name of the layer before the last stage, or None for small images or a network without stages.

    On small images a step of the whole network is cheap, and pretrained features come from another kind of image.
    """
    if not isinstance(network.spec, Spec) or network.spec.size <= SMALL:
        return None
    names = list(network._modules)
    stages = [name for name in names if name.startswith("stage")]
    return names[names.index(stages[-1]) - 1] if len(stages) > 1 else None


def frozen_layer_for(network: Network, recipe: Recipe, head: str, has_transform: bool) -> str | None:
    """Return the name of the last frozen layer, or None if all layers are trained.

    Args:
        network: network of the run.
        recipe: options; `freeze_until` is a layer, "none", or "auto" for the layer before the last stage.
        head: "regression" or "train", the training of the head in the first epoch.
        has_transform: the user passed a transform of image batches.

    Raises:
        InputError: the layer does not exist, or its outputs cannot be cached.
    """
    obstacles = {
        "no pretrained weights, or a head without regression": head != "regression",
        "--mixup": recipe.mixup > 0,
        "--cutmix": recipe.cutmix > 0,
        "--recompute": recipe.recompute != "none",
        "--watch": recipe.watch,
        "progressive resizing": ":" in str(recipe.img_size),
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
            f"cannot freeze layers: expected --freeze-until with a layer of {network.plan['name']} before its head, "
            f"got {printable(recipe.freeze_until)}{did_you_mean(recipe.freeze_until, layers)}. Use one of "
            f"{', '.join(layers)}."
        )
    if present:
        raise InputError(
            f"cannot cache the outputs of {recipe.freeze_until}: expected a pretrained network and augmentation of "
            f"single images, got {' and '.join(present)}. Drop --freeze-until, or the other option."
        )
    return recipe.freeze_until


def plan_last_layers(
    network: Network, freeze_until: str, precision: str, counts: Mapping[str, int], *, seconds: float, max_bytes: int
) -> LastLayersPlan | None:
    """Plan the training of the layers after `freeze_until`, which follows the fit of the head.

    Args:
        network: network with pretrained weights and a Spec.
        freeze_until: name of the last frozen layer.
        precision: "bf16" or "fp32".
        counts: number of images in "train", "val" and "test".
        seconds: time after decoding: for features, head, views, training and evaluation.
        max_bytes: maximum bytes of the cached outputs.

    Returns:
        The plan with the most views and epochs that fit, or None if none fits.
    """
    shape = output_shape(frozen_layers(network, freeze_until))
    train, val, total = counts["train"], counts["val"], sum(counts.values())
    num_bytes = train * math.prod(shape) * (2 if precision == "bf16" else 4)
    for_output, for_step = seconds_per_image(network, precision), _step_seconds(network, precision, freeze_until, shape)
    of_head = total * (for_output + FIT_SECONDS)
    for views, epochs in _PLANS:
        of_views = (views * train + val) * for_output
        needed = of_head + of_views + epochs * (train + val) * for_step + (total - train) * for_output
        if needed <= seconds and views * num_bytes <= min(max_bytes, _MAX_BYTES):
            return LastLayersPlan(freeze_until, views, epochs)
    return None


def size_for_last_layers(
    network: Network, freeze_until: str, precision: str, counts: Mapping[str, int], *, seconds: float
) -> int | None:
    """Return the image size for training the layers after `freeze_until` within a time, or None if none fits.

    The size is the largest one or a step below. On 3,670 photographs of flowers the last stage has an accuracy of
    94.9% at 256 px in 49 s and 93.8% at 224 px; the head alone has 93.1% at 288 px.

    Args:
        network: network with pretrained weights, and a Spec with the image size of pretraining.
        freeze_until: name of the last frozen layer.
        precision: "bf16" or "fp32".
        counts: number of images in "train", "val" and "test".
        seconds: time for everything but decoding.
    """
    own, of_fit = network.require_image_spec().size, sum(counts.values()) * FIT_SECONDS
    largest = largest_size(own)
    for size in (largest, max(largest - _STEP_DOWN, own)):
        share = (own / size) ** 2  # time and bytes are proportional to the area
        left, max_bytes = (seconds - of_fit) * share + of_fit, round(_MAX_BYTES * share)
        if plan_last_layers(network, freeze_until, precision, counts, seconds=left, max_bytes=max_bytes) is not None:
            return size
    return None


def _step_seconds(network: Network, precision: str, freeze_until: str, shape: tuple[int, ...]) -> float:
    """Measure the seconds per image for training the layers after `freeze_until`."""
    layers = list(network)[list(network._modules).index(freeze_until) + 1 :]
    was_training = network.training
    network.eval()
    x = torch.zeros(_TIMED_BATCH, *shape, device=next(network.parameters()).device)
    seconds = step_seconds(layers, x, precision)
    network.train(was_training)
    network.zero_grad(set_to_none=True)
    return seconds
