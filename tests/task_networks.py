"""A small network for images and one for tables, for each task, and the values that numpy computes of their outputs."""

import numpy as np
import pandas as pd
import torch
from shrunken import settle

from skipway.data.image_spec import Spec
from skipway.data.tables.columns import Column
from skipway.data.tables.table_spec import TableSpec
from skipway.models.mlp import ResMLPPlan
from skipway.models.network import build_network
from skipway.models.network_outputs import as_table
from skipway.models.resnet import ResNetPlan

SIDE = 8
NAMES = ("ant", "bee", "wasp")
TARGETS = ("height", "weight")
TASKS = {
    "classes": {"class_names": NAMES},
    "labels": {"task": "multilabel", "class_names": NAMES, "thresholds": (0.7, 0.9, 0.4), "label_sep": ";"},
    "number": {"task": "regression", "target_names": ("y",), "target_mean": (2000.0,), "target_std": (3.0,)},
    "numbers": {"task": "regression", "target_names": TARGETS, "target_mean": (-5.0, 70.0), "target_std": (0.5, 12.0)},
}
FRAME = pd.DataFrame({"age": [20.0, 40, 60, 80], "color": ["red", "green", "blue", "red"]})


def image_network(name):
    spec = Spec(1, SIDE, SIDE, (0.5,), (0.25,), **TASKS[name])
    plan = ResNetPlan(layers=(1, 1), widths=(8, 16), stem="small", in_chans=1, num_classes=spec.num_outputs)
    return _settled(plan, spec)


def table_network(name):
    columns = (Column("age", "number", 50.0, 20.0), Column("color", "category", categories=("red", "green")))
    spec = TableSpec(columns, **{"target_names": ("kind",), **TASKS[name]})
    plan = ResMLPPlan(layers=1, width=8, in_features=2, num_classes=spec.num_outputs, categories=spec.categories)
    return _settled(plan, spec)


def _settled(plan, spec):
    torch.manual_seed(0)
    network = build_network({"name": plan.FAMILY, "family": plan.FAMILY, **plan.as_dict()}, spec)
    settle(network)
    with torch.no_grad():
        network.head.weight *= 2  # outputs of both signs
    return network.eval()


def arrays(count=5):
    """Gray images from dark to bright, with the same grain."""
    grain = np.random.default_rng(0).integers(0, 100, (SIDE, SIDE))
    return [(grain + 150 * i // (count - 1)).astype(np.uint8) for i in range(count)]


def normalized(images):
    return torch.from_numpy((np.stack(images)[:, None] / 255 - 0.5) / 0.25).float()


def rows(network, frame=FRAME):
    return torch.from_numpy(network.spec.encode_strict(as_table(frame)).x)


def values_of(network, x):
    """The probabilities or numbers of inputs, by numpy."""
    with torch.no_grad():
        return converted(network.spec, network(x).double().numpy())


def converted(spec, outputs):
    if spec.task == "regression":
        return outputs * np.array(spec.target_std) + np.array(spec.target_mean)
    if spec.task == "multilabel":
        return 1 / (1 + np.exp(-outputs))
    shares = np.exp(outputs - outputs.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)
