"""Runs on a GPU: a real one if the machine has one, else the fake one.

The fake GPU finds code that mixes devices or reads device memory on the host; `fake_gpu.py` lists what it simplifies.
How these runs behave on a real GPU was not measured when they were written.
"""

import copy
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from fake_gpu import FakeGpu, fake_gpu
from image_folders import decoded_noise
from PIL import Image
from shrunken import SIZE, kinds, shrunken, shrunken_plan
from small_runs import QUICK, StopAt, Words, image_folder, numbers, quick, same_runs, same_tensors, train
from table_files import homes, written
from torch import nn

import skipway as sw
from skipway.commands.find_lr import find_lr
from skipway.commands.probe import probe_run
from skipway.data.image_spec import Spec
from skipway.data.images.loader import Augmentation, ImageBatches
from skipway.errors import InputError, Interrupted
from skipway.export import fuse, program
from skipway.probe import batches_accuracy, batches_loss, flow, landscape, lesion
from skipway.runs.recipe import UNUSED_BY_FIND_LR
from skipway.runs.run_plots import draw_augmented
from skipway.training import trainer
from skipway.training.lr_finder import range_test
from skipway.utils import devices

pytestmark = pytest.mark.usefixtures("one_thread")

REAL = torch.cuda.is_available()
POLLS = 1 + 30  # of the stop flag before the first step: one at the start, one for each image
SHORT = {"epochs": 1, "batch_size": 8}


@pytest.fixture
def device():
    """Provide "cuda": the real device or the fake one."""
    if REAL:
        yield "cuda"
        return
    with fake_gpu():
        yield "cuda"


@pytest.fixture
def fake():
    """Provide the fake device, whose numbers are the CPU's."""
    if REAL:
        pytest.skip("a real GPU rounds differently")
    with fake_gpu() as gpu:
        yield gpu


@pytest.fixture
def fused(monkeypatch):
    """Use the fused optimizers of the device on the CPU too; they round differently."""
    create = trainer.make_optimizer
    monkeypatch.setattr(trainer, "make_optimizer", lambda *args, **kwargs: create(*args, **{**kwargs, "fused": True}))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("gpu") / "data", count=10)


@pytest.fixture(scope="module")
def homes_csv(tmp_path_factory):
    return written(tmp_path_factory.mktemp("gpu") / "homes.csv", homes())


@pytest.fixture
def small(device):
    """Provide a small network on the device, with a batch on the host."""
    torch.manual_seed(0)
    network = sw.create_model("resnet20", num_classes=3, in_chans=1, layers=[1, 1, 1]).to(device)
    return network, torch.randn(6, 1, 8, 8), torch.arange(6) % 3


class Speckle(nn.Module):
    """A transform with parameters and random numbers of its own."""

    def __init__(self):
        super().__init__()
        self.amount = nn.Parameter(torch.tensor([0.1]), requires_grad=False)

    def forward(self, x):
        return x + self.amount * torch.randn_like(x)


# Runs

