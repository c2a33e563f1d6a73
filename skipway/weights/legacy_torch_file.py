"""Weights that torch wrote before version 1.6, read by the layout of the file: no pickle in it is run.

Such a file is five pickles, of which the fourth names the tensors and the fifth the order of their storages, and then
each storage: its number of elements (8 bytes, little-endian) and the elements. The pickles are only listed, as
`pickletools` does it. That takes a twentieth of a second where a process that unpickles under limits
(`read_foreign_checkpoint`) takes two, but it bears no surprises: it is for files whose checksum is known.
"""

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

__all__ = ["read_legacy_file"]

_CONSTANTS = ("storage", "cpu")  # what stands beside a storage's key
_END_OF_TUPLE = ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")


def read_legacy_file(file: BinaryIO) -> dict[str, Tensor]:
    """Return the float32 tensors of a state dict by name.

    Tensors named `num_batches_tracked`, which are int64, are left out.

    Args:
        file: at its beginning, with tensors that each have a storage of their own.

    Raises:
        ValueError: the file has another layout.
    """
    pickles = [list(pickletools.genops(file)) for _ in range(5)]
    tensors = list(_described(pickles[3]))
    keys = [str(value) for operation, value, _ in pickles[4] if operation.name == "BINUNICODE"]
    if sorted(keys) != sorted(tensor.key for tensor in tensors):
        raise ValueError("expected one storage for each tensor")
    by_key = {tensor.key: tensor for tensor in tensors}
    state = {}
    for tensor in map(by_key.__getitem__, keys):
        is_counter = tensor.name.endswith("num_batches_tracked")
        count = int.from_bytes(file.read(8), "little")
        content = bytearray(file.read(count * (8 if is_counter else 4)))
        if not is_counter:
            state[tensor.name] = tensor.tensor(content)
    if file.read(1):
        raise ValueError("expected the end of the file after its last storage")
    return {tensor.name: state[tensor.name] for tensor in tensors if tensor.name in state}


@dataclass
class _Described:
    """One tensor as the pickle describes it; `numbers` are its place in the storage, its shape and its strides."""

    name: str
    key: str
    numbers: list[list[int]]

    def tensor(self, content: bytearray) -> Tensor:
        (offset, *shape), strides = self.numbers
        return torch.frombuffer(content, dtype=torch.float32).as_strided(shape, strides, offset).contiguous()


def _described(operations: list[tuple[Any, Any, Any]]) -> Iterator[_Described]:
    """Yield the tensors that the listed operations would rebuild."""
    strings: list[str] = []
    numbers: list[list[int]] = []
    for operation, value, _ in operations:
        if operation.name == "BINUNICODE" and value not in _CONSTANTS:
            strings.append(value)
        elif operation.name == "BINPERSID":  # name and key of a storage are known; shape and strides follow
            current: list[int] = []
            numbers = [current]
        elif operation.name.startswith("BININT") and numbers:
            current.append(value)
        elif operation.name in _END_OF_TUPLE and numbers:
            if len(numbers) == 2:
                if len(strings) != 2:
                    raise ValueError(f"expected a name and a storage for each tensor, got {strings}")
                yield _Described(strings[0], strings[1], numbers)
                strings, numbers = [], []
            else:
                current = []
                numbers.append(current)
    if strings and strings[0] != "_metadata":  # of a module's state dict
        raise ValueError(f"expected a tensor of its own for {strings[0]}")
