"""Checkpoints: everything to go on exactly, as plain JSON and safetensors under SHA-256; nothing in them is code.

    RUN/weights/best.safetensors   one file: tensors, and in its header what rebuilds and explains the network
    RUN/weights/last/step-00000123/{tensors.safetensors, state.json, MANIFEST.json}

A step's folder gets its name only when it is whole and on the disk; it is read back before an older one goes. The
manifest's own "sha256" (over its other fields as compact JSON in their order) stays the same in every schema, so that
a damaged manifest is never taken for one of a newer schema.
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
_MAX_HEADER = 16 * 2**20  # bytes of JSON that are parsed before any checksum can be known
_MAX_VALUES = 500_000  # Python needs a microsecond and 64 bytes for each
_MAX_TENSORS = 20_000  # safetensors needs 13 microseconds for each one that a lying header claims


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One verified step; `refused` says in a line each why newer ones were passed over."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    path: Path
    refused: tuple[str, ...] = ()


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int = 2) -> Path:
    """Write `step` under `folder`, verify it, and only then remove all but the `keep` newest verified steps."""
    if keep < 1 or step < 0:
        raise InputError(f"a checkpoint needs keep >= 1 and step >= 0, not keep {keep} and step {step}")
    folder = Path(folder)
    final = folder / f"step-{step:08d}"
    files = {_TENSORS: _encode(tensors), _STATE: atomic_files.to_json(state, f"the state at step {step}")}
    files[_MANIFEST] = _make_manifest(step, tensors, files)
    temporary = atomic_files.temporary_path(final)
    if not folder.parent.is_dir():  # making it again would leave a run folder that cannot be resumed
        raise StorageError(
            f"cannot save step {step}: expected the folder {printable(folder.parent)}, got none: it was removed or "
            "moved. What was trained since the last checkpoint is lost; resume the moved folder, or start a new run."
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
            # A second save of one step stands beside the first as step-N.1, .2 ... until it is verified.
            suffix = max((number + 1 for other, number, _ in others if other == step), default=0)
            placed = folder / f"{final.name}.{suffix}" if suffix else final
            atomic_files.rename(temporary, placed)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if flaw := _find_flaw(placed, step):
            atomic_files.discard(placed)
            raise StorageError(
                f"{printable(placed)}: what was written is not what is read back: {flaw}; check that disk, or write to "
                "another folder with -o"
            )
        for other, _, path in others:
            if other == step:
                atomic_files.discard(path)
        if suffix:
            atomic_files.rename(placed, final)
        _rotate(folder, step, keep)
    return final


def load_checkpoint(folder: Path) -> Checkpoint:
    """The newest step under `folder` that is whole, whatever stands beside it."""
    folder = Path(folder)
    refused: list[str] = []
    try:
        steps = _list_steps(folder)
    except OSError as error:
        raise InputError(f"{printable(folder)}: no checkpoints there: {error.strerror}; give a run's folder") from error
    for step, _, path in steps:
        try:
            return Checkpoint(step, *_read_step(path, step), path, tuple(refused))
        except NewerSchema:
            raise
        except InputError as error:
            refused.append(str(error))
    reasons = "; ".join(refused) if refused else "it holds no step"
    raise InputError(f"{printable(folder)}: no checkpoint there can be used: {reasons}; start the run anew")


def load_state(folder: Path) -> dict[str, Any]:
    """Return the state of the newest step whose state is whole, without reading its tensors; empty if there is none."""
    for step, _, path in _list_steps(folder):
        with contextlib.suppress(InputError, ValueError):
            state = atomic_files.from_json(_read_file(path, _STATE, _read_manifest(path, step)))
            return state if isinstance(state, dict) else {}
    return {}


def _list_steps(folder: Path) -> list[tuple[int, int, Path]]:
    """(step, number of the rewrite, path), newest first."""
    matches = [(match, folder / name) for name in os.listdir(folder) if (match := _STEP.fullmatch(name))]
    return sorted(((int(m[1]), int(m[2] or 0), path) for m, path in matches), reverse=True)


def _rotate(folder: Path, step: int, keep: int) -> None:
    """Remove what is older than the `keep` newest verified steps; damaged ones count for nothing."""
    verified = [step]
    for other, _, path in _list_steps(folder):
        flaw = _find_flaw(path, other) if other != step else None
        if flaw is None and len(verified) < keep and other != step:
            verified.append(other)
        elif other < min(verified) and len(verified) == keep and not isinstance(flaw, NewerSchema):
            atomic_files.discard(path)


def _find_flaw(path: Path, step: int) -> InputError | None:
    """Why `load_checkpoint` would pass over the step at `path`, or None."""
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
    """The layout that a loaded tensor gets: the same strides where they leave no holes (channels_last), else as dense.

    Kernels choose by layout, and another kernel sums in another order: without this a resumed run would drift.
    """
    return list(torch.empty_like(tensor, device="meta").stride())


def _read_manifest(path: Path, step: int) -> dict[str, Any]:
    where = f"{printable(path.name)}/{_MANIFEST}"
    try:
        with open(path / _MANIFEST, "rb") as file:
            data = file.read(_MAX_HEADER + 1)
        values = atomic_files.from_json(data) if len(data) <= _MAX_HEADER else None
        if not isinstance(values, dict) or values.pop("sha256", None) != _manifest_sha256(values):
            raise ValueError("its own checksum does not match")
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is damaged: {printable(error)}") from error
    refuse_unknown_schema(where, values.get("schema"), values.get("skipway"))
    if values.get("step") != step:
        raise InputError(f"{where}: says step {printable(values.get('step'))}, its folder says {step}")
    return values


def _read_file(path: Path, name: str, manifest: dict[str, Any]) -> bytes:
    """The bytes of one file of a step, proven by the manifest."""
    where = f"{printable(path.name)}/{name}"
    try:
        size, checksum = manifest["files"][name]["bytes"], manifest["files"][name]["sha256"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: the manifest does not mention it") from error
    try:
        actual = os.stat(path / name).st_size
        if actual != size:  # before reading: a file grown by accident is not worth its memory
            raise InputError(f"{where}: has {actual} bytes, {size} were written")
        data = (path / name).read_bytes()
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}") from error
    if atomic_files.sha256(data) != checksum:
        raise InputError(
            f"{where}: has checksum {atomic_files.sha256(data)[:12]}..., {str(checksum)[:12]}... was written"
        )
    return data


def _read_step(path: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    manifest = _read_manifest(path, step)
    where = printable(path.name)
    contents = {name: _read_file(path, name, manifest) for name in (_TENSORS, _STATE)}
    try:
        state, flat = atomic_files.from_json(contents[_STATE]), safetensors.torch.load(contents[_TENSORS])
    except MemoryError:
        raise
    except Exception as error:  # safetensors.torch raises what it likes
        raise InputError(f"{where}: cannot be parsed, yet its checksums match: {printable(error)}") from error
    del contents  # from here on each tensor stands in memory once
    strides = manifest.get("strides")
    if not isinstance(state, dict) or not isinstance(strides, dict) or set(strides) != set(flat):
        raise InputError(f"{where}: the manifest, the state and the tensors do not belong together")
    where = f"{where}/{_TENSORS}"
    tensors = {name: _with_strides(flat.pop(name), strides[name], f"{where}: '{printable(name)}'") for name in strides}
    if fault := _describe_nonfinite(tensors):
        raise InputError(f"{where}: is not finite, it holds {fault}")
    return tensors, state


def _with_strides(tensor: Tensor, strides: Any, where: str) -> Tensor:
    """A copy with `strides`, which must reach every element once, in memory aligned as torch aligns its own."""
    sane = isinstance(strides, list) and all(type(s) is int and 0 <= s < 2**62 for s in strides)
    fits, expected = sane and len(strides) == tensor.ndim, 1
    for stride, size in sorted(zip(strides, tensor.shape, strict=True)) if fits and tensor.numel() else ():
        fits = fits and (size == 1 or stride == expected)
        expected *= size
    if not fits:
        raise InputError(f"{where} does not fit the strides in the manifest, having the shape {tuple(tensor.shape)}")
    return torch.empty_strided(tuple(tensor.shape), strides, dtype=tensor.dtype).copy_(tensor)


def _describe_nonfinite(tensors: dict[str, Tensor]) -> str:
    """'NaN: 'a', 'b'' for the tensors that are not finite, or nothing."""
    names, kind = [], "infinity"
    for name, tensor in tensors.items():
        if tensor.is_floating_point() or tensor.is_complex():
            wide = tensor.float() if tensor.element_size() == 1 else tensor  # float8 knows no isfinite
            if not torch.isfinite(wide).all():
                names.append(f"'{printable(name)}'")
                kind = "NaN" if torch.isnan(wide).any() else kind
    return f"{kind}: {join_names(names, limit=3)}" if names else ""


def _encode(tensors: dict[str, Tensor], notes: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file with `notes` and their seal; every tensor finite, or there are no bytes."""
    flat: dict[str, Tensor] = {}
    seen: set[int] = set()
    try:
        if "__metadata__" in tensors:
            raise ValueError("the name '__metadata__' is taken")
        for name, tensor in tensors.items():
            plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
            place = plain.untyped_storage().data_ptr()
            flat[name] = plain.clone() if place in seen else plain  # safetensors wants memory that is not shared
            seen.add(place)
        sealed = None if notes is None else {**notes, "sha256": _seal(notes, flat)}
        data = _with_sorted_notes(safetensors.torch.save(flat, sealed))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the tensors do not fit into safetensors: {printable(error)}; give dense tensors of torch's plain dtypes"
        ) from error
    if fault := _describe_nonfinite(flat):
        raise NotFiniteError(
            f"weights hold {fault}; nothing was saved: go on from the last checkpoint with a lower learning rate (--lr)"
        )
    return data


