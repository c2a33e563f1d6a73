"""The run folder: its name, its files, and the tables that other programs read. Nothing here trains.

Text cells that a spreadsheet would take for a formula get an apostrophe before them.
"""

import contextlib
import csv
import errno
import io
import os
import platform
import shlex
import traceback
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from skipway.data.images.decoded_cache import DecodedImages
from skipway.data.images.loader import ImageBatches
from skipway.errors import InputError, SkipwayError, StorageError, is_out_of_memory, out_of_memory, printable
from skipway.kernels.dispatch import kernel_status
from skipway.report import learning_curves
from skipway.runs.recipe import Recipe
from skipway.training.metrics import ClassScores, per_class
from skipway.utils.atomic_files import make_folder, write_file, write_json

__all__ = [
    "RESULTS",
    "cell",
    "crash_report",
    "draw_augmented",
    "environment",
    "new_folder",
    "point_last",
    "processor",
    "repeat_command",
    "unique_names",
    "taken_back",
    "write_classes",
    "write_data",
    "write_judgement",
    "write_range_test",
    "write_results",
    "write_table",
]

RESULTS = (
    "epoch",
    "seconds",
    "lr",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "samples_per_second",
    "data_time_fraction",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_WORST = 16
_SHEET = 24


def new_folder(recipe: Recipe, data: str, model: str) -> Path:
    """RUNS/NAME, or RUNS/data-model, numbered from 2 where a run of that name is there."""
    output = Path(recipe.output)
    if recipe.name is not None:
        if not recipe.name or Path(recipe.name).name != recipe.name or recipe.name in (".", "..", "last"):
            raise InputError(
                f"a run cannot be called {printable(recipe.name)!r}: a plain folder name was expected; "
                "the folder above it is --output"
            )
        folder = output / recipe.name
        if (folder / "weights").exists():  # one that never came to train may be started again
            raise InputError(
                f"{printable(folder)} holds a run already; go on with it by --resume {printable(folder)}, or take "
                "another --name"
            )
        return folder
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


@contextlib.contextmanager
def taken_back(folder: Path) -> Iterator[None]:
    """A new run that is refused before it has anything to keep leaves no folder behind."""
    try:
        yield
    except (InputError, StorageError):
        if not (folder / "weights").exists():
            with contextlib.suppress(OSError):
                (folder / "config.yaml").unlink(missing_ok=True)
                folder.rmdir()  # only where nothing else is in it
        raise


_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}


@contextlib.contextmanager
def crash_report(folder: Path) -> Iterator[None]:
    """What nobody foresaw goes to crash.txt in the run folder, and one line to the user."""
    try:
        yield
    except SkipwayError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _STORAGE:  # from a library that writes by itself
            raise StorageError(
                f"{printable(folder)}: cannot be written: {error.strerror}; what is saved is whole: mend that disk and "
                f"go on with --resume {printable(folder)}"
            ) from error
        if is_out_of_memory(error):
            raise out_of_memory() from error
        try:
            write_file(folder / "crash.txt", traceback.format_exc().encode("utf-8", "backslashreplace"))
        except StorageError:
            raise error from None  # the command line knows another place for it
        raise SkipwayError(
            f"a fault of skipway's own ({type(error).__name__}: {printable(error)}); the details are in "
            f"{printable(folder / 'crash.txt')}, please report them"
        ) from error


def unique_names(folders: Sequence[Path]) -> list[str]:
    """As much of each path's end as tells the runs from each other."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = [printable("/".join(path[-depth:])) for path in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{printable(path[-1])} ({i})" for i, path in enumerate(parts, 1)]


def point_last(folder: Path) -> None:
    """Make RUNS/last lead to this run; where links cannot be made, leave it."""
    link = folder.parent / "last"
    try:
        if link.is_symlink() or not link.exists():
            aside = folder.parent / f".last-{os.getpid()}"
            aside.unlink(missing_ok=True)
            aside.symlink_to(folder.name, target_is_directory=True)
            os.replace(aside, link)
    except OSError:
        return


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file, whole or not at all, with hostile text made harmless."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([cell(c) for c in columns])
    writer.writerows([cell(v) for v in row] for row in rows)
    write_file(path, text.getvalue().encode("utf-8"))


def cell(value: Any) -> Any:
    """A value as it stands in a table: text on one line, and nothing that a spreadsheet would run."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def write_data(folder: Path, packed: DecodedImages) -> None:
    """splits.csv and skipped.csv."""
    write_table(
        folder / "splits.csv",
        ("file", "class", "split", "sha256"),
        (
            (packed.keys[i], packed.class_names[packed.labels[i]], split, packed.digests[i])
            for split, indices in packed.splits.items()
            for i in indices
        ),
    )
    write_table(
        folder / "skipped.csv",
        ("file", "split", "class", "reason"),
        ((s.key, s.split, s.class_name, s.reason) for s in packed.skipped),
    )


