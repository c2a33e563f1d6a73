"""Network: a tree of layers with its plan and its Spec, which predicts from images or tables.

Shapes: (B, C, H, W) -> (B, K) for images of C channels and K outputs; for rows of a table, (B, F) -> (B, K).
"""

import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skipway.data.image_spec import Spec
from skipway.data.sources.table import Table
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError, ShapeError
from skipway.models import network_outputs, registry
from skipway.models.architecture_plan import whole_number
from skipway.models.feature_columns import COLUMNS
from skipway.models.head import POOLS, classifier, pool_name, pooled_channels, pooling, replace_head, require_classes
from skipway.models.layer_names import head_start
from skipway.models.plan_consistency import plan_mismatch
from skipway.models.timm_interface import TimmInterface
from skipway.models.tree_ensemble import refuse_trees
from skipway.nn.chain import Chain
from skipway.training.checkpoint import save_weights
from skipway.utils.output_files import refuse_output

__all__ = [
    "Network",
    "build_meta_network",
    "build_network",
    "read_spec",
    "with_converted_trunk",
    "with_feature_columns",
]


class Network(TimmInterface):
    """A model that carries its plan and its Spec, so that a file of it can be loaded without user code.

    Args:
        layers: named layers, run in order.
        plan: plain values that rebuild the layers.
        spec: meaning of the inputs and outputs.

    Attributes:
        origin: text that reports the source of the weights.

    >>> from skipway.models.registry import plan_of
    >>> network = build_network(plan_of("resnet20"))
    >>> network(torch.zeros(1, 3, 32, 32)).shape, network.origin
    (torch.Size([1, 10]), 'fresh weights')
    """

    def __init__(
        self,
        layers: "OrderedDict[str, nn.Module]",
        plan: dict[str, Any] | None = None,
        spec: Spec | TableSpec | None = None,
    ):
        super().__init__(layers)
        self.plan: dict[str, Any] = plan or {}
        self.spec = spec
        self.origin = "fresh weights"

    def __getitem__(self, place: int | slice | str) -> Any:
        """Return a layer, or for a slice a Network without a plan and a Spec, which describe the whole network."""
        part = super().__getitem__(place)
        if not isinstance(place, slice):
            return part
        network = Network(OrderedDict(part._modules))
        network.dim, network.forward_impl = part.dim, part.forward_impl
        return network

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, in place, and update the plan and the Spec.

        A Spec keeps its class names if their number is unchanged, or 0. Otherwise they become "0", "1" and so on. The
        Spec of a regression is removed if the number changes.

        Args:
            num_classes: number of outputs. With 0, the network returns its pooled features, or its feature map with
                the pool "none".
            global_pool: "avg", "max", "avgmax", "catavgmax" or "none". None keeps the pool.

        Raises:
            InputError: the network cannot have this number of classes or this pool, or is blended with boosting.

        >>> from skipway.models.registry import plan_of
        >>> network = build_network(plan_of("resnet20"))
        >>> network.reset_classifier(0)
        >>> network(torch.zeros(1, 3, 32, 32)).shape, network.num_classes
        (torch.Size([1, 64]), 0)
        """
        refuse_trees(self.plan, "reset the classifier")
        kind = pool_name(global_pool)
        try:
            count = whole_number(num_classes)
        except TypeError:
            count = -1
        if count < 0 or kind not in (None, *POOLS):
            raise InputError(
                "reset_classifier: expected num_classes of at least 0, and a global_pool of None, "
                f"{', '.join(POOLS)}, got {num_classes!r} and {global_pool!r}. Change them."
            )
        plan = {**self.plan, "num_classes": count}
        if kind is not None:
            if self.plan and "global_pool" not in registry.FAMILIES[self.plan["family"]].plan.options():
                raise InputError(
                    f"reset_classifier: expected no global_pool for {self.plan['family']}, which has no feature map, "
                    f"got {global_pool!r}. Remove global_pool."
                )
            plan["global_pool"] = kind
        replace_head(self, self._new_head(plan))
        self.plan = plan if self.plan else {}
        self.spec = _refitted(self.spec, count)

    def _new_head(self, plan: dict[str, Any]) -> Chain:
        """Return a network with the head of `plan`, or only a head if this network is not that of its plan."""
        if self.plan:
            template = build_meta_network(plan)
            if _trained_layers(template) == _trained_layers(self):
                return template
        num_classes, kind = plan["num_classes"], plan.get("global_pool")
        if kind is not None:
            return Chain(**pooling(kind), **classifier(pooled_channels(self.num_features, kind), num_classes))
        kept = {name: layer for name, layer in list(self.named_children())[head_start(self) :] if name != "head"}
        return Chain(**kept, **classifier(self.head_hidden_size, num_classes))

    @property
    def is_pretrained(self) -> bool:
        """True if the weights were loaded, not freshly initialized."""
        return self.origin != "fresh weights"

    def predict(self, inputs: Any) -> Any:
        """Predict the class, the labels or the numbers of each input.

        Args:
            inputs: a list of image paths or uint8 arrays (H, W) or (H, W, C). A table model takes a DataFrame, or the
                path of a .csv, .tsv or .parquet file; columns are matched by name.

        Returns:
            A list of N class names; for multilabel, a list of N tuples of labels, those whose probability reaches the
            threshold of the label, most likely first; for regression, an array of numbers (N,), or (N, T) for several
            targets.

        Raises:
            InputError: an input cannot be read; the message names it. `skipway predict` writes a row for each input
                instead.
            NotFiniteError: the outputs for an input are NaN or infinite.
        """
        outputs = self._outputs(inputs)
        assert self.spec is not None
        return self.spec.answers(outputs)

    def predict_proba(self, inputs: Any) -> np.ndarray:
        """Predict the probability of each class, or of each label.

        Args:
            inputs: see `predict`.

        Returns:
            An array (N, K), columns in the order of `spec.class_names`. The probabilities of classes add up to 1;
            those of labels are independent.

        Raises:
            InputError: an input cannot be read; the message names it. `skipway predict` writes a row for each input
                instead. The model is that of a regression.
            NotFiniteError: the outputs for an input are NaN or infinite.
        """
        self._require_probabilities()
        return self._outputs(inputs)

    def probabilities(self, pixels: Sequence[np.ndarray], tta: bool | None = None) -> np.ndarray:
        """Predict probabilities (N, K) of prepared images, as `predict_proba`.

        Args:
            pixels: images, each (S, S, C) uint8.
            tta: average over several views of each image (test-time augmentation); None for the value of the Spec.

        Raises:
            InputError: the model is that of a regression, or of a table.
            NotFiniteError: the outputs for an image are NaN or infinite.
        """
        self.require_image_spec()
        self._require_probabilities()
        return self.pixel_outputs(pixels, tta)

    def pixel_outputs(self, pixels: Sequence[np.ndarray], tta: bool | None = None) -> np.ndarray:
        """Predict like `probabilities`; for regression, predict numbers (N, T) in the units of the targets."""
        spec = self.require_image_spec()
        require_classes(self.plan, "predict")
        return network_outputs.require_finite(network_outputs.pixel_outputs(self, spec, pixels, tta=tta))

    def _outputs(self, inputs: Any) -> np.ndarray:
        """Compute probabilities or numbers (N, K) of inputs."""
        if isinstance(self.spec, TableSpec):
            return self.table_outputs(network_outputs.as_table(inputs))
        spec = self.require_image_spec()
        require_classes(self.plan, "predict")
        return network_outputs.image_outputs(self, spec, inputs)

    def _require_probabilities(self) -> None:
        if self.spec is not None and self.spec.task == "regression":
            raise InputError(
                "cannot predict probabilities: expected a model of classes or labels, got a regression model. Use "
                "predict."
            )

    def table_outputs(self, table: Table) -> np.ndarray:
        """Predict probabilities (N, K) for the rows of a table, or numbers (N, T) in the units of the targets.

        Raises:
            InputError: a column is missing, or a cell cannot be used; the message names it.
            NotFiniteError: the outputs for a row are NaN or infinite.
        """
        return self.row_outputs(self.require_table_spec().encode_strict(table).x)

    def row_outputs(self, x: np.ndarray) -> np.ndarray:
        """Predict like `table_outputs` for encoded rows x (N, F)."""
        require_classes(self.plan, "predict")
        return network_outputs.require_finite(network_outputs.row_outputs(self, self.require_table_spec(), x))

    def require_image_spec(self) -> Spec:
        """Return the Spec of an image model.

        Raises:
            InputError: there is no Spec, or it is that of a table.
        """
        if self.spec is None:
            raise InputError(
                "cannot predict or save: expected a model with a Spec of its inputs and outputs, got "
                "none. Load a run or a file of skipway, or set .spec to a skipway.Spec."
            )
        if isinstance(self.spec, TableSpec):
            raise InputError(
                "cannot use images: expected an image model, got one trained on a table. Pass a "
                "DataFrame or a table file."
            )
        return self.spec

    def require_table_spec(self) -> TableSpec:
        """Return the TableSpec of a table model.

        Raises:
            InputError: the model was not trained on a table.
        """
        if not isinstance(self.spec, TableSpec):
            raise InputError(
                "cannot use a table: expected a model trained on a table, got an image model or no Spec. Pass "
                "images, or load the run of a table."
            )
        return self.spec

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the weights, the plan and the Spec to one .safetensors file for `skipway.load`.

        Args:
            path: file to write.

        Raises:
            InputError: the plan or the Spec is missing, or `path` is a link, a folder or a file of a run.
            ShapeError: the weights do not match the plan or the Spec.
        """
        if not self.plan:
            raise InputError(
                "cannot save: expected a network with a plan to rebuild it, got none. Create it with create_model."
            )
        refuse_output(path)
        spec, state = self.spec or self.require_image_spec(), self.state_dict()
        expected = build_meta_network(self.plan, spec).state_dict()
        if mismatch := plan_mismatch(self.plan, spec, expected, state):
            raise ShapeError(f"cannot save: the network {mismatch}. Fix .plan or .spec.")
        save_weights(Path(path), state, {"plan": self.plan, "spec": spec.as_dict()})


