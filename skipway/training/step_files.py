"""Files of one checkpoint: a manifest with checksums, the state and the tensors.

The "sha256" of a manifest covers its other fields as compact JSON, in every schema: damage never looks like a newer
schema.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from skipway.errors import InputError, printable
from skipway.training.tensor_file import describe_nonfinite
from skipway.utils import atomic_files
from skipway.utils.run_schema import SCHEMA, refuse_unknown_schema

__all__ = [
    *("MANIFEST", "MAX_HEADER", "STATE", "TENSORS"),
    *("find_damage", "find_flaw", "make_manifest", "read_file", "read_manifest", "read_step", "write_hashed"),
]

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "MANIFEST.json"
MAX_HEADER = 16 * 2**20  # bytes of JSON, which is parsed before its checksum can be verified


def write_hashed(path: Path, blocks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write and flush a new file, and return its size and checksum, which is computed while writing."""
    digest, size = hashlib.sha256(), 0

    def hashed() -> Iterator[bytes | memoryview]:
        nonlocal size
        for block in blocks:
            digest.update(block)
            size += len(block)
            yield block

    atomic_files.write_new(path, hashed())
    return {"bytes": size, "sha256": digest.hexdigest()}


def make_manifest(step: int, tensors: dict[str, Tensor], files: dict[str, dict[str, Any]], version: str) -> bytes:
    """Encode the manifest of a step.

    Args:
        step: number of the step.
        tensors: tensors of the step, for their strides.
        files: size and checksum of each file, see `write_hashed`.
        version: version of skipway.
    """
    values = {
        "schema": SCHEMA,
        "skipway": version,
        "torch": str(torch.__version__),
        "step": step,
        "files": files,
        "strides": {name: _strides(tensor) for name, tensor in tensors.items()},
    }
    return atomic_files.to_json({"sha256": _manifest_sha256(values), **values}, MANIFEST)


def _manifest_sha256(values: dict[str, Any]) -> str:
    return atomic_files.sha256(json.dumps(values, separators=(",", ":")).encode())


def _strides(tensor: Tensor) -> list[int]:
    """Return the strides for loading a tensor. Kernels are chosen by layout, so a resumed run needs the same one."""
    return list(torch.empty_like(tensor, device="meta").stride())


def read_manifest(path: Path, step: int) -> dict[str, Any]:
    """Read and verify the manifest of a step. Raise NewerSchema if a newer skipway wrote it, else InputError."""
    where = f"{printable(path.name)}/{MANIFEST}"
    try:
        with open(path / MANIFEST, "rb") as file:
            data = file.read(MAX_HEADER + 1)
        values = atomic_files.from_json(data) if len(data) <= MAX_HEADER else None
        if not isinstance(values, dict) or values.pop("sha256", None) != _manifest_sha256(values):
            raise ValueError("the checksum of the manifest does not match")
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: damaged: {printable(error)}") from error
    refuse_unknown_schema(where, values.get("schema"), values.get("skipway"))
    if values.get("step") != step:
        raise InputError(f"{where}: expected step {step} as in the folder name, got {printable(values.get('step'))}")
    return values


def read_file(path: Path, name: str, manifest: dict[str, Any]) -> bytes:
    """Read a file of a step and verify its size and checksum."""
    with _opened(path, name, manifest) as (file, expected):
        data = file.read()
        _require_checksum(f"{printable(path.name)}/{name}", atomic_files.sha256(data), expected)
    return data


def find_damage(path: Path, step: int) -> InputError | None:
    """Return an error if the files of a step do not have the sizes and checksums in its manifest, or None."""
    try:
        manifest = read_manifest(path, step)
        for name in (TENSORS, STATE):
            with _opened(path, name, manifest) as (file, expected):
                actual = hashlib.file_digest(file, "sha256").hexdigest()
                _require_checksum(f"{printable(path.name)}/{name}", actual, expected)
    except InputError as error:
        return error
    return None


@contextlib.contextmanager
def _opened(path: Path, name: str, manifest: dict[str, Any]) -> Iterator[tuple[BufferedReader, Any]]:
    """Open a file of a step after verifying its size, and yield it with the expected checksum."""
    where = f"{printable(path.name)}/{name}"
    try:
        size, checksum = manifest["files"][name]["bytes"], manifest["files"][name]["sha256"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: expected an entry in the manifest, got none") from error
    try:
        actual = os.stat(path / name).st_size
        if actual != size:  # checked before reading, because an oversized file could exhaust memory
            raise InputError(f"{where}: expected {size} bytes, got {actual}")
        with open(path / name, "rb") as file:
            yield file, checksum
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}") from error


def _require_checksum(where: str, actual: str, expected: Any) -> None:
    if actual != expected:
        raise InputError(f"{where}: expected checksum {str(expected)[:12]}, got {actual[:12]}")


def read_step(path: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and verify the tensors and the state of a step. Raise InputError if they cannot be used."""
    manifest = read_manifest(path, step)
    where = printable(path.name)
    contents = {name: read_file(path, name, manifest) for name in (TENSORS, STATE)}
    try:
        state, flat = atomic_files.from_json(contents[STATE]), safetensors.torch.load(contents[TENSORS])
    except MemoryError:
        raise
    except Exception as error:  # safetensors.torch does not document its exceptions
        raise InputError(f"{where}: cannot be parsed although its checksums match: {printable(error)}") from error
    del contents  # keep one copy of each tensor in memory
    strides = manifest.get("strides")
    if not isinstance(state, dict) or not isinstance(strides, dict) or set(strides) != set(flat):
        raise InputError(f"{where}: the manifest, the state and the tensors do not match")
    where = f"{where}/{TENSORS}"
    tensors = {name: _with_strides(flat.pop(name), strides[name], f"{where}: '{printable(name)}'") for name in strides}
    if fault := describe_nonfinite(tensors):
        raise InputError(f"{where}: expected finite tensors, got {fault}")
    return tensors, state


def _with_strides(tensor: Tensor, strides: Any, where: str) -> Tensor:
    """Copy a tensor to memory allocated by torch, with `strides` that must be dense and not overlap."""
    sane = isinstance(strides, list) and all(type(s) is int and 0 <= s < 2**62 for s in strides)
    fits, expected = sane and len(strides) == tensor.ndim, 1
    for stride, size in sorted(zip(strides, tensor.shape, strict=True)) if fits and tensor.numel() else ():
        fits = fits and (size == 1 or stride == expected)
        expected *= size
    if not fits:
        raise InputError(f"{where}: expected strides in the manifest that fit the shape {tuple(tensor.shape)}")
    return torch.empty_strided(tuple(tensor.shape), strides, dtype=tensor.dtype).copy_(tensor)


def find_flaw(path: Path, step: int) -> InputError | None:
    """Return the error for which `load_checkpoint` would skip the step at `path`, or None."""
    try:
        read_step(path, step)
    except InputError as error:
        return error
    return None
