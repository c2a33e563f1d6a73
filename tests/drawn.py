"""Looks at plots that were drawn into files."""

import numpy as np
from PIL import Image


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"), dtype=float)


def looks_drawn(path, width=300, height=150):
    found = pixels(path)
    assert found.shape[0] >= height and found.shape[1] >= width
    assert found.std() > 8 and len(np.unique(found[::3, ::3] @ [1, 256, 65536])) > 20
    edge = np.concatenate([found[0], found[-1], found[:, 0], found[:, -1]])
    assert (edge == 255).all(), "something is cut off at the edge"
    return found


def has(found, color):
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(found - wanted).max(axis=-1) < 3).sum())
