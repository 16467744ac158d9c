"""The weight of a layer as a kernel (n, c/group, *k), and back: each operator stores it in its own order.

Conv, Gemm with transB    (n, c/group, *k)
Gemm, MatMul              (c, n)
ConvTranspose             (c, n/group, *k)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import onnx_ir as ir

from trp_export.lowrank.schemes import Array

SPATIAL = ("Conv", "ConvTranspose")
SAME = ("SAME_UPPER", "SAME_LOWER")


def as_kernel(node: ir.Node, weight: Array, group: int) -> Array:
    """The kernel of a weight as the node reads it."""
    if node.op_type == "ConvTranspose":
        return _swap_channels(weight, group)
    return weight if _reads_kernel(node) else weight.T


def as_weight(node: ir.Node, kernel: Array, group: int) -> Array:
    """The inverse: what the node must read to apply a kernel."""
    if node.op_type == "ConvTranspose":
        return _swap_channels(kernel, group)
    return kernel if _reads_kernel(node) else kernel.T


def kernel_shape(node: ir.Node, shape: tuple[int, ...], group: int) -> tuple[int, ...]:
    """The shape of the kernel of a weight of this shape."""
    if node.op_type == "ConvTranspose":
        return (shape[1] * group, shape[0] // group, *shape[2:])
    return shape if _reads_kernel(node) else shape[::-1]


def kernel_axes(node: ir.Node, axes: int) -> tuple[int, ...]:
    """For each axis of the weight as the node reads it the axis of the kernel, where there are no groups."""
    if node.op_type == "ConvTranspose":
        return (1, 0, *range(2, axes))
    return tuple(range(axes)) if _reads_kernel(node) else tuple(range(axes))[::-1]


def group_of(node: ir.Node) -> int:
    return node.attributes.get_int("group", 1) if node.op_type in SPATIAL else 1


def is_padded(conv: ir.Node) -> bool:
    """True for a conv that extends its input at the border."""
    explicit = conv.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return not explicit or any(conv.attributes.get_ints("pads", []))


def conv_pads(
    auto_pad: str,
    pads: Sequence[int],
    sizes: Sequence[int],
    extents: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, ...]:
    """The padding of a conv before each axis, then after each: `pads`, or what `auto_pad` makes of an input's sizes.

    Source: ONNX, Conv.
    """
    if auto_pad == "VALID":
        return (0,) * (2 * len(extents))
    if auto_pad not in SAME:
        return tuple(pads)
    totals = [
        max((ceil(size / stride) - 1) * stride + (extent - 1) * dilation + 1 - size, 0)
        for size, extent, stride, dilation in zip(sizes, extents, strides, dilations, strict=True)
    ]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (*small, *large) if auto_pad == "SAME_UPPER" else (*large, *small)


def is_transposed_matrix(node: ir.Node) -> bool:
    """True for a Gemm whose weight is (n, c)."""
    return node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))


def _reads_kernel(node: ir.Node) -> bool:
    return node.op_type == "Conv" or is_transposed_matrix(node)


def _swap_channels(array: Array, group: int) -> Array:
    """(group a, b, *k) <-> (group b, a, *k)."""
    outer, inner, *extents = array.shape
    grouped = array.reshape(group, outer // group, inner, *extents).swapaxes(1, 2)
    return grouped.reshape(group * inner, outer // group, *extents)
