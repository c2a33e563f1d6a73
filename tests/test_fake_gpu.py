"""The fake GPU refuses what CUDA refuses, computes what the CPU computes, and counts by line."""

import copy
import inspect
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from fake_gpu import OUTSIDE, Copy, DeviceTensor, Sync, fake_gpu
from processes import run
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

HERE = Path(__file__)
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu"


@pytest.fixture
def gpu():
    with fake_gpu(HERE) as gpu:
        yield gpu


def lines(counts):
    """Return {stripped source of a line: its count}."""
    source = HERE.read_text(encoding="utf-8").splitlines()
    return {source[int(key.line.rsplit(":", 1)[1]) - 1].strip(): count for key, count in counts.items()}


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(64),
        nn.Linear(64, 5),
    )


def trained(device, make_optimizer, steps=3, channels_last=False, ema=False, precision=None):
    """Return the tensors of a network after a few steps on random batches."""
    layout = torch.channels_last if channels_last else torch.preserve_format
    model = network().to(device=device, memory_format=layout)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True) if ema else None
    optimizer = make_optimizer(model.parameters())
    generator = torch.Generator().manual_seed(2)
    for step in range(steps):
        torch.manual_seed(step)
        x = torch.randn(6, 3, 8, 8, generator=generator).to(device, memory_format=layout)
        y = torch.randint(5, (6,), generator=generator).to(device)
        with torch.autocast(device, precision, enabled=precision is not None):
            loss = F.cross_entropy(model(x), y, label_smoothing=0.1)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average is not None:
            average.update_parameters(model)
    return {name: value.cpu() for name, value in (average or model).state_dict().items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[name]) for name, value in left.items())


# What CUDA refuses


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, cpu: x + cpu,
        lambda x, cpu: cpu * x,
        lambda x, cpu: x.add_(cpu),
        lambda x, cpu: cpu.add_(x),
        lambda x, cpu: cpu.sum().add_(x.sum()),
        lambda x, cpu: torch.cat([x, cpu]),
        lambda x, cpu: torch.add(x, x, out=cpu),
        lambda x, cpu: torch.where(x > 0, x, cpu),
        lambda x, cpu: cpu @ x.T,
        lambda x, cpu: F.linear(x, cpu),
        lambda x, cpu: cpu[x.argmax(0)],
        lambda x, cpu: x.index_put_((torch.arange(2),), cpu),
        lambda x, cpu: torch._foreach_add_([x], [cpu]),
        lambda x, cpu: F.batch_norm(x, cpu[0], cpu[0].exp()),
        lambda x, cpu: x.sum() + cpu,
    ],
)
def test_tensors_of_two_devices_are_refused(gpu, mix):
    with pytest.raises(RuntimeError, match=MIXED):
        mix(torch.ones(2, 3, device="cuda"), torch.ones(2, 3))


def test_a_module_on_the_device_refuses_inputs_of_the_host(gpu):
    with pytest.raises(RuntimeError, match=MIXED):
        network().to("cuda")(torch.ones(2, 3, 8, 8))


def test_scalars_of_the_host_and_indices_from_anywhere_are_taken(gpu):
    x = torch.arange(6.0, device="cuda").view(2, 3)
    assert (x + torch.tensor(1.0)).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert x[torch.tensor([1])].tolist() == [[3, 4, 5]]
    x[:, 0] = torch.tensor(9.0)
    assert x[:, 0].tolist() == [9, 9]


@pytest.mark.parametrize("read", [lambda x: x.numpy(), np.asarray, np.array, lambda x: x.__array__()])
def test_numpy_does_not_read_the_device(gpu, read):
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        read(torch.ones(3, device="cuda"))


def test_parameters_on_the_device_are_not_read_by_numpy_either(gpu):
    layer = nn.Linear(2, 2).to("cuda")
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        layer.weight.detach().numpy()
    assert layer.weight.numpy(force=True).shape == (2, 2)