RUNS = {
    "bf16": {"precision": "bf16", "recompute": "stages", "tta": True, "watch": True},
    "fp16": {"precision": "fp16", "grow": "resnet20:1,resnet32:1", "model": "auto", "epochs": 2},
    "adamw": {"optimizer": "adamw", "transform": Speckle(), "l1": 1e-5, "l2": 1e-5, "grad_accum_steps": 2},
    "muon": {"optimizer": "muon", "freeze_epochs": 1, "layer_decay": 0.5, "balance": "weights", "recompute": 2},
    "whitening": {"model": "resnet9", "img_size": "8:16", "ema": 0.9},
    "dense": {"model": "densenet40_12", "dropout": 0.1, "balance": "sampling"},
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_an_image_run(device, data, tmp_path, options):
    run = quick(data, tmp_path, **{**SHORT, **options})
    assert numbers(run.path)["resolved"]["device"] == "cuda"
    assert np.isfinite(run.metrics["val_loss"]) and (run.path / "report.html").exists()
    assert sw.load(run.path).predict([np.zeros((8, 8), np.uint8)])[0] in ("ant", "bee", "cow")


@pytest.mark.parametrize("target", ["dear", "price"])
def test_a_table_run(device, homes_csv, tmp_path, target):
    run = train(homes_csv, target=target, output=tmp_path, epochs=2, ema=0.9, watch=True, device=device)
    assert numbers(run.path)["resolved"]["device"] == "cuda"
    rows = pd.read_csv(homes_csv)
    host, moved = sw.load(run.path), sw.load(run.path).to(device)
    outputs = [n.predict_proba(rows) if target == "dear" else n.predict(rows) for n in (host, moved)]
    assert np.allclose(*outputs, rtol=1e-4, atol=1e-4)
    assert sw.evaluate(moved, homes_csv).count == sw.evaluate(run.path, homes_csv).count


def test_a_resumed_run_is_that_of_a_straight_one(device, data, tmp_path):
    options = {"ema": 0.9, "dropout": 0.2, "optimizer": "adamw"}
    straight = quick(data, tmp_path, name="straight", **options)
    with pytest.raises(Interrupted):
        quick(data, tmp_path, name="cut", stop=StopAt(POLLS + 3), **options)
    assert same_runs(straight.path, train(resume=tmp_path / "cut").path)


def test_a_run_that_grows(device, data, tmp_path):
    run = quick(data, tmp_path, model="auto", grow="resnet20:1,resnet32:1", ema=0.9)
    assert run.metrics["grown"][0]["to"]["name"] == "resnet32" and run.metrics["grown"][0]["difference"] < 1e-3


def test_a_run_has_the_weights_that_it_has_on_the_cpu(fake, fused, data, tmp_path, monkeypatch):
    monkeypatch.setenv("SKIPWAY_KERNELS", "off")
    options = {"ema": 0.9, "dropout": 0.2, "mixup": 0.2, "cutmix": 1.0, "augment": "strong", "clip_grad": 1.0}
    device = quick(data, tmp_path, **options)
    assert fake.kernels > 1000 and any(sync.line.startswith("training") for sync in fake.syncs)
    fake.reset()
    host = quick(data, tmp_path, device="cpu", **options)
    assert fake.kernels == 0
    assert same_runs(device.path, host.path)


def test_a_run_of_a_table_has_the_weights_that_it_has_on_the_cpu(fake, fused, homes_csv, tmp_path):
    device, host = (
        train(homes_csv, target="dear", output=tmp_path, epochs=2, device=device) for device in ("cuda", "cpu")
    )
    assert same_runs(device.path, host.path)


def test_images_that_do_not_fit_on_the_device_give_the_same_run(fake, data, tmp_path, monkeypatch):
    options = {**SHORT, "augment": "strong", "img_size": "4:8"}
    kept = quick(data, tmp_path, **options)
    assert any("device_pixels" in sync.line for sync in fake.syncs)
    fake.reset()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 2**33))
    copied = quick(data, tmp_path, **options)
    assert not any("device_pixels" in sync.line for sync in fake.syncs)
    assert any("device_copy" in copy.line for copy in fake.copies)
    assert same_runs(kept.path, copied.path)


def test_the_rate_that_is_found(device, data, monkeypatch):
    monkeypatch.setattr("skipway.commands.find_lr.range_test", partial(range_test, steps=12))
    assert (
        1e-6
        < find_lr(data, **{key: value for key, value in QUICK.items() if key not in UNUSED_BY_FIND_LR}).suggestion
        < 10
    )


@pytest.fixture
def without_float64(fake, monkeypatch):
    """Provide a fake device that refuses float64, as MPS does."""
    monkeypatch.setattr(devices, "_WITHOUT_FLOAT64", ("cuda",))
    fake.has_float64 = False
    return fake


@pytest.mark.parametrize("name", ["whitening", "bf16", "muon"])
def test_an_image_run_without_float64(without_float64, data, tmp_path, name):
    run = quick(data, tmp_path, **{**SHORT, **RUNS[name]})
    assert sw.evaluate(run.path, data).count and sw.predict(run.path, [data / "ant"])
    assert probe_run(run.path, only=("flow", "lesion"), samples=8).plots


