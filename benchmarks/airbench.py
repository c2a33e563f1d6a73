"""airbench94 in plain torch, rebuilt from its paper: a small network and schedule that reach 94% on CIFAR-10.

Source: Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv:2404.00498, of which it has the whitening
layer, identity initialization, scaled biases, Lookahead, alternating flips, and test-time augmentation with flips and
shifts. Data and network are on the device.

Shapes: images (N, 3, 32, 32).
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["train"]

BATCH, MOMENTUM, SMOOTHING = 1024, 0.85, 0.2
RATE, WEIGHT_DECAY, BIAS_SCALE = 11.5, 0.0153, 64.0  # per 1,024 images, of the sum of the loss
WIDTHS, WHITENED, WHITENING_EPS = (64, 256, 256), 5000, 5e-4
WHITENING_BIAS_EPOCHS, SHIFT = 3, 2


def norm(width):
    layer = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)  # 0.6 of the running statistics are kept
    layer.weight.requires_grad_(False)
    return layer


def conv(in_channels, width):
    """Return a 3x3 convolution whose first output channels are initialized to the input."""
    layer = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[:in_channels])
    return layer


class Scaled(nn.Module):
    def forward(self, x):
        return x / 9


def network(images):
    """Return the network, with a first layer that whitens the 2x2 patches of `images`, and its frozen weight."""
    layers = [nn.Conv2d(3, 24, 2), nn.GELU()]
    for in_channels, width in zip((24, *WIDTHS), WIDTHS, strict=False):
        layers += [conv(in_channels, width), nn.MaxPool2d(2), norm(width), nn.GELU()]
        layers += [conv(width, width), norm(width), nn.GELU()]
    model = nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(WIDTHS[-1], 10, bias=False), Scaled())
    patches = F.unfold(images[:WHITENED], 2).transpose(1, 2).reshape(-1, 12)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    whitening = (vectors / (values + WHITENING_EPS).sqrt()).T.flip(0).reshape(12, 3, 2, 2)
    model = model.to(device=images.device, memory_format=torch.channels_last)
    model[0].weight.data.copy_(torch.cat([whitening, -whitening]))
    model[0].weight.requires_grad_(False)
    return model


def cropped(padded, size=32):
    """Cut a random `size` x `size` crop out of each image."""
    reach = padded.shape[-1] - size
    line = torch.arange(size, device=padded.device)
    down, right = torch.randint(reach + 1, (2, len(padded), 1), device=padded.device) + line
    rows = torch.arange(len(padded), device=padded.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[rows, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)


def flipped(x, chosen):
    return torch.where(chosen.view(-1, 1, 1, 1), x.flip(-1), x)


def outputs_of(model, x):
    """Return the mean outputs over an image, its two diagonal shifts, which count half, and the flips of all three."""
    padded = F.pad(x, (1,) * 4, mode="reflect")
    views = [(x, 0.25), (padded[..., :32, :32], 0.125), (padded[..., 2:, 2:], 0.125)]
    return sum(weight * (model(view) + model(view.flip(-1))) for view, weight in views)


def train(images, labels, test_images, test_labels, *, epochs, autocast, compiled, batch=BATCH):
    """Train for `epochs`, which may be a fraction, and return the share of the test images that are recognized.

    Args:
        images: (N, 3, 32, 32) float, normalized, on the device.
        labels: (N,) int64 on the device.
        test_images, test_labels: likewise.
        epochs: number of epochs.
        autocast: returns the context of a forward pass.
        compiled: use torch.compile.
        batch: images per step.
    """
    steps = len(images) // batch
    total = int(np.ceil(epochs * steps))
    model = network(images)
    forward = torch.compile(model) if compiled else model
    kilostep = 1024 * (1 + 1 / (1 - MOMENTUM))
    rate, decay = RATE / kilostep, WEIGHT_DECAY * batch / kilostep
    biases = [layer.bias for layer in model if isinstance(layer, nn.BatchNorm2d)]
    others = [p for p in model.parameters() if not any(p is bias for bias in biases) and p.requires_grad]
    groups = [
        {"params": biases, "lr": rate * BIAS_SCALE, "weight_decay": decay / (rate * BIAS_SCALE)},
        {"params": others, "lr": rate, "weight_decay": decay / rate},
    ]
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: np.interp(step, [0, int(0.23 * total), total], [0.2, 1, 0.07])
    )
    slow = {name: value.clone() for name, value in model.state_dict().items()}
    padded = F.pad(images, (SHIFT,) * 4, mode="reflect")
    mirrored = torch.rand(len(images), device=images.device) < 0.5
    for step in range(total):
        epoch, position = divmod(step, steps)
        if not position:
            model.train()
            model[0].bias.requires_grad_(epoch < WHITENING_BIAS_EPOCHS)
            order = torch.randperm(len(images), device=images.device)
        ids = order[position * batch : (position + 1) * batch]
        x = flipped(cropped(padded[ids]), mirrored[ids] ^ bool(epoch % 2))
        with autocast():
            outputs = forward(x.contiguous(memory_format=torch.channels_last))
        F.cross_entropy(outputs.float(), labels[ids], label_smoothing=SMOOTHING, reduction="sum").backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 5 == 0 or step + 1 == total:
            look_ahead(model, slow, 1.0 if step + 1 == total else 0.95**5 * ((step + 1) / total) ** 3)
    return share_recognized(model, test_images, test_labels, autocast)


def look_ahead(model, slow, kept):
    """Move the slow weights towards the network, keeping the share `kept` of them, and the network to them."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            slow[name].lerp_(value, 1 - kept)
            value.copy_(slow[name])


def share_recognized(model, images, labels, autocast):
    model.eval()
    with torch.no_grad(), autocast():
        outputs = torch.cat([outputs_of(model, part) for part in images.split(1000)])
    return (outputs.argmax(1) == labels).float().mean().item()
