"""Layers with shortcut connections: Skip, Chain, Parallel, Dense, joins, shortcuts, shape inference."""

from skipway.nn.activation_checkpointing import recompute
from skipway.nn.chain import Chain
from skipway.nn.dense import Dense
from skipway.nn.joins import Gate, Scale, add, concat, multiply
from skipway.nn.parallel import Parallel
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.shape_inference import output_shape
from skipway.nn.skip import Skip, named_skips, set_submodule

__all__ = [
    "Chain",
    "Coupling",
    "Dense",
    "Gate",
    "Parallel",
    "Reversible",
    "Scale",
    "Skip",
    "add",
    "concat",
    "multiply",
    "output_shape",
    "recompute",
    "set_submodule",
    "named_skips",
]