@pytest.mark.parametrize("target", ["dear", "price"])
def test_a_table_run_without_float64(without_float64, homes_csv, tmp_path, target):
    run = train(homes_csv, target=target, output=tmp_path, epochs=1, watch=True, device="cuda", lr="auto")
    expected = sw.evaluate(run.path, homes_csv)
    moved = sw.evaluate(run.path, homes_csv, device="cuda")
    assert moved.loss == pytest.approx(expected.loss, rel=1e-5)
    wide = sw.load(run.path).double()
    with pytest.raises(InputError, match="cannot use --device cuda: expected a model in float32, got one in float64"):
        sw.predict(wide, homes_csv, device="cuda")


# Networks


# The gradients of SiLU round by their strides, which the fake device does not keep if they are expanded.
SAME_BITS = [name for name in sorted(kinds()) if shrunken_plan(name).get("activation") != "silu"]


@pytest.mark.parametrize("name", SAME_BITS[::6])
def test_networks_compute_what_they_compute_on_the_cpu(fake, name, monkeypatch):
    monkeypatch.setenv("SKIPWAY_KERNELS", "off")
    host, device = copy.deepcopy(shrunken(name)), copy.deepcopy(shrunken(name)).to("cuda")
    x = torch.randn(4, 3, SIZE, SIZE)
    x = x.flatten(1) if "in_features" in host.plan else x
    outputs = []
    for network, inputs in ((host, x), (device, x.to("cuda"))):
        torch.manual_seed(1)
        outputs.append(network(inputs))
        outputs[-1].square().sum().backward()
    assert outputs[0].equal(outputs[1].cpu())
    for one, other in zip(host.parameters(), device.parameters(), strict=True):
        assert one.grad is None if other.grad is None else one.grad.equal(other.grad.cpu())


@pytest.mark.parametrize("shortcut", ["project", "pad", "pool", "auto"])
@pytest.mark.parametrize("join", ["add", "concat", "gate", "scale", "layerscale"])
def test_sizes_are_inferred_on_the_device(device, shortcut, join):
    skip = sw.Skip(nn.Conv2d(4, 8, 3, stride=2, padding=1), shortcut=shortcut, join=join).to(device)
    sw.output_shape(skip, (2, 4, 8, 8))
    assert all(p.is_cuda for p in skip.parameters())
    skip(torch.randn(2, 4, 8, 8, device=device)).sum().backward()


@pytest.mark.parametrize("half", [False, True])
def test_recomputed_and_reversible_blocks_have_the_same_gradients(device, half):
    def gradients(network, x):
        x = x.clone().requires_grad_()
        torch.manual_seed(1)
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            out = network(x)
        out.float().square().sum().backward()
        return [x.grad, *(p.grad for p in network.parameters())]

    torch.manual_seed(0)
    plain = sw.create_model("resnet20", num_classes=3, in_chans=1, layers=[2, 2, 2], dropout=0.3).to(device)
    recomputed = copy.deepcopy(plain)
    sw.recompute(recomputed, 2)
    bodies = [nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.ReLU()) for _ in range(4)]
    reversible = sw.Reversible(sw.Coupling(*bodies[:2]), sw.Coupling(*bodies[2:])).to(device)
    pairs = [
        (plain, recomputed, torch.randn(8, 1, 8, 8, device=device)),
        (sw.Chain(*copy.deepcopy(list(reversible))), reversible, torch.randn(5, 8, device=device)),
    ]
    for one, other, x in pairs:
        for expected, gradient in zip(gradients(one, x), gradients(other, x), strict=True):
            assert torch.allclose(expected, gradient, rtol=1e-4, atol=1e-5)


def test_growing(small, device):
    network, x, y = small
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    nn.functional.cross_entropy(network(x.to(device)), y.to(device)).backward()
    optimizer.step()
    for grown in (
        sw.grow.deepen(network, blocks={"stage1": 2}, optimizer=optimizer),
        sw.grow.widen(network, 2),
        sw.grow.deepen(network, blocks={"stage2": 2}, probe=x.to(device)),
    ):
        assert all(p.is_cuda for p in grown.parameters())
        grown(x.to(device)).sum().backward()
    assert all(v["momentum_buffer"].is_cuda for v in optimizer.state.values() if "momentum_buffer" in v)


def test_growing_takes_a_probe_of_the_host(small):
    network, x, _ = small
    assert sw.grow.deepen(network, blocks={"stage1": 2}, probe=x)
    assert sw.grow.widen(network, 2, probe=x)


