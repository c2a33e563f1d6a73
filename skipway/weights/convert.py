"""Weights: other libraries' checkpoints become networks with the same outputs, and networks their checkpoints.

    network = adopt(state, library="torchvision", name="resnet50")
    state = release(network, library="timm")

The tables stand in `keymaps`; here is the proof that a state and a network fit: every key of either side is accounted
for and every shape is equal, or nothing is loaded.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skipway.errors import InputError, ShapeError, did_you_mean
from skipway.models import registry
from skipway.models.network import Network, build_meta_network
from skipway.utils.format_text import join_names
from skipway.weights.key_maps import LIBRARIES, Library
from skipway.weights.unwrap_state_dict import shown_key, unwrap_state_dict

__all__ = ["adopt", "keys_shared", "release"]

_COUNTER = "num_batches_tracked"
_SHOWN = 6


def adopt(state: Mapping[str, Any], library: str, name: str, num_classes: int | None = None, **options: Any) -> Network:
    """The network `name` of `library` as one of ours, with the weights of `state` and the same outputs; to evaluate.

    Args:
        state: names and tensors or arrays as that library keeps them; nested ({"params": ...}) or flat with "/", under
            "state_dict", "model" and the like, and with "module." before every key, as files have it.
        library: "torchvision", "timm", "fastai", "flax", "akamaster" or "lukemelas".
        name: the library's name of the network ("resnet50", "ResNet50", "xresnet34").
        num_classes: outputs; where they are not the state's, the head is left fresh and all else adopted.
        options: values of the plan that differ from those of `name`, such as `layers` and `widths`.

    Classes and channels are read from the state. Floating point becomes float32, or stays float64 where all of it is;
    `num_batches_tracked` starts at 0 where the state has none.

    Raises:
        ShapeError: keys are missing, left over, of another shape or kind, or not finite: the first are told in one
            line, and nothing has been loaded.
        InputError: the library, or the network with these options, is not known, or the state holds no tensors.
    """
    table = _library(library)
    own_name, own_options = table.own_name(name)
    plan = registry.plan_of(own_name, **{**own_options, **options})
    if refusal := table.refusal(plan):
        raise InputError(f"{library} has no network like {name!r} with these options: {refusal}; give others")
    flat = unwrap_state_dict(state, table)
    sizes = _read_sizes(flat, plan, table)
    new_head = num_classes is not None and num_classes != sizes.get("num_classes")
    if new_head:
        sizes["num_classes"] = num_classes
    plan = registry.plan_of(own_name, **{**own_options, **sizes, **options})
    network = build_meta_network(plan)
    expected = network.state_dict()
    source = f"{library}'s {name}{_similar_libraries(flat, plan, table)}"
    keys = {own: table.key(plan, own, like.dim()) for own, like in expected.items()}
    head = [own for own in expected if new_head and own.startswith("head.")]
    for own in head:
        flat.pop(keys[own] or "", None)
        del expected[own]
    state_dict = _match_tensors(flat, expected, keys=keys, table=table, plan=plan, source=source)
    if head:
        old_head = network.head
        assert isinstance(old_head, nn.Linear)
        dtype = next(iter(state_dict.values())).dtype
        fresh_head = nn.Linear(old_head.in_features, old_head.out_features, dtype=dtype)
        state_dict |= {f"head.{leaf}": value for leaf, value in fresh_head.state_dict().items()}
    network.load_state_dict(state_dict, assign=True)
    return network.eval()


def release(network: Network, library: str) -> dict[str, Tensor]:
    """The weights of `network` under the names and in the layouts of `library`; `adopt` takes them back unchanged.

    Flax's names are joined by "/" (`flax.traverse_util.unflatten_dict(state, sep="/")` makes the tree) and have no
    `num_batches_tracked`. Where the layout is the same, the tensors are the network's own, as those of `state_dict()`.

    Raises:
        InputError: the library has no such network; names the values of the plan that it does not know. Or the network
            was changed by hand and is not what its plan says.
    """
    table, plan = _library(library), network.plan
    if not plan:
        raise InputError("release needs a network with a plan: one of create_model, adopt or load")
    if refusal := table.refusal(plan):
        raise InputError(f"{library} cannot hold {plan['name']}: {refusal}; release it to another library")
    state = network.state_dict()
    if changed := sorted(state.keys() ^ build_meta_network(plan).state_dict().keys()):
        shown = join_names(changed, limit=_SHOWN)
        raise InputError(f"the network is no longer what its plan says: {shown} came or went; release it before that")
    released = {}
    for own, value in state.items():
        key = table.key(plan, own, value.dim())
        assert key is not None or own.endswith(_COUNTER), own
        if key is not None:
            released[key] = table.values(plan, key, value, True).contiguous()
    return released


def keys_shared(state: Mapping[str, Any], library: str, name: str, options: dict[str, Any]) -> int:
    """How many names of `state` are those that `library` gives the layers of the network `name`."""
    table = LIBRARIES[library]
    try:
        own_name, own_options = table.own_name(name)
        plan = registry.plan_of(own_name, **{**own_options, **options})
        if table.refusal(plan):
            return 0
        flat = unwrap_state_dict(state, table)
    except InputError:
        return 0
    expected = build_meta_network(plan).state_dict()
    return sum(table.key(plan, own, like.dim()) in flat for own, like in expected.items())


def _library(library: str) -> Library:
    if library not in LIBRARIES:
        raise InputError(
            f"no library is called {library!r}{did_you_mean(str(library), LIBRARIES)}; there are {', '.join(LIBRARIES)}"
        )
    return LIBRARIES[library]


def _read_sizes(flat: dict[str, Tensor], plan: dict[str, Any], table: Library) -> dict[str, Any]:
    """The classes and channels of a state, from the shapes of its head and its first convolution."""
    sizes = {}
    for option, axis, dims, candidates in (
        ("num_classes", 0, 2, ("head",)),
        ("in_chans", 1, 4, ("stem.conv", "stem.step.conv", "stem.step1.conv")),
    ):
        for path in candidates:
            key = table.key(plan, f"{path}.weight", dims)
            shape = table.values(plan, key, flat[key], False).shape if key in flat else ()
            if len(shape) == dims:
                sizes[option] = shape[axis]
    return sizes


def _match_tensors(
    flat: dict[str, Tensor],
    expected: dict[str, Tensor],
    *,
    keys: dict[str, str | None],
    table: Library,
    plan: dict[str, Any],
    source: str,
) -> dict[str, Tensor]:
    """Our tensors, filled from `flat`: all of them, with all of it, or the differences as an error."""
    all_double = all(value.dtype == torch.float64 for value in flat.values() if value.is_floating_point())
    floating = torch.float64 if all_double else torch.float32
    tensors: dict[str, Tensor] = {}
    errors, used = [], set()
    for own, like in expected.items():
        key = keys[own]
        if key is None or key not in flat:
            if own.endswith(_COUNTER):  # it only counts steps: libraries leave it out
                tensors[own] = torch.zeros_like(like, device="cpu")
            else:
                errors.append(f"{key or own} is missing")
            continue
        used.add(key)
        value = table.values(plan, key, flat[key], False)
        if mismatch := _tensor_mismatch(value, like):
            errors.append(f"{key} {mismatch}")
            continue
        kind = floating if like.is_floating_point() else like.dtype
        tensors[own] = torch.empty(like.shape, dtype=kind, device="cpu").copy_(value)
        if not _is_finite(tensors[own]):
            errors.append(f"{key} is not finite")
    errors += [f"{shown_key(key)} {tuple(flat[key].shape)} has no place" for key in flat if key not in used]
    if errors:
        raise ShapeError(
            f"the state is not that of {source}: {join_names(errors, limit=_SHOWN, separator='; ')}; nothing was "
            "loaded: give the name and the options of the network that it was saved from"
        )
    return tensors


def _tensor_mismatch(value: Tensor, like: Tensor) -> str:
    if value.shape != like.shape:
        return f"is {tuple(value.shape)}, expected {tuple(like.shape)}"
    if value.is_floating_point() != like.is_floating_point():
        return f"holds {str(value.dtype).removeprefix('torch.')}, expected {str(like.dtype).removeprefix('torch.')}"
    return ""


def _is_finite(value: Tensor) -> bool:
    """Check that no number is NaN or infinite; their sum alone mostly tells, in a tenth of the time."""
    return bool(value.sum().isfinite() or value.isfinite().all())


def _similar_libraries(flat: dict[str, Tensor], plan: dict[str, Any], table: Library) -> str:
    """Whose names a state has, by that of its head, where it is not the library that was asked for."""
    candidates = [name for name, other in LIBRARIES.items() if other.key(plan, "head.weight", 2) in flat]
    if not candidates or table.key(plan, "head.weight", 2) in flat:
        return ""
    return f" (its names look like those of {' or '.join(candidates)})"
