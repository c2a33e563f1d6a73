"""Conversion of state dicts between skipway and other libraries.

    network = adopt(state, library="torchvision", name="resnet50")
    state = release(network, library="timm")

The key tables are in `key_maps`. Loading is strict: every key of both sides must match and every shape must be equal,
or nothing is loaded.
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
    """Build a network from the state dict of another library, with the same outputs.

    Classes and channels are read from the state dict. Floating-point tensors are converted to float32, unless all are
    float64. A missing `num_batches_tracked` is set to 0.

    Args:
        state: Tensors or arrays by name, as in the library's files. It may be nested ({"params": ...}) or flat with
            "/", inside "state_dict" or "model", and have the prefix "module.".
        library: "torchvision", "timm", "fastai", "flax", "akamaster" or "lukemelas".
        name: Model name in the library ("resnet50", "ResNet50", "xresnet34").
        num_classes: Number of classes. If it differs from the state dict, the head is newly initialized; 0 leaves it
            out.
        options: Options of the plan that differ from `name`, such as `layers` and `widths`.

    Returns:
        The network, in evaluation mode.

    Raises:
        ShapeError: Keys are missing or unexpected, or a tensor has another shape or dtype, or is not finite.
        InputError: The library or model is unknown, or the state holds no tensors.

    >>> import skipway as sw
    >>> network = sw.create_model("resnet18", 2, widths=[8], layers=[1])
    >>> state = release(network, library="timm")
    >>> adopt(state, library="timm", name="resnet18", widths=[8], layers=[1]).plan["num_classes"]
    2
    """
    table = _library(library)
    own_name, own_options = table.own_name(name)
    requested = {} if num_classes is None else {"num_classes": num_classes}
    plan = registry.plan_of(own_name, **{**own_options, **options, **requested})
    if refusal := table.refusal(plan):
        raise InputError(f"{library} has no {name!r} with these options: {refusal}. Change the options.")
    flat = unwrap_state_dict(state, table)
    sizes = _read_sizes(flat, plan, table)
    new_head = num_classes is not None and num_classes != sizes.get("num_classes")
    plan = registry.plan_of(own_name, **{**own_options, **sizes, **options, **requested})
    network = build_meta_network(plan)
    expected = network.state_dict()
    source = f"{library}'s {name}{_similar_libraries(flat, plan, table)}"
    keys = {own: table.key(plan, own, like.dim()) for own, like in expected.items()}
    for own, dims in (("head.weight", 2), ("head.bias", 1)) if new_head else ():
        flat.pop(table.key(plan, own, dims) or "", None)
        expected.pop(own, None)
    state_dict = _match_tensors(flat, expected, keys=keys, table=table, plan=plan, source=source)
    old_head = network.head
    if new_head and isinstance(old_head, nn.Linear):
        dtype = next(iter(state_dict.values())).dtype
        fresh_head = nn.Linear(old_head.in_features, old_head.out_features, dtype=dtype)
        state_dict |= {f"head.{leaf}": value for leaf, value in fresh_head.state_dict().items()}
    network.load_state_dict(state_dict, assign=True)
    return network.eval()


def release(network: Network, library: str) -> dict[str, Tensor]:
    """Return the state dict of `network` with the names and layouts of another library; the inverse of `adopt`.

    Tensors of the same layout share their memory with the network, as in `state_dict()`.

    Args:
        network: Network with a plan.
        library: "torchvision", "timm", "fastai", "flax", "akamaster" or "lukemelas".

    Returns:
        Tensors by name. Flax names are joined by "/" and have no `num_batches_tracked`;
        `flax.traverse_util.unflatten_dict(state, sep="/")` returns the tree.

    Raises:
        InputError: The library has no such network, or the network was modified and does not match its plan.

    >>> import skipway as sw
    >>> list(release(sw.create_model("resnet18", 2, widths=[8], layers=[1]), library="torchvision"))[0]
    'conv1.weight'
    """
    table, plan = _library(library), network.plan
    if not plan:
        raise InputError("release: expected a network with a plan, got none. Use create_model, adopt or load.")
    if refusal := table.refusal(plan):
        raise InputError(f"{library} has no {plan['name']} with these options: {refusal}. Choose another library.")
    state = network.state_dict()
    if changed := sorted(state.keys() ^ build_meta_network(plan).state_dict().keys()):
        shown = join_names(changed, limit=_SHOWN)
        raise InputError(f"release: expected the network of its plan, got changes of {shown}. Release it unmodified.")
    released = {}
    for own, value in state.items():
        key = table.key(plan, own, value.dim())
        assert key is not None or own.endswith(_COUNTER), own
        if key is not None:
            released[key] = table.values(plan, key, value, True).contiguous()
    return released


def keys_shared(state: Mapping[str, Any], library: str, name: str, options: dict[str, Any]) -> int:
    """Count the keys of `state` that `library` uses for the model `name`.

    Args:
        state: State dict, possibly wrapped.
        library: A key of `LIBRARIES`.
        name: Model name in the library.
        options: Options of the plan that differ from `name`.

    Returns:
        The number of matching keys. It is 0 if the library has no such model.
    """
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
            f"library: expected one of {', '.join(LIBRARIES)}, got {library!r}"
            f"{did_you_mean(str(library), LIBRARIES)}. Pass one of these."
        )
    return LIBRARIES[library]


def _read_sizes(flat: dict[str, Tensor], plan: dict[str, Any], table: Library) -> dict[str, Any]:
    """Return the numbers of classes and channels, from the shapes of the head and the first convolution."""
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
    """Return the state dict of our network, filled from `flat`; raise a ShapeError if any key does not match."""
    all_double = all(value.dtype == torch.float64 for value in flat.values() if value.is_floating_point())
    floating = torch.float64 if all_double else torch.float32
    tensors: dict[str, Tensor] = {}
    errors, used = [], set()
    for own, like in expected.items():
        key = keys[own]
        if key is None or key not in flat:
            if own.endswith(_COUNTER):  # a step counter, which some libraries omit
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
    errors += [f"{shown_key(key)} {tuple(flat[key].shape)} is unexpected" for key in flat if key not in used]
    if errors:
        raise ShapeError(
            f"the state dict does not match {source}: {join_names(errors, limit=_SHOWN, separator='; ')}. Nothing was "
            "loaded. Pass the name and options of the saved network."
        )
    return tensors


def _tensor_mismatch(value: Tensor, like: Tensor) -> str:
    if value.shape != like.shape:
        return f"is {tuple(value.shape)}, expected {tuple(like.shape)}"
    if value.is_floating_point() != like.is_floating_point():
        return f"holds {str(value.dtype).removeprefix('torch.')}, expected {str(like.dtype).removeprefix('torch.')}"
    return ""


def _is_finite(value: Tensor) -> bool:
    """Return True if all values are finite. A finite sum proves it in a tenth of the time."""
    return bool(value.sum().isfinite() or value.isfinite().all())


def _similar_libraries(flat: dict[str, Tensor], plan: dict[str, Any], table: Library) -> str:
    """Return a hint at the libraries that use the head's key of this state, if `table` does not."""
    candidates = [name for name, other in LIBRARIES.items() if other.key(plan, "head.weight", 2) in flat]
    if not candidates or table.key(plan, "head.weight", 2) in flat:
        return ""
    return f" (the keys are those of {' or '.join(candidates)})"
