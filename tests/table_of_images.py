"""Tables of images for tests: made files, and the Source that they mean."""

import numpy as np
from file_trees import noise, place

from skipway.data.column_roles import ColumnRoles
from skipway.data.open_data import open_data

LABELS = ("cat", "dog")


def images(folder="", count=10, first=0, suffix=".jpg"):
    """Images 0.jpg, 1.jpg, ... in a folder."""
    return noise(*[f"{folder}/{i}{suffix}".lstrip("/") for i in range(first, first + count)])


def rows(header, form, count=10, first=0):
    """A CSV file with a row per image: the format takes its number and its label."""
    lines = [form.format(i, LABELS[i % 2], n=i) for i in range(first, first + count)]
    return "\n".join([*([header] if header else []), *lines, ""]).encode()


def opened(root, files, data="", kind="folder", known=None, follow_links=False, **roles):
    """The data that these files mean."""
    path = place(root, files, kind)
    return open_data(
        str(path / data) if data else str(path), ColumnRoles.of(roles), known=known, follow_links=follow_links
    )


def labels_of(source, split="train"):
    """{key: class, labels or numbers} of a split."""
    values = source.targets[split]
    if source.task == "classification":
        named = [source.class_names[k] for k in values]
    elif source.task == "multilabel":
        named = [tuple(source.class_names[k] for k in np.flatnonzero(row)) for row in values]
    else:
        named = [tuple(row) for row in values.tolist()]
    return dict(zip(source.keys[split], named, strict=True))
