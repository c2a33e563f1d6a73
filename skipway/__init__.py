"""Networks with shortcut connections: build them, train them, keep what they learned.

    import skipway as sw
    run = sw.train("digits")
    run.network().predict(["photo.png"])

Every public name is loaded when it is first used, so that importing skipway loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import skipway.probe as probe
    from skipway import export, grow, weights
    from skipway.comparison import compare
    from skipway.data.table_spec import TableSpec
    from skipway.estimators import SkipClassifier, SkipRegressor
    from skipway.features import Features
    from skipway.joins import Gate, Scale, add, concat, multiply
    from skipway.network import Network
    from skipway.probe.summary import summary
    from skipway.rates import find_lr
    from skipway.recipe import Recipe
    from skipway.recomputation import recompute
    from skipway.reversible import Coupling, Reversible
    from skipway.run import Run, train
    from skipway.shapes import output_shape
    from skipway.skip import Chain, Dense, Parallel, Skip, replace, walk
    from skipway.spec import Spec
    from skipway.stored import load
    from skipway.use import check, evaluate, predict
    from skipway.zoo import create_model, list_models

_HOMES = {
    "skipway.comparison": ("compare",),
    "skipway.data.table_spec": ("TableSpec",),
    "skipway.estimators": ("SkipClassifier", "SkipRegressor"),
    "skipway.features": ("Features",),
    "skipway.joins": ("Gate", "Scale", "add", "concat", "multiply"),
    "skipway.probe.summary": ("summary",),
    "skipway.rates": ("find_lr",),
    "skipway.recipe": ("Recipe",),
    "skipway.recomputation": ("recompute",),
    "skipway.reversible": ("Coupling", "Reversible"),
    "skipway.run": ("Run", "train"),
    "skipway.shapes": ("output_shape",),
    "skipway.skip": ("Chain", "Dense", "Parallel", "Skip", "replace", "walk"),
    "skipway.spec": ("Spec",),
    "skipway.use": ("check", "evaluate", "predict"),
    "skipway.network": ("Network",),
    "skipway.stored": ("load",),
    "skipway.zoo": ("create_model", "list_models"),
}
_ROOMS = ("export", "grow", "probe", "weights")  # used by their own names: sw.weights.adopt, sw.grow.deepen
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

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
    "output_shape",
    "predict",
    "probe",
    "recompute",
    "replace",
    "summary",
    "train",
    "walk",
    "weights",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"skipway.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'skipway' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
