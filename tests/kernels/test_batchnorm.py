import copy
import itertools
import types

import pytest
import torch
from processes import environment, run_python
from torch import nn
from torch.autograd import forward_ad

import skipway as sw
from skipway.errors import InputError
from skipway.kernels import batchnorm
from skipway.kernels.batchnorm import BATCH_NORM as NORM
from skipway.kernels.build import has_openmp
from skipway.kernels.conv import CONV
from skipway.kernels.layer_dispatch import kernel_status

needs_compiler = pytest.mark.skipif(
    not has_openmp() or kernel_status() != "on", reason=f"kernels are {kernel_status()}"
)


@pytest.fixture(autouse=True)
def also_in_float32(monkeypatch):
    """Which is not the default, but where errors are seen that rounding to bfloat16 hides."""
    monkeypatch.setattr(batchnorm, "_DTYPES", (torch.bfloat16, torch.float32))


def random_image(shape=(4, 6, 5, 3), dtype=torch.float32):
    torch.manual_seed(1)
    return (3 + 2 * torch.randn(shape)).to(dtype).contiguous(memory_format=torch.channels_last)


def norm_of(channels=6, **options):
    torch.manual_seed(2)
    norm = nn.BatchNorm2d(channels, **options)
    if norm.affine:
        nn.init.uniform_(norm.weight, -1, 2)
        nn.init.normal_(norm.bias)
    return norm


