"""Feature cache: outputs of the frozen layers of a network, computed once per image and stored in a file.

Frozen layers do not change, so their outputs (features) are computed once by the fastest engine. Each row of the file
has a checksum. If the process is killed, the next run with the same layers and images reuses all complete rows.

Shapes: N images; the features of an image are (D,), or (C, H, W) for a convolutional layer.
"""

import copy
import hashlib
import math
import os
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from skipway.data.images.loader import ImageBatches
from skipway.errors import InputError, Interrupted, StorageError, printable
from skipway.export.export_model import fuse
from skipway.export.openvino import engine as openvino_engine
from skipway.models.network import Network
from skipway.utils.atomic_files import allocate, free_bytes, make_folder, storing, sweep, temporary_path
from skipway.utils.cache_folder import default_cache_size, lock_shared, mark_used, trim_cache
from skipway.utils.console import Console
from skipway.utils.format_text import count_of
from skipway.utils.stop_signals import StopFlag

__all__ = [
    "FeatureCache",
    "FeatureFile",
    "choose_engine",
    "frozen_layers",
    "output_shape",
]

_BATCH_SIZE = 64
# Fewest images of 224 px for which OpenVINO makes up for its startup time; with AMX torch is nearly as fast.
_WORTH_OPENVINO, _WORTH_OPENVINO_WITH_AMX = 2_000, 12_000
_OPENVINO_SIZE = 224
_SUFFIX = ".features"
_STORED = {"bf16": ("<u2", torch.bfloat16), "fp32": ("<f4", torch.float32)}


def frozen_layers(network: Network, last: str | None = None) -> Network:
    """Return a network of the first layers of `network`, which share their modules.

    Args:
        network: network to split; it is not changed.
        last: name of the last layer; None for all layers before the head, which must be a final `nn.Linear`.

    Raises:
        InputError: the head is not a linear layer at the end.
    """
    names = list(network._modules)
    if last is None:
        if not names or names[-1] != "head" or type(network.get_submodule("head")) is not nn.Linear:
            raise InputError(
                f"cannot compute the features of {network.plan.get('name', 'this network')}: expected a final linear "
                'layer "head", got another end. Use --head train.'
            )
        last = names[-2]
    count = names.index(last) + 1
    trunk = copy.copy(network)
    trunk._modules = {name: network._modules[name] for name in names[:count]}
    trunk.forward_impl = None
    return trunk


def choose_engine(trunk: Network, count: int) -> str:
    """Return the engine that is fastest for `count` images: "openvino" or "torch".

    Args:
        trunk: frozen layers.
        count: number of images.
    """
    size, on_cpu = trunk.require_image_spec().size, all(p.device.type == "cpu" for p in trunk.parameters())
    enough = _WORTH_OPENVINO_WITH_AMX if torch.cpu._is_amx_tile_supported() else _WORTH_OPENVINO
    is_worth = on_cpu and count * (size / _OPENVINO_SIZE) ** 2 >= enough
    return "openvino" if is_worth and find_spec("openvino") is not None else "torch"


