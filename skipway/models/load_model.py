"""Load models from runs and files of skipway, without user code and without pickle."""

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
    """Load a trained model from a run folder or a weights file of skipway, without user code and without pickle.

    Args:
        run_or_file: path of a run folder, such as "runs/last", or of a .safetensors file.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        InputError: the file cannot be read, or it lies in a run and is not from the best epoch of that run.

    >>> import tempfile, skipway as sw
    >>> run = sw.train("wine", epochs=1, output=tempfile.mkdtemp())
    >>> network = load(run.path)
    >>> network.plan["family"], network.spec.class_names
    ('resmlp', ('class_0', 'class_1', 'class_2'))
    """
    path = weights_file(Path(run_or_file))
    tensors, header = load_weights(path)
    if (progress := read_progress(path)) is not None:
        refuse_other_weights(path, header, progress)
    return restore(tensors, header, printable(path))


def restore(tensors: dict[str, Tensor], header: dict[str, Any], where: str) -> Network:
    """Build the network of the plan in a file's header, and load the file's tensors."""
    try:
        plan, spec = dict(header["plan"]), read_spec(header["spec"])
        with torch.device("meta"):  # allocates no memory before the tensors are checked
            network = build_network(plan, spec)
    except InputError as error:
        raise error.at(where) from None
    except MemoryError:
        raise
    except Exception as error:  # an untrusted plan can fail in any layer
        raise InputError(
            f"cannot load {where}: expected a valid plan and Spec in its header, got "
            f"{printable(error)}. Write the file again."
        ) from None
    if mismatch := plan_mismatch(plan, spec, network.state_dict(), tensors):
        raise ShapeError(f"cannot load {where}: it {mismatch}. Write the file again.")
    all_double = all(tensor.dtype == torch.float64 for tensor in tensors.values() if tensor.is_floating_point())
    _fill(network.to(torch.float64 if all_double else torch.float32), tensors)
    return network.eval()


def _fill(network: Network, tensors: dict[str, Tensor]) -> None:
    """Copy `tensors` into a network on the meta device, in the dtypes of the network.

    `to_empty` is avoided because it imports sympy, which takes a quarter of a second.
    """
    values = {}
    for key, like in network.state_dict().items():
        values[key] = torch.empty(like.shape, dtype=like.dtype).copy_(tensors[key])
    network.load_state_dict(values, assign=True)


def weights_file(path: Path) -> Path:
    """Return the path of the weights file of a run folder, or `path` itself if it is no folder.

    Raises:
        InputError: the folder has no usable weights file.
    """
    if path.is_dir():
        best = path / "weights" / "best.safetensors"
        if (path / "fold-1").is_dir():
            raise InputError(
                f"cannot load {printable(path)}: expected the folder of one model, got a cross-validation. Train "
                "without --folds to get one model, or pass the folder of a fold, such as fold-1."
            )
        if not best.is_file():
            raise InputError(
                f"cannot load {printable(path)}: expected weights/best.safetensors in it, found none. "
                "Wait until the run has finished an epoch, or pass another run folder or a .safetensors "
                "file."
            )
        return best
    return path
