"""A GPU for tests: a device called "cuda" whose tensors keep their numbers on the CPU.

    with fake_gpu() as gpu:
        x = torch.ones(3, 4).to("cuda")
        x.sum().item()
    gpu.copies, gpu.syncs, gpu.kernels

Inside the context `torch.cuda` reports one device, and code that requests "cuda" gets a `DeviceTensor`. As on a GPU, an
operator on tensors of two devices raises, `.numpy()` raises, and random numbers come from a generator of the device.
Copies between host and device and synchronizations (calls that wait for the device) are counted by source line.

Simplified, so tests on this device do not replace a run on a real GPU, whose behavior is unmeasured here:
- Everything runs at once and in order, on any stream, so a missing synchronization is not noticed.
- Numbers are the CPU's: no TF32, no cuDNN, no atomic additions in another order, no memory that runs out.
- A kernel is an operator that computes. Real operators start one kernel, several, or none.
- One device in one process: no peer copies, NCCL, CUDA graphs, `torch.compile`, or `torch.Generator("cuda")`.
- Which operators synchronize follows their tags in ATen. Autocast has CUDA's lists for the operators used here.
- Threads started inside the context see no device. `module.cpu()` makes new Parameters, where CUDA keeps them.
- `data_ptr()` raises. On CUDA it returns an address that C code on the host must not read.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from fake_gpu_backend import register
from fake_gpu_tensor import (
    BACKEND,
    CPU,
    DEVICE,
    OUTSIDE,
    Copy,
    DeviceTensor,
    FakeGpu,
    Operators,
    Stream,
    Sync,
    is_device,
)
from torch import Tensor
from torch.optim.optimizer import _foreach_supported_types as _optimizer_types
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils

import skipway

__all__ = ["OUTSIDE", "Copy", "DeviceTensor", "FakeGpu", "Sync", "fake_gpu"]

SOURCE = Path(skipway.__file__).parent


def _by_backend(function, default: Any = None):
    """Return `function` of a device type, with the backend's name for "cuda"."""

    def translated(device_type=default, *args):
        return function(BACKEND if device_type == "cuda" else device_type, *args)

    return translated


@contextmanager
def fake_gpu(source: Path = SOURCE, *, index: int = 0) -> Iterator[FakeGpu]:
    """Provide a fake CUDA device, and count what the code in `source`, a folder or a file, does with it.

    Args:
        source: the code whose use of the device is counted.
        index: the number of the device. Those with smaller numbers are reported, and every use of them raises.
    """
    if FakeGpu.active is not None:
        raise RuntimeError("fake_gpu() is already active")
    register()
    gpu = FakeGpu(source, index)
    start = torch.autocast.__init__

    def autocast(self, device_type, *args, **kwargs):
        start(self, BACKEND if device_type == "cuda" else device_type, *args, **kwargs)

    properties = SimpleNamespace(name="Fake GPU", total_memory=2**33, major=8, minor=0, multi_processor_count=1)
    cuda = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: index + 1,
        "current_device": lambda: gpu.current,
        "set_device": gpu.set_current,
        "get_device_name": lambda device=None: properties.name,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "is_bf16_supported": lambda including_emulation=True: True,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: gpu.count_sync("synchronize"),
        "get_rng_state": gpu.random_state,
        "set_rng_state": gpu.set_random_state,
        "manual_seed": gpu.seed,
        "manual_seed_all": gpu.seed,
        "_lazy_init": lambda: None,
        "mem_get_info": lambda device=None: (properties.total_memory, properties.total_memory),
        "Stream": lambda device=None: Stream(),
        "stream": nullcontext,
        "current_stream": lambda device=None: Stream(),
    }
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(torch.cuda, **cuda))
        stack.enter_context(patch.object(torch.autocast, "__init__", autocast))
        stack.enter_context(patch.object(torch.utils, "swap_tensors", _swap))
        for name in ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_enabled", "set_autocast_dtype"):
            default = "cuda" if name == "is_autocast_enabled" else None
            stack.enter_context(patch.object(torch, name, _by_backend(getattr(torch, name), default)))
        for types in (_foreach_utils._foreach_supported_types, _optimizer_types):
            types.append(DeviceTensor)
            stack.callback(types.remove, DeviceTensor)
        stack.enter_context(patch.object(FakeGpu, "active", gpu))
        stack.enter_context(_Names())
        stack.enter_context(Operators())
        yield gpu


def _swap(parameter: Tensor, converted: Tensor) -> None:
    """Swap two tensors, as nn.Module.to does; torch's own function refuses those that have weak references."""
    for name in ("__class__", "__dict__"):
        value = getattr(parameter, name)
        setattr(parameter, name, getattr(converted, name))
        setattr(converted, name, value)
    torch._C._swap_tensor_impl(parameter, converted)


class _Names(TorchFunctionMode):
    """Turn "cuda" into the device in the arguments of every function of torch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args = tuple(_translated(value) for value in args)
        kwargs = {name: _translated(value) for name, value in (kwargs or {}).items()}
        if func is Tensor.cuda:
            return args[0].to(DEVICE, **{k: v for k, v in kwargs.items() if k != "device"})
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and is_device(kwargs.get("device")):
            # These build a CPU tensor and copy it without asking any mode.
            return func(*args, **{**kwargs, "device": CPU}).to(DEVICE)
        if func is Tensor.new_tensor and isinstance(args[0], DeviceTensor):
            device = kwargs.pop("device", DEVICE)
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(device)
        if func is Tensor.__setitem__ and isinstance(args[0], DeviceTensor) and isinstance(args[2], (bool, int, float)):
            args = (*args[:2], torch.tensor(args[2], dtype=args[0].dtype))  # as torch does with CUDA tensors alone
        return func(*args, **kwargs)


def _translated(value: Any) -> Any:
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        value = torch.device(value)
    if isinstance(value, torch.device) and value.type in ("cuda", BACKEND):
        gpu = FakeGpu.active
        index = gpu.current if value.index is None else value.index
        if value.type == "cuda" and index != gpu.index:
            raise RuntimeError(f"CUDA error: invalid device ordinal (the fake GPU is cuda:{gpu.index}, not {value})")
        return DEVICE
    return value
