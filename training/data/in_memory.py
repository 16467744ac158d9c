"""Batches made on the device: shuffled by epoch and augmented by step, each as a function of its seed alone.

No state passes from one step to the next, so a run that is resumed after any step gets the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from training.data.batches import Examples
from training.data.images import LabelledImages
from training.data.normalisation import Normalisation
from training.data.seeds import generator, mixed_seed
from training.data.transforms import BatchMix


class BatchesInMemory:
    """Random crops of images padded by an eighth, flipped at random (He et al. 2015, section 4.2), then mixed.

    `share` is (process, processes) of a distributed run: each draws the same batch, takes its part, and mixes that.
    """

    def __init__(
        self,
        images: LabelledImages,
        normalisation: Normalisation,
        batch: int,
        seed: int,
        device: torch.device,
        share: tuple[int, int] = (0, 1),
        mix: BatchMix | None = None,
    ) -> None:
        self._normalise, self._batch, self._seed, self._share = normalisation, batch, seed, share
        self._mix = mix
        count, height, width, _ = images.images.shape
        self._margin, self._extent, self._count = height // 8, (height, width), count
        margin = self._margin
        padded = normalisation.neutral_pixel().expand(count, height + 2 * margin, width + 2 * margin, 3).clone()
        padded[:, margin : margin + height, margin : margin + width] = images.images
        self._padded, self._labels = padded.to(device), images.labels.to(device)

    def __len__(self) -> int:
        return self._count // self._batch

    def epoch(self, epoch: int, first_step: int = 0) -> Examples:
        for step, (x, y) in enumerate(self._batches(epoch, first_step, self._share), first_step):
            seed = mixed_seed(self._seed, epoch, step, self._share[0])
            yield (x, y) if self._mix is None else self._mix(x, y, seed)

    def inputs(self, count: int) -> Iterator[Tensor]:
        return (x for _, (x, _) in zip(range(count), self._batches(-1, 0, (0, 1)), strict=False))

    def _batches(self, epoch: int, first_step: int, share: tuple[int, int]) -> Examples:
        order = torch.randperm(self._count, generator=generator(self._seed, epoch, -1))
        for step in range(first_step, len(self)):
            chosen = order[step * self._batch : (step + 1) * self._batch]
            yield self._augmented(chosen, generator(self._seed, epoch, step), slice(share[0], None, share[1]))

    def _augmented(self, chosen: Tensor, random: torch.Generator, share: slice) -> tuple[Tensor, Tensor]:
        height, width = self._extent
        count, device = len(chosen), self._padded.device
        top, left = torch.randint(0, 2 * self._margin + 1, (2, count, 1), generator=random)
        flip = torch.rand(count, 1, generator=random) < 0.5
        across = torch.arange(width).expand(count, width)
        columns = (left + torch.where(flip, width - 1 - across, across))[:, None, :]
        rows = (top + torch.arange(height))[:, :, None]
        index = (chosen[share, None, None].to(device), rows[share].to(device), columns[share].to(device))
        return self._normalise(self._padded[index]), self._labels[index[0][:, 0, 0]]


class ValidationInMemory:
    """Validation images that lie in memory as bytes."""

    def __init__(
        self,
        images: LabelledImages,
        normalisation: Normalisation,
        device: torch.device,
        share: tuple[int, int] = (0, 1),
        batch: int = 500,
    ) -> None:
        self._images, self._normalise, self._device, self._batch = images, normalisation, device, batch
        self._share = slice(share[0], None, share[1])

    def batches(self) -> Examples:
        images = self._images
        for pixels, labels in zip(images.images.split(self._batch), images.labels.split(self._batch), strict=True):  # type: ignore[no-untyped-call]
            yield self._normalise(pixels[self._share].to(self._device)), labels[self._share].to(self._device)
