"""FSDP: shards weights, gradients and optimizer states over the processes, for networks that do not fit into one.

It uses fully_shard of torch. Each process keeps its shard of each block, and gathers the full block only to run it.
Sources: ZeRO, Rajbhandari et al. 2019, arXiv:1910.02054; FSDP, Zhao et al. 2023, arXiv:2304.11277.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from skipway.nn.skip import Skip

__all__ = ["full_state_dict", "shard_like", "shard_model", "full_tensor"]


def shard_model(network: nn.Module, device: str) -> nn.Module:
    """Shard a network, which is equal in all processes, in place.

    FSDP only shards contiguous weights. Convolutions of batches in channels_last compute in it all the same.

    Args:
        network: each residual block becomes a unit of FSDP.
        device: device type of the mesh, such as "cpu" or "cuda".

    Returns:
        The network, with the shards of this process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for block in [*_blocks(network), network]:
        fully_shard(block, mesh=mesh)
    return network


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost Skips with parameters, which are the units of FSDP."""
    for child in network.children():
        if isinstance(child, Skip):
            if any(True for _ in child.parameters()):
                yield child
        else:
            yield from _blocks(child)


def is_sharded(tensor: Tensor) -> bool:
    """Return True if a tensor is sharded over the processes."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor if it is sharded. All processes must call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def full_state_dict(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gather tensors one by one. Sharded ones are returned on the CPU, and only by the first process."""
    full_tensors = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor)
        if full is tensor or dist.get_rank() == 0:
            full_tensors[name] = full if full is tensor else full.cpu()
    return full_tensors


def shard_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """Shard a full tensor like `pattern`.

    Args:
        tensor: moved to the device of `pattern`. A tensor of another shape, such as a step count, is not sharded.
        pattern: a sharded or a full tensor.
    """
    tensor = tensor.to(pattern.device)
    if (
        is_sharded(tensor)
        or not is_sharded(pattern)
        or tensor.shape[:1] != pattern.shape[:1]
        or tensor.numel() != pattern.numel()
    ):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.contiguous(), pattern.device_mesh, pattern.placements, src_data_rank=None)  # type: ignore[attr-defined]
