"""Safe reader of other libraries' checkpoints: it returns tensors and never runs code from a file.

safetensors and Flax's msgpack are plain data. torch's pickles are programs. torch's restricted unpickler reads them in
a separate process (`unpickle_worker`) with limits on memory and time and without write access. This process returns
safetensors. No option disables it.
"""

import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgpack
import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from skipway.errors import InputError, printable
from skipway.training.checkpoint import check_header_size
from skipway.utils.atomic_files import from_json
from skipway.utils.file_formats import UNKNOWN, looks_like
from skipway.weights import unpickle_worker

__all__ = ["ForeignFile", "read_file", "read_state"]

_MAX_BYTES = 8 * 2**30  # file size; the largest model here has 3.3 GB, or 10 with its optimizer state
_SECONDS = 300  # wall time for one file
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # first bytes of torch files before 1.6
_MAX_HEADER = 16 * 2**20
_MAX_VALUES = 200_000  # names, arrays and numbers in a Flax checkpoint
_MAX_NAME = 1000  # characters of a name
_MAX_NOTE = 300  # characters
_MAX_AXES = 64
_TREES = ("params", "batch_stats")  # the collections of a Flax checkpoint with network weights
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    )
}
_SUPPORTED = "safetensors, torch files (.pth, .pt, .th) of plain tensors, or Flax msgpack"
_FIX = "Save the weights again with torch.save(network.state_dict(), path) or as safetensors"


class ForeignFile(NamedTuple):
    """Tensors of a checkpoint by name, and a note if it had several state dicts."""

    tensors: dict[str, Tensor]
    note: str = ""


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of another library's checkpoint by name, on the CPU. The content determines the format.

    In the file of a training script, the first of these entries with tensors is read: "state_dict", "model", "net",
    "network", "model_state_dict", "model_state", "weights", "student", and after them the averaged copies:
    "state_dict_ema", "model_ema", "model_ema_state_dict", "ema_state_dict", "ema_model", "ema", "teacher". Optimizer
    state and other entries are ignored. Names are not changed, so they may start with "module.". Flax names are joined
    by "/"; in a training state only "params" and "batch_stats" are read.

    Args:
        path: safetensors, torch (.pth, .pt, .th) or Flax msgpack file.

    Raises:
        InputError: The file is damaged, has an unsupported format, or contains code.
    """
    return read_file(path).tensors


def read_file(path: str | os.PathLike[str]) -> ForeignFile:
    """Read a checkpoint as `read_state` does, with a note if it has several state dicts.

    Raises:
        InputError: The file is damaged, has an unsupported format, or contains code.
    """
    path, where = Path(path), printable(path)
    if not path.is_file():  # opening a pipe would block forever
        if path.is_dir():
            kind = "it is a folder"
        else:
            kind = "it is not a regular file" if path.exists() else "no such file"
        raise InputError(f"cannot read {where}: {kind}. Pass a file of weights.")
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise InputError(
                f"{where}: expected at most {_MAX_BYTES} bytes, got {size}. Save the weights without optimizer state."
            )
        with open(path, "rb") as file:
            start = file.read(32)
            if start[8:9] == b"{":
                return ForeignFile(_safetensors(file, size, where))
            if start.startswith((_LEGACY, b"PK")) and (content := _read_in_process(path, size, where)) is not None:
                return content
            format_name = looks_like(file)
            # These bytes start a msgpack map.
            if format_name == UNKNOWN and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):
                file.seek(0)
                return ForeignFile(_msgpack(file.read(), where))
    except OSError as error:
        raise InputError(f"cannot read {where}: {error.strerror}. Check the disk and the file permissions.") from error
    except MemoryError:
        raise InputError(f"cannot read {where}: out of memory. Close other programs.") from None
    format_name = "has an unknown format" if format_name == UNKNOWN else format_name
    raise InputError(f"{where}: expected {_SUPPORTED}, but it {format_name}. Convert it to safetensors.")


def _safetensors(file: BinaryIO, size: int, where: str) -> dict[str, Tensor]:
    """Return all tensors in the order of the header, after verifying the header and the file size."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    text = file.read(min(length, _MAX_HEADER))
    check_header_size(where, length, text)
    try:
        header = from_json(text)
        header.pop("__metadata__", None)
        if not header:
            raise ValueError("it has no tensors")
        expected_size = 8 + length + max(entry["data_offsets"][1] for entry in header.values())
        if size != expected_size:
            raise ValueError(f"expected {expected_size} bytes from its header, got {size}")
        file.seek(0)
        tensors = safetensors.torch.load(file.read())
        return {name: tensors[name] for name in header}
    except (OSError, MemoryError):
        raise
    except Exception as error:  # safetensors.torch raises many types
        raise InputError(
            f"cannot read {where}: damaged: {printable(error)[:300]}. Copy or download it again."
        ) from error


def _read_in_process(path: Path, size: int, where: str) -> ForeignFile | None:
    """Read a torch file in a separate process; return None for a zip file of another tool."""
    if unpickle_worker.resource is None:
        warnings.warn(
            f"{where}: this platform cannot limit the memory and CPU time of the process that reads the file. Use a "
            ".safetensors file, which needs no such process.",
            stacklevel=3,
        )
    installed = sorted({str(Path(str(package.__file__)).resolve().parents[1]) for package in (torch, safetensors)})
    command = [sys.executable, "-I", "-W", "ignore", unpickle_worker.__file__, str(path.absolute()), *installed]
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT", "TEMP") if name in os.environ}
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=path.absolute().anchor,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    late = threading.Event()

    def stop() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(_SECONDS, stop)
    timer.daemon = True
    timer.start()
    error_text, content = "", ForeignFile({})
    with child:
        assert child.stdout is not None and child.stderr is not None
        try:
            content = _receive(child.stdout, 2 * size + 2**26)
        except Exception as error:  # safetensors.torch raises many types
            error_text = f"the output of the reading process is damaged: {printable(error)[:300]}"
            child.kill()
        stderr_lines = child.stderr.read().decode("utf-8", "replace").strip().splitlines()
        status = child.wait()
        timer.cancel()
    if late.is_set():
        raise InputError(f"cannot read {where} within {_SECONDS} seconds. Save the weights as safetensors.")
    if status == unpickle_worker.OTHER_ZIP:
        return None
    if error_text or status or not content.tensors:
        reason = error_text or (stderr_lines[-1] if stderr_lines and status == 1 else _exit_reason(status))
        raise InputError(f"cannot read {where} as plain tensors: {printable(reason)}. {_FIX}.")
    return content


def _receive(pipe: Any, limit: int) -> ForeignFile:
    """Return the tensors that the untrusted child process writes, and its note, reading at most `limit` bytes."""
    tensors: dict[str, Tensor] = {}
    note = ""
    while head := pipe.read(8):
        length = int.from_bytes(head, "little")
        limit -= length
        if limit < 0 or len(content := pipe.read(length)) != length:
            raise ValueError("it is too long" if limit < 0 else "it is cut short")
        part = safetensors.torch.load(content)
        note = note if tensors else _note(content)
        tensors |= part
    return ForeignFile(tensors, note)


def _note(content: bytes) -> str:
    """Return the note in the header of the first tensor, as one printable line."""
    header = from_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return printable(header.get("__metadata__", {}).get(unpickle_worker.NOTE, ""))[:_MAX_NOTE]


def _exit_reason(status: int) -> str:
    """Describe the exit of a process that printed no reason."""
    if status == -getattr(signal, "SIGXCPU", 0):
        return "it needs too much CPU time for its size"
    known = status < 0 and -status in {number.value for number in signal.Signals}
    return f"the reading process ended with {signal.Signals(-status).name if known else status}"


def _msgpack(data: bytes, where: str) -> dict[str, Tensor]:
    try:
        tree = _Unpacker().unpack(data)
        if not isinstance(tree, dict):
            raise ValueError("it is not a mapping")
        if isinstance(inner := tree.get("model_state"), dict):  # older Flax examples store batch_stats here
            tree = {**tree, **inner}
        state = dict(_leaves({name: tree[name] for name in _TREES if name in tree} or tree, ""))
        if not state:
            raise ValueError("it has no arrays")
        return state
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        OverflowError,
        msgpack.UnpackException,
    ) as error:
        reason = printable(error)[:200] or type(error).__name__
        raise InputError(
            f"cannot read {where} as a Flax checkpoint of plain arrays: {reason}. Write it with "
            "flax.serialization.to_bytes."
        ) from error


class _Unpacker:
    """Unpack one msgpack file with a limit on values, because one byte can allocate a hundred."""

    def __init__(self) -> None:
        self.left = _MAX_VALUES

    def unpack(self, data: bytes, **limits: int) -> Any:
        """Return the value in `data`; `limits` are set for the parts of an array."""
        limits = limits or {"max_array_len": _MAX_VALUES, "max_map_len": _MAX_VALUES}
        return msgpack.unpackb(
            data, raw=False, ext_hook=self._array, list_hook=self._count, object_pairs_hook=self._unique_names, **limits
        )

    def _count(self, values: list[Any]) -> list[Any]:
        self.left -= 1 + len(values)
        if self.left < 0:
            raise ValueError(f"it has more than {_MAX_VALUES} values")
        return values

    def _unique_names(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        tree = dict(self._count(pairs))
        if len(tree) < len(pairs):
            raise ValueError("it has two values of one name")
        if not all(isinstance(name, str) and len(name) <= _MAX_NAME for name in tree):
            raise ValueError(f"expected names of at most {_MAX_NAME} characters, got a longer one or another type")
        return tree

    def _array(self, code: int, data: bytes) -> Tensor:
        """Decode a Flax array (1) or scalar (3), which is shape, dtype name and bytes in nested msgpack."""
        if code not in (1, 3):
            raise ValueError(f"it has values of the unknown type {code}")
        shape, dtype, content = self.unpack(data, max_array_len=_MAX_AXES, max_map_len=0, max_ext_len=0)
        if dtype not in _DTYPES:
            raise ValueError(f"it has values of the unsupported dtype {printable(dtype)[:40]}")
        expected_bytes = _DTYPES[dtype].itemsize
        for size in shape:
            if not isinstance(size, int) or size < 0:
                raise ValueError(f"it has an array of the invalid shape {printable(shape)[:80]}")
            expected_bytes *= size
        if len(content) != expected_bytes:
            raise ValueError(f"an array of shape {tuple(shape)}: expected {expected_bytes} bytes, got {len(content)}")
        flat = (
            torch.from_numpy(np.frombuffer(content, np.uint8).copy()) if content else torch.empty(0, dtype=torch.uint8)
        )
        return flat.view(_DTYPES[dtype]).reshape(tuple(shape))


def _leaves(tree: dict[Any, Any], above: str) -> Iterator[tuple[str, Tensor]]:
    if "__msgpack_chunked_array__" in tree:  # Flax splits arrays of more than 1 GiB
        chunks, shape = tree["chunks"], tree["shape"]
        pieces = [chunks[str(i)].flatten() for i in range(len(chunks))]
        yield above.removesuffix("/"), torch.cat(pieces).reshape([int(shape[str(i)]) for i in range(len(shape))])
        return
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}/")
        elif isinstance(value, Tensor):
            yield f"{above}{name}", value
