"""A trained network as a program for other places: how a picture is prepared is part of it, and it is checked.

Shapes: N inputs, (H, W) pixels of a picture, (S, S) those that the network is given of it, C channels, K classes, F
numbers of a row of a table.
"""

import copy
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
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.data.image_spec import Spec
from skipway.data.images.decoded_cache import fitted_array
from skipway.data.sources.decode import decode, size_of
from skipway.data.sources.read_bytes import read_picture_file
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError, MissingExtra, SkipwayError, printable
from skipway.export.fusion import Convolution
from skipway.export.preprocessing import Preparation
from skipway.models.network import Network
from skipway.models.prediction import as_table, prepare_image
from skipway.nn.chain import Chain
from skipway.utils.atomic_files import from_json, to_json, write_file
from skipway.utils.quiet_loggers import quiet_loggers

__all__ = [
    "Exported",
    "describe_export",
    "file_metadata",
    "onnx",
    "plain_copy",
    "quiet_exporters",
    "trace_program",
    "write_verified",
]

_MAX_DIFFERENCE = 1e-4  # of outputs
_TIE = 1e-6  # two classes that are nearer to each other than this are equally likely
_MAX_METADATA = 2**24  # bytes
_MAX_WEIGHTS = 2**31 - 2**25  # bytes: files of this format end at 2**31
_BATCH_SIZE = 7  # inputs at once
_MAX_SIDE = 1024  # pixels: a batch of larger pictures would need gigabytes
_RANDOM_ROWS = 64
_RANDOM_SIZES = ((1, 1), (0.6, 0.9), (1.5, 1.1), (2.1, 5.2))  # of random pictures, in presizes


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

    A network of pictures takes `pictures` (N, H, W, C) uint8 of any size and number, and gives `probabilities` (N, K).
    One of tables takes `rows` (N, F) float32, encoded as `TableSpec.encode` does, and gives `probabilities` (N, K), or
    `numbers` (N, 1) float64 in the target's own unit. The metadata hold `class_names`, `spec` and `plan` as JSON in
    ASCII, and `skipway_version`.

    Pictures are resized as by `predict` for arrays, but not rounded to whole grey levels: pixels differ by 0.3 of 256
    levels in the mean, and in photographs by at most 1.5 (bilinear) or 4 (bicubic). Resizing is two matrix products,
    whose time goes with the pixels given: those of many megapixels are better made smaller before.

    Args:
        network: with its Spec.
        path: where to; a file that is there is replaced once the new one has passed.
        raw: the network alone: `inputs` (N, C, S, S), normalised, or (N, F) -> `outputs` (N, K), both float32.
        check: pictures (paths, uint8 arrays) or a table to check the file with; made-up ones where there are none.

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


def plain_copy(network: nn.Module) -> nn.Module:
    """The network as it is written down: in float32 on the CPU, in evaluation mode, and run in the plain way.

    Raises:
        InputError: it is one that was made for predicting alone.
    """
    if any(isinstance(module, Convolution) for module in network.modules()):
        raise InputError("a fused network cannot be exported; give the network that it was made from")
    with torch.inference_mode(False):
        twin = copy.deepcopy(network).cpu().float().eval()
    for module in twin.modules():
        if isinstance(module, Chain):
            module.forward_impl = None
    return twin


class _Pictures(nn.Module):
    """Pictures (N, H, W, C) uint8 -> probabilities (N, K)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: Spec):
        super().__init__()
        self.prepare, self.network = Preparation(spec), network
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(spec, name)).view(1, -1, 1, 1))

    def normalised(self, x: Tensor) -> Tensor:
        """(N, C, S, S) as the network takes them."""
        return (self.prepare(x) / 255 - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        """As `Network.probabilities` has it."""
        return self.network(self.normalised(x)).softmax(1)


class _Rows(nn.Module):
    """Encoded rows (N, F) -> probabilities (N, K), or numbers (N, 1) in the target's own unit as float64."""

    def __init__(self, network: nn.Module, spec: TableSpec):
        super().__init__()
        self.network, self.spec = network, spec

    def forward(self, x: Tensor) -> Tensor:
        """As `Network.row_outputs` has it."""
        y, spec = self.network(x), self.spec
        return y.softmax(1) if spec.class_names else y.double() * spec.target_std + spec.target_mean


