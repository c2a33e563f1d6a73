"""Calibration of the weights that a run keeps: the temperature of its class probabilities, in the weights of the head.

If the weights of the head are divided by the temperature, its logits are calibrated, and so are the results of
`predict`, `evaluate` and every export. The weights that training resumes from stay as they are.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skipway.models.network import Network
from skipway.training.checkpoint import save_weights
from skipway.training.scores import ClassScores
from skipway.training.temperature import best_temperature

__all__ = ["calibrate_weights"]


def calibrate_weights(
    network: Network, scores: ClassScores, path: Path, *, tensors: dict[str, Tensor], header: dict[str, Any]
) -> float:
    """Divide the head of a network by the best temperature, and write the weights with the temperature in their header.

    Args:
        network: network of `tensors`, with a linear head; its head is changed in place.
        scores: scores of the network on the validation samples; without finite ones, the temperature is 1.
        path: file of the weights.
        tensors: tensors of the file.
        header: header of the file.

    Returns:
        The temperature.
    """
    temperature = best_temperature(scores) if scores.finite().all() else 1.0
    head = network.get_submodule("head")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.div_(temperature)
    of_head = {f"head.{name}": tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    save_weights(path, tensors | of_head, header | {"temperature": temperature})
    return temperature
