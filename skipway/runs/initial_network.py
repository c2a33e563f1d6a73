"""What a run begins with: a network with fresh weights, or with weights that were trained before.

What was decided, and why, is a line for the user.
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
from skipway.weights.pretrained import TAGS, is_ours

__all__ = ["beginning", "chosen_model"]

_PHOTOGRAPHS = "resnet18"  # what `auto` takes for photographs where its weights are at hand


def chosen_model(recipe: Recipe, size: int, count: int) -> tuple[str, dict[str, Any]]:
    """(name, options) of the network for `count` training pictures of `size`; an unknown name is refused.

    Weights that are given bring their network along where none is named.
    """
    if recipe.model != "auto":
        if recipe.model not in list_models():
            create_model(recipe.model)  # refuses the name before anything is decoded
        return recipe.model, {}
    given = recipe.pretrained
    if given not in ("auto", "none"):
        path = Path(given)
        if path.is_dir() or (path.is_file() and is_ours(path)):
            plan = load(given).plan
            left = ("name", "family", "num_classes", "in_chans", "in_features")
            return plan["name"], {k: v for k, v in plan.items() if k not in left}
        name = given.removeprefix("hf:").rpartition("/")[2].partition(".")[0]
        if "/" in given and name in list_models():
            return name, {}
        raise InputError(
            f"--pretrained {printable(given)} does not tell its network; name it with --model, as in --model resnet50"
        )
    return auto_model(size, count)


def beginning(recipe: Recipe, model: tuple[str, dict[str, Any]], spec: Spec, console: Console) -> tuple[Network, bool]:
    """The network of `model` for `spec`, and whether its weights are trained already.

    A trained network keeps the mean and the deviation of pictures that its weights expect, and in its head the classes
    that it knows by name.
    """
    name, row = model
    options = dict(row)
    for field in ("stem", "drop_path", "dropout"):
        if value := getattr(recipe, field):
            options[field] = value
    network, said = _trained(recipe, name, options, spec)
    if network is None:
        network = create_model(name, **options_for(name, spec, options))
        network.spec = spec
    else:
        known = network.spec
        network.spec = replace(spec, mean=known.mean, std=known.std) if isinstance(known, Spec) else spec
    if said:
        console.print(f"  {said}")
    return network, network.origin != "fresh weights"


def _trained(recipe: Recipe, name: str, options: dict[str, Any], spec: Spec) -> tuple[Network | None, str]:
    """The network with trained weights, or None, and why, where anything was decided."""
    given: str | bool = recipe.pretrained
    if given == "none" or (given == "auto" and (spec.size <= SMALL or spec.channels != 3)):
        return None, ""
    if given == "auto":
        name = _PHOTOGRAPHS if recipe.model == "auto" else name
        if name not in TAGS or set(options) - {"drop_path", "dropout"}:
            return None, f"from scratch: no weights are known for {name} as it is asked for"
        given, options = True, {k: v for k, v in options.items() if k in ("drop_path", "dropout")}
    try:
        network = create_model(name, in_chans=spec.channels, pretrained=given, class_names=spec.class_names, **options)
    except InputError as error:
        if recipe.pretrained != "auto":
            raise
        return None, f"from scratch: {error}"
    return network, f"weights: {network.origin}"
