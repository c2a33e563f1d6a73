"""A trained network as a program for other places: how an image is prepared is part of it, and it is checked.

Shapes: N inputs, (H, W) pixels of an image, (S, S) those that the network is given of it, C channels, K classes, F
numbers of a row of a table.
"""

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import InputError, MissingExtra, SkipwayError, printable
from skipway.export.export_description import Description, describe_export
from skipway.models.network import Network
from skipway.utils.atomic_files import from_json, to_json, write_file
from skipway.utils.output_files import refuse_output
from skipway.utils.quiet_loggers import quiet_loggers

__all__ = [
    "Exported",
    "file_metadata",
    "onnx",
    "quiet_exporters",
    "trace_program",
    "write_verified",
]

_MAX_DIFFERENCE = 1e-4  # of outputs
_TIE = 1e-6  # two classes that are nearer to each other than this are equally likely
_MAX_METADATA = 2**24  # bytes
_MAX_WEIGHTS = 2**31 - 2**25  # bytes: files of this format end at 2**31


@dataclass(frozen=True)
class Exported:
    """A file that was written, its bytes, and how it differs from torch on the inputs that it was checked with.

    `difference` is the largest one of outputs: probabilities as they are, others in units of the target's deviation
    or of the largest output. `levels` is that of prepared pixels from those of `predict`, in grey levels of 256.
    """

    path: Path
    size: int
    difference: float
    levels: float = 0.0


def onnx(network: Network, path: str | os.PathLike[str], *, raw: bool = False, check: Any = None) -> Exported:
    """Write an ONNX file that needs nothing else: how inputs are prepared, the network, and what its outputs mean.

    A network of images takes `images` (N, H, W, C) uint8 of any size and number, and gives `probabilities` (N, K).
    One of tables takes `rows` (N, F) float32, encoded as `TableSpec.encode` does, and gives `probabilities` (N, K), or
    `numbers` (N, 1) float64 in the target's own unit. The metadata hold `class_names`, `spec` and `plan` as JSON in
    ASCII, and `skipway_version`.

    Images are resized as by `predict` for arrays, but not rounded to whole grey levels: pixels differ by 0.3 of 256
    levels in the mean, and in photographs by at most 1.5 (bilinear) or 4 (bicubic). Resizing is two matrix products,
    whose time goes with the pixels given: those of many megapixels are better made smaller before.

    Args:
        network: with its Spec.
        path: where to; a file that is there is replaced once the new one has passed.
        raw: the network alone: `inputs` (N, C, S, S), normalised, or (N, F) -> `outputs` (N, K), both float32.
        check: images (paths, uint8 arrays) or a table to check the file with; made-up ones where there are none.

    Raises:
        InputError: this network cannot be exported; the extra 'export' is missing.
        SkipwayError: through onnxruntime the outputs are not those of torch: they differ by more than 1e-4, or another
            class is the likeliest, for one input or for seven at once. No file is left then.
    """
    _need_extra()
    description = describe_export(network, raw)
    weights = sum(t.numel() * t.element_size() for t in description.module.state_dict().values())
    if weights > _MAX_WEIGHTS:
        raise InputError(
            f"an ONNX file holds at most 2 GB of weights, but these are {weights / 1e9:.1f} GB; use export.program"
        )
    metadata, inputs = file_metadata(network), description.inputs(check)
    traced = trace_program(description.module, description.example, description.dynamic)
    with quiet_exporters():
        onnx_program = torch.onnx.export(
            traced,
            dynamo=True,
            verbose=False,
            dynamic_shapes=(description.dynamic,),
            input_names=[description.input_name],
            output_names=[description.output_name],
        )
    assert onnx_program is not None
    model = onnx_program.model_proto
    model.producer_name, model.producer_version = "skipway", metadata["skipway_version"]
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    data = model.SerializeToString()
    function = _onnxruntime_function(data, description)
    return write_verified(Path(path), data, function=function, description=description, inputs=inputs)


