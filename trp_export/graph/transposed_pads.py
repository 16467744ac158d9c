"""Transposed convs with explicit padding: `output_shape` and `auto_pad` say it only through the size of the output."""

from __future__ import annotations

import onnx_ir as ir

from trp_export.graph.shapes import infer_value_shapes
from trp_export.graph.weights import find_constant, spatial_attribute

_SAME = ("SAME_UPPER", "SAME_LOWER")


def make_pads_explicit(model: ir.Model) -> None:
    """Set `pads` in place of `output_shape` and `auto_pad` in every transposed conv whose padding does not depend on
    an open size, in place.

    Source: ONNX, ConvTranspose. A padding below zero stays as it is.
    """
    nodes = [node for node in model.graph.all_nodes() if node.op_type == "ConvTranspose" and _is_implicit(node)]
    shapes = infer_value_shapes(model, {}) if any("output_shape" in node.attributes for node in nodes) else {}
    for node in nodes:
        data, weight = node.inputs[0], find_constant(node.inputs[1])
        if data is None or weight is None:
            continue
        pads = _pads(node, weight.shape[2:], shapes.get(data.name or "", ())[2:])
        if pads is None:
            continue
        for name in ("output_shape", "auto_pad"):
            node.attributes.pop(name, None)
        node.attributes["pads"] = ir.AttrInt64s("pads", pads)


def _is_implicit(node: ir.Node) -> bool:
    return "output_shape" in node.attributes or node.attributes.get_string("auto_pad", "NOTSET") in _SAME


def _pads(node: ir.Node, extents: tuple[int, ...], sizes: tuple[int | None, ...]) -> list[int] | None:
    """Padding before and after each axis; None where it is below zero or depends on an open size."""
    axes = len(extents)
    strides = spatial_attribute(node, "strides", [1] * axes)
    dilations = spatial_attribute(node, "dilations", [1] * axes)
    added = spatial_attribute(node, "output_padding", [0] * axes)
    wanted = list(node.attributes.get_ints("output_shape", []))[-axes:]
    if wanted and (len(sizes) != axes or len(wanted) != axes or None in sizes):
        return None
    begins, ends = [], []
    for axis, (extent, stride, dilation, more) in enumerate(zip(extents, strides, dilations, added, strict=True)):
        over = (extent - 1) * dilation + 1 + more - stride  # Of an output of stride times the input.
        total = over + stride * (sizes[axis] or 0) - wanted[axis] if wanted else over
        if total < 0:
            return None
        half = total // 2
        begins.append(half if node.attributes.get_string("auto_pad", "NOTSET") == "SAME_UPPER" else total - half)
        ends.append(total - begins[-1])
    return [*begins, *ends]
