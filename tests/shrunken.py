"""Registered networks cut down to a size that a test can compute: the same row, with two narrow stages.

Names whose rows differ in depth and width alone are one network then, and are tested once.
"""

import json
from functools import cache

import torch
from torch import nn

from skipway.models import registry
from skipway.models.network import build_network

SIZE = 16  # of the images
CLASSES = 3
# A block whose shape stays, one after it, and one that halves and widens.
CUT = {"layers": (2, 1), "widths": (8, 16, 16), "stem_channels": 12, "growth": 4, "width": 8}


def shrunken_plan(name):
    """The plan of `name`, cut; groups and inner widths stay as they are, since that is what tells some rows apart."""
    plan = registry.plan_of(name)
    cut = {option: CUT[option] for option in ("growth", "width") if option in plan}
    if isinstance(plan["layers"], list):
        cut["layers"] = [min(pair) for pair in zip(plan["layers"], CUT["layers"], strict=False)]
    else:
        cut["layers"] = CUT["layers"][0]
    if "widths" in plan:  # one for each stage, and one more where the stem has its own
        cut["widths"] = CUT["widths"][: len(cut["layers"]) + len(plan["widths"]) - len(plan["layers"])]
    if plan["family"] == "inverted_residual":  # the last two stages, so that Skips have the expansion of most blocks
        cut |= {"layers": (2, 2), "widths": CUT["widths"][:2], "strides": (1, 2), "final_channels": 24}
        cut |= {option: plan[option][-2:] for option in ("kernels", "expansions")}
    if plan.get("out_widths"):  # a pruned block of each stage, and one more in the first
        cut |= {"inner_widths": (6, 4, 7, 5, 8, 9), "out_widths": (6, 18)}
    if isinstance(plan.get("block"), list):
        cut["block"] = plan["block"][-2:]
    if plan.get("stem_channels"):
        cut["stem_channels"] = CUT["stem_channels"]
    if "in_features" in plan:
        cut["in_features"] = 3 * SIZE * SIZE
    return registry.plan_of(name, **cut, num_classes=CLASSES)


@cache
def kinds():
    """One name of each different cut network -> all names that it stands for."""
    found = {}
    for name in registry.names():
        values = {k: v for k, v in shrunken_plan(name).items() if k != "name"}
        found.setdefault(json.dumps(values), []).append(name)
    return {names[0]: names for names in found.values()}


COUNTED = ("cardinality", "base_width", "attention_ratio")  # of which one value is as good as another
SIZES = ("layers", "widths", "stem_channels", "compression")  # which change no operator


def covering():
    """As few of the cut networks as together have every value of every option that changes what is computed."""
    left = {}
    for name in kinds():
        plan = {k: v > 1 if k in COUNTED else v for k, v in shrunken_plan(name).items() if k not in ("name", *SIZES)}
        left[name] = set(map(str, plan.items()))
    chosen, seen = [], set()
    while new := max(left, key=lambda name: len(left[name] - seen), default=None):
        if not left[new] - seen:
            break
        chosen.append(new)
        seen |= left.pop(new)
    return chosen


@cache
def shrunken(name):
    """The cut network with fresh weights, to be copied before it is changed."""
    torch.manual_seed(0)
    return build_network(shrunken_plan(name))


@cache
def settled(name):
    """The cut network as if trained: nothing is zero, every norm has its statistics; to be copied before changes."""
    torch.manual_seed(1)
    network = build_network(shrunken_plan(name))
    settle(network)
    return network.eval()


@torch.no_grad()
def settle(network: nn.Module) -> None:
    """Draw every number anew, so that no body, norm or scale of `network` does nothing."""
    for key, value in network.state_dict().items():
        if not value.is_floating_point():
            continue
        if value.dim() > 1:
            value.normal_(0, value[0].numel() ** -0.5)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        else:
            value.normal_(float(key.endswith("weight")), 0.2)


def random_images(count=4):
    """(count, 3, SIZE, SIZE)."""
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
