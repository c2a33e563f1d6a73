"""Every figure of skipway on a CUDA GPU: throughput, synchronizations, idle share, checkpoints, and time to accuracy.

    python benchmarks/gpu.py --photographs photos/ --cifar cifar10/

It needs a CUDA GPU with bf16 and 24 GB. Without --photographs, noise takes the place of the cached photographs, which
does not change the speed, and the loop with workers is left out. Without --cifar, the time to accuracy is left out.

- "loop" is a training loop in plain torch: ResNet-50 (timm's if it is installed), bf16, channels_last, torch.compile, a
  fused optimizer, and one batch of synthetic data that stays on the device.
- "workers" is the same loop on the photographs, with random resized crops by Pillow in a worker per core.
- "ours" is `fit` with random resized crops and flips of cached images, which are kept on the device, or copied to it.
- "ours, uncompiled" is the same without torch.compile. `--compile auto` estimates this ratio and these seconds.
- Synchronizations are those that torch reports in its sync debug mode, per step of ResNet-18.
- The idle share is the time without a kernel of the device in the profile of 20 steps of ResNet-18.
- The checkpoint figure is the longest pause between two steps of ResNet-50 (205 MB with its optimizer) that is left
  after subtracting the median step.
- The time to accuracy is that of the whole command, with the fewest epochs that reach --target on the test images.
  "airbench94" has the network and the schedule of its paper, and its time begins with the images in device memory.

`--dry` runs every part in a tiny form on the CPU, to test the benchmark itself. Its numbers mean nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from airbench import train as train_airbench
from reference import Photographs, network
from side_by_side import alternating, median, page, spread, write

NEEDS = "needs a CUDA GPU with bf16 and 24 GB, got none. --dry runs every part in a tiny form on the CPU."
PROFILED = 20  # steps
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements: the device, image sizes in pixels, and counts."""

    device: str
    size: int
    stored_size: int
    batch: int
    steps: int  # of an epoch
    images: int  # of noise
    save_every: float  # seconds
    networks: tuple[str, str]  # the one to time, and that of the counts
    epochs: tuple[int, ...]  # tried in turn for the time to accuracy

    @property
    def is_full(self) -> bool:
        return self.device == "cuda"


FULL = Sizes(
    "cuda",
    size=224,
    stored_size=256,
    batch=256,
    steps=60,
    images=5120,
    save_every=1.5,
    networks=("resnet50", "resnet18"),
    epochs=(8, 12, 16, 24, 32),
)
DRY = Sizes(
    "cpu",
    size=16,
    stored_size=18,
    batch=4,
    steps=4,
    images=16,
    save_every=0.0,
    networks=("resnet20", "resnet20"),
    epochs=(1,),
)


def wait(sizes):
    if sizes.is_full:
        torch.cuda.synchronize()


def noise(count, stored_size, size):
    """Return decoded images of noise, as the decode cache holds photographs."""
    from skipway.data.images.decoded_images import DecodedImages, DecodeSettings

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, stored_size, stored_size, 3), dtype=np.uint8)
    return DecodedImages(
        name="noise",
        class_names=tuple(map(str, range(10))),
        settings=DecodeSettings(size, stored_size, 3),
        pixels=pixels,
        targets=rng.integers(0, 10, count),
        keys=list(map(str, range(count))),
        digests=[],
        splits={"train": np.arange(count)},
        skipped=[],
        notes=Counter(),
        sizes="",
        mirrored=True,
    )


def cached(folder, size):
    """Return the images of a folder from the decode cache."""
    from skipway.data.images.choose_decode_settings import choose_decode_settings
    from skipway.data.images.decoded_cache import decode_images
    from skipway.data.sources.choose_source import open_source

    source = open_source(folder)
    return decode_images(source, choose_decode_settings(source, size, "auto", 50_000_000))


class Watched:
    """Training batches that call `mark(epoch, batch)` when the loop receives each batch."""

    def __init__(self, batches, mark):
        self.batches, self.mark = batches, mark

    def __getattr__(self, name):
        return getattr(self.batches, name)

    def epoch(self, epoch=0, start=0):
        for number, batch in enumerate(self.batches.epoch(epoch, start), start):
            self.mark(epoch, number)
            yield batch