def worked(way, norm, x, shortcut, relu, threads=2):
    """Output, gradients of all that has one, and the norm's buffers."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    norm, x = copy.deepcopy(norm), x.detach().clone().requires_grad_()
    shortcut = None if shortcut is None else shortcut.detach().clone().requires_grad_()
    y = way(norm, x, shortcut, nn.ReLU() if relu else None)
    torch.manual_seed(3)
    y.backward(torch.randn(y.shape).to(y.dtype))
    torch.set_num_threads(before)
    leaves = {"x": x, "shortcut": shortcut, **dict(norm.named_parameters())}
    found = {f"gradient of {name}": t.grad for name, t in leaves.items() if t is not None}
    return {"y": y.detach(), **found, **dict(norm.named_buffers())}


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu, joined", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (2, 1, 4, 4), (8, 16, 8, 8), (3, 130, 7, 1), (32, 64, 16, 16)])
def test_outputs_gradients_and_statistics_are_those_of_float64(shape, relu, joined, dtype):
    x, norm = random_image(shape, dtype), norm_of(shape[1])
    shortcut = -random_image(shape, dtype) if joined else None
    assert NORM.fits(norm, x, shortcut, nn.ReLU())
    fast = worked(NORM.fast, norm, x, shortcut, relu)
    plain = worked(NORM.plain, norm, x, shortcut, relu)
    exact = worked(NORM.plain, norm.double(), x.double(), None if shortcut is None else shortcut.double(), relu)
    assert fast.keys() == exact.keys()
    for name, expected in exact.items():
        assert fast[name].dtype == plain[name].dtype and fast[name].shape == expected.shape, name
        far = (fast[name].double() - expected).norm() / expected.double().norm().clamp_min(1e-6)
        of_torch = (plain[name].double() - expected).norm() / expected.double().norm().clamp_min(1e-6)
        assert far <= max(1e-5, 1.2 * of_torch), (name, far, of_torch)


@needs_compiler
@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_norms_of_every_kind_are_borne(options):
    norm, x = norm_of(**options), random_image()
    for _ in range(2):
        fast, plain = (worked(way, norm, x, None, True) for way in (NORM.fast, NORM.plain))
        for name, expected in plain.items():
            torch.testing.assert_close(fast[name], expected, rtol=1e-4, atol=1e-5, msg=name)
        norm(x)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_threads_give_the_same_bits(threads):
    x, norm = random_image((16, 24, 16, 16)), norm_of(24)
    first, second = (worked(NORM.fast, norm, x, x, True, threads) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@needs_compiler
def test_it_can_be_differentiated_twice():
    def twice(way):
        norm, x, shortcut = norm_of(), random_image().requires_grad_(), random_image().requires_grad_()
        (gradient,) = torch.autograd.grad(way(norm, x, shortcut, nn.ReLU()).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        return x.grad, shortcut.grad, norm.weight.grad

    for found, expected in zip(twice(NORM.fast), twice(NORM.plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@needs_compiler
def test_gradients_that_are_not_asked_for_are_not_given():
    x, norm = random_image(), norm_of().requires_grad_(False)
    shortcut = random_image().requires_grad_()
    NORM.fast(norm, x, shortcut, None).sum().backward()  # a gradient that is one number, expanded
    assert x.grad is None and norm.weight.grad is None and torch.equal(shortcut.grad, torch.ones_like(shortcut))


@needs_compiler
def test_what_is_not_a_number_stays_visible():
    x = random_image()
    x[1, 2, 0, 0] = float("nan")
    y = NORM.fast(norm_of(), x, None, nn.ReLU())
    assert y[:, 2].isnan().all() and not y[:, [0, 1, 3, 4, 5]].isnan().any()


def refused():
    x, norm = random_image(), norm_of()
    hooked = norm_of()
    hooked.register_forward_hook(lambda *_: None)
    yield "evaluation", norm_of().eval(), x, None
    yield "layout", norm, x.contiguous(), None
    yield "layout of the shortcut", norm, x, x.contiguous()
    yield "shape of the shortcut", norm, x, x[:, :, :, :1]
    yield "type", norm_of().double(), x.double(), None
    yield "half weights", norm_of().bfloat16(), x.bfloat16(), None
    yield "hooks", hooked, x, None
    yield "meta", norm_of().to("meta"), x.to("meta"), None
    yield "one value", norm_of(), random_image((1, 6, 1, 1)), None
    yield "channels", norm_of(5), x, None


@pytest.mark.parametrize("norm, x, shortcut", [pytest.param(*row[1:], id=row[0]) for row in refused()])
def test_anything_unusual_takes_the_plain_way(norm, x, shortcut):
    assert not NORM.fits(norm, x, shortcut, None)


@needs_compiler
def test_transforms_of_functions_take_the_plain_way():
    norm, x = norm_of(track_running_stats=False), random_image()

    def loss(x):
        return NORM(norm, x, None, nn.ReLU()).square().sum()

    gradient = torch.func.grad(loss)(x)
    torch.testing.assert_close(gradient, torch.autograd.grad(loss(y := x.clone().requires_grad_()), y)[0])
    torch.testing.assert_close(torch.func.vmap(loss)(x[None])[0], loss(x))
    with forward_ad.dual_level():
        assert not NORM.fits(norm, x, None, None)


@needs_compiler
def test_float32_is_left_to_torch_unless_asked_for(monkeypatch):
    monkeypatch.undo()
    assert not NORM.fits(norm_of(), random_image(), None, None)
    assert NORM.fits(norm_of(), random_image(dtype=torch.bfloat16), None, None)


def test_it_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("SKIPWAY_KERNELS", "off")
    assert kernel_status() == "off" and not NORM.fits(norm_of(), random_image(), None, None)
    monkeypatch.setenv("SKIPWAY_KERNELS", "fast")
    with pytest.raises(InputError, match="expected SKIPWAY_KERNELS on or off, got 'fast'. Unset it"):
        kernel_status()


def test_without_a_compiler_only_what_torch_has_is_used(monkeypatch):
    monkeypatch.delenv("SKIPWAY_KERNELS", raising=False)
    monkeypatch.setattr(batchnorm, "_norm_library", lambda: None)
    assert kernel_status() == "on, without a C compiler" and not NORM.fits(norm_of(), random_image(), None, None)
    monkeypatch.setattr("skipway.kernels.layer_dispatch.missing_norm_reason", lambda: "the disk is full")
    assert kernel_status() == "on, without C code: the disk is full"
    assert kernel_status(with_reason=False) == "on, without C code"  # what the bits of a run depend on
    convolution = nn.Conv2d(512, 8, 3, 2, 1, bias=False).to(torch.bfloat16, memory_format=torch.channels_last)
    assert CONV.fits(convolution, random_image((2, 512, 4, 4), torch.bfloat16))
    block = sw.Skip([nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)], after=nn.ReLU())
    assert block(random_image()).shape == (4, 6, 5, 3)


NETWORKS = {
    "resnet20": {"layers": [2, 2], "widths": [8, 16]},
    "resnet50": {"layers": [1, 1], "widths": [8, 16], "stem": "small", "shortcut": "pool"},
    "resnetv2_50": {"layers": [2, 1], "widths": [8, 16], "stem": "small", "drop_path": 0.3},
    "densenet40_12": {"layers": [2, 2]},
    "resnet9": {"widths": [8, 16, 24], "layers": [1, 1]},
    "revnet38": {"layers": [2, 1], "widths": [8, 16]},
}


@needs_compiler
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_learns_the_same_with_them_and_without(name, monkeypatch):
    torch.manual_seed(4)
    network = sw.create_model(name, 5, **NETWORKS[name]).to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.weight.requires_grad:
            nn.init.uniform_(module.weight, 0.5, 1.5)  # no body that begins as zero
    x, calls = random_image((6, 3, 12, 12)), []
    monkeypatch.setattr(batchnorm, "_call", lambda *a, true=batchnorm._call: calls.append(a[0]) or true(*a))
    outcomes = []
    for wish in ("on", "off"):
        monkeypatch.setenv("SKIPWAY_KERNELS", wish)
        own = copy.deepcopy(network)
        torch.manual_seed(5)
        nn.functional.cross_entropy(own(x), torch.arange(6) % 5).backward()
        outcomes.append({n: p.grad for n, p in own.named_parameters()} | dict(own.named_buffers()))
        if wish == "on":
            seen = len(calls)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert seen == len(calls) and calls.count("forward") >= norms - network.plan.get("drop_path", 0) * 10
    for key, expected in outcomes[1].items():
        if expected is not None:
            torch.testing.assert_close(outcomes[0][key], expected, rtol=2e-3, atol=2e-5, msg=key)


@needs_compiler
def test_hooks_inside_a_block_see_what_they_would_see():
    block = sw.Skip([nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)], after=nn.ReLU())
    x, seen = random_image((2, 4, 3, 3)), []
    block(x)
    handles = [m.register_forward_hook(lambda m, i, o: seen.append(type(m).__name__)) for m in block.modules()]
    block(x)
    assert seen == ["Conv2d", "BatchNorm2d", "Chain", "ReLU", "Skip"]
    for handle in handles:
        handle.remove()


@needs_compiler
def test_too_little_memory_is_an_error(monkeypatch):
    functions, data = batchnorm._norm_library(), torch.zeros(4).data_ptr()
    most = 2**58  # channels: no machine has the memory for their sums
    assert functions.forward_float(data, None, 1, most, None, None, 1e-5, 0, 1, data, data) == 0
    assert functions.backward_float(data, data, None, 1, most, data, None, 0, 1, None, None, data, data) == 0
    functions = types.SimpleNamespace(forward_float=lambda *_: 0)
    monkeypatch.setattr(batchnorm, "_norm_library", lambda: functions)
    with pytest.raises(MemoryError, match="cannot normalize a batch: not enough memory for the sums of the channels"):
        batchnorm._call("forward", torch.zeros(4))


_FEWER_THREADS = """
import torch, torch.nn.functional as F, skipway.kernels.batchnorm as batchnorm
from torch import nn
from skipway.kernels.image_ops import NORMALIZE, ZOOM
import numpy as np

