"""Train: turn a Recipe into data, a network, a trained model and a run folder."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skipway.data.sources.in_memory import hold_data
from skipway.distributed import collectives, process_group
from skipway.errors import InputError, Interrupted
from skipway.runs.cross_validation import cross_validate, is_cross_validation
from skipway.runs.cuda_settings import cuda_settings, refuse_nondeterministic
from skipway.runs.datamodule import DataModule, open_datamodule
from skipway.runs.finished_run import Run
from skipway.runs.growth_phases import phases
from skipway.runs.plain_options import plain_options, requested_options
from skipway.runs.prepared_run import PreparedRun
from skipway.runs.recipe import Recipe
from skipway.runs.resolved_options import ResolvedOptions, resolved_options
from skipway.runs.resume import read_earlier_run
from skipway.runs.run_crash_report import crash_report
from skipway.runs.run_folder import lock_run, new_run_folder, read_recipe, resolve_run_folder, write_recipe
from skipway.runs.signal_flow_callback import refuse_unwatchable
from skipway.training.trainer import preserve_global_state
from skipway.utils.console import Console
from skipway.utils.devices import current_device, device_for, set_threads
from skipway.utils.stop_signals import StopFlag

__all__ = ["Run", "dry_run", "train"]


def train(
    data: Any = None,
    y: Any = None,
    *,
    model: str = "auto",
    validation: Any = None,
    config: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    allow_changed_data: bool = False,
    console: Console | None = None,
    stop: StopFlag | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    **options: Any,
) -> Run:
    """Train a network on `data` and write a run folder with its weights, tables and a report.

    Args:
        data: a built-in dataset, a folder of class folders, an archive, Parquet files, `hf:org/name`, or a table with
            `target`; or objects: an array or tensor of images (N, H, W) or (N, H, W, C) or of rows (N, F), a list of
            paths or PIL images, a DataFrame, a Hugging Face Dataset, or a map-style dataset of (image, target). It is
            optional when resuming, except for objects.
        y: targets of objects: classes (N,), numbers (N,) or (N, T), a matrix (N, K) of 0 and 1, or lists of labels;
            None if they are part of `data`. A text is taken for `model`.
        model: a name of `list_models()`, or "auto".
        validation: (X, y) or a dataset to validate objects on; None to hold out `val_fraction` of them.
        config: a YAML file of recipe fields; `options` take precedence.
        resume: a run folder to resume exactly; pass more `epochs` to train for longer.
        allow_changed_data: resume although the data has changed.
        console: prints progress; default: prints nothing.
        stop: a flag that stops the run and saves it when set; default: SIGINT, SIGTERM and SIGUSR1 set one.
        transform: applied to training images (B, C, H, W) in 0 to 1 after the recipe's augmentation, such as a module
            of kornia. It may draw from torch's generator, which is seeded for each batch. Pass it again when resuming.
        options: fields of `skipway.Recipe`: epochs, batch_size, lr, seed, ...

    Returns:
        The run; with `folds` a CrossValidation with one run per fold in `runs`.

    Raises:
        InputError: an argument, an option or the data cannot be used. StorageError: the disk failed.
        NotFiniteError: the loss is not finite. Interrupted: `stop` was set; the work was saved.

    >>> run = train("wine", epochs=2, output=tempfile.mkdtemp())
    >>> run.metrics["status"], len(run.history)
    ('finished', 2)
    """
    console = console or Console(quiet=True)
    if resume is not None and config is not None:
        raise InputError("cannot train: expected --resume or --config, got both. Drop --config: a run has its own.")
    with _options_of_call(data, y, model=model, validation=validation, options=options) as options:
        requested = requested_options(options, config)
        if is_cross_validation(requested, resume):
            fold = partial(train, allow_changed_data=allow_changed_data, transform=transform)
            return cross_validate(fold, options, config=config, resume=resume, console=console, stop=stop)
        with _prepared_run(options, requested, resume, console=console, stop=stop, transform=transform) as prepared:
            return prepared.run(allow_changed_data)


def dry_run(
    data: Any = None,
    y: Any = None,
    *,
    model: str = "auto",
    validation: Any = None,
    config: str | os.PathLike[str] | None = None,
    console: Console | None = None,
    stop: StopFlag | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    **options: Any,
) -> ResolvedOptions:
    """Return every option that `train` would use, with the reason of each automatic choice; train and write nothing.

    The data is read and decoded as for `train`, and the weights are loaded. The arguments are those of `train`.

    Raises:
        InputError: `train` would refuse the arguments, or they ask for a cross-validation.

    >>> resolved = dry_run("wine", seed=3)
    >>> [str(option) for option in resolved.options if option.name in ("optimizer", "seed")]
    ['optimizer: adamw                # auto: default of tables', 'seed: 3                         # set']
    """
    with _options_of_call(data, y, model=model, validation=validation, options=options) as options:
        requested = requested_options(options, config)
        if is_cross_validation(requested, None):
            raise InputError("cannot resolve the options: expected a single run, got all folds. Add --fold 1.")
        with _prepared_run(
            options, requested, None, console=console, stop=stop, transform=transform, is_temporary=True
        ) as prepared:
            network, settings, batch_size = prepared.resolve()
            return resolved_options(requested, prepared.datamodule, network, settings, batch_size)


@contextmanager
def _options_of_call(
    data: Any, y: Any, *, model: str, validation: Any, options: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Return the options of a call as plain values, and keep its data if it is passed as objects."""
    if isinstance(y, str):
        if model != "auto":
            raise InputError(f"cannot train: expected one model, got {y!r} and {model!r}. Pass targets as y.")
        y, model = None, y
    with hold_data(data, y, validation) as name:
        yield plain_options({"data": name, "model": model, **options})


