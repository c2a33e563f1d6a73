"""The tensors of the fake GPU, and what their operators do: check devices, count, compute on the CPU, wrap.

`fake_gpu.py` describes the device.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = [
    "BACKEND",
    "CPU",
    "DEVICE",
    "OUTSIDE",
    "Copy",
    "DeviceTensor",
    "FakeGpu",
    "Operators",
    "Stream",
    "Sync",
    "current",
    "is_device",
]

BACKEND = "fgpu"  # its name in torch; users of the device see "cuda"
DEVICE, CPU = torch.device("privateuseone", 0), torch.device("cpu")
OUTSIDE = "outside"  # the line of an event that no line of the source has caused

_aten = torch.ops.aten
_COPIES = {_aten.copy_.default, _aten._to_copy.default, _aten._foreach_copy_.default}
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
_ALLOCATIONS = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}


class Copy(NamedTuple):
    """A copy between host and device, caused by `line` of the source."""

    direction: str  # "H2D" or "D2H"
    pinned: bool
    non_blocking: bool
    line: str


class Sync(NamedTuple):
    """A wait of the host for the device, caused by `line` of the source."""

    reason: str
    line: str


class FakeGpu:
    """Count the work of the device: `copies` and `syncs` by line, and `kernels` in all."""

    active: ClassVar["FakeGpu | None"] = None  # the one whose context is open

    def __init__(self, source: Path, index: int = 0):
        self.source = str(source)
        self.index = index  # of the device
        self.has_float64 = True  # False as on MPS
        self.current = 0  # index of the device that "cuda" means
        self.generator = torch.Generator()
        self.pinned: dict[int, torch.UntypedStorage] = {}  # address -> storage, kept so that no other gets the address
        self.reset()

    def set_current(self, device: Any) -> None:
        """Set the device that "cuda" means, an index or a device."""
        self.current = device if isinstance(device, int) else torch.device(device).index

    def reset(self) -> None:
        """Set all counts to zero."""
        self.copies: Counter[Copy] = Counter()
        self.syncs: Counter[Sync] = Counter()
        self.kernels = 0

    def line(self) -> str:
        """Return "file.py:line" of the innermost call inside the source, or `OUTSIDE`."""
        frame = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(self.source):
            frame = frame.f_back
        if frame is None:
            return OUTSIDE
        path = Path(frame.f_code.co_filename)
        name = path.relative_to(self.source) if path != Path(self.source) else path.name
        return f"{name}:{frame.f_lineno}"

    def count_copy(self, direction: str, pinned: bool, non_blocking: bool) -> None:
        """Count a copy. The host waits unless the copy is non-blocking; to pageable memory it waits always."""
        line = self.line()
        self.copies[Copy(direction, pinned, non_blocking, line)] += 1
        if not non_blocking or (direction == "D2H" and not pinned):
            self.syncs[Sync(f"copy {direction}", line)] += 1

    def count_sync(self, reason: str) -> None:
        """Count a synchronization."""
        self.syncs[Sync(reason, self.line())] += 1

    def is_pinned(self, host: Tensor) -> bool:
        """Return True if the memory of `host`, a CPU tensor, is page-locked."""
        return host.untyped_storage().data_ptr() in self.pinned

    def pin(self, host: Tensor) -> Tensor:
        """Mark the memory of `host` as page-locked."""
        self.pinned[host.untyped_storage().data_ptr()] = host.untyped_storage()
        return host

    def random_state(self, *_: Any) -> Tensor:
        """Return the state of the device's random generator."""
        return self.generator.get_state()

    def set_random_state(self, state: Tensor, *_: Any) -> None:
        """Set the state of the device's random generator."""
        self.generator.set_state(state)

    def seed(self, seed: int) -> None:
        """Seed the device's random generator."""
        self.generator.manual_seed(seed)


class Stream:
    """A stream of the device, on which everything runs at once."""

    def record_event(self) -> None:
        return None

    def wait_event(self, event: None) -> None:
        return None


_IDLE = FakeGpu(Path())  # counts for tensors that outlive their context


def current() -> FakeGpu:
    """Return the device whose context is open."""
    return FakeGpu.active or _IDLE


