"""Features: a network's stem and stages as a backbone that gives their outputs, as timm's `features_only` does.

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

_PROBE = 224  # any size that every network halves exactly


class Features(nn.Module):
    """The outputs of the stem (index 0, before its pool) and of each stage (1, 2, ...), without the head.

    `feature_info` says of each output: "num_chs" channels, at a "reduction"-th of the image, made by the layer at
    "module". The layers are the network's own: training one trains the other.

    Args:
        network: any network of `create_model` whose layers are a stem and stages.
        out_indices: which outputs, counted from the stem, negative ones from the last stage; None for all.

    Raises:
        InputError: there is no such output.
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
        """(B, C, H, W) -> the outputs of `out_indices`, in their order."""
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
        raise InputError(f"out_indices count {count} outputs, 0 to {count - 1} or -{count} to -1, not {index}")
    return index % count


@dataclass(frozen=True)
class _Piece:
    """A layer of a backbone by its path in the network."""

    name: str
    layer: nn.Module
    is_output: bool


def _split_layers(network: Network) -> list[_Piece]:
    """Split a network into its layers up to the last stage, with the stem's pool apart."""
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
    raise InputError("Features needs a network of a stem and stages, as create_model makes them")