def _with_sorted_notes(data: bytes) -> bytes:
    """Return a safetensors file with its metadata in one order, so that equal contents are equal in bytes.

    safetensors writes it in the order of a hash table, another one in every process.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" not in header:
        return data
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _seal(notes: Mapping[str, str], tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the notes and over every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps([notes["skipway"], notes["written_by"]]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """One .safetensors file at `path`: the tensors, and `header` as JSON under the metadata key "skipway"."""
    notes = {
        "skipway": atomic_files.to_json(header, f"the header of {printable(path)}", indent=None).decode(),
        "written_by": json.dumps({"schema": SCHEMA, "version": _version()}),
    }
    data = _encode(tensors, notes)
    length = int.from_bytes(data[:8], "little")
    check_header_size(printable(path), length, data[8 : 8 + length])
    atomic_files.write_file(path, data)


def check_header_size(where: str, length: int, text: bytes) -> None:
    """Refuse a header of `length` bytes that begins with `text` where parsing it would take long or much memory."""
    tensors, values = text.count(b'"data_offsets"'), sum(text.count(mark) for mark in (b",", b"[", b"{"))
    if length > _MAX_HEADER or tensors > _MAX_TENSORS or values > _MAX_VALUES:
        size = f"{length} bytes with {tensors} tensors and {values} values"
        limits = f"at most {_MAX_HEADER} bytes, {_MAX_TENSORS} tensors and {_MAX_VALUES} values are read"
        raise InputError(f"{where}: its header of {size} is too much; {limits}")


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header that `save_weights` wrote, proven by their checksum."""
    path, where = Path(path), printable(path)
    if not path.is_file():  # a pipe would wait for ever
        raise InputError(f"{where}: {_describe_non_file(path)}; give the weights/best.safetensors of a run")
    try:
        with open(path, "rb") as file:
            notes = _read_notes(file, where)
            file.seek(0)
            tensors = safetensors.torch.load(file.read())
        if _seal(notes, tensors) != notes["sha256"]:
            raise InputError(f"{where}: its checksum does not match what was written; copy it again or train anew")
        header = atomic_files.from_json(notes["skipway"].encode())
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}; check its disk and your rights") from error
    except MemoryError:
        raise
    except Exception as error:  # safetensors.torch raises what it likes
        raise InputError(f"{where}: is damaged: {printable(error)}; copy it again or train anew") from error
    if fault := _describe_nonfinite(tensors):
        raise InputError(f"{where}: is not finite, it holds {fault}; train anew")
    return tensors, header


