"""A small network of each family of images, and images for it."""

import torch

import skipway as sw

SMALL = {
    "resnet18": {"layers": (1, 1), "widths": (4, 8)},
    "resnetv2_18": {"layers": (1, 1), "widths": (4, 8)},
    "densenet121": {"layers": (2, 2), "growth": 4},
    "mobilenetv2_100": {
        "layers": (1, 1),
        "widths": (4, 8),
        "kernels": (3, 3),
        "strides": (1, 2),
        "expansions": (1, 6),
        "stem_channels": 8,
        "final_channels": 16,
    },
    "convnext_atto": {"layers": (1, 1), "widths": (4, 8)},
    "resnet9": {"widths": (4, 8, 8), "layers": (1, 1)},
}


def small(name, **options):
    torch.manual_seed(0)
    return sw.create_model(name, **{**SMALL[name], **options})


def images(size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
