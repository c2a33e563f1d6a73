"""Going on with a run: what it was told, where it stood, and whether its data is still the same."""

import csv
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from skipway.data.images.decoded_cache import DecodedImages
from skipway.data.sources.choose_source import BUILT_IN
from skipway.distributed import collectives
from skipway.errors import InputError, printable
from skipway.kernels.dispatch import kernel_status
from skipway.runs.recipe import Recipe
from skipway.runs.run_folder import cell
from skipway.training.checkpoint import Checkpoint, load_checkpoint
from skipway.training.differences import differences

__all__ = ["Earlier", "changed_data", "earlier_run", "find_data", "machine", "old_splits", "run_folder"]

# What may be told anew when a run goes on; everything else belongs to the run itself.
MAY_CHANGE = {
    "data",
    "epochs",
    "device",
    "threads",
    "precision",
    "save_every",
    "time_limit",
    "patience",
    "max_unreadable",
    "max_pixels",
    "follow_links",
    "allow_duplicates",
    "allow_empty_classes",
    "fsdp",
    "recompute",
    "watch",
}
_ENDS = ("epochs", "patience", "time_limit")  # what decides where a run ends


@dataclass(frozen=True)
class Earlier:
    """A run to go on with: what it was told, the same with what it decided, its newest whole checkpoint if any.

    `reopened` says that a run which had ended trains on, since it was told to end elsewhere.
    """

    folder: Path
    told: Recipe
    recipe: Recipe
    checkpoint: Checkpoint | None
    remarks: tuple[str, ...]
    reopened: bool


def run_folder(given: Path) -> Path:
    """The run folder that `given` is or links to, such as runs/last, by a path as short as the one given."""
    folder = given.parent / os.readlink(given) if given.is_symlink() else given
    if not (folder / "config.yaml").is_file():
        raise InputError(
            f"{printable(given)} is no run folder: config.yaml is missing; give the folder that `skipway train` named"
        )
    return folder


def earlier_run(folder: Path, given: dict[str, Any]) -> Earlier:
    """What `--resume folder` stands for, with the options that were given beside it."""
    before = Recipe.of(Recipe.read(folder / "config.yaml"))
    fixed = sorted(k for k in given if k not in MAY_CHANGE and k in Recipe.names() and given[k] != getattr(before, k))
    if fixed:
        said = "; ".join(f"{k} was {printable(getattr(before, k))}, not {printable(given[k])}" for k in fixed)
        mend = "start a new run, or leave the option out"
        if "model" in fixed:
            mend = (
                "`skipway grow` makes its network deeper or wider, and another one can begin with its weights: "
                f"--pretrained {printable(folder)}"
            )
        raise InputError(f"a run goes on as it began: {said}; {mend}")
    told = Recipe.of(before.as_dict() | given)
    recipe = replace(told, data=find_data(told.data, folder))
    last = folder / "weights" / "last"
    checkpoint = load_checkpoint(last) if last.is_dir() and any(last.glob("step-*")) else None
    if checkpoint is None:
        return Earlier(folder, told, recipe, None, ("no checkpoint was saved yet: starting from the beginning",), False)
    _refuse_edited(told, checkpoint, folder)
    recipe = _same_machine(recipe, checkpoint.state)
    state, ended = checkpoint.state["state"], checkpoint.state["state"]["status"] != "running"
    if told.epochs < state["epoch"]:
        raise InputError(
            f"{printable(folder)} has done {state['epoch']} epochs already, more than --epochs {told.epochs}; give "
            "more, or load its weights as they are"
        )
    moved = any(getattr(told, name) != checkpoint.state["recipe"][name] for name in _ENDS)
    reopened = ended and moved and told.epochs > state["epoch"]
    remarks = [f"passed over: {reason}" for reason in checkpoint.refused] + _no_longer_exact(checkpoint.state, recipe)
    if ended and not reopened:
        remarks.append(
            f"it is {state['status']} after {state['epoch']} epochs: only judged and reported again; train on with "
            f"--epochs {state['epoch'] + 10}"
        )
    return Earlier(folder, told, recipe, checkpoint, tuple(remarks), reopened)


