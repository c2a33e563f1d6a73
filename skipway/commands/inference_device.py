"""Device of a trained model for prediction and evaluation."""

import copy
import os
from pathlib import Path

import torch

from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError
from skipway.models.load_model import load
from skipway.models.network import Network
from skipway.utils.devices import device_for, has_float64

__all__ = ["network_on_device"]


def network_on_device(run: Network | str | os.PathLike[str], requested: str, *, needs_cpu: bool = False) -> Network:
    """Return the model of `run` on the device that computes its outputs.

    Args:
        run: run folder, weights file or network. A network is not changed: a copy of it moves to another device.
        requested: the option `device`. With "auto", a network stays on its device, a table model is loaded on the CPU,
            and an image model on an accelerator if there is one.
        needs_cpu: with "auto", load an image model on the CPU, because its engine or precision exists only there.

    Raises:
        InputError: the device is missing, or does not compute in float64, the precision of the model.
    """
    name = device_for(requested)
    if isinstance(run, Network) and requested == "auto":
        return run
    network = run if isinstance(run, Network) else load(Path(run))
    if requested == "auto" and (needs_cpu or isinstance(network.spec, TableSpec)):
        return network
    device = torch.device(name)
    if any(p.dtype == torch.float64 for p in network.parameters()) and not has_float64(device.type):
        raise InputError(
            f"cannot use --device {device}: expected a model in float32, got one in float64, which {device.type} does "
            "not have. Use --device cpu."
        )
    if all(_is_on(p.device, device) for p in network.parameters()):
        return network
    return (copy.deepcopy(network) if network is run else network).to(device)


def _is_on(place: torch.device, device: torch.device) -> bool:
    """Return True if a tensor at `place` need not move; a device without an index is any of its kind."""
    return place.type == device.type and device.index in (None, place.index)
