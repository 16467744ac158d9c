"""What a model costs: parameters and multiply-adds, as pure functions of the graph and its shapes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from trp_export.graph.shapes import Shapes


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model costs; `bytes` counts its files and is None before they exist."""

    params: int
    macs: int
    bytes: int | None


def count_params(model: ir.Model) -> int:
    """Elements of all floating-point initializers."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.size for tensor in tensors if tensor is not None and tensor.dtype.is_floating_point())


def count_macs(model: ir.Model, shapes: Shapes) -> int:
    """Multiply-adds of one inference in Conv, ConvTranspose, Gemm and MatMul; unknown sizes count as 1."""
    return sum(_node_macs(node, shapes) for node in model.graph.all_nodes() if node.domain in ("", "ai.onnx"))


def _node_macs(node: ir.Node, shapes: Shapes) -> int:
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    data, weight, output = (_shape(value, shapes) for value in (node.inputs[0], node.inputs[1], node.outputs[0]))
    if not weight:
        return 0
    if node.op_type == "ConvTranspose":
        return prod(weight[1:]) * prod(data)
    if not output:
        return prod(weight)
    if node.op_type == "Conv":
        return prod(weight[1:]) * prod(output)
    # Weights are (c, n), or (n, c) under transB.
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    return (weight[-1] if transposed else weight[-2:][0]) * prod(output)


def _shape(value: ir.Value | None, shapes: Shapes) -> tuple[int, ...]:
    known = shapes.get(value.name or "") if value is not None else None
    return tuple(dim or 1 for dim in known) if known else ()
