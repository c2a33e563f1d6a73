"""Checkpoints: the full state of a run as JSON and safetensors with SHA-256 checksums, without pickle.

    RUN/weights/best.safetensors   tensors; the header holds the plan, the Spec and the metrics of the model
    RUN/weights/last/step-00000123/{tensors.safetensors, state.json, MANIFEST.json}

A step is written to a temporary folder, flushed and then renamed. It is read back before an older step is removed. The
"sha256" of a manifest covers its other fields as compact JSON, in every schema: damage never looks like a newer schema.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from skipway.errors import InputError, NotFiniteError, StorageError, printable
from skipway.utils import atomic_files
from skipway.utils.file_formats import looks_like
from skipway.utils.format_text import join_names
from skipway.utils.run_schema import SCHEMA, NewerSchema, refuse_unknown_schema

__all__ = [
    *("Checkpoint", "load_checkpoint", "load_state", "load_weights"),
    *("check_header_size", "save_checkpoint", "save_weights"),
]

_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "MANIFEST.json"
_STEP = re.compile(r"step-(\d{8,18})(?:\.(\d{1,9}))?", re.ASCII)
_MAX_HEADER = 16 * 2**20  # bytes of JSON, which is parsed before its checksum can be verified
_MAX_VALUES = 500_000  # Python needs 1 microsecond and 64 bytes per value
_MAX_TENSORS = 20_000  # safetensors needs 13 microseconds per tensor that a forged header declares


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Hold a verified step, and in `refused` a line with the reason for each newer step that was skipped."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    path: Path
    refused: tuple[str, ...] = ()


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int = 2) -> Path:
    """Write a step to `folder`, verify it, then remove all but the `keep` newest verified steps.

    Raises:
        NotFiniteError: a tensor holds NaN or infinity. Nothing is written.
        StorageError: the step cannot be written or read back.
    """
    if keep < 1 or step < 0:
        raise InputError(
            f"cannot save a checkpoint: expected keep >= 1 and step >= 0, got keep {keep} and step {step}. Pass "
            "larger numbers."
        )
    folder = Path(folder)
    final = folder / f"step-{step:08d}"
    files = {_TENSORS: _encode(tensors), _STATE: atomic_files.to_json(state, f"the state at step {step}")}
    files[_MANIFEST] = _make_manifest(step, tensors, files)
    temporary = atomic_files.temporary_path(final)
    if not folder.parent.is_dir():  # a new folder would hold a run that cannot be resumed
        raise StorageError(
            f"cannot save step {step}: expected the folder {printable(folder.parent)}, got none: it was removed or "
            "moved. Resume the moved folder, or start a new run."
        )
    with atomic_files.storing(final, sum(len(data) for data in files.values())):
        try:
            atomic_files.make_folder(folder)
            atomic_files.sweep(folder, ".tmp-")
            atomic_files.make_new_folder(temporary)
            for name, data in files.items():
                atomic_files.write_new(temporary / name, data)
            atomic_files.sync_folder(temporary)
            others = _list_steps(folder)
            # If the step exists already, the new save is named step-N.1, .2 ... until it is verified.
            suffix = max((number + 1 for other, number, _ in others if other == step), default=0)
            placed = folder / f"{final.name}.{suffix}" if suffix else final
            atomic_files.rename(temporary, placed)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if flaw := _find_flaw(placed, step):
            atomic_files.discard(placed)
            raise StorageError(
                f"cannot verify {printable(placed)}: expected the bytes that were written, got others: {flaw}. "
                "Check the disk, or write to another folder with -o."
            )
        for other, _, path in others:
            if other == step:
                atomic_files.discard(path)
        if suffix:
            atomic_files.rename(placed, final)
        _rotate(folder, step, keep)
    return final


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load the newest step in `folder` that passes its checksums. Raise InputError if there is none."""
    folder = Path(folder)
    refused: list[str] = []
    try:
        steps = _list_steps(folder)
    except OSError as error:
        raise InputError(f"cannot list steps in {printable(folder)}: {error.strerror}. Pass a run folder.") from error
    for step, _, path in steps:
        try:
            return Checkpoint(step, *_read_step(path, step), path, tuple(refused))
        except NewerSchema:
            raise
        except InputError as error:
            refused.append(str(error))
    reasons = "; ".join(refused) if refused else "the folder has no steps"
    raise InputError(f"cannot load a checkpoint from {printable(folder)}: {reasons}. Start a new run.")


def load_state(folder: Path) -> dict[str, Any]:
    """Return the state of the newest step with an intact state.json, or an empty dict. Tensors are not read."""
    for step, _, path in _list_steps(folder):
        with contextlib.suppress(InputError, ValueError):
            state = atomic_files.from_json(_read_file(path, _STATE, _read_manifest(path, step)))
            return state if isinstance(state, dict) else {}
    return {}


