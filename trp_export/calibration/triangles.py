"""The lower triangles of symmetric matrices, row by row: half the memory, and exactly the same values."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt

import numpy as np

from trp_export.lowrank.factor import Float64


def packed(matrices: Float64) -> Float64:
    """(groups, d, d) -> (groups, d (d + 1) / 2)."""
    half = np.empty((len(matrices), matrices.shape[1] * (matrices.shape[1] + 1) // 2))
    for index, row in enumerate(rows(half)):
        row[...] = matrices[:, index, : index + 1]
    return half


def unpacked(half: Float64) -> Float64:
    """(groups, d (d + 1) / 2) -> (groups, d, d)."""
    size = _size(half)
    matrices = np.empty((len(half), size, size))
    for index, row in enumerate(rows(half)):
        matrices[:, index, : index + 1] = row
        matrices[:, : index + 1, index] = row
    return matrices


def diagonal(half: Float64) -> Float64:
    """(groups, d (d + 1) / 2) -> (groups, d)."""
    return half[:, np.cumsum(np.arange(1, _size(half) + 1)) - 1]


def rows(half: Float64) -> Iterator[Float64]:
    """A view of each row of the triangles, the first of one value: (groups, row + 1)."""
    start = 0
    for length in range(1, _size(half) + 1):
        yield half[:, start : start + length]
        start += length


def _size(half: Float64) -> int:
    return (isqrt(8 * half.shape[1] + 1) - 1) // 2
