"""Measure the ranges of values inside a network over images, as one histogram for each value.

Two passes over the batches: the first finds the ends of each range, the second counts values between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.errors import LoadError
from trp_export.inputs.samples import Batch
from trp_export.precision.grids import Grid, grid_between
from trp_export.runtime.partial import Tap

_BINS = 2048
# The shares of the full range among which the one with the least error is chosen.
_SHARES = np.linspace(0.3, 1.0, 71)


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """A histogram: counts in bins of equal width from `low` to `high`."""

    low: float
    high: float
    counts: NDArray[np.int64]


def gather_spreads(model: ir.Model, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, Spread]:
    """The histogram of every named value. Raises LoadError where a value is not finite."""
    tap = Tap(model, [value.name or "" for value in model.graph.inputs], names)
    ends: dict[str, tuple[float, float]] = {}
    for batch in batches:
        for name, array in tap(batch.arrays).items():
            if not array.size:  # A detector may find nothing in an image.
                continue
            low, high = float(array.min()), float(array.max())
            if not np.isfinite(low + high):
                raise LoadError(f"{name} is not finite on the calibration images.")
            before = ends.get(name, (low, high))
            ends[name] = min(before[0], low), max(before[1], high)
    ends = dict.fromkeys(names, (0.0, 0.0)) | ends
    counts = {name: np.zeros(_BINS, dtype=np.int64) for name in ends}
    for batch in batches:
        for name, array in tap(batch.arrays).items():
            counts[name] += _count(array, *ends[name])
    return {name: Spread(*ends[name], counts[name]) for name in ends}


def _count(array: NDArray[Any], low: float, high: float) -> NDArray[np.int64]:
    width = (high - low) / _BINS
    if not width > 0:
        return np.zeros(_BINS, dtype=np.int64)
    index = ((array.reshape(-1) - low) * np.float32(1 / width)).astype(np.int32)
    # A network that draws random numbers may leave the range that its first run had.
    return np.bincount(np.clip(index, 0, _BINS - 1), minlength=_BINS)


def least_error(spread: Spread) -> Grid:
    """The grid with the least mean squared error: clipping a few values may cost less than coarser steps for all."""
    width = (spread.high - spread.low) / _BINS
    centres = spread.low + width * (np.arange(_BINS) + 0.5)
    best, least = grid_between(spread.low, spread.high), np.inf
    for share in _SHARES:
        grid = grid_between(spread.low * share, spread.high * share)
        ends = -grid.zero * grid.scale, (255 - grid.zero) * grid.scale
        beyond = centres - np.clip(centres, *ends)
        # Inside the range, rounding errors are uniform over a step.
        error = float(np.dot(spread.counts, np.where(beyond == 0, grid.scale**2 / 12, beyond**2)))
        if error <= least:
            best, least = grid, error
    return best


def full_range(spread: Spread) -> Grid:
    return grid_between(spread.low, spread.high)


METHODS: Mapping[str, Callable[[Spread], Grid]] = {"full range": full_range, "least error": least_error}
