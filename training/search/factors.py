"""Factors of which every rank is a slice, so that all ranks of a scheme are kept at the price of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from training.matrices import fold
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.schemes import Array, Scheme, unfold

# Added to a covariance as a share of its mean diagonal: what the images did not show must not be taken for free.
_RIDGE = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Nested:
    """Of one kernel under one scheme: `left` (matrices, rows, R) and `right` (matrices, R, columns).

    `lost` (R + 1,) is the share of the kernel, or of the layer's output, that is lost at each rank from 0 on.
    """

    scheme: Scheme
    kernel_shape: tuple[int, ...]
    group: int
    left: Tensor
    right: Tensor
    lost: Float64

    def kernel(self, rank: int) -> Tensor:
        """The dense kernel (n, c/group, *k) of the pair of a rank."""
        return fold(self.left[:, :, :rank] @ self.right[:, :rank], self.scheme, self.kernel_shape, self.group)


def nested_factors(
    kernel: Array, scheme: Scheme, group: int, top_rank: int, covariance: Float64 | None = None
) -> Nested:
    """All ranks up to `top_rank`: truncated SVD, or with the covariance (group, d, d) of a layer's inputs near the
    pairs that lose least of its output.

    Near, not equal: the covariance is taken as a Kronecker product over rows and taps, and slices of the input as
    independent. Then, and only then, the best factors of all ranks are slices of one another.
    """
    matrices: Float64 = unfold(np.asarray(kernel, dtype=np.float64), scheme, group).astype(np.float64, copy=False)
    roots = None if covariance is None else _roots(kernel.shape, scheme, group, covariance)
    seen: Float64 = matrices if roots is None else np.swapaxes(roots[0], 1, 2) @ _times(matrices, roots[1])
    wide = seen.shape[1] <= seen.shape[2]
    gram = seen @ np.swapaxes(seen, 1, 2) if wide else np.swapaxes(seen, 1, 2) @ seen
    values, vectors = np.linalg.eigh(gram)
    basis = vectors[:, :, ::-1][:, :, :top_rank]
    left = basis if wide else seen @ basis
    right: Float64 = np.swapaxes(basis, 1, 2) @ seen if wide else np.swapaxes(basis, 1, 2)
    if roots is not None:
        left = np.linalg.solve(np.swapaxes(roots[0], 1, 2), left)
        right = _times(right, np.asarray(np.linalg.inv(roots[1]), dtype=np.float64))
    lost = _lost(np.maximum(values[:, ::-1], 0.0), top_rank)
    shape = tuple(kernel.shape)
    u, v = (torch.from_numpy(np.ascontiguousarray(side, dtype=np.float32)) for side in (left, right))
    return Nested(scheme, shape, group, u, v, lost)


def _lost(squares: Float64, top_rank: int) -> Float64:
    """Share of the sum of squares (matrices, full rank) beyond each rank from 0 to `top_rank`."""
    by_rank = squares.sum(axis=0)
    total = by_rank.sum()
    if not total:
        return np.zeros(top_rank + 1)
    beyond = np.append(np.cumsum(by_rank[::-1])[::-1], 0.0)
    return np.asarray(beyond[: top_rank + 1] / total)


def _roots(kernel_shape: Sequence[int], scheme: Scheme, group: int, covariance: Float64) -> tuple[Float64, Float64]:
    """Lower Cholesky factors of the covariances of each matrix's rows (matrices, a, a) and taps (matrices, b, b)."""
    _, c, *extents = kernel_shape
    slices_in, slices_out = scheme.slices(kernel_shape, group)
    reduced = [axis for axis in range(len(extents)) if axis in scheme.reduce_axes]
    others = [axis for axis in range(len(extents)) if axis not in scheme.reduce_axes]
    order = [0, *(1 + axis for axis in (*reduced, *others))]
    rows, taps = c * prod(extents[axis] for axis in reduced), prod(extents[axis] for axis in others)
    per_slice = rows // slices_in
    of_rows, of_taps = [], []
    for own in covariance:
        m = own.reshape(c, *extents, c, *extents).transpose(*order, *(axis + 1 + len(extents) for axis in order))
        m = m.reshape(rows, taps, rows, taps)
        whole, between = np.einsum("abcb->ac", m), np.einsum("abad->bd", m)
        for _ in range(slices_out):
            for start in range(0, rows, per_slice):
                of_rows.append(whole[start : start + per_slice, start : start + per_slice])
                of_taps.append(between)
    return _cholesky(np.stack(of_rows)), _cholesky(_unit_trace(np.stack(of_taps)))


def _unit_trace(matrices: Float64) -> Float64:
    traces = np.trace(matrices, axis1=1, axis2=2)[:, None, None]
    return np.asarray(matrices / np.where(traces > 0, traces, 1.0))


def _cholesky(matrices: Float64) -> Float64:
    size = matrices.shape[1]
    mean = np.trace(matrices, axis1=1, axis2=2)[:, None, None] / size
    ridge = np.where(mean > 0, _RIDGE * mean, 1.0)
    return np.asarray(np.linalg.cholesky(matrices + ridge * np.eye(size)))


def _times(matrices: Float64, root: Float64) -> Float64:
    """Each row, seen as (n, taps), times a matrix over the taps: (p, a, n b) and (p, b, b)."""
    count, rows, _ = matrices.shape
    taps = root.shape[1]
    return np.asarray((matrices.reshape(count, -1, taps) @ root).reshape(count, rows, -1))
