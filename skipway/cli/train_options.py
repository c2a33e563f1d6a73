"""Commands that train by a recipe: train, find-lr. Every field of a Recipe is a flag of theirs."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from cyclopts import Parameter

from skipway.errors import SkipwayError
from skipway.runs.recipe import Recipe
from skipway.utils import stop_signals
from skipway.utils.console import Console, print_result
from skipway.utils.malloc_settings import keep_freed_memory, paused_collection, restart_gathering

__all__ = ["COMMAND_LINE", "RecipeFlags", "find_lr", "train"]


@dataclass
class CommandLine:
    """The words of the command that runs, and whether the process was begun with them."""

    words: list[str] = field(default_factory=list)
    owns_process: bool = False


COMMAND_LINE = CommandLine()


def _recipe_flags(*excluded: str) -> type:
    """Return a class with the fields of a Recipe as flags.

    A flag that was not given is None, so that a config or a run goes before the default.
    """
    hints = get_type_hints(Recipe)
    attributes = []
    for option in fields(Recipe):
        if option.name in ("data", *excluded):
            continue
        default = "" if option.default is None else f" [default: {option.default}]"
        alias, help_text = option.metadata["alias"] or None, option.metadata["help"] + default
        flag = Parameter(alias=alias, help=help_text, show_default=False)
        attributes.append((option.name, Annotated[hints[option.name] | None, flag], None))
    flags = make_dataclass("Flags", attributes, frozen=True, kw_only=True)
    flags.__module__ = __name__  # Python 3.11 says "types", which cyclopts takes for a plain value
    return flags


RecipeFlags = _recipe_flags()
_NO_FLAGS = RecipeFlags()
# find-lr leaves no run folder, its output is the plot, and it trains no folds.
RangeTestFlags = _recipe_flags("output", "name", "folds", "fold")
_NO_RANGE_TEST_FLAGS = RangeTestFlags()


def _given(flags: Any) -> dict[str, Any]:
    """Return the flags that were given, by the names of Recipe's fields."""
    return {name: value for name, value in vars(flags).items() if value is not None}


def train(
    data: str | None = None,
    *,
    config: Path | None = None,
    resume: Path | None = None,
    allow_changed_data: bool = False,
    nproc: int = 1,
    quiet: Annotated[bool, Parameter(negative="")] = False,
    flags: Annotated[RecipeFlags, Parameter(name="*")] = _NO_FLAGS,  # type: ignore[valid-type]
) -> None:
    """Train a network on DATA and leave a run folder with its weights, tables and a report.

    Parameters
    ----------
    data
        digits; a folder with one sub-folder per class, with or without train, val and test above them; Hugging Face
        parquet files; cifar10, mnist, imagenette or hf:org/name[/folder] by download. Tables: wine, breast_cancer,
        diabetes; a .csv, .tsv or .parquet file, or a folder with train, val and test, with --target. May be left out
        when resuming.
    config
        A YAML file of the options below, such as the config.yaml of a run; options given here go before it.
    resume
        A run folder to go on with exactly; --epochs N goes on for longer.
    allow_changed_data
        Resume although pictures were added, removed or edited.
    nproc
        Processes on this machine that train together, each with its part of every batch.
    quiet
        Say nothing but errors.
    """
    options = _given(flags)
    if COMMAND_LINE.owns_process and not stop_signals.STOP.requested and _recomputes(options, config, resume):
        restart_gathering()
    if nproc > 1 and "WORLD_SIZE" not in os.environ:
        from skipway.distributed.launch import launch

        stop_signals.STOP.defer()  # each process saves for itself
        return launch(nproc, COMMAND_LINE.words)
    with paused_collection():
        from skipway.runs.train_run import train as train_run

    keep_freed_memory()
    train_run(
        data,
        config=config,
        resume=resume,
        allow_changed_data=allow_changed_data,
        console=Console(quiet),
        stop=stop_signals.STOP,
        **options,
    )


def _recomputes(options: Mapping[str, Any], config: Path | None, resume: Path | None) -> bool:
    """Whether the training is one with --recompute; a config that cannot be read is refused later."""
    if "recompute" in options:
        return bool(options["recompute"] != "none")
    for file in (config, resume / "config.yaml" if resume else None):
        with suppress(OSError, SkipwayError):
            if file is not None and Recipe.read(file).get("recompute", "none") != "none":
                return True
    return False


def find_lr(
    data: str,
    *,
    output: Annotated[Path, Parameter(alias="-o")] = Path("find_lr.png"),
    quiet: Annotated[bool, Parameter(negative="")] = False,
    flags: Annotated[RangeTestFlags, Parameter(name="*")] = _NO_RANGE_TEST_FLAGS,  # type: ignore[valid-type]
) -> None:
    """Which learning rates suit a network on DATA: a hundred steps with rates that rise, drawn and read.

    Parameters
    ----------
    data
        As for train.
    output
        Where to draw the loss over the rates.
    quiet
        Say nothing but the result and errors.
    """
    with paused_collection():
        from skipway.commands.find_lr import find_lr as run_range_test

    keep_freed_memory()
    console = Console(quiet, stream=sys.stderr)
    result = run_range_test(data, output=output, console=console, stop=stop_signals.STOP, **_given(flags))
    print_result(
        f"steepest {result.steepest:.3g}, valley {result.valley:.3g}: try --lr {result.suggestion:.2g}\ndrawn: {output}"
    )
