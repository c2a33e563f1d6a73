"""A trained network as a program for other places: how a picture is prepared is part of it, and it is checked.

Shapes: N inputs, (H, W) pixels of a picture, (S, S) those that the network is given of it, C channels, K classes, F
numbers of a row of a table.
"""

import copy
import json
import logging
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

__all__ = ["Exported", "captured", "form_of", "kept", "metadata", "onnx", "plain_copy", "quiet"]

_APART = 1e-4  # what outputs may differ by
_TIE = 1e-6  # two classes that are nearer to each other than this are equally likely
_MOST_METADATA = 2**24  # bytes
_MOST_WEIGHTS = 2**31 - 2**25  # bytes: files of this format end at 2**31
_MANY = 7  # inputs at once
_LARGE = 1024  # pixels on a side: seven of more would need gigabytes
_ROWS = 64  # made up
_SIZES = ((1, 1), (0.6, 0.9), (1.5, 1.1), (2.1, 5.2))  # of made-up pictures, in presizes


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
    form = form_of(network, raw)
    weights = sum(t.numel() * t.element_size() for t in form.module.state_dict().values())
    if weights > _MOST_WEIGHTS:
        raise InputError(
            f"an ONNX file holds at most 2 GB of weights, but these are {weights / 1e9:.1f} GB; use export.program"
        )
    described, inputs = metadata(network), form.inputs(check)
    traced = captured(form.module, form.example, form.dynamic)
    with quiet():
        made = torch.onnx.export(
            traced,
            dynamo=True,
            verbose=False,
            dynamic_shapes=(form.dynamic,),
            input_names=[form.takes],
            output_names=[form.gives],
        )
    assert made is not None
    model = made.model_proto
    model.producer_name, model.producer_version = "skipway", described["skipway_version"]
    for key, value in described.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    data = model.SerializeToString()
    return kept(form, Path(path), data, _in_onnxruntime(data, form), inputs)


def captured(module: nn.Module, example: Tensor, dynamic: dict[int, str]) -> torch.export.ExportedProgram:
    """What `module` makes of inputs like `example`, whose `dynamic` axes may have any size.

    Raises:
        InputError: torch cannot follow it.
    """
    try:
        with quiet(), torch.no_grad():
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


class _OfPictures:
    """How a network of pictures is exported and checked: `takes` -> `gives`, whose `dynamic` axes have any size."""

    classes, offset, unit = True, 0.0, 1.0

    def __init__(self, network: Network, spec: Spec, raw: bool):
        self.network, self.spec, self.raw, whole = network, spec, raw, _Pictures(network, spec)
        self.prepare, self.normalised = whole.prepare, whole.normalised
        self.module: nn.Module = network if raw else whole
        self.takes, self.gives = ("inputs", "outputs") if raw else ("pictures", "probabilities")
        self.dynamic = {0: "N"} if raw else {0: "N", 1: "H", 2: "W"}
        # Several, and no two sizes alike: tracing takes a size of 1 for fixed, and equal ones for the same.
        any_size = torch.zeros(3, spec.presize + 5, spec.presize + 7, spec.channels, dtype=torch.uint8)
        self.example = torch.zeros(3, *spec.input_shape) if raw else any_size

    def inputs(self, check: Any) -> list[np.ndarray]:
        """Each picture by itself, then seven that are made of the smallest."""
        given = [check] if isinstance(check, str | os.PathLike) else [] if check is None else check
        pictures = [_as_it_is(one, self.spec) for one in given] or _made_up(self.spec)
        smallest = min(pictures, key=lambda picture: picture.size)[:_LARGE, :_LARGE]
        batches = [*(p[None] for p in pictures), np.stack([np.roll(smallest, 3 * i, 1) for i in range(_MANY)])]
        return [self.normalised(torch.from_numpy(b)).numpy() for b in batches] if self.raw else batches

    def expected(self, x: np.ndarray) -> np.ndarray:
        """The outputs of the network itself."""
        with torch.no_grad():
            if self.raw:
                return self.network(torch.from_numpy(x)).numpy()
            return self.network.probabilities(list(self.prepare(torch.from_numpy(x)).permute(0, 2, 3, 1).numpy()))

    def levels(self, x: np.ndarray) -> float:
        """How far prepared pixels of the first are from those of `predict`, in grey levels."""
        if self.raw:
            return 0.0
        pixels = self.prepare(torch.from_numpy(x[:1]))[0].permute(1, 2, 0).numpy()
        return float(np.abs(pixels - prepare_image(x[0], self.spec)).max())


