"""Key maps: the state-dict keys of other libraries, in one table per library that is used in both directions.

A rule is a pair (pattern of our layer name, template of the library's name). Templates are filled from the groups of
the pattern and from the plan: `stage`, `block` (from 0, in its stage), `index` (from 0, over all stages), `n` (number
of the layer in its body), and the values of `_template_values`. Sources: torchvision 0.28, timm 1.0, fastai 2.8, the
ImageNet example of Flax 0.12, akamaster/pytorch_resnet_cifar10.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from skipway.models.architecture_plan import OUTPUT_STRIDES
from skipway.nn.activations import ACTIVATIONS
from skipway.nn.anti_aliasing import AA_LAYERS
from skipway.nn.block_steps import EXPANSION
from skipway.nn.normalization import NORMS_WITH_ACTIVATION
from skipway.weights import convnext_keys, inverted_residual_keys

__all__ = ["LIBRARIES", "Library"]

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Library:
    """Names, layouts and supported plans of one library.

    Attributes:
        rules: Pairs (pattern of our layer name, template of the library's name), by kind of network.
        holds: Supported values of the plan, by kind. Other fields may have any value: `layers` and `widths` may
            differ from the library's models.
        lacks: Other unsupported plans, by kind, as pairs (description, predicate).
        ignored: Patterns of keys that do not affect the outputs.
        renamed: Pairs (pattern, replacement) for keys of older files.
        own_name: Returns our name and options for a model name of the library.
        leaf: Returns the key of a tensor, from the layer name, the tensor name and its rank.
        values: Converts the layout of a tensor; the last argument is True for conversion to the library.
    """

    rules: dict[str, Rules]
    holds: dict[str, dict[str, tuple[Any, ...]]]
    lacks: dict[str, tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    own_name: Callable[[str], tuple[str, dict[str, Any]]] = field(default=lambda name: (name, {}))
    leaf: Callable[[str, str, int], str | None] = field(default=lambda path, leaf, dims: f"{path}.{leaf}")
    values: Callable[[Mapping[str, Any], str, Tensor, bool], Tensor] = field(
        default=lambda plan, key, value, outward: value
    )

    def key(self, plan: Mapping[str, Any], own: str, dims: int) -> str | None:
        """Return the library's key of our tensor `own` with `dims` axes, or None if it has none."""
        path, leaf = own.rsplit(".", 1)
        for pattern, template in self.rules.get(kind_of(plan), ()):
            if match := re.fullmatch(pattern, path):
                return self.leaf(_fill_template(template, _template_values(plan, match)), leaf, dims)
        return None

    def refusal(self, plan: Mapping[str, Any]) -> str:
        """Return the unsupported values of the plan as text, or an empty string."""
        holds = self.holds.get(kind_of(plan))
        if holds is None:
            return f"it has no {kind_of(plan)}"
        values = {name: plan.get(name, known[0]) for name, known in holds.items()}  # plans of older files lack some
        unknown = [
            f"{name} {values[name]!r} (it has {' or '.join(map(repr, known))})"
            for name, known in holds.items()
            if not _is_held(values[name], known)
        ]
        unknown += [text for text, has in self.lacks.get(kind_of(plan), ()) if has(plan)]
        return "; ".join(unknown)


def _is_held(value: Any, known: tuple[Any, ...]) -> bool:
    """Return True if a value, or each value of a list, is known."""
    return value in known or (isinstance(value, list) and bool(value) and all(item in known for item in value))


def kind_of(plan: Mapping[str, Any]) -> str:
    """Return the family of a plan, with pre-activation ResNets and MobileNets as separate kinds."""
    if plan["family"] == "inverted_residual":
        return "mobilenet" if plan["attention"] == "none" else "efficientnet"
    return "preact" if _blocks(plan)[0].startswith("preact") else str(plan["family"])


def _blocks(plan: Mapping[str, Any]) -> list[str]:
    """Return the block type of each stage, "" in families without one."""
    block = plan.get("block")
    if block is None:
        return [""]
    return block if isinstance(block, list) else [block] * len(plan["layers"])


def _template_values(plan: Mapping[str, Any], match: re.Match[str]) -> dict[str, Any]:
    numbers = {name: int(value) for name, value in match.groupdict().items() if value is not None}
    layers = plan["layers"]
    stage, block = numbers.get("stage", 1), numbers.get("block", 0)
    pooled = plan.get("shortcut") == "pool"
    expanded = int("expansions" in plan and plan["expansions"][stage - 1] > 1)
    return {
        **numbers,
        "stages": len(layers),
        "blocks": sum(layers),
        "twice": 2 * stage,
        "index": sum(layers[: stage - 1]) + block,
        "pooled": int(pooled),  # a pool or an identity precedes the projection
        "strided": int(pooled and stage > 1),  # fastai has a pool only if there is a stride
        "expanded": expanded,  # a 1x1 convolution and its norm precede the depthwise one
        "project": "conv_pwl" if expanded else "conv_pw",
        "antialiased": int(plan.get("aa_layer", "none") != "none"),  # a layer precedes the norm of the stem's pool
        "Block": "BottleneckResNetBlock" if plan.get("block") == "bottleneck" else "ResNetBlock",
    }


def _fill_template(template: str, places: dict[str, Any]) -> str:
    """Replace each {name}, {name+1} and {name-1} in `template` by its number."""

    def value(match: re.Match[str]) -> str:
        known = places[match[1]]
        return str(known + int(match[2])) if match[2] else str(known)

    return re.sub(r"\{(\w+)([+-]\d+)?\}", value, template)


_BODY = r"stage(?P<stage>\d+)\.(?P<block>\d+)\.(?:skip\.)?body\."
_BLOCK = r"stage(?P<stage>\d+)\.(?P<block>\d+)\.(?:skip\.)?"

_TORCHVISION_RESNET: Rules = (
    (r"stem\.step\.conv", "conv1"),
    (r"stem\.step\.norm", "bn1"),
    (_BODY + r"conv(?P<n>\d)", "layer{stage}.{block}.conv{n}"),
    (_BODY + r"norm(?P<n>\d)", "layer{stage}.{block}.bn{n}"),
    (_BLOCK + r"shortcut\.conv", "layer{stage}.{block}.downsample.{pooled}"),
    (_BLOCK + r"shortcut\.norm", "layer{stage}.{block}.downsample.{pooled+1}"),
    (r"head", "fc"),
)
_TIMM_RESNET: Rules = (
    *_TORCHVISION_RESNET,
    (r"stem\.step1\.conv", "conv1.0"),
    (r"stem\.step1\.norm", "conv1.1"),
    (r"stem\.step2\.conv", "conv1.3"),
    (r"stem\.step2\.norm", "conv1.4"),
    (r"stem\.step3\.conv", "conv1.6"),
    (r"stem\.step3\.norm", "bn1"),
    (r"stem\.pool\.conv", "maxpool.0"),
    (r"stem\.pool\.norm", "maxpool.{antialiased+1}"),
    (_BODY + r"attention\.squeeze", "layer{stage}.{block}.se.fc1"),
    (_BODY + r"attention\.excite", "layer{stage}.{block}.se.fc2"),
    (_BODY + r"attention\.conv", "layer{stage}.{block}.se.conv"),
)
_TIMM_PREACT: Rules = (
    (r"stem\.step\.conv", "stem.conv"),
    (r"stem\.step(?P<n>\d)\.conv", "stem.conv{n}"),
    (r"stem\.step(?P<n>\d)\.(?:norm|act)", "stem.norm{n}"),  # an activation with weights is a part of timm's norm
    (_BODY + r"conv(?P<n>\d)", "stages.{stage-1}.blocks.{block}.conv{n}"),
    (_BODY + r"(?:norm|act)(?P<n>\d)", "stages.{stage-1}.blocks.{block}.norm{n}"),
    (_BLOCK + r"(?:norm|act)(?P<n>\d)", "stages.{stage-1}.blocks.{block}.norm{n}"),
    (_BLOCK + r"shortcut\.conv", "stages.{stage-1}.blocks.{block}.downsample.conv"),
    (r"norm|act", "norm"),
    (r"head", "head.fc"),
)
_DENSENET: Rules = (
    (r"stem\.step\.conv", "features.conv0"),
    (r"stem\.step\.norm", "features.norm0"),
    (r"stem\.step(?P<n>\d)\.conv", "features.conv{n-1}"),
    (r"stem\.step(?P<n>\d)\.norm", "features.norm{n-1}"),
    (_BODY + r"conv(?P<n>\d)", "features.denseblock{stage}.denselayer{block+1}.conv{n}"),
    (_BODY + r"norm(?P<n>\d)", "features.denseblock{stage}.denselayer{block+1}.norm{n}"),
    (r"transition(?P<stage>\d+)\.conv", "features.transition{stage}.conv"),
    (r"transition(?P<stage>\d+)\.norm", "features.transition{stage}.norm"),
    (r"norm", "features.norm5"),
    (r"head", "classifier"),
)
_FASTAI: Rules = (
    (r"stem\.step(?P<n>\d)\.conv", "{n-1}.0"),
    (r"stem\.step(?P<n>\d)\.norm", "{n-1}.1"),
    (_BODY + r"conv(?P<n>\d)", "{stage+3}.{block}.convpath.{n-1}.0"),
    (_BODY + r"norm(?P<n>\d)", "{stage+3}.{block}.convpath.{n-1}.1"),
    (_BLOCK + r"shortcut\.conv", "{stage+3}.{block}.idpath.{strided}.0"),
    (_BLOCK + r"shortcut\.norm", "{stage+3}.{block}.idpath.{strided}.1"),
    (r"head", "{stages+7}"),
)
_FLAX: Rules = (
    (r"stem\.step\.conv", "conv_init"),
    (r"stem\.step\.norm", "bn_init"),
    (_BODY + r"conv(?P<n>\d)", "{Block}_{index}/Conv_{n-1}"),
    (_BODY + r"norm(?P<n>\d)", "{Block}_{index}/BatchNorm_{n-1}"),
    (_BLOCK + r"shortcut\.conv", "{Block}_{index}/conv_proj"),
    (_BLOCK + r"shortcut\.norm", "{Block}_{index}/norm_proj"),
    (r"head", "Dense_0"),
)
_AKAMASTER: Rules = (
    (r"stem\.conv", "conv1"),
    (r"stem\.norm", "bn1"),
    (_BODY + r"conv(?P<n>\d)", "layer{stage}.{block}.conv{n}"),
    (_BODY + r"norm(?P<n>\d)", "layer{stage}.{block}.bn{n}"),
    (_BLOCK + r"shortcut\.conv", "layer{stage}.{block}.shortcut.0"),
    (_BLOCK + r"shortcut\.norm", "layer{stage}.{block}.shortcut.1"),
    (r"head", "linear"),
)

_PLAIN: dict[str, tuple[Any, ...]] = {
    "join": ("add",),
    "norm": ("batch",),
    "attention": ("none",),
    "padding": ("torch",),
    "output_stride": (None,),
    "activation": ("relu",),
    "aa_layer": ("none",),
    "block_reduce_first": (1,),
    "down_kernel_size": (1,),
    "weight_standardization": (False,),
    "out_widths": ([],),
}
_POST = ("basic", "bottleneck")
_V15: dict[str, tuple[Any, ...]] = {**_PLAIN, "block": _POST, "stem": ("large",), "shortcut": ("auto",)}
_TIMM: dict[str, tuple[Any, ...]] = {
    **_PLAIN,
    "output_stride": (None, *OUTPUT_STRIDES),
    "activation": tuple(ACTIVATIONS),
}
_TIMM_ANY = ("block_reduce_first", "down_kernel_size", "out_widths")  # timm's post-activation networks have all values
_UNGROUPED: dict[str, tuple[Any, ...]] = {"cardinality": (1,), "base_width": (64,)}
_DENSE: dict[str, tuple[Any, ...]] = {
    "stem": ("large",),
    "compression": (0.5,),
    **{name: _PLAIN[name] for name in ("norm", "activation", "aa_layer")},
}
_TIMM_DENSE: dict[str, tuple[Any, ...]] = {
    **_DENSE,
    "stem": ("large", "deep"),
    "aa_layer": ("none", "blurpool"),
    "activation": tuple(ACTIVATIONS),
}
_PLAIN_DENSE = (("bottleneck 0 (it has 1 or more)", lambda plan: plan["bottleneck"] == 0),)
# torchvision's DenseNet files predate the current layer names.
_OLD_DENSE = ((r"(.*denselayer\d+\.(?:norm|conv))\.(\d)\.(.*)", r"\1\2.\3"),)


def _keeps_stage_channels(plan: Mapping[str, Any]) -> bool:
    """Return True if a stage keeps its channels and timm projects anyway.

    That is after a pool, in the first stage of pre-activation bottlenecks, and where pre-activation blocks dilate.
    """
    blocks = _blocks(plan)
    widths = [width * EXPANSION[block] for width, block in zip(plan["widths"], blocks, strict=True)]
    into = [plan["stem_channels"] or plan["widths"][0], *widths]
    keeps = [before == after for before, after in zip(into, widths, strict=False)]
    dilates = blocks[0].startswith("preact") and plan.get("output_stride") is not None
    return (blocks[0] == "preact_bottleneck" and keeps[0]) or (
        (plan["shortcut"] == "pool" or dilates) and any(keeps[1:])
    )


_TIMM_LACKS = (
    ("widths or stem_channels that keep a stage's channels (it projects there)", _keeps_stage_channels),
    ("layers in more than 4 stages (it dilates or omits the fifth)", lambda plan: len(plan["layers"]) > 4),
)


def _flax_leaf(path: str, leaf: str, dims: int) -> str | None:
    if leaf == "num_batches_tracked":
        return None
    if leaf.startswith("running_"):
        return f"batch_stats/{path}/{leaf.removeprefix('running_')}"
    names = {"weight": "scale" if dims == 1 else "kernel"}
    return f"params/{path}/{names.get(leaf, leaf)}"


def _flax_value(plan: Mapping[str, Any], key: str, value: Tensor, outward: bool) -> Tensor:
    """Convert kernels between (H, W, in, out) or (in, out) in Flax and (out, in, H, W) or (out, in) here."""
    if value.dim() == 4:
        return value.permute(2, 3, 1, 0) if outward else value.permute(3, 2, 0, 1)
    return value.T if value.dim() == 2 else value


def _timm_value(plan: Mapping[str, Any], key: str, value: Tensor, outward: bool) -> Tensor:
    """Convert the head of timm's pre-activation ResNets, which is a 1x1 convolution."""
    if plan["family"] == "convnext":
        return convnext_keys.timm_value(plan, key, value, outward)
    if key != "head.fc.weight":
        return value
    if outward:
        return value[:, :, None, None]
    return value[:, :, 0, 0] if value.shape[2:] == (1, 1) else value


def _timm_name(name: str) -> tuple[str, dict[str, Any]]:
    """Return the name without the tag of the weights, as in resnet50.a1_in1k."""
    return name.partition(".")[0], {}


def _torchvision_name(name: str) -> tuple[str, dict[str, Any]]:
    return inverted_residual_keys.own_name("torchvision", name)


def _lukemelas_name(name: str) -> tuple[str, dict[str, Any]]:
    return inverted_residual_keys.own_name("lukemelas", name)


def _flax_name(name: str) -> tuple[str, dict[str, Any]]:
    return name.replace("ResNet", "resnet"), {"padding": "same"}


LIBRARIES: dict[str, Library] = {
    "torchvision": Library(
        rules={
            "resnet": _TORCHVISION_RESNET,
            "densenet": _DENSENET,
            "mobilenet": inverted_residual_keys.TORCHVISION_MOBILENET,
            "efficientnet": inverted_residual_keys.TORCHVISION_EFFICIENTNET,
            "convnext": convnext_keys.TORCHVISION,
        },
        holds={
            "resnet": {**_V15, "output_stride": _TIMM["output_stride"]},
            "densenet": _DENSE,
            "convnext": convnext_keys.HOLDS["torchvision"],
            **inverted_residual_keys.HOLDS["torchvision"],
        },
        lacks={"densenet": _PLAIN_DENSE, **inverted_residual_keys.LACKS},
        renamed=_OLD_DENSE,
        own_name=_torchvision_name,
        leaf=convnext_keys.torchvision_leaf,
        values=convnext_keys.torchvision_value,
    ),
    "timm": Library(
        rules={
            "resnet": _TIMM_RESNET,
            "preact": _TIMM_PREACT,
            "densenet": _DENSENET,
            "convnext": convnext_keys.TIMM,
            **dict.fromkeys(("mobilenet", "efficientnet"), inverted_residual_keys.TIMM),
        },
        holds={
            "resnet": {
                **{name: known for name, known in _TIMM.items() if name not in _TIMM_ANY},
                "block": _POST,
                "stem": ("large", "deep", "tiered", "deep_conv"),
                "shortcut": ("auto", "pool"),
                "norm": ("batch", "group"),
                "attention": ("none", "se", "eca"),
                "aa_layer": AA_LAYERS,
            },
            "preact": {
                **_TIMM,
                "stem": ("large", "deep", "tiered", "fixed"),
                "shortcut": ("auto", "pool"),
                "norm": ("batch", "group", *NORMS_WITH_ACTIVATION),
                "cardinality": (1,),
                "weight_standardization": (False, True),
            },
            "densenet": _TIMM_DENSE,
            "convnext": convnext_keys.HOLDS["timm"],
            **inverted_residual_keys.HOLDS["timm"],
        },
        lacks={
            "resnet": _TIMM_LACKS,
            "preact": _TIMM_LACKS,
            "densenet": _PLAIN_DENSE,
            "convnext": convnext_keys.LACKS,
        },
        renamed=_OLD_DENSE,
        own_name=_timm_name,
        leaf=convnext_keys.timm_leaf,
        values=_timm_value,
    ),
    "fastai": Library(
        rules={"resnet": _FASTAI},
        holds={"resnet": {**_PLAIN, **_UNGROUPED, "block": _POST, "stem": ("deep",), "shortcut": ("pool",)}},
    ),
    "flax": Library(
        rules={"resnet": _FLAX},
        holds={"resnet": {**_V15, **_UNGROUPED, "padding": ("same",)}},
        ignored=(r"step", r"opt_state/.*", r"dynamic_scale/.*"),
        own_name=_flax_name,
        leaf=_flax_leaf,
        values=_flax_value,
    ),
    "akamaster": Library(
        rules={"resnet": _AKAMASTER},
        holds={"resnet": {**_PLAIN, "block": ("basic",), "stem": ("small",), "shortcut": ("pad", "auto")}},
    ),
    "lukemelas": Library(
        rules=dict.fromkeys(("mobilenet", "efficientnet"), inverted_residual_keys.LUKEMELAS),
        holds=inverted_residual_keys.HOLDS["lukemelas"],
        own_name=_lukemelas_name,
    ),
}
