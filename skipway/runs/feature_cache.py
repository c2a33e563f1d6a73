"""Outputs of the frozen layers of a network, computed once for each image and kept in a file.

The layers before the head do not change while they are frozen, so their outputs for an image, its features, are
computed once by the quickest engine. Each row of the file has a checksum: whatever stops the process, the rows that are
whole are used by the next run with the same layers and images.

Shapes: N images, D features.
"""

import copy
import hashlib
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
from skipway.utils.atomic_files import allocate, free_bytes, make_folder, storing
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag

__all__ = [
    "FeatureCache",
    "cache_folder",
    "choose_engine",
    "frozen_layers",
]

_BATCH_SIZE = 64
# Images of 224 pixels that make up for the seconds that OpenVINO takes to begin: with AMX torch is nearly as fast.
_WORTH_OPENVINO, _WORTH_OPENVINO_WITH_AMX = 2_000, 12_000
_OPENVINO_SIZE = 224
_MAX_BYTES = 4 << 30  # of all files in the folder: older ones are removed
_SUFFIX = ".features"
_STORED = {"bf16": ("<u2", torch.bfloat16), "fp32": ("<f4", torch.float32)}


def cache_folder(run_folder: Path) -> Path:
    """Return where features are kept: in SKIPWAY_CACHE, or else next to the run folders."""
    folder = os.environ.get("SKIPWAY_CACHE")
    if folder:
        return Path(folder) / "features"
    parent = run_folder.parent
    is_fold = (parent / "config.yaml").is_file()  # of a cross-validation, whose folder is next to those of other runs
    return (parent.parent if is_fold else parent) / ".cache"


def frozen_layers(network: Network) -> Network:
    """Return the layers of `network` before its head, which must be a linear layer at its end.

    Raises:
        InputError: the network has another head.
    """
    names = list(network._modules)
    if not names or names[-1] != "head" or type(network.get_submodule("head")) is not nn.Linear:
        raise InputError(
            f"cannot compute the features of {network.plan.get('name', 'this network')}: expected a linear layer "
            '"head" at its end. Use --head train.'
        )
    trunk = copy.copy(network)
    trunk._modules = {name: layer for name, layer in network._modules.items() if name != "head"}
    return trunk


def choose_engine(trunk: Network, count: int) -> str:
    """Return the name of the engine that is done first with `count` images; the same on every call."""
    size, on_cpu = trunk.require_image_spec().size, all(p.device.type == "cpu" for p in trunk.parameters())
    enough = _WORTH_OPENVINO_WITH_AMX if torch.cpu._is_amx_tile_supported() else _WORTH_OPENVINO
    is_worth = on_cpu and count * (size / _OPENVINO_SIZE) ** 2 >= enough
    return "openvino" if is_worth and find_spec("openvino") is not None else "torch"


