"""Optimizers by name: SGD with Nesterov momentum, AdamW, and Muon (with AdamW for parameters that are not matrices).

Sources: AdamW, Loshchilov and Hutter 2017, arXiv:1711.05101; Muon, Jordan et al. 2024 (kellerjordan.github.io), scaled
to the learning rates of AdamW, Liu et al. 2025, arXiv:2502.16982; layer-wise learning-rate decay, Howard and Ruder
2018, arXiv:1801.06146.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

__all__ = ["OPTIMIZERS", "Muon", "make_optimizer", "set_rates", "step_unless"]

OPTIMIZERS = ("sgd", "adamw", "muon")


class _Eager(torch.optim.Optimizer):
    """Methods of torch.optim.Optimizer without their torch.compile guards.

    The guards import torch._dynamo at the first call, which takes almost 1 second, and have no effect in eager mode.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class _SGD(_Eager, torch.optim.SGD):
    _step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step; `closure` is not supported.

        The fused SGD of torch takes all parameters or none for new, and leaves the momentum of new ones uninitialized
        if the step is skipped. A momentum of zero gives the same step.
        """
        for group in self.param_groups:
            if group["fused"] and group["momentum"]:
                for p in (p for p in group["params"] if p.grad is not None):
                    if self.state[p].get("momentum_buffer") is None:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        self._step()


class _AdamW(_Eager, torch.optim.AdamW):
    # With the profiler and the hooks of torch, which take as long as the step of a small network.
    _hooked_step = torch.optim.Optimizer.profile_hook_step(torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step)))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step; `closure` is not supported.

        For the fused step on a CPU, torch groups the tensors by device and dtype each time, which takes longer than
        the step of a small network. They are of one kind here.
        """
        is_scaled = any(getattr(self, name, None) is not None for name in ("found_inf", "grad_scale"))
        if is_scaled or _has_hooks(self) or not all(map(_is_fused_on_cpu, self.param_groups)):
            self._hooked_step()
            return
        for group in self.param_groups:
            self._step_on_cpu(group)

    step.hooked = True  # type: ignore[attr-defined]  # torch adds the profiler and the hooks unless it is set

    def _step_on_cpu(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        states = [self.state[p] for p in params]
        if not params:
            return
        if not all(states):
            self._init_group(group, *([] for _ in range(6)))
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            params,
            [p.grad for p in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def _has_hooks(optimizer: torch.optim.Optimizer) -> bool:
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return bool(own or _global_optimizer_pre_hooks or _global_optimizer_post_hooks)


def _is_fused_on_cpu(group: dict[str, Any]) -> bool:
    return bool(group["fused"]) and all(p.is_cpu and p.dtype == torch.float32 for p in group["params"])


class _MatrixMuon(_Eager, torch.optim.Muon):
    step = torch.no_grad()(inspect.unwrap(torch.optim.Muon.step))


class Muon(_Eager):
    """Apply torch.optim.Muon to the parameter groups with `matrix`, and AdamW to the others.

    Muon orthogonalizes the update of a matrix and scales it so that the learning rate of AdamW fits both. A kernel
    (O, I, *) is reshaped to a matrix (O, I * ...). Its columns keep their order in memory, which does not affect
    orthogonality.

    Args:
        groups: parameter groups; the optional key `matrix` selects Muon.
        lr: learning rate.
        momentum: momentum of Muon and first beta of AdamW.
        fused: use the fused kernels of AdamW.

    >>> weight = nn.Parameter(torch.ones(2, 3))
    >>> optimizer = Muon([{"params": [weight], "matrix": True}], lr=0.1, momentum=0.9)
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> bool((weight < 1).all())
    True
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float, *, fused: bool = False):
        super().__init__(groups, {"lr": lr, "betas": (momentum, 0.99), "weight_decay": 0.0, "matrix": False})
        rest = [group for group in self.param_groups if not group["matrix"]]
        self.rest = _AdamW(rest, fused=fused) if rest else None
        self.found_inf: Tensor | None = None  # see `step_unless`

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step; `closure` is not supported."""
        if self.rest is not None:  # AdamW shares these groups and states, also after load_state_dict
            self.rest.param_groups = [group for group in self.param_groups if not group["matrix"]]
            self.rest.state = self.state
            step_unless(self.rest, None if self.found_inf is None else self.found_inf > 0)
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
            if self.found_inf is not None:  # a skipped first step must leave a momentum, which torch creates as zero
                muon.state[view].setdefault("momentum_buffer", torch.zeros_like(view))
        with _undone_if(self.found_inf, [t for _, view in views for t in (view.detach(), *muon.state[view].values())]):
            muon.step()
        for p, view in views:
            self.state[p].update({key: _kernel(value, p) for key, value in muon.state[view].items()})


@contextmanager
def _undone_if(found_inf: Tensor | None, tensors: list[Tensor]) -> Iterator[None]:
    """Restore `tensors` when the context ends if `found_inf` is not zero, without waiting for the device."""
    before = [] if found_inf is None else [tensor.clone() for tensor in tensors]
    yield
    if found_inf is not None:
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(torch.where(found_inf > 0, old, tensor))


def _matrix(tensor: Tensor, like: Tensor) -> Tensor:
    """View `tensor` as a matrix, with its columns in the memory order of `like`."""
    if tensor.dim() < 3:  # already a matrix, as in the states of older checkpoints
        return tensor
    return (tensor.permute(0, 2, 3, 1) if _channels_last(like) else tensor).flatten(1)


def _kernel(matrix: Tensor, like: Tensor) -> Tensor:
    """View a matrix in the shape of `like`: the inverse of `_matrix`."""
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
    fused: bool = False,
) -> torch.optim.Optimizer:
    """Create an optimizer. Weight decay applies to weights, not to norms and biases.

    Args:
        network: the parameters that require gradients are optimized.
        name: one of OPTIMIZERS.
        lr: learning rate.
        momentum: momentum of SGD and Muon; first beta of AdamW.
        weight_decay: weight decay.
        bias_lr_mult: learning-rate multiplier of norms and biases.
        layer_decay: learning rate of each child of the network (stem, stages, head) divided by that of the next one.
        fused: use the fused kernels of torch, whose steps `step_unless` can skip on the device.

    Returns:
        The optimizer. Each parameter group has a `factor` by which `set_rates` multiplies the learning rate.

    >>> optimizer = make_optimizer(nn.Linear(4, 2), "sgd", lr=0.1, momentum=0.9, weight_decay=5e-4)
    >>> [group["weight_decay"] for group in optimizer.param_groups]
    [0.0005, 0.0]
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
            "matrix": name == "muon" and weight and p is not matrices[-1],  # Muon is not suited to the head
        }
        groups.setdefault(tuple(group.values()), {**group, "params": []})["params"].append(p)
    if name == "muon":
        return Muon(list(groups.values()), lr, momentum, fused=fused)
    if name == "adamw":
        on_cpu = all(p.device.type == "cpu" and type(p) is nn.Parameter for p in trainable_params)
        return _AdamW(list(groups.values()), lr=lr, betas=(momentum, 0.99), fused=fused or on_cpu)
    return _SGD(list(groups.values()), lr=lr, momentum=momentum, nesterov=momentum > 0, fused=fused)


def step_unless(optimizer: torch.optim.Optimizer, skip: Tensor | None) -> None:
    """Take a step unless `skip` is true, without waiting for the device.

    Args:
        optimizer: result of `make_optimizer`, with `fused` if `skip` is a tensor.
        skip: boolean scalar on the device; None always takes the step.
    """
    if skip is None:
        optimizer.step()
        return
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined]  # as torch.amp.GradScaler does
    try:
        optimizer.step()
    finally:
        optimizer.found_inf = None  # type: ignore[attr-defined]


def set_rates(optimizer: torch.optim.Optimizer, lr: float, momentum: float) -> None:
    """Set the learning rate, times the factor of each group, and the momentum (the first beta for AdamW and Muon)."""
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * lr
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum
