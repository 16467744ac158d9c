"""Batches of images that are read one by one: any number and any size, decoded and augmented in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from training.data.augmentation import Augmentation
from training.data.batches import Examples
from training.data.loader import Read, SampleReader, make_loader, read_batches, training_batch, validation_batch
from training.data.normalisation import Normalisation
from training.data.odd_images import OddImages
from training.data.reading import Samples
from training.data.seeds import generator, mixed_seed
from training.data.transforms import BatchMix, training_transform, validation_transform
from trp_export.errors import LoadError

VALIDATION_BATCH = 128
# Of the draws that do not belong to a step: the order of an epoch, and batches for batch norm statistics.
_ORDER, _STATISTICS_EPOCH = -1, -1
_WHOLE = (0, 1)


@dataclass(frozen=True, slots=True)
class Reading:
    """How images become batches. `share` is (process, processes); `size` (h, w) is the network's.

    `numbers` holds the network's number of each class of the images, None where labels are the network's already.
    """

    batch: int
    seed: int
    size: tuple[int, int]
    augmentation: Augmentation
    workers: int
    share: tuple[int, int]
    device: torch.device
    normalisation: Normalisation
    classes: int
    numbers: Tensor | None = None
    odd_images: OddImages = field(default_factory=OddImages)

    @property
    def pinned(self) -> bool:
        """Whether batches go to a GPU, which copies them faster from pinned memory."""
        return self.device.type == "cuda"

    def examples(self, batches: Iterator[Read]) -> Examples:
        """Batches on the device, normalised; what is odd about images is noted."""
        for pixels, labels, remarks, _ in batches:
            self.odd_images.add(remarks)
            if len(labels):
                known = self.classes if self.numbers is None else len(self.numbers)
                if (highest := int(labels.max())) >= known:
                    raise LoadError(f"label {highest} is outside the {known} classes.")
                if self.numbers is not None:
                    labels = self.numbers[labels]
                yield (
                    self.normalisation(pixels.to(self.device, non_blocking=True)),
                    labels.to(self.device, non_blocking=True),
                )


class Source(Protocol):
    """Where streamed images come from. `steps` is the number of whole batches in an epoch."""

    steps: int

    def training(self, epoch: int, first_step: int, share: tuple[int, int]) -> DataLoader[Read]:
        """The batches of an epoch from a step on."""
        ...

    def validation(self) -> DataLoader[Read]:
        """This process's share of the validation images."""
        ...


class StreamedBatches:
    """Training batches from a source."""

    def __init__(self, source: Source, reading: Reading) -> None:
        self._source, self._reading = source, reading
        self._mix = BatchMix(reading.augmentation, reading.classes)

    def __len__(self) -> int:
        return self._source.steps

    def epoch(self, epoch: int, first_step: int = 0) -> Examples:
        if first_step == len(self):
            return
        share, seed = self._reading.share, self._reading.seed
        batches = read_batches(self._source.training(epoch, first_step, share))
        for step, (x, y) in enumerate(self._reading.examples(batches), first_step):
            yield self._mix(x, y, mixed_seed(seed, epoch, step, share[0]))

    def inputs(self, count: int) -> Iterator[Tensor]:
        batches = read_batches(self._source.training(_STATISTICS_EPOCH, 0, _WHOLE))
        return (x for _, (x, _) in zip(range(min(count, len(self))), self._reading.examples(batches), strict=False))


class StreamedValidation:
    """Validation images from a source."""

    def __init__(self, source: Source, reading: Reading) -> None:
        self._source, self._reading = source, reading

    def batches(self) -> Examples:
        return self._reading.examples(read_batches(self._source.validation()))


class IndexedSource:
    """Images that can be read in any order; `held_out` are the indices of those for validation."""

    def __init__(self, samples: Samples, held_out: Tensor, reading: Reading) -> None:
        self._samples, self._reading, self._held_out = samples, reading, held_out
        mask = torch.ones(len(samples), dtype=torch.bool)
        mask[held_out] = False
        self._train = mask.nonzero()[:, 0]
        self.steps = len(self._train) // reading.batch

    def training(self, epoch: int, first_step: int, share: tuple[int, int]) -> DataLoader[Read]:
        reading = self._reading
        transform = training_transform(reading.augmentation, reading.size)
        draws = self._draws(epoch, first_step, share)
        return make_loader(
            SampleReader(self._samples, transform),
            draws,
            reading.workers,
            collate_fn=training_batch,
            pin_memory=reading.pinned,
        )

    def validation(self) -> DataLoader[Read]:
        reading = self._reading
        process, processes = reading.share
        mine = [(int(index), 0) for index in self._held_out[process::processes]]
        draws = [mine[start : start + VALIDATION_BATCH] for start in range(0, len(mine), VALIDATION_BATCH)]
        reader = SampleReader(self._samples, validation_transform(reading.size))
        return make_loader(reader, draws, reading.workers, collate_fn=validation_batch, pin_memory=reading.pinned)

    def _draws(self, epoch: int, first_step: int, share: tuple[int, int]) -> Iterator[list[tuple[int, int]]]:
        """Index and seed of this process's images, step by step. Copies of an image lie side by side in a batch."""
        reading = self._reading
        order = torch.randperm(len(self._train), generator=generator(reading.seed, epoch, _ORDER))
        repeated = self._train[order].repeat_interleave(reading.augmentation.repeat)
        for step in range(first_step, self.steps):
            places = range(step * reading.batch + share[0], (step + 1) * reading.batch, share[1])
            yield [(int(repeated[place]), mixed_seed(reading.seed, epoch, place)) for place in places]
