"""ONNX export with preprocessing in the graph, verified against torch before the file is written.

Shapes: N inputs, (H, W) image size, (S, S) input size of the network, C channels, K outputs, F encoded values of a
table row.
"""

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import InputError, MissingExtra, SkipwayError, printable, reason_of
from skipway.export.export_description import Description, describe_export
from skipway.models.network import Network
from skipway.utils.atomic_files import from_json, to_json, write_file
from skipway.utils.devices import device_for, device_kind
from skipway.utils.format_text import count_of
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

_MAX_DIFFERENCE = 1e-4  # tolerance of the outputs
_TIE = 1e-6  # classes whose probabilities differ by less are tied
_MAX_METADATA = 2**24  # bytes
_MAX_WEIGHTS = 2**31 - 2**25  # bytes; a protobuf file holds at most 2**31


@dataclass(frozen=True)
class Exported:
    """Result of an export: the file and how its outputs differ from torch on the verification inputs.

    Attributes:
        path: The file.
        size: File size in bytes.
        difference: Largest difference of an output. Probabilities are compared directly, other outputs relative to
            the standard deviation of the target or to the largest output.
        levels: Largest pixel difference from the preprocessing of `predict`, in gray levels of 256.
    """

    path: Path
    size: int
    difference: float
    levels: float = 0.0


def onnx(
    network: Network, path: str | os.PathLike[str], *, raw: bool = False, check: Any = None, device: str = "cpu"
) -> Exported:
    """Write a self-contained ONNX file: preprocessing, network, probabilities or numbers, and metadata.

    An image model maps `images` (N, H, W, C) uint8 of any size, a table model `rows` (N, F) float32, encoded by
    `TableSpec.encode`, to one output. A model with feature columns takes both; `Spec.row_spec` encodes its rows. The
    output is `probabilities` (N, K) of the classes (softmax) or of
    each label (sigmoid), `numbers` (N, T) float64 in the units of the targets, or `features` of a network without a
    head. The metadata hold `task`, `class_names` (of classes or labels), `thresholds` (of labels), `target_names` (of
    numbers), `spec` and `plan` as ASCII JSON, and `skipway_version`.

    Images are resized as in `predict` for arrays, but not rounded to integers. Pixels differ by 0.3 of 256 gray levels
    on average, and in photographs by at most 1.5 (bilinear) or 4 (bicubic). Resizing takes time proportional to the
    number of pixels, so downscale images of many megapixels first.

    Args:
        network: Model with its Spec.
        path: Output file. An existing file is replaced after the new one is verified.
        raw: Export the network alone: normalized `inputs` (N, C, S, S) or (N, F) -> `outputs` (N, K), in float32.
        check: Images (paths or uint8 arrays) or a table to verify the file with. Default: random inputs.
        device: Device on which onnxruntime verifies the file: "cpu", or "cuda" and "cuda:1" with onnxruntime-gpu.

    Returns:
        The file, its size and its largest difference from torch.

    Raises:
        InputError: The network cannot be exported, or onnxruntime does not support the device.
        MissingExtra: The extra 'export' is not installed.
        SkipwayError: The outputs in onnxruntime differ from torch by more than 1e-4, or the predicted class differs,
            for a batch of one or of seven inputs. No file is written.

    >>> import tempfile, skipway as sw
    >>> run = sw.train("wine", epochs=1, output=tempfile.mkdtemp())
    >>> exported = onnx(run.network(), run.path.parent / "wine.onnx")
    >>> exported.path.name, exported.difference < 1e-4
    ('wine.onnx', True)
    """
    _need_extra()
    provider = _provider(device)
    description = describe_export(network, raw)
    weights = sum(t.numel() * t.element_size() for t in description.module.state_dict().values())
    if weights > _MAX_WEIGHTS:
        raise InputError(
            f"ONNX export: expected at most 2 GB of weights, got {weights / 1e9:.1f} GB. Use export.program instead."
        )
    metadata, inputs = file_metadata(network), description.inputs(check)
    traced = trace_program(description.module, description.examples, description.dynamic)
    with quiet_exporters():
        onnx_program = torch.onnx.export(
            traced,
            dynamo=True,
            verbose=False,
            dynamic_shapes=description.dynamic,
            input_names=list(description.input_names),
            output_names=[description.output_name],
        )
    assert onnx_program is not None
    model = onnx_program.model_proto
    model.producer_name, model.producer_version = "skipway", metadata["skipway_version"]
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    data = model.SerializeToString()
    function = _onnxruntime_function(data, description, provider)
    return write_verified(Path(path), data, function=function, description=description, inputs=inputs)


def trace_program(
    module: nn.Module, examples: tuple[Tensor, ...], dynamic: Sequence[dict[int, str]]
) -> torch.export.ExportedProgram:
    """Trace `module` with torch.export.

    Args:
        module: Module in evaluation mode, on the CPU.
        examples: Example of each input.
        dynamic: Axes without a fixed size of each input, and their names.

    Returns:
        The traced program.

    Raises:
        InputError: torch.export cannot trace the module.
    """
    try:
        with quiet_exporters(), torch.no_grad():
            dims = {name: torch.export.Dim(name) for axes in dynamic for name in axes.values()}
            first, *others = ({axis: dims[name] for axis, name in axes.items()} for axes in dynamic)
            sizes = (first, tuple(others)) if others else (first,)  # the others are variable arguments
            return torch.export.export(module, examples, dynamic_shapes=sizes)
    except Exception as error:
        raise InputError(
            f"torch.export cannot trace this network: {reason_of(error)[:200]}. Use only torch operations, and no "
            "control flow that depends on tensor values."
        ) from error


