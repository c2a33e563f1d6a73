"""Fusion for inference, and export to torch.export programs and ONNX files."""

import copy
import io
import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from skipway.errors import InputError
from skipway.export.export_description import describe_export
from skipway.export.fused_convolution import Convolution, dequantize
from skipway.export.fusion import fold, plan_quantized_outputs, run_fused
from skipway.export.onnx_file import (
    Exported,
    file_metadata,
    onnx,
    quiet_exporters,
    trace_program,
    write_verified,
)
from skipway.export.quantization import PRECISIONS
from skipway.models.network import Network, with_converted_trunk
from skipway.nn.chain import Chain
from skipway.training.precision import without_tf32
from skipway.utils.devices import device_for, has_bf16, has_float64
from skipway.utils.tracing import is_symbolic, is_transformed

__all__ = ["Exported", "fuse", "onnx", "program"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def fuse(network: nn.Module, precision: str = "auto", calibration: Tensor | Iterable[Tensor] = ()) -> Chain:
    """Fuse a copy of a model for inference: fold batch norms, activations and residual additions into convolutions.

    The copy shares no weights with `network`. It cannot be trained or saved. A `Network` keeps `predict` and
    `predict_proba`. torch.export, torch.compile and torch.jit.trace take a copy in fp32 or bf16, and torch.fx,
    torch.jit.script and torch.func one in fp32.

    Args:
        network: The model, on one device. It is not changed.
        precision: "fp32", "bf16", "int8" (8-bit integer convolutions, CPU only), or "auto" (bf16 if the hardware
            supports it, otherwise fp32).
        calibration: Normalized inputs (B, C, H, W) for int8, as one tensor or an iterable of tensors. They set the
            activation ranges, so use about 100 representative images, such as training images.

    Returns:
        The fused model. It accepts the inputs of `network` and returns float32. Relative to the largest output, it
        differs from float32 by about 1e-6 in fp32 and 1e-2 in bf16. int8 differs by more: measure its accuracy with
        `skipway.evaluate`.

    Raises:
        InputError: The precision is unknown, the parameters are on several devices or of a dtype such as complex64 or
            int8, or int8 is not available for this model, this device, this build of torch or these calibration inputs.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    >>> fuse(network, precision="fp32")
    Chain(
      Convolution(3, 8, 3x3, float32, relu),  # 224 parameters
    )                                         # 224 parameters in 2 tensors
    """
    if precision not in PRECISIONS:
        raise InputError(f"fuse: expected a precision of {', '.join(PRECISIONS)}, got {precision!r}. Set one of these.")
    if isinstance(network, Network) and "columns" in network.plan:
        return with_converted_trunk(network, lambda trunk: fuse(trunk, precision, calibration))
    _need_floats(network)
    with torch.inference_mode(False):
        twin = fold(copy.deepcopy(network).float().eval())
        if type(twin).forward is not Chain.forward:
            twin = Chain(twin)
    assert isinstance(twin, Chain)
    devices = {p.device.type for p in network.parameters()} or {"cpu"}
    if len(devices) > 1:
        raise InputError(
            f"fuse: expected all parameters on one device, got {' and '.join(sorted(devices))}. Call .to(device) first."
        )
    (device,) = devices
    half = precision == "bf16" or (precision in ("auto", "int8") and has_bf16(device))
    convolutions = [module for module in twin.modules() if isinstance(module, Convolution)]
    if precision == "int8":
        _to_int8(twin, convolutions, device=device, calibration=calibration)
    for convolution in convolutions:
        convolution.dtype = torch.bfloat16 if half else torch.float32
    # The first int8 layer quantizes its input itself. In bf16 the first layer would round the input in any case.
    twin.forward_impl = partial(_run_inference, half=half, narrow=half and precision != "int8")
    return twin


def program(
    network: Network, path: str | os.PathLike[str], *, raw: bool = False, check: Any = None, device: str = "cpu"
) -> Exported:
    """Write a torch.export program (.pt2) with the inputs, outputs and checks of `onnx`; needs no extra.

    `torch.export.load(path).module()` maps a tensor to a tensor for any batch size, on any device that it is moved to.
    The metadata are the `extra_files` of the program.

    Args:
        network: Model with its Spec.
        path: Output file.
        raw: Export the network alone, without preprocessing and without softmax, sigmoid or units.
        check: Images (paths or uint8 arrays) or a table to verify the file with. Default: random inputs.
        device: Device that runs the program for the verification: "cpu", "cuda", "cuda:1" or "xpu".

    Returns:
        The file, its size and its largest difference from torch.

    Raises:
        InputError: The network cannot be exported, or the device cannot run the program.
        SkipwayError: The outputs of the program differ from those of `network`. No file is written.

    >>> import tempfile, skipway as sw
    >>> run = sw.train("wine", epochs=1, output=tempfile.mkdtemp())
    >>> exported = program(run.network(), run.path.parent / "wine.pt2")
    >>> exported.path.name, exported.difference < 1e-4
    ('wine.pt2', True)
    """
    place = _verifying_device(device)
    description, file = describe_export(network, raw), io.BytesIO()
    inputs = description.inputs(check)
    with quiet_exporters():
        traced = trace_program(description.module, description.examples, description.dynamic)
        torch.export.save(traced, file, extra_files=file_metadata(network))
        loaded = torch.export.load(io.BytesIO(file.getvalue())).module().to(place)

    def run(*x: np.ndarray) -> np.ndarray:
        with torch.no_grad(), without_tf32():
            return loaded(*(torch.from_numpy(inputs).to(place) for inputs in x)).cpu().numpy()

    return write_verified(Path(path), file.getvalue(), function=run, description=description, inputs=inputs)


def _verifying_device(device: str) -> str:
    """Return the device that runs a program, which has float64 in its preprocessing."""
    place = device_for(device)
    if not has_float64(place):
        raise InputError(
            f"cannot verify an export on --device {place}: expected a device with float64, got {place}. Use --device "
            "cpu."
        )
    return place


def _need_floats(network: nn.Module) -> None:
    """Check that the weights can become float32 without losing a part, a scale or a code."""
    weights = {name for name, _ in network.named_parameters()}
    for name, value in network.state_dict().items():
        for tensor in value if isinstance(value, tuple) else (value,):  # the packed weights of a quantized layer
            if not isinstance(tensor, Tensor) or tensor.dtype in _FLOATS:
                continue
            if name in weights or tensor.is_complex() or tensor.is_quantized or tensor.is_floating_point():
                raise InputError(
                    "fuse: expected weights in float16, bfloat16, float32 or float64, got "
                    f"{str(tensor.dtype).removeprefix('torch.')} at {name}. Convert them, or use the model unfused."
                )


def _to_int8(
    network: Chain, convolutions: list[Convolution], *, device: str, calibration: Tensor | Iterable[Tensor]
) -> None:
    """Run the calibration images in float32, then switch the convolutions to int8."""
    if device != "cpu" or not convolutions:
        unfit = f"a network on {device}" if device != "cpu" else "no supported convolution"
        raise InputError(f'fuse in int8: expected a network with convolutions on a CPU, got {unfit}. Use "bf16".')
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qconv2d_pointwise")):
        raise InputError('fuse in int8: expected a torch build with oneDNN, got one without. Use "fp32" or "auto".')
    batches = [calibration] if isinstance(calibration, Tensor) else list(calibration)
    if not batches or not all(map(_is_calibration_batch, batches)):
        raise InputError(
            "fuse in int8: expected calibration images, got none or unusable ones. Pass calibration=x, a finite float "
            "tensor (B, C, H, W) of normalized images, or a list of them."
        )
    for convolution in convolutions:
        convolution.start_calibration(len(batches))
    for batch in batches:
        _run_inference(list(network), batch, half=False)
    observers = chain.from_iterable(convolution.observers or () for convolution in convolutions)
    if not all(observer.finite for observer in observers):
        raise InputError(
            "fuse in int8: expected finite activations, got NaN or infinity. Check the weights of the network."
        )
    for convolution in convolutions:
        convolution.finish_calibration()
    plan_quantized_outputs(network)


def _is_calibration_batch(batch: Any) -> bool:
    """Return True if `batch` is a non-empty float tensor (B, C, H, W) of finite values."""
    if not isinstance(batch, Tensor) or batch.dim() != 4 or not len(batch) or not batch.is_floating_point():
        return False
    return bool(batch.isfinite().all())


@fx.wrap
def _converted(x: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """Return floats in `dtype`, and images in channels_last memory. A graph of torch.fx knows them when it runs."""
    if x.dtype == torch.uint8:
        raise InputError("fused network: expected normalized floats, got uint8. Use predict for images.")
    if not x.is_floating_point():
        return x
    if channels_last and x.dim() == 4:
        return x.to(dtype, memory_format=torch.channels_last)
    return x.to(dtype)


def _run_inference(layers: Sequence[nn.Module], x: Any, *, half: bool, narrow: bool = False) -> Any:
    """Run `layers` in sequence without gradients, in bfloat16 or float32."""
    if half and (is_symbolic(x) or is_transformed()):
        raise InputError(
            "network fused in bf16 or int8: expected a plain call, got one inside torch.fx or torch.func, which ignore "
            'autocast. Fuse it in "fp32" for these.'
        )
    if isinstance(x, Tensor) or is_symbolic(x):
        x = _converted(x, torch.bfloat16 if narrow else torch.float32, not is_transformed())
    device = x.device.type if isinstance(x, Tensor) else "cpu"
    available = torch.amp.is_autocast_available(device)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=half) if available else nullcontext():
        out = dequantize(run_fused(layers, x))
        return out.float() if isinstance(out, Tensor) else out
