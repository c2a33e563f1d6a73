"""Cross-validation: one run per fold, so that each sample is evaluated by a model that was not trained on it."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from skipway.data.folds import describe_pool
from skipway.data.images.decoded_cache import share_decoded
from skipway.data.sources.image_source import SPLITS, Source
from skipway.errors import InputError, Interrupted, printable
from skipway.report.run_reader import Reader, history_of
from skipway.runs.finished_run import CrossValidation, Run
from skipway.runs.fold_results import (
    describe_fold,
    describe_folds,
    fold_row,
    is_evaluated,
    samples_of_run,
    write_folds,
)
from skipway.runs.open_recipe_data import open_recipe_data
from skipway.runs.plain_options import requested_options
from skipway.runs.recipe import Recipe
from skipway.runs.resume import ENDS, MAY_CHANGE, find_data
from skipway.runs.run_folder import is_run_folder, lock_run, new_run_folder, point_last, resolve_run_folder
from skipway.utils.atomic_files import discard, write_file
from skipway.utils.console import Console, duration
from skipway.utils.run_schema import with_schema
from skipway.utils.stop_signals import StopFlag

__all__ = ["cross_validate", "is_cross_validation"]


class _BarsOnly(Console):
    """Console of one fold that shows progress bars, but no lines."""

    def print(self, text: str) -> None:
        """Drop the text."""


def is_cross_validation(requested: Mapping[str, Any], resume: str | os.PathLike[str] | None) -> bool:
    """Check if a call of `train` requests all folds of a cross-validation.

    Args:
        requested: options of the call and of its config file.
        resume: run folder to resume, whose options count instead, or None.
    """
    if resume is not None:
        requested = Recipe.read(resolve_run_folder(Path(resume)) / "config.yaml")
    return requested.get("folds") is not None and requested.get("fold") is None


def cross_validate(
    train: Callable[..., Run],
    options: dict[str, Any],
    *,
    config: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    console: Console,
    stop: StopFlag | None = None,
) -> CrossValidation:
    """Train and evaluate every fold that is not done yet, and write the pooled results.

    Args:
        train: function that trains one fold; takes options, `resume`, `console` and `stop`.
        options: options of the call as plain values.
        config: YAML file of options, or None.
        resume: folder of a cross-validation to resume, or None.
        console: console for progress.
        stop: flag that interrupts training; default: SIGINT, SIGTERM and SIGUSR1 set one.

    Returns:
        The cross-validation, with one run per fold.

    Raises:
        InputError: an option cannot be used.
        Interrupted: `stop` was set; finished folds are kept.
    """
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise InputError(
            f"cannot train all folds: expected one process, got {processes}. Drop --nproc, or train each fold with "
            "--fold."
        )
    with ExitStack() as stack:
        stop = stop or stack.enter_context(StopFlag())
        if resume is None:
            requested = requested_options(options, config)
            pool = _open_pool(Recipe.of(requested))
            name = f"{requested['folds']}-folds"
            folder = stack.enter_context(new_run_folder(Recipe.of(requested), pool.name, name))
            write_file(folder / "config.yaml", yaml.safe_dump(with_schema(requested), sort_keys=False).encode())
        else:
            folder = resolve_run_folder(Path(resume))
            requested = _resumed_options(folder, options)
            pool = _open_pool(Recipe.of(requested))
            stack.enter_context(lock_run(folder))
        changed = {name: value for name, value in options.items() if name in MAY_CHANGE and name not in ENDS}
        changed["data"] = requested["data"]
        stack.enter_context(share_decoded())
        stop.defer()
        try:
            return _Folds(train, requested, changed, folder=folder, pool=pool, console=console, stop=stop).run()
        finally:
            if any(folder.glob("fold-*/weights")):
                point_last(folder)


def _resumed_options(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a cross-validation, updated with the options of this call.

    Raises:
        InputError: a fixed option would change.
    """
    before = Recipe.read(folder / "config.yaml", need_schema=True)
    known = Recipe.of(before).as_dict()
    fixed = [k for k, v in options.items() if (k not in MAY_CHANGE or k in ENDS) and k in known and v != known[k]]
    if fixed:
        raise InputError(
            f"cannot change {', '.join(sorted(fixed))} of a cross-validation: expected the options of "
            f"{printable(folder / 'config.yaml')} for all folds, got other ones. Drop them, or start a new "
            "cross-validation."
        )
    requested = {**before, **options}
    return {**requested, "data": find_data(requested.get("data"), folder)}


