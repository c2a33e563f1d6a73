"""Networks with a Spec, and images for them, to export."""

import copy

import numpy as np
from PIL import Image
from shrunken import CLASSES, SIZE, settle, settled

from skipway.data.image_spec import Spec
from skipway.data.tables.columns import Column
from skipway.data.tables.table_spec import TableSpec
from skipway.models.mlp import ResMLPPlan
from skipway.models.network import build_network
from skipway.models.resnet import ResNetPlan

NAMES = ("ant", "bee", "wasp")


SPEC = Spec(3, SIZE, SIZE, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), NAMES, "crop")


OTHERS = {
    "gates, same padding, dropout": {"join": "gate", "padding": "same", "stem": "large", "dropout": 0.5},
    "layerscale, dropped": {"join": "layerscale", "drop_path": 0.5},
    "fixup": {"norm": "fixup"},
    "plain": {"shortcut": "none"},
}


def network_of(name):
    if name not in OTHERS:
        network = copy.deepcopy(settled(name))
    else:
        plan = ResNetPlan(layers=(2, 1), widths=(8, 16), num_classes=CLASSES, **{"stem": "small", **OTHERS[name]})
        network = build_network({"family": plan.FAMILY, **plan.as_dict()})
        settle(network)
    network.spec = SPEC
    return network


def table_network(task="classification"):
    columns = (
        Column("age", "number", 40.0, 12.0, True),
        Column("color", "category", categories=("red", "green")),
        Column("height", "number", 170.0, 10.0),
    )
    outputs = {"class_names": NAMES} if task == "classification" else {"target_mean": (2000.0,), "target_std": (3.0,)}
    spec = TableSpec(columns, target_names=("y",), task=task, **outputs)
    plan = ResMLPPlan(layers=2, width=8, in_features=4, num_classes=spec.num_classes, categories=spec.categories)
    network = build_network({"family": plan.FAMILY, **plan.as_dict()}, spec)
    settle(network)
    return network


def random_images(count, height, width):
    coarse = np.random.default_rng(0).integers(0, 256, (count, 5, 7, 3), np.uint8)
    resized = [Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC) for c in coarse]
    return np.stack([np.asarray(r) for r in resized])
