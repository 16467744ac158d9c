"""Find the operators that onnxruntime computes in 8 bits once their inputs and outputs are rounded.

A Relu or a Clip from 0 after such an operator is free: the lower end of the grid does its work. Operators that only
move values pass 8-bit values on.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from trp_export.graph.skeleton import make_skeleton
from trp_export.graph.weights import Constant, find_bias, find_constant, find_scalar

WITH_WEIGHT = ("Conv", "Gemm", "MatMul")
_WITHOUT_WEIGHT = ("Add", "GlobalAveragePool", "AveragePool", "Concat")
Types = Mapping[str, int]
MOVERS = ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "DepthToSpace")


@dataclass(frozen=True, slots=True, eq=False)
class QuantisableOp:
    """An operator that can run in 8 bits: its activations, its weight, and the value of its result.

    `output` is None where the result stays in float at no cost: a matrix product that is an output of the model.
    """

    node: ir.Node
    inputs: tuple[ir.Value, ...]
    weight: Constant | None
    output: ir.Value | None

    @property
    def name(self) -> str:
        return self.node.name or ""

    @property
    def output_axis(self) -> int:
        """The axis of the output channels in the stored weight."""
        transposed = self.node.op_type == "Gemm" and self.node.attributes.get_int("transB", 0) == 1
        return 0 if self.node.op_type == "Conv" or transposed else 1


def find_units(model: ir.Model, types: Types | None = None) -> tuple[QuantisableOp, ...]:
    """All such operators of the main graph, in its order. `types` are those that `known_types` gives."""
    types = known_types(model) if types is None else types
    units = (_unit(node, types) for node in model.graph if node.domain in ("", "ai.onnx"))
    return tuple(unit for unit in units if unit is not None)


def known_types(model: ir.Model) -> Types:
    """The ONNX type of values by name, as far as the file or inference tells: sizes are whole numbers, for example."""
    proto = make_skeleton(model).proto
    with suppress(onnx.shape_inference.InferenceError, RuntimeError):
        proto = onnx.shape_inference.infer_shapes(proto)
    infos = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    return {info.name: info.type.tensor_type.elem_type for info in infos}


def is_float(value: ir.Value, types: Types) -> bool:
    """True for a value of float32. One of unknown type counts as that, which its reader needs."""
    return types.get(value.name or "", 0) in (ir.DataType.UNDEFINED, ir.DataType.FLOAT)


def _unit(node: ir.Node, types: Types) -> QuantisableOp | None:
    if node.op_type in WITH_WEIGHT:
        return _with_weight(node, types)
    if node.op_type not in _WITHOUT_WEIGHT:
        return None
    inputs = [value for value in node.inputs if value is not None and _is_activation(value, types)]
    if len(inputs) < len(node.inputs):
        return None
    return QuantisableOp(node, tuple(inputs), None, _end(node))


def _with_weight(node: ir.Node, types: Types) -> QuantisableOp | None:
    data, weight = node.inputs[0], find_constant(node.inputs[1])
    if data is None or weight is None or not _is_activation(data, types) or weight.dtype != ir.DataType.FLOAT:
        return None
    if weight.root is not node.inputs[1] or find_bias(node) is None:
        return None
    if node.op_type != "Conv" and len(weight.shape) != 2:
        return None
    if node.op_type == "Gemm" and not _is_plain(node):
        return None
    is_last = node.op_type != "Conv" and node.outputs[0].is_graph_output()
    return QuantisableOp(node, (data,), weight, None if is_last else _end(node))


def _is_plain(gemm: ir.Node) -> bool:
    attributes = gemm.attributes
    scales = attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0)
    return scales == (1.0, 1.0) and not attributes.get_int("transA", 0)


def _is_activation(value: ir.Value, types: Types) -> bool:
    """True for a float that is computed or fed."""
    return is_float(value, types) and find_constant(value) is None


def _end(node: ir.Node) -> ir.Value:
    """The output, or the output of the only Relu or Clip that reads it."""
    output = node.outputs[0]
    readers = output.consumers()
    if len(readers) != 1 or output.is_graph_output() or not _is_free(readers[0]):
        return output
    return readers[0].outputs[0]


def _is_free(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type != "Clip":
        return node.op_type == "Relu"
    return len(node.inputs) > 1 and find_scalar(node.inputs[1]) == 0.0