def machine(device: str, precision: str) -> dict[str, Any]:
    """What of this machine and its software the bits of a training depend on."""
    return {
        "threads": torch.get_num_threads(),
        "precision": precision,
        "device": device,
        "processes": collectives.world_size(),
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "kernels": kernel_status(),
    }


def old_splits(folder: Path) -> dict[str, tuple[str, str, str]]:
    """{file: (class, split, sha256)} of splits.csv."""
    try:
        with open(folder / "splits.csv", encoding="utf-8", newline="") as file:
            return {r["file"]: (r["class"], r["split"], r["sha256"]) for r in csv.DictReader(file)}
    except (OSError, KeyError, ValueError, csv.Error):
        return {}


def changed_data(before: dict[str, tuple[str, str, str]], packed: DecodedImages) -> str:
    """What has been added, removed, renamed, edited or moved since, in one line."""
    now = {
        cell(packed.keys[i]): (cell(packed.class_names[packed.labels[i]]), split, packed.digests[i])
        for split, indices in packed.splits.items()
        for i in indices
    }
    added, removed = sorted(set(now) - set(before)), sorted(set(before) - set(now))
    new_name = {now[name][2]: name for name in added}
    renamed = {name: new_name[before[name][2]] for name in removed if before[name][2] in new_name}
    both = sorted(set(now) & set(before))
    changes = {
        "added": [name for name in added if name not in renamed.values()],
        "removed": [name for name in removed if name not in renamed],
        "renamed": [f"{old} to {new}" for old, new in renamed.items()],
        "edited": [name for name in both if now[name][2] != before[name][2]],
        "moved to another class or split": [
            name for name in both if now[name][2] == before[name][2] and now[name] != before[name]
        ],
    }
    said = [
        f"{len(names):,} {word}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for word, names in changes.items()
        if names
    ]
    return "; ".join(said) or "their order or their sizes differ"


def _refuse_edited(told: Recipe, checkpoint: Checkpoint, folder: Path) -> None:
    saved = checkpoint.state["recipe"]
    fixed = [name for name in Recipe.names() if name not in MAY_CHANGE and name in saved]
    edited = differences({name: getattr(told, name) for name in fixed}, {name: saved[name] for name in fixed})
    if edited:
        raise InputError(
            f"{printable(folder / 'config.yaml')} was edited since the checkpoint: {'; '.join(edited)}; put it back, "
            "or start a new run with --config"
        )


def _same_machine(recipe: Recipe, saved: dict[str, Any]) -> Recipe:
    """What was left to the machine stays as it was, where this machine can."""
    lost = saved["device"] == "cuda" and not torch.cuda.is_available()
    return replace(
        recipe,
        threads=recipe.threads or saved["threads"],
        precision=saved["precision"] if recipe.precision == "auto" else recipe.precision,
        device=saved["device"] if recipe.device == "auto" and not lost else recipe.device,
    )


def _no_longer_exact(saved: dict[str, Any], recipe: Recipe) -> list[str]:
    now = machine(recipe.device, recipe.precision) | {"threads": recipe.threads}
    said = [f"{name} was {saved[name]} and is {now[name]}" for name in now if saved.get(name, now[name]) != now[name]]
    if recipe.epochs != saved["recipe"]["epochs"]:
        said.append(f"epochs were {saved['recipe']['epochs']} and are {recipe.epochs}: the schedule stretches")
    return [f"no longer to the bit as without a stop: {'; '.join(said)}"] if said else []


def find_data(data: str | None, folder: Path) -> str | None:
    """The data where it was, as seen from here or from the run folder, which may both have moved."""
    if data is None or data in BUILT_IN or Path(data).expanduser().exists():
        return data
    beside = [folder / ".." / data, folder / ".." / ".." / data]  # an absolute path stays itself
    return next((str(p) for p in beside if p.exists()), data)
