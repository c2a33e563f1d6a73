"""Export the model of a run to ONNX, to a torch.export program, or to files for timm or torchvision."""

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
from skipway.models.head import require_classes
from skipway.models.load_model import load
from skipway.models.network import Network
from skipway.models.network_outputs import count_views, refuse_columns
from skipway.models.pretrained_config import CROP_MODES
from skipway.runs.resume import find_data
from skipway.runs.run_folder import read_recipe
from skipway.utils.atomic_files import from_json, make_folder, storing, write_file
from skipway.utils.format_text import count_of
from skipway.utils.output_files import refuse_output
from skipway.weights.convert import release
from skipway.weights.key_maps import LIBRARIES
from skipway.weights.timm_repository import OUTPUTS

__all__ = ["FORMATS", "ExportedFiles", "export_run"]

FORMATS = ("onnx", "pt2", "timm", "torchvision")
_NUM_CHECKED = 16  # images of the run that the export is checked on
_TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
    *(f"efficientnet_b{i}" for i in range(8)),
    *("mobilenetv2_100", "convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
)
# Libraries know these only as another architecture with changed layers.
_STAND_INS = {"resnet10": "resnet18", "densenet264": "densenet121", "resnetv2_200": "resnetv2_152"}
# Fields of a plan that are not arguments of a library's function: stored elsewhere, or used in training only.
_NOT_ARGUMENTS = {
    "name",
    "num_classes",
    "drop_path",
    "dropout",
    "drop_rate",
    "drop_mode",
    "layer_scale",
    "zero_init_last",
    "head_init_scale",
}
# How to convert outputs that are no classes, which the libraries do not.
_CONVERSIONS = {
    "multilabel": "outputs: logits of the labels; apply a sigmoid, then the thresholds in config.json",
    "regression": "outputs: standardized numbers; multiply by target_std and add target_mean, both in config.json",
}
# Argument names of a library's functions by plan field, for each kind of network.
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
# Argument names for networks of every kind.
_COMMON_ARGUMENTS: dict[str, dict[str, str]] = {
    "timm": {"global_pool": "global_pool", "output_stride": "output_stride", "activation": "act_layer"},
    "torchvision": {},
}
_TIMM_VALUES = {"none": "", "hardswish": "hard_swish", "hardsigmoid": "hard_sigmoid"}


@dataclass(frozen=True)
class ExportedFiles:
    """Files written by `export_run`; prints as one line per file.

    Attributes:
        paths: written files.
        check: largest difference from the outputs of torch, if it was measured.
        num_images: images of the run used for the check; 0 for random inputs.
        note: how to convert the outputs, for a library that does not, and how they differ from those of `predict`.
    """

    paths: list[Path]
    check: Exported | None = None
    num_images: int = 0
    note: str = ""

    def __str__(self) -> str:
        lines = [f"exported: {printable(path)}, {path.stat().st_size:,} bytes" for path in self.paths]
        if self.check is not None:
            inputs = f"{count_of(self.num_images, 'image')} of the run" if self.num_images else "random inputs"
            lines.append(f"checked on {inputs}: largest difference from torch is {self.check.difference:.2g}")
        return "\n".join([*lines, *filter(None, [self.note])])


def export_run(
    run: str | os.PathLike[str],
    to: str = "onnx",
    output: str | os.PathLike[str] | None = None,
    *,
    raw: bool = False,
    device: str = "auto",
) -> ExportedFiles:
    """Export the model of a run or of a weights file.

    Args:
        run: run folder or .safetensors file of skipway.
        to: "onnx" (see `skipway.export.onnx`), "pt2" (see `skipway.export.program`), "timm" or "torchvision". The
            first two are checked on images of the run if they exist. The others write a folder with renamed weights and
            a config.json. timm opens it with `timm.create_model("local-dir:FOLDER")`.
        output: output file, or output folder for a library. The default is in the folder `export` of the run, or next
            to the weights file.
        raw: leave out the preprocessing; for "onnx" and "pt2".
        device: device that runs the exported model for the check; for "onnx" and "pt2". "auto" is the CPU. The files
            themselves are for any device.

    Returns:
        The written files, with the result of the check.

    Raises:
        InputError: the format is unknown or does not support the model, or the output exists.
        SkipwayError: the outputs of the export differ from those of torch. The files are removed.
    """
    if to not in FORMATS:
        raise InputError(
            f"invalid export format: expected one of {', '.join(FORMATS)}, got {to!r}{did_you_mean(to, FORMATS)}. "
            "Choose another --to."
        )
    source, network = Path(run), load(run)
    parent = source / "export" if source.is_dir() else source.parent
    if to in ("timm", "torchvision"):
        if raw:
            raise InputError(
                f"cannot use --raw with --to {to}: expected onnx or pt2, because weights for {to} never include the "
                "preprocessing. Drop --raw."
            )
        if device != "auto":
            raise InputError(
                f"cannot use --device with --to {to}: expected onnx or pt2, because weights for {to} are not run. Drop "
                "--device."
            )
        return _export_to_library(network, to, source, Path(output) if output is not None else parent / to)
    target = Path(output) if output is not None else parent / f"{network.plan['name']}.{to}"
    refuse_output(target, [source])
    if output is None and source.is_file() and target.exists():  # the default name must not replace a file
        raise InputError(
            f"cannot export to {printable(target)}: expected a new file, got one that exists. Choose another with -o."
        )
    images = [] if isinstance(network.spec, TableSpec) else _images_of_run(source)
    make_folder(target.parent)
    write = onnx if to == "onnx" else program
    check = write(network, target, raw=raw, check=images or None, device="cpu" if device == "auto" else device)
    return ExportedFiles([check.path], check, len(images), note=_views_note(network))


