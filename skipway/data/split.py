"""Which pictures are for training, validation and test; what stands twice; what a careful eye says of a set."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from skipway.data.pack import Packed
from skipway.data.source import SPLITS
from skipway.errors import InputError, printable

__all__ = ["class_counts", "hold_out", "refuse_leaks", "remarks", "twins"]

MOST_HELD_OUT = 5000  # more pictures than that make a validation accuracy no more certain than half a point
IMBALANCED = 5.0
FEW = 20


def hold_out(packed: Packed, fraction: float, seed: int) -> None:
    """Give a set without validation pictures some of its training pictures for that, of every class its share.

    Pictures with the same content stay on the same side.
    """
    if len(packed.splits.get("val", ())):
        return
    from sklearn.model_selection import train_test_split

    train = packed.splits["train"]
    first = {packed.digests[i]: i for i in reversed(train.tolist())}  # digest -> its first picture
    kinds = sorted(first.values())
    labels = packed.labels[kinds]
    counts = np.bincount(labels, minlength=len(packed.class_names))
    single = [name for name, count in zip(packed.class_names, counts, strict=True) if count < 2]
    if single:
        raise InputError(
            f"{printable(packed.name)}: the class {printable(single[0])!r} has one picture (copies not "
            "counted), too few "
            "to train on some and validate on others; add at least one more, or a val folder"
        )
    classes = len(packed.class_names)
    wanted = min(max(round(len(kinds) * fraction), classes), MOST_HELD_OUT if classes <= MOST_HELD_OUT else classes)
    if len(kinds) - wanted < classes:
        raise InputError(
            f"{printable(packed.name)}: {len(kinds)} pictures of {classes} classes are too few to hold "
            f"{wanted} out for "
            "validation; add more, or a val folder"
        )
    _, held = train_test_split(kinds, test_size=wanted, stratify=labels, random_state=seed)
    held_digests = {packed.digests[i] for i in held}
    in_val = np.array([packed.digests[i] in held_digests for i in train])
    packed.splits = {
        "train": train[~in_val],
        "val": train[in_val],
        **{k: v for k, v in packed.splits.items() if k == "test"},
    }


def twins(packed: Packed) -> list[list[int]]:
    """Groups of pictures with the same content, byte for byte."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, digest in enumerate(packed.digests):
        groups[digest].append(i)
    return [group for group in groups.values() if len(group) > 1]


def refuse_leaks(packed: Packed, allow: bool) -> None:
    """Say which pictures stand twice; where copies stand in two splits, validation would be flattered: refuse."""
    split_of = {int(i): split for split in SPLITS for i in packed.splits.get(split, ())}
    groups = twins(packed)
    across = [g for g in groups if len({split_of[i] for i in g}) > 1]
    crossed = [g for g in groups if len({int(packed.labels[i]) for i in g}) > 1]
    if across:
        first = " and ".join(f"{printable(packed.keys[i])} ({split_of[i]})" for i in across[0][:2])
        said = f"{len(across):,} pictures stand in more than one split, such as {first}"
        if not allow:
            raise InputError(
                f"{printable(packed.name)}: {said}; remove the copies from one side, or go on with --allow-duplicates"
            )
        packed.warnings.append(f"{said}: accuracies are flattered by them")
    if crossed:
        first = " and ".join(
            f"{printable(packed.keys[i])} ({printable(packed.class_names[packed.labels[i]])})" for i in crossed[0][:2]
        )
        packed.warnings.append(
            f"{len(crossed):,} pictures stand under two classes, such as {first}: one label is wrong"
        )
    copies = sum(len(g) - 1 for g in groups)
    if copies:
        packed.warnings.append(f"{copies:,} pictures are exact copies of others")


def class_counts(packed: Packed) -> dict[str, dict[str, int]]:
    """{class: {split: pictures}}, classes in their order."""
    table = {
        split: np.bincount(packed.labels[indices], minlength=len(packed.class_names))
        for split, indices in packed.splits.items()
    }
    return {name: {split: int(n[i]) for split, n in table.items()} for i, name in enumerate(packed.class_names)}


def remarks(packed: Packed) -> list[str]:
    """Advice on a set: imbalance, classes with few pictures, unreadable and converted files."""
    counts = {name: by_split.get("train", 0) for name, by_split in class_counts(packed).items()}
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    said = []
    ratio = counts[most] / max(1, counts[least])
    if ratio >= IMBALANCED:
        said.append(
            f"classes are imbalanced 1:{ratio:.0f} ({printable(least)} {counts[least]:,}, {printable(most)} "
            f"{counts[most]:,} training pictures): accuracy favours the large ones, read the per-class table"
        )
    few = [name for name, count in counts.items() if count < FEW]
    if few:
        names = ", ".join(map(printable, few[:5])) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        said.append(f"fewer than {FEW} training pictures: {names}; expect weak results there")
    validation = len(packed.splits.get("val", ()))
    if 0 < validation < 100:
        said.append(f"{validation} validation pictures: one picture is {1 / validation:.1%} of accuracy")
    return said


def skip_summary(packed: Packed) -> Counter[str]:
    """How many pictures were left out for each kind of reason."""
    return Counter(s.reason.split(":")[0] for s in packed.skipped)


def describe(packed: Packed) -> dict[str, Any]:
    """What a run or `check` reports of its data, as plain values."""
    return {
        "name": packed.name,
        "counts": {split: len(indices) for split, indices in packed.splits.items()},
        "classes": class_counts(packed),
        "skipped": len(packed.skipped),
        "notes": dict(packed.notes.most_common()),
        "warnings": packed.warnings + remarks(packed),
        "sizes": packed.sizes,
    }
