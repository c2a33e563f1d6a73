"""Flatten foreign state dicts: remove wrappers, prefixes ("module.", "_orig_mod.") and nesting."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipway.errors import InputError, printable
from skipway.weights.key_maps import Library

__all__ = ["shown_key", "unwrap_state_dict"]

_WRAPPERS = ("state_dict", "model", "state_dict_ema", "net")  # keys under which training scripts store a state dict
_PREFIXES = r"((module|_orig_mod|model)\.)*"  # from DataParallel, torch.compile and others
_LONGEST = 100  # characters of a key in a message


def unwrap_state_dict(state: Mapping[str, Any], table: Library) -> dict[str, Tensor]:
    """Return the tensors of `state` by their current, unprefixed keys, without ignored entries.

    Args:
        state: State dict, possibly nested, wrapped or prefixed.
        table: Library with the renamed and ignored keys.

    Raises:
        InputError: The state is empty, a key is repeated, or a value is not a plain tensor.
    """
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state:
        kind = type(state).__name__
        raise InputError(f"state: expected tensors or arrays by name, got an empty or other {kind}. Pass a state dict.")
    leaves = list(_leaves(state, ""))
    prefix = re.match(_PREFIXES, os.path.commonprefix([key for key, _ in leaves]))
    flat: dict[str, Tensor] = {}
    for key, value in leaves:
        plain = key[prefix.end() :] if prefix else key
        for pattern, replacement in table.renamed:
            plain = re.sub(f"^{pattern}$", replacement, plain)
        if any(re.fullmatch(pattern, plain) for pattern in table.ignored):
            continue
        if plain in flat:
            raise InputError(
                f"state: expected unique keys, got {shown_key(plain)} twice (older name or nested). Remove one."
            )
        flat[plain] = _to_tensor(plain, value)
    return flat


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
