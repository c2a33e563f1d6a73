"""Sandboxed process that reads one torch checkpoint as plain tensors and writes them as safetensors.

    python -I unpickle_worker.py FILE FOLDER...      # the folders where torch and safetensors are installed

For each tensor it writes a length (8 bytes, little-endian) and a safetensors file of that length with this tensor, so
that neither process holds all weights twice. It does not import skipway. Before it reads FILE, it limits memory and
CPU time (on Linux; elsewhere as far as the system enforces them) and forbids writing to files.
"""

import os
import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

try:
    import resource
except ImportError:  # Windows has only the time limit of the parent, and `read_state` prints a warning
    resource = None  # type: ignore[assignment]

# Keys under which training scripts store a state dict, in the order of preference: trained weights come before copies
# of them, such as an EMA.
WRAPPERS = (
    *("state_dict", "model", "net", "network", "model_state_dict", "model_state", "weights", "student"),
    *("state_dict_ema", "model_ema", "model_ema_state_dict", "ema_state_dict", "ema_model", "ema", "teacher"),
)
OTHER_ZIP = 3  # exit status for a zip file that torch.save did not write
NOTE = "skipway_entry"  # name in the metadata of the first safetensors file
_MAX_DEPTH = 3  # nested wrappers
_SECONDS = 5  # CPU time, plus 1 second for every 16 MiB
_SPARE = 512 * 2**20  # bytes of memory in addition to the tensors
_SHARED = 16 * 2**20  # bytes of tensors above twice the file size, because tensors may share memory


def limit(size: int) -> None:
    """Limit memory and CPU time to the needs of a file of `size` bytes, and forbid writing to files."""
    if resource is None:
        return
    seconds = int(time.process_time()) + _SECONDS + size // 2**24
    limits = {"CPU": seconds, "FSIZE": 0, "CORE": 0}
    if os.path.exists("/proc/self/statm"):  # torch takes 0.6 GB of address space, and several with CUDA
        with open("/proc/self/statm") as file:
            limits["AS"] = int(file.read().split()[0]) * resource.getpagesize() + _SPARE + 5 * size
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]  # an existing limit may be lower
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        last = value + 1 if name == "CPU" and value != hard else value  # the hard limit kills without a reason
        resource.setrlimit(kind, (value, last))


def is_torch_zip(path: str) -> bool:
    """Return True if torch.save wrote a zip file, and not TorchScript, torch.export, Keras or numpy.

    Raises:
        ValueError: The file is damaged, or is larger when read, because it is compressed or its members overlap.
            torch does not verify checksums.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        scripted = any("/code/" in name or name.endswith("constants.pkl") for name in names)
        if scripted or not any(name.endswith("/data.pkl") for name in names):
            return False
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > os.path.getsize(path):
            raise ValueError("it is compressed, which torch.save never does")
        for member in members:
            if member.external_attr & 0x10:  # torch would return uninitialized memory for it
                raise ValueError(f"its member {member.filename} is marked as a folder, so the file is damaged")
            if member.CRC:  # torch writes 0 if checksums are disabled
                with archive.open(member) as file:
                    while file.read(2**20):  # the last read verifies the checksum
                        pass
    return True


class Entry(NamedTuple):
    """State dict in a checkpoint: the names of its wrappers, its content, and the wrappers that were not chosen."""

    path: tuple[str, ...]
    content: Mapping[Any, Any]
    others: tuple[str, ...]

    @property
    def note(self) -> str:
        """Text about the choice, or an empty string if there was none."""
        return f"entry {'.'.join(self.path)} (not {', '.join(self.others)})" if self.others else ""


def find_entry(content: object, holds: Callable[[Mapping[Any, Any]], bool], depth: int = 0) -> Entry | None:
    """Return the first entry of `WRAPPERS` with tensors, else `content` itself, or None if it has none either.

    Args:
        content: content of a checkpoint.
        holds: returns True for a mapping with tensors.
        depth: number of wrappers around `content`.
    """
    if not isinstance(content, Mapping):
        return None
    inside = [(wrapper, content[wrapper]) for wrapper in WRAPPERS if depth < _MAX_DEPTH and wrapper in content]
    entries = [(wrapper, entry) for wrapper, value in inside if (entry := find_entry(value, holds, depth + 1))]
    if entries:
        (wrapper, first), *rest = entries
        return Entry((wrapper, *first.path), first.content, (*first.others, *(name for name, _ in rest)))
    return Entry((), content, ()) if holds(content) else None


def holds_named_tensors(mapping: Mapping[Any, Any]) -> bool:
    """Return True if the mapping has a tensor under a name."""
    return bool(named_tensors(mapping))


def named_tensors(mapping: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the tensors of a mapping by name."""
    import torch

    return {name: value for name, value in mapping.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}


def plain(name: str, value: Any) -> Any:
    """Return `value` as a contiguous CPU tensor; raise a ValueError if its layout is not dense."""
    import torch

    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        kind = value.dtype if value.is_quantized else value.layout
        if not value.is_quantized and value.device.type != "cpu":
            kind = value.device
        raise ValueError(f"its {name} is not a plain tensor, but {str(kind).removeprefix('torch.')}")
    return value.detach().resolve_conj().resolve_neg().contiguous()


def read(path: str) -> Iterator[bytes]:
    """Read a file with torch's restricted unpickler, and yield each tensor as the bytes of a safetensors file."""
    import safetensors.torch
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    entry = find_entry(content, holds_named_tensors)
    if entry is None:
        held = f" with {', '.join(map(repr, list(content)[:5]))}" if isinstance(content, dict) else ""
        raise ValueError(f"expected tensors by name or a state_dict, got a {type(content).__name__}{held}")
    state, note = named_tensors(entry.content), entry.note
    del content, entry
    size, needed = os.path.getsize(path), sum(value.numel() * value.element_size() for value in state.values())
    if needed > 2 * size + _SHARED:
        raise ValueError(f"its tensors take {needed} bytes, too many for a file of {size} bytes")
    for name in list(state):
        yield safetensors.torch.save({name: plain(name, state.pop(name))}, {NOTE: note} if note else None)
        note = ""


def reason(error: BaseException) -> str:
    """Return one line about an error of torch, without its advice to load the file unsafely."""
    text = str(error)
    if isinstance(error, MemoryError) or "allocate memory" in text or type(error).__name__ == "PanicException":
        return "it needs too much memory for its size"
    if code := re.search(r"GLOBAL (\S+)", text):
        return f"it refers to {code[1]}, which is code"
    lines = [line.strip() for line in text.splitlines()]
    reasons = [line for line in lines if line and "weights_only" not in line and "torch.load" not in line]
    return (reasons or [type(error).__name__])[0][:300]


def main(path: str) -> int:
    """Write the tensors of a file to stdout, and return the exit status; 1 means an error, printed to stderr."""
    import safetensors.torch  # noqa: F401 - before the limits, which must not count these imports
    import torch  # noqa: F401

    try:
        limit(os.path.getsize(path))
        with open(path, "rb") as file:
            if file.read(2) == b"PK" and not is_torch_zip(path):
                return OTHER_ZIP
        for content in read(path):
            sys.stdout.buffer.write(len(content).to_bytes(8, "little") + content)
        sys.stdout.buffer.flush()
    except BaseException as error:  # safetensors' Rust panics are not an Exception
        print(reason(error).encode("ascii", "backslashreplace").decode(), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.path += sys.argv[2:]
    sys.exit(main(sys.argv[1]))
