"""Images of several labels or of numbers, in memory: bright squares at fixed places, and how bright they are."""

import numpy as np

from skipway.data.sources.image_source import Source

LABELS = ("ant", "bee", "cow", "dog")
PLACES = ((0, 0), (0, 6), (6, 0), (6, 6))
SIDE = 12


def squares(present, seed=0):
    """Noise (N, 12, 12, 1) with a bright square at the place of each label that is present (N, 4)."""
    pixels = np.random.default_rng(seed).integers(0, 60, (len(present), SIDE, SIDE, 1))
    for k, (top, left) in enumerate(PLACES):
        pixels[:, top : top + 5, left : left + 5, 0] += (170 * present[:, k]).astype(int)[:, None, None]
    return pixels.astype(np.uint8)


def source_of(pixels, targets, **fields):
    """A source of arrays by split, whose name is "squares"."""
    keys = {split: [f"{split}/{i}.png" for i in range(len(rows))] for split, rows in targets.items()}
    return Source(
        "squares",
        fields.pop("class_names", ()),
        keys,
        targets,
        lambda split: iter(list(pixels[split])),
        lambda: list(pixels["train"]),
        **fields,
    )


def label_source(counts=None, seed=0, shares=(0.5, 0.4, 0.3, 0.15), more=0):
    """Images with up to four labels each; some have none. All have the `more` labels after them, except the first."""
    random = np.random.default_rng(seed)
    targets, pixels = {}, {}
    for split, count in (counts or {"train": 96, "val": 40, "test": 40}).items():
        targets[split] = (random.random((count, 4)) < shares).astype(np.float32)
        targets[split][:4] = np.eye(4)
        targets[split][4] = 0
        pixels[split] = squares(targets[split], seed + len(split))
        targets[split] = np.concatenate([targets[split], np.ones((count, more), np.float32)], axis=1)
        targets[split][0, 4:] = 0
    names = (*LABELS, *(f"extra{i}" for i in range(more)))
    return source_of(pixels, targets, class_names=names, task="multilabel", label_sep="|")


def number_source(counts=None, seed=0, names=("top", "all")):
    """Images with one or two numbers: the brightness of the first square, and of all squares in thousands."""
    random = np.random.default_rng(seed)
    targets, pixels = {}, {}
    for split, count in (counts or {"train": 96, "val": 40, "test": 40}).items():
        shares = random.random((count, 4))
        numbers = np.stack([shares[:, 0] * 10 - 3, 1000 * shares.sum(axis=1)], axis=1)
        targets[split], pixels[split] = numbers[:, : len(names)], squares(shares, seed + len(split))
    return source_of(pixels, targets, task="regression", target_names=tuple(names))
