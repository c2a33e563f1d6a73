"""Residual networks for pictures, from one block up: ImageNet's 18 to 200 layers, CIFAR's 20 to 1202.

Shapes: (B, in_chans, H, W) -> (B, num_classes), any H and W.
Sources: He et al. 2015, arXiv:1512.03385 (all depths but 200, options A and B); 200 layers, He et al. 2016,
arXiv:1603.05027; deep stem, He et al. 2018, arXiv:1812.01187.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from skipway.blocks import BODIES, EXPANSION, conv_norm_act, initialise, zero_last_norm
from skipway.errors import InputError, did_you_mean
from skipway.models.plan import whole
from skipway.shortcuts import SHORTCUTS, make_shortcut
from skipway.skip import Chain, Skip

__all__ = ["NETWORKS", "STEMS", "resnet"]

_FOUR = (64, 128, 256, 512)
_THREE = (16, 32, 64)
STEMS = ("large", "small", "deep")
_MOST_BLOCKS = 3000  # a file's plan must not be able to fill the memory


def _cifar(blocks: int) -> dict[str, Any]:
    return {
        "block": "basic",
        "layers": (blocks,) * 3,
        "widths": _THREE,
        "stem": "small",
        "shortcut": "pad",
        "num_classes": 10,
    }


NETWORKS: dict[str, dict[str, Any]] = {
    "resnet10": {"block": "basic", "layers": (1, 1, 1, 1), "widths": _FOUR},
    "resnet18": {"block": "basic", "layers": (2, 2, 2, 2), "widths": _FOUR},
    "resnet34": {"block": "basic", "layers": (3, 4, 6, 3), "widths": _FOUR},
    "resnet50": {"block": "bottleneck", "layers": (3, 4, 6, 3), "widths": _FOUR},
    "resnet101": {"block": "bottleneck", "layers": (3, 4, 23, 3), "widths": _FOUR},
    "resnet152": {"block": "bottleneck", "layers": (3, 8, 36, 3), "widths": _FOUR},
    "resnet200": {"block": "bottleneck", "layers": (3, 24, 36, 3), "widths": _FOUR},
    "resnet20": _cifar(3),
    "resnet32": _cifar(5),
    "resnet44": _cifar(7),
    "resnet56": _cifar(9),
    "resnet110": _cifar(18),
    "resnet1202": _cifar(200),
}


def resnet(
    block: str = "basic",
    layers: Sequence[int] = (2, 2, 2, 2),
    widths: Sequence[int] = _FOUR,
    stem: str = "large",
    shortcut: str = "auto",
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
) -> tuple[Chain, dict[str, Any]]:
    """A residual network and the plan that rebuilds it: `resnet(**plan)`.

    Args:
        block: "basic" or "bottleneck".
        layers: blocks in each stage; every stage after the first halves the picture.
        widths: channels in each stage (times 4 behind a bottleneck).
        stem: "large" (7x7, stride 2, max pool), "deep" (three 3x3, stride 2, max pool), "small" (3x3, keeps the size).
        shortcut: "auto" (option B: project where the shape changes), "project" (C: everywhere), "pad" (A), "pool" (D).
        in_chans: channels of the pictures.
        num_classes: outputs.
        drop_path: chance to leave a block out while training, rising evenly from 0 to this over the depth.
    """
    plan: dict[str, Any] = {
        "block": block,
        "layers": whole("resnet", "layers", layers),
        "widths": whole("resnet", "widths", widths),
        "stem": stem,
        "shortcut": shortcut,
        "in_chans": whole("resnet", "in_chans", [in_chans])[0],
        "num_classes": whole("resnet", "num_classes", [num_classes])[0],
        "drop_path": float(drop_path),
    }
    _check(plan)
    channels = plan["widths"][0]
    stages: dict[str, nn.Module] = {}
    rates = _rising(plan["drop_path"], sum(plan["layers"]))
    for stage, (count, width) in enumerate(zip(plan["layers"], plan["widths"], strict=True)):
        blocks = []
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(_block(plan, channels, width, stride, next(rates)))
            channels = width * EXPANSION[block]
        stages[f"stage{stage + 1}"] = Chain(*blocks)
    network = Chain(
        stem=_stem(stem, plan["in_chans"], plan["widths"][0]),
        **stages,
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        head=nn.Linear(channels, plan["num_classes"]),
    )
    initialise(network)
    for module in network.modules():
        if isinstance(module, Skip) and isinstance(module.body, Chain):
            zero_last_norm(module.body)
    return network, plan


def _block(plan: dict[str, Any], in_channels: int, width: int, stride: int, drop_path: float) -> Skip:
    out_channels = width * EXPANSION[plan["block"]]
    kind = plan["shortcut"]
    return Skip(
        BODIES[plan["block"]](in_channels, width, stride),
        make_shortcut(kind, in_channels, out_channels, stride),
        after=nn.ReLU(inplace=True),
        drop_path=drop_path,
    )


def _stem(kind: str, in_chans: int, width: int) -> Chain:
    if kind == "small":
        return conv_norm_act(in_chans, width)
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    if kind == "large":
        return Chain(step=conv_norm_act(in_chans, width, 7, stride=2), pool=pool)
    half = max(1, width // 2)
    return Chain(
        step1=conv_norm_act(in_chans, half, stride=2),
        step2=conv_norm_act(half, half),
        step3=conv_norm_act(half, width),
        pool=pool,
    )


def _rising(top: float, count: int) -> Iterator[float]:
    """`count` rates from 0 to `top`, evenly; one block alone gets `top`."""
    return (top * (i / (count - 1) if count > 1 else 1.0) for i in range(count))


def _check(plan: dict[str, Any]) -> None:
    for name, known in (("block", BODIES), ("stem", STEMS), ("shortcut", SHORTCUTS)):
        if plan[name] not in known:
            raise InputError(
                f"resnet has no {name} {plan[name]!r}{did_you_mean(str(plan[name]), known)}; there are "
                f"{', '.join(known)}"
            )
    if not plan["layers"] or len(plan["layers"]) != len(plan["widths"]):
        raise InputError(
            f"resnet needs as many widths as layers, one pair a stage, not {plan['layers']} and {plan['widths']}"
        )
    if sum(plan["layers"]) > _MOST_BLOCKS:
        raise InputError(f"resnet has at most {_MOST_BLOCKS} blocks, not {sum(plan['layers'])}; give fewer layers")
