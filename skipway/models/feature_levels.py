"""Feature maps of a network: where its layers end in one, and what each of them looks like, as in timm.

A feature map is the output of the stem, before its pool, or of a stage. timm keeps the last one of each resolution.

Shapes: (B, C, H, W) -> (B, C_i, H / reduction_i, W / reduction_i), rounded up.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from skipway.errors import InputError
from skipway.models.layer_names import head_start, is_stage, trunk_end
from skipway.nn.chain import Chain
from skipway.nn.joins import append
from skipway.nn.shape_inference import output_shape
from skipway.nn.skip import Skip
from skipway.utils.whole_number import whole_number

__all__ = [
    "FeatureInfo",
    "Piece",
    "feature_indices",
    "first_convolution",
    "measure",
    "split_layers",
]

_PROBE = 1024  # a power of two, so that the eight stages of an xresnet18_deeper halve it exactly


class FeatureInfo(list[dict[str, Any]]):
    """The feature maps of a model: a list of dictionaries, with the methods of timm's class of this name.

    Each dictionary has the number of channels ("num_chs"), the factor by which the image is reduced ("reduction"), the
    path of the layer ("module") and the place among all feature maps ("index"). The list has one for each output. The
    methods take the places of `idx` among all feature maps, and by default describe the outputs.

    Args:
        info: one dictionary for each feature map.
        out_indices: places of the outputs, in their order. None selects all.

    >>> info = FeatureInfo([{"num_chs": 8, "reduction": 2}, {"num_chs": 16, "reduction": 4}], (1,))
    >>> info.channels(), info.reduction([0, 1]), len(info)
    ([16], [2, 4], 1)
    """

    def __init__(self, info: Sequence[Mapping[str, Any]], out_indices: int | Sequence[int] | None = None):
        self.info = [{**level, "index": place} for place, level in enumerate(info)]
        self.out_indices = tuple(feature_indices(out_indices, len(self.info)))
        super().__init__(self.info[i] for i in self.out_indices)

    def from_other(self, out_indices: int | Sequence[int]) -> "FeatureInfo":
        """Return a FeatureInfo of the same feature maps with other outputs."""
        return FeatureInfo(self.info, out_indices)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Return the value of a key for each output, for each place of a sequence, or for one place."""
        if isinstance(idx, int):
            return self.info[idx][key]
        return [self.info[i][key] for i in (self.out_indices if idx is None else idx)]

    def get_dicts(self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None) -> Any:
        """Return the dictionaries, with only the named keys if there are any; see `get` for `idx`."""
        if isinstance(idx, int):
            return self.info[idx] if keys is None else {key: self.info[idx][key] for key in keys}
        return [self.get_dicts(keys, i) for i in (self.out_indices if idx is None else idx)]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the number of channels; see `get` for `idx`."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the factor by which the image is reduced; see `get` for `idx`."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the path of the layer; see `get` for `idx`."""
        return self.get("module", idx)


def feature_indices(indices: int | Sequence[int] | None, count: int, name: str = "out_indices") -> list[int]:
    """Return the places of `indices` among `count` feature maps.

    Args:
        indices: places; negative ones count from the last. An integer n selects the last n, None selects all.
        count: number of feature maps.
        name: name of the argument, for the error.

    Raises:
        InputError: a place is out of range.

    >>> feature_indices((0, -1), 5), feature_indices(2, 5)
    ([0, 4], [3, 4])
    """
    if indices is None:
        return list(range(count))
    if isinstance(indices, str) or not isinstance(indices, Iterable):
        if not _is_between(indices, 1, count):
            raise InputError(
                f"{name}: expected a number of outputs from 1 to {count}, got {indices!r}. "
                "Pass a list to select outputs."
            )
        return list(range(count - int(indices), count))
    places = list(indices)
    for place in places:
        if not _is_between(place, -count, count - 1):
            raise InputError(
                f"{name}: expected indices from {-count} to {count - 1}, for {count} outputs, got "
                f"{place!r}. Change {name}."
            )
    return [int(place) % count for place in places]


def _is_between(value: object, low: int, high: int) -> bool:
    try:
        return low <= whole_number(value) <= high
    except TypeError:
        return False


@dataclass(frozen=True)
class Piece:
    """A layer of a network and its path; `is_output` is True if it returns a feature map."""

    name: str
    layer: nn.Module
    is_output: bool


def split_layers(network: Chain, plan: Mapping[str, Any], every_stage: bool = True) -> list[Piece]:
    """Split a network into its layers up to the last stage, with the pool of the stem separate.

    Args:
        network: network with a layer "stem" and layers "stage1", "stage2" and so on.
        plan: its plan.
        every_stage: True if every stage returns a feature map. Otherwise only the last one of each resolution does, and
            that of the last dense stage is behind its norm, as in timm.

    Returns:
        The layers in call order; an empty list for a network without a stem.
    """
    pieces: list[Piece] = []
    if "stem" not in network._modules:
        return pieces
    for name, layer in list(network.named_children())[: trunk_end(network)]:
        if name == "stem" and isinstance(layer, Chain) and "pool" in layer._modules:
            steps = [(f"stem.{n}", step) for n, step in layer.named_children()]
            pieces += [Piece(path, step, path == steps[-2][0]) for path, step in steps]
        else:
            pieces.append(Piece(name, layer, name == "stem" or is_stage(name)))
    if every_stage:
        return pieces
    pieces = list(_last_of_each_resolution(pieces, plan))
    neck = list(network.named_children())[trunk_end(network) : head_start(network)]
    if neck and _is_dense(pieces[-1].layer):
        pieces[-1] = replace(pieces[-1], is_output=False)
        pieces += [Piece(name, layer, name == neck[-1][0]) for name, layer in neck]
    return pieces


def _last_of_each_resolution(pieces: list[Piece], plan: Mapping[str, Any]) -> Iterator[Piece]:
    """Yield the pieces; a feature map of the resolution of the next one is no longer an output.

    Strides are those of the plan, because dilation (`output_stride`) replaces them in the layers, and timm's levels do
    not depend on it.
    """
    places = [place for place, piece in enumerate(pieces) if piece.is_output]
    superseded = set()
    for number, (place, following) in enumerate(zip(places, places[1:], strict=False)):
        if number:
            halves = plan["strides"][number] > 1 if "strides" in plan else True
        else:
            halves = any(_is_strided(module) for module in _modules(pieces[place + 1 : following + 1]))
        if not halves:
            superseded.add(place)
    yield from (replace(piece, is_output=piece.is_output and i not in superseded) for i, piece in enumerate(pieces))


def _is_dense(stage: nn.Module) -> bool:
    """Return True if the blocks of a stage append to their input, so that no norm follows most of its output."""
    return all(isinstance(block, Skip) and block.join is append for block in stage.children())


def _modules(pieces: Sequence[Piece]) -> Iterator[nn.Module]:
    return nn.ModuleList(piece.layer for piece in pieces).modules()


def _is_strided(layer: nn.Module) -> bool:
    stride = getattr(layer, "stride", 1)
    return any(s != 1 for s in stride) if isinstance(stride, tuple) else stride != 1


def measure(pieces: Sequence[Piece], plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the channels, the reduction and the path of every feature map, without arithmetic."""
    if not pieces:
        return []
    size, *shapes = output_shape(_Outputs(pieces), input_shape(pieces, plan))
    names = [piece.name for piece in pieces if piece.is_output]
    return [
        {"num_chs": shape[1], "reduction": round(size[2] / shape[2]) if len(shape) > 2 else 1, "module": name}
        for name, shape in zip(names, shapes, strict=True)
    ]


def input_shape(pieces: Sequence[Piece], plan: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of an input of which every layer can make a feature map."""
    if "in_features" in plan:
        return 1, plan["in_features"]
    _, channels = first_convolution(("", module) for module in _modules(pieces))
    return 1, plan.get("in_chans", 3) if channels is None else channels, _PROBE, _PROBE


def first_convolution(modules: Iterable[tuple[str, nn.Module]]) -> tuple[str | None, int | None]:
    """Return the path and the input channels of the first 2d convolution, also of a fused one; None without any.

    >>> first_convolution(nn.Sequential(nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2)).named_modules())
    ('1', 6)
    """
    for path, module in modules:
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 4:  # (C', C / groups, H, W)
            return path, weight.shape[1] * int(getattr(module, "groups", 1))
    return None, None


class _Outputs(nn.Module):
    """The layers of pieces, which return their input and every feature map."""

    def __init__(self, pieces: Sequence[Piece]):
        super().__init__()
        self.pieces = pieces
        self.layers = nn.ModuleList(piece.layer for piece in pieces)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return x and the feature maps of x."""
        outputs = [x]
        for piece in self.pieces:
            x = piece.layer(x)
            outputs += [x] if piece.is_output else []
        return outputs