def write_range_test(folder: Path, found: dict[str, Any]) -> None:
    """find_lr.json, and its picture."""
    make_folder(folder / "plots")
    write_json(folder / "find_lr.json", found)
    learning_curves.range_test(found, folder / "plots" / "find_lr.png")


def write_results(folder: Path, history: list[dict[str, Any]]) -> None:
    """results.csv: one row an epoch."""
    columns = tuple(history[0]) if history else RESULTS  # a number has val_r2 where classes have val_accuracy
    write_table(folder / "results.csv", columns, ([row[c] for c in columns] for row in history))


def write_classes(
    folder: Path, keys: Sequence[str], names: tuple[str, ...], scores: ClassScores, split: str, what: str = "file"
) -> None:
    """per_class.csv, confusion_matrix.csv and predictions.csv of the split that was judged; `what` its samples are."""
    rows = per_class(scores, names)
    write_table(folder / "per_class.csv", tuple(rows[0]), (tuple(row.values()) for row in rows))
    matrix = scores.confusion()
    write_table(
        folder / "confusion_matrix.csv",
        ("true", *names),
        ((name, *matrix[i].tolist()) for i, name in enumerate(names)),
    )
    predicted = scores.predicted
    here = np.arange(len(predicted))
    likely = scores.probabilities[here, predicted]
    true = scores.probabilities[here, scores.labels]
    write_table(
        folder / "predictions.csv",
        (what, "split", "label", "predicted", "probability", "label_probability", "loss"),
        (
            (
                keys[scores.ids[i]],
                split,
                names[scores.labels[i]],
                names[predicted[i]],
                round(float(likely[i]), 6),
                round(float(true[i]), 6),
                round(float(scores.losses[i]), 6),
            )
            for i in here
        ),
    )


def write_judgement(folder: Path, packed: DecodedImages, scores: ClassScores, split: str) -> None:
    """The tables of `write_classes`, and the worst pictures of the split that was judged."""
    names, predicted = packed.class_names, scores.predicted
    write_classes(folder, packed.keys, names, scores, split)
    here = np.arange(len(predicted))
    likely = scores.probabilities[here, predicted]
    true = scores.probabilities[here, scores.labels]
    worst = [int(i) for i in np.argsort(-scores.losses, kind="stable")[:_WORST]]
    make_folder(folder / "plots")
    make_folder(folder / "plots" / "worst")
    for place, i in enumerate(worst):
        write_file(folder / "plots" / "worst" / f"{place}.png", _png(packed.pixels[scores.ids[i]]))
    write_table(
        folder / "plots" / "worst.csv",
        ("picture", "file", "label", "predicted", "probability", "label_probability"),
        (
            (
                f"worst/{place}.png",
                packed.keys[scores.ids[i]],
                names[scores.labels[i]],
                names[predicted[i]],
                round(float(likely[i]), 6),
                round(float(true[i]), 6),
            )
            for place, i in enumerate(worst)
        ),
    )


def draw_augmented(folder: Path, feed: ImageBatches) -> None:
    """plots/augmented.png: the first pictures of the first epoch as the network is given them."""
    ids = feed.rows[:: max(1, len(feed.rows) // _SHEET)][:_SHEET]
    x = (feed.pictures(ids) - feed.offset) / feed.factor
    pictures = x.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    names = feed.images.class_names
    make_folder(folder / "plots")
    captions = [names[feed.images.labels[i]] for i in ids]
    learning_curves.sheet(
        [p[:, :, 0] if p.shape[2] == 1 else p for p in pictures], captions, folder / "plots" / "augmented.png"
    )


def environment(recipe: Recipe, device: str, precision: str, network: str) -> dict[str, Any]:
    """env.json: what the run ran on."""
    return {
        "skipway": version("skipway"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "precision": precision,
        "kernels": kernel_status(),
        "command": repeat_command(recipe),
        "network": network,
    }


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def repeat_command(recipe: Recipe) -> str:
    """The command line that makes this run again."""
    words = ["skipway", "train", *([recipe.data] if recipe.data else [])]
    for name, value in recipe.changed().items():
        if name in ("data", "output", "name") or value is None:
            continue
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return file.getvalue()