@dataclass
class FeatureCache:
    """Features of the images of a run by the layers of `network` before its head.

    Attributes:
        network: it stays as it is.
        precision: "bf16" or "fp32", in which features are computed and kept.
        folder: where files are kept.
        fingerprint: of the decoded images in their order.
        count: images of the run, by which the engine is chosen.
    """

    network: Network
    precision: str
    folder: Path
    fingerprint: str
    count: int
    console: Console
    stop: StopFlag

    def __post_init__(self) -> None:
        self.trunk = frozen_layers(self.network)
        self.dim = cast(nn.Linear, self.network.head).in_features
        self.digest = _digest(self.trunk)
        self.engine = choose_engine(self.trunk, self.count)
        self.model: nn.Module | None = None

    def features(self, batches: ImageBatches, ids: np.ndarray, view: int = 0) -> Tensor:
        """Return the features (N, D) of the images `ids` in float32; those that are not in the file are computed.

        Args:
            batches: makes the inputs: as evaluation has them, or augmented.
            ids: the images, each once, always in the same order.
            view: number of the augmented view, which with the seed and the image sets its random numbers.

        Raises:
            StorageError: the file does not fit on the disk.
            Interrupted: `stop` was set; the rows that are computed are kept.
        """
        rows, path = self._open(batches, ids, view)
        missing = _invalid_rows(rows)
        begin = time.monotonic()
        if len(missing):
            self._compute(batches, ids, view, rows=rows, missing=missing)
        seconds = time.monotonic() - begin
        source = "found"
        if len(missing):
            source = f"{len(missing) / max(seconds, 1e-9):,.0f} images/s by {self.engine}"
        disk, memory = path.stat().st_size / 1e6, 4 * len(ids) * self.dim / 1e6
        self.console.print(
            f"  features: {len(ids):,} images x {self.dim:,} in {self.precision}, {source}, {disk:,.1f} MB in "
            f"{printable(self.folder)}, {memory:,.1f} MB of memory"
        )
        values = rows["values"]
        if self.precision == "bf16":
            return torch.from_numpy(np.array(values).view(np.int16)).view(torch.bfloat16).float()
        return torch.from_numpy(np.array(values, np.float32))

    def _open(self, batches: ImageBatches, ids: np.ndarray, view: int) -> tuple[np.ndarray, Path]:
        """Return the rows of the file, and its path; a new file has room for all rows."""
        stored, _ = _STORED[self.precision]
        row = np.dtype([("checksum", "<u4"), ("values", stored, (self.dim,))])
        path = self.folder / f"{self._key(batches, ids, view)}{_SUFFIX}"
        needed = row.itemsize * len(ids)
        with storing(path, needed):
            make_folder(self.folder)
            present = path.stat().st_size if path.is_file() else 0
            if present != needed:
                if (free := free_bytes(self.folder)) < needed:
                    raise StorageError(
                        f"cannot keep features in {printable(self.folder)}: expected {needed:,} bytes of free space, "
                        f"got {free:,}. Set SKIPWAY_CACHE to a folder on a larger disk, or use --head train."
                    )
                with open(path, "wb") as file:
                    allocate(file, needed)
            os.utime(path)
            _remove_oldest(self.folder, path)
            return np.memmap(path, row, "r+", shape=(len(ids),)), path

    def _key(self, batches: ImageBatches, ids: np.ndarray, view: int) -> str:
        """Return the name of what the features depend on."""
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
        """Return the frozen layers as the engine computes them, which takes a while to be made."""
        if self.model is None:
            if self.engine == "openvino":
                with suppress(InputError):  # a layer that it cannot convert
                    self.model = openvino_engine(self.trunk, self.precision)
            if self.model is None:
                self.model = fuse(self.trunk, self.precision)
        return self.model

    def _compute(
        self, batches: ImageBatches, ids: np.ndarray, view: int, *, rows: np.ndarray, missing: np.ndarray
    ) -> None:
        """Compute the rows that are missing, and write them."""
        model = self._model()
        bar = self.console.bar("features", len(missing))
        with torch.inference_mode():
            for begin in range(0, len(missing), _BATCH_SIZE):
                if self.stop.requested:
                    raise Interrupted(
                        f"stopped by {self.stop.name} while computing features. {begin:,} of {len(missing):,} are "
                        "kept; continue with --resume."
                    )
                batch = missing[begin : begin + _BATCH_SIZE]
                outputs = model(batches.pictures(ids[batch], view)).flatten(1)
                _write_rows(rows, batch, outputs.to(_STORED[self.precision][1]).cpu())
                bar.at(begin + len(batch))
        bar.done()
        cast(np.memmap[Any, Any], rows).flush()


def _digest(module: nn.Module) -> str:
    """Return a SHA-256 over the names, shapes and values of the weights and buffers."""
    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_rows(rows: np.ndarray, places: np.ndarray, outputs: Tensor) -> None:
    """Write outputs and their checksums, the checksum of each row last."""
    bits = outputs.contiguous().view(torch.int16 if outputs.dtype == torch.bfloat16 else torch.float32).numpy()
    values = bits.view(rows.dtype["values"].base)
    for place, value in zip(places, values, strict=True):
        rows["values"][place] = value
        rows["checksum"][place] = zlib.crc32(value.tobytes())


def _invalid_rows(rows: np.ndarray) -> np.ndarray:
    """Return the indices of the rows that were never written, or not whole."""
    values, checksums = rows["values"], rows["checksum"]
    return np.array([i for i in range(len(rows)) if zlib.crc32(values[i].tobytes()) != checksums[i]], np.int64)


def _remove_oldest(folder: Path, current: Path) -> None:
    """Remove the files that were used longest ago, so that all together stay below a limit."""
    with suppress(OSError):  # another run may tidy as well
        others = [path for path in folder.glob(f"*{_SUFFIX}") if path != current]
        total = current.stat().st_size
        for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
            total += path.stat().st_size
            if total > _MAX_BYTES:
                path.unlink()
