"""Run on its own, with limits: reads one file of torch's pickles as plain tensors and writes them out as safetensors.

    python -I unpickle_worker.py FILE FOLDER...      # the folders where torch and safetensors are installed

For every tensor it writes a length (8 bytes, little-endian) and so many bytes of safetensors that hold just this one:
so neither side holds the network twice. It imports nothing of skipway, and reads nothing of FILE before its limits
stand: on memory and computing time (Linux; elsewhere what the system enforces of them), and not a byte to any file.
"""

import os
import re
import sys
import time
import zipfile
from collections.abc import Iterator
from typing import Any

try:
    import resource
except ImportError:  # not on Windows, where only the parent's time limit holds; `read_state` warns of it there
    resource = None  # type: ignore[assignment]

WRAPPERS = ("state_dict", "model", "state_dict_ema", "net")  # what training scripts put a state under
OTHER_ZIP = 3  # the exit status for a zip file of another tool than torch.save
_MAX_DEPTH = 3  # wrappers within wrappers
_SECONDS = 5  # of computing, and one more for every 16 MiB
_SPARE = 512 * 2**20  # bytes of memory beside the tensors
_SHARED = 16 * 2**20  # bytes that tensors may have more than twice their file, because they share memory


def limit(size: int) -> None:
    """No more memory or time than a file of `size` bytes can need from here on, and not a byte written to any file."""
    if resource is None:
        return
    seconds = int(time.process_time()) + _SECONDS + size // 2**24
    limits = {"CPU": seconds, "FSIZE": 0, "CORE": 0}
    if os.path.exists("/proc/self/statm"):  # torch itself takes 0.6 GB of address space, with CUDA several
        with open("/proc/self/statm") as file:
            limits["AS"] = int(file.read().split()[0]) * resource.getpagesize() + _SPARE + 5 * size
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]  # what stands already may be less
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        last = value + 1 if name == "CPU" and value != hard else value  # killed at the hard limit, nothing says why
        resource.setrlimit(kind, (value, last))


def is_torch_zip(path: str) -> bool:
    """Whether a zip file is one of torch.save, and not TorchScript, an exported program, Keras or numpy.

    Raises:
        ValueError: it is damaged, or it is compressed or overlaps so that it would grow when read. torch reads over
            wrong checksums without a word.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        scripted = any("/code/" in name or name.endswith("constants.pkl") for name in names)
        if scripted or not any(name.endswith("/data.pkl") for name in names):
            return False
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > os.path.getsize(path):
            raise ValueError("it is compressed, as torch.save never writes it")
        for member in members:
            if member.external_attr & 0x10:  # torch takes such a member for read, and gives what was in memory before
                raise ValueError(f"its {member.filename} is marked as a folder, which damage has done")
            if member.CRC:  # torch writes 0 where it was told to leave checksums out
                with archive.open(member) as file:
                    while file.read(2**20):  # the last read compares
                        pass
    return True


def state_in(content: object, depth: int = 0) -> dict[str, Any]:
    """The tensors by name: of the state that a training script wrapped, or of the mapping itself."""
    import torch

    if not isinstance(content, dict):
        return {}
    for wrapper in WRAPPERS if depth < _MAX_DEPTH else ():
        if inner := state_in(content.get(wrapper), depth + 1):
            return inner
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}


def plain(name: str, value: Any) -> Any:
    """`value` as a tensor whose memory holds its numbers in order."""
    import torch

    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        kind = value.dtype if value.is_quantized else value.layout
        if not value.is_quantized and value.device.type != "cpu":
            kind = value.device
        raise ValueError(f"its {name} is no plain tensor but {str(kind).removeprefix('torch.')}")
    return value.detach().resolve_conj().resolve_neg().contiguous()


def read(path: str) -> Iterator[bytes]:
    """The tensors of the file at `path`, each as the bytes of a safetensors file, by torch's restricted unpickler."""
    import safetensors.torch
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    state = state_in(content)
    if not state:
        held = f" with {', '.join(map(repr, list(content)[:5]))}" if isinstance(content, dict) else ""
        raise ValueError(f"it holds a {type(content).__name__}{held}, not names with tensors, nor such a state_dict")
    del content
    size, needed = os.path.getsize(path), sum(value.numel() * value.element_size() for value in state.values())
    if needed > 2 * size + _SHARED:
        raise ValueError(f"its tensors would take {needed} bytes, which a file of {size} bytes cannot hold")
    for name in list(state):
        yield safetensors.torch.save({name: plain(name, state.pop(name))})


def reason(error: BaseException) -> str:
    """Why torch refused, in a line; its own text would have the reader load the file unsafely."""
    text = str(error)
    if isinstance(error, MemoryError) or "allocate memory" in text or type(error).__name__ == "PanicException":
        return "it needs more memory than a file of its size should"
    if code := re.search(r"GLOBAL (\S+)", text):
        return f"it refers to {code[1]}, which is code"
    lines = [line.strip() for line in text.splitlines()]
    reasons = [line for line in lines if line and "weights_only" not in line and "torch.load" not in line]
    return (reasons or [type(error).__name__])[0][:300]


def main(path: str) -> int:
    """Write what `read` gives; the exit status, 1 with the reason on stderr."""
    import safetensors.torch  # noqa: F401 - before the limits: what these need is not the file's doing
    import torch  # noqa: F401

    try:
        limit(os.path.getsize(path))
        with open(path, "rb") as file:
            if file.read(2) == b"PK" and not is_torch_zip(path):
                return OTHER_ZIP
        for content in read(path):
            sys.stdout.buffer.write(len(content).to_bytes(8, "little") + content)
        sys.stdout.buffer.flush()
    except BaseException as error:  # safetensors' Rust throws what is no Exception
        print(reason(error).encode("ascii", "backslashreplace").decode(), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.path += sys.argv[2:]
    sys.exit(main(sys.argv[1]))