def _list_steps(folder: Path) -> list[tuple[int, int, Path]]:
    """Return (step, number of the rewrite, path) of each step, newest first."""
    matches = [(match, folder / name) for name in os.listdir(folder) if (match := _STEP.fullmatch(name))]
    return sorted(((int(m[1]), int(m[2] or 0), path) for m, path in matches), reverse=True)


def _rotate(folder: Path, step: int, keep: int) -> None:
    """Remove steps older than the `keep` newest verified ones. Damaged steps do not count."""
    verified = [step]
    for other, _, path in _list_steps(folder):
        flaw = _find_flaw(path, other) if other != step else None
        if flaw is None and len(verified) < keep and other != step:
            verified.append(other)
        elif other < min(verified) and len(verified) == keep and not isinstance(flaw, NewerSchema):
            atomic_files.discard(path)


def _find_flaw(path: Path, step: int) -> InputError | None:
    """Return the error for which `load_checkpoint` would skip the step at `path`, or None."""
    try:
        _read_step(path, step)
    except InputError as error:
        return error
    return None


def _make_manifest(step: int, tensors: dict[str, Tensor], files: dict[str, bytes]) -> bytes:
    values = {
        "schema": SCHEMA,
        "skipway": _version(),
        "torch": str(torch.__version__),
        "step": step,
        "files": {name: {"bytes": len(data), "sha256": atomic_files.sha256(data)} for name, data in files.items()},
        "strides": {name: _strides(tensor) for name, tensor in tensors.items()},
    }
    return atomic_files.to_json({"sha256": _manifest_sha256(values), **values}, _MANIFEST)


def _manifest_sha256(values: dict[str, Any]) -> str:
    return atomic_files.sha256(json.dumps(values, separators=(",", ":")).encode())


def _strides(tensor: Tensor) -> list[int]:
    """Return the strides for loading a tensor. Kernels are chosen by layout, so a resumed run needs the same one."""
    return list(torch.empty_like(tensor, device="meta").stride())


def _read_manifest(path: Path, step: int) -> dict[str, Any]:
    where = f"{printable(path.name)}/{_MANIFEST}"
    try:
        with open(path / _MANIFEST, "rb") as file:
            data = file.read(_MAX_HEADER + 1)
        values = atomic_files.from_json(data) if len(data) <= _MAX_HEADER else None
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


def _read_file(path: Path, name: str, manifest: dict[str, Any]) -> bytes:
    """Read a file of a step and verify its size and checksum."""
    where = f"{printable(path.name)}/{name}"
    try:
        size, checksum = manifest["files"][name]["bytes"], manifest["files"][name]["sha256"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: expected an entry in the manifest, got none") from error
    try:
        actual = os.stat(path / name).st_size
        if actual != size:  # checked before reading, because an oversized file could exhaust memory
            raise InputError(f"{where}: expected {size} bytes, got {actual}")
        data = (path / name).read_bytes()
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}") from error
    if atomic_files.sha256(data) != checksum:
        raise InputError(f"{where}: expected checksum {str(checksum)[:12]}, got {atomic_files.sha256(data)[:12]}")
    return data


def _read_step(path: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    manifest = _read_manifest(path, step)
    where = printable(path.name)
    contents = {name: _read_file(path, name, manifest) for name in (_TENSORS, _STATE)}
    try:
        state, flat = atomic_files.from_json(contents[_STATE]), safetensors.torch.load(contents[_TENSORS])
    except MemoryError:
        raise
    except Exception as error:  # safetensors.torch does not document its exceptions
        raise InputError(f"{where}: cannot be parsed although its checksums match: {printable(error)}") from error
    del contents  # keep one copy of each tensor in memory
    strides = manifest.get("strides")
    if not isinstance(state, dict) or not isinstance(strides, dict) or set(strides) != set(flat):
        raise InputError(f"{where}: the manifest, the state and the tensors do not match")
    where = f"{where}/{_TENSORS}"
    tensors = {name: _with_strides(flat.pop(name), strides[name], f"{where}: '{printable(name)}'") for name in strides}
    if fault := _describe_nonfinite(tensors):
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


def _describe_nonfinite(tensors: dict[str, Tensor]) -> str:
    """Return a text such as "NaN: 'a', 'b'" for the tensors that are not finite, else an empty string."""
    names, kind = [], "infinity"
    for name, tensor in tensors.items():
        if tensor.is_floating_point() or tensor.is_complex():
            wide = tensor.float() if tensor.element_size() == 1 else tensor  # isfinite does not support float8
            if not torch.isfinite(wide).all():
                names.append(f"'{printable(name)}'")
                kind = "NaN" if torch.isnan(wide).any() else kind
    return f"{kind}: {join_names(names, limit=3)}" if names else ""


def _encode(tensors: dict[str, Tensor], notes: dict[str, str] | None = None) -> bytes:
    """Encode finite tensors as a safetensors file with `notes` as metadata and their checksum."""
    flat: dict[str, Tensor] = {}
    seen: set[int] = set()
    try:
        if "__metadata__" in tensors:
            raise ValueError("the name '__metadata__' is reserved")
        for name, tensor in tensors.items():
            plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
            place = plain.untyped_storage().data_ptr()
            flat[name] = plain.clone() if place in seen else plain  # safetensors refuses shared memory
            seen.add(place)
        sealed = None if notes is None else {**notes, "sha256": _seal(notes, flat)}
        data = _with_sorted_notes(safetensors.torch.save(flat, sealed))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"cannot write tensors as safetensors: {printable(error)}. Pass dense tensors of standard torch dtypes."
        ) from error
    if fault := _describe_nonfinite(flat):
        raise NotFiniteError(
            f"cannot save weights: expected finite values, got {fault}. Start again with a lower --lr."
        )
    return data


