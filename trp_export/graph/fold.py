"""Fold the constant expressions that make a weight: Cast, Mul, Reshape, weight norm, DequantizeLinear and so on.

Only expressions that end in a weight of a layer, in what shifts and scales channels behind one, or in a part of a
concatenation are folded, each within a bound on nodes and bytes that is checked before anything is computed. What is
left over stays as it is, and its layer is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from math import prod

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from trp_export.graph.cost import is_counted
from trp_export.graph.weights import DEFAULT_DOMAINS, find_constant
from trp_export.lowrank.schemes import Array

_MOST_NODES = 64
# Of what an expression reads: an int4 weight becomes eight times as large, a large weight from nothing never.
_MOST_GROWTH = 8
_SMALL_BYTES = 2**16
# The reference implementation lacks older versions of these operators, which compute the same.
_LEAST_OPSETS = {"DequantizeLinear": 21, "QuantizeLinear": 21}
_INDICES = (ir.DataType.INT64, ir.DataType.INT32)
# Beside layers, what reads constants that others look for.
_READERS = ("Add", "Sub", "Mul", "Div", "PRelu", "Concat")
_MOVES = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
_FOLDED = frozenset((
    *_MOVES,
    *("Abs", "Add", "Cast", "CastLike", "Clip", "Concat", "ConstantOfShape", "DequantizeLinear", "Div", "Exp"),
    *("Expand", "Gather", "LpNormalization", "MatMul", "Max", "Min", "Mul", "Neg", "Pad", "Pow", "QuantizeLinear"),
    *("Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"),
    *("Relu", "Shape", "Sigmoid", "Slice", "Softplus", "Split", "Sqrt", "Sub", "Tanh", "Tile", "Where"),
))  # fmt: skip


def fold_weights(model: ir.Model) -> None:
    """Replace each constant expression that a layer or its like reads by its value, in place.

    Expressions that make the same of the same weights, as the two branches of an If may hold, share one value.
    """
    shared: dict[_Key, ir.Value] = {}
    for value, nodes, array in find_expressions(model):
        key = _weights(nodes), str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).digest()
        if key not in shared:
            shared[key] = _add(model, f"{value.name}.folded", array)
        value.replace_all_uses_with(shared[key])


def find_expressions(model: ir.Model) -> Iterator[tuple[ir.Value, list[ir.Node], Array]]:
    """Each constant expression that is to be folded: its value in the graph, its nodes in order, and what it makes."""
    for node in list(model.graph.all_nodes()):
        for value in _folded_inputs(node):
            nodes = constant_expression(value) if value is not None and find_constant(value) is None else []
            array = _compute(nodes, value, model.opset_imports.get("", 1)) if value is not None and nodes else None
            if value is not None and array is not None and array.size:
                yield value, nodes, array


def _folded_inputs(node: ir.Node) -> Sequence[ir.Value | None]:
    """The inputs of an operator whose constant expressions are folded."""
    if is_counted(node) or node.op_type == "BatchNormalization":
        return node.inputs[1:]
    if node.op_type in _READERS and node.domain in DEFAULT_DOMAINS and not constant_expression(node.outputs[0]):
        return node.inputs
    return ()


def stored_constants(nodes: Sequence[ir.Node]) -> list[ir.TensorProtocol]:
    """What the nodes of an expression read from the file, each once."""
    values = dict.fromkeys(source for node in nodes for source in node.inputs if source is not None)
    return [value.const_value for value in values if value.const_value is not None]


# The weights that an expression reads, and its value.
_Key = tuple[frozenset[ir.Value], str, tuple[int, ...], bytes]


def _weights(nodes: Iterable[ir.Node]) -> frozenset[ir.Value]:
    """The stored values that an expression reads, without the whole numbers that say what is done to them."""
    read = (source for node in nodes for source in node.inputs if source is not None and source.const_value is not None)
    return frozenset(source for source in read if source.dtype is None or source.dtype not in _INDICES)


def _add(model: ir.Model, wanted: str, array: Array) -> ir.Value:
    name = _free_name(model, wanted)
    folded = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(array.shape))
    folded.const_value = ir.tensor(np.ascontiguousarray(array), name=name)
    model.graph.register_initializer(folded)
    return folded


def constant_expression(value: ir.Value) -> list[ir.Node]:
    """The nodes that compute a value from constants alone, in order; none where something else takes part."""
    order: list[ir.Node] = []
    done: set[ir.Node] = set()
    pending: list[tuple[ir.Value, bool]] = [(value, False)]
    while pending:
        current, is_ready = pending.pop()
        node = current.producer()
        if current.is_initializer() and not current.is_graph_input():
            continue
        if node is None or current.is_graph_output() or not _can_fold(node) or len(done) > _MOST_NODES:
            return []
        if node in done:
            continue
        if is_ready:
            done.add(node)
            order.append(node)
            continue
        pending.append((current, True))
        pending += [(source, False) for source in node.inputs if source is not None]
        if len(pending) > _MOST_NODES * 4:
            return []
    return order


def _can_fold(node: ir.Node) -> bool:
    return node.domain in DEFAULT_DOMAINS and node.op_type in _FOLDED and not node.attributes.get("body")


def _compute(nodes: list[ir.Node], value: ir.Value, opset: int) -> Array | None:
    """The value of an expression; None where it would grow beyond the bounds or cannot be computed."""
    arrays = {source.name: source for node in nodes for source in node.inputs if source is not None}
    limit = max(_SMALL_BYTES, _MOST_GROWTH * sum(tensor.nbytes for tensor in stored_constants(nodes)))
    try:
        known = {name: source.const_value.numpy() for name, source in arrays.items() if source.const_value is not None}
        for node in nodes:
            proto = _one_node_model(node, known, opset)
            if _inferred_bytes(proto) > limit:
                return None
            outputs = ReferenceEvaluator(proto).run(None, {})
            known |= {output.name: np.asarray(made) for output, made in zip(node.outputs, outputs, strict=True)}
    except Exception:  # The reference implementation raises whatever numpy does.
        return None
    return known[value.name]


def _one_node_model(node: ir.Node, known: dict[str | None, Array], opset: int) -> onnx.ModelProto:
    proto = ir.serde.serialize_node(node)
    names = dict.fromkeys(name for name in proto.input if name)
    initializers = [ir.serde.serialize_tensor(ir.tensor(known[name], name=name)) for name in names]
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output]
    graph = onnx.helper.make_graph([proto], "expression", [], outputs, initializers)
    version = max(opset, _LEAST_OPSETS.get(node.op_type, 0))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])


def _inferred_bytes(proto: onnx.ModelProto) -> float:
    """Of all outputs; infinite where shape inference cannot tell."""
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    return sum(map(_bytes, inferred.graph.output))


def _bytes(info: onnx.ValueInfoProto) -> float:
    kind = info.type.tensor_type
    if not kind.HasField("shape") or any(not dim.HasField("dim_value") for dim in kind.shape.dim):
        return float("inf")
    return float(prod(dim.dim_value for dim in kind.shape.dim)) * ir.DataType(kind.elem_type).itemsize


def _free_name(model: ir.Model, name: str) -> str:
    taken: Iterable[str] = model.graph.initializers
    count, free = 1, name
    while free in taken:
        count += 1
        free = f"{name}.{count}"
    return free