class DeviceTensor(Tensor):
    """A tensor on the device. `host` has its numbers, in the same shape and layout."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> "DeviceTensor":
        if host.dtype == torch.float64 and not current().has_float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return Tensor._make_wrapper_subclass(
            cls, host.size(), host.stride(), host.storage_offset(), dtype=host.dtype, layout=host.layout, device=DEVICE
        )

    def __init__(self, host: Tensor):
        self.host = host

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    # nn.Module.to swaps the content of a Parameter for that of a traceable wrapper: it stays the same object.
    def __tensor_flatten__(self):
        return ["host"], None

    @staticmethod
    def __tensor_unflatten__(tensors, context, size, stride):
        return DeviceTensor(tensors["host"])

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", current().index)

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, DeviceTensor):
            raise RuntimeError("incompatible tensor type: cannot set data of a device tensor to a CPU tensor")
        self.host = value.host
        Tensor.data.__set__(self, value)

    def numpy(self, *, force: bool = False):
        if not force:
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. "
                "Use Tensor.cpu() to copy the tensor to host memory first."
            )
        return self.detach().cpu().numpy()

    def __array__(self, dtype=None, copy=None):
        return self.numpy()

    def tolist(self):
        return self.detach().cpu().tolist()

    def record_stream(self, stream: "Stream") -> None:
        return None

    def data_ptr(self):
        raise RuntimeError("data_ptr() of a device tensor was taken; C code on the host cannot read it")

    def untyped_storage(self):
        return self.host.untyped_storage()

    def __deepcopy__(self, memo):
        if not self.is_leaf:
            raise RuntimeError("Only Tensors created explicitly by the user support the deepcopy protocol")
        if id(self) not in memo:
            twin = self.detach().clone().requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                twin._is_param = True
            if self.grad is not None:
                twin.grad = self.grad.detach().clone()
            memo[id(self)] = twin
        return memo[id(self)]

    def __repr__(self):
        return f"{repr(self.host)[:-1]}, device='cuda:0')"


def _run(func, args, kwargs):
    """Run an operator that has a device tensor as an argument or a result."""
    if func._can_decompose():  # operators that inference mode leaves whole
        return func.decompose(*args, **kwargs)
    gpu = current()
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    device = kwargs.get("device")
    on_device = any(isinstance(t, DeviceTensor) for t in tensors) if device is None else is_device(device)
    if on_device and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    _refuse_mixed(func, args, tensors)
    _count(gpu, func, args, kwargs, tensors, on_device)
    host_args, host_kwargs = tree_map(_to_host, (args, kwargs))
    host_kwargs.pop("pin_memory", None)
    with torch._C.DisableTorchFunctionSubclass(), _generator_of(gpu, func, on_device):
        result = func(*host_args, **host_kwargs)
    if func is _aten._to_copy.default and not on_device and kwargs.get("non_blocking"):
        gpu.pin(result)  # as torch does with the target of a non-blocking copy to the host
    written = _written(func, args, kwargs)
    if torch.Tag.inplace_view in func.tags:
        for tensor in written:
            Tensor.data.__set__(tensor, DeviceTensor(tensor.host))  # its shape and strides
    if written and func._schema.returns:
        return written[0] if len(func._schema.returns) == 1 else tuple(written)
    return tree_map(lambda v: DeviceTensor(v) if isinstance(v, Tensor) else v, result) if on_device else result


def is_device(value: Any) -> bool:
    return value is not None and torch.device(value).type in ("cuda", BACKEND)


def _names_device(value: Any) -> bool:
    return isinstance(value, torch.device) and is_device(value)


def _to_host(value: Any) -> Any:
    if isinstance(value, DeviceTensor):
        return value.host
    return CPU if _names_device(value) else value


def _refuse_mixed(func, args, tensors: list[Tensor]) -> None:
    """Raise as CUDA does if tensors are on two devices; scalars of the CPU may go with tensors of the device."""
    if func in _COPIES:
        return
    name = func._schema.name
    if name in _INDEXED and isinstance(args[0], DeviceTensor):  # which takes its indices from anywhere
        tensors = [args[0], *(value for value in args[2:] if isinstance(value, Tensor))]
    on_host = [t for t in tensors if not isinstance(t, DeviceTensor)]
    if len(on_host) == len(tensors):
        return
    written = _written(func, args, {})
    if any(t.dim() > 0 for t in on_host) or any(not isinstance(t, DeviceTensor) for t in written):
        shapes = ", ".join(str(tuple(t.shape)) for t in on_host)
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"(in {name}, on the CPU: {shapes})"
        )


def _count(gpu: FakeGpu, func, args, kwargs, tensors: list[Tensor], on_device: bool) -> None:
    """Count the copies, synchronizations and kernels of an operator."""
    name = func._schema.name
    for target, source in _copied(func, args, on_device):
        if (target is None and on_device) or isinstance(target, DeviceTensor):
            if not isinstance(source, DeviceTensor):
                gpu.count_copy("H2D", gpu.is_pinned(source), _is_non_blocking(func, args, kwargs))
        elif isinstance(source, DeviceTensor):
            non_blocking = _is_non_blocking(func, args, kwargs)
            pinned = non_blocking if target is None else gpu.is_pinned(target)
            gpu.count_copy("D2H", pinned, non_blocking)
    if name in _INDEXED:
        indices = [index for index in args[1] if index is not None]
        for index in indices:
            if not isinstance(index, DeviceTensor):
                gpu.count_copy("H2D", gpu.is_pinned(index), False)
        masks = [t for t in indices if t.dtype in (torch.bool, torch.uint8) and isinstance(t, DeviceTensor)]
        if masks and not _is_masked_fill(args, indices):
            gpu.count_sync("boolean index")
    elif torch.Tag.data_dependent_output in func.tags or name == "aten::_local_scalar_dense":
        gpu.count_sync("item" if name == "aten::_local_scalar_dense" else name.removeprefix("aten::"))
    elif torch.Tag.dynamic_output_shape in func.tags and kwargs.get("output_size") is None:
        gpu.count_sync(name.removeprefix("aten::"))
    computes = func not in _COPIES and name not in _ALLOCATIONS and name != "aten::_local_scalar_dense"
    gpu.kernels += computes and not func.is_view and (on_device or any(isinstance(t, DeviceTensor) for t in tensors))


def _copied(func, args, on_device: bool) -> list[tuple[Tensor | None, Tensor]]:
    """Return (target, source) of what `func` copies; a target of None is a new tensor."""
    if func is _aten._to_copy.default:
        return [(None, args[0])]
    if func is _aten.copy_.default:
        return [(args[0], args[1])]
    return list(zip(args[0], args[1], strict=True)) if func is _aten._foreach_copy_.default else []


def _is_non_blocking(func, args, kwargs) -> bool:
    return bool(kwargs.get("non_blocking", args[2] if func in _COPIES and len(args) > 2 else False))


def _is_masked_fill(args, indices: list[Tensor]) -> bool:
    """Return True if CUDA writes one number of the host through masks without counting what they select."""
    value = args[2] if len(args) > 2 else None
    of_host = value is not None and not isinstance(value, DeviceTensor) and value.numel() == 1
    return of_host and all(index.dtype in (torch.bool, torch.uint8) for index in indices)


@cache
def _write_aliases(func) -> list[tuple[int, str]]:
    arguments = enumerate(func._schema.arguments)
    return [(i, a.name) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write]


@cache
def _returns_written(func) -> bool:
    return any(r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns)


def _written(func, args, kwargs) -> list[Tensor]:
    """Return the tensors that `func` writes to and returns: those of in-place and out variants."""
    if func._schema.returns and not _returns_written(func):
        return []
    values = [args[i] if i < len(args) else kwargs.get(name) for i, name in _write_aliases(func)]
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@contextmanager
def _generator_of(gpu: FakeGpu, func, on_device: bool) -> Iterator[None]:
    """Let a random operator on the device draw from the device's generator, and leave the CPU's as it is."""
    if not on_device or torch.Tag.nondeterministic_seeded not in func.tags:
        yield
        return
    default = torch.default_generator
    state = default.get_state()
    default.set_state(gpu.generator.get_state())
    try:
        yield
    finally:
        gpu.generator.set_state(default.get_state())
        default.set_state(state)


class Operators(TorchDispatchMode):
    """Send operators that make a device tensor of none, and those of pinned memory, to the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, gpu = func._schema.name, current()
        if name == "aten::is_pinned":
            return not isinstance(args[0], DeviceTensor) and gpu.is_pinned(args[0])
        if name == "aten::_pin_memory":
            if isinstance(args[0], DeviceTensor):
                raise RuntimeError("cannot pin a device tensor; only dense CPU tensors can be pinned")
            return gpu.pin(args[0].clone())
        if any(isinstance(leaf, DeviceTensor) or _names_device(leaf) for leaf in tree_leaves((args, kwargs))):
            with self if func._can_decompose() else nullcontext():
                return _run(func, args, kwargs)
        if kwargs.get("pin_memory"):
            return gpu.pin(func(*args, **{**kwargs, "pin_memory": False}))
        return func(*args, **kwargs)
