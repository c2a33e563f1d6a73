"""Opening of the data that a Recipe names, and the options of its splits."""

from skipway.data.folds import Fold
from skipway.data.images.choose_splits import SplitOptions
from skipway.data.open_data import open_data
from skipway.data.output_spec import OutputSpec
from skipway.data.sources.image_source import Source
from skipway.data.tables.dataset import TableSource
from skipway.runs.recipe import Recipe

__all__ = ["open_recipe_data", "split_options"]


def open_recipe_data(recipe: Recipe, known: OutputSpec | None = None) -> Source | TableSource:
    """Open the images or the table of a recipe.

    Args:
        recipe: options of a run.
        known: outputs of a trained model, whose classes and targets the data must have.

    Raises:
        InputError: the data cannot be found or read.
    """
    assert recipe.data is not None
    return open_data(
        recipe.data,
        recipe.roles,
        follow_links=recipe.follow_links,
        allow_empty_classes=recipe.allow_empty_classes,
        known=known,
        layout=recipe.layout,
    )


def split_options(recipe: Recipe) -> SplitOptions:
    """Return the options of the splits of a recipe."""
    return SplitOptions(
        fraction=recipe.val_fraction,
        seed=recipe.seed,
        fold=Fold(recipe.fold, recipe.folds) if recipe.fold is not None and recipe.folds is not None else None,
        allow_duplicates=recipe.allow_duplicates,
        group_regex=recipe.group_regex,
    )
