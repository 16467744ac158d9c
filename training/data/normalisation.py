"""Bytes to the numbers that a network takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Bytes to floats: (pixel / 255 - mean) / std, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (b, h, w, 3) -> float32 (b, 3, h, w), channels last in memory."""
        width = pixels.shape[2]
        scale = torch.tensor([1 / (255 * s) for s in self.std] * width, device=pixels.device)
        shift = torch.tensor([m / s for m, s in zip(self.mean, self.std, strict=True)] * width, device=pixels.device)
        # In place and a row at a time: by pixels of three numbers, or with copies, this takes several times as long.
        floats = pixels.float().flatten(2).mul_(scale).sub_(shift)
        return floats.view(pixels.shape).permute(0, 3, 1, 2)

    def neutral_pixel(self) -> Tensor:
        """The byte of each channel that is closest to zero after normalisation; crops are padded with it."""
        return torch.tensor([round(255 * m) for m in self.mean], dtype=torch.uint8)
