"""Small networks to train in tests; `tiny_networks:tiny` is an architecture name."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Tiny(nn.Module):
    """(n, 3, 8, 8) -> (n, classes): a stem, two 3x3 convs of which one strides, a 1x1 and a Linear."""

    def __init__(self, num_classes: int = 4, norm: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=not norm)
        self.norm, self.norm1, self.norm2 = (nn.BatchNorm2d(n) if norm else nn.Identity() for n in (8, 12, 12))
        self.conv1 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1)
        self.point = nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.norm1(self.conv1(x)).relu()
        x = self.norm2(self.conv2(x)).relu()
        return self.head(self.point(x).relu().mean((2, 3)))


def tiny(num_classes: int = 4) -> nn.Module:
    return Tiny(num_classes)


def tiny_without_norm(num_classes: int = 4) -> nn.Module:
    return Tiny(num_classes, norm=False)


class TinyDropout(Tiny):
    """Half of what its head reads is dropped at random."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(self.norm(self.stem(x)).relu())).relu()
        return self.head(functional.dropout(self.norm2(self.conv2(x)).relu().mean((2, 3)), training=self.training))


def tiny_dropout(num_classes: int = 4) -> nn.Module:
    return TinyDropout(num_classes)


class TinyWithFeatures(Tiny):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


def tiny_with_features(num_classes: int = 4) -> nn.Module:
    return TinyWithFeatures(num_classes)


class TinyTwice(Tiny):
    """Its second conv and batch norm run twice, as in a network with recurrent gates."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(self.norm(self.stem(x)).relu())).relu()
        for _ in range(2):
            x = self.norm2(self.conv2(x)).relu()
        return self.head(self.point(x).relu().mean((2, 3)))


def tiny_twice(num_classes: int = 4) -> nn.Module:
    return TinyTwice(num_classes)
