"""Check of output paths: a command must not overwrite an input, a file of a run, or a special file."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from skipway.errors import InputError, printable

__all__ = ["refuse_output"]

# Files and folders of a run. Users may keep other files next to them, and any file in `export`.
_FOLDERS = ("weights", "plots")
_FILES = (
    *("report.html", "config.yaml", "metrics.json", "results.csv", "predictions.csv", "per_class.csv"),
    *("confusion_matrix.csv", "splits.csv", "skipped.csv", "env.json", "encoders.json", "folds.json", "folds.csv"),
    *("find_lr.json", "flow.json", "depth.json", "columns.yaml", "crash.txt", ".lock"),
)
_MARKS = ("weights", "fold-1", "env.json")  # every run has one of them next to its config.yaml


def refuse_output(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Raise an error if writing to `path` would overwrite an input, a file of a run, or a special file.

    Args:
        path: output of the command.
        inputs: files and folders that the command reads. All files in such a folder are inputs.

    Raises:
        InputError: `path` is one of these.
    """
    target, where = Path(os.path.realpath(path)), printable(path)
    for source in map(Path, inputs):
        if source.exists() and target.is_file() and _holds(source, target):
            raise InputError(
                f"cannot write to {where}: expected a separate file, got an input of this command. Choose another path."
            )
    if kind := _describe_special(path):
        raise InputError(f"cannot write to {where}: expected a regular file, got a {kind}. Choose another path.")
    for folder in target.parents:
        name = target.relative_to(folder).parts[0].casefold()  # for case-insensitive file systems
        belongs = name in _FOLDERS or target.parent == folder and name in _FILES
        if belongs and (folder / "config.yaml").is_file() and any((folder / mark).exists() for mark in _MARKS):
            raise InputError(
                f"cannot write to {where}: expected a separate file, got a file of the run in {printable(folder)}. "
                "Choose another path."
            )


def _holds(source: Path, target: Path) -> bool:
    """Return True if `target` is the file `source`, or is in the folder `source`, with links resolved."""
    if source.is_dir():
        return target.is_relative_to(os.path.realpath(source)) and not (source / "config.yaml").is_file()
    return os.path.samefile(source, target)


def _describe_special(path: str | os.PathLike[str]) -> str:
    """Return the type of `path` if it is a special file, which writing would replace, else an empty string."""
    try:
        mode = os.lstat(os.path.normpath(path)).st_mode
    except OSError:  # the path does not exist, or writing to it will report the error
        return ""
    if stat.S_ISREG(mode):
        return ""
    kinds = {stat.S_IFLNK: "symbolic link", stat.S_IFDIR: "folder"}
    return kinds.get(stat.S_IFMT(mode), "device, pipe or socket")
