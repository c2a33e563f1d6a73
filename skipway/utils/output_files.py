"""The one rule for files that a command writes: never over an input, a file of a run, or what is no plain file."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from skipway.errors import InputError, printable

__all__ = ["refuse_output"]

# What a run keeps in its folder; next to them, and in `export`, users may keep what they like.
_FOLDERS = ("weights", "plots")
_FILES = (
    *("report.html", "config.yaml", "metrics.json", "results.csv", "predictions.csv", "per_class.csv"),
    *("confusion_matrix.csv", "splits.csv", "skipped.csv", "env.json", "encoders.json", "folds.json", "folds.csv"),
    *("find_lr.json", "flow.json", "depth.json", "crash.txt", ".lock"),
)
_MARKS = ("weights", "fold-1", "env.json")  # one of them is next to the config.yaml of every run


def refuse_output(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Raise InputError if writing to `path` would overwrite an input of the command, a file of a run, or no plain file.

    Args:
        path: where the command is to write.
        inputs: files and folders that it reads; a file inside such a folder is one of them too.
    """
    target, where = Path(os.path.realpath(path)), printable(path)
    for source in map(Path, inputs):
        if source.exists() and target.is_file() and _holds(source, target):
            raise InputError(
                f"cannot write to {where}: expected a file of its own, got an input of this command. Give another path."
            )
    if kind := _describe_special(path):
        raise InputError(f"cannot write to {where}: expected a new or a plain file, got a {kind}. Give another path.")
    for folder in target.parents:
        name = target.relative_to(folder).parts[0].casefold()  # as file systems without case would find it
        belongs = name in _FOLDERS or target.parent == folder and name in _FILES
        if belongs and (folder / "config.yaml").is_file() and any((folder / mark).exists() for mark in _MARKS):
            raise InputError(
                f"cannot write to {where}: expected a file of its own, got one of the run in {printable(folder)}. "
                "Give another path."
            )


def _holds(source: Path, target: Path) -> bool:
    """Return whether `target` is the file `source`, or lies in the folder, whatever links lead there."""
    if source.is_dir():
        return target.is_relative_to(os.path.realpath(source)) and not (source / "config.yaml").is_file()
    return os.path.samefile(source, target)


def _describe_special(path: str | os.PathLike[str]) -> str:
    """Return what is at `path` if it is no plain file: writing would take the place of a link or a device."""
    try:
        mode = os.lstat(os.path.normpath(path)).st_mode
    except OSError:  # nothing is there, or its writing will tell why nothing can be
        return ""
    if stat.S_ISREG(mode):
        return ""
    kinds = {stat.S_IFLNK: "symbolic link", stat.S_IFDIR: "folder"}
    return kinds.get(stat.S_IFMT(mode), "device, pipe or socket")
