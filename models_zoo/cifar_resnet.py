"""He's residual networks for CIFAR: 6n+2 layers, with option-A shortcuts, which have no weights.

Source: He et al., "Deep Residual Learning for Image Recognition", 2015, section 4.2.
The state-dict keys are those of the widely shared checkpoints (`layer1.0.conv1.weight`, `linear.weight`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models_zoo.trunk import Trunk


class PadShortcut(nn.Module):
    """Option A: every second pixel, zero channels added on both sides; (n, c, h, w) -> (n, 2c, h/2, w/2)."""

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.padding = (0, 0, 0, 0, extra_channels // 2, extra_channels - extra_channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], self.padding)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        same = stride == 1 and in_channels == channels
        self.shortcut: nn.Module = nn.Identity() if same else PadShortcut(channels - in_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(Trunk):
    """(n, 3, 32, 32) -> (n, classes) logits; `depth` is 6 * blocks + 2, `width` scales its channels (16, 32, 64)."""

    def __init__(self, depth: int, classes: int = 10, width: float = 1.0, stem_stride: int = 1) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth {depth} is not 6n+2 for a whole n of at least 1")
        blocks = (depth - 2) // 6
        narrow = max(1, round(16 * width))
        middle, wide = 2 * narrow, 4 * narrow
        self.channels = (narrow, narrow, middle, wide)
        self.conv1 = nn.Conv2d(3, narrow, 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.layer1 = self._stage(narrow, narrow, blocks, stride=1)
        self.layer2 = self._stage(narrow, middle, blocks, stride=2)
        self.layer3 = self._stage(middle, wide, blocks, stride=2)
        self.linear = nn.Linear(wide, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        return self.layer1, self.layer2, self.layer3

    def stem(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn1(self.conv1(x)))

    def head(self, features: Sequence[Tensor], size: torch.Size) -> Tensor:
        logits: Tensor = self.linear(torch.mean(features[-1], dim=(2, 3)))
        return logits
