"""Foreign files of weights, read as tensors and nothing else: what is in them is never run.

safetensors and Flax's msgpack are data. torch's pickles are programs: they are read by torch's restricted unpickler, in
a process of its own (`unpickle_worker`) that has limits on memory and time and may not write, and that hands back
safetensors. There is no other way to read them, and no switch for one.
"""

import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

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

__all__ = ["read_state"]

_MAX_BYTES = 8 * 2**30  # of a file; the largest network here has 3.3 GB, with its optimiser's state in it 10
_SECONDS = 300  # of wall time for one file
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how torch's files before 1.6 begin
_MAX_HEADER = 16 * 2**20
_MAX_VALUES = 200_000  # of a Flax checkpoint: names, arrays, numbers
_MAX_NAME = 1000  # characters of one name in it
_MAX_AXES = 64
_TREES = ("params", "batch_stats")  # of a Flax checkpoint, what is the network
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    )
}
_SUPPORTED = "safetensors, torch's .pth, .pt and .th files of plain tensors, and Flax's msgpack are read"
_MEND = "save the weights anew with torch.save(network.state_dict(), path) or as safetensors"


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors by name of a file that another library wrote, recognised by its content; on the CPU.

    Of a training script's file, what stands under "state_dict", "model", "state_dict_ema" or "net" (the first of them
    that holds tensors) is taken; optimisers, epochs and the like are left out. Names stay as they are, "module."
    included. Flax's trees have their names joined by "/", and of a training state "params" and "batch_stats" are taken.

    Raises:
        InputError: the file is damaged, of a kind that is not read here, or holds anything that would have to be run.
    """
    path, where = Path(path), printable(path)
    if not path.is_file():  # a pipe would wait for ever
        if path.is_dir():
            kind = "is a folder"
        else:
            kind = "is not a regular file" if path.exists() else "is not there"
        raise InputError(f"{where}: {kind}; give a file of weights")
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise InputError(
                f"{where}: has {size} bytes, at most {_MAX_BYTES} are read; save the weights without their optimiser"
            )
        with open(path, "rb") as file:
            start = file.read(32)
            if start[8:9] == b"{":
                return _safetensors(file, size, where)
            if start.startswith((_LEGACY, b"PK")) and (state := _read_in_process(path, size, where)) is not None:
                return state
            format_name = looks_like(file)
            if format_name == UNKNOWN and (
                0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)
            ):  # begins as a tree of names
                file.seek(0)
                return _msgpack(file.read(), where)
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}; check its disk and your rights") from error
    except MemoryError:
        raise InputError(f"{where}: needs more memory than there is; close other programs") from None
    format_name = "is of no kind that is known here" if format_name == UNKNOWN else format_name
    raise InputError(f"{where}: {format_name}; {_SUPPORTED}: save the weights as one of them")


def _safetensors(file: BinaryIO, size: int, where: str) -> dict[str, Tensor]:
    """All tensors in the order of the header, read only once the header is known to be sane and the size right."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    text = file.read(min(length, _MAX_HEADER))
    check_header_size(where, length, text)
    try:
        header = from_json(text)
        header.pop("__metadata__", None)
        if not header:
            raise ValueError("it holds no tensors")
        expected_size = 8 + length + max(entry["data_offsets"][1] for entry in header.values())
        if size != expected_size:
            raise ValueError(f"it has {size} bytes, its header tells of {expected_size}")
        file.seek(0)
        tensors = safetensors.torch.load(file.read())
        return {name: tensors[name] for name in header}
    except (OSError, MemoryError):
        raise
    except Exception as error:  # safetensors.torch raises what it likes
        raise InputError(f"{where}: is damaged: {printable(error)[:300]}; copy or download it again") from error


