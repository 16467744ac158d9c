"""A model without its weights: small enough to pass to other libraries, however large the model is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

# Smaller initializers stay: shapes, axes and other values that shape inference and folding must see.
_LARGE_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A proto whose large initializers are inputs, and the tensors that were taken out, by name.

    `weights` are initializers, `defaults` those of inputs that have a default.
    """

    proto: onnx.ModelProto
    weights: Mapping[str, ir.TensorProtocol] = field(default_factory=dict)
    defaults: Mapping[str, ir.TensorProtocol] = field(default_factory=dict)


def make_skeleton(model: ir.Model) -> Skeleton:
    """The skeleton of a model. The model itself is as before when this returns."""
    graph = model.graph
    weights: dict[str, ir.TensorProtocol] = {}
    defaults: dict[str, ir.TensorProtocol] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or (tensor.dtype == ir.DataType.STRING and not value.is_graph_input()):
            continue  # Texts are always in the model itself.
        if value.is_graph_input():
            defaults[name] = tensor
        elif tensor.nbytes <= _LARGE_BYTES or value.is_graph_output():
            value.const_value = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name)  # Not left in another file.
            continue
        else:
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
            weights[name] = tensor
            graph.inputs.append(value)
        value.const_value = None
        del graph.initializers[name]
    try:
        return Skeleton(ir.serde.serialize_model(model), weights, defaults)
    finally:
        _restore(graph, weights, defaults)


def fill_skeleton(skeleton: Skeleton) -> ir.Model:
    """The model of a skeleton, with its weights as initializers again."""
    model = ir.serde.deserialize_model(skeleton.proto)
    _restore(model.graph, skeleton.weights, skeleton.defaults)
    return model


def _restore(
    graph: ir.Graph, weights: Mapping[str, ir.TensorProtocol], defaults: Mapping[str, ir.TensorProtocol]
) -> None:
    values = {value.name: value for value in graph.inputs}
    for name, tensor in defaults.items():
        values[name].const_value = tensor
        graph.register_initializer(values[name])
    for name, tensor in weights.items():
        value = values[name]
        graph.inputs.remove(value)
        value.const_value = tensor
        if value.uses():
            graph.register_initializer(value)