torch.set_num_threads(4)
torch.manual_seed(0)
batchnorm._DTYPES = (torch.float32,)
norm, relu = nn.BatchNorm2d(16), nn.ReLU()
x = torch.randn(32, 16, 16, 16).contiguous(memory_format=torch.channels_last)
shortcut = torch.randn_like(x)
assert batchnorm.BATCH_NORM.fits(norm, x, shortcut, relu)
results = []
for layer in (batchnorm.BATCH_NORM.fast, batchnorm.BATCH_NORM.plain):
    for join in (None, shortcut):
        leaf = x.clone().requires_grad_()
        y = layer(norm, leaf, join, relu)
        y.backward(torch.ones_like(y))
        results += [y.detach(), leaf.grad]
for fast, plain in zip(results[:4], results[4:]):
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
half, half_shortcut = x.bfloat16(), shortcut.bfloat16()
for join in (None, half_shortcut):
    fast = batchnorm.BATCH_NORM.fast(norm, half, join, relu)
    torch.testing.assert_close(fast, batchnorm.BATCH_NORM.plain(norm, half, join, relu), rtol=2e-2, atol=2e-2)
pixels = np.random.default_rng(0).integers(0, 256, (9, 40, 40, 3), np.uint8)
boxes = np.tile(np.float32([2, 3, 37, 39]), (9, 1))
arguments = pixels, np.arange(9), boxes, np.zeros(9, bool), 32
assert (ZOOM.fast(*arguments) == ZOOM.plain(*arguments)).all()
batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
factor, offset = torch.rand(1, 3, 1, 1), torch.rand(1, 3, 1, 1)
assert torch.equal(NORMALIZE.fast(batch, factor, offset), NORMALIZE.plain(batch, factor, offset))
print("equal")
"""


@needs_compiler
@pytest.mark.parametrize("limit", [{"OMP_THREAD_LIMIT": "1"}, {"OMP_THREAD_LIMIT": "3"}, {"OMP_DYNAMIC": "true"}])
def test_kernels_are_right_with_fewer_threads_than_they_ask_for(limit):
    done = run_python(_FEWER_THREADS, env=environment(**limit))
    assert done.stdout == "equal\n", done.stderr
