"""Resuming a run: its options then and now, its newest checkpoint, and whether its data is still the same."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from skipway.data.images.decoded_cache import DecodedImages
from skipway.data.sources.choose_source import BUILT_IN
from skipway.distributed import collectives
from skipway.errors import InputError, printable
from skipway.kernels.layer_dispatch import kernel_status
from skipway.runs.checkpoint_state import describe_edits, read_checkpoint
from skipway.runs.recipe import Recipe
from skipway.runs.run_csv_tables import escape_cell
from skipway.runs.run_folder import read_recipe
from skipway.training.best_weights import forget_other_weights
from skipway.training.checkpoint import Checkpoint
from skipway.training.settings_diff import differences

__all__ = [
    "ENDS",
    "KEPT_SETTINGS",
    "MAY_CHANGE",
    "EarlierRun",
    "describe_changes",
    "find_data",
    "machine_facts",
    "read_earlier_run",
    "read_splits",
    "training_digests",
]

# Options that may change when a run is resumed; everything else belongs to the run itself.
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
ENDS = ("epochs", "patience", "time_limit")  # options that decide where a run ends
# Settings that a resumed run keeps as they were resolved when it began.
KEPT_SETTINGS = (
    "lr",
    "optimizer",
    "momentum",
    "weight_decay",
    "bias_lr_mult",
    "label_smoothing",
    "freeze_epochs",
    "freeze_until",
    "head",
    "layer_decay",
    "class_weights",
)


@dataclass(frozen=True)
class EarlierRun:
    """A run to resume.

    Attributes:
        options: its recipe with the options of this call.
        recipe: the same with what the run had resolved, and its data as found from here.
        checkpoint: its newest whole checkpoint, if any.
        remarks: what the user should know of it, a line each.
        reopened: whether a run that had ended trains on, since another end is asked for.
        epochs_given: whether its epochs are known; without a checkpoint the time may still have to set them.
    """

    folder: Path
    options: Recipe
    recipe: Recipe
    checkpoint: Checkpoint | None
    remarks: tuple[str, ...]
    reopened: bool
    epochs_given: bool = True


def read_earlier_run(folder: Path, options: dict[str, Any]) -> EarlierRun:
    """Return the run in `folder`, to be resumed with the options that were given next to it.

    Raises:
        InputError: an option cannot change, config.yaml was edited, or nothing in the folder can be used.
    """
    before = read_recipe(folder)
    _refuse_fixed_options(before, options, folder)
    requested = Recipe.of(before.as_dict() | options)
    recipe = replace(requested, data=find_data(requested.data, folder))
    last = folder / "weights" / "last"
    checkpoint = read_checkpoint(last) if last.is_dir() and any(last.glob("step-*")) else None
    if checkpoint is None:
        remark = "no checkpoint was saved yet: starting from the beginning"
        given = "epochs" in options or "epochs" in Recipe.read(folder / "config.yaml")
        return EarlierRun(
            folder, requested, recipe, checkpoint=None, remarks=(remark,), reopened=False, epochs_given=given
        )
    _refuse_edited(requested, checkpoint, folder)
    recipe = _on_same_machine(recipe, checkpoint.state)
    state = checkpoint.state["state"]
    if requested.epochs < state["epoch"]:
        raise InputError(
            f"{printable(folder)} has done {state['epoch']} epochs already, more than --epochs {requested.epochs}; "
            "give more, or load its weights as they are"
        )
    ended = state["status"] != "running"
    end_moved = any(getattr(requested, name) != checkpoint.state["recipe"][name] for name in ENDS)
    reopened = ended and end_moved and requested.epochs > state["epoch"]
    remarks = [f"passed over: {reason}" for reason in checkpoint.refused]
    if reopened or not ended:
        remarks += forget_other_weights(folder / "weights" / "best.safetensors", state)
    remarks += describe_edits(folder, before, checkpoint)
    remarks += _inexact_reasons(checkpoint.state, recipe)
    if ended and not reopened:
        remarks.append(
            f"it is {state['status']} after {state['epoch']} epochs: only judged and reported again; train on with "
            f"--epochs {state['epoch'] + 10}"
        )
    return EarlierRun(folder, requested, recipe, checkpoint=checkpoint, remarks=tuple(remarks), reopened=reopened)


def _refuse_fixed_options(before: Recipe, options: dict[str, Any], folder: Path) -> None:
    """Raise InputError if an option would change that belongs to the run itself."""
    known = [name for name in options if name not in MAY_CHANGE and name in Recipe.names()]
    fixed = sorted(name for name in known if options[name] != getattr(before, name))
    if not fixed:
        return
    changes = "; ".join(f"{k} was {printable(getattr(before, k))}, not {printable(options[k])}" for k in fixed)
    remedy = "start a new run, or leave the option out"
    if "model" in fixed:
        remedy = (
            "`skipway grow` makes its network deeper or wider, and another one can begin with its weights: "
            f"--pretrained {printable(folder)}"
        )
    raise InputError(f"a run goes on as it began: {changes}; {remedy}")


def machine_facts(device: str, precision: str) -> dict[str, Any]:
    """Return what of this machine and its software the bits of a training depend on."""
    return {
        "threads": torch.get_num_threads(),
        "precision": precision,
        "device": device,
        "processes": collectives.world_size(),
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "kernels": kernel_status(with_reason=False),
    }


def read_splits(folder: Path) -> dict[str, tuple[str, str, str]]:
    """Return {file: (class, split, sha256)} of splits.csv, or nothing if it is damaged."""
    try:
        with open(folder / "splits.csv", encoding="utf-8", newline="") as file:
            return {row["file"]: (row["class"], row["split"], row["sha256"]) for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError, csv.Error):
        return {}


def training_digests(folder: Path) -> set[str]:
    """Return the digests of the training samples in splits.csv, images or rows; nothing if it is damaged."""
    try:
        with open(folder / "splits.csv", encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
        return {row["sha256"] if "sha256" in row else row["digest"] for row in rows}
    except (OSError, KeyError, ValueError, csv.Error):
        return set()


def describe_changes(before: dict[str, tuple[str, str, str]], images: DecodedImages) -> str:
    """Return what was added, removed, renamed, edited or moved since `read_splits`, in one line."""
    now: dict[str, tuple[str, str, str]] = {}
    for split, indices in images.splits.items():
        for i in indices:
            class_name = escape_cell(images.class_names[images.labels[i]])
            now[escape_cell(images.keys[i])] = (class_name, split, images.digests[i])
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
    counts = [
        f"{len(names):,} {word}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for word, names in changes.items()
        if names
    ]
    return "; ".join(counts) or "their order or their sizes differ"


def find_data(data: str | None, folder: Path) -> str | None:
    """Return the data as seen from here or from the run folder, which may both have moved."""
    if data is None or data in BUILT_IN or Path(data).expanduser().exists():
        return data
    above = (folder / "..", folder / ".." / "..", folder / ".." / ".." / "..")  # of a fold there is one folder more
    candidates = [place / data for place in above]  # an absolute path stays itself
    return next((str(path) for path in candidates if path.exists()), data)


def _refuse_edited(requested: Recipe, checkpoint: Checkpoint, folder: Path) -> None:
    """Raise InputError if config.yaml differs from the checkpoint in what belongs to the run itself."""
    saved = checkpoint.state["recipe"]
    fixed = [name for name in Recipe.names() if name not in MAY_CHANGE and name in saved]
    edited = differences({name: getattr(requested, name) for name in fixed}, {name: saved[name] for name in fixed})
    if edited:
        raise InputError(
            f"{printable(folder / 'config.yaml')} was edited since the checkpoint: {'; '.join(edited)}; put it back, "
            "or start a new run with --config"
        )


def _on_same_machine(recipe: Recipe, saved: dict[str, Any]) -> Recipe:
    """Return the recipe with what was left to the machine as it was, if this machine can."""
    lost_gpu = saved["device"] == "cuda" and not torch.cuda.is_available()
    return replace(
        recipe,
        threads=recipe.threads or saved["threads"],
        precision=saved["precision"] if recipe.precision == "auto" else recipe.precision,
        device=saved["device"] if recipe.device == "auto" and not lost_gpu else recipe.device,
    )


def _inexact_reasons(saved: dict[str, Any], recipe: Recipe) -> list[str]:
    """Return a line that says why the run will not be the same to the bit as without a stop, if it will not."""
    now = machine_facts(recipe.device, recipe.precision) | {"threads": recipe.threads}
    changed = [name for name in now if saved.get(name, now[name]) != now[name]]
    reasons = [f"{name} was {saved[name]} and is {now[name]}" for name in changed]
    if recipe.epochs != saved["recipe"]["epochs"]:
        reasons.append(f"epochs were {saved['recipe']['epochs']} and are {recipe.epochs}: the schedule stretches")
    return [f"no longer to the bit as without a stop: {'; '.join(reasons)}"] if reasons else []