@dataclass(frozen=True)
class _Pool:
    """Data of a cross-validation: its name, the noun for its samples, and the size of each split."""

    name: str
    noun: str
    counts: dict[str, int]

    def describe(self, folds: int) -> str:
        """Return the console line about the data."""
        total = self.counts["train"] + self.counts.get("val", 0)
        pooled = describe_pool(self.counts, self.noun)
        return f"data: {self.name}, {folds} folds of {total:,} {self.noun}{f' ({pooled})' if pooled else ''}"


def _open_pool(recipe: Recipe) -> _Pool:
    if recipe.data is None:
        raise InputError("cannot cross-validate: expected DATA, got none. Pass a folder, a table or a built-in name.")
    data = open_recipe_data(recipe)
    if isinstance(data, Source):
        return _Pool(data.name, "images", {split: n for split in SPLITS if (n := data.count(split))})
    return _Pool(data.name, "rows", {split: len(table) for split, table in data.splits.items()})


@dataclass
class _Folds:
    """Folds of one call of `cross_validate`, in their folder."""

    train: Callable[..., Run]
    requested: dict[str, Any]  # options of the cross-validation
    changed: dict[str, Any]  # options of this call for a fold that is resumed
    folder: Path
    pool: _Pool
    console: Console
    stop: StopFlag

    def __post_init__(self) -> None:
        self.count: int = self.requested["folds"]

    def run(self) -> CrossValidation:
        """Train the missing folds, and return the cross-validation."""
        self.console.print(f"cross-validation {self.folder}\n{self.pool.describe(self.count)}")
        runs: list[Run] = []
        for number in range(1, self.count + 1):
            begin, is_found = time.monotonic(), (run := self._finished(number)) is not None
            run = run or self._train(number)
            runs.append(run)
            self._refuse_other_samples(runs[0], run)
            took = "already done" if is_found else duration(time.monotonic() - begin)
            self.console.print(f"fold {number} of {self.count}: {describe_fold(run, self.pool.noun)}, {took}")
        values = write_folds(self.folder, runs, data=self.pool.name, counts=self.pool.counts, noun=self.pool.noun)
        self.console.print(describe_folds(values, self.pool.noun, self.folder))
        return CrossValidation(self.folder, values, [fold_row(run) for run in runs], runs=tuple(runs))

    def _path(self, number: int) -> Path:
        return self.folder / f"fold-{number}"

    def _finished(self, number: int) -> Run | None:
        """Return the run of a fold that is finished, including its report; else None."""
        folder = self._path(number)
        if not (folder / "report.html").is_file():
            return None
        reader = Reader(folder)
        run = Run(folder, reader.json("metrics.json"), history_of(reader.table("results.csv")))
        return run if run.history and is_evaluated(run) else None

    def _train(self, number: int) -> Run:
        folder, bars = self._path(number), _BarsOnly(self.console.quiet, self.console.stream)
        try:
            if (folder / "weights").exists():
                return self.train(**self.changed, resume=folder, console=self.console, stop=self.stop)
            _discard_unbegun(folder)
            return self.train(**self._options(number), console=bars, stop=self.stop)
        except Interrupted:
            raise Interrupted(
                f"stopped by {self.stop.name} in fold {number} of {self.count}, work saved. Resume with --resume "
                f"{printable(self.folder)}."
            ) from None

    def _options(self, number: int) -> dict[str, Any]:
        """Return the options of a new fold, with threads and image size as resolved in the first fold."""
        options = {**self.requested, "fold": number, "output": str(self.folder), "name": f"fold-{number}"}
        limit = self.requested.get("time_limit")
        if limit is not None:
            options["time_limit"] = limit / self.count
        if number > 1:
            first = Reader(self._path(1))
            options["threads"] = first.json("env.json").get("threads")
            if limit is not None:
                options["img_size"] = first.yaml("config.yaml").get("img_size")
        return options

    def _refuse_other_samples(self, first: Run, run: Run) -> None:
        """Raise InputError if a fold has other samples than the first one."""
        if samples_of_run(first.path) != samples_of_run(run.path):
            raise InputError(
                f"cannot pool the folds of {printable(self.folder)}: expected the {self.pool.noun} of fold-1 in "
                f"{run.path.name}, got different ones. Restore the data and remove {run.path.name}, or start a new "
                "cross-validation."
            )


def _discard_unbegun(folder: Path) -> None:
    """Remove the files of a fold that was killed before it had weights, so that it starts again."""
    if is_run_folder(folder):
        with lock_run(folder):
            pass  # no other process trains this fold
        discard(folder)
