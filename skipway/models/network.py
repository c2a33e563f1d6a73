"""Network: a tree of layers that carries its plan and its Spec, and predicts from images or from tables.

Shapes: (B, C, H, W) -> (B, K) for images of C channels and K classes; (B, F) -> (B, K), or (B, 1) for a number, for
rows of a table.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skipway.data.image_spec import Spec
from skipway.data.sources.read_table import Table
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError, ShapeError
from skipway.models import network_outputs, registry
from skipway.models.plan_consistency import plan_mismatch
from skipway.nn.chain import Chain
from skipway.training.checkpoint import save_weights
from skipway.utils.output_files import refuse_output

__all__ = ["Network", "build_meta_network", "build_network", "read_spec"]


class Network(Chain):
    """A Chain that carries its `plan` (plain values that rebuild it) and its `spec` (what inputs and outputs mean)."""

    def __init__(
        self,
        layers: "OrderedDict[str, nn.Module]",
        plan: dict[str, Any] | None = None,
        spec: Spec | TableSpec | None = None,
    ):
        super().__init__(layers)  # type: ignore[arg-type]
        self.plan: dict[str, Any] = plan or {}
        self.spec = spec
        self.origin = "fresh weights"

    @property
    def is_pretrained(self) -> bool:
        """Whether the weights were loaded and not freshly initialized."""
        return self.origin != "fresh weights"

    def predict(self, inputs: Any) -> Any:
        """The likeliest class of each input, as a list of names; for regression an array (N,) of numbers.

        Inputs are paths of images or uint8 arrays (H, W) or (H, W, C); for a network of tables they are a DataFrame,
        or the path of a .csv, .tsv or .parquet file, whose columns are found by name.

        Raises:
            InputError: an input cannot be read; names it. `skipway predict` returns a row for each instead.
            NotFiniteError: the outputs for an input are NaN or infinite.
        """
        if isinstance(self.spec, TableSpec):
            return network_outputs.predict_table(self, self.spec, inputs)
        spec = self.require_image_spec()
        return [spec.class_names[i] for i in self.predict_proba(inputs).argmax(axis=1)]

    def predict_proba(self, inputs: Any) -> np.ndarray:
        """(N, K) probabilities, columns in the order of `spec.class_names`; inputs as in `predict`.

        Raises:
            InputError: an input cannot be read; names it. `skipway predict` gives a row for each instead.
            NotFiniteError: the outputs for an input are NaN or infinite.
        """
        if isinstance(self.spec, TableSpec):
            if not self.spec.class_names:
                raise InputError("this network predicts a number, which has no probabilities; use predict")
            return self.table_outputs(network_outputs.as_table(inputs))
        return network_outputs.image_probabilities(self, self.require_image_spec(), inputs)

    def probabilities(self, pixels: Sequence[np.ndarray], tta: bool = False) -> np.ndarray:
        """(N, K) probabilities of prepared images, each (S, S, C) uint8; with `tta` the mean over several views.

        Raises:
            NotFiniteError: the outputs for one are NaN or infinite.
        """
        spec = self.require_image_spec()
        return network_outputs.require_finite(network_outputs.pixel_probabilities(self, spec, pixels, tta=tta))

    def table_outputs(self, table: Table) -> np.ndarray:
        """(N, K) probabilities of each row's classes, or (N, 1) numbers in the target's own unit.

        Raises:
            InputError: a column is missing, or a cell cannot be used; names it.
            NotFiniteError: the outputs for a row are NaN or infinite.
        """
        return self.row_outputs(self.require_table_spec().encode_strict(table).x)

    def row_outputs(self, x: np.ndarray) -> np.ndarray:
        """As `table_outputs`, for encoded rows x (N, F)."""
        return network_outputs.require_finite(network_outputs.row_outputs(self, self.require_table_spec(), x))

    def require_image_spec(self) -> Spec:
        """Return the Spec of an image network.

        Raises:
            InputError: there is no Spec, or it is that of a table.
        """
        if self.spec is None:
            raise InputError(
                "this network does not know what its inputs and outputs mean; load it from a run or a file of skipway, "
                "or set its .spec to a skipway.Spec"
            )
        if isinstance(self.spec, TableSpec):
            raise InputError("this network was trained on a table; give it a DataFrame or a table file, not images")
        return self.spec

    def require_table_spec(self) -> TableSpec:
        """Return the TableSpec of a table network.

        Raises:
            InputError: the network was not trained on a table.
        """
        if not isinstance(self.spec, TableSpec):
            raise InputError("this network was not trained on a table; give it images, or load one of a table's run")
        return self.spec

    def save(self, path: str | os.PathLike[str]) -> None:
        """One .safetensors file with the weights, the plan and the Spec, from which `skipway.load` makes the network.

        Raises:
            InputError: the network lacks the plan or the Spec that a file needs to explain itself, or is not as they
                say; or a link, a folder or a file of a run is at `path`.
        """
        if not self.plan:
            raise InputError("a network without a plan cannot be saved: nothing would rebuild it; use create_model")
        refuse_output(path)
        spec, state = self.spec or self.require_image_spec(), self.state_dict()
        expected = build_meta_network(self.plan, spec).state_dict()
        if mismatch := plan_mismatch(self.plan, spec, expected, state):
            raise ShapeError(
                f"the network {mismatch}; it is not saved, for it could not be loaded: mend .plan or .spec"
            )
        save_weights(Path(path), state, {"plan": self.plan, "spec": spec.as_dict()})


def build_network(plan: dict[str, Any], spec: Spec | TableSpec | None = None) -> Network:
    """Build the network that `plan` describes with fresh weights, on the device chosen around the call."""
    return Network(OrderedDict(registry.rebuild(plan).named_children()), plan, spec)


def build_meta_network(plan: dict[str, Any], spec: Spec | TableSpec | None = None) -> Network:
    """Build the network that `plan` describes on the meta device: names and shapes, but no memory for weights."""
    with torch.device("meta"), _SkipRandomInit():
        return build_network(plan, spec)


def read_spec(values: dict[str, Any]) -> Spec | TableSpec:
    """The Spec or TableSpec that `as_dict` wrote: a table's has columns."""
    kind = TableSpec if isinstance(values, dict) and "columns" in values else Spec
    return kind.from_dict(values)


class _SkipRandomInit(TorchFunctionMode):
    """Random numbers are not drawn: on the meta device torch would load its compiler to do so, which takes a second."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if function in (Tensor.normal_, Tensor.uniform_) else function(*args, **(kwargs or {}))
