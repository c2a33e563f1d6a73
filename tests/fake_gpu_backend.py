"""The fake GPU as a backend of torch: the module that torch requires of a backend, and autocast.

`fake_gpu.py` describes the device.
"""

from functools import cache
from typing import Any

import torch
from fake_gpu_tensor import BACKEND, FakeGpu, current, is_device
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["register"]


class _Backend:
    """Provide the functions that torch calls on a backend. Outside of `fake_gpu` there is no device."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return FakeGpu.active is not None

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return int(FakeGpu.active is not None)

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        current().seed(seed)

    def get_rng_state(self, device: Any = None) -> Tensor:
        return current().random_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        current().set_random_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]


class _Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return FakeGpu.active is not None

    def has_primary_context(self, index: int) -> bool:
        return FakeGpu.active is not None

    def is_built(self) -> bool:
        return True


# Which operators autocast runs in low precision, in float32, and in the widest precision of their arguments on CUDA.
_LOW = (
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d.input conv_transpose3d.input convolution prelu addmm addmv \
addr matmul einsum mm mv linear addbmm baddbmm bmm linalg_vecdot scaled_dot_product_attention"
)
_FULL = "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar \
pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm cosine_similarity nll_loss \
nll_loss2d nll_loss_nd kl_div l1_loss smooth_l1_loss huber_loss mse_loss soft_margin_loss logsumexp \
binary_cross_entropy_with_logits softmax.int log_softmax.int cumprod cumsum prod prod.dim_int sum sum.dim_IntList \
linalg_vector_norm linalg_matrix_norm norm.Scalar norm.ScalarOpt_dim upsample_bilinear2d upsample_bicubic2d"
_WIDEST = "addcdiv addcmul atan2 bilinear cat cross dot grid_sampler scatter_add stack tensordot vdot"
_libraries: list[torch.library.Library] = []  # what is registered lives as long as they do


@cache
def register() -> None:
    """Register the backend, once in a process and before its first backward pass.

    At that pass autograd starts its threads for the registered devices. A later device has no thread, and every
    backward pass on it fails. Outside of `fake_gpu` the backend reports that no device is available.
    """
    backend_registration._setup_privateuseone_for_python_backend(BACKEND, _Backend(), _Hook())
    rest, library = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _libraries.extend((rest, library))
    rest.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in _LOW.split():
        library.impl(name, _autocast(name, lambda _: torch.get_autocast_dtype(BACKEND)), "AutocastPrivateUse1")
    for name in _FULL.split():
        library.impl(name, _autocast(name, lambda _: torch.float32), "AutocastPrivateUse1")
    for name in _WIDEST.split():
        library.impl(name, _autocast(name, _widest), "AutocastPrivateUse1")


def _widest(tensors: list[Tensor]) -> torch.dtype:
    return max((t.dtype for t in tensors), key=lambda dtype: dtype.itemsize)


def _autocast(name: str, precision):
    packet, _, overload = name.partition(".")
    func = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def kernel(*args, **kwargs):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if _is_castable(leaf)]
        dtype = precision(tensors) if tensors else None
        args, kwargs = tree_map(lambda leaf: leaf.to(dtype) if _is_castable(leaf) else leaf, (args, kwargs))
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            return func(*args, **kwargs)

    return kernel


def _is_castable(leaf: Any) -> bool:
    return (
        isinstance(leaf, Tensor) and is_device(leaf.device) and leaf.is_floating_point() and leaf.dtype != torch.float64
    )
