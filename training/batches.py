"""Batches made on the device: shuffled by epoch and augmented by step, each as a function of its seed alone.

No state passes from one step to the next, so a run that is resumed after any step gets the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data import LabelledImages


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Bytes to floats: (pixel / 255 - mean) / std, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (b, h, w, 3) -> float32 (b, 3, h, w), channels last in memory."""
        scale = torch.tensor([1 / (255 * s) for s in self.std], device=pixels.device)
        shift = torch.tensor([m / s for m, s in zip(self.mean, self.std, strict=True)], device=pixels.device)
        return (pixels.float() * scale - shift).permute(0, 3, 1, 2)

    def neutral_pixel(self) -> Tensor:
        """The byte of each channel that is closest to zero after normalisation; crops are padded with it."""
        return torch.tensor([round(255 * m) for m in self.mean], dtype=torch.uint8)


class TrainingBatches:
    """Random crops of images padded by an eighth, flipped at random (He et al. 2015, section 4.2).

    Every process of a distributed run draws the same batch and takes its `share` of it: (process, processes).
    """

    def __init__(
        self,
        images: LabelledImages,
        normalisation: Normalisation,
        batch: int,
        seed: int,
        device: torch.device,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._normalise, self._batch, self._seed, self._share = normalisation, batch, seed, share
        count, height, width, _ = images.images.shape
        self._margin, self._extent, self._count = height // 8, (height, width), count
        margin = self._margin
        padded = normalisation.neutral_pixel().expand(count, height + 2 * margin, width + 2 * margin, 3).clone()
        padded[:, margin : margin + height, margin : margin + width] = images.images
        self._padded, self._labels = padded.to(device), images.labels.to(device)

    def __len__(self) -> int:
        """Steps in an epoch; the last, partial batch is left out."""
        return self._count // self._batch

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of every step from `first_step` on: floats (b, 3, h, w) and labels (b,)."""
        return self._batches(epoch, first_step, self._share)

    def inputs(self, count: int) -> Iterator[Tensor]:
        """`count` whole batches of inputs, the same on every call, for batch norm statistics."""
        return (x for _, (x, _) in zip(range(count), self._batches(-1, 0, (0, 1)), strict=False))

    def _batches(self, epoch: int, first_step: int, share: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(self._count, generator=_generator(self._seed, epoch, -1))
        for step in range(first_step, len(self)):
            chosen = order[step * self._batch : (step + 1) * self._batch]
            yield self._augmented(chosen, _generator(self._seed, epoch, step), slice(share[0], None, share[1]))

    def _augmented(self, chosen: Tensor, generator: torch.Generator, share: slice) -> tuple[Tensor, Tensor]:
        height, width = self._extent
        count, device = len(chosen), self._padded.device
        top, left = torch.randint(0, 2 * self._margin + 1, (2, count, 1), generator=generator)
        flip = torch.rand(count, 1, generator=generator) < 0.5
        across = torch.arange(width).expand(count, width)
        columns = (left + torch.where(flip, width - 1 - across, across))[:, None, :]
        rows = (top + torch.arange(height))[:, :, None]
        index = (chosen[share, None, None].to(device), rows[share].to(device), columns[share].to(device))
        return self._normalise(self._padded[index]), self._labels[index[0][:, 0, 0]]


def evaluation_batches(
    images: LabelledImages, normalisation: Normalisation, device: torch.device, batch: int = 500
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images in order, without augmentation: floats (b, 3, h, w) and labels (b,)."""
    for pixels, labels in zip(images.images.split(batch), images.labels.split(batch), strict=True):  # type: ignore[no-untyped-call]
        yield normalisation(pixels.to(device)), labels.to(device)


def _generator(*parts: int) -> torch.Generator:
    """A generator whose stream is unrelated to that of any other combination of parts."""
    return torch.Generator().manual_seed(_mix(parts))


def _mix(parts: Sequence[int]) -> int:
    """Splitmix64 over the parts, so that neighbouring seeds do not give similar streams."""
    state = 0
    for part in parts:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
