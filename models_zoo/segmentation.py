"""A small network for semantic segmentation: the stages of a CIFAR ResNet as encoder, and a head of added scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models_zoo.cifar_resnet import CifarResNet


class SegmentationResNet(CifarResNet):
    """(n, 3, h, w) -> scores of each pixel (n, classes, h, w). The stem has stride 2.

    The head adds the scores of all stages, the coarse ones enlarged: Long et al., "Fully Convolutional Networks for
    Semantic Segmentation", 2015.
    """

    def __init__(self, depth: int, classes: int = 11, width: float = 1.0) -> None:
        super().__init__(depth, classes, width, stem_stride=2)
        del self.linear
        self.scores = nn.ModuleList(nn.Conv2d(channels, classes, 1) for channels in self.channels[1:])

    def head(self, features: Sequence[Tensor], size: torch.Size) -> Tensor:
        *others, scores = (conv(x) for conv, x in zip(self.scores, features, strict=True))
        for finer in reversed(others):
            scores = finer + _resized(scores, finer.shape[2:])
        return _resized(scores, size)


def _resized(scores: Tensor, size: torch.Size) -> Tensor:
    return functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)
