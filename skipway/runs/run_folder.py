"""Run folders: naming, locking, lookup, the link RUNS/last, and the recipe in config.yaml."""

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

try:
    from _winapi import CreateJunction as _create_junction  # type: ignore[attr-defined]
except ImportError:  # all systems but Windows
    _create_junction = None

_IS_WINDOWS = os.name == "nt"
_MAX_NAME = 200  # bytes; file systems allow 255, and temporary files have longer names
# Files that a run writes before its first weights.
_FIRST_FILES = ("config.yaml", "env.json", "splits.csv", "skipped.csv", "encoders.json", "columns.yaml")


@contextlib.contextmanager
def new_run_folder(recipe: Recipe, data: str, model: str) -> Iterator[Path]:
    """Create and lock the folder of a new run: RUNS/NAME, or RUNS/DATA-MODEL, numbered from 2 if it exists.

    A folder with files is rejected. If the run fails or is stopped before it has weights, its files are removed under
    the lock. The folder is removed only if this call created it.

    Args:
        recipe: options of the run.
        data: name of the dataset.
        model: name of the network.

    Yields:
        The run folder.

    Raises:
        InputError: the name is invalid, or the folder is in use.
        StorageError: the folder cannot be written.
    """
    folder, is_made = _claim_folder(recipe, data, model)
    try:
        with lock_run(folder):
            _refuse_used(folder)  # again under the lock, after other processes have finished
            try:
                yield folder
            except (InputError, StorageError, Interrupted):
                if not _has_begun(folder):
                    _take_back(folder)
                raise
    except BaseException:
        if is_made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # fails if the folder has files
        raise


