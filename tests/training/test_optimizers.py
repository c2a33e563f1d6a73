import copy

import pytest
import torch
from torch import nn

from skipway.model_factory import create_model
from skipway.training.optimizers import OPTIMIZERS, Muon, make_optimizer, set_rates

RATES = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}


def network():
    torch.manual_seed(0)
    return create_model("resnet20", num_classes=3, in_chans=1, layers=[1, 1], widths=[4, 8])


def backward(net, seed=0):
    torch.manual_seed(seed)
    net.zero_grad()
    net(torch.randn(6, 1, 8, 8)).square().mean().backward()


def test_weight_decay_is_on_weights_alone():
    net = network()
    optimizer = make_optimizer(net, "sgd", **RATES, bias_lr_mult=2.0)
    groups = {(g["weight_decay"], g["factor"]): {id(p) for p in g["params"]} for g in optimizer.param_groups}
    assert set(groups) == {(0.3, 1.0), (0.0, 2.0)}
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            norm_or_bias = isinstance(module, nn.BatchNorm2d) or name == "bias"
            assert id(parameter) in groups[(0.0, 2.0) if norm_or_bias else (0.3, 1.0)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_that_do_not_learn_are_left_out(name):
    net = network()
    next(net.parameters()).requires_grad_(False)
    held = [id(p) for g in make_optimizer(net, name, **RATES).param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "name, momentum, kind, wanted",
    [
        ("sgd", 0.9, torch.optim.SGD, {"nesterov": True, "momentum": 0.9}),
        ("sgd", 0.0, torch.optim.SGD, {"nesterov": False, "momentum": 0.0}),
        ("adamw", 0.8, torch.optim.AdamW, {"betas": (0.8, 0.99)}),
        ("muon", 0.8, Muon, {"betas": (0.8, 0.99)}),
    ],
)
def test_the_optimiser_is_the_one_by_name(name, momentum, kind, wanted):
    optimizer = make_optimizer(network(), name, lr=0.1, momentum=momentum, weight_decay=0.0)
    assert isinstance(optimizer, kind) and wanted.items() <= optimizer.param_groups[0].items()


def test_rates_fall_with_depth():
    net = network()
    optimizer = make_optimizer(net, "sgd", **RATES, bias_lr_mult=3.0, layer_decay=0.5)
    set_rates(optimizer, 1.0, 0.7)
    found = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for place, part in enumerate(("head", "stage2", "stage1", "stem")):
        for p in getattr(net, part).parameters():
            assert found[id(p)] == 0.5**place * (1.0 if p.dim() > 1 else 3.0)
    assert {g["momentum"] for g in optimizer.param_groups} == {0.7}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_steps_and_states_are_those_of_torch_s_own_class(name):
    mine, theirs = network(), network()
    optimizer = make_optimizer(mine, name, **RATES)
    groups = [
        {"params": [q for p in group["params"] for k, q in theirs.named_parameters() if p is mine.get_parameter(k)]}
        | {"weight_decay": group["weight_decay"]}
        for group in optimizer.param_groups
    ]
    options = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {"betas": (0.9, 0.99), "fused": True}
    wanted = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name](groups, lr=0.1, **options)
    for k in range(4):
        for net, steps in ((mine, optimizer), (theirs, wanted)):
            backward(net, k)
            steps.step()
        if k == 1:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.zero_grad()
    assert all(p.grad is None for p in mine.parameters())
    assert all(torch.equal(p, q) for p, q in zip(mine.parameters(), theirs.parameters(), strict=True))
    states = [list(o.state_dict()["state"].values()) for o in (optimizer, wanted)]
    assert all(v.equal(b[k]) for a, b in zip(*states, strict=True) for k, v in a.items())


def reference(net, steps, lr, momentum):
    """What torch's own two optimisers do with the same network, its kernels as matrices."""
    kernels = [p for p in net.parameters() if p.dim() > 1 and p is not net.head.weight]
    matrices = [nn.Parameter(p.detach().flatten(1).clone()) for p in kernels]
    rest = [p for p in net.parameters() if not any(p is k for k in kernels)]
    muon = torch.optim.Muon(matrices, lr, 0.3, momentum, adjust_lr_fn="match_rms_adamw")
    decays = [{"params": [p for p in rest if (p.dim() > 1) == w], "weight_decay": 0.3 * w} for w in (True, False)]
    adamw = torch.optim.AdamW(decays, lr, (momentum, 0.99))
    for k in range(steps):
        backward(net, k)
        for kernel, matrix in zip(kernels, matrices, strict=True):
            matrix.grad = kernel.grad.flatten(1)
        muon.step()
        adamw.step()
        for kernel, matrix in zip(kernels, matrices, strict=True):
            kernel.data.copy_(matrix.view_as(kernel))
    return net


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_is_torch_s_for_kernels_as_matrices_and_adamw_for_the_rest(layout):
    net = network().to(memory_format=layout)
    wanted = reference(copy.deepcopy(net), 3, 0.01, 0.9)
    optimizer = make_optimizer(net, "muon", lr=0.01, momentum=0.9, weight_decay=0.3)
    for k in range(3):
        backward(net, k)
        set_rates(optimizer, 0.01, 0.9)
        optimizer.step()
    for (name, p), q in zip(net.named_parameters(), wanted.parameters(), strict=True):
        assert torch.allclose(p, q, atol=2e-3), name  # torch orthogonalises in bfloat16, in another order of columns


def test_muon_makes_the_update_of_a_kernel_orthogonal():
    net = network()
    kernel = next(p for p in net.stem.parameters() if p.dim() == 4)
    before = kernel.detach().clone()
    optimizer = make_optimizer(net, "muon", lr=0.01, momentum=0.9, weight_decay=0.0)
    backward(net)
    optimizer.step()
    sizes = torch.linalg.svdvals((kernel.detach() - before).flatten(1))
    assert sizes.max() / sizes.min() < 2.5


def test_a_parameter_without_a_gradient_is_left_alone():
    net = network()
    before = copy.deepcopy(net.state_dict())
    optimizer = make_optimizer(net, "muon", **RATES)
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_hooks_of_torch_run_and_change_no_step():
    """AdamW steps without the hooks of torch as long as there are none."""

    def weights_after(hook):
        net = network()
        optimizer = make_optimizer(net, "adamw", **RATES)
        if hook is not None:
            optimizer.register_step_post_hook(hook)
        for k in range(3):
            backward(net, k)
            optimizer.step()
        return [*net.parameters(), *(state["step"] for state in optimizer.state.values())]

    calls = []
    hooked = weights_after(lambda *_: calls.append(1))
    assert calls == [1, 1, 1]
    for a, b in zip(hooked, weights_after(None), strict=True):
        torch.testing.assert_close(a, b)


def test_a_parameter_that_gets_gradients_later_starts_then():
    net = network()
    head, *_ = [p for p in reversed(list(net.parameters())) if p.dim() > 1]
    optimizer = make_optimizer(net, "adamw", **RATES)
    for k in range(3):
        backward(net, k)
        if k == 0:
            head.grad = None
        optimizer.step()
    assert optimizer.state[head]["step"] == 2
    assert {float(optimizer.state[p]["step"]) for p in net.parameters() if p is not head} == {3.0}
