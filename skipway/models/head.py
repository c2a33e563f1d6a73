"""The head of every family: a global pool, dropout and a linear classifier, as in timm.

The layers are `pool`, `flatten`, `dropout` (only with a rate) and `head`, in this order. Without a classifier
(`num_classes=0`), `head` is `nn.Identity`, and the network returns its pooled features. With the pool "none", `pool`
and `flatten` are `nn.Identity` too, and it returns the feature map.

Shapes: (B, C, H, W) -> (B, num_classes); without a classifier (B, C), or (B, 2C) with the pool "catavgmax"; without a
pool (B, C, H, W).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from skipway.errors import InputError
from skipway.models.layer_names import head_start
from skipway.nn.chain import Chain
from skipway.nn.parallel import Parallel

__all__ = [
    "POOLS",
    "Scaled",
    "classifier",
    "pool_name",
    "pooled_channels",
    "pooling",
    "replace_head",
    "require_classes",
]

POOLS = ("avg", "max", "avgmax", "catavgmax", "none")
_TIMM_POOLS = {"": "none", "fast": "avg", **{f"fast{kind}": kind for kind in POOLS[:-1]}}


class Scaled(nn.Module):
    """Multiply by a fixed factor."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the factor, in the shape of x."""
        return x * self.factor

    def extra_repr(self) -> str:
        """Return the factor."""
        return f"{self.factor:.4g}"


def pool_name(word: object) -> object:
    """Return the name in `POOLS` of a global pool of timm ("" is "none", "fast" is "avg"), or `word` unchanged.

    >>> pool_name(""), pool_name("fastmax"), pool_name("avg")
    ('none', 'max', 'avg')
    """
    return _TIMM_POOLS.get(word, word) if isinstance(word, str) else word


def pooling(kind: str) -> dict[str, nn.Module]:
    """Build the layers `pool` and `flatten`: (B, C, H, W) -> (B, C), or (B, 2C) for "catavgmax".

    Args:
        kind: "avg", "max", "avgmax" (mean of both), "catavgmax" (both, concatenated) or "none" (keeps the map).

    >>> import torch
    >>> Chain(**pooling("catavgmax"))(torch.zeros(1, 8, 2, 2)).shape
    torch.Size([1, 16])
    """
    if kind == "none":
        return {"pool": nn.Identity(), "flatten": nn.Identity()}
    if kind == "avgmax":
        return {"pool": Chain(sum=_both("add"), scale=Scaled(0.5)), "flatten": nn.Flatten()}
    if kind == "catavgmax":
        return {"pool": _both("concat"), "flatten": nn.Flatten()}
    return {"pool": nn.AdaptiveAvgPool2d(1) if kind == "avg" else nn.AdaptiveMaxPool2d(1), "flatten": nn.Flatten()}


def _both(join: str) -> Parallel:
    return Parallel(join, avg=nn.AdaptiveAvgPool2d(1), max=nn.AdaptiveMaxPool2d(1))


def pooled_channels(channels: int, kind: str) -> int:
    """Return the number of features after the global pool `kind` of a map with `channels`.

    >>> pooled_channels(512, "catavgmax")
    1024
    """
    return 2 * channels if kind == "catavgmax" else channels


def classifier(features: int, num_classes: int, *, drop_rate: float = 0.0, bias: bool = True) -> dict[str, nn.Module]:
    """Build the layers `dropout` and `head`: (B, features) -> (B, num_classes).

    Args:
        features: number of features after the pool.
        num_classes: number of outputs; 0 for `nn.Identity` as the head.
        drop_rate: dropout rate before the head; 0 for no layer.
        bias: True if the head has a bias.

    >>> classifier(8, 0, drop_rate=0.1)
    {'dropout': Dropout(p=0.1, inplace=False), 'head': Identity()}
    """
    dropout: dict[str, nn.Module] = {"dropout": nn.Dropout(drop_rate)} if drop_rate else {}
    return {**dropout, "head": nn.Linear(features, num_classes, bias) if num_classes else nn.Identity()}


def replace_head(network: Chain, template: Chain) -> None:
    """Replace the head of `network` in place, from the pool on, by that of `template`.

    The norm of a ConvNeXt keeps its weights. The classifier is freshly initialized, in the dtype and on the device of
    the first parameter of `network`.

    Args:
        network: network to change.
        template: network of the same family with the new head; it may be on the meta device.

    >>> network = Chain(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), head=nn.Linear(8, 10))
    >>> replace_head(network, Chain(**pooling("max"), **classifier(8, 2)))
    >>> network.head
    Linear(in_features=8, out_features=2, bias=True)
    """
    like, old = next(network.parameters()), _head_of(network)
    for name in old:
        del network[name]
    for name, layer in _head_of(template).items():
        if name == "head" and isinstance(layer, nn.Linear):
            sizes = layer.in_features, layer.out_features, layer.bias is not None
            layer = nn.Linear(*sizes, device=like.device, dtype=like.dtype)
        elif name != "head" and name in old and (weights := dict(old[name].named_parameters())):
            layer.load_state_dict(weights, assign=True)
        network.add_module(name, layer.train(network.training))


def _head_of(network: Chain) -> dict[str, nn.Module]:
    """Return the layers of the head by name."""
    return dict(list(network.named_children())[head_start(network) :])


def require_classes(plan: Mapping[str, Any], action: str) -> None:
    """Raise an error if the network of `plan` has no classifier.

    Args:
        plan: plan of a network; a plan without `num_classes` passes.
        action: what needs the classifier, such as "predict"; the error starts with it.

    Raises:
        InputError: the plan has `num_classes=0`.

    >>> require_classes({"num_classes": 10}, "predict")
    """
    if plan.get("num_classes") == 0:
        raise InputError(
            f"cannot {action}: expected a network with a classifier, got one with num_classes=0, whose outputs are "
            "features. Call reset_classifier with the number of classes, and train it."
        )