@contextmanager
def _prepared_run(
    options: dict[str, Any],
    requested: dict[str, Any],
    resume: str | os.PathLike[str] | None,
    *,
    console: Console | None,
    stop: StopFlag | None,
    transform: Callable[[Tensor], Tensor] | None,
    is_temporary: bool = False,
) -> Iterator[PreparedRun]:
    """Open the data and the run folder of a run, with its lock held, and read every sample.

    A temporary folder is deleted at the end.
    """
    began = time.monotonic()
    with preserve_global_state(), ExitStack() as stack:
        stop = stop or stack.enter_context(StopFlag())
        if stop.requested:
            raise Interrupted(f"stopped by {stop.name} before training. Run it again.")
        device = _requested_device(requested, resume)
        stack.enter_context(process_group.joined_group(device))
        stack.enter_context(current_device(device))
        console = console if console is not None and collectives.rank() == 0 else Console(quiet=True)
        earlier = None
        epochs_given = True
        if resume is None:
            recipe = Recipe.of(requested)
            if is_temporary:
                recipe = replace(recipe, output=collectives.run_on_rank0(lambda: _temporary_folder(stack)))
            epochs_given = not requested.keys().isdisjoint(("epochs", "grow"))
        else:
            folder = resolve_run_folder(Path(resume))
            # Before reading its state, which another run may be changing.
            collectives.run_on_rank0(lambda: stack.enter_context(lock_run(folder)) and None)
            earlier = read_earlier_run(folder, options)
            recipe, epochs_given = earlier.recipe, earlier.epochs_given
        stack.enter_context(cuda_settings(device_for(recipe.device), deterministic=recipe.deterministic))
        collectives.assert_same({**recipe.as_dict(), "torch": torch.__version__})
        _refuse_unusable(recipe)
        new = earlier is None or earlier.checkpoint is None
        datamodule = open_datamodule(
            recipe,
            new=new,
            epochs_given=epochs_given,
            transform=transform,
            earlier_spec=earlier.checkpoint.state["spec"] if earlier and earlier.checkpoint else None,
        )
        recipe = datamodule.recipe
        set_threads(recipe.threads, table=datamodule.noun == "rows", report=console.print)
        if earlier is None:
            is_open = not epochs_given and (datamodule.time_sets_epochs or datamodule.rows_choose_epochs)
            folder = collectives.run_on_rank0(lambda: _begin_folder(recipe, datamodule, stack, is_open))
        stack.enter_context(crash_report(folder))
        stack.enter_context(refuse_nondeterministic())
        datamodule.prepare(console, stop)
        collectives.assert_same({f"the fingerprint of the {datamodule.noun}": datamodule.fingerprint})
        yield PreparedRun(
            datamodule,
            folder,
            console=console,
            stop=stop,
            earlier=earlier,
            began=began,
            has_transform=transform is not None,
            epochs_are_open=new and not epochs_given,
        )


def _requested_device(requested: dict[str, Any], resume: str | os.PathLike[str] | None) -> str:
    """Return the device of a call, its config file or the run that it resumes, before its data are known."""
    device = requested.get("device")
    if device is None:
        device = "auto" if resume is None else read_recipe(resolve_run_folder(Path(resume))).device
    return device_for(str(device))


def _temporary_folder(stack: ExitStack) -> str:
    """Return a folder that is deleted when the stack is closed."""
    return stack.enter_context(tempfile.TemporaryDirectory(prefix="skipway-"))


def _refuse_unusable(recipe: Recipe) -> None:
    """Raise InputError, before anything is decoded, if the recipe cannot be trained."""
    if recipe.data is None:
        raise InputError(
            "cannot train: expected DATA, got none. Pass a built-in dataset such as digits, a folder of class folders, "
            "Parquet files or a table."
        )
    if recipe.fold is not None and recipe.folds is None:
        raise InputError("cannot train one fold: expected the number of folds, got none. Add --folds 5.")
    phases(recipe)
    refuse_unwatchable(recipe)


def _begin_folder(recipe: Recipe, datamodule: DataModule, stack: ExitStack, epochs_are_open: bool) -> Path:
    """Return the folder of a new run, locked by this process, with its recipe in it."""
    folder = stack.enter_context(new_run_folder(recipe, datamodule.name, datamodule.model[0]))
    write_recipe(folder, recipe, epochs_are_open=epochs_are_open)
    return folder