def write_verified(
    path: Path,
    data: bytes,
    *,
    function: Callable[..., np.ndarray],
    description: Description,
    inputs: list[tuple[np.ndarray, ...]],
) -> Exported:
    """Write `data` to `path` if its outputs equal those of the network on all `inputs`.

    Args:
        path: Output file.
        data: Content of the file.
        function: Runs the exported program in its runtime, on one batch.
        description: Export description of the network.
        inputs: Batches to compare.

    Returns:
        The file, its size and its largest difference from torch.

    Raises:
        SkipwayError: The outputs differ.
        InputError: `path` is a link, a folder or a file of a run.
        StorageError: The file cannot be written.
    """
    refuse_output(path)
    difference, levels, misclassified, count = 0.0, 0.0, 0, 0
    for x in inputs:
        expected, outputs = description.expected(*x), function(*x)
        # np.maximum, unlike max, propagates NaN.
        difference = float(np.maximum(difference, _relative_difference(outputs, expected, description)))
        levels = max(levels, description.levels(*x))
        count += len(x[0])
        # The labels of a multilabel model cannot differ, but for ties, if the probabilities do not.
        if description.classes and outputs.shape == expected.shape:
            misclassified += _misclassified(outputs, expected)
    if not difference <= _MAX_DIFFERENCE or misclassified:
        raise SkipwayError(
            f"{printable(path)}: export verification failed: expected the outputs of torch within {_MAX_DIFFERENCE:g}, "
            f"got a difference of {difference:.2g} and another class for {misclassified} of "
            f"{count_of(count, 'input')}. No file was written. Use the "
            "skipway checkpoint instead, and please report this."
        )
    write_file(path, data)
    return Exported(path, size=len(data), difference=difference, levels=levels)


def _relative_difference(outputs: np.ndarray, expected: np.ndarray, description: Description) -> float:
    if outputs.shape != expected.shape:
        return math.inf
    if description.meaning == "numbers":
        spec = description.spec
        outputs, expected = ((v - np.array(spec.target_mean)) / np.array(spec.target_std) for v in (outputs, expected))
    return float(np.abs(outputs - expected).max()) / max(1.0, float(np.abs(expected).max()))


def _misclassified(outputs: np.ndarray, expected: np.ndarray) -> int:
    """Count the inputs whose predicted class differs, except for ties."""
    chosen = np.take_along_axis(expected, outputs.argmax(1)[:, None], 1)[:, 0]
    return int((expected.max(1) - chosen > _TIE).sum())


def _provider(device: str) -> tuple[str, dict[str, Any]]:
    """Return the execution provider of onnxruntime for a device, with its options."""
    import onnxruntime

    place = device_for(device)
    if place == "cpu":
        return "CPUExecutionProvider", {}
    name, available = "CUDAExecutionProvider", onnxruntime.get_available_providers()
    if device_kind(place) != "cuda" or name not in available:
        raise InputError(
            f"cannot verify an ONNX file on --device {place}: expected an onnxruntime with {name} and a CUDA device, "
            f"got {', '.join(available)}. Use --device cpu, or install onnxruntime-gpu."
        )
    return name, {"device_id": int(place.partition(":")[2] or 0), "use_tf32": 0}


def _onnxruntime_function(
    model: bytes, description: Description, provider: tuple[str, dict[str, Any]]
) -> Callable[..., np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(model, options, providers=[provider])
    names = description.input_names
    return lambda *x: session.run([description.output_name], dict(zip(names, x, strict=True)))[0]


def file_metadata(network: Network) -> dict[str, str]:
    """Return task, names, Spec, plan and version as ASCII text that is safe in terminals, logs and web pages.

    Raises:
        InputError: The metadata are larger than 16 MB.
    """
    assert network.spec is not None
    spec = network.spec
    values: dict[str, Any] = {"task": spec.task, "class_names": list(spec.class_names)}
    values |= {"thresholds": list(spec.thresholds)} if spec.task == "multilabel" else {}
    values |= {"target_names": list(spec.target_names)} if spec.task == "regression" else {}
    values |= {"spec": spec.as_dict(), "plan": network.plan}
    metadata = {"skipway_version": version("skipway")}
    for name, value in values.items():
        text = json.dumps(from_json(to_json(value, f"the network's {name}")))
        for character in "<>&\x7f":
            text = text.replace(character, f"\\u{ord(character):04x}")
        metadata[name] = text
    if (size := sum(map(len, metadata.values()))) > _MAX_METADATA:
        raise InputError(
            f"export metadata (class names, Spec, plan): expected at most {_MAX_METADATA / 1e6:.0f} MB, got "
            f"{size / 1e6:.0f} MB. Shorten the class names."
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
    """Suppress the log messages and warnings of torch's exporters, which do not help a user."""
    with quiet_loggers("torch.onnx", "torch.export"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