def test_no_host_pointer_is_given(gpu):
    with pytest.raises(RuntimeError, match="data_ptr"):
        torch.ones(3, device="cuda").data_ptr()


def test_only_the_first_device_is_there(gpu):
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.ones(3, device="cuda:1")


def test_a_generator_of_the_host_does_not_draw_on_the_device(gpu):
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
        torch.randn(3, device="cuda", generator=torch.Generator())


def test_a_device_tensor_is_not_pinned(gpu):
    with pytest.raises(RuntimeError, match="cannot pin"):
        torch.ones(3, device="cuda").pin_memory()


# What it looks like


def test_every_way_to_the_device_leads_to_it(gpu):
    made = [
        torch.ones(3, device="cuda"),
        torch.ones(3, device=torch.device("cuda")),
        torch.ones(3).to("cuda:0"),
        torch.ones(3).cuda(),
        torch.tensor([1.0, 1, 1], device="cuda"),
        torch.as_tensor(np.ones(3, np.float32), device="cuda"),
        torch.ones(3).to(torch.empty(0, device="cuda")),
        torch.empty(0, device="cuda").new_tensor([1.0, 1, 1]),
        torch.empty(3, device="cuda").fill_(1),
        torch.ones_like(torch.empty(3), device="cuda"),
    ]
    for x in made:
        assert isinstance(x, DeviceTensor) and x.is_cuda and x.device == torch.device("cuda", 0)
        assert x.tolist() == [1, 1, 1] and x.dtype == torch.float32
    for x in (made[0].cpu(), made[0].to("cpu"), torch.ones_like(made[0], device="cpu")):
        assert type(x) is torch.Tensor and x.device.type == "cpu"
    assert "device='cuda:0'" in repr(made[0])


def test_inference_mode_is_no_exception(gpu):
    with torch.inference_mode():
        x = torch.ones(2, 3).to("cuda")
        assert F.linear(x, x).device.type == "cuda" and x.to("cpu").device.type == "cpu"
        assert torch.ones(3).to(torch.device("cuda"), torch.float64).is_cuda
        with pytest.raises(RuntimeError, match=MIXED):
            F.linear(x, torch.ones(2, 3))


def test_cuda_is_there_only_inside_the_context():
    before = torch.cuda.is_available(), torch.cuda.device_count(), torch.autocast.__init__, torch.cuda.get_rng_state
    with fake_gpu() as gpu:
        assert torch.cuda.is_available() and torch.cuda.device_count() == 1
        assert torch.cuda.is_bf16_supported(including_emulation=False)
        assert torch.cuda.get_device_name() == "Fake GPU"
        with pytest.raises(RuntimeError, match="already active"), fake_gpu():
            pass
        x = torch.ones(3, device="cuda")
    after = torch.cuda.is_available(), torch.cuda.device_count(), torch.autocast.__init__, torch.cuda.get_rng_state
    assert before == after
    assert type(torch.ones(3)) is torch.Tensor and gpu.kernels == 1
    assert (x + 1).cpu().tolist() == [2, 2, 2] and gpu.kernels == 1  # a tensor that was kept is as readable as before


def test_an_error_inside_restores_everything():
    with pytest.raises(ValueError), fake_gpu():
        raise ValueError
    assert torch._C._len_torch_dispatch_stack() == torch._C._len_torch_function_stack() == 0
    with fake_gpu():
        assert torch.cuda.is_available()


def test_no_accelerator_is_left_outside():
    with fake_gpu():
        pass
    assert not isinstance(torch.ones(2), DeviceTensor)
    torch.manual_seed(3)
    with torch.random.fork_rng():
        drawn = torch.rand(2)
    assert torch.rand(2).equal(drawn)
    if not torch.cuda.is_available():
        assert not torch.accelerator.is_available()


# Tensors that share memory, and those that are written to


