"""Checks of the options and the targets of a run by its task."""

from collections.abc import Mapping, Sequence

from skipway.data.image_spec import Spec
from skipway.data.images.decoded_images import DecodedImages
from skipway.data.images.split import class_counts, count_classes
from skipway.data.output_spec import TaskName
from skipway.data.sources.image_source import Source
from skipway.errors import InputError, printable
from skipway.runs.defaults import TargetCounts
from skipway.runs.recipe import Recipe
from skipway.utils.format_text import join_names

__all__ = [
    "CLASS_OPTIONS",
    "changed_options",
    "count_targets",
    "flags",
    "label_warnings",
    "refuse_class_options",
    "refuse_options",
    "refuse_other_targets",
    "warnings_of",
]

CLASS_OPTIONS = ("balance", "label_smoothing")  # they only apply to classes and labels


def changed_options(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """Return those of `names` that the recipe sets to another value than the default."""
    changed = recipe.changed()
    return [name for name in names if name in changed]


def flags(names: Sequence[str]) -> str:
    """Return options as flags of the command line, joined by "and"."""
    return " and ".join("--" + name.replace("_", "-") for name in names)


def refuse_class_options(recipe: Recipe, task: TaskName, target: str) -> None:
    """Raise InputError if the targets are numbers, and the recipe sets an option that only applies to classes.

    Args:
        recipe: options of the run.
        task: task of the run.
        target: name of the target, for the error.
    """
    if task == "regression" and (names := changed_options(recipe, CLASS_OPTIONS)):
        raise InputError(
            f"cannot use {flags(names)} with the target {printable(target)!r}: expected classes or labels, got "
            f"regression. Drop {flags(names)}, or choose a target of classes."
        )


def refuse_options(recipe: Recipe, source: Source) -> None:
    """Raise InputError if the recipe sets an option that does not apply to the targets or the columns of its images."""
    if recipe.ensemble_with is not None:
        raise InputError(
            f"cannot use --ensemble-with with {printable(recipe.data)}: expected a table, got images. Drop "
            "--ensemble-with."
        )
    refuse_class_options(recipe, source.task, ", ".join(source.target_names))
    if source.columns and (recipe.mixup or recipe.cutmix):
        raise InputError(
            "cannot use --mixup or --cutmix with --features: expected images alone, because categories cannot be "
            "mixed. Drop --mixup and --cutmix."
        )


def refuse_other_targets(spec: Spec, images: DecodedImages) -> None:
    """Raise InputError if the images have other classes, labels or numbers than the run to resume, by its Spec."""
    known, present = ((of.task, of.class_names or of.target_names) for of in (spec, images))
    if known == present:
        return
    nouns = {"classification": "classes", "multilabel": "labels", "regression": "targets"}
    texts = [f"{nouns[task]} {join_names(map(printable, names), limit=8)}" for task, names in (known, present)]
    raise InputError(f"cannot resume: expected the {texts[0]}, got the {texts[1]}. Restore them, or start a new run.")


def count_targets(images: DecodedImages) -> TargetCounts:
    """Return the task, and the number of training images in total and of each class or label."""
    train = images.splits["train"]
    counts = count_classes(images, train).tolist() if images.class_names else []
    return TargetCounts(images.task, len(train), tuple(counts), len(images.splits.get("val", ())))


def warnings_of(images: DecodedImages) -> list[str]:
    """Return the warnings of `label_warnings` for images of labels, and none for another task."""
    return label_warnings(class_counts(images), images.name) if images.task == "multilabel" else []


def label_warnings(counts: Mapping[str, Mapping[str, int]], name: str) -> list[str]:
    """Return warnings of labels without samples in training or validation.

    Args:
        counts: samples with each label by split, such as {"cat": {"train": 12, "val": 3}}.
        name: name of the dataset, for errors.

    Raises:
        InputError: no sample of a split has any label.
    """
    warnings = []
    for split, word, effect in (
        ("train", "training", "it cannot be learned"),
        ("val", "validation", "its threshold is that of all labels, and its metrics are undefined"),
    ):
        absent = [label for label, by_split in counts.items() if not by_split.get(split, 0)]
        if len(absent) == len(counts):
            raise InputError(
                f"cannot train on the labels of {printable(name)}: expected {word} samples with labels, got none. "
                "Check the label columns, or the split."
            )
        if absent:
            names = join_names(map(printable, absent), limit=5)
            plural = effect if len(absent) == 1 else effect.replace("it cannot", "they cannot").replace("its", "their")
            warnings.append(f"no {word} samples with the label{'s' * (len(absent) > 1)} {names}: {plural}")
    return warnings