@pytest.mark.parametrize("of_device", [False, True])
def test_probes(small, device, of_device):
    network, x, y = small
    if of_device:
        x, y = x.to(device), y.to(device)
    assert flow(network, x, y).blocks
    assert lesion(network, batches_accuracy(x, y), draws=1).as_dict()
    for mode in ("evaluation", "training"):
        assert landscape(network, batches_loss(x, y, mode=mode), points=3).as_dict()
    assert sw.summary(network, (2, 1, 8, 8)).macs


def test_probes_of_a_run(device, data, tmp_path):
    run = quick(data, tmp_path, **SHORT)
    assert probe_run(run.path, only=("flow", "lesion"), samples=8).plots


def test_predicting_and_evaluating(small, device, data):
    network, x, _ = small
    network.spec = sw.Spec(1, 8, 8, (0.5,), (0.25,), ("ant", "bee", "cow"))
    host = copy.deepcopy(network).cpu()
    files = sorted((data / "ant").glob("*.png"))[:3]
    for tta in (False, True):
        rows = sw.predict(network, files, tta=tta), sw.predict(host, files, tta=tta, engine="torch", precision="fp32")
        assert np.allclose(*([row.top[0][1] for row in r] for r in rows), atol=1e-5)
        shares = sw.evaluate(network, data, tta=tta), sw.evaluate(host, data, tta=tta, engine="torch", precision="fp32")
        assert shares[0].loss == pytest.approx(shares[1].loss, rel=1e-4)
    assert sw.Features(network)(x.to(device))[0].is_cuda
    for precision in ("fp32", "bf16", "auto"):
        assert np.allclose(fuse(network, precision).predict_proba(files), host.predict_proba(files), atol=0.05)


def test_an_export_is_verified_on_the_device(small, device, tmp_path):
    network, _, _ = small
    network.spec = sw.Spec(1, 8, 10, (0.5,), (0.25,), ("ant", "bee", "cow"))
    before = 0 if REAL else FakeGpu.active.kernels
    assert program(network.cpu(), tmp_path / "network.pt2", device=device).difference < 1e-4
    assert REAL or FakeGpu.active.kernels > before + 20


def test_an_evaluation_gathers_its_images_on_the_device(fake, data, tmp_path):
    run = quick(data, tmp_path, **SHORT)
    fake.reset()
    sw.evaluate(run.path, data, device="cuda")
    assert any("device_copy" in copy.line for copy in fake.copies)


def test_the_weights_of_classes_are_copied_once(fake, data, tmp_path):
    quick(data, tmp_path, epochs=2, batch_size=8, balance="weights")
    copies = [copy for copy in fake.copies if copy.line.startswith("training/losses")]
    assert len(copies) <= 1


def test_a_line_reports_images_in_the_memory_of_the_device(device, data, tmp_path, monkeypatch):
    words = Words()
    quick(data, tmp_path, console=words, **SHORT)
    assert f"all images are kept on {device}" in words and "compile: off, the run has only 3 steps" in words
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 2**33))
    words = Words()
    quick(data, tmp_path, console=words, **SHORT)
    assert f"each batch is copied to {device} while the one before it is computed" in words


def test_saving_and_loading(small, tmp_path):
    network, x, _ = small
    network.spec = sw.Spec(1, 8, 8, (0.5,), (0.25,), ("ant", "bee", "cow"))
    network.save(tmp_path / "network.safetensors")
    assert same_tensors(sw.load(tmp_path / "network.safetensors").state_dict(), network.cpu().state_dict())


@pytest.mark.parametrize("resize_mode", ["crop", "pad"])
def test_an_exported_program_moves_to_the_device(small, device, tmp_path, resize_mode):
    network, _, _ = small
    network.spec = sw.Spec(1, 8, 10, (0.5,), (0.25,), ("ant", "bee", "cow"), resize_mode)
    program(network, tmp_path / "network.pt2")
    module = torch.export.load(tmp_path / "network.pt2").module()
    pixels = torch.randint(256, (2, 12, 13, 1), dtype=torch.uint8)
    expected = module(pixels)
    assert torch.allclose(module.to(device)(pixels.to(device)).cpu(), expected, atol=1e-5)


