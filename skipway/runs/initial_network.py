"""The network that a run on images begins with: fresh weights, or weights that were trained before.

What was chosen, and why, is a line for the user.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from skipway.data.image_spec import Spec
from skipway.data.images.decoded_cache import SMALL
from skipway.errors import InputError, printable
from skipway.model_factory import auto_model, create_model, list_models, options_for
from skipway.models.load_model import load
from skipway.models.network import Network
from skipway.runs.recipe import Recipe
from skipway.utils.console import Console
from skipway.weights.hub_download import report_downloads
from skipway.weights.pretrained import TAGS, is_ours
from skipway.weights.weight_packages import find_weights

__all__ = ["TrainedWeights", "choose_model", "initial_network", "trained_weights"]

# Networks that `auto` takes for photographs: the first one whose weights are installed, or that of the Hub.
_INSTALLABLE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
_FOR_PHOTOGRAPHS = "resnet18"


def choose_model(recipe: Recipe, size: int, count: int) -> tuple[str, dict[str, Any]]:
    """Return (name, options) of the network for `count` training images of `size`.

    Weights bring their network along if the recipe names none.

    Raises:
        InputError: the name is unknown, or the weights do not tell their network.
    """
    if recipe.model != "auto":
        if recipe.model not in list_models():
            create_model(recipe.model)  # refuses the name before anything is decoded
        return recipe.model, {}
    weights = recipe.pretrained
    if weights in ("auto", "none"):
        return auto_model(size, count)
    path = Path(weights)
    if path.is_dir() or (path.is_file() and is_ours(path)):
        plan = load(weights).plan
        set_by_data = ("name", "family", "num_classes", "in_chans", "in_features")
        return plan["name"], {key: value for key, value in plan.items() if key not in set_by_data}
    name = weights.removeprefix("hf:").rpartition("/")[2].partition(".")[0]
    if "/" in weights and name in list_models():
        return name, {}
    raise InputError(
        f"--pretrained {printable(weights)} does not tell its network; name it with --model, as in --model resnet50"
    )


@dataclass(frozen=True)
class TrainedWeights:
    """A network with weights that were trained before, if there are any, and the lines about them."""

    network: Network | None
    lines: tuple[str, ...]


def initial_network(
    recipe: Recipe,
    model: tuple[str, dict[str, Any]],
    spec: Spec,
    console: Console,
    weights: TrainedWeights | None = None,
) -> tuple[Network, bool]:
    """Return the network of `model` for `spec`, and whether its weights are trained already.

    A trained network keeps the mean and the deviation of images that its weights expect, and in its head the classes
    that it knows by name.

    Args:
        recipe, model, spec: options of the run, its network, and how its images become inputs.
        console: where the choice is printed.
        weights: what `trained_weights` returned for them; None to call it.
    """
    if weights is None:
        weights = trained_weights(recipe, model, spec.class_names, size=spec.size, channels=spec.channels)
    for line in weights.lines:
        console.print(f"  {line}")
    network = weights.network
    if network is None:
        network = create_model(model[0], **options_for(model[0], spec, _options(recipe, model)))
        network.spec = spec
    else:
        known = network.spec
        network.spec = replace(spec, mean=known.mean, std=known.std) if isinstance(known, Spec) else spec
    return network, network.is_pretrained


def trained_weights(
    recipe: Recipe, model: tuple[str, dict[str, Any]], class_names: tuple[str, ...], *, size: int, channels: int
) -> TrainedWeights:
    """Return the weights that a recipe asks for, in the network that they are of, with a head for `class_names`.

    Args:
        recipe: options of the run.
        model: name and options of the network without such weights.
        class_names: those of the data.
        size, channels: of the images, without such weights.

    Raises:
        InputError: weights that are named cannot be used.
    """
    name, options = model[0], _options(recipe, model)
    weights: str | bool = recipe.pretrained
    if weights == "none" or (weights == "auto" and (size <= SMALL or channels != 3)):
        return TrainedWeights(None, ())
    if weights == "auto":
        if recipe.model == "auto":  # the options of the network without weights are not those of this one
            name, options = _network_for_photographs(), _options(recipe, ("", {}))
        if not _has_weights(name) or set(options) - {"drop_path", "dropout"}:
            line = f"from scratch: no weights are known for {name} as it is asked for"
            return TrainedWeights(None, (line,))
        weights, options = True, {k: v for k, v in options.items() if k in ("drop_path", "dropout")}
    lines: list[str] = []
    try:
        # The head's new rows are drawn: the same for the same seed.
        with report_downloads(lines.append), torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            network = create_model(name, in_chans=channels, pretrained=weights, class_names=class_names, **options)
    except InputError as error:
        if recipe.pretrained != "auto":
            raise
        return TrainedWeights(None, (*lines, f"from scratch: {error}"))
    return TrainedWeights(network, (*lines, f"weights: {network.origin}"))


def _network_for_photographs() -> str:
    """Return the name of the network whose weights are installed, or else of one that the Hub has weights of."""
    return next((name for name in _INSTALLABLE if find_weights(name) is not None), _FOR_PHOTOGRAPHS)


def _has_weights(name: str) -> bool:
    return name in TAGS or find_weights(name) is not None


def _options(recipe: Recipe, model: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the options of the network with those of the recipe."""
    fields = {field: getattr(recipe, field) for field in ("stem", "drop_path", "dropout")}
    return {**model[1], **{field: value for field, value in fields.items() if value}}
