"""timm's methods of a model, derived from the names and the order of a network's layers.

Shapes: (B, C, H, W) -> (B, C', H', W') for the features, and (B, K) behind the head.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

from torch import Tensor, nn

from skipway.data.image_spec import Spec
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError
from skipway.kernels.layer_dispatch import run_layers
from skipway.models.feature_levels import (
    FeatureInfo,
    Piece,
    feature_indices,
    first_convolution,
    input_shape,
    measure,
    split_layers,
)
from skipway.models.layer_names import head_start, is_stage
from skipway.models.pretrained_config import pretrained_config
from skipway.models.tree_ensemble import TREES
from skipway.nn.activation_checkpointing import recompute
from skipway.nn.blocks import Shift
from skipway.nn.chain import Chain
from skipway.nn.joins import Scale
from skipway.nn.named_errors import named_errors
from skipway.nn.parallel import Parallel
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.shape_inference import output_shape

__all__ = ["TimmInterface", "is_reversible"]

_NORMS = ("norm", "act", "shift")  # layers behind the last stage that keep its channels


class TimmInterface(Chain):
    """A Chain of "stem", "stage1" to "stageN", perhaps further layers, "pool" and "head", with timm's methods.

    The features are the output of the layers before the head, which starts at "pool", or at "head" without one.
    `forward(x)` equals `forward_head(forward_features(x))`.
    """

    # torch.jit compiles all other properties, even to trace a network.
    __jit_unused_properties__ = (
        "default_cfg",
        "feature_info",
        "head_hidden_size",
        "num_classes",
        "num_features",
        "pretrained_cfg",
    )

    plan: dict[str, Any]
    spec: Spec | TableSpec | None
    reset_classifier: Callable[[int, str | None], None]

    @named_errors
    def forward_features(self, x: Tensor) -> Tensor:
        """Return the input of the head: a feature map (B, C, H, W), or (B, F) for a table."""
        return self._run(list(self)[: head_start(self)], x)

    @named_errors
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the outputs (B, K) for features, or with `pre_logits` the input (B, F) of the classifier."""
        layers = list(self._modules)[head_start(self) :]
        if pre_logits and "head" in layers:
            layers = layers[: layers.index("head")]
        return self._run([self.get_submodule(name) for name in layers], x)

    @named_errors
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the features and the feature maps of `feature_info`, as timm does.

        Args:
            x: images (B, C, H, W).
            indices: places of the feature maps in `feature_info`. An integer n returns the last n, None returns all.
            norm: apply the norm behind the last stage, if there is one, to the last feature map too.
            stop_early: stop at the last of these feature maps, and return it as the features.
            output_fmt: "NCHW", the only layout of these networks.
            intermediates_only: return only the feature maps.

        Returns:
            (features, feature maps in the order of the layers), or only the list of feature maps.

        Raises:
            InputError: the layout or an index is invalid, or the network has no stem and stages.
        """
        if output_fmt != "NCHW":
            raise InputError(
                f'forward_intermediates: expected output_fmt "NCHW", got {output_fmt!r}. Permute the outputs.'
            )
        pieces = split_layers(self, self.plan, every_stage=False)
        if not pieces:
            raise InputError(
                "forward_intermediates: expected a network with a stem and stages. Use a model of create_model."
            )
        count = sum(piece.is_output for piece in pieces)
        wanted = feature_indices(indices, count, "indices")
        last = max(wanted) if wanted else 0
        maps: list[Tensor] = []
        place = -1
        for piece in pieces:
            x = self._run([piece.layer], x)
            place += piece.is_output
            if piece.is_output and place in wanted:
                maps.append(x)
            if stop_early and place == last:
                break
        neck = self._neck(pieces) if place == count - 1 and (norm or not intermediates_only) else []
        if neck:
            x = self._run([layer for _, layer in neck], x.clone())  # a ReLU in place would change the last feature map
            if norm and count - 1 in wanted and all(_is_norm(name) for name, _ in neck):
                maps[-1] = x
        return maps if intermediates_only else (x, maps)

    def _run(self, layers: Sequence[nn.Module], x: Tensor) -> Tensor:
        return (self.forward_impl or run_layers)(layers, x)

    def _neck(self, pieces: Sequence[Piece]) -> list[tuple[str, nn.Module]]:
        """Return the layers between the last feature map and the head."""
        begin = list(self._modules).index(pieces[-1].name.partition(".")[0]) + 1 if pieces else 0
        return list(self.named_children())[begin : head_start(self)]

    @property
    def feature_info(self) -> FeatureInfo:
        """The feature maps of the network, the last of each resolution: channels, reductions and names of layers."""
        return FeatureInfo(measure(split_layers(self, self.plan, every_stage=False), self.plan))

    @property
    def num_classes(self) -> int:
        """Number of outputs of the classifier, 0 without one."""
        if TREES in self.plan:  # the classifier is that of a part
            return int(self.plan["num_classes"])
        classifier = self.get_classifier()
        if isinstance(classifier, nn.Identity):
            return 0
        return _sizes(classifier)[1] or int(self.plan.get("num_classes", 0))

    @property
    def num_features(self) -> int:
        """Channels of the features."""
        hidden = _sizes(self.get_classifier())[0]
        if hidden is None:
            return self._width(head_start(self))
        return hidden // 2 if isinstance(self._modules.get("pool"), Parallel) else hidden  # the pool "catavgmax"

    @property
    def head_hidden_size(self) -> int:
        """Features that the classifier takes."""
        hidden = _sizes(self.get_classifier())[0]
        if hidden is not None:
            return hidden
        names = [*self._modules, "head"]
        return self._width(names.index("head"))

    def _width(self, count: int) -> int:
        """Return the channels of the output of the first `count` layers, without arithmetic."""
        first = nn.Sequential(*list(self)[:count])
        return int(output_shape(first, input_shape(split_layers(self, self.plan), self.plan))[1])

    @overload
    def get_classifier(self, name_only: Literal[False] = False) -> nn.Module: ...
    @overload
    def get_classifier(self, name_only: Literal[True]) -> str: ...
    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """Return the classifier, an `nn.Identity` without one, or its name."""
        return "head" if name_only else dict(self.named_children()).get("head", nn.Identity())

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The preprocessing, the number of classes, and the names of the first convolution and of the classifier.

        The keys are timm's. The preprocessing is that of the Spec, or of ImageNet without one.
        """
        path, channels = first_convolution(self.named_modules())
        config = pretrained_config(self.plan, self.spec, channels)
        if channels is not None:
            features = nn.Sequential(*list(self)[: head_start(self)])
            config["pool_size"] = output_shape(features, (1, *config["input_size"]))[2:]
        return {**config, "num_classes": self.num_classes, "first_conv": path, "classifier": "head"}

    @property
    def default_cfg(self) -> dict[str, Any]:
        """The same as `pretrained_cfg`."""
        return self.pretrained_cfg

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers behind the last of some feature maps, in place, as timm does.

        A pruned network no longer matches its plan and cannot be saved to one file; save its `state_dict()`.

        Args:
            indices: places of the feature maps in `feature_info`; see `forward_intermediates`.
            prune_norm: remove the norm behind the last stage too.
            prune_head: remove the pool and the classifier, as always if a stage is removed.

        Returns:
            The places of the feature maps.

        Raises:
            InputError: an index is invalid.
        """
        pieces = split_layers(self, self.plan, every_stage=False)
        outputs = [piece.name for piece in pieces if piece.is_output]
        places = feature_indices(indices, len(outputs), "indices")
        end = max(places, default=0)
        cut = end < len(outputs) - 1
        if cut:
            last, _, step = outputs[end].partition(".")
            names = list(self._modules)[: head_start(self)]
            removed = names[names.index(last) + 1 :]
            if step:  # the stem ends before its pool
                del self.get_submodule(last)["pool"]  # type: ignore[operator]
        else:
            removed = [name for name, _ in self._neck(pieces) if prune_norm or (prune_head and not _is_norm(name))]
        for name in removed:
            del self[name]
        if cut or prune_head:
            self.reset_classifier(0, "none" if "pool" in self._modules else None)
            for name, layer in list(self.named_children())[head_start(self) :]:
                if any(True for _ in layer.parameters()):  # a norm of the pooled features
                    del self[name]
        return places

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable activation checkpointing; see `recompute`. Reversible networks need none."""
        if not is_reversible(self):
            recompute(self, "auto" if enable else "none")

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay: learned scales of joins and shifts of Fixup."""
        special = {path for path, module in self.named_modules() if isinstance(module, Scale | Shift)}
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[0] in special}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns for groups of parameters: the stem, then each block, then the head.

        A layer between two stages belongs to the block behind it, and one behind the last stage to the last block.

        Args:
            coarse: one group for each stage instead of each block.

        Returns:
            "stem" and "blocks", each a list of (pattern, number of the group).
        """
        children = list(self.named_children())[: head_start(self)]
        first = next((place for place, (name, _) in enumerate(children) if name == "stem"), -1) + 1
        groups: list[list[str]] = []
        waiting: list[str] = []
        for name, layer in children[first:]:
            if not is_stage(name):
                waiting.append(name)
                continue
            for path in [name] if coarse else _blocks(name, layer):
                groups.append([*waiting, path])
                waiting = []
        if groups:
            groups[-1] += waiting
        blocks = [(_pattern(paths), (number,)) for number, paths in enumerate(groups)]
        return {"stem": _pattern([name for name, _ in children[:first]]), "blocks": blocks}


def _sizes(classifier: nn.Module) -> tuple[int | None, int | None]:
    """Return the numbers of inputs and outputs of a classifier, None without a linear layer."""
    layers = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
    return (layers[0].in_features, layers[-1].out_features) if layers else (None, None)


def _is_norm(name: str) -> bool:
    return name.rstrip("0123456789") in _NORMS


def is_reversible(network: nn.Module) -> bool:
    """Return True if a network has reversible layers."""
    return any(isinstance(module, Reversible | Coupling) for module in network.modules())


def _blocks(path: str, stage: nn.Module) -> list[str]:
    """Return the paths of the blocks of a stage."""
    if not isinstance(stage, Chain):
        return [path]
    paths: list[str] = []
    for name, block in stage.named_children():
        paths += _blocks(f"{path}.{name}", block) if isinstance(block, Reversible) else [f"{path}.{name}"]
    return paths


def _pattern(paths: Sequence[str]) -> str:
    r"""Return a pattern of names at or below the paths.

    >>> _pattern(["stem"])
    '^(?:stem)(?:\\.|$)'
    """
    names = "|".join(map(re.escape, paths))
    return rf"^(?:{names})(?:\.|$)"