def train(name, sizes, options, mark, *, epochs=2, folder=None):
    """Train a network with skipway's own loop, and return the seconds of its compilation.

    `options` name the photographs, whether the device keeps them, and whether the steps are compiled.
    """
    from skipway.data.image_spec import Spec
    from skipway.data.images.device_pixels import pixels_on_device
    from skipway.data.images.loader import Augmentation, ImageBatches
    from skipway.model_factory import create_model
    from skipway.training.compilation import begin_compilation
    from skipway.training.loop import fit
    from skipway.training.trainer import Settings, Trainer
    from skipway.utils.console import Console
    from skipway.utils.stop_signals import StopFlag

    if options.get("photographs"):
        images = cached(options["photographs"], sizes.size)
    else:
        images = noise(sizes.images, sizes.stored_size, sizes.size)
    stored_size = images.settings.stored_size
    spec = Spec(3, sizes.size, stored_size, MEAN, STD, images.class_names)
    rows = np.resize(images.splits["train"], sizes.batch * sizes.steps)
    kept = pixels_on_device(images.pixels, sizes.device) if options.get("keep") else None
    common = {"spec": spec, "device": sizes.device, "resident": kept}
    batches = ImageBatches(images, rows, sizes.batch, augmentation=Augmentation("zoom+flip"), **common)
    validation = ImageBatches(images, rows[: sizes.batch], sizes.batch, **common)
    precision = "bf16" if sizes.is_full else "fp32"
    torch.backends.cudnn.benchmark = True
    settings = Settings(epochs, 0.01, precision=precision, device=sizes.device, save_every=sizes.save_every)
    trainer = Trainer(create_model(name, 1000), settings)
    compiled = options.get("compiled", True) and sizes.is_full
    growth, option = [1.0] * epochs, "on" if compiled else "off"
    begin_compilation(trainer, batches, option=option, earlier=None, growth=growth, is_table=False)
    compile_seconds = trainer.state.total_seconds
    quiet = {"on_epoch": lambda *_: None, "facts": {}, "console": Console(quiet=True), "stop": StopFlag()}
    fit(trainer, Watched(batches, mark), validation, folder, **quiet)
    return compile_seconds


def ours(sizes, options):
    """Return the images per second of the second epoch, from its second batch on."""
    times = []

    def mark(epoch, number):
        if epoch == 1 and number in (1, sizes.steps - 1):
            wait(sizes)
            times.append(time.perf_counter())

    compile_seconds = train(sizes.networks[0], sizes, options, mark)
    speed = sizes.batch * (sizes.steps - 2) / (times[1] - times[0])
    return {"images_per_second": speed, "compile_seconds": compile_seconds}


def uncompiled(sizes, options):
    """Return the images per second of `ours` with `--compile off`."""
    return ours(sizes, options | {"compiled": False})


def synchronizations(sizes, options):
    """Return the synchronizations per step of the second epoch."""
    counts = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def mark(epoch, number):
            if epoch == 1:
                counts.append(sum("synchronizing CUDA" in str(warning.message) for warning in caught))

        if sizes.is_full:
            torch.cuda.set_sync_debug_mode("warn")
        train(sizes.networks[1], sizes, options, mark)
    return {"synchronizations": (counts[-1] - counts[0]) / (len(counts) - 1)}


def idle(sizes, options):
    """Return the share of the time without a kernel in steps of the second epoch."""
    activities = [torch.profiler.ProfilerActivity.CUDA if sizes.is_full else torch.profiler.ProfilerActivity.CPU]
    profiler = torch.profiler.profile(activities=activities)

    def mark(epoch, number):
        if epoch == 1 and number == 1:
            wait(sizes)
            profiler.start()
        if epoch == 1 and number == min(1 + PROFILED, sizes.steps - 1):
            wait(sizes)
            profiler.stop()

    train(sizes.networks[1], sizes, options, mark)
    device = torch.autograd.DeviceType.CUDA if sizes.is_full else torch.autograd.DeviceType.CPU
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == device and not event.name.startswith(("Memcpy", "ProfilerStep"))
    ]
    return {"idle": idle_share(spans)}


