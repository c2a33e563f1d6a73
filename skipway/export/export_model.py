"""A trained network as it is wanted elsewhere: with less to do where it only predicts."""

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
from torch import Tensor, nn

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
from skipway.models.network import Network
from skipway.nn.chain import Chain
from skipway.training.trainer import has_bf16

__all__ = ["Exported", "fuse", "onnx", "program"]


def fuse(network: nn.Module, precision: str = "auto", calibration: Tensor | Iterable[Tensor] = ()) -> Chain:
    """The network for predicting alone: norms folded into convolutions, which do ReLUs and joins as well.

    A Network stays one: `predict` and `predict_proba` do what they did, faster. It takes what `network` takes, float64
    as float32, gives float32, and cannot be trained or saved. `network` is as it was, and shares no weights with it.

    Args:
        precision: "fp32"; "bf16"; "auto", which is bf16 where the hardware has it, else fp32; "int8", where
            convolutions compute with 8-bit integers, on a CPU.
        calibration: inputs (B, C, H, W) as the network takes them, for int8: a tensor or several. What the network
            makes of them chooses the range that its integers stand for, so they should be like what is to come; a
            hundred training images are enough.

    Outputs differ from those in float32 by rounding alone: about 1e-6 of the largest in fp32, 1e-2 in bf16; in int8
    by more, so measure what it costs (`skipway.evaluate` takes the fused network).

    Raises:
        InputError: no such precision; int8 without calibration, for a network elsewhere than on a CPU or without a
            convolution that it could be done for, or by a torch without oneDNN; when it is used, bytes as input.
    """
    if precision not in PRECISIONS:
        raise InputError(f"fuse has the precisions {', '.join(PRECISIONS)}, not {precision!r}")
    with torch.inference_mode(False):
        twin = fold(copy.deepcopy(network).float().eval())
        if type(twin).forward is not Chain.forward:
            twin = Chain(twin)
    assert isinstance(twin, Chain)
    devices = {p.device.type for p in network.parameters()} or {"cpu"}
    if len(devices) > 1:
        raise InputError(f"fuse takes a network on one device, not on {' and '.join(sorted(devices))}; use .to(device)")
    (device,) = devices
    half = precision == "bf16" or (precision in ("auto", "int8") and has_bf16(device))
    convolutions = [module for module in twin.modules() if isinstance(module, Convolution)]
    if precision == "int8":
        _to_int8(twin, convolutions, device=device, calibration=calibration)
    for convolution in convolutions:
        convolution.dtype = torch.bfloat16 if half else torch.float32
    # int8 makes its codes of what it is given; all others would round it in their first layer.
    twin.forward_impl = partial(_run_inference, half=half, narrow=half and precision != "int8")
    return twin


def program(network: Network, path: str | os.PathLike[str], *, raw: bool = False, check: Any = None) -> Exported:
    """Write what `onnx` writes as a program of torch (.pt2), checked in the same way; needs no extra.

    For users of torch: `torch.export.load(path).module()` takes a tensor and gives one, in batches of any size. The
    metadata stand in it as `extra_files`.
    """
    description, file = describe_export(network, raw), io.BytesIO()
    inputs = description.inputs(check)
    with quiet_exporters():
        traced = trace_program(description.module, description.example, description.dynamic)
        torch.export.save(traced, file, extra_files=file_metadata(network))
        loaded = torch.export.load(io.BytesIO(file.getvalue())).module()

    def run(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return loaded(torch.from_numpy(x)).numpy()

    return write_verified(Path(path), file.getvalue(), function=run, description=description, inputs=inputs)


def _to_int8(
    network: Chain, convolutions: list[Convolution], *, device: str, calibration: Tensor | Iterable[Tensor]
) -> None:
    """Run the calibration images in float32, and let the convolutions compute in int8 from then on."""
    if device != "cpu" or not convolutions:
        unfit = f"one on {device}" if device != "cpu" else "one without convolutions that it knows"
        raise InputError(
            f'fuse to "int8" takes a network on a CPU with convolutions, not {unfit}; use precision "bf16"'
        )
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qconv2d_pointwise")):
        raise InputError('fuse to "int8" needs oneDNN, which this torch is built without; use "fp32" or "auto"')
    batches = [calibration] if isinstance(calibration, Tensor) else list(calibration)
    if not batches or not all(map(_is_calibration_batch, batches)):
        raise InputError(
            'fuse to "int8" chooses its ranges by images; give calibration=x, a tensor (B, C, H, W) of finite inputs '
            "as the network takes them, or several"
        )
    for convolution in convolutions:
        convolution.start_calibration(len(batches))
    for batch in batches:
        _run_inference(list(network), batch, half=False)
    observers = chain.from_iterable(convolution.observers or () for convolution in convolutions)
    if not all(observer.finite for observer in observers):
        raise InputError(
            'fuse to "int8" met numbers inside the network that are not finite; look for them in its weights'
        )
    for convolution in convolutions:
        convolution.finish_calibration()
    plan_quantized_outputs(network)


def _is_calibration_batch(batch: Any) -> bool:
    """Return whether ranges can be chosen by `batch`: finite images."""
    if not isinstance(batch, Tensor) or batch.dim() != 4 or not len(batch) or not batch.is_floating_point():
        return False
    return bool(batch.isfinite().all())


def _run_inference(layers: Sequence[nn.Module], x: Any, *, half: bool, narrow: bool = False) -> Any:
    """Run `layers` one after the other without gradients, in bfloat16 or float32."""
    if isinstance(x, Tensor) and x.dtype == torch.uint8:
        raise InputError("a fused network takes normalised numbers, not bytes; use predict for images")
    if isinstance(x, Tensor) and x.is_floating_point():
        layout = torch.channels_last if x.dim() == 4 else torch.preserve_format
        x = x.to(torch.bfloat16 if narrow else torch.float32, memory_format=layout)
    device = x.device.type if isinstance(x, Tensor) else "cpu"
    available = torch.amp.is_autocast_available(device)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=half) if available else nullcontext():
        out = dequantize(run_fused(layers, x))
        return out.float() if isinstance(out, Tensor) else out
