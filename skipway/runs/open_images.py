"""Opening of the images that a Recipe names."""

from skipway.data.sources.choose_source import open_source
from skipway.data.sources.image_source import Source
from skipway.runs.recipe import Recipe

__all__ = ["open_images"]


def open_images(recipe: Recipe) -> Source:
    """Open the labeled images of a recipe, with the columns that it names.

    Raises:
        InputError: there are no labeled images, or they cannot be read.
    """
    assert recipe.data is not None
    return open_source(recipe.data, recipe.follow_links, recipe.allow_empty_classes, roles=recipe.roles)