def _read_in_process(path: Path, size: int, where: str) -> dict[str, Tensor] | None:
    """What the child reads of a file of torch's; None for a zip file of another tool."""
    if unpickle_worker.resource is None:
        warnings.warn(
            f"{where}: nothing limits the memory and the computing of the process that reads it on this platform; a "
            ".safetensors file is read without such a process",
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
    error_text, state = "", {}
    with child:
        assert child.stdout is not None and child.stderr is not None
        try:
            state = dict(_receive(child.stdout, 2 * size + 2**26))
        except Exception as error:  # safetensors.torch raises what it likes
            error_text = f"what its process gave is damaged: {printable(error)[:300]}"
            child.kill()
        stderr_lines = child.stderr.read().decode("utf-8", "replace").strip().splitlines()
        status = child.wait()
        timer.cancel()
    if late.is_set():
        raise InputError(f"{where}: was not read within {_SECONDS} seconds; save the weights as safetensors")
    if status == unpickle_worker.OTHER_ZIP:
        return None
    if error_text or status or not state:
        reason = error_text or (stderr_lines[-1] if stderr_lines and status == 1 else _exit_reason(status))
        raise InputError(f"{where}: cannot be read as plain tensors: {printable(reason)}; {_MEND}")
    return state


def _receive(pipe: Any, limit: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors that the child writes, which is not trusted either: `limit` bytes and no more are taken."""
    while head := pipe.read(8):
        length = int.from_bytes(head, "little")
        limit -= length
        if limit < 0 or len(content := pipe.read(length)) != length:
            raise ValueError("it is too long" if limit < 0 else "it is cut short")
        yield from safetensors.torch.load(content).items()


def _exit_reason(status: int) -> str:
    """How a process ended that could not say it itself."""
    if status == -getattr(signal, "SIGXCPU", 0):
        return "it needs more computing than a file of its size should"
    known = status < 0 and -status in {number.value for number in signal.Signals}
    return f"the reading process ended with {signal.Signals(-status).name if known else status}"


def _msgpack(data: bytes, where: str) -> dict[str, Tensor]:
    try:
        tree = _Unpacker().unpack(data)
        if not isinstance(tree, dict):
            raise ValueError("it is no tree of names")
        if isinstance(inner := tree.get("model_state"), dict):  # where Flax's older examples keep batch_stats
            tree = {**tree, **inner}
        state = dict(_leaves({name: tree[name] for name in _TREES if name in tree} or tree, ""))
        if not state:
            raise ValueError("it holds no arrays")
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
        raise InputError(
            f"{where}: is no Flax checkpoint of plain arrays: {printable(error)[:200]}; write it with "
            "flax.serialization.to_bytes"
        ) from error


class _Unpacker:
    """Unpacks one file of msgpack, counting: a byte of it can claim a hundred of memory."""

    def __init__(self) -> None:
        self.left = _MAX_VALUES

    def unpack(self, data: bytes, **limits: int) -> Any:
        """The value that `data` holds; with `limits`, of an array's parts."""
        limits = limits or {"max_array_len": _MAX_VALUES, "max_map_len": _MAX_VALUES}
        return msgpack.unpackb(
            data, raw=False, ext_hook=self._array, list_hook=self._count, object_pairs_hook=self._unique_names, **limits
        )

    def _count(self, values: list[Any]) -> list[Any]:
        self.left -= 1 + len(values)
        if self.left < 0:
            raise ValueError(f"it holds more than {_MAX_VALUES} values")
        return values

    def _unique_names(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        tree = dict(self._count(pairs))
        if len(tree) < len(pairs):
            raise ValueError("it holds two values of one name")
        if not all(isinstance(name, str) and len(name) <= _MAX_NAME for name in tree):
            raise ValueError(f"it holds a name that is no text of at most {_MAX_NAME} characters")
        return tree

    def _array(self, code: int, data: bytes) -> Tensor:
        """Flax's arrays (1) and single numbers (3): the shape, the dtype's name and the bytes, in msgpack again."""
        if code not in (1, 3):
            raise ValueError(f"it holds values of kind {code}")
        shape, dtype, content = self.unpack(data, max_array_len=_MAX_AXES, max_map_len=0, max_ext_len=0)
        if dtype not in _DTYPES:
            raise ValueError(f"it holds values of dtype {printable(dtype)[:40]}")
        expected_bytes = _DTYPES[dtype].itemsize
        for size in shape:
            if not isinstance(size, int) or size < 0:
                raise ValueError(f"it holds an array of shape {printable(shape)[:80]}")
            expected_bytes *= size
        if len(content) != expected_bytes:
            raise ValueError(f"an array of shape {tuple(shape)} has {len(content)} bytes, not {expected_bytes}")
        flat = (
            torch.from_numpy(np.frombuffer(content, np.uint8).copy()) if content else torch.empty(0, dtype=torch.uint8)
        )
        return flat.view(_DTYPES[dtype]).reshape(tuple(shape))


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