def _images_of_run(run: Path) -> list[Path]:
    """Return up to 16 validation images of a run: the original files if they exist, else its highest-loss images."""
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
    """Write a folder with weights and config in the format of a library."""
    spec = network.spec
    if not isinstance(spec, Spec):
        raise InputError(f"cannot export to {library}: expected an image model, got a table model. Use --to onnx.")
    refuse_columns(spec, f"export to {library}", "Use --to onnx.")
    paths = [folder / "model.safetensors", folder / "config.json"]
    for path in paths:
        refuse_output(path, [source])
    config = (_timm_config if library == "timm" else _torchvision_config)(network, spec)
    state = {key: value.contiguous() for key, value in release(network, library).items()}
    earlier = _config_of_export(paths[1]) if paths[1].exists() or paths[0].exists() else config
    if earlier.keys() != config.keys():
        raise InputError(
            f"cannot export to {printable(folder)}: expected a new folder or an earlier export, got one with other "
            "files of these names. Pass another -o."
        )
    if earlier != config:  # if the process is killed, weights of one model must not meet the config of another
        with storing(folder, 0):
            paths[0].unlink(missing_ok=True)
    make_folder(folder)
    write_file(paths[1], json.dumps(config, indent=2).encode())
    write_file(paths[0], safetensors.torch.save(state, {"format": "pt"}))
    notes = (_CONVERSIONS.get(spec.task, ""), _views_note(network)) if network.plan["num_classes"] else ()
    return ExportedFiles(paths, note="\n".join(filter(None, notes)))


def _views_note(network: Network) -> str:
    """Return how the outputs differ from those of `predict` if that averages over views, else an empty text."""
    views = count_views(network.spec)
    if views == 1:
        return ""
    return f"outputs: those of one view; skipway predict returns the mean over {views} views (one with --no-tta)"


def _config_of_export(path: Path) -> dict[str, Any]:
    """Return the values of a config.json, or {} if it is missing or invalid."""
    try:
        config = from_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _name_and_arguments(network: Network, library: str) -> tuple[str, dict[str, Any]]:
    """Return the library's name of the architecture, and the arguments that differ from the library's defaults."""
    plan = network.plan
    name = _STAND_INS.get(plan["name"], re.sub(r"^xresnet(\d+)$", r"resnet\1d", plan["name"]))
    if library == "timm" and plan.get("padding") == "same" and f"tf_{name}" in registry.ROWS:
        name = f"tf_{name}"  # the weights were trained with TensorFlow's padding
    if library == "torchvision":
        require_classes(plan, "export to torchvision")
    if library == "torchvision" and name not in _TORCHVISION:
        raise InputError(f"cannot export to torchvision: it has no architecture {name}. Use --to onnx or timm.")
    usual = registry.plan_of(name, **(LIBRARIES[library].own_name(name)[1]))
    kind = "preact" if str(plan.get("block")).startswith("preact") else plan["family"]
    words = {**_ARGUMENTS[library].get(kind, {}), **_COMMON_ARGUMENTS[library]}
    unusual = {k: v for k, v in plan.items() if k in usual and k not in _NOT_ARGUMENTS and v != usual[k]}
    if unknown := sorted(unusual.keys() - words.keys()):
        raise InputError(
            f"cannot export to {library}: its {name} has no option for a changed {', '.join(unknown)}. Use --to onnx."
        )
    return name, {words[option]: _timm_value(value) for option, value in unusual.items()}


def _timm_value(value: Any) -> Any:
    return _TIMM_VALUES.get(value, value) if isinstance(value, str) else value


def _timm_config(network: Network, spec: Spec) -> dict[str, Any]:
    """Return the config.json of a timm model on the Hugging Face Hub."""
    name, arguments = _name_and_arguments(network, "timm")
    num_classes = network.plan["num_classes"]
    return {
        "architecture": name,
        "num_classes": num_classes,
        "model_args": arguments,
        "label_names": list(spec.class_names) if num_classes else [],
        **_output_fields(spec, num_classes),
        "pretrained_cfg": {
            "input_size": [spec.channels, spec.size, spec.size],
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": spec.interpolation,
            "crop_pct": round(spec.size / spec.presize, 4),
            "crop_mode": CROP_MODES[spec.resize_mode],
            "num_classes": num_classes,
        },
        **_range_config(spec),
    }


def _output_fields(spec: Spec, num_outputs: int) -> dict[str, Any]:
    """Return the meaning of outputs that are no classes, which the libraries themselves do not store."""
    return {OUTPUTS: spec.output_dict()} if num_outputs and spec.task != "classification" else {}


def _torchvision_config(network: Network, spec: Spec) -> dict[str, Any]:
    """Return the arguments that create the network in torchvision, and its preprocessing."""
    name, _ = _name_and_arguments(network, "torchvision")
    return {
        "model": {"mobilenetv2_100": "mobilenet_v2"}.get(name, name),
        "arguments": {"num_classes": spec.num_classes},
        "class_names": list(spec.class_names),
        **_output_fields(spec, spec.num_outputs),
        "input_size": [spec.channels, spec.size, spec.size],
        "resize": spec.presize,
        "resize_mode": spec.resize_mode,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": spec.interpolation,
        **_range_config(spec),
    }


def _range_config(spec: Spec) -> dict[str, Any]:
    """Return the range that deep images are scaled by before the mean is subtracted; nothing for images of 8 bits."""
    return {"value_range": [list(pair) for pair in spec.value_range]} if spec.value_range else {}
