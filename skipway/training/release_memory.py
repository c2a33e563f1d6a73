"""Memory of tensors that are no longer used."""

import gc

import torch

__all__ = ["release_memory"]


def release_memory(device: torch.device) -> None:
    """Free the memory of tensors that nothing refers to, also what the allocator of the device keeps for later."""
    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device.type).empty_cache()
