"""Descriptions of an export: module, input and output names, dynamic axes, and the inputs that verify the file.

Every batch is a tuple of the arrays that the module takes: of two for a model with feature columns.

Shapes: N inputs, (H, W) image size, (S, S) input size of the network, C channels, K outputs, F encoded values of a
table row.
"""

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.data.image_spec import Spec
from skipway.data.sources.decode import decode, decode_array, header_of, size_of
from skipway.data.sources.read_bytes import read_image_file
from skipway.data.tables.table_spec import TableSpec
from skipway.data.value_range import levels_of
from skipway.errors import InputError
from skipway.export.fused_convolution import Convolution
from skipway.export.preprocessing import Preparation
from skipway.models.network import Network
from skipway.models.network_outputs import as_table, pixel_outputs, prepare_image, require_finite
from skipway.nn.chain import Chain

__all__ = ["Description", "describe_export", "plain_copy"]

_BATCH_SIZE = 7  # inputs of the batch that verifies the file
_MAX_SIDE = 1024  # pixels; a batch of larger images would take gigabytes
_RANDOM_ROWS = 64
_RANDOM_SIZES = ((1, 1), (0.6, 0.9), (1.5, 1.1), (2.1, 5.2))  # sizes of random images relative to the presize


def plain_copy(network: nn.Module) -> nn.Module:
    """Copy a network for export: float32, on the CPU, in evaluation mode, without custom kernels.

    Raises:
        InputError: The network is fused.
    """
    if any(isinstance(module, Convolution) for module in network.modules()):
        raise InputError("export: expected the original network, got a fused one. Export the network before fusing it.")
    with torch.inference_mode(False):
        twin = copy.deepcopy(network).cpu().float().eval()
    for module in twin.modules():
        if isinstance(module, Chain):
            module.forward_impl = None
    return twin


class _Images(nn.Module):
    """Preprocessing, network and `Spec.values`: images (N, H, W, C) -> probabilities or numbers (N, K).

    The images are uint8, or float32 in their own values if the Spec has a value range. A network with feature columns
    takes their encoded rows (N, F) too. Without a head, the outputs are those of the network, its features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: Spec, has_head: bool = True):
        super().__init__()
        self.prepare, self.network, self.spec, self.has_head = Preparation(spec), network, spec, has_head
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(spec, name)).view(1, -1, 1, 1))

    def normalize(self, x: Tensor) -> Tensor:
        """Return preprocessed, normalized images (N, C, S, S)."""
        return (self.prepare(x) / 255 - self.mean) / self.std

    def forward(self, x: Tensor, *rows: Tensor) -> Tensor:
        """Return probabilities or numbers (N, K), as `pixel_outputs` does, or features without a head."""
        outputs: Tensor = self.network(self.normalize(x), *rows)
        return self.spec.values(outputs) if self.has_head else outputs


class _Rows(nn.Module):
    """Network and `TableSpec.values`: encoded rows (N, F) -> probabilities or numbers (N, K)."""

    def __init__(self, network: nn.Module, spec: TableSpec):
        super().__init__()
        self.network, self.spec = network, spec

    def forward(self, x: Tensor) -> Tensor:
        """Return probabilities or numbers (N, K), as `Network.row_outputs` does."""
        values: Tensor = self.spec.values(self.network(x))
        return values


class _ImageExport:
    """Export of an image network; the axes in `dynamic` have no fixed size.

    Attributes:
        meaning: kind of the outputs: "probabilities", "numbers", "features", or "outputs" of the network alone.
        classes: True if the largest output is that of the predicted class.
    """

    def __init__(self, network: Network, spec: Spec, raw: bool):
        self.network, self.spec, self.raw = network, spec, raw
        self.meaning, self.classes = "outputs" if raw else _meaning(network), _has_classes(network)
        with_preparation = _Images(network, spec, has_head=self.meaning != "features")
        self.prepare, self.normalize = with_preparation.prepare, with_preparation.normalize
        self.module: nn.Module = network if raw else with_preparation
        self.output_name = self.meaning
        self.input_names: tuple[str, ...] = ("inputs" if raw else "images",)
        self.dynamic: tuple[dict[int, str], ...] = ({0: "N"} if raw else {0: "N", 1: "H", 2: "W"},)
        # Tracing fixes an axis of size 1 and ties axes of equal size, so the sizes are distinct and above 1.
        dtype = torch.float32 if spec.value_range else torch.uint8
        any_size = torch.zeros(3, spec.presize + 5, spec.presize + 7, spec.channels, dtype=dtype)
        self.examples: tuple[Tensor, ...] = (torch.zeros(3, *spec.input_shape) if raw else any_size,)
        if spec.feature_columns:
            self.input_names += ("rows",)
            self.dynamic += ({0: "N"},)
            self.examples += (torch.zeros(3, *spec.row_spec.input_shape),)

    def inputs(self, check: Any) -> list[tuple[np.ndarray, ...]]:
        """Return each check image as a batch of one, then a batch of seven shifted copies of the smallest.

        The rows of feature columns are random.
        """
        sources = [check] if isinstance(check, str | os.PathLike) else check
        images = [_full_size_image(source, self.spec) for source in sources or ()] or _random_images(self.spec)
        smallest = min(images, key=lambda image: image.size)[:_MAX_SIDE, :_MAX_SIDE]
        batches = [*(p[None] for p in images), np.stack([np.roll(smallest, 3 * i, 1) for i in range(_BATCH_SIZE)])]
        if self.raw:
            batches = [self.normalize(torch.from_numpy(batch)).numpy() for batch in batches]
        if not self.spec.feature_columns:
            return [(batch,) for batch in batches]
        rows = self.spec.row_spec.random_rows(len(batches) + _BATCH_SIZE)
        return [(batch, rows[i : i + len(batch)]) for i, batch in enumerate(batches)]

    def expected(self, x: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the outputs of the network in torch."""
        with torch.no_grad():
            if self.meaning in ("outputs", "features"):
                return self.module(*(torch.from_numpy(array) for array in (x, rows) if array is not None)).numpy()
            pixels = list(self.prepare(torch.from_numpy(x)).permute(0, 2, 3, 1).numpy())
            return require_finite(pixel_outputs(self.network, self.spec, pixels, rows=rows))

    def levels(self, x: np.ndarray, rows: np.ndarray | None = None) -> float:
        """Return the largest pixel difference between exported and `predict` preprocessing, in gray levels of 256."""
        if self.raw:
            return 0.0
        pixels = self.prepare(torch.from_numpy(x[:1]))[0].permute(1, 2, 0).numpy()
        return float(np.abs(pixels - levels_of(prepare_image(x[0], self.spec))).max())