class _ImageExport:
    """How a network of pictures is exported and checked; `dynamic` axes may have any size."""

    classes, offset, unit = True, 0.0, 1.0

    def __init__(self, network: Network, spec: Spec, raw: bool):
        self.network, self.spec, self.raw, with_preparation = network, spec, raw, _Pictures(network, spec)
        self.prepare, self.normalised = with_preparation.prepare, with_preparation.normalised
        self.module: nn.Module = network if raw else with_preparation
        self.input_name, self.output_name = ("inputs", "outputs") if raw else ("pictures", "probabilities")
        self.dynamic = {0: "N"} if raw else {0: "N", 1: "H", 2: "W"}
        # Several, and no two sizes alike: tracing takes a size of 1 for fixed, and equal ones for the same.
        any_size = torch.zeros(3, spec.presize + 5, spec.presize + 7, spec.channels, dtype=torch.uint8)
        self.example = torch.zeros(3, *spec.input_shape) if raw else any_size

    def inputs(self, check: Any) -> list[np.ndarray]:
        """Return each picture by itself, then seven that are made of the smallest."""
        sources = [check] if isinstance(check, str | os.PathLike) else check
        pictures = [_full_size_picture(source, self.spec) for source in sources or ()] or _random_pictures(self.spec)
        smallest = min(pictures, key=lambda picture: picture.size)[:_MAX_SIDE, :_MAX_SIDE]
        batches = [*(p[None] for p in pictures), np.stack([np.roll(smallest, 3 * i, 1) for i in range(_BATCH_SIZE)])]
        return [self.normalised(torch.from_numpy(b)).numpy() for b in batches] if self.raw else batches

    def expected(self, x: np.ndarray) -> np.ndarray:
        """Return the outputs of the network itself."""
        with torch.no_grad():
            if self.raw:
                return self.network(torch.from_numpy(x)).numpy()
            return self.network.probabilities(list(self.prepare(torch.from_numpy(x)).permute(0, 2, 3, 1).numpy()))

    def levels(self, x: np.ndarray) -> float:
        """Return the largest difference of prepared pixels of the first from those of `predict`, in grey levels."""
        if self.raw:
            return 0.0
        pixels = self.prepare(torch.from_numpy(x[:1]))[0].permute(1, 2, 0).numpy()
        return float(np.abs(pixels - prepare_image(x[0], self.spec)).max())


class _TableExport:
    """How a network of tables is exported and checked."""

    def __init__(self, network: Network, spec: TableSpec, raw: bool):
        self.network, self.spec, self.raw, self.classes = network, spec, raw, bool(spec.class_names)
        self.module: nn.Module = network if raw else _Rows(network, spec)
        output_name = "probabilities" if self.classes else "numbers"
        self.input_name, self.output_name = ("inputs", "outputs") if raw else ("rows", output_name)
        self.offset, self.unit = (0.0, 1.0) if raw else (spec.target_mean, spec.target_std)
        self.dynamic = {0: "N"}
        self.example = torch.zeros(3, *spec.input_shape)

    def inputs(self, check: Any) -> list[np.ndarray]:
        """Return the first row by itself, seven rows, and all of them."""
        x = self._random_rows() if check is None else self.spec.encode_strict(as_table(check)).x
        x = x if len(x) else self._random_rows()
        return [x[:1], x[np.arange(_BATCH_SIZE) % len(x)], x]

    def _random_rows(self) -> np.ndarray:
        generator, spec = np.random.default_rng(0), self.spec
        numbers = generator.normal(size=(_RANDOM_ROWS, len(spec.number_columns)))
        indicators = generator.integers(0, 2, (_RANDOM_ROWS, len(spec.indicator_columns)))
        slots = generator.integers(0, spec.categories, (_RANDOM_ROWS, len(spec.category_columns)))
        return np.concatenate([numbers, indicators, slots], 1).astype(np.float32)

    def expected(self, x: np.ndarray) -> np.ndarray:
        """Return the outputs of the network itself."""
        if not self.raw:
            return self.network.row_outputs(x)
        with torch.no_grad():
            return self.network(torch.from_numpy(x)).numpy()

    def levels(self, x: np.ndarray) -> float:
        """Return 0: rows have no pixels."""
        return 0.0


Description = _ImageExport | _TableExport


def describe_export(network: Network, raw: bool) -> Description:
    """Return how a copy of the network is exported and checked, as its Spec requires.

    Raises:
        InputError: it has none, or was made for predicting alone.
    """
    if not isinstance(network, Network) or network.spec is None:
        raise InputError(
            "only a Network that knows what its inputs and outputs mean can be exported; load it from a run or a file "
            "of skipway, or set its .spec"
        )
    twin = plain_copy(network)
    assert isinstance(twin, Network)
    if isinstance(network.spec, TableSpec):
        return _TableExport(twin, network.spec, raw)
    return _ImageExport(twin, network.spec, raw)


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
        StorageError: the file cannot be written.
    """
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


def _full_size_picture(source: Any, spec: Spec) -> np.ndarray:
    """Return a picture at its own size, upright, as (H, W, C) uint8."""
    prepare_image(source, spec)  # raises the error of a picture that cannot be used
    if isinstance(source, np.ndarray):
        height, width = source.shape[:2]
        pixels = fitted_array(np.atleast_3d(source), size=max(height, width), channels=spec.channels, resize_mode="pad")
    else:
        data = read_picture_file(Path(source))
        picture = decode(data, size=max(size_of(data)[:2]), channels=spec.channels, resize_mode="pad")
        height, width, pixels = picture.height, picture.width, picture.pixels
    top, left = (len(pixels) - height) // 2, (len(pixels) - width) // 2  # without the bars
    return pixels[top : top + height, left : left + width]


def _random_pictures(spec: Spec) -> list[np.ndarray]:
    """Return pictures of several sizes with soft parts and grain, like photographs."""
    generator, pictures = np.random.default_rng(0), []
    for down, across in _RANDOM_SIZES:
        height, width = (max(1, round(share * spec.presize)) for share in (down, across))
        coarse = torch.from_numpy(generator.uniform(0, 255, (1, spec.channels, height // 16 + 2, width // 16 + 2)))
        soft = F.interpolate(coarse, (height, width), mode="bilinear")[0].permute(1, 2, 0).numpy()
        pictures.append(np.clip(soft + generator.normal(0, 8, soft.shape), 0, 255).astype(np.uint8))
    return pictures


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
