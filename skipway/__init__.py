"""Networks with shortcut connections: build, train, grow, inspect and export them.

    import skipway as sw
    run = sw.train("digits")
    run.network().predict(["photo.png"])

Public names are loaded on first use, so importing skipway does not import torch.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if sys.platform == "darwin":  # torch reads it when it is loaded: operations that MPS lacks run on the CPU
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

if TYPE_CHECKING:
    from skipway import export, grow, nn, probe, weights
    from skipway.commands.check_data import check
    from skipway.commands.compare import compare
    from skipway.commands.evaluate import evaluate
    from skipway.commands.find_lr import find_lr
    from skipway.commands.predict import predict
    from skipway.data.image_spec import Spec
    from skipway.data.tables.table_spec import TableSpec
    from skipway.estimators import SkipClassifier, SkipRegressor
    from skipway.model_factory import create_model, list_models
    from skipway.models.feature_extraction import Features
    from skipway.models.load_model import load
    from skipway.models.network import Network
    from skipway.nn.activation_checkpointing import recompute
    from skipway.nn.chain import Chain
    from skipway.nn.dense import Dense
    from skipway.nn.joins import Gate, Scale, add, concat, multiply
    from skipway.nn.parallel import Parallel
    from skipway.nn.reversible import Coupling, Reversible
    from skipway.nn.shape_inference import output_shape
    from skipway.nn.skip import Skip, named_skips, set_submodule
    from skipway.probe.summary import summary
    from skipway.runs.recipe import Recipe
    from skipway.runs.train_run import Run, train

_NAMES = {
    "skipway.commands.compare": ("compare",),
    "skipway.data.tables.table_spec": ("TableSpec",),
    "skipway.estimators": ("SkipClassifier", "SkipRegressor"),
    "skipway.models.feature_extraction": ("Features",),
    "skipway.nn.joins": ("Gate", "Scale", "add", "concat", "multiply"),
    "skipway.probe.summary": ("summary",),
    "skipway.commands.find_lr": ("find_lr",),
    "skipway.runs.recipe": ("Recipe",),
    "skipway.nn.activation_checkpointing": ("recompute",),
    "skipway.nn.reversible": ("Coupling", "Reversible"),
    "skipway.runs.train_run": ("Run", "train"),
    "skipway.nn.shape_inference": ("output_shape",),
    "skipway.nn.chain": ("Chain",),
    "skipway.nn.dense": ("Dense",),
    "skipway.nn.parallel": ("Parallel",),
    "skipway.nn.skip": ("Skip", "named_skips", "set_submodule"),
    "skipway.data.image_spec": ("Spec",),
    "skipway.commands.check_data": ("check",),
    "skipway.commands.evaluate": ("evaluate",),
    "skipway.commands.predict": ("predict",),
    "skipway.models.network": ("Network",),
    "skipway.models.load_model": ("load",),
    "skipway.model_factory": ("create_model", "list_models"),
}
_PACKAGES = ("export", "grow", "nn", "probe", "weights")  # subpackages: sw.weights.adopt, sw.grow.deepen
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "Chain",
    "Coupling",
    "Dense",
    "Features",
    "Gate",
    "Network",
    "Parallel",
    "Recipe",
    "Reversible",
    "Run",
    "Scale",
    "Skip",
    "SkipClassifier",
    "SkipRegressor",
    "Spec",
    "TableSpec",
    "add",
    "check",
    "compare",
    "concat",
    "create_model",
    "evaluate",
    "export",
    "find_lr",
    "grow",
    "list_models",
    "load",
    "multiply",
    "nn",
    "output_shape",
    "predict",
    "probe",
    "recompute",
    "set_submodule",
    "summary",
    "train",
    "named_skips",
    "weights",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"skipway.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'skipway' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
