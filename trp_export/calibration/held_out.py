"""Keep part of the calibration images aside: whatever is made from the others is judged on these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trp_export.inputs.image_set import ImageSet, Pixels

Array = NDArray[Any]

# One image in four, and no more than judge well: their error is an average over all of them.
_ONE_IN = 4
_MOST = 256
# Neighbours in a folder may be frames of one film: images are held out in runs, of which there are this many.
_RUNS = 8


def split_images(images: ImageSet, multiple: int = 1) -> tuple[ImageSet, ImageSet | None]:
    """The images to fit to, and those held out; None where there are too few for both.

    `multiple` is the number of images that the model takes at a time: each part then fills whole batches.
    """
    units = len(images) // multiple
    wanted = min(max(units // _ONE_IN, 1), max(_MOST // multiple, 1))
    if units < 2:
        return images, None
    runs = min(_RUNS, wanted)
    ends = (np.arange(1, runs + 1) * units) // runs
    lengths = np.diff((np.arange(runs + 1) * wanted) // runs)
    held = np.zeros(len(images), dtype=bool)
    for end, length in zip(ends, lengths, strict=True):
        held[(end - length) * multiple : end * multiple] = True
    shown = ~held
    return _subset(images, np.flatnonzero(shown)), _subset(images, np.flatnonzero(held))


def take_images(batches: Sequence[Array], count: int, *, whole: bool) -> Sequence[Array]:
    """About `count` images, evenly spaced over all batches; `whole` batches for a model of a fixed batch size."""
    total = sum(len(batch) for batch in batches)
    if count >= total:
        return batches
    if whole:
        chosen = np.unique(np.linspace(0, len(batches) - 1, max(1, count // len(batches[0]))).astype(int))
        return [batches[index] for index in chosen]
    places = np.linspace(0, total - 1, max(1, count)).astype(int)
    starts = np.cumsum([0, *(len(batch) for batch in batches)])
    parts = [batch[places[(places >= start) & (places < start + len(batch))] - start]
             for batch, start in zip(batches, starts, strict=False)]  # fmt: skip
    return [part for part in parts if len(part)]


def _subset(images: ImageSet, places: NDArray[np.intp]) -> ImageSet:
    pixels: Pixels = (
        tuple(images.pixels[i] for i in places) if isinstance(images.pixels, tuple) else images.pixels[places]
    )
    labels = images.labels[places] if images.labels is not None else None
    return replace(images, pixels=pixels, labels=labels)
