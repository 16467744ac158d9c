"""A decomposition is data: which kernel axes the first conv covers, and whether channels are cut into slices.

A kernel W is (n, c, *k): n output channels, c input channels of its group, k the spatial extents.
It is unfolded into matrices of rows (input side: c and the spatial axes of `reduce`) by columns (output
side: n and the other spatial axes). A factorisation of rank r of each matrix folds back into two kernels:

    reduce  c -> r, the spatial axes in `reduce_axes`, with their strides, pads and dilations
    expand  r -> n, the other spatial axes with theirs, and the bias

Slices cut the channels of one side and factor each slice on its own (Yu & Bouganis, SVD-NAS, WACV 2023).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

ALL_AXES = (0, 1, 2)
ONE_PER_CHANNEL = 0


@dataclass(frozen=True, slots=True)
class Scheme:
    """A decomposition. Spatial axis 0 is vertical in 2-D; axes that a kernel lacks are ignored."""

    name: str
    reduce_axes: tuple[int, ...]
    input_slices: int = 1
    output_slices: int = 1

    def slices(self, kernel_shape: Sequence[int], group: int) -> tuple[int, int]:
        """How many slices the input and the output channels of one group are cut into."""
        channels_out, channels_in = kernel_shape[0] // group, kernel_shape[1]
        return self.input_slices or channels_in, self.output_slices or channels_out

    def divides(self, kernel_shape: Sequence[int], group: int) -> bool:
        """True where the channels of a kernel (n, c/group, *k) can be cut into these slices."""
        slices_in, slices_out = self.slices(kernel_shape, group)
        return kernel_shape[1] % slices_in == 0 and kernel_shape[0] // group % slices_out == 0


CHANNEL_WISE = Scheme("channel-wise", reduce_axes=ALL_AXES)
SPATIAL_WISE = Scheme("spatial-wise", reduce_axes=(0,))
SPATIAL_WISE_TRANSPOSED = Scheme("spatial-wise-transposed", reduce_axes=(1,))
POINTWISE_FIRST = Scheme("pointwise-first", reduce_axes=())
DECOUPLING = Scheme("network-decoupling", reduce_axes=(), output_slices=ONE_PER_CHANNEL)
MATRIX = Scheme("matrix", reduce_axes=ALL_AXES)

SCHEMES = {
    scheme.name: scheme
    for scheme in (CHANNEL_WISE, SPATIAL_WISE, SPATIAL_WISE_TRANSPOSED, POINTWISE_FIRST, DECOUPLING, MATRIX)
}

_SLICED = re.compile(r"(input|output)-sliced-([1-9]\d{0,5})")


def input_sliced(slices: int) -> Scheme:
    """Channel-wise within each slice of the input channels; in slices of one channel, depthwise then pointwise."""
    return CHANNEL_WISE if slices == 1 else Scheme(f"input-sliced-{slices}", ALL_AXES, input_slices=slices)


def output_sliced(slices: int) -> Scheme:
    """Pointwise-first for each slice of the output channels; in slices of one channel, network decoupling."""
    return POINTWISE_FIRST if slices == 1 else Scheme(f"output-sliced-{slices}", (), output_slices=slices)


def scheme_named(name: str) -> Scheme | None:
    """The scheme of a name, None for an unknown name. Its slices may not divide the channels of a given layer."""
    if name in SCHEMES:
        return SCHEMES[name]
    sliced = _SLICED.fullmatch(name)
    if sliced is None:
        return None
    side, slices = sliced[1], int(sliced[2])
    return input_sliced(slices) if side == "input" else output_sliced(slices)


@dataclass(frozen=True, slots=True)
class Branch:
    """The choice of a factor pair: its scheme and its rank, counted per matrix."""

    scheme: Scheme
    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"{self.scheme.name}: rank {self.rank} is below 1")

    def __str__(self) -> str:
        return f"{self.scheme.name} {self.rank}"


Branches = tuple[Branch, ...]


def describe(branches: Branches) -> str:
    """For example `spatial-wise 12 + channel-wise 4`."""
    return " + ".join(map(str, branches))


@dataclass(frozen=True, slots=True)
class PairShape:
    """The two convs that a kernel becomes at one rank: kernel shapes and groups."""

    reduce: tuple[int, ...]
    reduce_group: int
    expand: tuple[int, ...]
    expand_group: int

    @property
    def params(self) -> int:
        return prod(self.reduce) + prod(self.expand)


def pair_shape(scheme: Scheme, kernel_shape: Sequence[int], group: int, rank: int) -> PairShape:
    """Shapes of `reduce` and `expand` for a kernel (n, c/group, *k) at a rank counted per matrix."""
    n, c, *extents = kernel_shape
    slices_in, slices_out = scheme.slices(kernel_shape, group)
    middle = group * slices_in * slices_out * rank
    reduce_extents = tuple(k if axis in scheme.reduce_axes else 1 for axis, k in enumerate(extents))
    expand_extents = tuple(1 if axis in scheme.reduce_axes else k for axis, k in enumerate(extents))
    return PairShape(
        reduce=(middle, c // slices_in, *reduce_extents),
        reduce_group=group * slices_in,
        expand=(n, slices_in * rank, *expand_extents),
        expand_group=group * slices_out,
    )


def full_rank(scheme: Scheme, kernel_shape: Sequence[int], group: int) -> int:
    """The rank at which the pair equals the dense kernel, whatever the weights."""
    return min(_matrix_shape(scheme, kernel_shape, group))


def unfold(kernel: Array, scheme: Scheme, group: int) -> Array:
    """(n, c/group, *k) -> (matrices, rows, columns), a view where numpy can give one."""
    order, split = _unfolding(scheme, kernel.shape, group)
    rows, columns = _matrix_shape(scheme, kernel.shape, group)
    return kernel.reshape(split).transpose(order).reshape(-1, rows, columns)


def fold(matrices: Array, scheme: Scheme, kernel_shape: Sequence[int], group: int) -> Array:
    """The inverse of `unfold`: (matrices, rows, columns) -> (n, c/group, *k)."""
    order, split = _unfolding(scheme, kernel_shape, group)
    unfolded = matrices.reshape([split[axis] for axis in order])
    return unfolded.transpose(np.argsort(order)).reshape(kernel_shape)


def fold_pair(
    left: Array, right: Array, scheme: Scheme, kernel_shape: Sequence[int], group: int
) -> tuple[Array, Array]:
    """Factors (matrices, rows, r) and (matrices, r, columns) -> the kernels of `reduce` and `expand`."""
    rank = left.shape[2]
    shape = pair_shape(scheme, kernel_shape, group, rank)
    slices_in, slices_out = scheme.slices(kernel_shape, group)
    reduce = np.swapaxes(left, 1, 2).reshape(shape.reduce)
    out_channels = kernel_shape[0] // (group * slices_out)
    columns = right.reshape(group * slices_out, slices_in * rank, out_channels, -1)
    expand = np.swapaxes(columns, 1, 2).reshape(shape.expand)
    return reduce, expand


def _matrix_shape(scheme: Scheme, kernel_shape: Sequence[int], group: int) -> tuple[int, int]:
    n, c, *extents = kernel_shape
    slices_in, slices_out = scheme.slices(kernel_shape, group)
    rows = c // slices_in * prod(k for axis, k in enumerate(extents) if axis in scheme.reduce_axes)
    columns = n // (group * slices_out) * prod(k for axis, k in enumerate(extents) if axis not in scheme.reduce_axes)
    return rows, columns


def _unfolding(scheme: Scheme, kernel_shape: Sequence[int], group: int) -> tuple[list[int], list[int]]:
    """The axis order and the split shape (group, out slice, n, in slice, c, *k) behind `unfold`."""
    n, c, *extents = kernel_shape
    slices_in, slices_out = scheme.slices(kernel_shape, group)
    split = [group, slices_out, n // (group * slices_out), slices_in, c // slices_in, *extents]
    spatial = range(5, 5 + len(extents))
    rows = [4, *(axis for axis in spatial if axis - 5 in scheme.reduce_axes)]
    columns = [2, *(axis for axis in spatial if axis - 5 not in scheme.reduce_axes)]
    return [0, 1, 3, *rows, *columns], split
