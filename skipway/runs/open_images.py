"""Opening of the images that a Recipe names."""

from skipway.data.folds import Fold
from skipway.data.images.choose_splits import SplitOptions
from skipway.data.sources.choose_source import open_source
from skipway.data.sources.image_source import Source
from skipway.runs.recipe import Recipe

__all__ = ["open_images", "split_options"]


def open_images(recipe: Recipe) -> Source:
    """Open the labeled images of a recipe, with the columns that it names.

    Raises:
        InputError: there are no labeled images, or they cannot be read.
    """
    assert recipe.data is not None
    return open_source(recipe.data, recipe.follow_links, recipe.allow_empty_classes, roles=recipe.roles)


def split_options(recipe: Recipe) -> SplitOptions:
    """Return the options of the splits of a recipe."""
    return SplitOptions(
        fraction=recipe.val_fraction,
        seed=recipe.seed,
        fold=Fold(recipe.fold, recipe.folds) if recipe.fold is not None and recipe.folds is not None else None,
        allow_duplicates=recipe.allow_duplicates,
        group_regex=recipe.group_regex,
    )
