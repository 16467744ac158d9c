"""Bounds on what a model may make onnxruntime allocate: a file of a few kB can stand for any number of gigabytes."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, prod

import onnx_ir as ir

from trp_export.errors import UnsupportedError
from trp_export.graph.shapes import Shape
from trp_export.graph.weights import find_scalar

_MOST_BYTES = 4 * 2**30
# Constants that are computed when the model is loaded, together: positions, masks, grids.
_MOST_CONSTANT_BYTES = 2**28
_MOST_GROWTH = 4  # Of the weights: constant expressions may unpack them.


def require_bounded(model: ir.Model, shapes: Mapping[str, Shape]) -> None:
    """Raises UnsupportedError for a tensor, or for constant expressions together, beyond the bounds."""
    for name, shape in shapes.items():
        if prod(float(dim or 1) for dim in shape) * 4 > _MOST_BYTES:
            raise UnsupportedError(
                f"{name[:80]} has shape {list(shape)}: more than {_MOST_BYTES // 2**30} GiB in one tensor."
            )
    _require_bounded_constants(model, shapes)


def _require_bounded_constants(model: ir.Model, shapes: Mapping[str, Shape]) -> None:
    constants = {value for value in model.graph.initializers.values() if not value.is_graph_input()}
    stored = sum(value.const_value.nbytes for value in constants if value.const_value is not None)
    limit = max(_MOST_CONSTANT_BYTES, _MOST_GROWTH * stored)
    total = 0.0
    for node in model.graph.all_nodes():
        if any(value is not None and value not in constants for value in node.inputs) or _has_body(node):
            continue
        constants |= set(node.outputs)
        total += sum(_bytes(node, output, shapes) for output in node.outputs)
        if total > limit:
            raise UnsupportedError(
                f"the constant expressions of this model stand for more than {limit / 2**20:,.0f} MiB "
                f"({node.op_type} {(node.name or '')[:80]}); store constants in the file or compute them from an input."
            )


def _bytes(node: ir.Node, output: ir.Value, shapes: Mapping[str, Shape]) -> float:
    """4 bytes for each entry; a Range is counted here, since shape inference does not for floats."""
    shape = shapes.get(output.name or "")
    if shape is not None and None not in shape:
        return 4.0 * prod(float(dim or 1) for dim in shape)
    bounds = [find_scalar(value) for value in node.inputs] if node.op_type == "Range" else []
    numbers = [number for number in bounds if number is not None]
    if len(numbers) < 3 or not numbers[2]:
        return 0.0
    start, end, step = numbers
    return 4.0 * max(0, ceil((end - start) / step))


def _has_body(node: ir.Node) -> bool:
    return any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    )
