"""The zoo: a name, a file or a run becomes a network that carries its plan and its Spec.

Shapes: (B, C, H, W) -> (B, K) for pictures of C channels and K classes.
"""

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skipway.data.pack import SMALL
from skipway.errors import InputError, ShapeError, printable
from skipway.models import registry
from skipway.network import Network, planned
from skipway.spec import Spec
from skipway.training.checkpoint import load_weights

__all__ = ["auto_model", "create_model", "input_shape", "list_models", "load", "options_for", "restore", "weights_file"]


def create_model(
    name: str,
    num_classes: int | None = None,
    in_chans: int | None = None,
    *,
    stem: str | None = None,
    **options: Any,
) -> Network:
    """The network called `name` with fresh weights.

    Args:
        name: one of `list_models()`.
        num_classes: outputs; the default is that of the network's paper (1000, or 10 for the CIFAR networks).
        in_chans: channels of the pictures, 3 by default; `resmlp` has in_features instead.
        stem: "large", "small", "deep" and others; the default is the network's own.
        options: any other value of the family's plan, such as `layers`, `widths`, `block`, `shortcut`, `drop_path`:
            see `ResNetPlan`, `ResNet9Plan`, `DenseNetPlan` and `ResMLPPlan` in `skipway.models`.

    >>> create_model("resnet18", num_classes=10).plan["layers"]
    [2, 2, 2, 2]
    """
    given = {"num_classes": num_classes, "in_chans": in_chans, "stem": stem}
    return planned(registry.plan_of(name, **{k: v for k, v in given.items() if v is not None}, **options))


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows, by shell pattern."""
    return registry.names(pattern)


def load(run_or_file: str | os.PathLike[str]) -> Network:
    """The trained network of a run folder or of a file that skipway wrote; needs no code of the user and no pickle."""
    path = weights_file(Path(run_or_file))
    tensors, header = load_weights(path)
    return restore(tensors, header, printable(path))


def restore(tensors: dict[str, Tensor], header: dict[str, Any], where: str) -> Network:
    """The network that a file's header plans, with the file's tensors in it."""
    try:
        plan, spec = dict(header["plan"]), Spec.from_dict(header["spec"])
        with torch.device("meta"):  # no weights are drawn, nor memory taken, before the tensors are seen to fit
            network = planned(plan, spec)
    except InputError as error:
        raise error.at(where) from None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{where} has no usable plan and Spec in its header ({printable(error)}); write it again"
        ) from None
    wanted = network.state_dict()
    wrong = [
        f"{name} {tuple(tensors[name].shape) if name in tensors else 'is missing'}, expected {tuple(value.shape)}"
        for name, value in wanted.items()
        if name not in tensors or tensors[name].shape != value.shape
    ] + [f"{name} has no place" for name in tensors if name not in wanted]
    if wrong:
        raise ShapeError(f"{where} does not fit its own plan: {'; '.join(wrong[:5])}; write it again")
    given, meant = (_taken(plan), plan.get("num_classes")), (_taken(plan, spec), spec.num_classes)
    if given != meant:
        raise ShapeError(
            f"{where} plans a network for {given[0]} and {given[1]} classes, but its Spec has {meant[0]} and "
            f"{meant[1]}; write it again"
        )
    network.to_empty(device="cpu").load_state_dict(tensors)
    return network.eval()


def options_for(name: str, spec: Spec, given: dict[str, Any]) -> dict[str, Any]:
    """`given` and what else fits the network called `name` to `spec`; small pictures keep their size in the stem."""
    plan = registry.plan_of(name)
    if "in_features" in plan:
        return {"num_classes": spec.num_classes, "in_features": math.prod(spec.input_shape), **given}
    stem = {"stem": "small"} if "stem" in plan and spec.size <= SMALL else {}
    return {"num_classes": spec.num_classes, "in_chans": spec.channels, **stem, **given}


def input_shape(plan: dict[str, Any], size: int) -> tuple[int, ...]:
    """One input of the network of `plan`, with its batch, at pictures of `size`."""
    return (1, plan["in_features"]) if "in_features" in plan else (1, plan["in_chans"], size, size)


def _taken(plan: dict[str, Any], spec: Spec | None = None) -> str:
    """What a network of `plan` takes, and what it would have to take for `spec`."""
    if "in_features" in plan:
        return f"{plan['in_features'] if spec is None else math.prod(spec.input_shape)} numbers"
    return f"{plan.get('in_chans') if spec is None else spec.channels} channels"


def weights_file(path: Path) -> Path:
    """The file of weights that a run folder or a file's path stands for."""
    if path.is_dir():
        best = path / "weights" / "best.safetensors"
        if not best.is_file():
            raise InputError(
                f"{printable(path)} holds no weights/best.safetensors: the run has not finished an epoch, or this is "
                "no run folder; give a run folder or a .safetensors file"
            )
        return best
    return path


def auto_model(size: int, count: int) -> tuple[str, dict[str, Any]]:
    """What `--model auto` picks for `count` training pictures of `size` pixels: (name, options)."""
    if size < 4:
        return "resnet20", {"layers": [2, 2], "widths": [32, 64]}
    if size <= 16:
        return "resnet9", {"stem": "small", "widths": [32, 64, 128], "layers": [1, 1]}
    if size <= SMALL:
        return "resnet9", {"stem": "whitening", "widths": [24, 48, 128, 256], "layers": [1, 1, 1]}
    return ("resnet18", {}) if count >= 2000 else ("resnet10", {})
