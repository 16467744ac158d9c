"""What a run needs of its data, whether it lies in memory or is streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

Examples = Iterator[tuple[Tensor, Tensor]]


class TrainingBatches(Protocol):
    """Batches that follow from the seed, the epoch and the step alone, so that a resumed run gets the same ones.

    Every process of a distributed run takes its share of the same batch.
    """

    def __len__(self) -> int:
        """Steps in an epoch."""
        ...

    def epoch(self, epoch: int, first_step: int = 0) -> Examples:
        """This process's share of every step from `first_step` on: floats (b, 3, h, w), labels (b,) or (b, classes)."""
        ...

    def inputs(self, count: int) -> Iterator[Tensor]:
        """`count` whole batches of inputs, the same on every call, for batch norm statistics."""
        ...


class ValidationImages(Protocol):
    """Images that take no part in training."""

    def batches(self) -> Examples:
        """This process's share, in order, without augmentation: floats (b, 3, h, w), labels (b,)."""
        ...
