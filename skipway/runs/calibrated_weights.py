"""Calibration of the weights that a run keeps: the temperature of its class probabilities, in the weights of the head.

If the weights of the head, or those of an ensemble, are divided by the temperature, the logits are calibrated, and so
are the results of `predict`, `evaluate` and every export. The weights that training resumes from stay as they are.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skipway.models.network import Network
from skipway.models.tree_ensemble import ENSEMBLE, TREES
from skipway.training.checkpoint import save_weights
from skipway.training.scores import ClassScores
from skipway.training.temperature import best_temperature

__all__ = ["calibrate_weights"]


def calibrate_weights(
    network: Network, scores: ClassScores, path: Path, *, tensors: dict[str, Tensor], header: dict[str, Any]
) -> float:
    """Divide the outputs of a network by the best temperature, and write the weights and the temperature.

    Args:
        network: network of `tensors`, with a linear head, or joined with boosting; it is changed in place.
        scores: scores of the network on the validation samples; without finite ones, the temperature is 1.
        path: file of the weights.
        tensors: tensors of the file.
        header: header of the file.

    Returns:
        The temperature.
    """
    temperature = best_temperature(scores) if scores.finite().all() else 1.0
    name = f"{ENSEMBLE}.join" if TREES in network.plan else "head"  # both are linear in all their tensors
    last = network.get_submodule(name)
    with torch.no_grad():
        for tensor in last.state_dict().values():
            tensor.div_(temperature)
    changed = {f"{name}.{key}": tensor.cpu().contiguous() for key, tensor in last.state_dict().items()}
    save_weights(path, tensors | changed, header | {"temperature": temperature})
    return temperature
