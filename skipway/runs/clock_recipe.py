"""Values of a recipe from scratch that the clock decides: image sizes of photographs, network of many small images.

A recipe has them before anything is decoded, so that a run with the same recipe is the same run. For many small images
with a time limit, the rules are these. Their measurements are in benchmarks/results/2026-11-30-small-images.md.

| value | rule |
| --- | --- |
| network | `WIDE_NETWORK` if `_WIDE_EPOCHS` or more of its epochs fit into the time, else the default network |
| validation images | at most `_MOST_VALIDATION` if there are test images: the others improve the model more |
| test-time augmentation | if its evaluation takes `_VIEWS_SHARE` of the time or less |
"""

from dataclasses import replace

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

__all__ = ["WIDE_NETWORK", "recipe_by_clock"]

WIDE_NETWORK = "resnet9m_gelu"
_WIDE_EPOCHS = 10
_MOST_VALIDATION = 2_000
_VIEWS_SHARE = 0.1
_SIZES = range(17, 41)  # pixels; the default network of smaller images is another one
_MANY = 20_000  # training images
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
    is_many_small = settings.size in _SIZES and source.count("train") >= _MANY
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
    count, held_out = source.count("train"), source.count("val")
    is_split_open = not held_out and recipe.folds is None and "val_fraction" not in recipe.changed()
    if is_split_open and source.count("test") and count * recipe.val_fraction > _MOST_VALIDATION:
        recipe = replace(recipe, val_fraction=_MOST_VALIDATION / count)
    held_out = held_out or min(round(count * recipe.val_fraction), 5_000)
    evaluated = num_tta_views(settings.size, mirrored=True) * (held_out + source.count("test"))
    device = device_for(recipe.device)
    precision = precision_for(recipe, device, is_table=False)
    shape, views = (settings.channels, settings.size, settings.size), recipe.tta is not False
    for name, options in ((WIDE_NETWORK, {}), auto_model(settings.size, count)):
        per_image = step_seconds_of(name, options, shape=shape, device=device, precision=precision)
        evaluation = evaluated * _FORWARD * per_image
        views = recipe.tta is not False and evaluation <= _VIEWS_SHARE * seconds
        training = seconds - evaluation * (views or recipe.tta is True)
        if name == WIDE_NETWORK and training >= _WIDE_EPOCHS * count * per_image:
            recipe = replace(recipe, model=WIDE_NETWORK)
            break
    return replace(recipe, tta=True) if views else recipe
