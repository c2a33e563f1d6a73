"""A U-Net as nested Skips: the body of each Skip is the next lower level.

    python examples/unet.py [--steps 120] [--out unet.png]

It learns to segment discs and squares in synthetic images.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

import skipway as sw


def convolutions(channels):
    """Return two 3x3 convolutions with batch norm. Shape inference sets the number of input channels."""
    layers = []
    for _ in range(2):
        layers += [nn.LazyConv2d(channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return layers


class AsLargeAs(nn.Module):
    """Run `body`, and resize its output to the height and width of its input, which may be odd."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return F.interpolate(self.body(x), size=x.shape[2:], mode="bilinear")


def level(widths):
    """Return the layers of a level: convolutions around a Skip with the lower level as body, joined by concat."""
    width, *deeper = widths
    below = sw.Chain(nn.MaxPool2d(2), *(level(deeper) if deeper else convolutions(width)))
    return [*convolutions(width), sw.Skip(AsLargeAs(below), join="concat"), *convolutions(width)]


def unet(channels, classes, widths=(8, 16, 32)):
    """Create a U-Net: (B, channels, H, W) -> (B, classes, H, W), with H and W of at least 2 ** len(widths)."""
    network = sw.Chain(*level(widths), head=nn.LazyConv2d(classes, 1))
    sw.output_shape(network, (1, channels, 64, 64))
    return network


def scenes(count, size, seed):
    """Draw images (count, 1, size, size) of a disc (class 1) and a square (class 2) on noise, and their classes."""
    draw = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    middle = torch.randint(size // 5, 4 * size // 5, (count, 4), generator=draw)
    radius = size // 6
    disc = (y - middle[:, 0, None, None]) ** 2 + (x - middle[:, 1, None, None]) ** 2 < radius**2
    square = ((y - middle[:, 2, None, None]).abs() < radius) & ((x - middle[:, 3, None, None]).abs() < radius)
    classes = torch.where(square, 2, disc.long())
    shade = torch.rand(count, 1, 1, generator=draw) * 0.6 + 0.4
    images = (classes > 0) * shade + 0.2 * torch.randn(count, size, size, generator=draw)
    return images[:, None], classes


def overlap(predicted, expected):
    """Compute the intersection over union of each class."""
    both = [((predicted == c) & (expected == c)).sum() / ((predicted == c) | (expected == c)).sum() for c in range(3)]
    return [share.item() for share in both]


def train(steps, size=41, widths=(8, 16, 32)):
    """Train a U-Net on `steps` batches, and return it with its intersection over union on new images."""
    torch.manual_seed(0)
    network = unet(1, 3, widths)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for step in range(steps):
        images, classes = scenes(16, size, seed=step + 1)
        optimizer.zero_grad()
        F.cross_entropy(network(images), classes).backward()
        optimizer.step()
    images, classes = scenes(64, size, seed=0)
    with torch.no_grad():
        predicted = network.eval()(images).argmax(1)
    return network, overlap(predicted, classes), (images, classes, predicted)


def draw(images, classes, predicted, path):
    """Plot six images with their target and predicted masks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 6, figsize=(9, 4.6), constrained_layout=True)
    for column in range(6):
        rows = (images[column, 0], classes[column], predicted[column])
        for axis, image, name in zip(axes[:, column], rows, ("image", "target", "prediction"), strict=True):
            axis.imshow(image.numpy(), cmap="gray" if name == "image" else "viridis")
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(name)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Train a U-Net of nested Skips to segment discs and squares.")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--out", default="unet.png")
    options = parser.parse_args()
    network, shares, shown = train(options.steps)
    print(network)
    named = zip(("background", "disc", "square"), shares, strict=True)
    print("intersection over union: " + ", ".join(f"{name} {share:.3f}" for name, share in named))
    draw(*shown, options.out)
    print(f"saved {options.out}")


if __name__ == "__main__":
    main()
