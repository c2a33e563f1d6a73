"""Run folders: how they are named, found, linked to by RUNS/last, and the recipe in them."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from skipway.errors import InputError, Interrupted, StorageError, printable
from skipway.runs.recipe import Recipe
from skipway.utils.atomic_files import (
    Lock,
    check_writable,
    discard,
    make_folder,
    make_new_folder,
    rename,
    storing,
    sweep,
    temporary_path,
    write_file,
)

__all__ = [
    "is_run_folder",
    "lock_run",
    "new_run_folder",
    "place_run_folder",
    "point_last",
    "read_recipe",
    "require_run_folder",
    "resolve_run_folder",
    "run_folder_aside",
    "unique_names",
    "write_recipe",
]

_MAX_NAME = 200  # bytes: file systems allow 255, and names of temporary files are longer
# Files of a run that has no weights yet.
_FIRST_FILES = ("config.yaml", "env.json", "splits.csv", "skipped.csv", "encoders.json")


@contextlib.contextmanager
def new_run_folder(recipe: Recipe, data: str, model: str) -> Iterator[Path]:
    """Hold the folder of a new run: RUNS/NAME, or RUNS/data-model, numbered from 2 if that exists.

    Nothing is written into a folder that holds files already. Without weights, a run that is refused or stopped takes
    back what it wrote, while it still holds the lock; the folder itself goes only if this call made it.

    Raises:
        InputError: the recipe's name cannot be that of a folder, or the folder is in use. StorageError: the disk.
    """
    folder, is_made = _claim_folder(recipe, data, model)
    try:
        with lock_run(folder):
            _refuse_used(folder)  # now that nobody else writes there
            try:
                yield folder
            except (InputError, StorageError, Interrupted):
                if not _has_begun(folder):
                    _take_back(folder)
                raise
    except BaseException:
        if is_made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if nothing is in it
        raise


@contextlib.contextmanager
def run_folder_aside(output: Path) -> Iterator[Path]:
    """Yield a new folder in `output` for a run that `place_run_folder` puts in its place once it is whole.

    It is removed if it does not get there; what a killed process left of one is removed first.
    """
    aside = temporary_path(output / "run")
    with storing(output, 0):
        make_folder(output)
        sweep(output, ".tmp-run-")
        make_new_folder(aside)
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def place_run_folder(aside: Path, recipe: Recipe, data: str) -> Path:
    """Rename a whole run to the place of a new one, so that it is there whole or not at all; return its folder.

    Raises:
        InputError: the recipe's name cannot be that of a folder, or the folder is in use. StorageError: the disk.
    """
    with new_run_folder(recipe, data, recipe.model) as folder:
        pass  # it is empty, and nobody holds it
    with storing(folder, 0):
        sweep(folder, ".tmp-")
        folder.rmdir()
        rename(aside, folder)
    return folder


def lock_run(folder: Path) -> Lock:
    """Return the lock of a run's folder, to be held while the run is written to.

    Raises:
        InputError: another process holds it. StorageError: the folder cannot be written to.
    """
    check_writable(folder)
    return Lock(folder)


def _claim_folder(recipe: Recipe, data: str, model: str) -> tuple[Path, bool]:
    """Return the folder of a new run, and whether this call made it."""
    output = Path(recipe.output)
    _refuse_within_data(output, recipe)
    if recipe.name is not None:
        folder = output / _plain_name(recipe.name)
        _refuse_used(folder)
        return folder, _make(folder)
    stem = "".join(c if c.isalnum() or c in "._-" else "_" for c in f"{data}-{model}")[:60].lstrip(".") or "run"
    number = 1
    while True:
        folder = output / (stem if number == 1 else f"{stem}-{number}")
        if _make(folder):  # whoever makes it first has it, also among processes that start together
            return folder, True
        number += 1


def _refuse_within_data(output: Path, recipe: Recipe) -> None:
    """Raise InputError if a run would be among the images that it is trained on, where it looks like a class."""
    data = Path(os.path.realpath(os.path.expanduser(recipe.data or os.devnull)))
    if recipe.target is None and data.is_dir() and Path(os.path.realpath(output)).is_relative_to(data):
        raise InputError(
            f"cannot start a run in {printable(output)}: expected a folder outside of the dataset, got one within "
            f"{printable(recipe.data)}. Give another --output."
        )


def _make(folder: Path) -> bool:
    """Make a folder and those above it; return False if it was there."""
    if folder.parent.is_file():
        raise InputError(f"{printable(folder.parent)} is a file; give another folder with --output")
    with storing(folder, 0):
        make_folder(folder.parent)
        try:
            folder.mkdir()
        except FileExistsError:
            return False
    return True


def _plain_name(name: str) -> str:
    if not name or Path(name).name != name or name in (".", "..", "last") or "\0" in name:
        raise InputError(
            f"a run cannot be called {printable(name)!r}: a plain folder name was expected; "
            "the folder above it is --output"
        )
    if (size := len(os.fsencode(name))) > _MAX_NAME:
        raise InputError(
            f"cannot name the run {printable(name[:20])}...: expected at most {_MAX_NAME} bytes, got {size}. "
            "Shorten --name."
        )
    return name


def _refuse_used(folder: Path) -> None:
    """Raise InputError if a folder holds anything but the traces of a start."""
    with storing(folder, 0):
        if not folder.is_dir():
            return
        entries = sorted(name for name in os.listdir(folder) if name != ".lock" and not name.startswith(".tmp-"))
    if not entries:
        return
    where = printable(folder)
    if is_run_folder(folder):
        raise InputError(f"{where} holds a run already; go on with it by --resume {where}, or take another --name")
    raise InputError(
        f"cannot start a run in {where}: expected a new or empty folder, got one with {printable(entries[0])} in it. "
        "Take another --name or --output."
    )


def is_run_folder(folder: Path) -> bool:
    """Return whether a folder is that of a run, or of a cross-validation."""
    with contextlib.suppress(OSError, InputError):
        return bool(Recipe.read(folder / "config.yaml", need_schema=True))
    return False


def _has_begun(folder: Path) -> bool:
    """Return whether a run, or a fold of a cross-validation, has something to keep."""
    return (folder / "weights").exists() or any(folder.glob("fold-*/weights"))


def _take_back(folder: Path) -> None:
    """Remove what a run writes before it has weights; the folder was empty when the run began."""
    for name in (*_FIRST_FILES, "plots"):
        with contextlib.suppress(OSError):
            discard(folder / name)


def point_last(folder: Path) -> None:
    """Make RUNS/last lead to this run; leave it if links cannot be made."""
    link = folder.parent / "last"
    try:
        if link.is_symlink() or not link.exists():
            temporary = temporary_path(link)
            temporary.symlink_to(folder.name, target_is_directory=True)
            os.replace(temporary, link)
    except OSError:
        return


def require_run_folder(folder: Path) -> None:
    """Raise StorageError if the folder of a run is no longer where the run began: it was moved or removed."""
    if not (folder / "config.yaml").is_file():
        raise StorageError(
            f"cannot write to the run {printable(folder)}: expected its config.yaml, got none: the folder was moved or "
            "removed. What it holds is whole as of its last checkpoint; go on with --resume where it is now."
        )


def resolve_run_folder(path: Path) -> Path:
    """Return the run folder that `path` is or links to, such as runs/last, by a path as short as `path`.

    Raises:
        InputError: there is no run folder.
    """
    folder = path.parent / os.readlink(path) if path.is_symlink() else path
    if not (folder / "config.yaml").is_file():
        raise InputError(
            f"{printable(path)} is no run folder: config.yaml is missing; give the folder that `skipway train` named"
        )
    return folder


def read_recipe(folder: Path) -> Recipe:
    """Return the recipe in the config.yaml of a run.

    Raises:
        InputError: the file cannot be read, has another schema, or holds no recipe.
    """
    return Recipe.of(Recipe.read(folder / "config.yaml", need_schema=True))


def write_recipe(folder: Path, recipe: Recipe, *, epochs_are_open: bool = False) -> None:
    """Write the config.yaml of a run; without the epochs while the time is still to set them."""
    write_file(folder / "config.yaml", recipe.as_yaml(epochs_are_open=epochs_are_open).encode())


def unique_names(folders: Sequence[Path]) -> list[str]:
    """Return as much of each path's end as distinguishes the runs."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = [printable("/".join(path[-depth:])) for path in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{printable(path[-1])} ({i})" for i, path in enumerate(parts, 1)]
