"""Network: a tree of layers that carries its plan and its Spec, and predicts from pictures or from tables.

Shapes: (B, C, H, W) -> (B, K) for pictures of C channels and K classes; (B, F) -> (B, K), or (B, 1) for a number, for
rows of a table.
"""

import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skipway.data.image_spec import Spec
from skipway.data.images.augment_policy import margin, views
from skipway.data.images.decoded_cache import fitted_array
from skipway.data.sources.decode import BadPicture, decode
from skipway.data.sources.read_bytes import read_picture_file
from skipway.data.sources.read_table import Table, frame_table, read_table
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError, ShapeError, printable
from skipway.models import registry
from skipway.nn.chain import Chain
from skipway.nn.shape_inference import evaluation
from skipway.training.checkpoint import save_weights
from skipway.training.metrics import Averaged

__all__ = ["Network", "as_table", "outline", "planned", "prepare", "read_spec", "several_views", "unfit"]

_BATCH = 64
_ROWS = 4096  # of a table, at a time


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

    def predict(self, inputs: Any) -> Any:
        """The likeliest class of each input, as a list of names; for regression an array (N,) of numbers.

        Inputs are paths of pictures or uint8 arrays (H, W) or (H, W, C); for a network of tables they are a DataFrame,
        or the path of a .csv, .tsv or .parquet file, whose columns are found by name.
        """
        if isinstance(self.spec, TableSpec):
            outputs = self.table_outputs(as_table(inputs))
            return (
                [self.spec.class_names[i] for i in outputs.argmax(axis=1)] if self.spec.class_names else outputs[:, 0]
            )
        spec = self._need_spec()
        return [spec.class_names[i] for i in self.predict_proba(inputs).argmax(axis=1)]

    def predict_proba(self, inputs: Any) -> np.ndarray:
        """(N, K) probabilities, columns in the order of `spec.class_names`; inputs as in `predict`.

        Raises:
            InputError: an input cannot be read; names it. `skipway predict` gives a row for each instead.
        """
        if isinstance(self.spec, TableSpec):
            if not self.spec.class_names:
                raise InputError("this network predicts a number, which has no probabilities; use predict")
            return self.table_outputs(as_table(inputs))
        spec = self._need_spec()
        if isinstance(inputs, str | os.PathLike) or (isinstance(inputs, np.ndarray) and not _holds_many(inputs)):
            raise InputError("predict takes a list of pictures, not a single one; write it in brackets: [picture]")
        inputs = list(inputs)
        rows = []
        for begin in range(0, len(inputs), _BATCH):
            chunk = inputs[begin : begin + _BATCH]
            rows.append(self.probabilities([prepare(i, spec) for i in chunk]))
        return np.concatenate(rows) if rows else np.empty((0, spec.num_classes), np.float32)

    def probabilities(self, pixels: Sequence[np.ndarray], tta: bool = False) -> np.ndarray:
        """(N, K) probabilities of prepared pictures, each (S, S, C) uint8; with `tta` the mean over several views."""
        spec = self._need_spec()
        like = next(self.parameters())
        device = like.device
        x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(device).float()
        mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        judging = several_views(self) if tta else self
        with evaluation(self), torch.inference_mode():
            return judging(((x / 255 - mean) / std).to(like.dtype)).float().softmax(1).cpu().numpy()

    def table_outputs(self, table: Table) -> np.ndarray:
        """(N, K) probabilities of each row's classes, or (N, 1) numbers in the target's own unit.

        Raises:
            InputError: a column is missing, or a cell cannot be used; names it.
        """
        spec = self.need_table_spec()
        return self.row_outputs(spec.encode_whole(table).x)

    def row_outputs(self, x: np.ndarray) -> np.ndarray:
        """As `table_outputs`, for encoded rows x (N, F)."""
        spec, like = self.need_table_spec(), next(self.parameters())
        with evaluation(self), torch.inference_mode():
            parts = [self(part.to(like.device, like.dtype)) for part in torch.from_numpy(x).split(_ROWS)]
            outputs = torch.cat(parts).double() if parts else torch.empty(0, spec.num_classes)
            outputs = outputs.softmax(1) if spec.class_names else outputs * spec.target_std + spec.target_mean
            return outputs.cpu().numpy()

    def need_table_spec(self) -> TableSpec:
        """The TableSpec; refused where the network is one of pictures."""
        if not isinstance(self.spec, TableSpec):
            raise InputError("this network was not trained on a table; give it pictures, or load one of a table's run")
        return self.spec

    def save(self, path: str | os.PathLike[str]) -> None:
        """One .safetensors file with the weights, the plan and the Spec, from which `skipway.load` makes the network.

        Raises:
            InputError: the network lacks the plan or the Spec that a file needs to explain itself, or is not as they
                say.
        """
        if not self.plan:
            raise InputError("a network without a plan cannot be saved: nothing would rebuild it; use create_model")
        spec, state = self.spec or self._need_spec(), self.state_dict()
        if flaw := unfit(outline(self.plan, spec), state):
            raise ShapeError(f"the network {flaw}; it is not saved, for it could not be loaded: mend .plan or .spec")
        save_weights(Path(path), state, {"plan": self.plan, "spec": spec.as_dict()})

    def _need_spec(self) -> Spec:
        if self.spec is None:
            raise InputError(
                "this network does not know what its inputs and outputs mean; load it from a run or a file of skipway, "
                "or set its .spec to a skipway.Spec"
            )
        if isinstance(self.spec, TableSpec):
            raise InputError("this network was trained on a table; give it a DataFrame or a table file, not pictures")
        return self.spec


