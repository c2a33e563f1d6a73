"""Values of a recipe from scratch that the clock decides: image sizes of photographs, network of many small images.

A recipe has them before anything is decoded, so that a run with the same recipe is the same run. For many small images
with a time limit, the rules are these. Their measurements are in benchmarks/results/2026-11-30-small-images.md.

| value | rule |
| --- | --- |
| network | `WIDE_NETWORK` if `_WIDE_EPOCHS` or more of its epochs fit into the time, else the default network |
| weight decay | `WIDE_WEIGHT_DECAY` for this network with Muon |
| validation images | at most `_MOST_VALIDATION` if there are test images: the others improve the model more |
| test-time augmentation | if its evaluation takes `_VIEWS_SHARE` of the time or less |
"""

from dataclasses import replace
from functools import partial

from skipway.data.images.choose_decode_settings import SMALL
from skipway.data.images.crop_zoom_flip import num_tta_views
from skipway.data.images.decoded_cache import decoding_seconds
from skipway.data.images.decoded_images import DecodeSettings
from skipway.data.sources.image_source import Source
from skipway.distributed import collectives
from skipway.model_factory import auto_model
from skipway.runs.defaults import precision_for
from skipway.runs.recipe import Recipe
from skipway.runs.time_budget import FINISH_SECONDS, image_size_for, quick_step_seconds, step_seconds_of
from skipway.utils.devices import device_for

__all__ = ["WIDE_NETWORK", "WIDE_WEIGHT_DECAY", "recipe_by_clock"]

WIDE_NETWORK = "resnet9m_gelu"
WIDE_WEIGHT_DECAY = 0.2
_WIDE_EPOCHS = 10
_MOST_VALIDATION = 2_000
_VIEWS_SHARE = 0.1
_SIZES = range(17, 41)  # pixels; the default network of smaller images is another one
_MANY = 20_000  # training images
_MEASURED_BATCH = 32  # images; larger batches are up to a fifth faster, but measuring them takes seconds
_FORWARD = 1 / 3  # share of the forward pass in a training step


def recipe_by_clock(recipe: Recipe, source: Source, settings: DecodeSettings, *, epochs_given: bool) -> Recipe:
    """Return a recipe with the values that the clock decides, if it leaves model, image size and weights open.

    Args:
        recipe: options of a new run from scratch.
        source: opened images.
        settings: settings of decoding without these values.
        epochs_given: the user set the number of epochs.
    """
    if recipe.model != "auto" or recipe.img_size is not None or recipe.pretrained not in ("auto", "none"):
        return recipe
    if settings.size > SMALL:
        return replace(recipe, img_size=_image_sizes(recipe, source, settings))
    is_many_small = settings.size in _SIZES and source.count("train") >= _MANY and source.task != "regression"
    if recipe.time_limit is None or epochs_given or not is_many_small:
        return recipe
    return _for_many_small_images(recipe, source, settings, _seconds(recipe.time_limit, source, settings))


def _seconds(limit: float, source: Source, settings: DecodeSettings) -> float:
    """Return the seconds of a time limit that are left for training and evaluation."""
    decoding = source.count("train") * decoding_seconds(source, settings)
    return limit - max(collectives.all_gather(decoding)) - FINISH_SECONDS


def _image_sizes(recipe: Recipe, source: Source, settings: DecodeSettings) -> str:
    """Return the image sizes "FIRST:FULL" for training on photographs within the time limit."""
    count = source.count("train")
    if recipe.time_limit is None:
        return image_size_for(count, None, 0.0)
    seconds, device = _seconds(recipe.time_limit, source, settings), device_for(recipe.device)
    return image_size_for(count, seconds, quick_step_seconds(device, precision_for(recipe, device, is_table=False)))


def _for_many_small_images(recipe: Recipe, source: Source, settings: DecodeSettings, seconds: float) -> Recipe:
    """Return a recipe with the network, the validation images and the test-time augmentation that the time allows."""
    count, device = source.count("train"), device_for(recipe.device)
    recipe = _with_few_validation_images(recipe, source)
    held_out = 0 if source.count("val") else min(round(count * recipe.val_fraction), 5_000)
    images = held_out + source.count("val") + source.count("test")
    # The images that training steps could process in the time of the final evaluation.
    evaluated = num_tta_views(settings.size, mirrored=True) * images * _FORWARD
    seconds_of = partial(
        step_seconds_of,
        shape=(_MEASURED_BATCH, settings.channels, settings.size, settings.size),
        device=device,
        precision=precision_for(recipe, device, is_table=False),
    )
    per_image = seconds_of(WIDE_NETWORK, {})
    if (evaluated + _WIDE_EPOCHS * (count - held_out)) * per_image <= seconds:
        recipe = _with_wide_network(recipe)
    else:
        per_image = seconds_of(*auto_model(settings.size, count))
    if recipe.tta is None and evaluated * per_image <= _VIEWS_SHARE * seconds:
        recipe = replace(recipe, tta=True)
    return recipe


def _with_wide_network(recipe: Recipe) -> Recipe:
    """Return a recipe with the wide network, and with its weight decay if both that and the optimizer are open."""
    recipe = replace(recipe, model=WIDE_NETWORK)
    if recipe.weight_decay is None and recipe.optimizer in ("auto", "muon"):
        return replace(recipe, weight_decay=WIDE_WEIGHT_DECAY)
    return recipe


def _with_few_validation_images(recipe: Recipe, source: Source) -> Recipe:
    """Return a recipe that holds out `_MOST_VALIDATION` images at most, if there are test images too."""
    count = source.count("train")
    is_open = recipe.folds is None and "val_fraction" not in recipe.changed() and not source.count("val")
    if is_open and source.count("test") and count * recipe.val_fraction > _MOST_VALIDATION:
        return replace(recipe, val_fraction=_MOST_VALIDATION / count)
    return recipe
