"""EMA of the weights and buffers of a network."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

__all__ = ["make_average"]


def make_average(network: nn.Module, decay: float | None, *, is_sharded: bool) -> AveragedModel | None:
    """Return the EMA of a network with a copy of its weights, or None without a decay.

    Args:
        network: network to average.
        decay: weight of the EMA in each update, or None.
        is_sharded: FSDP will shard the weights; sharded tensors are averaged one by one.
    """
    if decay is None:
        return None
    if is_sharded:
        return AveragedModel(network, avg_fn=get_ema_avg_fn(decay), use_buffers=True)
    return _Average(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


class _Average(AveragedModel):
    """AveragedModel that does not wait for the device of the weights.

    The number of updates stays on the CPU. AveragedModel copies it to the device for each dtype in each update.
    """

    def update_parameters(self, model: nn.Module) -> None:
        """Update the EMA with the weights and buffers of `model`."""
        groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for average, value in zip(_tensors(self.module), _tensors(model), strict=True):
            averages, values = groups.setdefault(average.dtype, ([], []))
            averages.append(average)
            values.append(value)
        assert self.multi_avg_fn is not None
        for averages, values in groups.values():
            if self.n_averaged == 0:
                torch._foreach_copy_(averages, values)
            else:
                self.multi_avg_fn(averages, values, self.n_averaged)
        self.n_averaged += 1


def _tensors(module: nn.Module) -> list[Tensor]:
    return [t.detach() for t in (*module.parameters(), *module.buffers())]
