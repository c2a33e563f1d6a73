"""Encoding of tensors as a safetensors file, block by block, so that no second copy of all tensors is in memory.

A file is the length of the header (8 bytes), the header as JSON, and the bytes of the tensors without gaps. Tensors
with large elements come first, so that each is aligned.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from skipway.errors import printable
from skipway.utils.format_text import join_names

__all__ = ["TensorFile", "describe_nonfinite", "raw_bytes", "to_plain"]

# Names of dtypes in safetensors.
_DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_BLOCK = 8 * 2**20  # bytes that are written at once: smaller tensors are joined, larger ones are divided


def to_plain(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU with the values in memory, without gradient."""
    return tensor.detach().cpu().resolve_conj().resolve_neg()


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a plain tensor in row-major order. They are copied only if the layout is another one."""
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


class TensorFile:
    """A safetensors file that is yet to be written.

    Args:
        tensors: plain tensors by name, see `to_plain`. They must not change until the file is written.
        notes: metadata of the file.

    Attributes:
        header: first bytes of the file, up to the tensors.
        size: bytes of the file.

    Raises:
        TypeError: a name is not a string.
        ValueError: safetensors does not support a name or a tensor.

    >>> len(b"".join(TensorFile({"a": torch.ones(3)}).blocks()))
    76
    """

    def __init__(self, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None):
        header: dict[str, object] = {} if notes is None else {"__metadata__": dict(sorted(notes.items()))}
        self._tensors = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
        offset = 0
        for name, tensor in self._tensors:
            if not isinstance(name, str):
                raise TypeError(f"expected strings as names, got {name!r}")
            if name == "__metadata__":
                raise ValueError("the name '__metadata__' is reserved")
            if tensor.dtype not in _DTYPES or tensor.layout is not torch.strided or tensor.device.type != "cpu":
                raise ValueError(f"'{name}' is {tensor.dtype}, {tensor.layout}, on {tensor.device.type}")
            end = offset + tensor.numel() * tensor.element_size()
            header[name] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self.header = len(text).to_bytes(8, "little") + text
        self.size = len(self.header) + offset

    def blocks(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes of the file in blocks of at most 8 MiB."""
        small = bytearray()
        for block in self._pieces():
            if len(small) + len(block) > _BLOCK and small:
                yield bytes(small)
                small.clear()
            if len(block) == _BLOCK:
                yield block
            else:
                small += block
        yield bytes(small)

    def _pieces(self) -> Iterator[memoryview]:
        """Yield the header and the tensors, divided into pieces of at most one block."""
        for whole in chain([memoryview(self.header)], (raw_bytes(tensor) for _, tensor in self._tensors)):
            for begin in range(0, len(whole), _BLOCK):
                yield whole[begin : begin + _BLOCK]


def describe_nonfinite(tensors: dict[str, Tensor]) -> str:
    """Return a text such as "NaN: 'a', 'b'" for the tensors that are not finite, else an empty string."""
    names, kind = [], "infinity"
    for name, tensor in tensors.items():
        if tensor.is_floating_point() or tensor.is_complex():
            wide = tensor.float() if tensor.element_size() == 1 else tensor  # isfinite does not support float8
            if not _is_finite(wide):
                names.append(f"'{printable(name)}'")
                kind = "NaN" if torch.isnan(wide).any() else kind
    return f"{kind}: {join_names(names, limit=3)}" if names else ""


def _is_finite(tensor: Tensor) -> bool:
    """Return True if all values are finite. NumPy uses one thread, and does not disturb those of a training step."""
    if tensor.dtype == torch.bfloat16:
        return bool(torch.isfinite(tensor).all())
    return bool(np.isfinite(tensor.detach().numpy()).all())
