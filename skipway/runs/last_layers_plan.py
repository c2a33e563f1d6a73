"""Which layers of a network with trained weights are trained after its head, on how many views, for how many epochs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from skipway.data.image_spec import Spec
from skipway.data.images.decoded_cache import SMALL
from skipway.errors import InputError, did_you_mean, printable
from skipway.models.network import Network
from skipway.runs.feature_cache import frozen_layers, output_shape
from skipway.runs.feature_size import FIT_SECONDS, largest_size, seconds_per_image
from skipway.runs.recipe import Recipe
from skipway.training.pace import step_seconds

__all__ = ["LastLayersPlan", "default_frozen_layer", "frozen_layer_for", "plan_last_layers", "size_for_last_layers"]

_PLANS = ((4, 8), (4, 4), (2, 4))  # (views, epochs), the best first; 2 epochs were hardly better than the head
_STEP_DOWN = 32  # pixels
_MAX_BYTES = 2 << 30  # of the outputs for all views
_TIMED_BATCH = 32


@dataclass(frozen=True)
class LastLayersPlan:
    """What a time leaves room for: the last layer that stays frozen, the views of each image, and the epochs."""

    freeze_until: str
    views: int
    epochs: int


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


def size_for_last_layers(
    network: Network, freeze_until: str, precision: str, counts: Mapping[str, int], *, seconds: float
) -> int | None:
    """Return the image size at which the layers after `freeze_until` can be trained in a time, or None.

    It is the largest one or a step below: on the flowers of docs/training.md the last stage has 94.9% at 256 px in 49 s
    and 93.8% at 224 px, the head alone 93.1% at 288 px.

    Args:
        network, freeze_until, precision, counts: as for `plan_last_layers`; the network's Spec has its own size.
        seconds: for all but decoding.
    """
    own, of_fit = network.require_image_spec().size, sum(counts.values()) * FIT_SECONDS
    largest = largest_size(own)
    for size in (largest, max(largest - _STEP_DOWN, own)):
        share = (own / size) ** 2  # of the time and of the bytes, which go with the area
        left, room = (seconds - of_fit) * share + of_fit, round(_MAX_BYTES * share)
        if plan_last_layers(network, freeze_until, precision, counts, seconds=left, room=room) is not None:
            return size
    return None


def _step_seconds(network: Network, precision: str, freeze_until: str, shape: tuple[int, ...]) -> float:
    """Return the seconds that training the layers after `freeze_until` takes for an image."""
    layers = list(network)[list(network._modules).index(freeze_until) + 1 :]
    was_training = network.training
    network.eval()
    x = torch.zeros(_TIMED_BATCH, *shape, device=next(network.parameters()).device)
    seconds = step_seconds(layers, x, precision)
    network.train(was_training)
    network.zero_grad(set_to_none=True)
    return seconds
