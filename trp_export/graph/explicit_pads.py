"""Convs with explicit padding, where `output_shape` and `auto_pad` say it only through the size of the output.

onnxruntime does not run a conv with `auto_pad` and dilations, which PyTorch's older exporter writes for padding="same".
"""

from __future__ import annotations

import onnx_ir as ir

from trp_export.graph.kernels import SAME, conv_pads
from trp_export.graph.shapes import infer_value_shapes
from trp_export.graph.weights import find_constant, spatial_attribute


def make_pads_explicit(model: ir.Model) -> None:
    """Set `pads` in place of `output_shape` and `auto_pad` in transposed and dilated convs, in place.

    Convs whose padding depends on an open size stay as they are.

    Source: ONNX, Conv and ConvTranspose. A padding below zero stays as it is.
    """
    for node in model.graph.all_nodes():
        weight = find_constant(node.inputs[1]) if node.op_type == "Conv" and not node.domain else None
        pads = _dilated_pads(node, weight.shape[2:]) if weight is not None else None
        if pads is not None:
            _set_pads(node, pads)
    nodes = [node for node in model.graph.all_nodes() if node.op_type == "ConvTranspose" and _is_implicit(node)]
    shapes = infer_value_shapes(model, {}) if any("output_shape" in node.attributes for node in nodes) else {}
    for node in nodes:
        data, weight = node.inputs[0], find_constant(node.inputs[1])
        if data is None or weight is None:
            continue
        pads = _pads(node, weight.shape[2:], shapes.get(data.name or "", ())[2:])
        if pads is None:
            continue
        _set_pads(node, pads)


def _set_pads(node: ir.Node, pads: list[int]) -> None:
    for name in ("output_shape", "auto_pad"):
        node.attributes.pop(name, None)
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)


def _dilated_pads(node: ir.Node, extents: tuple[int, ...]) -> list[int] | None:
    """Padding of a dilated conv before and after each axis; None where it is explicit or strides make it depend on the
    size."""
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    dilations = spatial_attribute(node, "dilations", [1] * len(extents))
    strided = any(stride != 1 for stride in spatial_attribute(node, "strides", [1] * len(extents)))
    if automatic not in SAME or strided or all(dilation == 1 for dilation in dilations):
        return None
    ones = [1] * len(extents)  # Without strides the padding is that of any size.
    return list(conv_pads(automatic, (), ones, extents, ones, dilations))


def _is_implicit(node: ir.Node) -> bool:
    return "output_shape" in node.attributes or node.attributes.get_string("auto_pad", "NOTSET") in SAME


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