def several_views(network: Network) -> Averaged:
    """The network as the mean of its probabilities over several views of a picture: see `augment.views`."""
    return Averaged(network, partial(views, mirrored=network._need_spec().mirrored))


def planned(plan: dict[str, Any], spec: Spec | TableSpec | None = None) -> Network:
    """The network that `plan` describes, with fresh weights; on the meta device where one is chosen around the call."""
    return Network(OrderedDict(registry.rebuild(plan).named_children()), plan, spec)


def outline(plan: dict[str, Any], spec: Spec | TableSpec | None = None) -> Network:
    """The network that `plan` describes on the meta device: every name and shape, but no weights nor their memory."""
    with torch.device("meta"), _Undrawn():
        return planned(plan, spec)


def unfit(network: Network, tensors: Mapping[str, Tensor]) -> str:
    """Why `tensors` or the Spec of a network that stands as planned are not those of its plan, or nothing."""
    wanted, plan, spec = network.state_dict(), network.plan, network.spec
    wrong = [
        f"{name} {tuple(tensors[name].shape) if name in tensors else 'is missing'}, expected {tuple(value.shape)}"
        for name, value in wanted.items()
        if name not in tensors or tensors[name].shape != value.shape
    ] + [f"{name} has no place" for name in tensors if name not in wanted]
    if wrong:
        return f"does not fit its own plan: {'; '.join(wrong[:5])}"
    assert spec is not None
    given, meant = (_taken(plan), plan.get("num_classes")), (_taken(plan, spec), spec.num_classes)
    if given == meant:
        return ""
    return f"plans a network for {given[0]} and {given[1]} classes, but its Spec has {meant[0]} and {meant[1]}"


def _taken(plan: dict[str, Any], spec: Spec | TableSpec | None = None) -> str:
    """What a network of `plan` takes, and what it would have to take for `spec`."""
    if "in_features" in plan or isinstance(spec, TableSpec):
        count = math.prod(spec.input_shape) if spec is not None else plan["in_features"]
        slots = (spec.categories if isinstance(spec, TableSpec) else ()) if spec else plan.get("categories", ())
        return f"{count} numbers" + (f" with the categories {', '.join(map(str, slots))}" if slots else "")
    return f"{plan.get('in_chans') if spec is None else spec.channels} channels"


def read_spec(values: dict[str, Any]) -> Spec | TableSpec:
    """The Spec or TableSpec that `as_dict` wrote: a table's has columns."""
    kind = TableSpec if isinstance(values, dict) and "columns" in values else Spec
    return kind.from_dict(values)


def as_table(inputs: Any) -> Table:
    """A DataFrame, the path of a table file, or a Table, as a Table."""
    if isinstance(inputs, Table):
        return inputs
    if isinstance(inputs, str | os.PathLike):
        return read_table(Path(inputs))
    if hasattr(inputs, "columns") and hasattr(inputs, "iloc"):
        return frame_table(inputs)
    raise InputError(
        f"a network of tables takes a DataFrame or the path of a .csv or .parquet file, not {type(inputs).__name__}; "
        "for an array, name its columns: pandas.DataFrame(array, columns=[...])"
    )


class _Undrawn(TorchFunctionMode):
    """Random numbers are not drawn: on the meta device torch would load its compiler to do so, which takes a second."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if function in (Tensor.normal_, Tensor.uniform_) else function(*args, **(kwargs or {}))


def prepare(source: Any, spec: Spec, root: Path | None = None) -> np.ndarray:
    """One picture, from a path or a uint8 array, as the (S, S, C) uint8 pixels that the network of `spec` is given."""
    name = "an array" if isinstance(source, np.ndarray) else printable(source)
    try:
        if isinstance(source, np.ndarray):
            pixels = _checked_array(source, spec)
        else:
            data = read_picture_file(Path(source), root)
            pixels = decode(data, **spec.preparation).pixels
    except BadPicture as error:
        raise InputError(f"{name} cannot be used: {error}") from None
    start = margin(spec.presize, spec.size)
    return pixels[start : start + spec.size, start : start + spec.size]


def _holds_many(array: np.ndarray) -> bool:
    """Whether the first axis counts pictures: (N, H, W) or (N, H, W, C), where (H, W, 3) is one in color."""
    return array.ndim == 4 or array.dtype == object or (array.ndim == 3 and array.shape[2] not in (1, 3))


def _checked_array(source: np.ndarray, spec: Spec) -> np.ndarray:
    array = source[:, :, None] if source.ndim == 2 else source
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape:
        raise InputError(
            f"a picture as an array is uint8 of shape (H, W), (H, W, 1) or (H, W, 3), not {array.dtype} of "
            f"{source.shape}; convert it first"
        )
    return fitted_array(array, **spec.preparation)
