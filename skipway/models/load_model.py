"""Stored: what skipway wrote comes back as a network, without the user's code and without pickle."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skipway.errors import InputError, ShapeError, printable
from skipway.models.network import Network, build_network, read_spec
from skipway.models.plan_consistency import plan_mismatch
from skipway.training.best_weights import read_progress, refuse_other_weights
from skipway.training.checkpoint import load_weights

__all__ = ["load", "restore", "weights_file"]


def load(run_or_file: str | os.PathLike[str]) -> Network:
    """Return the trained network of a run folder or of a file that skipway wrote, without the user's code and pickle.

    Raises:
        InputError: the file cannot be used, or lies in a run and is not that of the run's best epoch.
    """
    path = weights_file(Path(run_or_file))
    tensors, header = load_weights(path)
    if (progress := read_progress(path)) is not None:
        refuse_other_weights(path, header, progress)
    return restore(tensors, header, printable(path))


def restore(tensors: dict[str, Tensor], header: dict[str, Any], where: str) -> Network:
    """The network that a file's header plans, with the file's tensors in it."""
    try:
        plan, spec = dict(header["plan"]), read_spec(header["spec"])
        with torch.device("meta"):  # no weights are drawn, nor memory taken, before the tensors are seen to fit
            network = build_network(plan, spec)
    except InputError as error:
        raise error.at(where) from None
    except MemoryError:
        raise
    except Exception as error:  # a plan from elsewhere can fail anywhere in the layers that it asks for
        raise InputError(
            f"{where} has no usable plan and Spec in its header ({printable(error)}); write it again"
        ) from None
    if mismatch := plan_mismatch(plan, spec, network.state_dict(), tensors):
        raise ShapeError(f"{where} {mismatch}; write it again")
    all_double = all(tensor.dtype == torch.float64 for tensor in tensors.values() if tensor.is_floating_point())
    _fill(network.to(torch.float64 if all_double else torch.float32), tensors)
    return network.eval()


def _fill(network: Network, tensors: dict[str, Tensor]) -> None:
    """Copy `tensors` into a network on the meta device, in its own dtypes.

    Not by `to_empty`, which imports sympy in a quarter of a second to find the strides of a tensor.
    """
    values = {}
    for key, like in network.state_dict().items():
        values[key] = torch.empty(like.shape, dtype=like.dtype).copy_(tensors[key])
    network.load_state_dict(values, assign=True)


def weights_file(path: Path) -> Path:
    """The file of weights that a run folder or a file's path stands for."""
    if path.is_dir():
        best = path / "weights" / "best.safetensors"
        if (path / "fold-1").is_dir():
            raise InputError(
                f"cannot load {printable(path)}: expected the folder of one model, got a cross-validation. Train "
                "without --folds for a model to use, or give the folder of a fold, such as fold-1."
            )
        if not best.is_file():
            raise InputError(
                f"{printable(path)} holds no weights/best.safetensors: the run has not finished an epoch, or this is "
                "no run folder; give a run folder or a .safetensors file"
            )
        return best
    return path
