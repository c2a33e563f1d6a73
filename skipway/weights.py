"""Weights: other libraries' checkpoints become networks with the same outputs, and networks their checkpoints.

    network = adopt(state, library="torchvision", name="resnet50")
    state = release(network, library="timm")

The tables stand in `keymaps`; here is the proof that a state and a network fit: every key of either side is accounted
for and every shape is equal, or nothing is loaded.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import InputError, ShapeError, did_you_mean, printable
from skipway.keymaps import LIBRARIES, Library
from skipway.models import registry
from skipway.network import Network, planned

__all__ = ["adopt", "release"]

_WRAPPERS = ("state_dict", "model", "state_dict_ema", "net")  # what training scripts put a state under
_PREFIXES = ("module.", "_orig_mod.", "model.")  # what DataParallel, torch.compile and others put before every key
_COUNTER = "num_batches_tracked"
_SHOWN = 6


def adopt(state: Mapping[str, Any], library: str, name: str, num_classes: int | None = None, **options: Any) -> Network:
    """The network `name` of `library` as one of ours, with the weights of `state` and the same outputs; to evaluate.

    Args:
        state: names and tensors or arrays as that library keeps them; nested ({"params": ...}) or flat with "/", under
            "state_dict", "model" and the like, and with "module." before every key, as files have it.
        library: "torchvision", "timm", "fastai", "flax" or "akamaster".
        name: the library's name of the network ("resnet50", "ResNet50", "xresnet34").
        num_classes: outputs; where they are not the state's, the head is left fresh and all else adopted.
        options: values of the plan that differ from those of `name`, such as `layers` and `widths`.

    Classes and channels are read from the state. Floating point becomes float32, or stays float64 where all of it is.

    Raises:
        ShapeError: keys are missing, left over, of another shape or kind, or not finite: all are told in one line, and
            nothing has been loaded.
        InputError: the library, or the network with these options, is not known.
    """
    table = _table(library)
    own_name, own_options = table.own_name(name)
    plan = registry.plan_of(own_name, **{**own_options, **options})
    if refusal := table.refusal(plan):
        raise InputError(f"{library} has no network like {name!r} with these options: {refusal}; give others")
    flat = _flat(state, table)
    read = _read_off(flat, plan, table)
    fresh = num_classes is not None and num_classes != read.get("num_classes")
    classes = {"num_classes": num_classes} if fresh else {}
    plan = registry.plan_of(own_name, **{**own_options, **read, **classes, **options})
    with torch.device("meta"):
        network = planned(plan)
    wanted = network.state_dict()
    keys = {own: table.key(plan, own, like.dim()) for own, like in wanted.items()}
    head = [own for own in wanted if fresh and own.startswith("head.")]
    for own in head:
        flat.pop(keys[own] or "", None)
        del wanted[own]
    found = _matched(flat, wanted, keys, table, f"{library}'s {name}")
    if head:
        like = network.head
        assert isinstance(like, nn.Linear)
        made = nn.Linear(like.in_features, like.out_features, dtype=next(iter(found.values())).dtype)
        found |= {f"head.{leaf}": value for leaf, value in made.state_dict().items()}
    network.load_state_dict(found, assign=True)
    return network.eval()


def release(network: Network, library: str) -> dict[str, Tensor]:
    """The weights of `network` under the names and in the layouts of `library`; `adopt` takes them back unchanged.

    Where the layout is the same, the tensors are the network's own, as those of `state_dict()` are.

    Raises:
        InputError: the library has no such network; names the values of the plan that it does not know.
    """
    table, plan = _table(library), network.plan
    if not plan:
        raise InputError("release needs a network with a plan: one of create_model, adopt or load")
    if refusal := table.refusal(plan):
        raise InputError(f"{library} cannot hold {plan['name']}: {refusal}; release it to another library")
    released = {}
    for own, value in network.state_dict().items():
        key = table.key(plan, own, value.dim())
        if key is None and not own.endswith(_COUNTER):
            raise InputError(f"{library} has no place for {own}; release it to another library")
        if key is not None:
            released[key] = table.values(key, value, True)
    return released


def _table(library: str) -> Library:
    if library not in LIBRARIES:
        raise InputError(
            f"no library is called {library!r}{did_you_mean(str(library), LIBRARIES)}; there are {', '.join(LIBRARIES)}"
        )
    return LIBRARIES[library]


def _flat(state: Mapping[str, Any], table: Library) -> dict[str, Tensor]:
    """The tensors of `state` under their plain names: wrappers, prefixes, older names and what is ignored taken off."""
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state:
        kind = type(state).__name__
        raise InputError(f"a state is names with tensors or arrays, as state_dict() gives them, not an empty {kind}")
    flat = dict(_leaves(state, ""))
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in flat):
            flat = {key.removeprefix(prefix): value for key, value in flat.items()}
    for pattern, replacement in table.renamed:
        flat = {re.sub(f"^{pattern}$", replacement, key): value for key, value in flat.items()}
    return {k: _tensor(k, v) for k, v in flat.items() if not any(re.fullmatch(p, k) for p in table.ignored)}


def _leaves(tree: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}/")
        else:
            yield f"{above}{name}", value


def _tensor(key: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    try:
        return torch.from_numpy(np.asarray(value))
    except TypeError:
        raise InputError(
            f"the state holds {printable(key)}, which is no tensor but {type(value).__name__}; leave it out"
        ) from None


def _read_off(flat: dict[str, Tensor], plan: dict[str, Any], table: Library) -> dict[str, int]:
    """The classes and channels of a state, from the shapes of its head and its first convolution."""
    read = {}
    for option, axis, dims, candidates in (
        ("num_classes", 0, 2, ("head",)),
        ("in_chans", 1, 4, ("stem.conv", "stem.step.conv", "stem.step1.conv")),
    ):
        for path in candidates:
            key = table.key(plan, f"{path}.weight", dims)
            shape = table.values(key, flat[key], False).shape if key in flat else ()
            if len(shape) == dims:
                read[option] = shape[axis]
    return read


def _matched(
    flat: dict[str, Tensor], wanted: dict[str, Tensor], keys: dict[str, str | None], table: Library, source: str
) -> dict[str, Tensor]:
    """Our tensors, filled from `flat`: all of them, with all of it, or the differences as an error."""
    wide = all(value.dtype == torch.float64 for value in flat.values() if value.is_floating_point())
    found, wrong, taken = {}, [], set()
    for own, like in wanted.items():
        key = keys[own]
        if key is None or key not in flat:
            if own.endswith(_COUNTER):  # it only counts steps: libraries leave it out
                found[own] = torch.zeros_like(like, device="cpu")
            else:
                wrong.append(f"{key or own} is missing")
            continue
        taken.add(key)
        value = table.values(key, flat[key], False)
        if flaw := _flaw(value, like):
            wrong.append(f"{printable(key)} {flaw}")
        else:
            kind = like.dtype if not like.is_floating_point() else torch.float64 if wide else torch.float32
            found[own] = value.to(kind, copy=True).contiguous()
    wrong += [f"{printable(key)} {tuple(flat[key].shape)} has no place" for key in flat if key not in taken]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ShapeError(
            f"the state is not that of {source}: {'; '.join(wrong[:_SHOWN])}{more}; nothing was loaded: give the name "
            "and the options of the network that it was saved from"
        )
    return found


def _flaw(value: Tensor, like: Tensor) -> str:
    if value.shape != like.shape:
        return f"is {tuple(value.shape)}, expected {tuple(like.shape)}"
    if value.is_floating_point() != like.is_floating_point():
        return f"holds {str(value.dtype).removeprefix('torch.')}, expected {str(like.dtype).removeprefix('torch.')}"
    return "" if not value.is_floating_point() or value.isfinite().all() else "is not finite"
