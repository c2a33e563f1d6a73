"""Run folders: how they are named, found, linked to by RUNS/last, and the recipe in them."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from skipway.errors import InputError, StorageError, printable
from skipway.runs.recipe import Recipe
from skipway.utils.atomic_files import write_file

__all__ = [
    "new_folder",
    "point_last",
    "read_recipe",
    "remove_if_refused",
    "resolve_run_folder",
    "unique_names",
    "write_recipe",
]


def new_folder(recipe: Recipe, data: str, model: str) -> Path:
    """Return RUNS/NAME, or RUNS/data-model, numbered from 2 if a run of that name exists.

    Raises:
        InputError: the recipe's name cannot be that of a folder, or a run has it already.
    """
    output = Path(recipe.output)
    if recipe.name is not None:
        return _named_folder(output, recipe.name)
    stem = "".join(c if c.isalnum() or c in "._-" else "_" for c in f"{data}-{model}")[:100].lstrip(".") or "run"
    number = 1
    while True:
        folder = output / (stem if number == 1 else f"{stem}-{number}")
        try:
            output.mkdir(parents=True, exist_ok=True)
            folder.mkdir()  # whoever makes it first has it, also among processes that start together
            return folder
        except FileExistsError:
            if not output.is_dir():
                raise InputError(f"{printable(output)} is a file; give another folder with --output") from None
            number += 1
        except OSError:
            return folder  # what is wrong with the place is said when it is tried for writing


def _named_folder(output: Path, name: str) -> Path:
    if not name or Path(name).name != name or name in (".", "..", "last"):
        raise InputError(
            f"a run cannot be called {printable(name)!r}: a plain folder name was expected; "
            "the folder above it is --output"
        )
    folder = output / name
    if _has_begun(folder):  # a run that never came to train may be started again
        raise InputError(
            f"{printable(folder)} holds a run already; go on with it by --resume {printable(folder)}, or take "
            "another --name"
        )
    return folder


def _has_begun(folder: Path) -> bool:
    """Return whether a run, or a fold of a cross-validation, has something to keep."""
    return (folder / "weights").exists() or any(folder.glob("fold-*/weights"))


@contextlib.contextmanager
def remove_if_refused(folder: Path) -> Iterator[None]:
    """Remove the folder of a new run again if the run is refused before it has anything to keep."""
    try:
        yield
    except (InputError, StorageError):
        if not _has_begun(folder):
            with contextlib.suppress(OSError):
                (folder / "config.yaml").unlink(missing_ok=True)
                folder.rmdir()  # only if nothing else is in it
        raise


def point_last(folder: Path) -> None:
    """Make RUNS/last lead to this run; leave it if links cannot be made."""
    link = folder.parent / "last"
    try:
        if link.is_symlink() or not link.exists():
            temporary = folder.parent / f".last-{os.getpid()}"
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(folder.name, target_is_directory=True)
            os.replace(temporary, link)
    except OSError:
        return


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


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write the config.yaml of a run."""
    write_file(folder / "config.yaml", recipe.as_yaml().encode())


def unique_names(folders: Sequence[Path]) -> list[str]:
    """Return as much of each path's end as distinguishes the runs."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = [printable("/".join(path[-depth:])) for path in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{printable(path[-1])} ({i})" for i, path in enumerate(parts, 1)]
