"""From two convolutions to a hundred residual blocks: ten networks that classify birds and airplanes.

    python examples/notes.py CIFAR10 [--epochs 10] [--only Net,NetRes] [--out notes.png]

CIFAR10 is a folder of Hugging Face parquet files. Each network changes one part of the previous one: width, dropout,
batch norm, another layer, a shortcut around it, ten residual blocks, a hundred. Net is also trained with an L2 penalty
in its loss, and with weight decay in SGD. Both are equal for plain SGD if the weight decay is twice the penalty. A
table and a plot compare the accuracies.
"""

import argparse
import time

import torch
from torch import nn

import skipway as sw

AIRPLANE, BIRD = 0, 2


def head(features, activation):
    """Return the layers of the head: flatten -> 32 -> 2."""
    return [nn.Flatten(), nn.Linear(features, 32), activation(), nn.Linear(32, 2)]


def net(width=16, dropout=0.0, norm=False):
    """Create a network of two convolutions, each with tanh and max pooling, and two dense layers."""
    layers = []
    for before, after in ((3, width), (width, width // 2)):
        layers.append(nn.Conv2d(before, after, 3, padding=1))
        layers += [nn.BatchNorm2d(after)] if norm else []
        layers += [nn.Tanh(), nn.MaxPool2d(2)]
        layers += [nn.Dropout2d(dropout)] if dropout else []
    return sw.Chain(*layers, *head(8 * 8 * width // 2, nn.Tanh))


def deeper(shortcut, width=32):
    """Create a network with a third convolution and ReLU, and a parameter-free shortcut around it if `shortcut`."""
    third = sw.Chain(nn.Conv2d(width // 2, width // 2, 3, padding=1), nn.ReLU())
    return sw.Chain(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, width // 2, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        sw.Skip(third) if shortcut else third,
        nn.MaxPool2d(2),
        *head(4 * 4 * width // 2, nn.ReLU),
    )


def block(width):
    """Create a block that computes relu(norm(conv(x))) + x. Repeating one block in a list would share its weights."""
    conv, norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    nn.init.constant_(norm.weight, 0.5)  # a standard deviation of 0.5, a variance of 0.25
    return sw.Skip([conv, norm, nn.ReLU()])


def residual(blocks, width=32):
    """Create a network of a convolution, residual blocks and two dense layers."""
    return sw.Chain(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *(block(width) for _ in range(blocks)),
        nn.MaxPool2d(2),
        *head(8 * 8 * width, nn.ReLU),
    )


# name -> (network, learning rate, L2 penalty in the loss, weight decay of SGD)
NETWORKS = {
    "Net": (net, 1e-2, 0.0, 0.0),
    "Net, L2 penalty": (net, 1e-2, 1e-3, 0.0),
    "Net, weight decay": (net, 1e-2, 0.0, 2e-3),
    "NetWidth": (lambda: net(32), 1e-2, 0.0, 0.0),
    "NetDropout": (lambda: net(32, dropout=0.4), 1e-2, 0.0, 0.0),
    "NetBatchNorm": (lambda: net(32, norm=True), 1e-2, 0.0, 0.0),
    "NetDepth": (lambda: deeper(shortcut=False), 1e-2, 0.0, 0.0),
    "NetRes": (lambda: deeper(shortcut=True), 1e-2, 0.0, 0.0),
    "NetResDeep, 10": (lambda: residual(10), 3e-3, 0.0, 0.0),
    "NetResDeep, 100": (lambda: residual(100), 3e-3, 0.0, 0.0),
}


def birds_and_airplanes(folder):
    """Load (images, labels) for training and validation; images are (N, 3, 32, 32), normalized; airplanes are 0."""
    from skipway.data.images.choose_decode_settings import choose_decode_settings
    from skipway.data.images.decoded_cache import decode_images
    from skipway.data.sources.choose_source import open_source

    source = open_source(folder)
    packed = decode_images(source, choose_decode_settings(source, 32, "squash", 10**6))
    parts = []
    for split in ("train", "test"):
        rows = packed.splits[split]
        rows = rows[(packed.targets[rows] == AIRPLANE) | (packed.targets[rows] == BIRD)]
        images = torch.from_numpy(packed.pixels[rows]).permute(0, 3, 1, 2).float() / 255
        parts.append((images, torch.from_numpy(packed.targets[rows] == BIRD).long()))
    mean, std = (f(parts[0][0].transpose(0, 1).flatten(1), 1).view(1, 3, 1, 1) for f in (torch.mean, torch.std))
    return [((images - mean) / std, labels) for images, labels in parts]


def accuracy(network, images, labels):
    """Compute the accuracy in evaluation mode."""
    network.eval()
    with torch.no_grad():
        predicted = torch.cat([network(batch).argmax(1) for batch in images.split(500)])
    return (predicted == labels).double().mean().item()


def train(network, data, epochs, lr, penalty=0.0, weight_decay=0.0):
    """Train a network, and return (seconds, [(training accuracy, validation accuracy) after each epoch])."""
    (images, labels), held_out = data
    optimizer = torch.optim.SGD(network.parameters(), lr, weight_decay=weight_decay)
    begin, course = time.perf_counter(), []
    for epoch in range(epochs):
        network.train()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(64):
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            loss = loss + penalty * sum(p.square().sum() for p in network.parameters()) if penalty else loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        course.append((accuracy(network, images[:2000], labels[:2000]), accuracy(network, *held_out)))
    return time.perf_counter() - begin, course


def draw(courses, path):
    """Plot accuracy over epochs: validation as solid lines, training as dashed lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    for index, (name, course) in enumerate(courses.items()):
        seen, unseen = zip(*course, strict=True)
        epochs = range(1, len(course) + 1)
        axes.plot(epochs, unseen, color=f"C{index}", label=f"{name}: {unseen[-1]:.3f}")
        axes.plot(epochs, seen, "--", color=f"C{index}", linewidth=0.8)
    axes.set(xlabel="epoch", ylabel="accuracy", title="Birds and airplanes: validation (dashed: training)")
    figure.legend(fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description="From two convolutions to a hundred residual blocks.")
    parser.add_argument("data", metavar="CIFAR10", help="folder of Hugging Face parquet files")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--only", help="comma-separated names of networks")
    parser.add_argument("--out", default="notes.png")
    options = parser.parse_args()
    networks = {n: row for n, row in NETWORKS.items() if not options.only or n in options.only.split(",")}
    data, courses = birds_and_airplanes(options.data), {}
    print(f"{'network':<18} {'parameters':>10} {'seconds':>8} {'train':>6} {'validation':>10}")
    for name, (build, lr, penalty, weight_decay) in networks.items():
        torch.manual_seed(0)
        network = build()
        seconds, courses[name] = train(network, data, options.epochs, lr, penalty=penalty, weight_decay=weight_decay)
        count, (seen, unseen) = sum(p.numel() for p in network.parameters()), courses[name][-1]
        print(f"{name:<18} {count:>10,} {seconds:>8.0f} {seen:>6.3f} {unseen:>10.3f}", flush=True)
    draw(courses, options.out)
    print(f"saved {options.out}")


if __name__ == "__main__":
    main()
