"""A model without its weights: small enough to pass to other libraries, however large the model is."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

# Smaller initializers stay: shapes, axes and other values that shape inference and folding must see.
_LARGE_BYTES = 1024


def make_skeleton(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """The model as a proto whose large initializers are inputs, and those initializers by name.

    The model itself is as before when this returns.
    """
    graph = model.graph
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.nbytes <= _LARGE_BYTES or value.is_graph_output():
            value.const_value = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name)  # Not left in another file.
            continue
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        weights[name] = tensor
        value.const_value = None
        del graph.initializers[name]
        graph.inputs.append(value)
    try:
        return ir.serde.serialize_model(model), weights
    finally:
        _restore(graph, weights)


def fill_skeleton(proto: onnx.ModelProto, weights: Mapping[str, ir.TensorProtocol]) -> ir.Model:
    """The inverse: a model whose inputs named in `weights` are initializers again."""
    model = ir.serde.deserialize_model(proto)
    _restore(model.graph, weights)
    return model


def _restore(graph: ir.Graph, weights: Mapping[str, ir.TensorProtocol]) -> None:
    values = {value.name: value for value in graph.inputs}
    for name, tensor in weights.items():
        value = values[name]
        graph.inputs.remove(value)
        value.const_value = tensor
        if value.uses():
            graph.register_initializer(value)
