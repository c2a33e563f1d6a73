"""A detection and a segmentation network on a backbone, and torchvision's way to take a network apart.

The heads are built in the style of torchvision's FPN and DeepLab, from torch's own layers.
"""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import skipway as sw

OPTIONS = {
    "resnet18": {"layers": (2, 1, 1, 1), "widths": (4, 6, 8, 10)},
    "resnetv2_50": {"layers": (1, 1, 1, 1), "widths": (4, 6, 8, 10)},
    "densenet121": {"layers": (2, 2, 2, 2), "growth": 4},
    "convnext_atto": {"layers": (1, 1, 1, 1), "widths": (4, 6, 8, 10)},
    "mobilenetv2_050": {},
}


class Pyramid(nn.Module):
    """Lateral 1x1 convolutions, a path from coarse to fine, and 3x3 convolutions."""

    def __init__(self, channels, width):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)

    def forward(self, maps):
        x, outputs = None, []
        for level, lateral, smooth in zip(maps[::-1], self.lateral[::-1], self.smooth[::-1], strict=True):
            side = lateral(level)
            x = side if x is None else side + F.interpolate(x, size=side.shape[-2:])
            outputs.append(smooth(x))
        return outputs[::-1]


class Detector(nn.Module):
    """Class scores and boxes for every position of every level."""

    def __init__(self, backbone, num_classes, width=8):
        super().__init__()
        self.backbone = backbone
        self.neck = Pyramid(backbone.feature_info.channels(), width)
        self.scores, self.boxes = nn.Conv2d(width, num_classes, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x):
        levels = self.neck(self.backbone(x))
        return [torch.cat([self.scores(level), self.boxes(level).exp()], 1).flatten(2) for level in levels]


class Segmenter(nn.Module):
    """Atrous spatial pyramid pooling over the last map, upsampled to the image."""

    def __init__(self, backbone, num_classes, width=8, rates=(2, 4)):
        super().__init__()
        (channels,) = backbone.feature_info.channels()
        branches = [nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())]
        for rate in rates:
            conv = nn.Conv2d(channels, width, 3, padding=rate, dilation=rate, bias=False)
            branches.append(nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU()))
        self.backbone, self.branches = backbone, nn.ModuleList(branches)
        self.image_level = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, width, 1), nn.ReLU())
        self.head = nn.Conv2d(width * (len(branches) + 1), num_classes, 1)

    def forward(self, x):
        (last,) = self.backbone(x)
        maps = [branch(last) for branch in self.branches]
        maps.append(F.interpolate(self.image_level(last), size=last.shape[-2:]))
        return F.interpolate(self.head(torch.cat(maps, 1)), size=x.shape[-2:], mode="bilinear", align_corners=False)


def trained(name):
    """Return a network whose state no fresh one has."""
    torch.manual_seed(1)
    network = sw.create_model(name, 3, **OPTIONS[name])
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.rand_like(tensor))
    return network.eval()


@pytest.mark.parametrize("name", OPTIONS)
def test_a_detector_starts_from_a_trained_network(name):
    network = trained(name)

    def build():
        return Detector(sw.create_model(name, features_only=True, out_indices=3, **OPTIONS[name]), num_classes=2)

    detector = build()
    dropped = detector.backbone.load_state_dict(network.state_dict()).unexpected_keys
    assert {"head.weight", "head.bias"} <= set(dropped)
    assert detector.backbone.feature_info.reduction() == [8, 16, 32]
    x = torch.randn(2, 3, 96, 64)
    expected = network.forward_intermediates(x, 3, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(detector.eval().backbone(x), expected, strict=True))
    outputs = detector.train()(x)
    assert [out.shape for out in outputs] == [(2, 6, 12 * 8), (2, 6, 6 * 4), (2, 6, 3 * 2)]
    sum(out.square().mean() for out in outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    copy = build()
    copy.load_state_dict(detector.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(copy.eval()(x), detector.eval()(x), strict=True))


@pytest.mark.parametrize("name, stride", [*dict.fromkeys(OPTIONS).items(), ("resnet18", 8)])
def test_a_segmenter_starts_from_a_trained_network(name, stride):
    network, dilation = trained(name), {} if stride is None else {"output_stride": stride}

    def build():
        backbone = sw.create_model(name, features_only=True, out_indices=(-1,), **OPTIONS[name], **dilation)
        assert backbone.feature_info.reduction() == [stride or 32]
        return Segmenter(backbone, num_classes=5)

    segmenter = build()
    segmenter.backbone.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 64, 96)
    out = segmenter.train()(x)
    assert out.shape == (2, 5, 64, 96)
    F.cross_entropy(out, torch.randint(5, (2, 64, 96))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in segmenter.parameters())
    copy = build()
    copy.load_state_dict(segmenter.state_dict())
    assert torch.equal(copy.eval()(x), segmenter.eval()(x))


class LayerGetter(nn.ModuleDict):
    """The children of a model up to the last of `return_layers` (name -> key of the output), called in order."""

    def __init__(self, model, return_layers):
        names = [name for name, _ in model.named_children()]
        end = max(names.index(name) for name in return_layers) + 1
        super().__init__(OrderedDict((name, getattr(model, name)) for name in names[:end]))
        self.return_layers = dict(return_layers)

    def forward(self, x):
        outputs = OrderedDict()
        for name, module in self.items():
            x = module(x)
            if name in self.return_layers:
                outputs[self.return_layers[name]] = x
        return outputs


@pytest.mark.parametrize("name", [*OPTIONS, "resnet9", "revnet38"])
def test_children_are_in_the_order_of_their_calls(name):
    network = trained(name) if name in OPTIONS else sw.create_model(name).eval()
    x = torch.randn(2, 3, 64, 64)
    names = [child for child, _ in network.named_children()]
    stages = [child for child in names if child.startswith("stage")]
    outputs = LayerGetter(network, {stages[-2]: "aux", stages[-1]: "out"})(x)
    expected = sw.Features(network).eval()(x)
    assert list(outputs) == ["aux", "out"] and torch.equal(outputs["out"], expected[-1])
    assert torch.equal(LayerGetter(network, {names[-1]: "logits"})(x)["logits"], network(x))
