"""Reader of torch's file format before version 1.6, which never runs a pickle.

Such a file has five pickles and then the storages. The fourth pickle names the tensors, the fifth the order of the
storages. Each storage is its number of elements (8 bytes, little-endian) and the elements. `pickletools` lists the
opcodes of the pickles. This takes 0.05 seconds, compared with 2 for the sandboxed process of
`read_foreign_checkpoint`. It supports only simple files, so use it for files with a known checksum.
"""

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

__all__ = ["read_legacy_file"]

_CONSTANTS = ("storage", "cpu")  # strings next to the key of a storage
_END_OF_TUPLE = ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")


def read_legacy_file(file: BinaryIO) -> dict[str, Tensor]:
    """Return the float32 tensors of a state dict by name, without the int64 `num_batches_tracked`.

    Args:
        file: Open file, at its start. No two tensors share a storage.

    Raises:
        ValueError: The file has another layout.
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
    """Description of a tensor in a pickle; `numbers` are [offset, *shape] and the strides."""

    name: str
    key: str
    numbers: list[list[int]]

    def tensor(self, content: bytearray) -> Tensor:
        (offset, *shape), strides = self.numbers
        return torch.frombuffer(content, dtype=torch.float32).as_strided(shape, strides, offset).contiguous()


def _described(operations: list[tuple[Any, Any, Any]]) -> Iterator[_Described]:
    """Yield the descriptions of the tensors that these pickle opcodes build."""
    strings: list[str] = []
    numbers: list[list[int]] = []
    for operation, value, _ in operations:
        if operation.name == "BINUNICODE" and value not in _CONSTANTS:
            strings.append(value)
        elif operation.name == "BINPERSID":  # name and storage key precede it; shape and strides follow
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
    if strings and strings[0] != "_metadata":  # an attribute of state dicts
        raise ValueError(f"expected a separate storage for {strings[0]}")
