"""States and inputs drawn from their names, as the files in tests/golden were made: see the README there."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "golden"
FILES = sorted(FOLDER.glob("*.json"))


def draw(key, shape):
    return np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(tuple(shape))


def value(key, shape, flax):
    leaf, drawn = key.replace("/", ".").rsplit(".", 1)[-1], draw(key, shape)
    if leaf in ("weight", "kernel", "scale"):
        fan_in = np.prod(shape[:-1] if flax else shape[1:])
        scaled = drawn * np.sqrt(1 / fan_in) if len(shape) > 1 else 1 + 0.1 * drawn
    else:
        scaled = 1 + 0.1 * abs(drawn) if leaf in ("var", "running_var") else 0.1 * drawn
    return scaled.astype(np.float32)


def golden(path):
    """(the file's values, its state as float64 arrays, the input (2, 3, H, W) as float64)."""
    values = json.loads(Path(path).read_text())
    flax = values["library"] == "flax"
    state = {key: value(key, shape, flax).astype(np.float64) for key, shape in values["state"].items()}
    height, width = values["input_shape"][1:3] if flax else values["input_shape"][2:]
    x = draw("input", (2, 3, height, width)).astype(np.float32)
    return values, state, torch.from_numpy(x).double()