def trace_program(module: nn.Module, example: Tensor, dynamic: dict[int, str]) -> torch.export.ExportedProgram:
    """Return `module` as a program for inputs like `example`, whose `dynamic` axes may have any size.

    Raises:
        InputError: torch cannot follow it.
    """
    try:
        with quiet_exporters(), torch.no_grad():
            sizes = {axis: torch.export.Dim(name) for axis, name in dynamic.items()}
            return torch.export.export(module, (example,), dynamic_shapes=(sizes,))
    except Exception as error:
        reason = printable((str(error).strip().splitlines() or [type(error).__name__])[0])[:200]
        raise InputError(
            f"torch.export cannot follow what this network computes: {reason}; keep to operations of torch whose "
            "course does not hang on the numbers"
        ) from error


def write_verified(
    path: Path,
    data: bytes,
    *,
    function: Callable[[np.ndarray], np.ndarray],
    description: Description,
    inputs: list[np.ndarray],
) -> Exported:
    """Write `data` if `function`, which runs it as users will, agrees with the network on all of `inputs`.

    Raises:
        SkipwayError: the outputs differ.
        InputError: a link, a folder or a file of a run is at `path`.
        StorageError: the file cannot be written.
    """
    refuse_output(path)
    difference, levels, misclassified, count = 0.0, 0.0, 0, 0
    for x in inputs:
        expected, outputs = description.expected(x), function(x)
        # np.maximum, unlike max, passes NaN on.
        difference = float(np.maximum(difference, _relative_difference(outputs, expected, description)))
        levels = max(levels, description.levels(x))
        count += len(x)
        if description.classes and outputs.shape == expected.shape:
            misclassified += _misclassified(outputs, expected)
    if not difference <= _MAX_DIFFERENCE or misclassified:
        raise SkipwayError(
            f"{printable(path)}: what was exported gives other outputs than torch, by {difference:.2g} where "
            f"{_MAX_DIFFERENCE:g} is allowed, and another class for {misclassified} of {count} inputs; no file is "
            "left: keep to skipway's own files, and please report this"
        )
    write_file(path, data)
    return Exported(path, size=len(data), difference=difference, levels=levels)


def _relative_difference(outputs: np.ndarray, expected: np.ndarray, description: Description) -> float:
    if outputs.shape != expected.shape:
        return math.inf
    largest = max(description.unit, float(np.abs(expected - description.offset).max()))
    return float(np.abs(outputs - expected).max()) / largest


def _misclassified(outputs: np.ndarray, expected: np.ndarray) -> int:
    """Return the number of inputs whose most likely class is another one, ties apart."""
    chosen = np.take_along_axis(expected, outputs.argmax(1)[:, None], 1)[:, 0]
    return int((expected.max(1) - chosen > _TIE).sum())


def _onnxruntime_function(model: bytes, description: Description) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run([description.output_name], {description.input_name: x})[0]


def file_metadata(network: Network) -> dict[str, str]:
    """Return class names, Spec, plan and version as ASCII text that is safe in terminals, logs and web pages.

    Raises:
        InputError: they are too long.
    """
    assert network.spec is not None
    values = {"class_names": list(network.spec.class_names), "spec": network.spec.as_dict(), "plan": network.plan}
    metadata = {"skipway_version": version("skipway")}
    for name, value in values.items():
        text = json.dumps(from_json(to_json(value, f"the network's {name}")))
        for character in "<>&\x7f":
            text = text.replace(character, f"\\u{ord(character):04x}")
        metadata[name] = text
    if (size := sum(map(len, metadata.values()))) > _MAX_METADATA:
        raise InputError(
            f"class names, Spec and plan would take {size / 1e6:.0f} MB of the file, which holds at most "
            f"{_MAX_METADATA / 1e6:.0f} MB of them; shorten the names"
        )
    return metadata


def _need_extra() -> None:
    try:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            import_module(name)
    except ImportError:
        raise MissingExtra("export", "writing an ONNX file") from None


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Drop the log messages and warnings of torch's exporters, which are of no use to whoever exports."""
    with quiet_loggers("torch.onnx", "torch.export"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
