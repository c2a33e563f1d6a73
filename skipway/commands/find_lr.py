"""Suggest a learning rate with an LR range test, without a run folder."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skipway.data.sources.in_memory import hold_data
from skipway.errors import InputError, Interrupted
from skipway.report import learning_curves
from skipway.runs.datamodule import open_datamodule
from skipway.runs.defaults import settings_for
from skipway.runs.recipe import UNUSED_BY_FIND_LR, Recipe
from skipway.training.lr_finder import RangeTest, range_test
from skipway.training.trainer import Trainer, preserve_global_state
from skipway.utils.console import Console
from skipway.utils.devices import current_device, device_for, set_threads
from skipway.utils.output_files import refuse_output
from skipway.utils.stop_signals import StopFlag

__all__ = ["find_lr"]


def find_lr(
    data: Any,
    y: Any = None,
    *,
    model: str = "auto",
    output: str | os.PathLike[str] | None = None,
    console: Console | None = None,
    stop: StopFlag | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    **options: Any,
) -> RangeTest:
    """Suggest a learning rate for a network on `data` with an LR range test of 100 steps.

    Args:
        data, y, model, transform: as for `train`.
        output: .png file for a plot of the loss over the learning rate; by default, no plot is written.
        console: prints progress; by default, nothing is printed.
        stop: flag that stops the test when it is set.
        options: fields of `skipway.Recipe`, such as batch_size, optimizer, img_size and seed.

    Returns:
        The learning rates and losses of the test, and the suggested learning rate.

    Raises:
        InputError: an argument is invalid, or the data cannot be read.
        NotFiniteError: no loss was finite.
        Interrupted: `stop` was set.

    >>> 1e-5 < find_lr("wine").suggestion < 1
    True
    """
    console, stop = console or Console(quiet=True), stop or StopFlag()
    if isinstance(y, str):
        y, model = None, y
    if output is not None:
        refuse_output(output, [data] if isinstance(data, str | os.PathLike) else [])
    unused = sorted(UNUSED_BY_FIND_LR.intersection(options))
    if unused:
        raise InputError(
            f"cannot use {' and '.join(unused)} with find_lr: an LR range test has no such option. Leave it out."
        )

    def poll() -> None:
        if stop.requested:
            raise Interrupted(f"stopped by {stop.name} before the LR range test ended. Run it again.")

    with hold_data(data, y) as name, preserve_global_state(), ExitStack() as stack:
        recipe = Recipe.of({"data": os.fspath(name), "model": model, **options})
        stack.enter_context(current_device(device_for(recipe.device)))
        datamodule = open_datamodule(recipe, new=True, epochs_given=True, transform=transform)
        is_table = datamodule.noun == "rows"
        set_threads(recipe.threads, table=is_table, report=console.print)
        datamodule.prepare(console, stop)
        torch.manual_seed(recipe.seed)
        network, pretrained = datamodule.network(console)
        batch_size = datamodule.default_batch_size()
        settings = settings_for(
            recipe,
            network.plan,
            batch_size,
            pretrained=pretrained,
            targets=datamodule.target_counts(),
            is_table=is_table,
        )
        datamodule.setup(network, batch_size, settings.device, None)
        batches = datamodule.batches("train", train=True)
        datamodule.fit_first_layer(network, batches)
        trainer = Trainer(network, settings, datamodule.name_of, datamodule.task(settings))
        result = range_test(trainer, batches, poll=poll)
    if output is not None:
        learning_curves.plot_lr_range_test(result.as_dict(), Path(output))
    return result
