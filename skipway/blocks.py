"""Bodies of the families, their norms, and how their weights begin.

Shapes: (B, C, H, W) in, (B, C', H/stride, W/stride) out.
Sources: basic and bottleneck, He et al. 2015, arXiv:1512.03385; the stride on the 3x3 of the bottleneck ("v1.5"),
Goyal et al. 2017, arXiv:1706.02677, which also zeroes the last norm of a body; initialisation, He et al. 2015,
arXiv:1502.01852.
"""

from torch import nn

from skipway.skip import Chain

__all__ = ["BODIES", "EXPANSION", "basic_body", "bottleneck_body", "conv_norm_act", "initialise", "zero_last_norm"]


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1; without a bias, since a norm follows."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)


def conv_norm_act(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> Chain:
    """Convolution, batch norm, ReLU."""
    return Chain(
        conv=conv(in_channels, out_channels, kernel_size, stride),
        norm=nn.BatchNorm2d(out_channels),
        act=nn.ReLU(inplace=True),  # in place on the norm's own output, never on the block's input
    )


def basic_body(in_channels: int, width: int, stride: int = 1) -> Chain:
    """Two 3x3 convolutions; out_channels = width."""
    return Chain(
        conv1=conv(in_channels, width, 3, stride),
        norm1=nn.BatchNorm2d(width),
        act1=nn.ReLU(inplace=True),
        conv2=conv(width, width, 3),
        norm2=nn.BatchNorm2d(width),
    )


def bottleneck_body(in_channels: int, width: int, stride: int = 1) -> Chain:
    """1x1 down to `width`, 3x3 (which has the stride), 1x1 up; out_channels = 4 * width."""
    return Chain(
        conv1=conv(in_channels, width, 1),
        norm1=nn.BatchNorm2d(width),
        act1=nn.ReLU(inplace=True),
        conv2=conv(width, width, 3, stride),
        norm2=nn.BatchNorm2d(width),
        act2=nn.ReLU(inplace=True),
        conv3=conv(width, 4 * width, 1),
        norm3=nn.BatchNorm2d(4 * width),
    )


BODIES = {"basic": basic_body, "bottleneck": bottleneck_body}
EXPANSION = {"basic": 1, "bottleneck": 4}


def initialise(network: nn.Module) -> None:
    """He initialisation of every convolution (normal, fan out), ones and zeros in every norm."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def zero_last_norm(body: Chain) -> None:
    """Make the body give zeros at first, so that its Skip starts as its shortcut.

    The norm must end the body: an activation after it would never get a gradient.
    """
    last = body[-1]
    if not isinstance(last, nn.BatchNorm2d):
        raise ValueError(f"zero_last_norm needs a body that ends with its norm, not with {last}")
    nn.init.zeros_(last.weight)
