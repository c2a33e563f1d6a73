"""Unwrap a state dict: wrappers, prefixes ("module.", "_orig_mod.") and nesting taken off, values as plain tensors."""

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

_WRAPPERS = ("state_dict", "model", "state_dict_ema", "net")  # what training scripts put a state under
_PREFIXES = r"((module|_orig_mod|model)\.)*"  # what DataParallel, torch.compile and others put before every key
_LONGEST = 100  # letters of a key in a message


def unwrap_state_dict(state: Mapping[str, Any], table: Library) -> dict[str, Tensor]:
    """The tensors of `state` under their plain names: wrappers, prefixes, older names and what is ignored taken off."""
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state:
        kind = type(state).__name__
        raise InputError(f"a state is names with tensors or arrays, as state_dict() gives them, not an empty {kind}")
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
                f"the state holds {shown_key(plain)} twice, under an older name or nested too; leave one out"
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
    """A tensor or an array as a plain tensor; without a copy where torch can use the array as it stands."""
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
            as_it_stands = array.flags.writeable and min(array.strides, default=0) >= 0
            return torch.from_numpy(array if as_it_stands else array.copy())
        except (TypeError, ValueError):
            pass
    raise InputError(f"the state holds {shown_key(key)}, which is no plain tensor but {kind}; leave it out")


def shown_key(key: str) -> str:
    """Return a key as messages show it: printable, and not endless."""
    return printable(key[:_LONGEST])
