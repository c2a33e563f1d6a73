"""Files to damage: a valid file of each kind, and the function of the package that reads it.

An attempt is a function of a random generator that damages a file and reads it. Errors of the reader propagate.
"""

import hashlib
import io
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from faults.mutations import as_json, damage, restructure
from skipway.commands import compare
from skipway.data.image_spec import Spec
from skipway.data.sources.decode import decode
from skipway.data.sources.read_table import read_table
from skipway.model_factory import create_model
from skipway.models.load_model import load
from skipway.report import run_reader
from skipway.runs.checkpoint_state import read_checkpoint
from skipway.runs.recipe import Recipe
from skipway.training import checkpoint
from skipway.training.trainer import State
from skipway.utils import atomic_files
from skipway.utils.run_schema import with_schema
from skipway.weights import pretrained
from skipway.weights.read_foreign_checkpoint import read_state

Attempt = Callable[[random.Random], object]
IMAGES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_SIDE = 48
_ROW = {
    **{"epoch": 1, "lr": 0.1, "train_loss": 1.0, "val_loss": 0.9, "val_accuracy": 0.5},
    **{"seconds": 1.0, "samples_per_second": 9.0, "data_time_fraction": 0.1},
}
_TIMM = {
    "architecture": "resnet18",
    "num_classes": 3,
    "label_names": ["a", "b", "c"],
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "crop_pct": 0.95,
        "crop_mode": "center",
        "interpolation": "bicubic",
    },
}


def _network() -> Any:
    torch.manual_seed(0)
    spec = Spec(channels=1, size=8, presize=8, mean=(0.5,), std=(0.5,), class_names=("a", "b"), resize_mode="squash")
    network = create_model("resnet20", num_classes=2, in_chans=1, layers=[1], widths=[4])
    network.spec = spec
    return network


def _state(network: Any) -> dict[str, Any]:
    values = {"epoch": 1, "step": 3, "seen": 30, "history": [_ROW], "best": _ROW, "status": "running"}
    facts = {"plan": network.plan, "spec": network.spec.as_dict(), "recipe": Recipe().as_dict(), "grown": []}
    facts |= {"fingerprint": "0" * 64, "settings": {"lr": 0.1, "class_weights": None}, "state": vars(State(**values))}
    return facts | {"batch_size": 8, "threads": 1, "precision": "fp32", "device": "cpu"}


def write_sealed(folder: Path) -> tuple[Path, Path]:
    """Write a weights file and a checkpoint to `folder`; return their paths."""
    network = _network()
    weights, last = folder / "weights.safetensors", folder / "last"
    few = dict(list(network.state_dict().items())[:8])
    checkpoint.save_weights(weights, few, {"plan": network.plan, "spec": network.spec.as_dict()})
    checkpoint.save_checkpoint(last, 3, few, _state(network))
    return weights, last


def damage_sealed(draw: random.Random, file: Path, data: bytes) -> bytes:
    """Damage the bytes of a sealed file, or the structure of its JSON or its header."""
    if draw.random() < 0.5:
        return damage(draw, data)
    if file.suffix == ".json":
        return as_json(restructure(draw, json.loads(data)))
    return _with_header(data, restructure(draw, _header(data)))


def _header(data: bytes) -> Any:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def _with_header(data: bytes, header: Any) -> bytes:
    text = as_json(header)
    return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]


def _resealed_weights(folder: Path) -> Attempt:
    """Return an attempt with weights that have an invalid plan or Spec and a valid checksum."""
    network, path = _network(), folder / "resealed.safetensors"
    header = {"plan": network.plan, "spec": network.spec.as_dict()}
    state = dict(network.state_dict())

    def attempt(draw: random.Random) -> None:
        odd = restructure(draw, header)
        checkpoint.save_weights(path, state, odd if isinstance(odd, dict) else {"plan": odd})
        load(path)

    return attempt


def _resealed_state(folder: Path) -> Attempt:
    """Return an attempt with a checkpoint that has an invalid state and valid checksums."""
    state, last = _state(_network()), folder / "resealed"
    checkpoint.save_checkpoint(last, 3, {"a": torch.zeros(2)}, state)
    step = next(last.iterdir())
    manifest = json.loads((step / "MANIFEST.json").read_bytes())
    manifest.pop("sha256")

    def attempt(draw: random.Random) -> None:
        data = as_json(restructure(draw, state))
        (step / "state.json").write_bytes(data)
        manifest["files"]["state.json"] = {"bytes": len(data), "sha256": atomic_files.sha256(data)}
        digest = hashlib.sha256(json.dumps(manifest, separators=(",", ":")).encode()).hexdigest()
        (step / "MANIFEST.json").write_bytes(as_json({"sha256": digest, **manifest}))
        read_checkpoint(last)

    return attempt


def _safetensors(folder: Path) -> Attempt:
    import safetensors.torch

    data = safetensors.torch.save({"conv.weight": torch.ones(3, 4), "fc.bias": torch.zeros(5)}, {"format": "pt"})
    return _file(folder / "foreign.safetensors", data, read_state, lambda draw, _: _damaged_header(draw, data))


def _damaged_header(draw: random.Random, data: bytes) -> bytes:
    return _with_header(data, restructure(draw, _header(data)))


def _msgpack(folder: Path) -> Attempt:
    import msgpack

    array = msgpack.packb([[2, 3], "float32", np.ones(6, np.float32).tobytes()])
    tree = {"params": {"Dense_0": {"kernel": msgpack.ExtType(1, array), "bias": msgpack.ExtType(1, array)}}}
    return _file(folder / "flax.msgpack", msgpack.packb(tree), read_state)