@dataclass
class FeatureCache:
    """Cache for the outputs of the first layers of `network` on the images of a run.

    Args:
        network: network whose first layers are frozen; it is not changed.
        precision: "bf16" or "fp32", for computing and storing.
        folder: folder of the cache files.
        fingerprint: hash of the decoded images in order.
        count: number of images of the run, by which the engine is selected.
        console: console for progress.
        stop: flag that interrupts the computation.
        last: name of the last frozen layer; None for all layers before the head.
    """

    network: Network
    precision: str
    folder: Path
    fingerprint: str
    count: int
    console: Console
    stop: StopFlag
    last: str | None = None

    def __post_init__(self) -> None:
        self.trunk = frozen_layers(self.network, self.last)
        self.shape = output_shape(self.trunk)
        self.digest = _digest(self.trunk)
        self.engine = choose_engine(self.trunk, self.count)
        self.model: nn.Module | None = None

    def features(self, batches: ImageBatches, ids: np.ndarray, view: int = 0) -> Tensor:
        """Return the features (N, *shape) of the images `ids` in float32, and compute those that are not cached.

        Args:
            batches: source of the inputs, with or without augmentation.
            ids: unique image indices, in the same order on every call.
            view: number of the augmented view, which seeds its random numbers together with seed and image.

        Raises:
            StorageError: the file does not fit on the disk.
            Interrupted: `stop` was set; computed rows are kept.
        """
        begin = time.monotonic()
        file, computed = self.stored(batches, ids, view)
        source = "cached"
        if computed:
            seconds = time.monotonic() - begin
            source = f"computed at {computed / max(seconds, 1e-9):,.0f} images/s with {self.engine}"
        disk, memory = file.nbytes / 1e6, 4 * len(ids) * math.prod(self.shape) / 1e6
        self.console.print(
            f"  features: {count_of(len(ids), 'image')} x {_times(self.shape)} in {self.precision}, {source}, "
            f"{disk:,.1f} MB in {printable(self.folder)}, {memory:,.1f} MB in memory"
        )
        return file.take(np.arange(len(ids))).float()

    def stored(self, batches: ImageBatches, ids: np.ndarray, view: int = 0) -> tuple["FeatureFile", int]:
        """Return the stored features and the number of computed rows; see `features` for the arguments."""
        rows = self._open(batches, ids, view)
        missing = _invalid_rows(rows)
        if len(missing):
            self._compute(batches, ids, view, rows=rows, missing=missing)
        return FeatureFile(rows, self.shape, _STORED[self.precision][1]), len(missing)

    def _open(self, batches: ImageBatches, ids: np.ndarray, view: int) -> np.ndarray:
        """Return the rows of the file, which is allocated if it is new."""
        stored, _ = _STORED[self.precision]
        row = np.dtype([("checksum", "<u4"), ("values", stored, (math.prod(self.shape),))])
        path = self.folder / f"{self._key(batches, ids, view)}{_SUFFIX}"
        needed = row.itemsize * len(ids)
        with storing(path, needed):
            make_folder(self.folder)
            is_plain = path.is_file() and not path.is_symlink()  # never write through a link
            if not is_plain or path.stat().st_size != needed:
                if (free := free_bytes(self.folder)) < needed:
                    raise StorageError(
                        f"cannot keep features in {printable(self.folder)}: expected {needed:,} bytes of free space, "
                        f"got {free:,}. Set SKIPWAY_CACHE to a folder on a larger disk, or use --head train."
                    )
                new_path = temporary_path(path)
                try:
                    with open(new_path, "xb") as file:
                        allocate(file, needed)
                    os.replace(new_path, path)  # truncating would break a mapping of another process
                finally:
                    new_path.unlink(missing_ok=True)
                sweep(self.folder, f".tmp-{path.name[:40]}-")
            mark_used(path)
            with open(path, "r+b") as file:
                lock_shared(file.fileno())  # until the mapping ends
                rows = np.memmap(file, row, "r+", shape=(len(ids),))
            trim_cache(1e9 * default_cache_size(), self.folder.parent)
            return rows

    def _key(self, batches: ImageBatches, ids: np.ndarray, view: int) -> str:
        """Return a hash of everything that the features depend on."""
        augmentation = batches.augmentation
        described = None if augmentation is None else (augmentation.parts, augmentation.seed, view)
        parts = (
            self.digest,
            self.fingerprint,
            hashlib.sha256(ids.tobytes()).hexdigest(),
            batches.factor.flatten().tolist(),
            batches.offset.flatten().tolist(),
            described,
            self.precision,
            self.engine,
            str(torch.__version__),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    def _model(self) -> nn.Module:
        """Return the frozen layers compiled for the engine; the first call takes seconds."""
        if self.model is None:
            if self.engine == "openvino":
                with suppress(InputError):  # a layer that OpenVINO cannot convert
                    self.model = openvino_engine(self.trunk, self.precision)
            if self.model is None:
                self.model = fuse(self.trunk, self.precision)
        return self.model

    def _compute(
        self, batches: ImageBatches, ids: np.ndarray, view: int, *, rows: np.ndarray, missing: np.ndarray
    ) -> None:
        """Compute and write the missing rows."""
        model = self._model()
        bar = self.console.bar("features", len(missing))
        with torch.inference_mode():
            for begin in range(0, len(missing), _BATCH_SIZE):
                if self.stop.requested:
                    raise Interrupted(
                        f"stopped by {self.stop.name} after computing {begin:,} of {len(missing):,} features, which "
                        "are cached. Continue with --resume."
                    )
                batch = missing[begin : begin + _BATCH_SIZE]
                outputs = model(batches.inputs(ids[batch], view)).flatten(1)
                _write_rows(rows, batch, outputs.to(_STORED[self.precision][1]).cpu())
                bar.at(begin + len(batch))
        bar.done()
        cast(np.memmap[Any, Any], rows).flush()


@dataclass(frozen=True)
class FeatureFile:
    """Features of images in a memory-mapped file.

    Attributes:
        rows: (N,) structured array of a checksum and the values as integers.
        shape: shape of the features of one image.
        dtype: dtype of the values.
    """

    rows: np.ndarray
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size of the file in bytes."""
        return self.rows.nbytes

    def take(self, indices: np.ndarray) -> Tensor:
        """Return a copy of the rows `indices` (n, *shape)."""
        values = np.ascontiguousarray(self.rows["values"][indices])
        if self.dtype == torch.bfloat16:
            values = values.view(np.int16)
        return torch.from_numpy(values).view(self.dtype).unflatten(1, self.shape)


def output_shape(trunk: Network) -> tuple[int, ...]:
    """Infer the output shape of the frozen layers for one image, without computing it."""
    twin = copy.deepcopy(trunk).to("meta").eval()
    with torch.no_grad():
        outputs: Tensor = twin(torch.zeros(1, *trunk.require_image_spec().input_shape, device="meta"))
    return tuple(outputs.shape[1:])


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape)


def _digest(module: nn.Module) -> str:
    """Return the SHA-256 of the names, shapes and values of all weights and buffers."""
    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_rows(rows: np.ndarray, places: np.ndarray, outputs: Tensor) -> None:
    """Write outputs and checksums; the checksum of a row is written last, so that it marks a complete row."""
    bits = outputs.contiguous().view(torch.int16 if outputs.dtype == torch.bfloat16 else torch.float32).numpy()
    values = bits.view(rows.dtype["values"].base)
    for place, value in zip(places, values, strict=True):
        rows["values"][place] = value
        rows["checksum"][place] = zlib.crc32(value.tobytes())


def _invalid_rows(rows: np.ndarray) -> np.ndarray:
    """Return the indices of rows that are missing or incomplete."""
    values, checksums = rows["values"], rows["checksum"]
    return np.array([i for i in range(len(rows)) if zlib.crc32(values[i].tobytes()) != checksums[i]], np.int64)
