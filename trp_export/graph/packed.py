"""Store a model as it came: what a rewrite adds to it must not enlarge the file.

Values between nodes need no types and shapes where the original had none. A weight that is still exactly what an
expression makes of smaller constants (a Cast of float16, a DequantizeLinear of int8) goes back behind it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import onnx_ir as ir

from trp_export.graph.fold import find_expressions, stored_constants
from trp_export.graph.prepare import prepare_unfolded
from trp_export.lowrank.schemes import Array

_LEAST_BYTES = 1024


def pack_weights(model: ir.Model, original: ir.Model) -> None:
    """Put each weight of the model, which was made from `original`, back behind its expression, in place.

    Left alone are weights that changed, and those that the expression stores in no fewer bytes.
    """
    made = {}
    for value, nodes, array in find_expressions(prepare_unfolded(original)):
        stored = sum(tensor.nbytes for tensor in stored_constants(nodes))
        if array.nbytes > _LEAST_BYTES and stored < array.nbytes:
            made[_digest(array)] = (value, nodes)
    for value in list(model.graph.initializers.values()) if made else ():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _LEAST_BYTES or value.is_graph_input() or value.is_graph_output():
            continue
        found = made.get(_digest(tensor.numpy()))
        if found is not None:
            _put_behind(model.graph, value, *found)


def drop_shapes(model: ir.Model, original: ir.Model) -> None:
    """Remove the types and shapes of the values between nodes, in place, where the original has none."""
    if not any(value.shape is not None for value in _between_nodes(original)):
        for value in _between_nodes(model):
            value.type = value.shape = None


def _between_nodes(model: ir.Model) -> list[ir.Value]:
    made = (value for graph in model.graphs() for node in graph for value in node.outputs)
    return [value for value in made if not value.is_graph_output()]


def _put_behind(graph: ir.Graph, weight: ir.Value, result: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Compute `weight` by copies of `nodes`, whose outcome is `result`."""
    name = weight.name or ""
    del graph.initializers[name]
    copies: dict[ir.Value | None, ir.Value | None] = {None: None}
    for index, node in enumerate(nodes):
        for source in node.inputs:
            if source is not None and source not in copies:
                copies[source] = _copy_constant(graph, source, name)
        inputs = [copies[source] for source in node.inputs]
        copy = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs))
        copy.name = f"{name}.made.{index}"
        for number, (output, old) in enumerate(zip(copy.outputs, node.outputs, strict=True)):
            output.name = name if old is result else f"{copy.name}.{number}"
            copies[old] = output
        graph.insert_before(graph[index], copy)
    packed = copies[result]
    assert packed is not None
    packed.type, packed.shape = weight.type, weight.shape
    weight.replace_all_uses_with(packed)


def _copy_constant(graph: ir.Graph, value: ir.Value, weight: str) -> ir.Value:
    """A new initializer of the same content, named after the weight."""
    tensor = value.const_value
    assert tensor is not None
    count = 0
    while (name := f"{weight}.stored.{count}") in graph.initializers:
        count += 1
    copy = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()))
    copy.const_value = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    graph.register_initializer(copy)
    return copy


def _digest(array: Array) -> tuple[str, tuple[int, ...], str]:
    return str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()