def test_in_place_and_out_variants_return_the_very_tensor(gpu):
    x, out = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
    assert x.add_(1) is x and x.tolist() == [2, 2, 2]
    assert torch.add(x, x, out=out) is out and out.tolist() == [4, 4, 4]
    values, places = torch.zeros(1, device="cuda"), torch.zeros(1, device="cuda", dtype=torch.long)
    result = torch.max(torch.tensor([[1.0, 7.0]], device="cuda"), 1, out=(values, places))
    assert result[0] is values and result[1] is places and (values.item(), places.item()) == (7, 1)
    torch._foreach_mul_([x, out], 2)
    assert x.tolist() == [4, 4, 4] and out.tolist() == [8, 8, 8]


def test_views_share_memory(gpu):
    x = torch.zeros(2, 3, device="cuda")
    x[0] = 1
    x.view(-1)[1].add_(5)
    x.T[2].copy_(torch.tensor([7.0, 8.0]))
    assert x.tolist() == [[1, 6, 7], [0, 0, 8]]
    assert x[0].untyped_storage()._cdata == x.untyped_storage()._cdata != x.clone().untyped_storage()._cdata
    assert x.unsqueeze_(0).shape == (1, 2, 3) and x.transpose_(1, 2).shape == (1, 3, 2) and x.stride() == (6, 1, 3)
    x.data = torch.ones(4, device="cuda")
    assert x.shape == (4,) and x.tolist() == [1, 1, 1, 1]


def test_layouts_are_kept(gpu):
    x = torch.ones(2, 3, 4, 4).to(device="cuda", memory_format=torch.channels_last)
    assert x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    conv = nn.Conv2d(3, 5, 3).to(device="cuda", memory_format=torch.channels_last)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert conv(x).is_contiguous(memory_format=torch.channels_last)


# Numbers


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-3, nesterov=True, foreach=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-3, foreach=False),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
        lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
        lambda p: torch.optim.AdamW(p, 0.01, foreach=False),
        lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    ],
    ids=["sgd-foreach", "sgd", "sgd-fused", "adamw-foreach", "adamw", "adamw-fused"],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_training_is_that_of_the_cpu_to_the_bit(gpu, make_optimizer, channels_last):
    options = {"channels_last": channels_last, "ema": True}
    assert_same(trained("cuda", make_optimizer, **options), trained("cpu", make_optimizer, **options))


def test_optimizers_start_kernels_for_all_parameters_at_once_as_on_cuda(gpu):
    def kernels(foreach):
        parameters = [torch.ones(2, device="cuda", requires_grad=True) for _ in range(9)]
        for p in parameters:
            p.grad = torch.ones(2, device="cuda")
        gpu.reset()
        torch.optim.SGD(parameters, 0.1, foreach=foreach).step()
        return gpu.kernels

    assert kernels(None) == kernels(True) < kernels(False)


