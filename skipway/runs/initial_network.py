"""The network that a run on images begins with: fresh weights, or weights that were trained before.

What was chosen, and why, is a line for the user.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

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

__all__ = ["choose_model", "initial_network"]

_FOR_PHOTOGRAPHS = "resnet18"  # network that `auto` takes for photographs if its weights are at hand


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


def initial_network(
    recipe: Recipe, model: tuple[str, dict[str, Any]], spec: Spec, console: Console
) -> tuple[Network, bool]:
    """Return the network of `model` for `spec`, and whether its weights are trained already.

    A trained network keeps the mean and the deviation of images that its weights expect, and in its head the classes
    that it knows by name.
    """
    name, options = model[0], dict(model[1])
    for field in ("stem", "drop_path", "dropout"):
        if value := getattr(recipe, field):
            options[field] = value
    with report_downloads(lambda line: console.print(f"  {line}")):
        network, message = _pretrained_network(recipe, name, options, spec)
    if network is None:
        network = create_model(name, **options_for(name, spec, options))
        network.spec = spec
    else:
        known = network.spec
        network.spec = replace(spec, mean=known.mean, std=known.std) if isinstance(known, Spec) else spec
    if message:
        console.print(f"  {message}")
    return network, network.origin != "fresh weights"


def _pretrained_network(recipe: Recipe, name: str, options: dict[str, Any], spec: Spec) -> tuple[Network | None, str]:
    """Return the network with trained weights, or None, and a line for the user if there was anything to choose."""
    weights: str | bool = recipe.pretrained
    if weights == "none" or (weights == "auto" and (spec.size <= SMALL or spec.channels != 3)):
        return None, ""
    if weights == "auto":
        name = _FOR_PHOTOGRAPHS if recipe.model == "auto" else name
        if name not in TAGS or set(options) - {"drop_path", "dropout"}:
            return None, f"from scratch: no weights are known for {name} as it is asked for"
        weights, options = True, {k: v for k, v in options.items() if k in ("drop_path", "dropout")}
    try:
        network = create_model(
            name, in_chans=spec.channels, pretrained=weights, class_names=spec.class_names, **options
        )
    except InputError as error:
        if recipe.pretrained != "auto":
            raise
        return None, f"from scratch: {error}"
    return network, f"weights: {network.origin}"