@contextlib.contextmanager
def run_folder_aside(output: Path) -> Iterator[Path]:
    """Create a temporary folder in `output` for a run that `place_run_folder` moves into place once it is complete.

    The folder is removed on exit if it was not moved. Leftovers of killed processes are removed first.

    Args:
        output: parent folder of run folders.

    Yields:
        The temporary folder.
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
    """Move a complete run from its temporary folder to its run folder atomically.

    Args:
        aside: folder of `run_folder_aside`.
        recipe: options of the run.
        data: name of the dataset.

    Returns:
        The run folder.

    Raises:
        InputError: the name is invalid, or the folder is in use.
        StorageError: the folder cannot be written.
    """
    with new_run_folder(recipe, data, recipe.model) as folder:
        pass  # the folder is now empty and not locked by another process
    with storing(folder, 0):
        sweep(folder, ".tmp-")
        folder.rmdir()
        rename(aside, folder)
    return folder


def lock_run(folder: Path) -> Lock:
    """Return a lock on a run folder, to be held while writing to it.

    Raises:
        InputError: another process holds the lock.
        StorageError: the folder is not writable.
    """
    check_writable(folder)
    return Lock(folder)


def _claim_folder(recipe: Recipe, data: str, model: str) -> tuple[Path, bool]:
    """Return the folder of a new run, and True if this call created it."""
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
        if _make(folder):  # creation is atomic among processes that start together
            return folder, True
        number += 1


def _refuse_within_data(output: Path, recipe: Recipe) -> None:
    """Raise InputError if the run folder would be inside the dataset, because it would be read as a class."""
    data = Path(os.path.realpath(os.path.expanduser(recipe.data or os.devnull)))
    if recipe.target is None and data.is_dir() and Path(os.path.realpath(output)).is_relative_to(data):
        raise InputError(
            f"cannot start a run in {printable(output)}: expected a folder outside of the dataset, got one within "
            f"{printable(recipe.data)}. Use another --output."
        )


def _make(folder: Path) -> bool:
    """Create a folder and its parents; return False if it existed."""
    if folder.parent.is_file():
        raise InputError(
            f"cannot start a run in {printable(folder.parent)}: expected a folder, got a file. Use another --output."
        )
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
            f"cannot name the run {printable(name)!r}: expected a plain folder name other than 'last'. Change --name, "
            "and set the parent folder with --output."
        )
    if (size := len(os.fsencode(name))) > _MAX_NAME:
        raise InputError(
            f"cannot name the run {printable(name[:20])}...: expected at most {_MAX_NAME} bytes, got {size}. "
            "Shorten --name."
        )
    return name


def _refuse_used(folder: Path) -> None:
    """Raise InputError if a folder has files, except for those of a lock."""
    with storing(folder, 0):
        if not folder.is_dir():
            return
        entries = sorted(name for name in os.listdir(folder) if name != ".lock" and not name.startswith(".tmp-"))
    if not entries:
        return
    where = printable(folder)
    if is_run_folder(folder):
        raise InputError(
            f"cannot start a run in {where}: expected a new folder, got one that holds a run already. Resume it with "
            f"--resume {where}, or use another --name."
        )
    raise InputError(
        f"cannot start a run in {where}: expected a new or empty folder, got one with {printable(entries[0])} in it. "
        "Use another --name or --output."
    )


def is_run_folder(folder: Path) -> bool:
    """Return True for the folder of a run or a cross-validation."""
    with contextlib.suppress(OSError, InputError):
        return bool(Recipe.read(folder / "config.yaml", need_schema=True))
    return False


def _has_begun(folder: Path) -> bool:
    """Return True if a run, or a fold of a cross-validation, has weights."""
    return (folder / "weights").exists() or any(folder.glob("fold-*/weights"))


def _take_back(folder: Path) -> None:
    """Remove the files that a run writes before it has weights; the folder was empty at its start."""
    for name in (*_FIRST_FILES, "plots"):
        with contextlib.suppress(OSError):
            discard(folder / name)


def point_last(folder: Path) -> None:
    """Point the link RUNS/last to this run; do nothing if the file system has no links.

    Windows has symbolic links for administrators and developers only. Others get a junction, which is a link to an
    absolute path. There the old link is removed first, because Windows does not replace links to folders.
    """
    link = folder.parent / "last"
    try:
        if not _is_link(link) and link.exists():
            return
        if _IS_WINDOWS and _is_link(link):
            os.unlink(link)
        temporary = temporary_path(link)
        try:
            temporary.symlink_to(folder.name, target_is_directory=True)
        except OSError:
            if not _IS_WINDOWS:
                raise
            _create_junction(os.path.abspath(folder), str(temporary))
        os.replace(temporary, link)
    except OSError:
        return


def _is_link(path: Path) -> bool:
    """Return True for a symbolic link or a junction; `Path.is_symlink` is False for a junction."""
    try:
        return bool(os.readlink(path))
    except OSError:
        return False


def require_run_folder(folder: Path) -> None:
    """Raise StorageError if the folder of a running training has lost its config.yaml."""
    if not (folder / "config.yaml").is_file():
        raise StorageError(
            f"cannot write to the run {printable(folder)}: expected its config.yaml, got none. If the folder was "
            "moved, resume it from its last checkpoint with --resume and its new path."
        )


def resolve_run_folder(path: Path) -> Path:
    """Return the run folder at `path`, or the target of a link such as runs/last as a relative path.

    Args:
        path: run folder, or link to it.

    Raises:
        InputError: `path` is not a run folder.
    """
    folder = path.parent / os.readlink(path) if path.is_symlink() else path
    if not (folder / "config.yaml").is_file():
        raise InputError(
            f"{printable(path)} is not a run folder: expected a config.yaml in it, got none. Pass a folder that "
            "`skipway train` has created."
        )
    return folder


def read_recipe(folder: Path) -> Recipe:
    """Read the recipe of a run from its config.yaml.

    Raises:
        InputError: the file cannot be read, has another schema, or is not a recipe.
    """
    return Recipe.of(Recipe.read(folder / "config.yaml", need_schema=True))


def write_recipe(folder: Path, recipe: Recipe, *, epochs_are_open: bool = False) -> None:
    """Write the config.yaml of a run.

    Args:
        folder: run folder.
        recipe: options of the run.
        epochs_are_open: leave out the epochs, because the time limit will set them.
    """
    write_file(folder / "config.yaml", recipe.as_yaml(epochs_are_open=epochs_are_open).encode())


def unique_names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that distinguish the runs.

    >>> unique_names([Path("a/run"), Path("b/run")])
    ['a/run', 'b/run']
    """
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = [printable("/".join(path[-depth:])) for path in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{printable(path[-1])} ({i})" for i, path in enumerate(parts, 1)]
