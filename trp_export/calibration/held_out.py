"""Keep part of the calibration samples aside: whatever is made from the others is judged on these."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trp_export.inputs.samples import Batch, Samples

# One image in four, and no more than judge well: their error is an average over all of them.
_ONE_IN = 4
_MOST = 256
# Neighbours in a folder may be frames of one film: images are held out in runs, of which there are this many.
_RUNS = 8


def split_samples(samples: Samples) -> tuple[Samples, Samples | None]:
    """The samples to fit to, and those held out; None where there are too few for both.

    Each part fills whole batches of a network that takes a fixed number at a time.
    """
    multiple = samples.at_a_time or 1
    units = len(samples) // multiple
    wanted = min(max(units // _ONE_IN, 1), max(_MOST // multiple, 1))
    if units < 2:
        return samples, None
    runs = min(_RUNS, wanted)
    ends = (np.arange(1, runs + 1) * units) // runs
    lengths = np.diff((np.arange(runs + 1) * wanted) // runs)
    held = np.zeros(len(samples), dtype=bool)
    for end, length in zip(ends, lengths, strict=True):
        held[(end - length) * multiple : end * multiple] = True
    return samples.take(np.flatnonzero(~held)), samples.take(np.flatnonzero(held))


def take_samples(batches: Sequence[Batch], count: int) -> Sequence[Batch]:
    """About `count` samples, evenly spaced over all batches; whole batches where these are of a fixed size."""
    total = sum(len(batch) for batch in batches)
    if count >= total:
        return batches
    if batches[0].fixed:
        chosen = np.unique(np.linspace(0, len(batches) - 1, max(1, count // len(batches[0]))).astype(int))
        return [batches[index] for index in chosen]
    places = np.linspace(0, total - 1, max(1, count)).astype(int)
    starts = np.cumsum([0, *(len(batch) for batch in batches)])
    parts = [batch[places[(places >= start) & (places < start + len(batch))] - start]
             for batch, start in zip(batches, starts, strict=False)]  # fmt: skip
    return [part for part in parts if len(part)]
