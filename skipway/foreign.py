"""Foreign files of weights, read as tensors and nothing else: what is in them is never run.

safetensors and Flax's msgpack are data. torch's pickles are programs: they are read by torch's restricted unpickler, in
a process of its own that has limits on memory and time and may not write, and that hands back safetensors.
"""

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from skipway import foreign_child
from skipway.errors import InputError, printable
from skipway.training.checkpoint import refuse_more
from skipway.training.durable import UNKNOWN, looks_like

__all__ = ["read_state"]

_SECONDS = 300  # of wall time for one file
_LEAST_MEGABYTES = 3000  # of address space: torch itself needs 700
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how torch's files before 1.6 begin
_MAX_HEADER = 16 * 2**20
_TREES = ("params", "batch_stats")  # of a Flax checkpoint, what is the network
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    )
}
_SUPPORTED = "safetensors, torch's .pth, .pt and .th files of plain tensors, and Flax's msgpack are read"


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors by name of a file that another library wrote, recognised by its content.

    Of a training script's file, what stands under "state_dict" or "model" is taken; optimisers, epochs and the like are
    left out. Flax's trees have their names joined by "/".

    Raises:
        InputError: the file is damaged, of a kind that is not read here, or holds anything that would have to be run.
    """
    path, where = Path(path), printable(path)
    if not path.is_file():  # a pipe would wait for ever
        kind = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "is not there"
        raise InputError(f"{where}: {kind}; give a file of weights")
    try:
        with open(path, "rb") as file:
            start = file.read(32)
            if start[8:9] == b"{":
                return _safetensors(file, where)
            if start.startswith(_LEGACY) or (start.startswith(b"PK") and _is_torch(path)):
                return _from_child(path, where)
            found = looks_like(file)
            if found == UNKNOWN and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):  # begins as a tree of names
                file.seek(0)
                return _msgpack(file.read(), where)
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}; check its disk and your rights") from error
    raise InputError(f"{where}: {found}; {_SUPPORTED}: save the weights as one of them")


def _safetensors(file: BinaryIO, where: str) -> dict[str, Tensor]:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    text = file.read(min(length, _MAX_HEADER))
    refuse_more(where, length, text)
    file.seek(0)
    try:
        return safetensors.torch.load(file.read())
    except Exception as error:  # safetensors.torch raises what it likes
        raise InputError(f"{where}: is damaged: {printable(error)}; copy or download it again") from error


def _is_torch(path: Path) -> bool:
    """Whether a zip file is one of torch.save, and not TorchScript, an exported program, Keras or numpy."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return True  # torch may still say what is wrong with it
    scripted = any("/code/" in name or name.endswith("constants.pkl") for name in names)
    return any(name.endswith("/data.pkl") for name in names) and not scripted


def _from_child(path: Path, where: str) -> dict[str, Tensor]:
    megabytes = _LEAST_MEGABYTES + 6 * (path.stat().st_size >> 20)
    command = [sys.executable, "-I", foreign_child.__file__, str(path.absolute()), str(megabytes)]
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT", "TEMP") if name in os.environ}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, cwd=path.absolute().anchor,
            env={**kept, "OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise InputError(f"{where}: was not read within {_SECONDS} seconds; save the weights as safetensors") from None
    if done.returncode:
        told = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = told[-1] if told and done.returncode == 1 else f"the reading process ended with {done.returncode}"
        raise InputError(
            f"{where}: cannot be read as plain tensors: {printable(reason)}; save the weights anew with "
            "torch.save(network.state_dict(), path) or as safetensors"
        )
    try:
        return safetensors.torch.load(done.stdout)
    except Exception as error:  # safetensors.torch raises what it likes
        raise InputError(f"{where}: is damaged: {printable(error)}; copy or download it again") from error


def _msgpack(data: bytes, where: str) -> dict[str, Tensor]:
    try:
        tree = msgpack.unpackb(data, ext_hook=_array, raw=False, strict_map_key=False)
        if not isinstance(tree, dict):
            raise ValueError("it is no tree of names")
        kept = {name: tree[name] for name in _TREES if name in tree} or tree
        return dict(_leaves(kept, ""))
    except (
        ValueError,
        TypeError,
        KeyError,
        OverflowError,
        RecursionError,
        RuntimeError,
        msgpack.UnpackException,
    ) as error:
        raise InputError(
            f"{where}: is no Flax checkpoint of plain arrays: {printable(error)[:200]}; write it with "
            "flax.serialization.to_bytes"
        ) from error


def _array(code: int, data: bytes) -> Tensor:
    """Flax's arrays (1) and single numbers (3): the shape, the dtype's name and the bytes, in msgpack again."""
    if code not in (1, 3):
        raise ValueError(f"it holds values of kind {code}")
    shape, dtype, content = msgpack.unpackb(data, raw=False)
    if dtype not in _DTYPES:
        raise ValueError(f"it holds values of dtype {dtype}")
    wanted = _DTYPES[dtype].itemsize
    for size in shape:
        if not isinstance(size, int) or size < 0:
            raise ValueError(f"it holds an array of shape {shape}")
        wanted *= size
    if len(content) != wanted:
        raise ValueError(f"an array of shape {tuple(shape)} has {len(content)} bytes, not {wanted}")
    flat = torch.from_numpy(np.frombuffer(content, np.uint8).copy()).view(_DTYPES[dtype]) if content else torch.empty(0)
    return flat.reshape(tuple(shape)).to(_DTYPES[dtype])


def _leaves(tree: dict[Any, Any], above: str) -> Iterator[tuple[str, Tensor]]:
    if "__msgpack_chunked_array__" in tree:  # Flax writes arrays of more than a GiB in pieces
        chunks, shape = tree["chunks"], tree["shape"]
        pieces = [chunks[str(i)].flatten() for i in range(len(chunks))]
        yield above.removesuffix("/"), torch.cat(pieces).reshape([int(shape[str(i)]) for i in range(len(shape))])
        return
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}/")
        elif isinstance(value, Tensor):
            yield f"{above}{name}", value