def test_augmented_images_are_drawn_from_the_device(device, tmp_path):
    images = decoded_noise([0, 1, 0, 1])
    spec = Spec(channels=3, size=1, presize=1, mean=(0.4,) * 3, std=(0.2,) * 3, class_names=("a",))
    for name, place in (("host", "cpu"), ("device", device)):
        augmentation = Augmentation("shift+color", transform=lambda x: x.flip(-1))
        draw_augmented(
            tmp_path / name,
            ImageBatches(images, np.arange(4), 2, spec=spec, augmentation=augmentation, device=place),
        )
    host, drawn = (np.asarray(Image.open(tmp_path / n / "plots" / "augmented.png")) for n in ("host", "device"))
    assert np.abs(host.astype(int) - drawn).max() <= 2


# The second GPU


@pytest.fixture
def second():
    """Provide a fake device "cuda:1"; every use of cuda:0 raises."""
    with fake_gpu(index=1) as gpu:
        yield gpu


def test_a_run_on_the_second_gpu_leaves_the_first_alone(second, data, tmp_path):
    run = quick(data, tmp_path, device="cuda:1", **SHORT)
    assert numbers(run.path)["resolved"]["device"] == "cuda:1"
    assert second.kernels > 500 and second.current == 0
    second.reset()
    assert sw.evaluate(run.path, data, split="train", device="cuda:1").count == 30
    predictions = sw.predict(run.path, sorted((data / "ant").glob("*.png")), device="cuda:1")
    assert all(prediction.usable for prediction in predictions) and second.kernels > 100


def test_a_resumed_run_returns_to_the_second_gpu(second, data, tmp_path):
    with pytest.raises(Interrupted):
        quick(data, tmp_path, name="cut", stop=StopAt(POLLS + 3), device="cuda:1")
    resumed = train(resume=tmp_path / "cut")
    assert numbers(resumed.path)["resolved"]["device"] == "cuda:1"


def test_the_rate_is_found_on_the_second_gpu(second, data, monkeypatch):
    monkeypatch.setattr("skipway.commands.find_lr.range_test", partial(range_test, steps=12))
    options = {key: value for key, value in QUICK.items() if key not in UNUSED_BY_FIND_LR}
    assert find_lr(data, device="cuda:1", **options).suggestion > 0
    assert second.kernels > 100


def test_a_network_that_is_passed_is_not_moved(fake, data):
    network = sw.create_model("resnet20", num_classes=3, in_chans=1, layers=[1, 1, 1])
    network.spec = sw.Spec(1, 8, 8, (0.5,), (0.25,), ("ant", "bee", "cow"))
    files = sorted((data / "ant").glob("*.png"))[:3]
    fake.reset()
    expected = sw.predict(network, files, engine="torch", precision="fp32")
    assert fake.kernels == 0
    moved = sw.predict(network, files, device="cuda")
    assert fake.kernels > 10 and not next(network.parameters()).is_cuda
    assert np.allclose(*([row.top[0][1] for row in rows] for rows in (expected, moved)), atol=1e-5)


def test_auto_takes_the_gpu_unless_the_engine_or_the_precision_is_of_the_cpu(fake, data, tmp_path):
    run = quick(data, tmp_path, **SHORT, device="cpu")
    files = sorted((data / "ant").glob("*.png"))[:3]
    fake.reset()
    sw.predict(run.path, files, precision="bf16")
    assert fake.kernels == 0
    sw.predict(run.path, files)
    assert fake.kernels > 10
    with pytest.raises(
        InputError, match="cannot use engine 'torch' with precision 'bf16': only an image model on a CPU"
    ):
        sw.predict(run.path, files, engine="torch", precision="bf16", device="cuda")


def test_auto_leaves_a_table_on_the_cpu(fake, homes_csv, tmp_path):
    run = train(homes_csv, target="dear", output=tmp_path, epochs=1)
    assert numbers(run.path)["resolved"]["device"] == "cpu"
    sw.evaluate(run.path, homes_csv)
    sw.predict(run.path, homes_csv)
    assert fake.kernels == 0
    assert sw.evaluate(run.path, homes_csv, device="cuda").count and fake.kernels > 10
