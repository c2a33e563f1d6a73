"""A run's network written for use elsewhere: ONNX, a program of torch, or another library's own files."""

import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from skipway.data.image_spec import Spec
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError, did_you_mean, printable
from skipway.export.export_model import Exported, onnx, program
from skipway.models import registry
from skipway.models.load_model import load
from skipway.models.network import Network
from skipway.runs.recipe import Recipe
from skipway.runs.resume import find_data
from skipway.utils.atomic_files import make_folder, write_file
from skipway.weights.convert import release

__all__ = ["FORMATS", "Written", "export_run"]

FORMATS = ("onnx", "pt2", "timm", "torchvision")
_CHECKED = 16  # of the run's own pictures
_TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
)
_STAND_INS = {"resnet10": "resnet18", "densenet264": "densenet121", "resnetv2_200": "resnetv2_152"}  # with other layers
_UNTOLD = ("name", "num_classes", "drop_path", "dropout", "drop_mode")  # said elsewhere, or of training alone
# What the functions of a library can be told of each kind of network, and in which words.
_WORDS: dict[str, dict[str, dict[str, str]]] = {
    "timm": {
        "resnet": {"layers": "layers", "widths": "channels", "in_chans": "in_chans"},
        "preact": {"layers": "layers", "in_chans": "in_chans"},
        "densenet": {"layers": "block_config", "growth": "growth_rate", "in_chans": "in_chans"},
    },
    "torchvision": {},
}


@dataclass(frozen=True)
class Written:
    """What `export_run` wrote: files, and how far their outputs are from torch's where that was measured."""

    paths: list[Path]
    check: Exported | None = None
    pictures: int = 0

    def __str__(self) -> str:
        lines = [f"written: {printable(path)}, {path.stat().st_size:,} bytes" for path in self.paths]
        if self.check is not None:
            on = f"{self.pictures} pictures of the run" if self.pictures else "made-up inputs"
            lines.append(f"checked on {on}: outputs differ from torch's by {self.check.difference:.2g} at most")
        return "\n".join(lines)


def export_run(
    run: str | os.PathLike[str],
    to: str = "onnx",
    output: str | os.PathLike[str] | None = None,
    *,
    raw: bool = False,
) -> Written:
    """Write the network of a run or of a file of skipway for use elsewhere.

    Args:
        run: a run folder or a .safetensors file of skipway.
        to: "onnx" (see `skipway.export.onnx`), "pt2" (`skipway.export.program`), both checked on the run's own
            pictures where they are at hand; or "timm" or "torchvision": a folder with weights under that library's
            names and a config.json, which timm opens as `timm.create_model("local-dir:FOLDER")`.
        output: the file, or the folder for a library; default: in the run's folder `export`, or beside the file.
        raw: the network alone, without how inputs are prepared; for "onnx" and "pt2".

    Raises:
        InputError: no such format, or the network cannot be written in it.
        SkipwayError: the outputs of what was written differ from torch's; no file is left.
    """
    if to not in FORMATS:
        raise InputError(f"nothing is exported to {to!r}{did_you_mean(to, FORMATS)}; there are {', '.join(FORMATS)}")
    given, network = Path(run), load(run)
    home = given / "export" if given.is_dir() else given.parent
    stem = network.plan["name"]
    if to in ("timm", "torchvision"):
        if raw:
            raise InputError(f"--raw is for onnx and pt2; weights for {to} are always those of the network alone")
        return _released(network, to, Path(output) if output is not None else home / to)
    target = Path(output) if output is not None else home / f"{stem}.{to}"
    pictures = [] if isinstance(network.spec, TableSpec) else list(_pictures(given))
    make_folder(target.parent)
    write = onnx if to == "onnx" else program
    check = write(network, target, raw=raw, check=pictures or None)
    return Written([check.path], check, len(pictures))


def _pictures(run: Path) -> Iterator[Path]:
    """Up to sixteen validation pictures of a run as files: the originals where they are, else those of its report."""
    if not (run / "config.yaml").is_file():
        return
    data = find_data(Recipe.of(Recipe.read(run / "config.yaml")).data, run)
    found: list[Path] = []
    try:
        with open(run / "splits.csv", encoding="utf-8", newline="") as file:
            held = [Path(data or "") / row["file"] for row in csv.DictReader(file) if row["split"] == "val"]
        found = [path for path in held[:: max(1, len(held) // _CHECKED)] if path.is_file()]
    except (OSError, KeyError, ValueError, csv.Error):
        pass
    yield from (found or sorted((run / "plots" / "worst").glob("*.png")))[:_CHECKED]


def _released(network: Network, library: str, folder: Path) -> Written:
    """A folder that the library's users know what to do with."""
    spec = network.spec
    if not isinstance(spec, Spec):
        raise InputError(f"{library} has networks of pictures alone; export this one to onnx")
    config = (_timm_config if library == "timm" else _torchvision_config)(network, spec)
    state = {key: value.contiguous() for key, value in release(network, library).items()}
    make_folder(folder)
    paths = [folder / "model.safetensors", folder / "config.json"]
    write_file(paths[0], safetensors.torch.save(state, {"format": "pt"}))
    write_file(paths[1], json.dumps(config, indent=2).encode())
    return Written(paths)


def _told(network: Network, library: str) -> tuple[str, dict[str, Any]]:
    """(a name that `library` has, what has to be told beside it), in the library's own words."""
    plan = network.plan
    name = _STAND_INS.get(plan["name"], re.sub(r"^xresnet(\d+)$", r"resnet\1d", plan["name"]))
    if library == "torchvision" and name not in _TORCHVISION:
        raise InputError(f"torchvision has no network called {name}; export it to onnx or timm")
    usual = registry.plan_of(name)
    words = _WORDS[library].get("preact" if str(plan.get("block")).startswith("preact") else plan["family"], {})
    told = {k: v for k, v in plan.items() if k in usual and k not in _UNTOLD and v != usual[k]}
    if strange := sorted(told.keys() - words.keys()):
        raise InputError(f"{library}'s {name} cannot be told other {', '.join(strange)}; export it to onnx")
    return name, {words[key]: value for key, value in told.items()}


def _timm_config(network: Network, spec: Spec) -> dict[str, Any]:
    """config.json as timm keeps it on the Hub."""
    name, told = _told(network, "timm")
    return {
        "architecture": name,
        "num_classes": spec.num_classes,
        "model_args": told,
        "label_names": list(spec.class_names),
        "pretrained_cfg": {
            "input_size": [spec.channels, spec.size, spec.size],
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": spec.interpolation,
            "crop_pct": round(spec.size / spec.presize, 4),
            "crop_mode": {"crop": "center", "squash": "squash", "pad": "border"}[spec.resize_mode],
            "num_classes": spec.num_classes,
        },
    }


def _torchvision_config(network: Network, spec: Spec) -> dict[str, Any]:
    """How torchvision makes the network, and how it is given pictures."""
    name, _ = _told(network, "torchvision")
    return {
        "model": name,
        "arguments": {"num_classes": spec.num_classes},
        "class_names": list(spec.class_names),
        "input_size": [spec.channels, spec.size, spec.size],
        "resize": spec.presize,
        "resize_mode": spec.resize_mode,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": spec.interpolation,
    }
