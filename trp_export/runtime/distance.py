"""How far the outputs of two models are apart: the one definition for verification, precisions and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trp_export.runtime.blocks import in_blocks
from trp_export.runtime.sessions import Array


@dataclass(frozen=True, slots=True)
class Distance:
    """The largest relative L2 and the largest absolute difference over all outputs."""

    relative_l2: float
    max_abs: float


NO_DISTANCE = Distance(0.0, 0.0)


def distance(wanted: Sequence[Array], got: Sequence[Array]) -> Distance:
    """Between the outputs of two models; infinite where their number, shapes or types differ."""
    if len(wanted) != len(got):
        return Distance(np.inf, np.inf)
    return largest([distance_of(a, b) for a, b in zip(wanted, got, strict=True)])


def largest(distances: Sequence[Distance]) -> Distance:
    """The largest of each kind."""
    return Distance(
        max((one.relative_l2 for one in distances), default=0.0), max((one.max_abs for one in distances), default=0.0)
    )


def distance_of(wanted: Array, got: Array) -> Distance:
    """Between two arrays: |wanted - got| / |wanted| in L2, and max |wanted - got|.

    The same infinity or NaN at the same place is no difference; at different places the distance is infinite.
    For whole numbers, booleans and text the share of entries that differ takes the place of the relative L2.
    """
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return Distance(np.inf, np.inf)
    if not wanted.size:
        return NO_DISTANCE
    if wanted.dtype.kind in "USO":
        return Distance(float(np.mean(wanted != got)), 0.0)
    if wanted.dtype.kind in "iub":
        gap = np.abs(wanted.astype(np.float64) - got.astype(np.float64))
        return Distance(float(np.mean(wanted != got)), float(gap.max()))
    size = apart = most = 0.0
    for left, right in in_blocks(wanted.reshape(-1), got.reshape(-1)):
        finite = np.isfinite(left)
        if not finite.all():
            if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
                return Distance(np.inf, np.inf)
            left, right = left[finite], right[finite]
        if not np.isfinite(right).all():
            return Distance(np.inf, np.inf)
        difference = left - right
        size, apart = size + float(left @ left), apart + float(difference @ difference)
        most = max(most, float(np.abs(difference).max(initial=0.0)))
    relative = np.sqrt(apart / size) if size > 0 else (0.0 if apart == 0 else np.inf)
    return Distance(float(relative), most)
