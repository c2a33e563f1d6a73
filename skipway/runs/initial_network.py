"""Initial network of a run on images, from scratch or with pretrained weights.

The choice and its reason are printed on the console.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from skipway.data.image_spec import Spec
from skipway.data.images.choose_decode_settings import SMALL
from skipway.data.output_spec import TaskName
from skipway.errors import InputError, printable
from skipway.model_factory import auto_model, create_model, list_models, options_for
from skipway.models.load_model import load
from skipway.models.network import Network, with_feature_columns
from skipway.models.registry import plan_of
from skipway.runs.recipe import Recipe
from skipway.utils.console import Console
from skipway.utils.format_text import join_names
from skipway.weights.hub_download import report_downloads
from skipway.weights.pretrained import TAGS, is_ours
from skipway.weights.weight_packages import find_weights

__all__ = ["TrainedWeights", "choose_model", "initial_network", "trained_weights"]

# Networks of `auto` for photographs: the first one with installed weights, else the one with weights on the Hub.
_INSTALLABLE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
_FOR_PHOTOGRAPHS = "resnet18"


def choose_model(recipe: Recipe, size: int, count: int) -> tuple[str, dict[str, Any]]:
    """Select the network of a run; pretrained weights determine it if --model is auto.

    Args:
        recipe: options of the run.
        size: image size in pixels.
        count: number of training images.

    Returns:
        The name and the options of the network.

    Raises:
        InputError: the name is unknown, or the network of the weights cannot be inferred.
    """
    if recipe.model != "auto":
        plan_of(recipe.model)  # raises for an unknown name, before any image is decoded
        return recipe.model, {}
    weights = recipe.pretrained
    if weights in ("auto", "none"):
        return auto_model(size, count)
    path = Path(weights)
    if path.is_dir() or (path.is_file() and is_ours(path)):
        plan = load(weights).plan
        set_by_data = ["name", "family", "num_classes", "in_chans", "in_features"]
        if plan["num_classes"] == 0:  # weights without a classifier, perhaps without a pool
            set_by_data.append("global_pool")
        return plan["name"], {key: value for key, value in plan.items() if key not in set_by_data}
    name = weights.removeprefix("hf:").rpartition("/")[2].partition(".")[0]
    if "/" in weights and name in list_models():
        return name, {}
    raise InputError(
        f"cannot infer the network of --pretrained {printable(weights)}: expected a run, a skipway file, or a Hub tag "
        "with the name of a network. Set it with --model, as in --model resnet50."
    )


@dataclass(frozen=True)
class TrainedWeights:
    """Pretrained weights of a run.

    Attributes:
        network: network with the weights, or None to train from scratch.
        lines: console lines about the choice.
    """

    network: Network | None
    lines: tuple[str, ...]


def initial_network(
    recipe: Recipe,
    model: tuple[str, dict[str, Any]],
    spec: Spec,
    console: Console,
    weights: TrainedWeights | None = None,
) -> tuple[Network, bool]:
    """Create the network of a run, and print where its weights come from.

    A pretrained network keeps the mean and standard deviation that its weights expect, and the rows of its head for
    classes with the same names.

    Args:
        recipe: options of the run.
        model: name and options of the network.
        spec: preprocessing of the images.
        console: console for the choice.
        weights: result of `trained_weights`; None to call it.

    Returns:
        The network, and True if its weights are pretrained.
    """
    if weights is None:
        names = spec.class_names or spec.target_names
        weights = trained_weights(recipe, model, names, size=spec.size, channels=spec.channels, task=spec.task)
    for line in weights.lines:
        console.print(line)
    network = weights.network
    if network is None:
        network = create_model(model[0], **options_for(model[0], spec, _options(recipe, model)))
        network.spec = spec
    else:
        known = network.spec
        network.spec = replace(spec, mean=known.mean, std=known.std) if isinstance(known, Spec) else spec
    if spec.feature_columns:
        network = with_feature_columns(network, spec)
    return network, network.is_pretrained


def trained_weights(
    recipe: Recipe,
    model: tuple[str, dict[str, Any]],
    class_names: tuple[str, ...],
    *,
    size: int,
    channels: int,
    task: TaskName = "classification",
) -> TrainedWeights:
    """Load the pretrained weights that a recipe requests, with a head for `class_names`.

    Args:
        recipe: options of the run.
        model: name and options of the network from scratch.
        class_names: classes or labels of the dataset, or names of its numbers.
        size: image size in pixels.
        channels: number of image channels.
        task: task of the dataset. Rows of the head are kept only from weights for the same task.

    Raises:
        InputError: the weights of --pretrained cannot be used.
    """
    name, options = model[0], _options(recipe, model)
    weights: str | bool = recipe.pretrained
    if weights == "none" or (weights == "auto" and (size <= SMALL or channels != 3)):
        return TrainedWeights(None, ())
    if weights == "auto":
        if recipe.model == "auto":  # another network, so its default options
            name, options = _network_for_photographs(), _options(recipe, ("", {}))
        others = sorted(set(options) - {"drop_path", "dropout"})
        if not _has_weights(name) or others:
            suffix = f" with other {join_names(others, limit=5)}" if others else ""
            return TrainedWeights(None, (f"training from scratch: no pretrained weights for {name}{suffix}",))
        weights, options = True, {k: v for k, v in options.items() if k in ("drop_path", "dropout")}
    lines: list[str] = []
    try:
        # The new rows of the head depend on the seed of the run alone.
        with report_downloads(lines.append), torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            network = create_model(
                name, in_chans=channels, pretrained=weights, class_names=class_names, task=task, **options
            )
    except InputError as error:
        if recipe.pretrained != "auto":
            raise
        return TrainedWeights(None, (*lines, f"training from scratch: {error}"))
    return TrainedWeights(network, (*lines, f"pretrained weights: {network.origin}"))


def _network_for_photographs() -> str:
    """Return the default network for photographs: one with installed weights, else one with weights on the Hub."""
    return next((name for name in _INSTALLABLE if find_weights(name) is not None), _FOR_PHOTOGRAPHS)


def _has_weights(name: str) -> bool:
    return name in TAGS or find_weights(name) is not None


def _options(recipe: Recipe, model: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the options of the network, updated with those of the recipe."""
    fields = {field: getattr(recipe, field) for field in ("stem", "drop_path", "dropout")}
    # A rate of 0 is the default of every architecture, and some have no such option.
    return {**model[1], **{name: value for name, value in fields.items() if value or (value == 0 and name in model[1])}}
