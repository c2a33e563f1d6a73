"""Reference implementations in plain torch: residual networks and data loading as they are commonly written.

They run in three variants: "plain" (float32, contiguous and eager, the defaults of torch), "autocast" (bfloat16 and
channels_last) and "compiled" ("autocast" with torch.compile).
"""

import math
import random
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

WAYS = ("plain", "autocast", "compiled")


def conv(in_channels, out_channels, kernel, stride=1):
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)


class Basic(nn.Module):
    expansion = 1

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(channels, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.down = None
        if stride != 1 or channels != width:
            self.down = nn.Sequential(conv(channels, width, 1, stride), nn.BatchNorm2d(width))

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.down is None else self.down(x)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.down = None
        if stride != 1 or channels != 4 * width:
            self.down = nn.Sequential(conv(channels, 4 * width, 1, stride), nn.BatchNorm2d(4 * width))

    def forward(self, x):
        out = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.down is None else self.down(x)))


class PreactBottleneck(nn.Module):
    expansion = 4

    def __init__(self, channels, width, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, width, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width, 3, stride)
        self.bn3, self.conv3 = nn.BatchNorm2d(width), conv(width, 4 * width, 1)
        self.relu = nn.ReLU(inplace=True)
        self.down = conv(channels, 4 * width, 1, stride) if stride != 1 or channels != 4 * width else None

    def forward(self, x):
        out = self.relu(self.bn1(x))
        shortcut = x if self.down is None else self.down(out)
        out = self.conv2(self.relu(self.bn2(self.conv1(out))))
        return self.conv3(self.relu(self.bn3(out))) + shortcut


NETWORKS = {  # name: (block, blocks per stage, widths, has a stem for small images)
    "resnet18": (Basic, (2, 2, 2, 2), (64, 128, 256, 512), False),
    "resnet18 (small stem)": (Basic, (2, 2, 2, 2), (64, 128, 256, 512), True),
    "resnet50": (Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), False),
    "resnet20": (Basic, (3, 3, 3), (16, 32, 64), True),
    "resnet56": (Basic, (9, 9, 9), (16, 32, 64), True),
    "resnet110": (Basic, (18, 18, 18), (16, 32, 64), True),
    "resnet1202": (Basic, (200, 200, 200), (16, 32, 64), True),
    "resnetv2_164": (PreactBottleneck, (18, 18, 18), (16, 32, 64), True),
    "resnetv2_1001": (PreactBottleneck, (111, 111, 111), (16, 32, 64), True),
}


def network(name, num_classes=10):
    block, layers, widths, small = NETWORKS[name]
    channels = widths[0]
    parts = [conv(3, channels, 3)] if small else [conv(3, channels, 7, 2)]
    preact = block is PreactBottleneck
    if not preact:
        parts += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    if not small:
        parts.append(nn.MaxPool2d(3, 2, 1))
    for stage, (count, width) in enumerate(zip(layers, widths, strict=True)):
        for index in range(count):
            parts.append(block(channels, width, 2 if stage and not index else 1))
            channels = width * block.expansion
    if preact:
        parts += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def prepared(name, way, num_classes=10):
    """Return (network, memory format of the input, context of the forward pass) of a variant."""
    model = network(name, num_classes)
    if way == "plain":
        return model, torch.contiguous_format, nullcontext
    model = model.to(memory_format=torch.channels_last)
    if way == "compiled":
        model = torch.compile(model)
    return model, torch.channels_last, lambda: torch.autocast("cpu", torch.bfloat16)


class Photographs(torch.utils.data.Dataset):
    """Training images of a folder with train/ and a subfolder per class, with random resized crop and flip.

    Each image is opened, cropped and resized with Pillow, like in torchvision.
    """

    def __init__(self, folder, size):
        names = sorted(path for path in Path(folder, "train").iterdir() if path.is_dir())
        self.files = [(path, label) for label, name in enumerate(names) for path in sorted(name.iterdir())]
        self.size = size
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        path, label = self.files[index]
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        width, height = image.size
        area = width * height * random.uniform(0.35, 1.0)
        ratio = math.exp(random.uniform(-math.log(4 / 3), math.log(4 / 3)))
        w, h = min(width, round((area * ratio) ** 0.5)), min(height, round((area / ratio) ** 0.5))
        left, top = random.randint(0, width - w), random.randint(0, height - h)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, (left, top, left + w, top + h))
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
        x = x.sub_(self.mean).div_(self.std)
        return x.flip(-1) if random.random() < 0.5 else x, label
