"""OpenVINO as what computes a network on a CPU: in float32, bfloat16, or int8 calibrated here.

Shapes: (B, C, H, W) -> (B, K), or (B, F) -> (B, K); the size of the batch is free, the others are those of the Spec.
"""

import copy
import math
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from threading import Lock, RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import InputError, MissingExtra, ShapeError, printable
from skipway.export.export_description import plain_copy
from skipway.export.onnx_file import quiet_exporters, trace_program
from skipway.export.quantization import PRECISIONS, Observer
from skipway.kernels.layer_dispatch import run_layers
from skipway.models.network import Network
from skipway.nn.chain import Chain
from skipway.training.trainer import has_bf16

__all__ = ["engine", "fastest"]

_LAYERS = ("Convolution", "GroupConvolution", "MatMul")  # what computes in int8
_LEVELS = 256
_TELEMETRY = "openvino_telemetry"
_WORTHWHILE = 4e12  # multiply-adds: ResNet-50 takes five seconds to be made, and saves them on a thousand images
_BUILD_LOCK = RLock()  # torch's tracing, and OpenVINO's import, are for one thread at a time


def engine(network: nn.Module, precision: str = "auto", calibration: Tensor | Iterable[Tensor] = ()) -> Chain:
    """The network for predicting alone, computed by OpenVINO: like `fuse`, and faster once it is made.

    ResNet-50 for images of 224 pixels on two cores of a Zen 4: 46 of them a second in bf16 and 78 in int8, where
    `fuse` makes it 39 and 72, and the plain network 10; one at a time 45 and 76, for 32, 54 and 8.

    A Network stays one: `predict` and `predict_proba` do what they did. It takes what `network` takes and gives
    float32. Its layers are a copy of the network's, which stay as they were; hooks on them see nothing. It uses as many
    threads as torch does when it is made. It sends no usage data, as OpenVINO else does when it is imported.

    Args:
        network: on a CPU; the size of its inputs is that of its Spec, or of `calibration` where it has none.
        precision: "fp32"; "bf16"; "auto", which is bf16 where the hardware has it, else fp32; "int8".
        calibration: inputs as the network takes them, for int8: a tensor or several. What the network makes of them
            chooses the range that its integers stand for, as with `fuse`; a hundred training images are enough.

    Outputs differ from those in float32 by about 1e-6 of the largest in fp32, 1e-2 in bf16; in int8 by more, so
    measure what it costs (`skipway.evaluate` takes the engine).

    Raises:
        InputError: no such precision; int8 without calibration; a network elsewhere than on a CPU, without a Spec, or
            that cannot be traced; the extra 'openvino' is missing.
        ShapeError: when it is used, inputs of another size.
    """
    if precision not in PRECISIONS:
        raise InputError(f"OpenVINO's engine has the precisions {', '.join(PRECISIONS)}, not {precision!r}")
    if away := {p.device.type for p in network.parameters()} - {"cpu"}:
        raise InputError(
            f"OpenVINO's engine takes a network on a CPU, not on {away.pop()}; use .cpu(), or fuse it there"
        )
    with _BUILD_LOCK:
        return _build(network, precision, _batches(calibration))


def _build(network: nn.Module, precision: str, batches: list[np.ndarray]) -> Chain:
    openvino = _openvino()
    shape = _shape(network, batches)
    if precision == "int8" and not (batches and batches[0].shape[1:] == shape):
        raise InputError(
            "OpenVINO's engine in int8 chooses its ranges by inputs; give calibration=x, a tensor of finite inputs "
            f"(B, {', '.join(map(str, shape))}) as the network takes them, or several"
        )
    twin = plain_copy(network)
    if type(twin).forward is not Chain.forward:
        twin = Chain(twin)
    assert isinstance(twin, Chain)
    model = _convert(openvino, twin, shape)
    if precision == "int8":
        _to_int8(openvino, model, batches=batches, weights=twin.state_dict())
    half = precision == "bf16" or (precision in ("auto", "int8") and has_bf16("cpu"))
    twin.forward_impl = _Compiled(twin, _compile(model, half), shape)
    return twin


def fastest(work: float = math.inf, device: str = "cpu") -> tuple[str, ...]:
    """The engines that are installed, "openvino" and "torch", the one before the other that is done first.

    OpenVINO is the faster one on a CPU, but takes seconds to be made, which little work does not bring back; a network
    fused by torch is ready at once. `work` is how many multiply-adds there are to be done.
    """
    if device != "cpu" or find_spec("openvino") is None:
        return ("torch",)
    return ("openvino", "torch") if work >= _WORTHWHILE else ("torch", "openvino")


class _Compiled:
    """Runs all layers of a network at once, by OpenVINO; by torch what is not all of them, or not numbers."""

    def __init__(self, network: Chain, model: Any, shape: tuple[int, ...]):
        self.layers, self.model, self.shape = list(network), model, shape
        self.lock = Lock()  # the model has one place for what it computes

    def __call__(self, layers: Sequence[nn.Module], x: Any) -> Any:
        if list(layers) != self.layers or type(x) is not Tensor or x.is_meta:
            return run_layers(layers, x)
        if x.dtype == torch.uint8 or x.device.type != "cpu" or tuple(x.shape[1:]) != self.shape:
            raise ShapeError(
                f"this engine takes normalised numbers (B, {', '.join(map(str, self.shape))}) on a CPU, not "
                f"{tuple(x.shape)} of {x.dtype} on {x.device.type}; make another for inputs like these"
            )
        if not len(x):  # after a batch of none OpenVINO's next model reads memory that is no longer its own
            return run_layers(layers, x.float())
        with self.lock:
            (y,) = self.model(x.detach().float().contiguous().numpy(), share_inputs=True).values()
        return torch.from_numpy(y)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Compiled":
        twin = copy.copy(self)  # what is computed does not change
        twin.layers = copy.deepcopy(self.layers, memo)
        return twin


