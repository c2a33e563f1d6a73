"""Shards: weights, gradients and optimiser states split over the processes, for networks that one does not hold.

torch's fully_shard does it: every process keeps its part of each block, and has the whole block only while it runs.
Sources: ZeRO, Rajbhandari et al. 2019, arXiv:1910.02054; FSDP, Zhao et al. 2023, arXiv:2304.11277.
"""

from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor, nn

from skipway.nn.skip import Skip

__all__ = ["full_state_dict", "shard_like", "shard_model", "full_tensor"]


def shard_model(network: nn.Module, device: str) -> nn.Module:
    """`network`, which every process has whole, with this process's part of it alone, on `device`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for block in [*_blocks(network), network]:
        fully_shard(block, mesh=mesh)
    return network


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The outermost Skips that learn: what is fetched whole, run and let go again."""
    for child in network.children():
        if isinstance(child, Skip):
            if any(True for _ in child.parameters()):
                yield child
        else:
            yield from _blocks(child)


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """All of `tensor`, of which each process may have a part; all of them ask together."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def full_state_dict(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors whole: one after the other in the CPU's memory, where the first process alone keeps them."""
    full_tensors = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor)
        if full is tensor or dist.get_rank() == 0:
            full_tensors[name] = full if full is tensor else full.cpu()
    return full_tensors


def shard_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """The rows of `tensor` that this process has of `pattern`; the whole where `pattern` is not shared.

    What has no row for each of the pattern's, such as a count of steps, stays whole.
    """
    tensor = tensor.to(pattern.device)
    if (
        _is_sharded(tensor)
        or not _is_sharded(pattern)
        or tensor.shape[:1] != pattern.shape[:1]
        or tensor.numel() != pattern.numel()
    ):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.contiguous(), pattern.device_mesh, pattern.placements, src_data_rank=None)  # type: ignore[attr-defined]