class _OfRows:
    """How a network of tables is exported and checked."""

    def __init__(self, network: Network, spec: TableSpec, raw: bool):
        self.network, self.spec, self.raw, self.classes = network, spec, raw, bool(spec.class_names)
        self.module: nn.Module = network if raw else _Rows(network, spec)
        gives = "probabilities" if self.classes else "numbers"
        self.takes, self.gives = ("inputs", "outputs") if raw else ("rows", gives)
        self.offset, self.unit = (0.0, 1.0) if raw else (spec.target_mean, spec.target_std)
        self.dynamic = {0: "N"}
        self.example = torch.zeros(3, *spec.input_shape)

    def inputs(self, check: Any) -> list[np.ndarray]:
        """The first row by itself, seven, and all of them."""
        x = self._made_up() if check is None else self.spec.encode_strict(as_table(check)).x
        x = x if len(x) else self._made_up()
        return [x[:1], x[np.arange(_MANY) % len(x)], x]

    def _made_up(self) -> np.ndarray:
        draw, spec = np.random.default_rng(0), self.spec
        numbers = draw.normal(size=(_ROWS, len(spec.number_columns)))
        indicators = draw.integers(0, 2, (_ROWS, len(spec.indicator_columns)))
        slots = draw.integers(0, spec.categories, (_ROWS, len(spec.category_columns)))
        return np.concatenate([numbers, indicators, slots], 1).astype(np.float32)

    def expected(self, x: np.ndarray) -> np.ndarray:
        """The outputs of the network itself."""
        if not self.raw:
            return self.network.row_outputs(x)
        with torch.no_grad():
            return self.network(torch.from_numpy(x)).numpy()

    def levels(self, x: np.ndarray) -> float:
        """Rows have none."""
        return 0.0


def form_of(network: Network, raw: bool) -> _OfPictures | _OfRows:
    """How a copy of the network is exported and checked, by what its Spec says.

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
        return _OfRows(twin, network.spec, raw)
    return _OfPictures(twin, network.spec, raw)


def kept(
    form: _OfPictures | _OfRows,
    path: Path,
    data: bytes,
    run: Callable[[np.ndarray], np.ndarray],
    inputs: list[np.ndarray],
) -> Exported:
    """Write `data`, if `run`, which is how it will be used, gives what the network gives for each of `inputs`.

    Raises:
        SkipwayError: it does not.
        StorageError: the file cannot be written.
    """
    apart, levels, astray, count = 0.0, 0.0, 0, 0
    for x in inputs:
        wanted, given = form.expected(x), run(x)
        largest = max(form.unit, float(np.abs(wanted - form.offset).max()))
        one = float(np.abs(given - wanted).max()) / largest if given.shape == wanted.shape else math.inf
        apart = float(np.maximum(apart, one))  # which keeps what is not a number
        levels = max(levels, form.levels(x))
        count += len(x)
        if form.classes and given.shape == wanted.shape:
            chosen = np.take_along_axis(wanted, given.argmax(1)[:, None], 1)[:, 0]
            astray += int((wanted.max(1) - chosen > _TIE).sum())
    if not apart <= _APART or astray:
        raise SkipwayError(
            f"{printable(path)}: what was exported gives other outputs than torch, by {apart:.2g} where {_APART:g} is "
            f"allowed, and another class for {astray} of {count} inputs; no file is left: keep to skipway's own files, "
            "and please report this"
        )
    write_file(path, data)
    return Exported(path, len(data), apart, levels)


def _in_onnxruntime(model: bytes, form: _OfPictures | _OfRows) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run([form.gives], {form.takes: x})[0]


def metadata(network: Network) -> dict[str, str]:
    """What a reader of the file has to know, as texts of ASCII that no terminal, log or web page stumbles over.

    Raises:
        InputError: they are too long.
    """
    assert network.spec is not None
    values = {"class_names": list(network.spec.class_names), "spec": network.spec.as_dict(), "plan": network.plan}
    found = {"skipway_version": version("skipway")}
    for name, value in values.items():
        text = json.dumps(from_json(to_json(value, f"the network's {name}")))
        for character in "<>&\x7f":
            text = text.replace(character, f"\\u{ord(character):04x}")
        found[name] = text
    if (size := sum(map(len, found.values()))) > _MOST_METADATA:
        raise InputError(
            f"class names, Spec and plan would take {size / 1e6:.0f} MB of the file, which holds at most "
            f"{_MOST_METADATA / 1e6:.0f} MB of them; shorten the names"
        )
    return found


def _as_it_is(source: Any, spec: Spec) -> np.ndarray:
    """A picture at its own size, upright, as (H, W, C) uint8."""
    prepare_image(source, spec)  # which says what is wrong with it
    if isinstance(source, np.ndarray):
        height, width = source.shape[:2]
        pixels = fitted_array(np.atleast_3d(source), size=max(height, width), channels=spec.channels, resize_mode="pad")
    else:
        data = read_picture_file(Path(source))
        found = decode(data, size=max(size_of(data)[:2]), channels=spec.channels, resize_mode="pad")
        height, width, pixels = found.height, found.width, found.pixels
    top, left = (len(pixels) - height) // 2, (len(pixels) - width) // 2  # without the bars
    return pixels[top : top + height, left : left + width]


def _made_up(spec: Spec) -> list[np.ndarray]:
    """Pictures of several sizes with soft parts and grain, like photographs."""
    draw, pictures = np.random.default_rng(0), []
    for down, across in _SIZES:
        height, width = (max(1, round(share * spec.presize)) for share in (down, across))
        coarse = torch.from_numpy(draw.uniform(0, 255, (1, spec.channels, height // 16 + 2, width // 16 + 2)))
        soft = F.interpolate(coarse, (height, width), mode="bilinear")[0].permute(1, 2, 0).numpy()
        pictures.append(np.clip(soft + draw.normal(0, 8, soft.shape), 0, 255).astype(np.uint8))
    return pictures


def _need_extra() -> None:
    try:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            import_module(name)
    except ImportError:
        raise MissingExtra("export", "writing an ONNX file") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Within it torch's exporters say nothing: what they have to say is of no use to whoever exports."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("torch.onnx", "torch.export"))}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