def _trained_layers(network: Network) -> list[str]:
    """Return the names of the layers with weights, without the classifier."""
    return [name for name, layer in network.named_children() if name != "head" and layer.state_dict()]


def _refitted(spec: Spec | TableSpec | None, num_classes: int) -> Spec | TableSpec | None:
    """Return the Spec for another number of outputs, or None if it cannot describe them."""
    if spec is None or num_classes in (0, spec.num_classes):
        return spec
    if spec.task == "regression":
        return None
    return replace(spec, class_names=tuple(map(str, range(num_classes))), thresholds=())


def build_network(plan: dict[str, Any], spec: Spec | TableSpec | None = None) -> Network:
    """Build the network of `plan` with random initial weights, on the current default device."""
    return Network(OrderedDict(registry.rebuild(plan).named_children()), plan, spec)


def with_feature_columns(network: Network, spec: Spec) -> Network:
    """Return a network with the layers of `network` and a new head that also takes the feature columns of `spec`."""
    encoder = spec.row_spec
    columns = {"in_features": encoder.input_shape[0], "categories": list(encoder.categories)}
    own = network.spec if isinstance(network.spec, Spec) else spec
    joined_spec = replace(own, feature_columns=spec.feature_columns)
    joined = build_network({**network.plan, "columns": columns}, joined_spec)
    trunk = {name: value for name, value in network.state_dict().items() if not name.startswith("head.")}
    joined.load_state_dict(trunk, strict=False)
    joined.origin = network.origin
    return joined


