"""torchvision's transforms for images of any size, on the bytes of one image and on the floats of a batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.data.augmentation import Augmentation
from training.data.seeds import seeded

# The short side before the centre crop, as torchvision's and most published validations have it: 256 for 224.
_RESIZE = 256 / 224

Transform = Callable[[Image.Image], Image.Image]


def training_transform(augmentation: Augmentation, size: tuple[int, int]) -> Transform:
    """A random crop of `size` (h, w), flipped at random, and the operations that are switched on."""
    from torchvision.transforms import InterpolationMode, v2

    steps: list[Transform] = [
        v2.RandomResizedCrop(size, scale=(augmentation.crop, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
    ]
    if augmentation.jitter:
        steps.append(v2.ColorJitter(augmentation.jitter, augmentation.jitter, augmentation.jitter))
    if augmentation.randaugment:
        steps.append(v2.RandAugment(magnitude=augmentation.randaugment, interpolation=InterpolationMode.BILINEAR))
    composed: Transform = v2.Compose(steps)
    return composed


def validation_transform(size: tuple[int, int]) -> Transform:
    """The short side resized to 8/7 of the network's, then the centre."""
    from torchvision.transforms import v2

    composed: Transform = v2.Compose([v2.Resize(round(min(size) * _RESIZE), antialias=True), v2.CenterCrop(size)])
    return composed


def pixels_of(image: Image.Image) -> Tensor:
    """uint8 (h, w, 3)."""
    return torch.from_numpy(np.array(image))


def transformed(image: Image.Image, transform: Transform, seed: int) -> Tensor:
    """The pixels of the image after a transform whose random numbers follow from `seed` alone."""
    with seeded(seed):
        return pixels_of(transform(image))


class BatchMix:
    """Mixup or CutMix of a batch, of both one at random. Labels become shares of classes (b, classes)."""

    def __init__(self, augmentation: Augmentation, classes: int) -> None:
        self._mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
        if not augmentation.mixes:
            return
        from torchvision.transforms import v2

        mixes = []
        if augmentation.mixup:
            mixes.append(v2.MixUp(alpha=float(augmentation.mixup), num_classes=classes))
        if augmentation.cutmix:
            mixes.append(v2.CutMix(alpha=float(augmentation.cutmix), num_classes=classes))
        self._mix = v2.RandomChoice(mixes)

    def __call__(self, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        if self._mix is None:
            return x, y
        with seeded(seed):
            return self._mix(x, y)
