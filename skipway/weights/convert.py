"""Conversion of state dicts between skipway and other libraries.

    network = adopt(state, library="torchvision", name="resnet50")
    state = release(network, library="timm")

The key tables are in `key_maps`. Loading is strict: every key of both sides must match and every shape must be equal,
or nothing is loaded.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skipway.errors import InputError, ShapeError, did_you_mean
from skipway.models import registry
from skipway.models.network import Network, build_meta_network
from skipway.utils.format_text import count_of, join_names
from skipway.weights.key_maps import Library
from skipway.weights.own_keys import LAYOUTS
from skipway.weights.unwrap_state_dict import count_expected, shown_key, shown_tensors, unwrap_state_dict

__all__ = ["adopt", "adopt_with_notes", "keys_shared", "release"]

_COUNTER = "num_batches_tracked"
_HEAD = (("weight", 2), ("bias", 1))  # tensors of a head and their number of axes
_SHOWN = 4  # tensors of each kind in a message


def adopt(state: Mapping[str, Any], library: str, name: str, num_classes: int | None = None, **options: Any) -> Network:
    """Build a network from the state dict of another library, with the same outputs.

    Classes and channels are read from the state dict. Floating-point tensors are converted to float32, unless all are
    float64. A missing `num_batches_tracked` is set to 0.

    Args:
        state: Tensors or arrays by name, as in the library's files. It may be nested ({"params": ...}) or flat with
            "/", inside "state_dict", "model" or another entry of a checkpoint, and below a prefix such as "module.",
            "model." or "backbone.". Tensors outside the prefix, such as those of a loss, are ignored.
        library: "torchvision", "timm", "fastai", "flax", "akamaster", "lukemelas", or "skipway" for the keys of a
            `Network` or a `Features` of this package.
        name: Model name in the library ("resnet50", "ResNet50", "xresnet34").
        num_classes: Number of classes. If it differs from the state dict, or if that has no head, the head is newly
            initialized. 0 for no head.
        options: Options of the plan that differ from `name`, such as `layers` and `widths`.

    Returns:
        The network, in evaluation mode. Its `origin` reports the chosen entry, the removed prefix, the ignored
        tensors and a new head.

    Raises:
        ShapeError: Keys are missing or unexpected, or a tensor has another shape or dtype, or is not finite.
        InputError: The library or model is unknown, or the state holds no tensors.

    >>> import skipway as sw
    >>> network = sw.create_model("resnet18", 2, widths=[8], layers=[1])
    >>> state = {f"net.{key}": value for key, value in release(network, library="timm").items()}
    >>> adopt(state, library="timm", name="resnet18", widths=[8], layers=[1]).origin
    "state dict of timm's resnet18, prefix net. removed"
    """
    network, notes = adopt_with_notes(state, library, name, num_classes=num_classes, options=options)
    network.origin = ", ".join([f"state dict of {library}'s {name}", *notes])
    return network


def adopt_with_notes(
    state: Mapping[str, Any],
    library: str,
    name: str,
    *,
    num_classes: int | None,
    options: Mapping[str, Any],
    keep_head: bool = False,
) -> tuple[Network, tuple[str, ...]]:
    """Build a network as `adopt` does, and return it with what was chosen, removed or newly initialized, as texts.

    Args:
        state: See `adopt`.
        library: See `adopt`.
        name: See `adopt`.
        num_classes: Number of classes, or None for that of the state.
        options: Options of the plan that differ from `name`.
        keep_head: True to use `num_classes` only if the state has no head.
    """
    table = _library(library)
    own_name, own_options = table.own_name(name)
    size = {} if num_classes is None else {"num_classes": num_classes}
    plan = registry.plan_of(own_name, **{**own_options, **size, **options})
    if refusal := table.refusal(plan):
        raise InputError(f"{library} has no {name!r} with these options: {refusal}. Change the options.")
    network = build_meta_network(plan)
    foreign = unwrap_state_dict(state, table, _expected_keys(network, plan, table))
    flat, notes, sizes = foreign.tensors, [*foreign.notes], _read_sizes(foreign.tensors, plan, table)
    head = [table.key(plan, f"head.{leaf}", dims) for leaf, dims in _HEAD]
    has_head = head[0] in flat
    new_head = num_classes is not None and not (has_head and (keep_head or num_classes == sizes.get("num_classes")))
    if new_head:
        sizes["num_classes"] = num_classes
        new_head = has_head or head[1] not in flat  # a bias without its weight is a damaged head
    if new_head:
        notes += _remove_head(flat, head[0] or "", num_classes or 0)
    final_plan = registry.plan_of(own_name, **{**own_options, **sizes, **options})
    if final_plan != plan:
        network = build_meta_network(final_plan)
    expected = {own: like for own, like in network.state_dict().items() if not (new_head and own.startswith("head."))}
    source = _Source(table, final_plan, f"{library}'s {name}", foreign.prefix, foreign.notes)
    state_dict = _match_tensors(flat, expected, source)
    if new_head and isinstance(network.head, nn.Linear):
        state_dict |= _fresh_head(network.head, next(iter(state_dict.values())).dtype)
    network.load_state_dict(state_dict, assign=True)
    return network.eval(), tuple(notes)


def _expected_keys(network: Network, plan: dict[str, Any], table: Library) -> set[str]:
    """Return the keys of a network in the library, with those of a head that it may not have."""
    keys = [table.key(plan, own, like.dim()) for own, like in network.state_dict().items()]
    keys += [table.key(plan, f"head.{leaf}", dims) for leaf, dims in _HEAD]
    return {key for key in keys if key is not None}


def _remove_head(flat: dict[str, Tensor], weight: str, num_classes: int) -> list[str]:
    """Remove the head with this weight, or the layers of a projection in its place, and report the new head."""
    path = re.sub(r"[^./]*$", "", weight)
    old = {key: flat.pop(key) for key in [*flat] if key.startswith(path)}
    notes = [f"head ignored: {shown_tensors(old)}"] if old else []
    return [*notes, f"new head for {count_of(num_classes, 'class', 'classes')}"] if num_classes else notes


def _fresh_head(like: nn.Linear, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the state of a newly initialized head with the sizes of `like`, which is on the meta device."""
    head = nn.Linear(like.in_features, like.out_features, like.bias is not None, dtype=dtype)
    return {f"head.{leaf}": value for leaf, value in head.state_dict().items()}


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
        library: A key of `LAYOUTS`.
        name: Model name in the library.
        options: Options of the plan that differ from `name`.

    Returns:
        The number of matching keys. It is 0 if the library has no such model.
    """
    table = LAYOUTS[library]
    try:
        own_name, own_options = table.own_name(name)
        plan = registry.plan_of(own_name, **{**own_options, **options})
        if table.refusal(plan):
            return 0
        return count_expected(state, table, _expected_keys(build_meta_network(plan), plan, table))
    except InputError:
        return 0


def _library(library: str) -> Library:
    if library not in LAYOUTS:
        raise InputError(
            f"library: expected one of {', '.join(LAYOUTS)}, got {library!r}"
            f"{did_you_mean(str(library), LAYOUTS)}. Pass one of these."
        )
    return LAYOUTS[library]


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


@dataclass(frozen=True)
class _Source:
    """Origin of a state: its library, the plan of its network, its name for messages, and what was removed."""

    table: Library
    plan: dict[str, Any]
    name: str
    prefix: str
    notes: tuple[str, ...]

    def shown(self, key: str) -> str:
        """Return a key as it is in the checkpoint, for messages."""
        return shown_key(f"{self.prefix}{key}")


def _match_tensors(flat: dict[str, Tensor], expected: dict[str, Tensor], source: _Source) -> dict[str, Tensor]:
    """Return the state dict of our network, filled from `flat`; raise a ShapeError if any key does not match."""
    all_double = all(value.dtype == torch.float64 for value in flat.values() if value.is_floating_point())
    floating = torch.float64 if all_double else torch.float32
    tensors: dict[str, Tensor] = {}
    missing, wrong, used = [], [], set()
    for own, like in expected.items():
        key = source.table.key(source.plan, own, like.dim())
        if key is None or key not in flat:
            if own.endswith(_COUNTER):  # a step counter, which some libraries omit
                tensors[own] = torch.zeros_like(like, device="cpu")
            else:
                missing.append(key or own)
            continue
        used.add(key)
        value = source.table.values(source.plan, key, flat[key], False)
        if mismatch := _tensor_mismatch(value, like):
            wrong.append(f"{source.shown(key)} {mismatch}")
            continue
        kind = floating if like.is_floating_point() else like.dtype
        tensors[own] = torch.empty(like.shape, dtype=kind, device="cpu").copy_(value)
        if not _is_finite(tensors[own]):
            wrong.append(f"{source.shown(key)} is not finite")
    unexpected = {key: flat[key] for key in flat if key not in used}
    if missing or wrong or unexpected:
        raise _mismatch(source, missing, wrong, unexpected)
    return tensors


def _mismatch(source: _Source, missing: list[str], wrong: list[str], unexpected: dict[str, Tensor]) -> ShapeError:
    """Return the error that names the first tensors of each kind."""
    kinds = (
        [f"{source.shown(key)} is missing" for key in missing],
        wrong,
        [f"{source.shown(key)} {tuple(value.shape)} is unexpected" for key, value in unexpected.items()],
    )
    errors = "; ".join(join_names(kind, limit=_SHOWN, separator="; ") for kind in kinds if kind)
    hints = [*_similar_libraries({*unexpected}, source), *source.notes]
    hint = f" ({'; '.join(hints)})" if hints else ""
    head = {source.table.key(source.plan, f"head.{leaf}", dims) for leaf, dims in _HEAD}
    fix = "Pass the name and options of the saved network"
    if missing and head.issuperset(missing) and not wrong:
        fix = "If the state has no head, pass num_classes for a new one, or num_classes=0 for none"
    return ShapeError(f"the state dict does not match {source.name}{hint}: {errors}. Nothing was loaded. {fix}.")


def _tensor_mismatch(value: Tensor, like: Tensor) -> str:
    if value.shape != like.shape:
        return f"is {tuple(value.shape)}, expected {tuple(like.shape)}"
    if value.is_floating_point() != like.is_floating_point():
        return f"holds {str(value.dtype).removeprefix('torch.')}, expected {str(like.dtype).removeprefix('torch.')}"
    return ""


def _is_finite(value: Tensor) -> bool:
    """Return True if all values are finite. A finite sum proves it in a tenth of the time."""
    return bool(value.sum().isfinite() or value.isfinite().all())


def _similar_libraries(unexpected: set[str], source: _Source) -> list[str]:
    """Return a hint at the libraries that use the head's key of this state, if its own library does not."""
    candidates = [name for name, other in LAYOUTS.items() if other.key(source.plan, "head.weight", 2) in unexpected]
    return [f"the keys are those of {' or '.join(candidates)}"] if candidates else []
