"""Unfolding of kernels in torch: the same matrices as `trp_export.lowrank.schemes`, on any device, with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from trp_export.lowrank.schemes import Scheme


def unfold(kernel: Tensor, scheme: Scheme, group: int) -> Tensor:
    """(n, c/group, *k) -> (matrices, rows, columns)."""
    split, order = _unfolding(scheme, kernel.shape, group)
    rows = prod(split[axis] for axis in order if axis in _row_axes(scheme, len(split)))
    return kernel.reshape(split).permute(order).reshape(prod((split[0], split[1], split[3])), rows, -1)


def fold(matrices: Tensor, scheme: Scheme, kernel_shape: Sequence[int], group: int) -> Tensor:
    """The inverse of `unfold`: (matrices, rows, columns) -> (n, c/group, *k)."""
    split, order = _unfolding(scheme, kernel_shape, group)
    back = sorted(range(len(order)), key=order.__getitem__)
    return matrices.reshape([split[axis] for axis in order]).permute(back).reshape(tuple(kernel_shape))


def _unfolding(scheme: Scheme, kernel_shape: Sequence[int], group: int) -> tuple[list[int], list[int]]:
    """The split shape (group, out slice, n, in slice, c, *k) and the axis order that brings rows before columns."""
    n, c, *extents = kernel_shape
    slices_in, slices_out = scheme.slices(kernel_shape, group)
    split = [group, slices_out, n // (group * slices_out), slices_in, c // slices_in, *extents]
    rows = _row_axes(scheme, len(split))
    columns = [axis for axis in (2, *range(5, len(split))) if axis not in rows]
    return split, [0, 1, 3, *rows, *columns]


def _row_axes(scheme: Scheme, axes: int) -> list[int]:
    return [4, *(axis for axis in range(5, axes) if axis - 5 in scheme.reduce_axes)]
