"""Unfolding of kernels in torch: the matrices of `trp_export.lowrank.schemes`, on any device and with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from trp_export.lowrank.schemes import Scheme


@dataclass(frozen=True, slots=True)
class Unfolding:
    """How kernels (n, c/group, *k) become matrices.

    A kernel is reshaped to `split`: (group, out slice, n, in slice, c, *k). Of these axes, in `order`, the first three
    count the matrices, the next `row_axes` make the rows, and the others the columns.
    """

    split: tuple[int, ...]
    order: tuple[int, ...]
    row_axes: int

    def unfold(self, kernel: Tensor) -> Tensor:
        """(n, c/group, *k) -> (matrices, rows, columns)."""
        count, rows = (prod(self.split[axis] for axis in part) for part in (self.order[:3], self._rows))
        return kernel.reshape(self.split).permute(self.order).reshape(count, rows, -1)

    def fold(self, matrices: Tensor) -> Tensor:
        """(matrices, rows, columns) -> (n, c/group, *k)."""
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        group, slices_out, n, slices_in, c, *extents = self.split
        kernel = matrices.reshape([self.split[axis] for axis in self.order]).permute(back)
        return kernel.reshape(group * slices_out * n, slices_in * c, *extents)

    def in_memory_order(self, kernel: Tensor) -> Unfolding:
        """The same rows and columns, ordered as the kernel is stored, so that the matrices are mostly a view of it."""
        strides = kernel.reshape(self.split).stride()
        columns = self.order[3 + self.row_axes :]
        parts = (sorted(part, key=strides.__getitem__, reverse=True) for part in (self._rows, columns))
        return Unfolding(self.split, (*self.order[:3], *(axis for part in parts for axis in part)), self.row_axes)

    @property
    def _rows(self) -> tuple[int, ...]:
        return self.order[3 : 3 + self.row_axes]


def unfolding(scheme: Scheme, kernel_shape: Sequence[int], group: int) -> Unfolding:
    """The unfolding of a scheme, with rows and columns in the order of `trp_export.lowrank.schemes`."""
    n, c, *extents = kernel_shape
    slices_in, slices_out = scheme.slices(kernel_shape, group)
    split = (group, slices_out, n // (group * slices_out), slices_in, c // slices_in, *extents)
    rows = [4, *(axis for axis in range(5, len(split)) if axis - 5 in scheme.reduce_axes)]
    columns = [axis for axis in (2, *range(5, len(split))) if axis not in rows]
    return Unfolding(split, (0, 1, 3, *rows, *columns), len(rows))


def unfold(kernel: Tensor, scheme: Scheme, group: int) -> Tensor:
    """(n, c/group, *k) -> (matrices, rows, columns)."""
    return unfolding(scheme, kernel.shape, group).unfold(kernel)


def fold(matrices: Tensor, scheme: Scheme, kernel_shape: Sequence[int], group: int) -> Tensor:
    """The inverse of `unfold`: (matrices, rows, columns) -> (n, c/group, *k)."""
    return unfolding(scheme, kernel_shape, group).fold(matrices)