def _pickles(folder: Path) -> Attempt:
    """Return an attempt with files of torch.save in both formats. A child process reads them, which takes 1 second."""
    content = {"weight": torch.ones(4, 4), "epoch": 3}
    files = []
    for is_zip in (True, False):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
        files.append(buffer.getvalue())

    def attempt(draw: random.Random) -> None:
        path = folder / "foreign.pt"
        path.write_bytes(damage(draw, draw.choice(files)))
        read_state(path)

    return attempt


def _file(
    path: Path,
    data: bytes,
    read: Callable[[Path], object],
    restructured: Callable[[random.Random, bytes], bytes] | None = None,
) -> Attempt:
    """Return an attempt that damages the bytes, or half of the time the structure, of `data` at `path`."""

    def attempt(draw: random.Random) -> None:
        use = restructured if restructured and draw.random() < 0.5 else damage
        path.write_bytes(use(draw, data))
        read(path)

    return attempt


def _image(kind: str, folder: Path) -> Attempt:
    pixels = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)
    files = []
    for mode in ("RGB", "L", "RGBA", "P"):
        if mode != "RGBA" or kind not in ("JPEG", "BMP"):
            buffer = io.BytesIO()
            image = Image.fromarray(pixels).convert("RGB" if mode == "P" and kind in ("JPEG", "WEBP") else mode)
            image.save(buffer, kind, **({"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"} if kind == "JPEG" else {}))
            files.append(buffer.getvalue())

    def attempt(draw: random.Random) -> None:
        image = decode(damage(draw, draw.choice(files)), size=32, suffix=f".{kind.lower()}")
        if image.pixels.shape != (32, 32, 3) or image.pixels.dtype != np.uint8:
            raise AssertionError(f"an image of {image.pixels.shape} {image.pixels.dtype}")

    return attempt


def _read_table(path: Path) -> None:
    table = read_table(path)
    if len({len(column) for column in table.columns.values()}) > 1:
        raise AssertionError("a table of unequal columns")


def _csv(folder: Path) -> Attempt:
    lines = [f'{i},{i / 7:.3f},"a, {i % 3}",{"yes" if i % 2 else "no"},2024-01-{i + 1:02}' for i in range(25)]
    data = "\n".join(["id,width,kind,label,day", *lines]).encode()
    return _file(folder / "table.csv", data, _read_table)


def _parquet(folder: Path) -> Attempt:
    import pandas

    path = folder / "table.parquet"
    frame = pandas.DataFrame({"a": range(20), "b": [f"x{i % 3}" for i in range(20)], "c": np.arange(20) / 3})
    frame.to_parquet(path)
    return _file(path, path.read_bytes(), _read_table)


def _config(folder: Path) -> Attempt:
    path = folder / "config.yaml"
    values = {name: value for name, value in Recipe(data="digits", epochs=3, lr=0.1).changed().items()}
    text = yaml.safe_dump(with_schema({**values, "model": "resnet20", "seed": 1, "momentum": 0.9})).encode()

    def restructured(draw: random.Random, data: bytes) -> bytes:
        return as_json(restructure(draw, yaml.safe_load(data)))  # JSON is valid YAML

    return _file(path, text, lambda p: Recipe.of(Recipe.read(p, need_schema=True)), restructured)


def _run_files(name: str, folder: Path) -> Attempt:
    """Return an attempt with a run folder, read like in `compare`: its history and its metrics."""
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text(Recipe(data="digits").as_yaml())
    rows = [",".join(_ROW), *(",".join(map(str, {**_ROW, "epoch": i}.values())) for i in range(1, 9))]
    metrics = with_schema({"val_accuracy": 0.9, "parameters": 300, "status": "done", "resolved": {"model": "resnet20"}})
    contents = {"results.csv": "\n".join(rows).encode(), "metrics.json": json.dumps(metrics).encode()}
    for file, content in contents.items():
        (run / file).write_bytes(content)

    def read(_: Path) -> None:
        history = compare._history(run)
        reader = run_reader.Reader(run)
        values = {key: compare._metric_cell(value, key) for key, value in _metrics(reader, history).items()}
        reader.matrix("results.csv")
        if not isinstance(values, dict):
            raise AssertionError("no metrics")

    def _metrics(reader: run_reader.Reader, history: Any) -> dict[str, Any]:
        values = compare.mapping(reader.json("metrics.json"))
        return {key: values.get(key) for key in ("val_accuracy", "val_loss", "parameters", "status")} | {"n": history}

    structure = None if name == "results.csv" else lambda draw, data: as_json(restructure(draw, json.loads(data)))
    return _file(run / name, contents[name], read, structure)


def _hub(folder: Path) -> Attempt:
    """Return an attempt with the config.json of a Hugging Face Hub repository."""
    plan = {"in_chans": 3, "num_classes": 3}

    def read(path: Path) -> None:
        try:
            pretrained._spec_from_config(pretrained._read_config("timm/x", path), plan)
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError):
            return  # _load_from_hub converts these to an InputError

    restructured = lambda draw, data: as_json(restructure(draw, json.loads(data)))  # noqa: E731
    return _file(folder / "config.json", json.dumps(_TIMM).encode(), read, restructured)


ATTEMPTS: dict[str, Callable[[Path], Attempt]] = {
    "weights with a right seal": _resealed_weights,
    "state.json with a right seal": _resealed_state,
    "another library's safetensors": _safetensors,
    "Flax's msgpack": _msgpack,
    **{f"{kind} image": partial(_image, kind) for kind in IMAGES},
    "CSV table": _csv,
    "Parquet table": _parquet,
    "config.yaml": _config,
    "results.csv": partial(_run_files, "results.csv"),
    "metrics.json": partial(_run_files, "metrics.json"),
    "answer of the Hub": _hub,
    "torch's pickles": _pickles,
}