def test_autocast_chooses_precisions_as_cuda_does(gpu):
    model = network().to("cuda")
    x, y = torch.randn(6, 3, 8, 8, device="cuda"), torch.zeros(6, dtype=torch.long, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16
        hidden = model[0](x)
        outputs = model(x)
        loss = F.cross_entropy(outputs, y)
        assert (hidden.dtype, outputs.dtype, loss.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
        assert outputs.softmax(1).dtype == model[6](outputs.new_ones(2, 64)).dtype == torch.float32
        assert (outputs @ outputs.T).dtype == torch.bfloat16 and torch.cat([x, hidden], 1).dtype == torch.float32
        with torch.autocast("cuda", enabled=False):
            assert model[0](x).dtype == torch.float32
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert not torch.is_autocast_enabled("cuda")


def test_training_in_bf16_is_close_to_that_in_fp32(gpu):
    def sgd(parameters):
        return torch.optim.SGD(parameters, 0.01)

    half, full = (trained("cuda", sgd, precision=precision) for precision in (torch.bfloat16, None))
    assert any(not half[name].equal(full[name]) for name in full)
    assert all(torch.allclose(half[name].float(), full[name].float(), atol=0.02) for name in full)


def test_the_device_has_random_numbers_of_its_own(gpu):
    torch.manual_seed(5)
    first, host = torch.rand(3, device="cuda"), torch.rand(3)
    state = torch.cuda.get_rng_state()
    second = torch.rand(3, device="cuda")
    torch.cuda.set_rng_state(state)
    assert torch.rand(3, device="cuda").cpu().equal(second.cpu()) and not first.cpu().equal(second.cpu())
    torch.manual_seed(5)
    assert torch.rand(3).equal(host) and torch.rand(3, device="cuda").cpu().equal(first.cpu())
    with torch.random.fork_rng(devices=[0], device_type="cuda"):
        drawn = torch.rand(3, device="cuda")
    assert torch.rand(3, device="cuda").cpu().equal(drawn.cpu())
    torch.cuda.manual_seed_all(5)
    assert F.dropout(torch.ones(8, device="cuda"), 0.5).device.type == "cuda"


def test_gradients_of_custom_functions_and_second_ones(gpu):
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * gradient

    x = torch.tensor([2.0, 3.0], device="cuda", requires_grad=True)
    (first,) = torch.autograd.grad(Cube.apply(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert first.tolist() == [12, 27] and second.tolist() == [12, 18]


# Modules


def test_parameters_stay_the_same_objects_on_their_way_to_the_device(gpu):
    model = network()
    parameters = list(model.parameters())
    known = weakref.ref(parameters[0])
    model.to("cuda")
    assert known() is parameters[0]
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(isinstance(p, nn.Parameter) and p.is_cuda and p.requires_grad for p in parameters)


def test_state_dicts_go_both_ways(gpu):
    device, host = network().to("cuda"), nn.Sequential(*network())
    nn.init.zeros_(host[7].weight)
    device.load_state_dict(host.state_dict())
    assert device[7].weight.is_cuda and device[7].weight.abs().sum().item() == 0
    nn.init.ones_(device[7].weight)
    host.load_state_dict(device.state_dict())
    assert host[7].weight.device.type == "cpu" and host[7].weight.eq(1).all()


def test_copies_of_modules_are_independent(gpu):
    model = network().to("cuda")
    model(torch.ones(2, 3, 8, 8, device="cuda")).sum().backward()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.zero_()
    assert isinstance(twin[0].weight, nn.Parameter) and model[0].weight.abs().sum().item() > 0
    assert twin[0].weight.grad.cpu().equal(model[0].weight.grad.cpu())
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model[0].weight * 2)


def test_safetensors_hold_what_was_on_the_device(gpu, tmp_path):
    model = network().to("cuda")
    safetensors.torch.save_file({k: v.cpu() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert_same(tensors, {name: value.cpu() for name, value in model.state_dict().items()})


# Counts


def step(model, x, y):
    x = x.to("cuda")
    y = y.to("cuda", non_blocking=True)
    loss = F.cross_entropy(model(x), y)
    if torch.isfinite(loss):
        loss.backward()
    return loss.item()


def test_copies_and_synchronizations_are_counted_by_line(gpu):
    model, x, y = network().to("cuda"), torch.ones(6, 3, 8, 8).pin_memory(), torch.zeros(6, dtype=torch.long)
    gpu.reset()
    for _ in range(3):
        step(model, x, y)
    assert lines(gpu.copies) == {'x = x.to("cuda")': 3, 'y = y.to("cuda", non_blocking=True)': 3}
    assert lines(gpu.syncs) == {'x = x.to("cuda")': 3, "if torch.isfinite(loss):": 3, "return loss.item()": 3}
    pinned, pageable = sorted(gpu.copies, reverse=True, key=lambda c: c.pinned)
    assert pinned == Copy("H2D", True, False, pinned.line) and pageable == Copy("H2D", False, True, pageable.line)
    assert gpu.kernels > 3 * len(model)


@pytest.mark.parametrize(
    ("wait", "reason"),
    [
        (lambda x: x.sum().item(), "item"),
        (lambda x: bool(x.sum()), "item"),
        (lambda x: float(x.sum()), "item"),
        (lambda x: int(x.sum()), "item"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: torch.where(x > 1), "nonzero"),
        (lambda x: x.masked_select(x > 1), "masked_select"),
        (lambda x: x[x > 1], "boolean index"),
        (lambda x: x.index_put_((x > 1,), torch.ones(1, device="cuda")), "boolean index"),
        (lambda x: x.unique(), "_unique2"),
        (lambda x: x.equal(x), "equal"),
        (lambda x: torch.allclose(x, x), "allclose"),
        (lambda x: x.cpu(), "copy D2H"),
        (lambda x: x.tolist(), "copy D2H"),
        (lambda x: torch.empty(4).copy_(x), "copy D2H"),
        (lambda x: torch.empty(4).copy_(x, non_blocking=True), "copy D2H"),
        (lambda x: x.copy_(torch.ones(4)), "copy H2D"),
        (lambda x: torch.tensor([1.0], device="cuda"), "copy H2D"),
        (lambda x: x[torch.tensor([1])], "copy H2D"),
        (lambda x: torch.cuda.synchronize(), "synchronize"),
    ],
)
def test_what_waits_for_the_device(gpu, wait, reason):
    x = torch.arange(4.0).to("cuda")
    gpu.reset()
    wait(x)
    assert {(s.reason, count) for s, count in gpu.syncs.items()} == {(reason, 1)}


@pytest.mark.parametrize(
    "go",
    [
        lambda x: x + 1,
        lambda x: x.masked_fill(x > 1, 0.0),
        lambda x: x.__setitem__(x > 1, 0.0),
        lambda x: x[1:3].clamp(0, 1),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: torch.empty(4).pin_memory().copy_(x, non_blocking=True),
        lambda x: x.copy_(torch.ones(4), non_blocking=True),
        lambda x: torch.full((4,), 2.0, device="cuda"),
        lambda x: x.shape[0] and x.dtype and x.device and x.is_contiguous(),
    ],
)
def test_what_does_not_wait(gpu, go):
    x = torch.arange(4.0).to("cuda")
    gpu.reset()
    go(x)
    assert not gpu.syncs


def test_views_and_allocations_start_no_kernels(gpu):
    x = torch.ones(4, 4, device="cuda")
    gpu.reset()
    torch.empty_like(x.view(-1)[2:].detach())
    assert gpu.kernels == 0
    x.add_(1).mul(2)
    assert gpu.kernels == 2


def test_what_other_code_causes_is_counted_outside():
    with fake_gpu() as gpu:
        torch.ones(3).to("cuda").sum().item()
    assert gpu.copies == {Copy("H2D", False, False, OUTSIDE): 1}
    assert gpu.syncs == {Sync("copy H2D", OUTSIDE): 1, Sync("item", OUTSIDE): 1}


def test_lines_of_the_package_are_known_by_their_path():
    from skipway.training.losses import Classification

    with fake_gpu() as gpu:
        Classification().metric_sum(torch.eye(3, device="cuda"), torch.arange(3, device="cuda"))
    assert [s.line.split(":")[0] for s in gpu.syncs] == [str(Path("training", "losses.py"))]


def trained_on_the_host():
    """Return the first weights of a network after a few steps, to the bit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    return [value.hex() for value in model[0].weight.flatten().tolist()]


def test_a_process_that_knows_the_device_computes_as_one_that_does_not():
    """Check that the backend, which all tests of a process share, changes nothing outside its context."""
    code = "import torch\nfrom torch import nn\n" + inspect.getsource(trained_on_the_host)
    code += "print(hasattr(torch, 'fgpu'), *trained_on_the_host())"
    command = [sys.executable, "-W", "error", "-c", code]
    registered, *weights = run(*command, check=True).stdout.split()
    with fake_gpu():
        pass
    assert registered == "False" and hasattr(torch, "fgpu")
    assert weights == trained_on_the_host()