def with_converted_trunk(network: Network, convert: Callable[[Network], Chain]) -> Network:
    """Return a copy of a network with feature columns, for inference, whose layers before the columns are converted.

    Args:
        network: network with feature columns.
        convert: function such as `export.fuse`, for a network of images alone.
    """
    trunk = network[:COLUMNS]
    trunk.spec = network.spec
    with torch.inference_mode(False):
        rest = copy.deepcopy(network[COLUMNS:]).float().eval()
    layers = OrderedDict(trunk=convert(trunk), **dict(rest.named_children()))
    return Network(layers, spec=network.spec).eval()


def build_meta_network(plan: dict[str, Any], spec: Spec | TableSpec | None = None) -> Network:
    """Build the network of `plan` on the meta device, with names and shapes but no memory for weights."""
    with torch.device("meta"), _SkipRandomInit():
        return build_network(plan, spec)


def read_spec(values: dict[str, Any]) -> Spec | TableSpec:
    """Return the Spec or TableSpec of a dictionary from `as_dict`; only that of a table has columns."""
    kind = TableSpec if isinstance(values, dict) and "columns" in values else Spec
    return kind.from_dict(values)


class _SkipRandomInit(TorchFunctionMode):
    """Skip random initialization: on the meta device, torch would import its compiler for it, in a second."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if function in (Tensor.normal_, Tensor.uniform_) else function(*args, **(kwargs or {}))
