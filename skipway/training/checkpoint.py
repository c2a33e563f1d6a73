"""Checkpoints: the full state of a run as JSON and safetensors with SHA-256 checksums, without pickle.

    RUN/weights/best.safetensors   tensors; the header holds the plan, the Spec and the metrics of the model
    RUN/weights/last/step-00000123/{tensors.safetensors, state.json, MANIFEST.json}

A step is written to a temporary folder, flushed and then renamed. It is read back before an older step is removed.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
from torch import Tensor

from skipway.errors import InputError, NotFiniteError, StorageError, printable
from skipway.training.step_files import (
    MANIFEST,
    MAX_HEADER,
    STATE,
    TENSORS,
    find_damage,
    find_flaw,
    make_manifest,
    read_file,
    read_manifest,
    read_step,
    write_hashed,
)
from skipway.training.tensor_file import TensorFile, raw_bytes, to_plain
from skipway.training.tensor_file import describe_nonfinite as _describe_nonfinite
from skipway.training.verified_steps import VerifiedSteps
from skipway.utils import atomic_files
from skipway.utils.file_formats import looks_like
from skipway.utils.run_schema import SCHEMA, NewerSchema, refuse_unknown_schema

__all__ = [
    *("Checkpoint", "load_checkpoint", "load_state", "load_weights"),
    *("check_header_size", "save_checkpoint", "save_weights"),
]

_STEP = re.compile(r"step-(\d{8,18})(?:\.(\d{1,9}))?", re.ASCII)
_MAX_VALUES = 500_000  # Python needs 1 microsecond and 64 bytes per value
_ATTEMPTS = 10  # readings of a folder that another process changes meanwhile
_MAX_TENSORS = 20_000  # safetensors needs 13 microseconds per tensor that a forged header declares


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Hold a verified step, and in `refused` a line with the reason for each newer step that was skipped."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    path: Path
    refused: tuple[str, ...] = ()


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    keep: int = 2,
    verified: VerifiedSteps | None = None,
) -> Path:
    """Write a step to `folder`, verify it, then remove all but the `keep` newest verified steps.

    Args:
        folder: folder of the steps.
        step: number of the step.
        tensors: dense tensors by name.
        state: plain values.
        keep: number of steps to keep.
        verified: steps that earlier calls have verified, updated in place. They are not read again while their files
            are unchanged; None reads each kept step.

    Raises:
        NotFiniteError: a tensor holds NaN or infinity. Nothing is written.
        StorageError: the step cannot be written or read back.
    """
    if keep < 1 or step < 0:
        raise InputError(
            f"cannot save a checkpoint: expected keep >= 1 and step >= 0, got keep {keep} and step {step}. Pass "
            "larger numbers."
        )
    folder, verified = Path(folder), VerifiedSteps() if verified is None else verified
    final = folder / f"step-{step:08d}"
    encoded, state_json = _encode(tensors), atomic_files.to_json(state, f"the state at step {step}")
    temporary = atomic_files.temporary_path(final)
    with _storing_step(folder, step, encoded.size + len(state_json)):
        try:
            atomic_files.make_folder(folder)
            atomic_files.sweep(folder, ".tmp-")
            atomic_files.make_new_folder(temporary)
            files = {
                TENSORS: write_hashed(temporary / TENSORS, encoded.blocks()),
                STATE: write_hashed(temporary / STATE, [state_json]),
            }
            atomic_files.write_new(temporary / MANIFEST, make_manifest(step, tensors, files, _version()))
            atomic_files.sync_folder(temporary)
            written = time.monotonic()
            others = _list_steps(folder)
            # If the step exists already, the new save is named step-N.1, .2 ... until it is verified.
            suffix = max((number + 1 for other, number, _ in others if other == step), default=0)
            placed = folder / f"{final.name}.{suffix}" if suffix else final
            atomic_files.rename(temporary, placed)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if damage := find_damage(placed, step):
            atomic_files.discard(placed)
            raise StorageError(
                f"cannot verify {printable(placed)}: expected the bytes that were written, got others: {damage}. "
                "Check the disk, or write to another folder with -o."
            )
        for other, _, path in others:
            if other == step:
                atomic_files.discard(path)
        if suffix:
            atomic_files.rename(placed, final)
        verified.add(final, written)
        _rotate(folder, step, keep, verified)
    return final


@contextlib.contextmanager
def _storing_step(folder: Path, step: int, needed: int) -> Iterator[None]:
    """Convert an OSError in the context to a StorageError, which names the run folder if that is gone."""
    _require_run(folder, step)
    with atomic_files.storing(folder / f"step-{step:08d}", needed):
        try:
            yield
        except FileNotFoundError:
            _require_run(folder, step)
            raise


def _require_run(folder: Path, step: int) -> None:
    if not folder.parent.is_dir():  # a new folder would hold a run that cannot be resumed
        raise StorageError(
            f"cannot save step {step}: expected the folder {printable(folder.parent)}, got none: it was removed or "
            "moved. Resume the moved folder, or start a new run."
        )


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load the newest step in `folder` that passes its checksums. Raise InputError if there is none.

    An older step is loaded only if the newer ones are damaged: if another process replaces a step while it is read, the
    folder is read again.
    """
    folder = Path(folder)
    for _ in range(_ATTEMPTS):
        try:
            before = _inodes(folder)
            loaded, refused = _load_newest(folder)
            if not refused or _inodes(folder) == before:
                break
        except OSError as error:
            raise InputError(
                f"cannot list steps in {printable(folder)}: {error.strerror}. Pass a run folder."
            ) from error
    if loaded is None:
        reasons = "; ".join(refused) if refused else "the folder has no steps"
        raise InputError(f"cannot load a checkpoint from {printable(folder)}: {reasons}. Start a new run.")
    return loaded


