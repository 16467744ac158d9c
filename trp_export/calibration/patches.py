"""Gather the input patches of a layer: one row of c k entries for each output position, at sampled positions.

A transposed conv reads like a conv of stride 1 whose input has zeros between its values and whose taps run backwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.graph.kernels import conv_pads
from trp_export.graph.weights import spatial_attribute
from trp_export.lowrank.site import Site

Array = NDArray[Any]
Float32 = NDArray[np.float32]
Positions = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Window:
    """How a layer reads its input. A matrix has no spatial axes and reads the last axis, or the first if transposed.

    `added` is the output padding of a transposed conv, None for other layers.
    """

    extents: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    auto_pad: str
    group: int
    transposed: bool
    added: tuple[int, ...] | None = None

    def out_extents(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        begins, ends = self.padding(in_shape[2:])
        if self.added is not None:
            return tuple(
                (size - 1) * stride + (extent - 1) * dilation + 1 + added - begin - end
                for size, stride, extent, dilation, added, begin, end in zip(
                    in_shape[2:], self.strides, self.extents, self.dilations, self.added, begins, ends, strict=True
                )
            )
        return tuple(
            (size + begin + end - (extent - 1) * dilation - 1) // stride + 1
            for size, begin, end, extent, dilation, stride in zip(
                in_shape[2:], begins, ends, self.extents, self.dilations, self.strides, strict=True
            )
        )

    def padding(self, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The padding before and after each axis, for these sizes."""
        axes = len(self.extents)
        pads = conv_pads(self.auto_pad, self.pads, sizes, self.extents, self.strides, self.dilations)
        return pads[:axes], pads[axes:]


def window(node: ir.Node, site: Site) -> Window:
    axes = max(len(site.kernel_shape) - 2, 0)
    return Window(
        extents=site.kernel_shape[2:],
        strides=spatial_attribute(node, "strides", [1] * axes),
        pads=spatial_attribute(node, "pads", [0] * (2 * axes)),
        dilations=spatial_attribute(node, "dilations", [1] * axes),
        auto_pad=node.attributes.get_string("auto_pad", "NOTSET"),
        group=site.group,
        transposed=node.op_type == "Gemm" and bool(node.attributes.get_int("transA", 0)),
        added=spatial_attribute(node, "output_padding", [0] * axes) if node.op_type == "ConvTranspose" else None,
    )


def count_positions(seen_by: Window, in_shape: tuple[int, ...]) -> int:
    """The number of output positions of one image, or of rows for a matrix."""
    if seen_by.extents:
        return prod(seen_by.out_extents(in_shape))
    return 1 if seen_by.transposed else prod(in_shape[1:-1])


def sample_positions(rng: np.random.Generator, images: int, positions: int, wanted: int) -> Positions:
    """(images, min(wanted, positions)): a separate uniform draw without repetition for each image."""
    if wanted >= positions:
        return np.broadcast_to(np.arange(positions), (images, positions))
    if wanted * 8 >= positions:
        return np.argpartition(rng.random((images, positions)), wanted, axis=1)[:, :wanted]
    return np.stack([rng.choice(positions, wanted, replace=False, shuffle=False) for _ in range(images)])


def gather_patches(data: Array, seen_by: Window, positions: Positions) -> Float32:
    """Patches (group, images x positions, c/group k) of `data` at flat positions (images, count)."""
    if not seen_by.extents:
        rows = data.T if seen_by.transposed else data
        rows = rows.reshape(len(rows), -1, rows.shape[-1])
        taken = rows[np.arange(len(rows))[:, None], positions]
        return np.ascontiguousarray(taken.reshape(1, -1, rows.shape[-1]), dtype=np.float32)
    begins, ends = seen_by.padding(data.shape[2:])
    axes, spreads = len(seen_by.extents), seen_by.added is not None
    if spreads:
        padded = _spread(data, seen_by)
    else:
        padded = np.pad(data, [(0, 0), (0, 0), *zip(begins, ends, strict=True)]) if any(begins + ends) else data
    index: list[Array] = [np.arange(len(data))[:, None].reshape(-1, 1, *[1] * axes)]
    for axis, at in enumerate(np.unravel_index(positions, seen_by.out_extents(data.shape))):
        taps = np.arange(seen_by.extents[axis]) * seen_by.dilations[axis]
        shape = [1] * axes
        shape[axis] = -1
        starts = at + begins[axis] if spreads else at * seen_by.strides[axis]
        index.append(starts[..., None] + (taps[::-1] if spreads else taps))
        index[-1] = index[-1].reshape(*positions.shape, *shape)
    count, channels = positions.size, data.shape[1]
    if channels == seen_by.group > 1:
        return _of_single_channels(padded, np.ravel_multi_index(np.broadcast_arrays(*index[1:]), padded.shape[2:]))
    channels_last = np.moveaxis(padded, 1, -1)
    patches = channels_last[tuple(index)]  # (images, count, *k, c)
    split = patches.reshape(count, prod(seen_by.extents), seen_by.group, channels // seen_by.group)
    return np.ascontiguousarray(split.transpose(2, 0, 3, 1), dtype=np.float32).reshape(seen_by.group, count, -1)


def _of_single_channels(padded: Array, places: Positions) -> Float32:
    """Patches (c, images x count, k) where each group reads one channel, at flat places (images, count, *k).

    One image after the other: a channel of it fits into the processor's cache, from which all its patches are read.
    """
    images, count = places.shape[:2]
    patches = np.empty((padded.shape[1], images, count * prod(places.shape[2:])), dtype=np.float32)
    for image, (values, own) in enumerate(zip(padded, places, strict=True)):
        patches[:, image] = np.take(values.reshape(len(values), -1), own.ravel(), axis=1, mode="clip")
    return patches.reshape(len(patches), images * count, -1)


def _spread(data: Array, seen_by: Window) -> Array:
    """The input of a transposed conv with zeros between its values and around them, as far as any tap reads."""
    reach = [(extent - 1) * dilation for extent, dilation in zip(seen_by.extents, seen_by.dilations, strict=True)]
    begins, _ = seen_by.padding(data.shape[2:])
    ends = [out + begin for out, begin in zip(seen_by.out_extents(data.shape), begins, strict=True)]
    sizes = [(size - 1) * stride + 1 for size, stride in zip(data.shape[2:], seen_by.strides, strict=True)]
    spread = np.zeros(
        (*data.shape[:2], *(r + max(s, e) for r, s, e in zip(reach, sizes, ends, strict=True))), data.dtype
    )
    places = tuple(slice(r, r + size, stride) for r, size, stride in zip(reach, sizes, seen_by.strides, strict=True))
    spread[:, :, *places] = data
    return spread