def idle_share(spans):
    """Return the share of the time from the first to the last of `spans` (begin, end) that none of them covers.

    >>> idle_share([(0, 4), (2, 5), (9, 10)])
    0.4
    """
    spans = sorted(spans)
    covered, end = 0.0, spans[0][0]
    for begin, until in spans:
        covered += max(0.0, until - max(begin, end))
        end = max(end, until)
    return 1 - covered / (end - spans[0][0])


def saving(sizes, options):
    """Return the longest pause between two steps, in seconds beyond the median step, in a run that saves regularly."""
    times = []

    def mark(epoch, number):
        wait(sizes)
        if epoch == 1:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "weights").mkdir()
        train(sizes.networks[0], sizes, options, mark, folder=Path(folder) / "weights" / "last")
    steps = np.diff(times)
    return {"seconds_blocked": float(steps.max() - np.median(steps))}


def loop_network(name):
    """Return timm's network if timm is installed and has it, else the one of plain torch."""
    try:
        import timm
    except ImportError:
        return network(name, 1000)
    return timm.create_model(name, num_classes=1000) if timm.is_model(name) else network(name, 1000)


def loop(sizes, options):
    """Return the images per second of a loop in plain torch, on synthetic data or with workers on photographs."""
    torch.backends.cudnn.benchmark = True
    model = loop_network(sizes.networks[0]).to(device=sizes.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True, fused=True)
    compiled = torch.compile(model) if sizes.is_full else model
    begin, seen = 0.0, 0
    for number, (x, y) in enumerate(loop_batches(sizes, options)):
        if number == sizes.steps:  # the first epoch compiles, and starts the workers
            wait(sizes)
            begin, seen = time.perf_counter(), 0
        x, y = x.to(sizes.device, non_blocking=True), y.to(sizes.device, non_blocking=True)
        with torch.autocast(sizes.device, torch.bfloat16, enabled=sizes.is_full):
            loss = torch.nn.functional.cross_entropy(compiled(x.to(memory_format=torch.channels_last)), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += len(x)
    wait(sizes)
    return {"images_per_second": seen / (time.perf_counter() - begin)}


def loop_batches(sizes, options):
    """Yield the batches of two epochs."""
    if not options.get("photographs"):
        x = torch.randn(sizes.batch, 3, sizes.size, sizes.size, device=sizes.device)
        yield from [(x, torch.randint(1000, (sizes.batch,), device=sizes.device))] * (2 * sizes.steps)
        return
    from skipway.utils.devices import available_cores

    photographs = Photographs(options["photographs"], sizes.size)
    sampler = torch.utils.data.RandomSampler(photographs, True, 2 * sizes.steps * sizes.batch)
    workers = available_cores().count if sizes.is_full else 0
    yield from torch.utils.data.DataLoader(
        photographs, sizes.batch, sampler=sampler, num_workers=workers, pin_memory=sizes.is_full
    )


def accuracy(sizes, options):
    """Return the seconds of the whole command with the fewest epochs that reach the target, and its test accuracy."""
    reached = 0.0
    for epochs in sizes.epochs:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as runs:
            words = [options["cifar"], "--epochs", str(epochs), "--tta", "--quiet", "-o", runs, "--name", "run"]
            subprocess.run([sys.executable, "-m", "skipway", "train", *words], check=True)
            seconds = time.perf_counter() - begin
            reached = json.loads(Path(runs, "run", "metrics.json").read_text())["test_accuracy"]
        if reached >= options["target"]:
            return {"seconds": seconds, "accuracy": reached, "epochs": epochs}
    raise SystemExit(f"no run reached a test accuracy of {options['target']}: {reached} with {sizes.epochs[-1]} epochs")


def airbench(sizes, options):
    """Return the seconds of airbench94 on images in device memory, from its first line on, and its test accuracy."""
    images = cached(options["cifar"], 32)
    mean, std = (torch.tensor(values, device=sizes.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    parts = []
    for rows in (images.splits["train"], images.splits["test"]):
        pixels = torch.from_numpy(images.pixels[rows]).to(sizes.device)
        parts += [(pixels.permute(0, 3, 1, 2) / 255 - mean) / std, torch.from_numpy(images.targets[rows])]
    wait(sizes)
    begin = time.perf_counter()
    reached = train_airbench(
        *(part.to(sizes.device) for part in parts),
        epochs=9.9 if sizes.is_full else 1,
        autocast=lambda: torch.autocast(sizes.device, torch.bfloat16, enabled=sizes.is_full),
        compiled=sizes.is_full,
        **({} if sizes.is_full else {"batch": sizes.batch}),
    )
    return {"seconds": time.perf_counter() - begin, "accuracy": reached}


WAYS = {  # name: (function, whether images are kept on the device, whether it reads the photographs)
    "loop": (loop, False, False),
    "workers": (loop, False, True),
    "ours, kept": (ours, True, True),
    "ours, copied": (ours, False, True),
    "ours, uncompiled": (uncompiled, True, True),
    "synchronizations": (synchronizations, False, True),
    "idle": (idle, False, True),
    "saving": (saving, False, True),
    "ours": (accuracy, False, False),
    "airbench94": (airbench, False, False),
}


def worker(way, sizes, args):
    """Measure one way."""
    function, keep, reads = WAYS[way]
    options = {"keep": keep, "cifar": args.cifar, "target": args.target}
    return function(sizes, options | {"photographs": args.photographs if reads else None})


def rows_of(results):
    """Return the rows of the page: figure, value with its range, ratio or bar."""
    rows = []
    plain = median(results["loop"], "images_per_second") if "loop" in results else None
    for way in ("loop", "workers", "ours, kept", "ours, copied", "ours, uncompiled"):
        if way in results:
            ratio = f"{median(results[way], 'images_per_second') / plain:.2f} of the loop" if plain else "-"
            rows.append([f"ResNet-50, images/s: {way}", spread(results[way], "images_per_second"), ratio])
    for way, name, title, bar in (
        ("ours, kept", "compile_seconds", "seconds to compile ResNet-50", "estimated by auto: 64"),
        ("synchronizations", "synchronizations", "synchronizations per step", "at most 0.2"),
        ("idle", "idle", "idle share of the device, ResNet-18", "under 0.05"),
        ("saving", "seconds_blocked", "seconds blocked by a checkpoint of 205 MB", "at most 0.2"),
    ):
        if way in results:
            rows.append([title, spread(results[way], name), bar])
    for way in ("ours", "airbench94"):
        if way in results:
            reached = f"accuracy {spread(results[way], 'accuracy')}"
            rows.append([f"CIFAR-10, seconds: {way}", spread(results[way], "seconds"), reached])
    return rows


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", help="folder with train/, which has a subfolder per class")
    parser.add_argument("--cifar", help="folder of CIFAR-10")
    parser.add_argument("--target", type=float, default=0.907, help="accuracy of airbench94 on the JPEG copy")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="run every part in a tiny form on the CPU")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if not args.dry and not torch.cuda.is_available():
        raise SystemExit(NEEDS)
    sizes = DRY if args.dry else FULL
    if args.one:
        return print(json.dumps(worker(args.one, sizes, args)))
    needed = {"workers": args.photographs, "ours": args.cifar, "airbench94": args.cifar}
    unused = {way for way, given in needed.items() if not given}
    ways = [way for way in WAYS if way not in unused]
    if args.dry:
        results = {way: [worker(way, sizes, args)] for way in ways}
    else:
        given = ["--target", str(args.target)]
        given += ["--photographs", args.photographs] if args.photographs else []
        given += ["--cifar", args.cifar] if args.cifar else []
        results = alternating({way: [__file__, *given, "--one", way] for way in ways}, args.rounds)
    header, rows = ["figure", "median (range)", "ratio or bar"], rows_of(results)
    if args.dry:
        return print(page("GPU figures, dry: these numbers mean nothing", header, rows))
    name = torch.cuda.get_device_name()
    write("gpu", f"Training at {sizes.size} px in bf16 on {name}, n = {args.rounds}", header, rows)


if __name__ == "__main__":
    main()