@cache
def _openvino() -> Any:
    """OpenVINO, imported without the package that it sends usage data by; it does well without."""
    hidden = {} if "openvino" in sys.modules else {_TELEMETRY: sys.modules.get(_TELEMETRY)}
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        return import_module("openvino")
    except ImportError:
        raise MissingExtra("openvino", "predicting with OpenVINO") from None
    finally:
        for name, module in hidden.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


@cache
def _core() -> Any:
    """OpenVINO's CPU, one for the process and for as long as it lasts.

    Each has a place of its own for signals to be handled on, and when two end in the order in which they began, the
    process is left with one that is gone: the next signal would kill it.
    """
    return _openvino().Core()


def _batches(calibration: Tensor | Iterable[Tensor]) -> list[np.ndarray]:
    """Return the calibration inputs as arrays, or nothing if ranges cannot be chosen by them."""
    batches = [calibration] if isinstance(calibration, Tensor) else list(calibration)
    if not all(isinstance(b, Tensor) and b.is_floating_point() and len(b) and b.isfinite().all() for b in batches):
        return []
    if len({tuple(b.shape[1:]) for b in batches}) > 1:
        return []
    return [b.detach().cpu().float().contiguous().numpy() for b in batches]


def _shape(network: nn.Module, batches: list[np.ndarray]) -> tuple[int, ...]:
    """Return the size of one input."""
    if isinstance(network, Network) and network.spec is not None:
        return network.spec.input_shape
    if not batches:
        raise InputError("OpenVINO's engine has to know the size of inputs; give the network a .spec, or calibration=x")
    return batches[0].shape[1:]


def _convert(openvino: Any, network: Chain, shape: tuple[int, ...]) -> Any:
    """Return OpenVINO's model of the network."""
    program = trace_program(network, torch.zeros(3, *shape), {0: "N"})
    try:
        with quiet_exporters():
            model = openvino.convert_model(program)
            model.reshape(openvino.PartialShape([-1, *shape]))  # it forgets sizes that are of no use to a network
    except Exception as error:
        reason = printable((str(error).strip().splitlines() or [type(error).__name__])[0])[:200]
        raise InputError(f"OpenVINO cannot take what this network computes: {reason}; keep to torch") from error
    return model


def _compile(model: Any, half: bool) -> Any:
    return _core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        },
    )


def _to_int8(openvino: Any, model: Any, *, batches: list[np.ndarray], weights: dict[str, Tensor]) -> None:
    """Round the inputs and weights of convolutions and linear layers to 256 levels.

    OpenVINO knows these roundings, and computes with the integers themselves where it finds them around a layer.
    """
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() in _LAYERS]
    layers = [node for node in nodes if _has_constant_weight(node)]
    if not layers:
        raise InputError('OpenVINO\'s engine in int8 needs convolutions or linear layers; use precision "auto"')
    inputs = {}
    for node in layers:
        value = node.input_value(0)
        while value.get_node().get_type_name() == "MaxPool":  # which can as well choose among integers
            value = value.get_node().input_value(0)
        inputs[value.get_node().get_name(), value.get_index()] = value
    opset, values = openvino.opset13, list(inputs.values())
    observers = _observe(openvino, model, values=values, batches=batches)
    # OpenVINO's ReLUs and pools make NaN vanish.
    if not all(observer.finite for observer in observers) or not all(t.isfinite().all() for t in weights.values()):
        raise InputError(
            "OpenVINO's engine in int8 met numbers inside the network that are not finite; look for them in its weights"
        )
    for value, observer in zip(values, observers, strict=True):
        scale, zero_point = observer.choose_params()
        bounds = np.float32(-zero_point * scale), np.float32((_LEVELS - 1 - zero_point) * scale)
        users = [user for user in value.get_target_inputs() if user.get_node().get_type_name() != "Result"]
        rounded = opset.fake_quantize(value, *bounds, *bounds, _LEVELS).output(0)
        for user in users:
            user.replace_source_output(rounded)
    for node in layers:
        weight = node.input_value(1)
        largest = _largest_weights(node, weight.get_node().get_data())
        rounded = opset.fake_quantize(weight, -largest, largest, -largest, largest, _LEVELS - 1).output(0)
        node.input(1).replace_source_output(rounded)
    model.validate_nodes_and_infer_types()


def _has_constant_weight(node: Any) -> bool:
    return node.input_value(1).get_node().get_type_name() == "Constant"


def _observe(openvino: Any, model: Any, *, values: list[Any], batches: list[np.ndarray]) -> list[Observer]:
    """Run the calibration batches in float32, and return an observer of each value."""
    results = [openvino.opset13.result(value) for value in values]
    compiled = _compile(openvino.Model(results, model.get_parameters(), "observed"), half=False)
    observers = [Observer(len(batches)) for _ in values]
    for batch in batches:
        for observer, array in zip(observers, compiled(batch).values(), strict=True):
            observer.observe(torch.from_numpy(array.reshape(*array.shape[:2], -1, 1)))
    return observers


def _largest_weights(node: Any, weight: np.ndarray) -> np.ndarray:
    """Return the largest absolute weight of each output."""
    kind, axes = node.get_type_name(), tuple(range(weight.ndim))
    if kind == "MatMul":
        inputs = axes[-1:] if node.get_attributes()["transpose_b"] else axes[-2:-1]
    else:
        inputs = axes[1:] if kind == "Convolution" else axes[2:]
    return np.maximum(np.abs(weight).max(inputs, keepdims=True), 1e-12)
