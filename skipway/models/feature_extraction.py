"""Features: a network without its head, as a backbone that returns feature maps, as with timm's `features_only`.

Shapes: (B, C, H, W) -> a list of (B, C_i, H / reduction_i, W / reduction_i), rounded up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.models.network import Network
from skipway.nn.chain import Chain
from skipway.nn.shape_inference import output_shape

__all__ = ["Features"]

_PROBE = 224  # a size that every network halves exactly


class Features(nn.Module):
    """A backbone that returns the outputs of the stem (index 0, before its pool) and of each stage (1, 2, ...).

    The layers are shared with the network: training one trains the other.

    Args:
        network: a network of `create_model` with a stem and stages.
        out_indices: indices of the outputs, 0 for the stem; negative ones count from the last stage. None returns all.

    Attributes:
        feature_info: for each output, its channels ("num_chs"), the factor by which the image is reduced ("reduction"),
            and the name of the layer ("module").

    Shapes:
        (B, C, H, W) -> a list of (B, C_i, H / reduction_i, W / reduction_i), rounded up.

    Raises:
        InputError: an index is out of range, or the network has no stem and stages.

    >>> from skipway.models.registry import plan_of
    >>> from skipway.models.network import build_network
    >>> backbone = Features(build_network(plan_of("resnet20")))
    >>> [x.shape[1] for x in backbone(torch.zeros(1, 3, 32, 32))]
    [16, 16, 32, 64]
    """

    def __init__(self, network: Network, out_indices: Sequence[int] | None = None):
        super().__init__()
        pieces = _split_layers(network)
        count = sum(piece.is_output for piece in pieces)
        indices = range(count) if out_indices is None else [_index(i, count) for i in out_indices]
        self.out_indices = tuple(indices)
        self.plan = network.plan
        end, index = 0, -1
        for position, piece in enumerate(pieces):
            index += piece.is_output
            if piece.is_output and index in self.out_indices:
                end = position + 1
        used = pieces[:end]
        self.layers = Chain(**{piece.name.replace(".", "_"): piece.layer for piece in used})
        self._is_output = [piece.is_output for piece in used]
        self.feature_info = self._measure([piece.name for piece in used if piece.is_output])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of `out_indices` for images (B, C, H, W), in the order of the indices."""
        outputs = []
        for layer, is_output in zip(self.layers, self._is_output, strict=True):
            x = layer(x)
            if is_output:
                outputs.append(x)
        return [outputs[i] for i in self.out_indices]

    def _measure(self, names: list[str]) -> list[dict[str, Any]]:
        flat = "in_features" in self.plan
        shape = (1, self.plan["in_features"]) if flat else (1, self.plan["in_chans"], _PROBE, _PROBE)
        with torch.no_grad():
            shapes = output_shape(self, shape)
        return [
            {"num_chs": output[1], "reduction": 1 if flat else round(_PROBE / output[2]), "module": names[i]}
            for i, output in zip(self.out_indices, shapes, strict=True)
        ]


def _index(index: int, count: int) -> int:
    if not -count <= index < count:
        raise InputError(
            f"out_indices: expected indices from {-count} to {count - 1}, for {count} outputs, got "
            f"{index}. Change out_indices."
        )
    return index % count


@dataclass(frozen=True)
class _Piece:
    """A layer of a backbone and its path in the network; `is_output` is True if it returns a feature map."""

    name: str
    layer: nn.Module
    is_output: bool


def _split_layers(network: Network) -> list[_Piece]:
    """Split a network into its layers up to the last stage, with the pool of the stem separate."""
    stages = [name for name, _ in network.named_children() if name.startswith("stage")]
    pieces: list[_Piece] = []
    for name, layer in network.named_children():
        if name == "stem" and isinstance(layer, Chain) and isinstance(getattr(layer, "pool", None), nn.Module):
            steps = [n for n, _ in layer.named_children() if n != "pool"]
            pieces += [_Piece(f"stem.{n}", layer.get_submodule(n), n == steps[-1]) for n in steps]
            pieces.append(_Piece("stem.pool", layer.get_submodule("pool"), False))
        else:
            pieces.append(_Piece(name, layer, name == "stem" or name in stages))
        if stages and name == stages[-1]:
            return pieces
    raise InputError("Features: expected a network with a stem and stages. Use a model of create_model.")
