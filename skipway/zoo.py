"""The zoo: a name, a file or a run becomes a network that carries its plan and its Spec.

Shapes: (B, C, H, W) -> (B, K) for pictures of C channels and K classes.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skipway.data.images import BadPicture, decode, read_picture_file
from skipway.data.pack import SMALL, fitted_array
from skipway.errors import InputError, ShapeError, printable
from skipway.models import registry
from skipway.shapes import evaluation
from skipway.skip import Chain
from skipway.spec import Spec
from skipway.training.checkpoint import load_weights

__all__ = ["Network", "auto_model", "create_model", "list_models", "load", "prepare", "weights_file"]

_BATCH = 64


class Network(Chain):
    """A Chain that carries its `plan` (plain values that rebuild it) and its `spec` (what inputs and outputs mean)."""

    def __init__(
        self, layers: "OrderedDict[str, nn.Module]", plan: dict[str, Any] | None = None, spec: Spec | None = None
    ):
        super().__init__(layers)  # type: ignore[arg-type]
        self.plan: dict[str, Any] = plan or {}
        self.spec = spec

    def predict(self, inputs: Sequence[Any]) -> list[str]:
        """The likeliest class of each input: paths of pictures, or uint8 arrays (H, W) or (H, W, C)."""
        spec = self._need_spec()
        return [spec.class_names[i] for i in self.predict_proba(inputs).argmax(axis=1)]

    def predict_proba(self, inputs: Sequence[Any]) -> np.ndarray:
        """(N, K) probabilities, columns in the order of `spec.class_names`; inputs as in `predict`.

        Raises:
            InputError: an input cannot be read; names it. `skipway predict` gives a row for each instead.
        """
        spec = self._need_spec()
        if isinstance(inputs, str | os.PathLike) or (isinstance(inputs, np.ndarray) and not _holds_many(inputs)):
            raise InputError("predict takes a list of pictures, not a single one; write it in brackets: [picture]")
        inputs = list(inputs)
        rows = []
        for begin in range(0, len(inputs), _BATCH):
            chunk = inputs[begin : begin + _BATCH]
            rows.append(self.probabilities([prepare(i, spec) for i in chunk]))
        return np.concatenate(rows) if rows else np.empty((0, spec.num_classes), np.float32)

    def probabilities(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """(N, K) probabilities of prepared pictures, each (S, S, C) uint8."""
        spec = self._need_spec()
        like = next(self.parameters())
        device = like.device
        x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(device).float()
        mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        with evaluation(self), torch.inference_mode():
            return self(((x / 255 - mean) / std).to(like.dtype)).float().softmax(1).cpu().numpy()

    def _need_spec(self) -> Spec:
        if self.spec is None:
            raise InputError(
                "this network does not know what its inputs and outputs mean; load it from a run or a file of skipway, "
                "or set .spec"
            )
        return self.spec


def create_model(
    name: str,
    num_classes: int | None = None,
    in_chans: int = 3,
    *,
    stem: str | None = None,
    **options: Any,
) -> Network:
    """The network called `name` with fresh weights.

    Args:
        name: one of `list_models()`.
        num_classes: outputs; the default is that of the network's paper (1000, or 10 for the CIFAR networks).
        in_chans: channels of the pictures.
        stem: "large", "small" or "deep"; the default is the network's own.
        options: `layers`, `widths`, `block`, `shortcut`, `drop_path`: see `skipway.models.resnet.resnet`.

    >>> create_model("resnet18", num_classes=10).plan["layers"]
    [2, 2, 2, 2]
    """
    given = {"num_classes": num_classes, "stem": stem}
    chain, plan = registry.build(
        name, in_chans=in_chans, **{k: v for k, v in given.items() if v is not None}, **options
    )
    return Network(OrderedDict(chain.named_children()), plan)


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows, by shell pattern."""
    return registry.names(pattern)


def load(run_or_file: str | os.PathLike[str]) -> Network:
    """The trained network of a run folder or of a file that skipway wrote; needs no code of the user and no pickle."""
    path = weights_file(Path(run_or_file))
    tensors, header = load_weights(path)
    return restore(tensors, header, printable(path))


