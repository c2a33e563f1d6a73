"""A network compiled by torch.compile for training, which shares its weights with the network itself.

Source: PyTorch 2, Ansel et al. 2024, doi:10.1145/3620665.3640366.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["compile_obstacle", "compiled_model"]

BACKEND = "inductor"
_MOST_SHAPES = 64  # sizes of progressive resizing, with frozen layers and without; torch runs later ones uncompiled


def compile_obstacle(*, fsdp: bool, recompute: int | str, deterministic: bool) -> str:
    """Return the option that excludes torch.compile, or "".

    Activation checkpointing recomputes layers in plain autograd only, and the hooks of FSDP gather sharded weights.
    Compiled code for a GPU is chosen by measured times, so that two processes may round differently.

    Args:
        fsdp: the weights are sharded.
        recompute: see `recompute`; "none" for no activation checkpointing.
        deterministic: the run must be exact to the bit on CUDA.
    """
    if fsdp:
        return "--fsdp"
    if deterministic:
        return "--deterministic"
    return "--recompute" if recompute != "none" else ""


def compiled_model(model: nn.Module, *, cuda_graphs: bool) -> Callable[[Any], Tensor]:
    """Return a function that computes the outputs of `model` by compiled code, one for each shape of the inputs.

    The module is not changed: it keeps its names, its hooks and its plain forward pass for evaluation.

    Args:
        model: network, or its replica in DistributedDataParallel.
        cuda_graphs: replay the kernels of a pass as one CUDA graph. The gradients of a replay are overwritten by the
            next one, so gradients must not be accumulated.
    """
    mode = "reduce-overhead" if cuda_graphs else None
    compiled = torch.compile(model, backend=BACKEND, mode=mode, dynamic=False)
    limits = torch._dynamo.config.patch(recompile_limit=_MOST_SHAPES)

    def compute(x: Any) -> Tensor:
        with limits:
            # The next replay of a CUDA graph overwrites these outputs, which the loop keeps for several steps.
            return compiled(x).float().clone()

    return compute