def _load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest step that passes its checksums, and a line with the reason for each newer step."""
    refused: list[str] = []
    for step, _, path in _list_steps(folder):
        try:
            return Checkpoint(step, *read_step(path, step), path, tuple(refused)), refused
        except NewerSchema:
            raise
        except InputError as error:
            refused.append(str(error))
    return None, refused


def _inodes(folder: Path) -> dict[str, int]:
    """Return the number of each step in the file system, which changes if the step is replaced."""
    with os.scandir(folder) as entries:
        return {entry.name: entry.inode() for entry in entries if _STEP.fullmatch(entry.name)}


def load_state(folder: Path) -> dict[str, Any]:
    """Return the state of the newest step with an intact state.json, or an empty dict. Tensors are not read."""
    for step, _, path in _list_steps(folder):
        with contextlib.suppress(InputError, ValueError):
            state = atomic_files.from_json(read_file(path, STATE, read_manifest(path, step)))
            return state if isinstance(state, dict) else {}
    return {}


def _list_steps(folder: Path) -> list[tuple[int, int, Path]]:
    """Return (step, number of the rewrite, path) of each step, newest first."""
    matches = [(match, folder / name) for name in os.listdir(folder) if (match := _STEP.fullmatch(name))]
    return sorted(((int(m[1]), int(m[2] or 0), path) for m, path in matches), reverse=True)


def _rotate(folder: Path, step: int, keep: int, verified: VerifiedSteps) -> None:
    """Remove steps older than the `keep` newest verified ones. Damaged steps do not count."""
    kept, begun = [step], time.monotonic()
    for other, _, path in _list_steps(folder):
        if other == step:
            continue
        if len(kept) < keep:
            if path in verified:
                kept.append(other)
            elif find_flaw(path, other) is None:
                kept.append(other)
                verified.add(path, begun)
        elif other < min(kept) and not _has_newer_schema(path, other):
            atomic_files.discard(path)


def _has_newer_schema(path: Path, step: int) -> bool:
    try:
        read_manifest(path, step)
    except NewerSchema:
        return True
    except InputError:
        return False
    return False


def _encode(tensors: dict[str, Tensor], notes: dict[str, str] | None = None) -> TensorFile:
    """Encode finite tensors as a safetensors file with `notes` as metadata and their checksum."""
    try:
        plain = {name: to_plain(tensor) for name, tensor in tensors.items()}
        file = TensorFile(plain, None if notes is None else {**notes, "sha256": _seal(notes, plain)})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"cannot write tensors as safetensors: {printable(error)}. Pass dense tensors of standard torch dtypes."
        ) from error
    if fault := _describe_nonfinite(plain):
        raise NotFiniteError(
            f"cannot save weights: expected finite values, got {fault}. Start again with a lower --lr."
        )
    return file


def _seal(notes: Mapping[str, str], tensors: dict[str, Tensor]) -> str:
    """Compute the SHA-256 of the notes and of the name, dtype, shape and bytes of each tensor."""
    digest = hashlib.sha256(json.dumps([notes["skipway"], notes["written_by"]]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def save_weights(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write finite tensors to a .safetensors file, with `header` as JSON under the metadata key "skipway"."""
    notes = {
        "skipway": atomic_files.to_json(header, f"the header of {printable(path)}", indent=None).decode(),
        "written_by": json.dumps({"schema": SCHEMA, "version": _version()}),
    }
    file = _encode(tensors, notes)
    check_header_size(printable(path), len(file.header) - 8, file.header[8:])
    atomic_files.write_file(path, b"".join(file.blocks()))


def check_header_size(where: str, length: int, text: bytes) -> None:
    """Refuse a header of `length` bytes, starting with `text`, if parsing it would take too much time or memory."""
    tensors, values = text.count(b'"data_offsets"'), sum(text.count(mark) for mark in (b",", b"[", b"{"))
    if length > MAX_HEADER or tensors > _MAX_TENSORS or values > _MAX_VALUES:
        size = f"{length} bytes with {tensors} tensors and {values} values"
        limits = f"at most {MAX_HEADER} bytes, {_MAX_TENSORS} tensors and {_MAX_VALUES} values"
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
    if 0 < size < 9 or (start[8:] == b"{" and size < 8 + length <= 8 + MAX_HEADER):
        raise InputError(f"cannot read {where}: its header is truncated after {size} bytes. Copy the file again.")
    if start[8:] != b"{":
        raise InputError(
            f"cannot read {where}: expected a .safetensors file of skipway, but it {looks_like(file)}. Pass the "
            "weights/best.safetensors of a run, or load other files with create_model(name, pretrained=...)."
        )
    file.seek(8)
    text = file.read(min(length, MAX_HEADER))
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
