"""A plain network for CIFAR-10 of seven wide convolutions: few layers, 64 to 256 channels.

Sources: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014, for plain
stacks of 3x3 kernels; Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, for the shape of the blocks.
"""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (64, 192, 256)


class CifarVGG(nn.Module):
    """(n, 3, 32, 32) -> (n, classes) logits; a stem, then a block of two convolutions for each width."""

    def __init__(self, classes: int = 10, stem: int = 32) -> None:
        super().__init__()
        channels = stem
        self.stem = _conv(3, stem, padding=0)
        self.blocks = nn.Sequential()
        for width in WIDTHS:
            self.blocks.append(nn.Sequential(_conv(channels, width), nn.MaxPool2d(2), _conv(width, width)))
            channels = width
        self.linear = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


def _conv(in_channels: int, channels: int, padding: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, 3, padding=padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
