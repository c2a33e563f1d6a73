"""find_lr: the learning-rate range test on DATA, without a run."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skipway import plots
from skipway.console import Console
from skipway.decide import settings_for
from skipway.errors import Interrupted
from skipway.job import open_job
from skipway.recipe import Recipe
from skipway.signals import StopFlag
from skipway.training.range_test import RangeTest, range_test
from skipway.training.trainer import Trainer, as_found
from skipway.utils.devices import set_threads

__all__ = ["find_lr"]


def find_lr(
    data: str | os.PathLike[str],
    model: str = "auto",
    *,
    picture: str | os.PathLike[str] | None = None,
    console: Console | None = None,
    stop: StopFlag | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    **options: Any,
) -> RangeTest:
    """Which learning rates suit a network on `data`: a hundred steps with rates that rise, and what the loss says.

    Args:
        data, model, transform: as for `train`.
        picture: where to draw the loss over the rates, a .png file.
        console: where progress is said; default: nowhere.
        stop: a flag that ends the test when it is set.
        options: fields of `skipway.Recipe`, such as batch_size, optimizer, img_size, seed.

    Raises:
        InputError: something given cannot be used. NotFiniteError: no loss was finite.
        Interrupted: `stop` was set.
    """
    console, stop = console or Console(quiet=True), stop or StopFlag()
    recipe = Recipe.of({"data": os.fspath(data), "model": model, **options})

    def poll() -> None:
        if stop.requested:
            raise Interrupted(f"stopped by {stop.name} before the range test was over; start again")

    with as_found():
        job = open_job(recipe, new=True, epochs_told=True, transform=transform)
        table = job.noun == "rows"
        set_threads(recipe.threads, table=table, say=console.say)
        job.prepare(console, stop)
        torch.manual_seed(recipe.seed)
        network, fine = job.network(console)
        batch_size = job.usual_batch()
        settings = settings_for(recipe, network.plan, batch_size, fine=fine, counts=job.class_counts(), table=table)
        job.settle(network, batch_size, settings.device, None)
        feed = job.feed("train", train=True)
        job.fit_first_layer(network, feed)
        found = range_test(Trainer(network, settings, job.name_of, job.task(settings)), feed, poll=poll)
    if picture is not None:
        plots.range_test(found.as_dict(), Path(picture))
    return found
