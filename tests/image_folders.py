"""Tiny image sets for tests: class folders, parquet files, and what a folder holds as one comparable value."""

import hashlib
import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from skipway.data.images.decoded_images import DecodedImages, DecodeSettings
from skipway.data.sources.image_source import Source

CLASSES = ("cat", "cow", "dog")


def image_bytes(seed=0, side=8, channels=3, form="PNG"):
    """The bytes of an image of noise: equal for equal seeds."""
    shape = (side, side, channels) if channels == 3 else (side, side)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def fill(folder, count=2, seed=0, side=8, channels=3):
    """`count` different images in `folder`, which is made."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Path(folder, f"{i}.png").write_bytes(image_bytes(1000 * seed + i, side, channels))
    return Path(folder)


def class_folders(root, classes=CLASSES, count=2, seed=0, side=8, channels=3):
    """One folder per class (or {class: count}) under `root`; no two images are equal."""
    counts = classes if isinstance(classes, dict) else dict.fromkeys(classes, count)
    for i, (name, number) in enumerate(counts.items()):
        fill(Path(root, name), number, 100 * seed + i, side, channels)
    return Path(root)


def split_folders(root, classes=CLASSES, count=2, splits=("train", "val"), side=8):
    """Class folders under one folder per split."""
    for i, split in enumerate(splits):
        class_folders(Path(root, split), classes, count, seed=i + 1, side=side)
    return Path(root)


def parquet(path, labels, names=None, column="image", seed=0, rows=None, struct=None, **options):
    """A parquet file as Hugging Face datasets writes it: `labels` and an image (or `rows`) for each."""
    import pyarrow
    import pyarrow.parquet

    rows = [image_bytes(1000 * seed + i) for i in range(len(labels))] if rows is None else rows
    struct = struct or pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    images = [None if data is None else {"bytes": data, "path": None} for data in rows]
    texts = any(isinstance(value, str) for value in labels)
    labelled = labels  # an array of pyarrow keeps its type
    if not isinstance(labels, pyarrow.Array):
        labelled = pyarrow.array(labels, pyarrow.string() if texts else pyarrow.int64())
    table = pyarrow.table({column: pyarrow.array(images, struct), "label": labelled})
    if names is not None:
        info = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, **options)
    return Path(path)


def contents_of(source, split="train"):
    """The contents of a split, read now if they are read when they are called."""
    return [content() if callable(content) else content for content in source.contents(split)]


def tree(root):
    """SHA-256 of every file under `root`, with what each link points to: equal before and after, or something wrote."""
    found = {}
    for folder, names, files in os.walk(os.fsencode(root)):
        for name in names + files:
            path = os.path.join(folder, name)
            if os.path.islink(path):
                found[path] = os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    found[path] = hashlib.sha256(file.read()).hexdigest()
            else:
                found[path] = oct(os.lstat(path).st_mode)
    return found


def array_source(arrays, labels, class_names=("a", "b"), name="arrays"):
    """A source of pixels in memory; `arrays` {split: list of arrays, bytes or errors}."""
    return Source(
        name,
        tuple(class_names),
        {split: [f"{split}/{i}.png" for i in range(len(items))] for split, items in arrays.items()},
        {split: np.array(labels[split], dtype=np.int64) for split in arrays},
        lambda split: iter(arrays[split]),
        lambda: list(arrays["train"]),
    )


def decoded_noise(labels, size=8, room=0, channels=3, splits=None, digests=None, names=None, seed=0):
    """A packed set of noise with these labels, without any file."""
    labels = np.asarray(labels, dtype=np.int64)
    side = size + room
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), side, side, channels), dtype=np.uint8)
    names = names or tuple(f"class{i}" for i in range(int(labels.max(initial=0)) + 1))
    return DecodedImages(
        name="noise",
        class_names=names,
        settings=DecodeSettings(size, side, channels),
        pixels=pixels,
        targets=np.asarray(labels),
        keys=[f"{i}.png" for i in range(len(labels))],
        digests=list(digests or map(str, range(len(labels)))),
        splits=splits or {"train": np.arange(len(labels))},
        skipped=[],
        notes=Counter(),
        sizes="",
        mirrored=True,
    )
