"""torch.jit.script of a network: compile its graph from torch.fx, because TorchScript cannot read the Python code."""

import warnings

import torch
from torch import fx, nn

from skipway.errors import InputError, SkipwayError, reason_of

__all__ = ["scriptable_graph"]


def scriptable_graph(module: nn.Module) -> fx.GraphModule:
    """Return the graph of `module` in its current mode, which torch.jit.script can compile.

    Raises:
        InputError: torch.fx cannot trace the module, or TorchScript does not know an operation of it.
    """
    try:
        graph = fx.Tracer().trace(module)
        for node in graph.nodes:
            node.type = None  # TorchScript does not know Any
        traced = fx.GraphModule(module, graph, type(module).__name__)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of torch, which the caller compiles again
            torch.jit.script(traced)
    except SkipwayError:
        raise
    except Exception as error:
        first = "Call eval() first, or use" if module.training else "Use"
        raise InputError(
            f"cannot script {type(module).__name__}: expected operations of TorchScript, got an error: "
            f"{reason_of(error)}. {first} torch.export.export or skipway.export.program, which replace it."
        ) from None
    return traced
