"""OpenVINO inference on a CPU, in float32, bfloat16 or int8 with post-training quantization.

Shapes: (B, C, H, W) -> (B, K), or (B, F) -> (B, K). The batch size is dynamic; the other sizes come from the Spec.
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

from skipway.errors import InputError, MissingExtra, ShapeError, reason_of
from skipway.export.export_description import plain_copy
from skipway.export.onnx_file import quiet_exporters, trace_program
from skipway.export.quantization import PRECISIONS, Observer
from skipway.kernels.layer_dispatch import run_layers
from skipway.models.network import Network, with_converted_trunk
from skipway.nn.chain import Chain
from skipway.utils.devices import has_bf16

__all__ = ["engine", "fastest"]

_LAYERS = ("Convolution", "GroupConvolution", "MatMul")  # layers that run in int8
_LEVELS = 256
_TELEMETRY = "openvino_telemetry"
_WORTHWHILE = 4e12  # multiply-adds; ResNet-50 compiles in 5 seconds, which pays off after about 1,000 images
_BUILD_LOCK = RLock()  # tracing in torch and importing OpenVINO are not thread-safe


def engine(network: nn.Module, precision: str = "auto", calibration: Tensor | Iterable[Tensor] = ()) -> Chain:
    """Compile a copy of a model with OpenVINO for inference on a CPU.

    The engine takes seconds to compile, and is then faster than `fuse`. ResNet-50 at 224 px on two Zen 4 cores, in
    images per second: 46 (bf16) and 78 (int8), compared with 39 and 72 for `fuse` and 10 for plain torch. At batch
    size 1: 45 and 76, compared with 32, 54 and 8.

    A `Network` keeps `predict` and `predict_proba`. Hooks on the copied layers are not called. The engine uses the
    number of threads that torch has at compile time. OpenVINO's telemetry is disabled.

    Args:
        network: Model on a CPU. It is not changed. The input size is that of its Spec, or else of `calibration`.
        precision: "fp32", "bf16", "int8", or "auto" (bf16 if the hardware supports it, otherwise fp32).
        calibration: Normalized inputs (B, C, H, W) or (B, F) for int8, as one tensor or an iterable of tensors. They
            set the activation ranges, so use about 100 representative inputs.

    Returns:
        The compiled model. It returns float32. Relative to the largest output, it differs from float32 by about 1e-6
        in fp32 and 1e-2 in bf16. int8 differs by more: measure its accuracy with `skipway.evaluate`. Inputs of
        another size raise a ShapeError.

    Raises:
        InputError: The precision is unknown; int8 has no usable calibration inputs; the network is not on a CPU, has
            no Spec, or cannot be traced.
        MissingExtra: The extra 'openvino' is not installed.
    """
    if precision not in PRECISIONS:
        raise InputError(
            f"OpenVINO engine: expected a precision of {', '.join(PRECISIONS)}, got {precision!r}. Set one of these."
        )
    if away := {p.device.type for p in network.parameters()} - {"cpu"}:
        raise InputError(
            f"OpenVINO engine: expected a network on a CPU, got one on {away.pop()}. Call .cpu(), or use export.fuse."
        )
    if isinstance(network, Network) and "columns" in network.plan:
        return with_converted_trunk(network, lambda trunk: engine(trunk, precision, calibration))
    with _BUILD_LOCK:
        return _build(network, precision, _batches(calibration))


def _build(network: nn.Module, precision: str, batches: list[np.ndarray]) -> Chain:
    openvino = _openvino()
    shape = _shape(network, batches)
    if precision == "int8" and not (batches and batches[0].shape[1:] == shape):
        raise InputError(
            "OpenVINO engine in int8: expected calibration inputs, got none or unusable ones. Pass calibration=x, a "
            f"finite float tensor (B, {', '.join(map(str, shape))}) of normalized inputs, or a list of them."
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
    """Return the installed inference engines, "openvino" and "torch", fastest first.

    OpenVINO runs faster on a CPU but takes seconds to compile, which pays off only for enough work.

    Args:
        work: Number of multiply-adds of the whole job. Default: unlimited.
        device: Device type. Only "cpu" supports OpenVINO.

    Returns:
        The engine names.
    """
    if device != "cpu" or find_spec("openvino") is None:
        return ("torch",)
    return ("openvino", "torch") if work >= _WORTHWHILE else ("torch", "openvino")


class _Compiled:
    """Run all layers of a network in OpenVINO; run a part of them, or inputs that are not tensors, in torch."""

    def __init__(self, network: Chain, model: Any, shape: tuple[int, ...]):
        self.layers, self.model, self.shape = list(network), model, shape
        self.lock = Lock()  # the compiled model has one output buffer

    def __call__(self, layers: Sequence[nn.Module], x: Any) -> Any:
        if list(layers) != self.layers or type(x) is not Tensor or x.is_meta:
            return run_layers(layers, x)
        if x.dtype == torch.uint8 or x.device.type != "cpu" or tuple(x.shape[1:]) != self.shape:
            raise ShapeError(
                f"OpenVINO engine: expected normalized floats (B, {', '.join(map(str, self.shape))}) on a CPU, got "
                f"{tuple(x.shape)} of {x.dtype} on {x.device.type}. Build another engine for these inputs."
            )
        if not len(x):  # after an empty batch, the next OpenVINO model reads freed memory
            return run_layers(layers, x.float())
        with self.lock:
            (y,) = self.model(x.detach().float().contiguous().numpy(), share_inputs=True).values()
        return torch.from_numpy(y)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Compiled":
        twin = copy.copy(self)  # the compiled model is immutable
        twin.layers = copy.deepcopy(self.layers, memo)
        return twin


@cache
def _openvino() -> Any:
    """Import OpenVINO without its telemetry package, which is optional and sends usage data."""
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
    """Return the OpenVINO Core, one per process.

    Each Core installs an alternate signal stack. If two Cores are destroyed in the order of their creation, the
    process keeps a freed stack, and the next signal kills it.
    """
    return _openvino().Core()


def _batches(calibration: Tensor | Iterable[Tensor]) -> list[np.ndarray]:
    """Return the calibration inputs as arrays, or an empty list if they are not usable."""
    batches = [calibration] if isinstance(calibration, Tensor) else list(calibration)
    if not all(isinstance(b, Tensor) and b.is_floating_point() and len(b) and b.isfinite().all() for b in batches):
        return []
    if len({tuple(b.shape[1:]) for b in batches}) > 1:
        return []
    return [b.detach().cpu().float().contiguous().numpy() for b in batches]


def _shape(network: nn.Module, batches: list[np.ndarray]) -> tuple[int, ...]:
    """Return the shape of one input, without the batch axis."""
    if isinstance(network, Network) and network.spec is not None:
        return network.spec.input_shape
    if not batches:
        raise InputError(
            "OpenVINO engine: expected an input size, got a network without a Spec. Set .spec, or pass calibration=x."
        )
    return batches[0].shape[1:]


def _convert(openvino: Any, network: Chain, shape: tuple[int, ...]) -> Any:
    """Convert the network to an OpenVINO model."""
    program = trace_program(network, (torch.zeros(3, *shape),), ({0: "N"},))
    try:
        with quiet_exporters():
            model = openvino.convert_model(program)
            model.reshape(openvino.PartialShape([-1, *shape]))  # conversion drops unused axis sizes
    except Exception as error:
        raise InputError(
            f"OpenVINO cannot convert this network: {reason_of(error)[:200]}. Use export.fuse instead."
        ) from error
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
    """Insert FakeQuantize nodes (256 levels) at the inputs and weights of convolutions and linear layers.

    OpenVINO runs a layer in int8 if these nodes surround it.
    """
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() in _LAYERS]
    layers = [node for node in nodes if _has_constant_weight(node)]
    if not layers:
        raise InputError(
            'OpenVINO engine in int8: expected convolutions or linear layers, got none. Set precision="auto".'
        )
    inputs = {}
    for node in layers:
        value = node.input_value(0)
        while value.get_node().get_type_name() == "MaxPool":  # max pooling can run on codes
            value = value.get_node().input_value(0)
        inputs[value.get_node().get_name(), value.get_index()] = value
    opset, values = openvino.opset13, list(inputs.values())
    observers = _observe(openvino, model, values=values, batches=batches)
    # The weights are checked too, because OpenVINO's ReLU and pooling drop NaN.
    if not all(observer.finite for observer in observers) or not all(t.isfinite().all() for t in weights.values()):
        raise InputError(
            "OpenVINO engine in int8: expected finite activations and weights, got NaN or infinity. Check the weights "
            "of the network."
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
    """Return the largest absolute weight of each output channel."""
    kind, axes = node.get_type_name(), tuple(range(weight.ndim))
    if kind == "MatMul":
        inputs = axes[-1:] if node.get_attributes()["transpose_b"] else axes[-2:-1]
    else:
        inputs = axes[1:] if kind == "Convolution" else axes[2:]
    return np.maximum(np.abs(weight).max(inputs, keepdims=True), 1e-12)
