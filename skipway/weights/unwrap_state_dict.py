"""Flatten foreign state dicts: remove wrappers, prefixes and nesting, and report what was removed."""

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of, join_names
from skipway.weights.key_maps import Library
from skipway.weights.key_prefix import Prefix, find_prefix
from skipway.weights.unpickle_worker import find_entry

__all__ = ["ForeignState", "count_expected", "shown_key", "shown_tensors", "unwrap_state_dict"]

# Parts of a key that torch.compile, FSDP and activation checkpointing insert around a module.
_INSERTED = re.compile(r"(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_LONGEST = 100  # characters of a key in a message
_SHOWN = 8


@dataclass(frozen=True)
class ForeignState:
    """Tensors of a checkpoint by the keys of a library.

    Attributes:
        tensors: Tensors by key, without the prefix.
        prefix: The removed prefix.
        notes: What was chosen and what was removed, one text for each.
    """

    tensors: dict[str, Tensor]
    prefix: str
    notes: tuple[str, ...]


def unwrap_state_dict(state: Mapping[str, Any], table: Library, expected: Set[str]) -> ForeignState:
    """Return the tensors of `state` by their current, unprefixed keys, without ignored entries.

    Tensors outside the prefix are named in the notes. Without a prefix, no tensor is left out.

    Args:
        state: State dict, possibly nested, wrapped or prefixed.
        table: Library with the renamed and ignored keys.
        expected: Keys of the network in the library.

    Raises:
        InputError: The state is empty, a key is repeated, or a value is not a plain tensor.
    """
    leaves, note = _read_entry(state)
    prefix = _prefix_of(leaves, table, expected)
    inside = [(key[len(prefix.text) :], value) for key, value in leaves if key.startswith(prefix.text)]
    outside = {key: value for key, value in leaves if not key.startswith(prefix.text)}
    flat: dict[str, Tensor] = {}
    for key, value in inside:
        plain = _current_key(key, table)
        if any(re.fullmatch(pattern, plain) for pattern in table.ignored):
            continue
        if plain in flat:
            raise InputError(
                f"state: expected unique keys, got {shown_key(plain)} twice (older name or nested). Remove one."
            )
        flat[plain] = _to_tensor(plain, value)
    notes = [note] if note else []
    if inserted := sorted({part for key, _ in inside for part in _INSERTED.findall(key)}):
        notes.append(f"{' and '.join(inserted)} removed from its keys")
    if prefix.text:
        notes.append(f"prefix {shown_key(prefix.text)} removed")
    if outside:
        notes.append(f"ignored outside it: {_group(outside, prefix.others)}")
    return ForeignState(flat, prefix.text, tuple(notes))


def count_expected(state: Mapping[str, Any], table: Library, expected: Set[str]) -> int:
    """Return how many of the expected keys `state` has below one prefix.

    Raises:
        InputError: The state is empty.
    """
    return _prefix_of(_read_entry(state)[0], table, expected).size


def _read_entry(state: Mapping[str, Any]) -> tuple[list[tuple[str, Any]], str]:
    """Return the values of the chosen state dict with their joined names, and a note if there were several."""
    entry = find_entry(state, lambda mapping: any(hasattr(value, "shape") for _, value in _leaves(mapping, "")))
    content = state if entry is None else entry.content
    if not isinstance(content, Mapping) or not content:
        kind = type(content).__name__
        raise InputError(f"state: expected tensors or arrays by name, got an empty or other {kind}. Pass a state dict.")
    return list(_leaves(content, "")), "" if entry is None else entry.note


def _prefix_of(leaves: Iterable[tuple[str, Any]], table: Library, expected: Set[str]) -> Prefix:
    return find_prefix((key for key, _ in leaves), expected, lambda key: _current_key(key, table))


def _current_key(key: str, table: Library) -> str:
    """Return a key without inserted parts, with the names of the current version of the library."""
    key = _INSERTED.sub("", key)
    for pattern, replacement in table.renamed:
        key = re.sub(f"^{pattern}$", replacement, key)
    return key


def _group(tensors: Mapping[str, Any], copies: Iterable[str]) -> str:
    """Name tensors, those of a copy of the network together."""
    left, groups = dict(tensors), []
    for copy in copies:
        inside = [key for key in left if key.startswith(copy)]
        if inside:
            groups.append(f"{shown_key(copy)}* ({count_of(len(inside), 'tensor')})")
        for key in inside:
            del left[key]
    return ", ".join([*groups, *([shown_tensors(left)] if left else [])])


def shown_tensors(tensors: Mapping[str, Any]) -> str:
    """Return the first names and shapes of tensors, for messages."""
    names = (f"{shown_key(key)} {tuple(getattr(value, 'shape', ()))}" for key, value in tensors.items())
    return join_names(names, limit=_SHOWN)


def _leaves(tree: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}/")
        else:
            yield f"{above}{name}", value


def _to_tensor(key: str, value: Any) -> Tensor:
    """Convert a tensor or an array to a plain tensor, without a copy if torch supports the array."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        if value.layout == torch.strided and not value.is_meta:
            return value.detach()
        kind = "meta" if value.is_meta else str(value.layout)
    else:
        try:
            array = np.asarray(value)
            native = np.float32 if array.dtype.kind == "V" else array.dtype.newbyteorder("=")  # V: JAX's bfloat16
            array = array.astype(native, copy=False)
            is_supported = array.flags.writeable and min(array.strides, default=0) >= 0
            return torch.from_numpy(array if is_supported else array.copy())
        except (TypeError, ValueError):
            pass
    raise InputError(f"state: expected a plain tensor for {shown_key(key)}, got {kind}. Remove it.")


def shown_key(key: str) -> str:
    """Return a key in a printable and shortened form for messages."""
    return printable(key[:_LONGEST])