class _TableExport:
    """Export of a network for tables."""

    def __init__(self, network: Network, spec: TableSpec, raw: bool):
        self.network, self.spec = network, spec
        self.meaning, self.classes = "outputs" if raw else _meaning(network), _has_classes(network)
        self.module: nn.Module = _Rows(network, spec) if self._has_values else network
        self.input_names, self.output_name = ("inputs" if raw else "rows",), self.meaning
        self.dynamic: tuple[dict[int, str], ...] = ({0: "N"},)
        self.examples: tuple[Tensor, ...] = (torch.zeros(3, *spec.input_shape),)

    def inputs(self, check: Any) -> list[tuple[np.ndarray, ...]]:
        """Return three batches: the first row, seven rows, and all rows."""
        x = np.empty(0) if check is None else self.spec.encode_strict(as_table(check)).x
        x = x if len(x) else self.spec.random_rows(_RANDOM_ROWS)
        return [(x[:1],), (x[np.arange(_BATCH_SIZE) % len(x)],), (x,)]

    @property
    def _has_values(self) -> bool:
        return self.meaning not in ("outputs", "features")

    def expected(self, x: np.ndarray) -> np.ndarray:
        """Return the outputs of the network in torch."""
        if self._has_values:
            return self.network.row_outputs(x)
        with torch.no_grad():
            return self.network(torch.from_numpy(x)).numpy()

    def levels(self, x: np.ndarray) -> float:
        """Return 0, because rows have no pixels."""
        return 0.0


Description = _ImageExport | _TableExport


def describe_export(network: Network, raw: bool) -> Description:
    """Return the export description for a copy of `network`, based on its Spec.

    Raises:
        InputError: The network has no Spec or is fused.
    """
    if not isinstance(network, Network) or network.spec is None:
        raise InputError(
            "export: expected a Network with a Spec (its inputs and outputs), got none. Load it from a run or a "
            "skipway file, or set its .spec."
        )
    twin = plain_copy(network)
    assert isinstance(twin, Network)
    if isinstance(network.spec, TableSpec):
        return _TableExport(twin, network.spec, raw)
    return _ImageExport(twin, network.spec, raw)


def _has_classes(network: Network) -> bool:
    assert network.spec is not None
    return network.plan.get("num_classes") != 0 and network.spec.task == "classification"


def _meaning(network: Network) -> str:
    """Return the kind of the outputs of `network` after `OutputSpec.values`: an output name of the file."""
    assert network.spec is not None
    if network.plan.get("num_classes") == 0:
        return "features"
    return "numbers" if network.spec.task == "regression" else "probabilities"


def _full_size_image(source: Any, spec: Spec) -> np.ndarray:
    """Return an image at its original size, upright, as (H, W, C) uint8, or as float32 values of a deep model."""
    prepare_image(source, spec, on_note=lambda note: None)  # raises an error for an unusable image
    target: dict[str, Any] = {"channels": spec.channels, "resize_mode": "pad", "value_range": spec.value_range}
    if isinstance(source, np.ndarray):
        header = header_of(source)
        image = decode_array(source, size=max(header.width, header.height), **target)
    else:
        data = read_image_file(Path(source))
        image = decode(data, size=max(size_of(data)[:2]), **target)
    height, width, pixels = image.height, image.width, image.pixels
    top, left = (len(pixels) - height) // 2, (len(pixels) - width) // 2  # removes the padding
    return _as_input(pixels[top : top + height, left : left + width], spec)


def _as_input(pixels: np.ndarray, spec: Spec) -> np.ndarray:
    """Convert stored pixels (H, W, C) or levels to the input of the exported graph."""
    if not spec.value_range:
        return pixels
    low, high = np.array(spec.value_range).T
    return (low + levels_of(pixels).astype(np.float64) * ((high - low) / 255)).astype(np.float32)


def _random_images(spec: Spec) -> list[np.ndarray]:
    """Return random images of several sizes with smooth regions and grain, like photographs."""
    generator, images = np.random.default_rng(0), []
    for down, across in _RANDOM_SIZES:
        height, width = (max(1, round(share * spec.presize)) for share in (down, across))
        coarse = torch.from_numpy(generator.uniform(0, 255, (1, spec.channels, height // 16 + 2, width // 16 + 2)))
        soft = F.interpolate(coarse, (height, width), mode="bilinear")[0].permute(1, 2, 0).numpy()
        pixels = np.clip(soft + generator.normal(0, 8, soft.shape), 0, 255)
        images.append(_as_input(pixels if spec.value_range else pixels.astype(np.uint8), spec))
    return images