def _with_sorted_notes(data: bytes) -> bytes:
    """Sort the metadata of a safetensors file. Its order differs between processes, which changes the bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" not in header:
        return data
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned to 8 bytes
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _seal(notes: Mapping[str, str], tensors: dict[str, Tensor]) -> str:
    """Compute the SHA-256 of the notes and of the name, dtype, shape and bytes of each tensor."""
    digest = hashlib.sha256(json.dumps([notes["skipway"], notes["written_by"]]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write finite tensors to a .safetensors file, with `header` as JSON under the metadata key "skipway"."""
    notes = {
        "skipway": atomic_files.to_json(header, f"the header of {printable(path)}", indent=None).decode(),
        "written_by": json.dumps({"schema": SCHEMA, "version": _version()}),
    }
    data = _encode(tensors, notes)
    length = int.from_bytes(data[:8], "little")
    check_header_size(printable(path), length, data[8 : 8 + length])
    atomic_files.write_file(path, data)


def check_header_size(where: str, length: int, text: bytes) -> None:
    """Refuse a header of `length` bytes, starting with `text`, if parsing it would take too much time or memory."""
    tensors, values = text.count(b'"data_offsets"'), sum(text.count(mark) for mark in (b",", b"[", b"{"))
    if length > _MAX_HEADER or tensors > _MAX_TENSORS or values > _MAX_VALUES:
        size = f"{length} bytes with {tensors} tensors and {values} values"
        limits = f"at most {_MAX_HEADER} bytes, {_MAX_TENSORS} tensors and {_MAX_VALUES} values"
        raise InputError(f"{where}: cannot use the header: expected {limits}, got {size}")


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load the tensors and the header of a file written by `save_weights`, and verify its checksum."""
    path, where = Path(path), printable(path)
    if not path.is_file():  # reading a pipe would block
        kind = _describe_non_file(path)
        raise InputError(
            f"cannot read {where}: expected a file, got {kind}. Pass the weights/best.safetensors of a run."
        )
    try:
        with open(path, "rb") as file:
            notes = _read_notes(file, where)
            file.seek(0)
            tensors = safetensors.torch.load(file.read())
        if _seal(notes, tensors) != notes["sha256"]:
            raise InputError(f"cannot read {where}: its checksum does not match. Copy the file again, or train again.")
        header = atomic_files.from_json(notes["skipway"].encode())
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {where}: {error.strerror}. Check the disk and the file permissions.") from error
    except MemoryError:
        raise
    except Exception as error:  # safetensors.torch does not document its exceptions
        raise InputError(f"cannot read {where}: damaged: {printable(error)}. Copy the file again.") from error
    if fault := _describe_nonfinite(tensors):
        raise InputError(f"cannot use {where}: expected finite weights, got {fault}. Train the model again.")
    return tensors, header


def _describe_non_file(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    return "a special file" if path.exists() else "nothing"


def _read_notes(file: BinaryIO, where: str) -> dict[str, str]:
    """Read the metadata of a safetensors file after validating its header and its size."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if 0 < size < 9 or (start[8:] == b"{" and size < 8 + length <= 8 + _MAX_HEADER):
        raise InputError(f"cannot read {where}: its header is truncated after {size} bytes. Copy the file again.")
    if start[8:] != b"{":
        raise InputError(
            f"cannot read {where}: expected a .safetensors file of skipway, but it {looks_like(file)}. Pass the "
            "weights/best.safetensors of a run, or load other files with create_model(name, pretrained=...)."
        )
    file.seek(8)
    text = file.read(min(length, _MAX_HEADER))
    check_header_size(where, length, text)
    header = atomic_files.from_json(text)
    notes = header.pop("__metadata__", {})
    expected = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != expected:
        raise InputError(f"cannot read {where}: expected {expected} bytes, got {size}. Copy the file again.")
    if not isinstance(notes, dict) or not {"skipway", "written_by", "sha256"} <= set(notes):
        use = "create_model(name, pretrained=...)"
        raise InputError(f"cannot read {where}: expected weights of skipway, got plain safetensors. Use {use}.")
    writer = atomic_files.from_json(notes["written_by"].encode())
    refuse_unknown_schema(where, writer.get("schema"), writer["version"])
    return notes


def _version() -> str:
    try:
        return metadata.version("skipway")
    except metadata.PackageNotFoundError:
        return "0"
