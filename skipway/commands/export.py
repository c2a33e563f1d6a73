"""Export the network of a run: to ONNX, to a program of torch, or to files of timm or torchvision."""

import csv
import json
import os
import re
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
from skipway.runs.resume import find_data
from skipway.runs.run_folder import read_recipe
from skipway.utils.atomic_files import from_json, make_folder, storing, write_file
from skipway.utils.output_files import refuse_output
from skipway.weights.convert import release
from skipway.weights.key_maps import LIBRARIES

__all__ = ["FORMATS", "ExportedFiles", "export_run"]

FORMATS = ("onnx", "pt2", "timm", "torchvision")
_NUM_CHECKED = 16  # of the run's own images
_TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
    *(f"efficientnet_b{i}" for i in range(8)),
    *("mobilenetv2_100", "convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
)
_STAND_INS = {"resnet10": "resnet18", "densenet264": "densenet121", "resnetv2_200": "resnetv2_152"}  # with other layers
# Fields of a plan that are not arguments of a library's function: written elsewhere, or for training alone.
_NOT_ARGUMENTS = ("name", "num_classes", "drop_path", "dropout", "drop_mode", "layer_scale")
# Arguments of a library's functions for each kind of network, by the plan's fields.
_ARGUMENTS: dict[str, dict[str, dict[str, str]]] = {
    "timm": {
        "resnet": {"layers": "layers", "widths": "channels", "in_chans": "in_chans"},
        "preact": {"layers": "layers", "in_chans": "in_chans"},
        "convnext": {"layers": "depths", "widths": "dims", "kernel": "kernel_sizes", "in_chans": "in_chans"},
        "inverted_residual": {"norm_eps": "bn_eps", "in_chans": "in_chans"},
        "densenet": {"layers": "block_config", "growth": "growth_rate", "in_chans": "in_chans"},
    },
    "torchvision": {},
}


@dataclass(frozen=True)
class ExportedFiles:
    """Files that `export_run` wrote; prints them.

    Attributes:
        paths: the files.
        check: the largest difference of their outputs from torch's, if it was measured.
        num_images: images of the run that it was measured on; 0 for made-up inputs.
    """

    paths: list[Path]
    check: Exported | None = None
    num_images: int = 0

    def __str__(self) -> str:
        lines = [f"written: {printable(path)}, {path.stat().st_size:,} bytes" for path in self.paths]
        if self.check is not None:
            inputs = f"{self.num_images} images of the run" if self.num_images else "made-up inputs"
            lines.append(f"checked on {inputs}: outputs differ from torch's by {self.check.difference:.2g} at most")
        return "\n".join(lines)


def export_run(
    run: str | os.PathLike[str],
    to: str = "onnx",
    output: str | os.PathLike[str] | None = None,
    *,
    raw: bool = False,
) -> ExportedFiles:
    """Write the network of a run or of a file of skipway for use elsewhere.

    Args:
        run: a run folder or a .safetensors file of skipway.
        to: "onnx" (see `skipway.export.onnx`), "pt2" (`skipway.export.program`), both checked on the run's own
            images if they are at hand; or "timm" or "torchvision": a folder with weights under that library's
            names and a config.json, which timm opens as `timm.create_model("local-dir:FOLDER")`.
        output: the file, or the folder for a library; default: in the run's folder `export`, or next to the file.
        raw: the network alone, without how inputs are prepared; for "onnx" and "pt2".

    Raises:
        InputError: no such format, or the network cannot be written in it.
        SkipwayError: the outputs of what was written differ from torch's; no file is left.
    """
    if to not in FORMATS:
        raise InputError(f"nothing is exported to {to!r}{did_you_mean(to, FORMATS)}; there are {', '.join(FORMATS)}")
    source, network = Path(run), load(run)
    parent = source / "export" if source.is_dir() else source.parent
    if to in ("timm", "torchvision"):
        if raw:
            raise InputError(f"--raw is for onnx and pt2; weights for {to} are always those of the network alone")
        return _export_to_library(network, to, source, Path(output) if output is not None else parent / to)
    target = Path(output) if output is not None else parent / f"{network.plan['name']}.{to}"
    refuse_output(target, [source])
    if output is None and source.is_file() and target.exists():  # its name comes from the file
        raise InputError(f"cannot export to {printable(target)}: expected a new file, got one that exists. Give -o.")
    images = [] if isinstance(network.spec, TableSpec) else _images_of_run(source)
    make_folder(target.parent)
    write = onnx if to == "onnx" else program
    check = write(network, target, raw=raw, check=images or None)
    return ExportedFiles([check.path], check, len(images))