def restore(tensors: dict[str, Tensor], header: dict[str, Any], where: str) -> Network:
    """The network that a file's header plans, with the file's tensors in it."""
    try:
        plan, spec = dict(header["plan"]), Spec.from_dict(header["spec"])
        with torch.device("meta"):  # no weights are drawn, nor memory taken, before the tensors are seen to fit
            network = Network(OrderedDict(registry.rebuild(plan).named_children()), plan, spec)
    except InputError as error:
        raise error.at(where) from None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{where} has no usable plan and Spec in its header ({printable(error)}); write it again"
        ) from None
    wanted = network.state_dict()
    wrong = [
        f"{name} {tuple(tensors[name].shape) if name in tensors else 'is missing'}, expected {tuple(value.shape)}"
        for name, value in wanted.items()
        if name not in tensors or tensors[name].shape != value.shape
    ] + [f"{name} has no place" for name in tensors if name not in wanted]
    if wrong:
        raise ShapeError(f"{where} does not fit its own plan: {'; '.join(wrong[:5])}; write it again")
    given, meant = (plan.get("in_chans"), plan.get("num_classes")), (spec.channels, spec.num_classes)
    if given != meant:
        raise ShapeError(
            f"{where} plans a network for {given[0]} channels and {given[1]} classes, but its Spec has {meant[0]} and "
            f"{meant[1]}; write it again"
        )
    network.to_empty(device="cpu").load_state_dict(tensors)
    return network.eval()


def weights_file(path: Path) -> Path:
    """The file of weights that a run folder or a file's path stands for."""
    if path.is_dir():
        best = path / "weights" / "best.safetensors"
        if not best.is_file():
            raise InputError(
                f"{printable(path)} holds no weights/best.safetensors: the run has not finished an epoch, or this is "
                "no run folder; give a run folder or a .safetensors file"
            )
        return best
    return path


def prepare(source: Any, spec: Spec, root: Path | None = None) -> np.ndarray:
    """One picture, from a path or a uint8 array, as the (S, S, C) uint8 pixels that the network of `spec` is given."""
    name = "an array" if isinstance(source, np.ndarray) else printable(source)
    try:
        if isinstance(source, np.ndarray):
            pixels = _checked_array(source, spec)
        else:
            data = read_picture_file(Path(source), root)
            pixels = decode(data, size=spec.presize, channels=spec.channels, fit=spec.fit).pixels
    except BadPicture as error:
        raise InputError(f"{name} cannot be used: {error}") from None
    start = (spec.presize - spec.size) // 2
    return pixels[start : start + spec.size, start : start + spec.size]


def _holds_many(array: np.ndarray) -> bool:
    """Whether the first axis counts pictures: (N, H, W) or (N, H, W, C), where (H, W, 3) is one in colour."""
    return array.ndim == 4 or array.dtype == object or (array.ndim == 3 and array.shape[2] not in (1, 3))


def _checked_array(source: np.ndarray, spec: Spec) -> np.ndarray:
    array = source[:, :, None] if source.ndim == 2 else source
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape:
        raise InputError(
            f"a picture as an array is uint8 of shape (H, W), (H, W, 1) or (H, W, 3), not {array.dtype} of "
            f"{source.shape}; convert it first"
        )
    return fitted_array(array, size=spec.presize, channels=spec.channels, fit=spec.fit)


def auto_model(size: int, count: int) -> tuple[str, dict[str, Any]]:
    """What `--model auto` picks for `count` training pictures of `size` pixels: (name, options)."""
    if size < 4:
        return "resnet20", {"layers": [2, 2], "widths": [32, 64]}
    if size <= 16:
        return "resnet9", {"stem": "small", "widths": [32, 64, 128], "layers": [1, 1]}
    if size <= SMALL:
        return "resnet9", {"stem": "whitening", "widths": [24, 48, 128, 256], "layers": [1, 1, 1]}
    return ("resnet18", {}) if count >= 2000 else ("resnet10", {})