def _describe_non_file(path: Path) -> str:
    if path.is_dir():
        return "is a folder"
    return "is not a regular file" if path.exists() else "is not there"


def _read_notes(file: BinaryIO, where: str) -> dict[str, str]:
    """The metadata of a safetensors file, once its header is known to be sane and its size right."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if 0 < size < 9 or (start[8:] == b"{" and size < 8 + length <= 8 + _MAX_HEADER):
        raise InputError(f"{where}: is truncated after {size} bytes, within its header; copy it again")
    if start[8:] != b"{":
        raise InputError(
            f"{where}: {looks_like(file)}; only skipway's own .safetensors files are read here: give the "
            "weights/best.safetensors of a run, or another tool's file to create_model(name, pretrained=...)"
        )
    file.seek(8)
    text = file.read(min(length, _MAX_HEADER))
    check_header_size(where, length, text)
    header = atomic_files.from_json(text)
    notes = header.pop("__metadata__", {})
    expected = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != expected:
        raise InputError(f"{where}: is truncated or overgrown: {size} bytes, {expected} were written; copy it again")
    if not isinstance(notes, dict) or not {"skipway", "written_by", "sha256"} <= set(notes):
        call = "create_model(name, pretrained=...)"
        raise InputError(f"{where}: is safetensors without skipway's header, another tool's; bring it in with {call}")
    writer = atomic_files.from_json(notes["written_by"].encode())
    refuse_unknown_schema(where, writer.get("schema"), writer["version"])
    return notes


def _version() -> str:
    try:
        return metadata.version("skipway")
    except metadata.PackageNotFoundError:
        return "0"
