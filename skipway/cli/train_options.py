"""Commands that train: train, find-lr. The fields of a Recipe are their flags."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from skipway.cli.recipe_flags import HELP_GROUPS, passed, recipe_flags
from skipway.cli.switch_option import switch
from skipway.errors import InputError, SkipwayError
from skipway.runs.recipe import UNUSED_BY_FIND_LR, Recipe
from skipway.utils import stop_signals
from skipway.utils.console import Console, print_result
from skipway.utils.malloc_settings import keep_freed_memory, paused_collection, restart_gathering

__all__ = ["COMMAND_LINE", "RecipeFlags", "find_lr", "train"]


@dataclass
class CommandLine:
    """The arguments of the running command; `owns_process` if the process was started with them."""

    words: list[str] = field(default_factory=list)
    owns_process: bool = False


COMMAND_LINE = CommandLine()


Quiet = Annotated[bool, switch(group=HELP_GROUPS["Output"], help="Print errors only.")]


RecipeFlags = recipe_flags(set(Recipe.names()) - {"data"}, __name__)
_NO_FLAGS = RecipeFlags()
RangeTestFlags = recipe_flags(set(Recipe.names()) - {"data", *UNUSED_BY_FIND_LR}, __name__)
_NO_RANGE_TEST_FLAGS = RangeTestFlags()


def train(
    data: str | None = None,
    *,
    config: Annotated[Path | None, Parameter(group=HELP_GROUPS["Data"])] = None,
    resume: Annotated[Path | None, Parameter(group=HELP_GROUPS["Output"])] = None,
    allow_changed_data: Annotated[bool, switch(group=HELP_GROUPS["Safety"])] = False,
    nproc: Annotated[int, Parameter(group=HELP_GROUPS["Hardware"])] = 1,
    dry_run: Annotated[bool, switch(group=HELP_GROUPS["Output"])] = False,
    quiet: Quiet = False,
    flags: Annotated[RecipeFlags, Parameter(name="*")] = _NO_FLAGS,  # type: ignore[valid-type]
) -> None:
    """Train a network on DATA and write a run folder with its weights, tables and a report.

    Parameters
    ----------
    data
        Image folder, Parquet files, table with --target, built-in or Hub dataset.
    config
        YAML file of options; options on the command line take precedence.
    resume
        Run folder to resume exactly; pass more --epochs to train for longer.
    allow_changed_data
        Resume although images were added, removed or edited.
    nproc
        Processes on this machine; they share every batch.
    dry_run
        Print all options with their reasons as YAML for --config, and stop.
    """
    options = passed(flags)
    if COMMAND_LINE.owns_process and not stop_signals.STOP.requested and _recomputes(options, config, resume):
        restart_gathering()
    if nproc > 1 and "WORLD_SIZE" not in os.environ:
        from skipway.distributed.launch import launch
        from skipway.utils.devices import refuse_excess_processes

        refuse_excess_processes(nproc, str(_option("device", "auto", options, config, resume)))
        stop_signals.STOP.defer()  # each process saves its state
        return launch(nproc, COMMAND_LINE.words, quiet=quiet, resumes=resume is not None)
    with paused_collection():
        from skipway.runs import train_run

    keep_freed_memory()
    if dry_run:
        if resume is not None:
            raise InputError("cannot resolve the options: expected --dry-run or --resume, got both. Drop one of them.")
        console = Console(quiet, stream=sys.stderr)
        resolved = train_run.dry_run(data, config=config, console=console, stop=stop_signals.STOP, **options)
        return print_result(str(resolved))
    train_run.train(
        data,
        config=config,
        resume=resume,
        allow_changed_data=allow_changed_data,
        console=Console(quiet),
        stop=stop_signals.STOP,
        **options,
    )


def _recomputes(options: Mapping[str, Any], config: Path | None, resume: Path | None) -> bool:
    """Check if the run uses activation checkpointing; an unreadable config is reported later."""
    return bool(_option("recompute", "none", options, config, resume) != "none")


def _option(name: str, default: Any, options: Mapping[str, Any], config: Path | None, resume: Path | None) -> Any:
    """Return an option of the command line, the config file or the resumed run, or its default."""
    if name in options:
        return options[name]
    for file in (config, resume / "config.yaml" if resume else None):
        with suppress(OSError, SkipwayError):
            if file is not None:
                return Recipe.read(file).get(name, default)
    return default


def find_lr(
    data: str,
    *,
    output: Annotated[Path, Parameter(alias="-o", group=HELP_GROUPS["Output"])] = Path("find_lr.png"),
    quiet: Quiet = False,
    flags: Annotated[RangeTestFlags, Parameter(name="*")] = _NO_RANGE_TEST_FLAGS,  # type: ignore[valid-type]
) -> None:
    """Suggest a learning rate for a network on DATA by an LR range test of 100 steps.

    Parameters
    ----------
    data
        Dataset, as for `skipway train`.
    output
        Plot of the loss against the learning rate.
    """
    with paused_collection():
        from skipway.commands.find_lr import find_lr as run_range_test

    keep_freed_memory()
    console = Console(quiet, stream=sys.stderr)
    result = run_range_test(data, output=output, console=console, stop=stop_signals.STOP, **passed(flags))
    rates = f"steepest {result.steepest:.3g}, valley {result.valley:.3g}"
    print_result(f"suggested: --lr {result.suggestion:.2g} ({rates})\nplot: {output}")
