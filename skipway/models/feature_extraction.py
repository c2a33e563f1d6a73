"""Features: a network without its head, as a backbone that returns feature maps, as with timm's `features_only`.

Shapes: (B, C, H, W) -> a list of (B, C_i, H / reduction_i, W / reduction_i), rounded up.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from skipway.errors import InputError
from skipway.models.feature_levels import FeatureInfo, feature_indices, measure, split_layers
from skipway.models.layer_names import is_stage
from skipway.models.network import Network
from skipway.models.timm_interface import is_reversible
from skipway.nn.activation_checkpointing import recompute
from skipway.nn.chain import Chain

__all__ = ["Features"]


class Features(nn.Module):
    """A backbone that returns the outputs of the stem (index 0, before its pool) and of each stage (1, 2, ...).

    The layers are shared with the network: training one trains the other.

    Args:
        network: a network of `create_model` with a stem and stages.
        out_indices: indices of the outputs, 0 for the stem; negative ones count from the last stage. An integer n
            returns the last n, None returns all.
        every_stage: False for the outputs and indices of timm, as `create_model` does: the last one of each resolution,
            and that of a DenseNet behind its last norm.

    Attributes:
        feature_info: for each output, its channels ("num_chs"), the factor by which the image is reduced ("reduction"),
            and the name of the layer ("module"), with the methods of timm's FeatureInfo (`channels()`, `reduction()`,
            `module_name()`, `get_dicts()`).
        left_out: paths of the layers of the network that no output needs, such as "head".

    Shapes:
        (B, C, H, W) -> a list of (B, C_i, H / reduction_i, W / reduction_i), rounded up.

    Raises:
        InputError: an index is out of range, or the network has no stem and stages.

    >>> import torch
    >>> from skipway.models.registry import plan_of
    >>> from skipway.models.network import build_network
    >>> backbone = Features(build_network(plan_of("resnet20")))
    >>> [x.shape[1] for x in backbone(torch.zeros(1, 3, 32, 32))]
    [16, 16, 32, 64]
    """

    def __init__(self, network: Network, out_indices: int | Sequence[int] | None = None, *, every_stage: bool = True):
        super().__init__()
        pieces = split_layers(network, network.plan, every_stage)
        if not pieces:
            raise InputError("Features: expected a network with a stem and stages. Use a model of create_model.")
        ends = [place + 1 for place, piece in enumerate(pieces) if piece.is_output]
        self.out_indices = tuple(feature_indices(out_indices, len(ends)))
        self.plan = network.plan
        self.pretrained_cfg = self.default_cfg = network.pretrained_cfg
        self.feature_info = FeatureInfo(measure(pieces, network.plan), self.out_indices)
        end = max((ends[i] for i in self.out_indices), default=0)
        used = pieces[:end]
        self.layers = Chain(**{piece.name.replace(".", "_"): piece.layer for piece in used})
        self._is_output = [piece.is_output for piece in used]
        self._paths = {piece.name: f"layers.{piece.name.replace('.', '_')}" for piece in used}
        self.left_out = _left_out(network, [piece.name for piece in pieces], self._paths)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of `out_indices` for images (B, C, H, W), in the order of the indices."""
        outputs = []
        for layer, is_output in zip(self.layers, self._is_output, strict=True):
            x = layer(x)
            if is_output:
                outputs.append(x)
        return [outputs[i] for i in self.out_indices]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the state of a `Features`, or that of a whole network.

        The keys of a network are renamed, and those below `left_out` are dropped. All others are as strict as in torch.

        Args:
            state_dict: state of this backbone ("layers.stage1..."), or of the network ("stage1...").
            strict: raise an error for missing and unexpected keys.
            assign: use the tensors themselves instead of copying their values.

        Returns:
            (missing_keys, unexpected_keys). The dropped keys are in `unexpected_keys`, and never an error.

        >>> from skipway.models.network import build_network
        >>> from skipway.models.registry import plan_of
        >>> network = build_network(plan_of("resnet20"))
        >>> Features(network).load_state_dict(network.state_dict()).unexpected_keys
        ['head.weight', 'head.bias']
        """
        own, dropped = state_dict, []
        if not any(key.startswith("layers.") for key in state_dict):
            dropped = [key for key in state_dict if _path_in(key, self.left_out) is not None]
            own = OrderedDict((self._renamed(key), value) for key, value in state_dict.items() if key not in dropped)
            metadata = getattr(state_dict, "_metadata", None)
            if metadata is not None:
                own._metadata = {self._renamed(path): entry for path, entry in metadata.items()}  # type: ignore[attr-defined]
        keys = super().load_state_dict(own, strict, assign)
        keys.unexpected_keys.extend(dropped)
        return keys

    def _renamed(self, key: str) -> str:
        """Return the path in this backbone of a path in the network."""
        path = _path_in(key, self._paths)
        return key if path is None else self._paths[path] + key.removeprefix(path)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable activation checkpointing of every block; reversible stages need none."""
        for name, stage in self.layers.named_children():
            if is_stage(name) and not is_reversible(stage):
                recompute(stage, 1 if enable else "none")


def _path_in(key: str, paths: Sequence[str] | Mapping[str, str]) -> str | None:
    """Return the path that `key` is or lies below, or None."""
    return next((path for path in paths if key == path or key.startswith(f"{path}.")), None)


def _left_out(network: Network, pieces: list[str], used: Mapping[str, str]) -> tuple[str, ...]:
    """Return the paths of the layers that no output needs: the rest of the trunk, and all behind it."""
    names = list(network._modules)
    behind = names[names.index(pieces[-1].partition(".")[0]) + 1 :]
    return *(path for path in pieces if path not in used), *behind