def _images_of_run(run: Path) -> list[Path]:
    """Return up to sixteen validation images of a run as files: the originals if they exist, else the worst ones."""
    if not (run / "config.yaml").is_file():
        return []
    data = find_data(read_recipe(run).data, run)
    images: list[Path] = []
    try:
        with open(run / "splits.csv", encoding="utf-8", newline="") as file:
            names = [Path(row["file"]) for row in csv.DictReader(file) if row["split"] == "val"]
        inside = [Path(data or "") / name for name in names if not name.is_absolute() and ".." not in name.parts]
        images = [path for path in inside[:: max(1, len(inside) // _NUM_CHECKED)] if path.is_file()]
    except (OSError, KeyError, ValueError, csv.Error):
        pass
    return (images or sorted((run / "plots" / "worst").glob("*.png")))[:_NUM_CHECKED]


def _export_to_library(network: Network, library: str, source: Path, folder: Path) -> ExportedFiles:
    """Write a folder that the library's users know how to open."""
    spec = network.spec
    if not isinstance(spec, Spec):
        raise InputError(f"{library} has networks of images alone; export this one to onnx")
    paths = [folder / "model.safetensors", folder / "config.json"]
    for path in paths:
        refuse_output(path, [source])
    config = (_timm_config if library == "timm" else _torchvision_config)(network, spec)
    state = {key: value.contiguous() for key, value in release(network, library).items()}
    earlier = _config_of_export(paths[1]) if paths[1].exists() or paths[0].exists() else config
    if earlier.keys() != config.keys():
        raise InputError(
            f"cannot export to {printable(folder)}: expected a new folder or an earlier export, got one with other "
            "files of these names. Give another -o."
        )
    if earlier != config:  # never the weights of one network with the config of another, whenever it is killed
        with storing(folder, 0):
            paths[0].unlink(missing_ok=True)
    make_folder(folder)
    write_file(paths[1], json.dumps(config, indent=2).encode())
    write_file(paths[0], safetensors.torch.save(state, {"format": "pt"}))
    return ExportedFiles(paths)


def _config_of_export(path: Path) -> dict[str, Any]:
    """Return the values of a config.json; nothing if it is not there or holds something else."""
    try:
        config = from_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _name_and_arguments(network: Network, library: str) -> tuple[str, dict[str, Any]]:
    """Return (a name that `library` has, the arguments that differ from its defaults), in the library's own words."""
    plan = network.plan
    name = _STAND_INS.get(plan["name"], re.sub(r"^xresnet(\d+)$", r"resnet\1d", plan["name"]))
    if library == "timm" and plan.get("padding") == "same" and f"tf_{name}" in registry.ROWS:
        name = f"tf_{name}"  # the weights were trained with TensorFlow's padding
    if library == "torchvision" and name not in _TORCHVISION:
        raise InputError(f"torchvision has no network called {name}; export it to onnx or timm")
    usual = registry.plan_of(name, **(LIBRARIES[library].own_name(name)[1]))
    kind = "preact" if str(plan.get("block")).startswith("preact") else plan["family"]
    words = _ARGUMENTS[library].get(kind, {})
    unusual = {k: v for k, v in plan.items() if k in usual and k not in _NOT_ARGUMENTS and v != usual[k]}
    if unknown := sorted(unusual.keys() - words.keys()):
        raise InputError(f"{library}'s {name} cannot be told other {', '.join(unknown)}; export it to onnx")
    return name, {words[key]: value for key, value in unusual.items()}


def _timm_config(network: Network, spec: Spec) -> dict[str, Any]:
    """Return the values of a config.json as timm has them on the Hub."""
    name, arguments = _name_and_arguments(network, "timm")
    return {
        "architecture": name,
        "num_classes": spec.num_classes,
        "model_args": arguments,
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
    """Return the call that makes the network in torchvision, and how its images are prepared."""
    name, _ = _name_and_arguments(network, "torchvision")
    return {
        "model": {"mobilenetv2_100": "mobilenet_v2"}.get(name, name),
        "arguments": {"num_classes": spec.num_classes},
        "class_names": list(spec.class_names),
        "input_size": [spec.channels, spec.size, spec.size],
        "resize": spec.presize,
        "resize_mode": spec.resize_mode,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": spec.interpolation,
    }
