"""Optimisers by name: SGD with Nesterov's momentum, AdamW, and Muon for the matrices with AdamW for the rest.

Sources: AdamW, Loshchilov and Hutter 2017, arXiv:1711.05101; Muon, Jordan et al. 2024 (kellerjordan.github.io), at the
rates of AdamW by Liu et al. 2025, arXiv:2502.16982; rates that fall with depth, Howard and Ruder 2018,
arXiv:1801.06146.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["OPTIMIZERS", "Muon", "make_optimizer", "set_rates"]

OPTIMIZERS = ("sgd", "adamw", "muon")


class _Eager(torch.optim.Optimizer):
    """The methods of torch's optimizers without their guards against torch.compile.

    The guards import torch._dynamo at the first call, which takes most of a second, and change nothing in eager mode.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class _SGD(_Eager, torch.optim.SGD):
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class _AdamW(_Eager, torch.optim.AdamW):
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class _MatrixMuon(_Eager, torch.optim.Muon):
    step = torch.no_grad()(inspect.unwrap(torch.optim.Muon.step))


class Muon(_Eager):
    """torch's Muon for the groups with `matrix`, its AdamW for the others.

    Muon makes the update of a matrix orthogonal, of a size that lets AdamW's learning rates serve both. A kernel
    (O, I, *) is taken as a matrix (O, I * ...), its columns in the order in which they stand in memory: to
    orthogonality their order is nothing.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float):
        super().__init__(groups, {"lr": lr, "betas": (momentum, 0.99), "weight_decay": 0.0, "matrix": False})
        rest = [group for group in self.param_groups if not group["matrix"]]
        self.rest = _AdamW(rest) if rest else None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of each."""
        if self.rest is not None:  # it works on these very groups and states, also after others were loaded
            self.rest.param_groups = [group for group in self.param_groups if not group["matrix"]]
            self.rest.state = self.state
            self.rest.step()
        for group in self.param_groups:
            if group["matrix"]:
                self._step_matrices(group)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        views = []
        for p in (p for p in group["params"] if p.grad is not None):
            views.append((p, nn.Parameter(_matrix(p.detach(), p))))
            views[-1][1].grad = _matrix(p.grad, p)
        if not views:
            return
        muon = _MatrixMuon(
            [view for _, view in views],
            lr=group["lr"],
            momentum=group["betas"][0],
            weight_decay=group["weight_decay"],
            adjust_lr_fn="match_rms_adamw",
        )
        for p, view in views:
            muon.state[view].update({key: _matrix(value, p) for key, value in self.state[p].items()})
        muon.step()
        for p, view in views:
            self.state[p].update({key: _kernel(value, p) for key, value in muon.state[view].items()})


def _matrix(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` as a matrix, its columns in the order of the memory of `like`, of whose own values it is a view."""
    if tensor.dim() < 3:  # a matrix already, as the states of older checkpoints
        return tensor
    return (tensor.permute(0, 2, 3, 1) if _channels_last(like) else tensor).flatten(1)


def _kernel(matrix: Tensor, like: Tensor) -> Tensor:
    """What `_matrix` made of a tensor shaped as `like`, in that shape again: the same memory."""
    if not _channels_last(like):
        return matrix.view(like.shape)
    out, into, *sizes = like.shape
    return matrix.view(out, *sizes, into).permute(0, 3, 1, 2)


def _channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def make_optimizer(
    network: nn.Module,
    name: str,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    bias_lr_mult: float = 1.0,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """The optimiser of that name; weight decay on weights alone, not on norms and biases.

    Args:
        bias_lr_mult: learning rate of norms and biases over that of weights.
        layer_decay: learning rate of each part of the network (stem, stages, head) over that of the part behind it.

    Each group carries the `factor` that its learning rate is multiplied by: see `set_rates`.
    """
    parts = [part for part in network.children() if any(True for _ in part.parameters())]
    depths: dict[nn.Parameter, int] = {}
    for depth, part in enumerate(parts):
        depths |= dict.fromkeys(part.parameters(), depth)
    trainable_params = [p for p in network.parameters() if p.requires_grad]
    matrices = [p for p in trainable_params if p.dim() > 1]
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for p in trainable_params:
        weight = p.dim() > 1
        group = {
            "weight_decay": weight_decay if weight else 0.0,
            "factor": layer_decay ** (len(parts) - 1 - depths.get(p, len(parts) - 1))
            * (1.0 if weight else bias_lr_mult),
            "matrix": name == "muon" and weight and p is not matrices[-1],  # the rows of a head are no such matrix
        }
        groups.setdefault(tuple(group.values()), {**group, "params": []})["params"].append(p)
    if name == "muon":
        return Muon(list(groups.values()), lr, momentum)
    if name == "adamw":
        return _AdamW(list(groups.values()), lr=lr, betas=(momentum, 0.99))
    return _SGD(list(groups.values()), lr=lr, momentum=momentum, nesterov=momentum > 0)


def set_rates(optimizer: torch.optim.Optimizer, lr: float, momentum: float) -> None:
    """Give every group its share of the learning rate, and the momentum (for AdamW and Muon the first beta)."""
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * lr
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum
