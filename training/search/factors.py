"""Factors whose slices are the factors of every smaller rank, so that all ranks need the memory of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from scipy.linalg import solve_triangular
from torch import Tensor

from training.matrices import fold
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.schemes import Array, Scheme, unfold

# Added to a covariance as a share of its mean diagonal, so that directions the images do not show still cost.
_RIDGE = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Nested:
    """The factors of one kernel under one scheme: `left` (matrices, rows, R) and `right` (matrices, R, columns).

    `lost` (R + 1,) is the share of the kernel, or of the layer's output, that each rank from 0 to R loses.
    """

    scheme: Scheme
    kernel_shape: tuple[int, ...]
    group: int
    left: Tensor
    right: Tensor
    lost: Float64

    def kernel(self, rank: int) -> Tensor:
        """The dense kernel (n, c/group, *k) of the pair of this rank."""
        return fold(self.left[:, :, :rank] @ self.right[:, :rank], self.scheme, self.kernel_shape, self.group)


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """The distance that the inputs' covariance defines, for schemes of the same axes.

    `rows` (group, a, a) is the covariance over rows, with slices of the input together, `taps` (group, b, b) the
    Cholesky factor of that over taps.
    """

    rows: Float64
    taps: Float64


def metric_of(covariance: Float64, kernel_shape: Sequence[int], reduce_axes: tuple[int, ...]) -> Metric:
    """The metric of a covariance (group, d, d) over patches (c/group, *k), as a Kronecker product of rows and taps."""
    _, c, *extents = kernel_shape
    reduced = [axis for axis in range(len(extents)) if axis in reduce_axes]
    others = [axis for axis in range(len(extents)) if axis not in reduce_axes]
    order = [0, *(1 + axis for axis in (*reduced, *others))]
    rows, taps = c * prod(extents[axis] for axis in reduced), prod(extents[axis] for axis in others)
    of_rows, of_taps = np.empty((len(covariance), rows, rows)), np.empty((len(covariance), taps, taps))
    for index, own in enumerate(covariance):
        m = own.reshape(c, *extents, c, *extents).transpose(*order, *(axis + 1 + len(extents) for axis in order))
        m = m.reshape(rows, taps, rows, taps)
        of_rows[index], of_taps[index] = np.einsum("abcb->ac", m), np.einsum("abad->bd", m)
    return Metric(_ridged(of_rows), np.stack([_root(own) for own in _ridged(_unit_trace(of_taps))]))


def nested_factors(kernel: Array, scheme: Scheme, group: int, top_rank: int, metric: Metric | None = None) -> Nested:
    """The factors of all ranks up to `top_rank`: truncated SVD, or under a metric those that lose least of the output.

    Under a metric they are approximate: rows and taps, and slices of the input, are treated as independent. Only then
    are the best factors of all ranks slices of one another.
    """
    matrices: Float64 = unfold(np.asarray(kernel, dtype=np.float64), scheme, group).astype(np.float64, copy=False)
    roots = None if metric is None else _roots(metric, kernel.shape, scheme, group)
    seen = matrices
    if metric is not None and roots is not None:
        taps = _of_each(metric.taps, len(matrices))
        seen = np.stack([root.T @ own for root, own in zip(roots, _times(matrices, taps), strict=True)])
    wide = seen.shape[1] <= seen.shape[2]
    gram = seen @ np.swapaxes(seen, 1, 2) if wide else np.swapaxes(seen, 1, 2) @ seen
    values, vectors = np.linalg.eigh(gram)
    basis = vectors[:, :, ::-1][:, :, :top_rank]
    left = basis if wide else seen @ basis
    right: Float64 = np.swapaxes(basis, 1, 2) @ seen if wide else np.swapaxes(basis, 1, 2)
    if metric is not None and roots is not None:
        left = np.stack(
            [solve_triangular(root, own, lower=True, trans="T") for root, own in zip(roots, left, strict=True)]
        )
        right = _times(right, _of_each(np.asarray(np.linalg.inv(metric.taps), dtype=np.float64), len(matrices)))
    lost = _lost(np.maximum(values[:, ::-1], 0.0), top_rank)
    u, v = (torch.from_numpy(np.ascontiguousarray(side, dtype=np.float32)) for side in (left, right))
    return Nested(scheme, tuple(kernel.shape), group, u, v, lost)


def _lost(squares: Float64, top_rank: int) -> Float64:
    """The share of the sum of squares (matrices, full rank) beyond each rank from 0 to `top_rank`."""
    by_rank = squares.sum(axis=0)
    total = by_rank.sum()
    if not total:
        return np.zeros(top_rank + 1)
    beyond = np.append(np.cumsum(by_rank[::-1])[::-1], 0.0)
    return np.asarray(beyond[: top_rank + 1] / total)


def _roots(metric: Metric, kernel_shape: Sequence[int], scheme: Scheme, group: int) -> list[Float64]:
    """The Cholesky factor over the rows of each matrix of a scheme; slices of the output have the same."""
    slices_in, slices_out = scheme.slices(kernel_shape, group)
    size = metric.rows.shape[1] // slices_in
    roots: list[Float64] = []
    for own in metric.rows:
        parts = (slice(start, start + size) for start in range(0, len(own), size))
        roots += slices_out * [_root(own[part, part]) for part in parts]
    return roots


def _root(matrix: Float64) -> Float64:
    """The lower Cholesky factor. With few images rounding can be larger than the first ridge, so it grows."""
    ridge, size = 0.0, len(matrix)
    while True:
        try:
            return np.asarray(np.linalg.cholesky(matrix + ridge * np.eye(size)), dtype=np.float64)
        except np.linalg.LinAlgError:
            ridge = max(10 * ridge, 10 * _RIDGE * float(np.trace(matrix)) / size)


def _of_each(by_group: Float64, matrices: int) -> Float64:
    return np.repeat(by_group, matrices // len(by_group), axis=0)


def _unit_trace(matrices: Float64) -> Float64:
    traces = np.trace(matrices, axis1=1, axis2=2)[:, None, None]
    return np.asarray(matrices / np.where(traces > 0, traces, 1.0))


def _ridged(matrices: Float64) -> Float64:
    size = matrices.shape[1]
    mean = np.trace(matrices, axis1=1, axis2=2)[:, None, None] / size
    ridge = np.where(mean > 0, _RIDGE * mean, 1.0)
    return np.asarray(matrices + ridge * np.eye(size))


def _times(matrices: Float64, root: Float64) -> Float64:
    """Each row, reshaped to (n, taps), times a matrix over the taps: (p, a, n b) and (p, b, b)."""
    count, rows, _ = matrices.shape
    taps = root.shape[1]
    return np.asarray((matrices.reshape(count, -1, taps) @ root).reshape(count, rows, -1))
