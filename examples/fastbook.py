"""Five networks for photographs, from plain convolutions to bottlenecks, that add the ideas of a ResNet one by one.

    python examples/fastbook.py IMAGES [--epochs 5] [--size 128] [--batch 32] [--only ...]

IMAGES is image data that `skipway train` supports, with a training set and a validation or test set. The first three
networks are built here from Skips. The last two are models of skipway: xresnet18 and xresnet50.
"""

import argparse
import time

import torch
from torch import nn

import skipway as sw
from skipway.utils.devices import has_bf16

WIDTHS = (16, 32, 64, 128, 256)


def conv(before, after, kernel=3, stride=1, activated=True):
    """Return a convolution, a batch norm and, if `activated`, a ReLU."""
    layers = [nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after)]
    return [*layers, nn.ReLU()] if activated else layers


def block(before, after, stride=1):
    """Create a residual block of two convolutions, with a shortcut of an average pool and a projection."""
    body = sw.Chain(*conv(before, after, stride=stride), *conv(after, after, activated=False))
    nn.init.zeros_(body[-1].weight)  # must be the last layer: a ReLU after it would block its gradient
    return sw.Skip(body, "pool", after=nn.ReLU())


def staged(stage, classes):
    """Create a network of five stages, each of which halves the size, with global average pooling."""
    stages = []
    for before, after in zip((3, *WIDTHS), WIDTHS, strict=False):
        stages += stage(before, after)
    network = sw.Chain(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], classes))
    sw.output_shape(network, (1, 3, 128, 128))
    return network


def mixed():
    """Return an autocast context, enabled if the processor supports bfloat16."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bf16("cpu"))


NETWORKS = {
    "plain": lambda classes: staged(lambda before, after: conv(before, after, stride=2), classes),
    "one block": lambda classes: staged(lambda before, after: [block(before, after, 2)], classes),
    "two blocks": lambda classes: staged(lambda before, after: [block(before, after, 2), block(after, after)], classes),
    "xresnet18": lambda classes: sw.create_model("xresnet18", classes),
    "xresnet50": lambda classes: sw.create_model("xresnet50", classes),
}


def photographs(folder, size):
    """Load (images, labels) for training and validation, and the class names; images are uint8 (N, 3, size, size)."""
    from skipway.data.images.choose_decode_settings import choose_decode_settings
    from skipway.data.images.decoded_cache import decode_images
    from skipway.data.sources.choose_source import open_source

    source = open_source(str(folder))
    packed = decode_images(source, choose_decode_settings(source, size, "crop", 50_000_000))
    start = (packed.pixels.shape[1] - size) // 2
    pixels = torch.from_numpy(packed.pixels).permute(0, 3, 1, 2)[:, :, start : start + size, start : start + size]
    parts = [packed.splits[split] for split in ("train", "val" if "val" in packed.splits else "test")]
    return *((pixels[rows], torch.from_numpy(packed.targets[rows]).long()) for rows in parts), packed.class_names


def prepared(images):
    """Convert uint8 images to floats in [-2, 2)."""
    return (images.float() / 64 - 2).to(memory_format=torch.channels_last)


def train(network, data, epochs, lr=3e-3, batch=32):
    """Train with AdamW, a one-cycle schedule and random flips, and return (seconds, validation accuracy)."""
    (images, labels), (held_out, expected), _ = data
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=0.01)
    steps = max(1, epochs * (len(labels) // batch))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
    begin = time.perf_counter()
    for _ in range(epochs):
        network.train()
        for rows in torch.randperm(len(labels)).split(batch):
            if len(rows) < batch:  # skip the last batch if it is too small for batch norm
                continue
            x = prepared(images[rows])
            x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
            optimizer.zero_grad()
            with mixed():
                loss = nn.functional.cross_entropy(network(x), labels[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad(), mixed():
        predicted = torch.cat([network(prepared(part)).argmax(1) for part in held_out.split(batch)])
    return time.perf_counter() - begin, (predicted == expected).double().mean().item()


def main():
    parser = argparse.ArgumentParser(description="Five networks for photographs.")
    parser.add_argument("data", metavar="IMAGES")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", help="comma-separated names of networks")
    options = parser.parse_args()
    data = photographs(options.data, options.size)
    print(f"{len(data[2])} classes, {len(data[0][1])} training images, {len(data[1][1])} validation images")
    print(f"{'network':<12} {'parameters':>10} {'seconds':>8} {'validation':>10}")
    for name, build in NETWORKS.items():
        if options.only and name not in options.only.split(","):
            continue
        torch.manual_seed(0)
        network = build(len(data[2])).to(memory_format=torch.channels_last)
        seconds, share = train(network, data, options.epochs, batch=options.batch)
        count = sum(p.numel() for p in network.parameters())
        print(f"{name:<12} {count:>10,} {seconds:>8.0f} {share:>10.3f}", flush=True)


if __name__ == "__main__":
    main()
