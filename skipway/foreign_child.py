"""Run on its own, with limits: reads one file of torch's pickles as plain tensors and writes them out as safetensors.

It imports nothing of skipway, and torch only within its limits: `python -I foreign_child.py FILE MEGABYTES`.
"""

import re
import sys
from typing import Any

WRAPPERS = ("state_dict", "model", "state_dict_ema", "net")  # what training scripts put a state under
CPU_SECONDS = 120


def limit(megabytes: int) -> None:
    """No more memory or time than a file of this size can need, and not a byte written to any file."""
    try:
        import resource
    except ImportError:  # not on Windows; the parent's time limit holds there
        return
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def tensors_of(content: object) -> dict[str, Any]:
    """The tensors by name: of the state that a training script wrapped, or of the mapping itself."""
    import torch

    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not names with tensors")
    found, seen = {}, set()
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            plain = value.detach().contiguous()
            place = plain.untyped_storage().data_ptr()
            found[str(name)] = plain.clone() if place in seen else plain  # safetensors wants memory that is not shared
            seen.add(place)
    if not found:
        raise ValueError("it holds no tensors under names, nor under state_dict or model")
    return found


def read(path: str) -> bytes:
    """The tensors of the file at `path` as the bytes of a safetensors file, by torch's restricted unpickler."""
    import safetensors.torch
    import torch

    return safetensors.torch.save(tensors_of(torch.load(path, map_location="cpu", weights_only=True)))


def reason(error: Exception) -> str:
    """Why torch refused, in a line; its own text would have the reader load the file unsafely."""
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it refers to {code[1]}, which is code"
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and "weights_only" not in line and "torch.load" not in line]
    return (told or [type(error).__name__])[0][:300]


if __name__ == "__main__":
    try:
        limit(int(sys.argv[2]))
        sys.stdout.buffer.write(read(sys.argv[1]))
    except MemoryError:
        sys.exit("it needs more memory than a file of its size should")
    except Exception as error:
        sys.exit(reason(error))
