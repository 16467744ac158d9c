"""The shapes that nodes work on, as ONNX's shape inference finds them.

`trp_export.runtime.measured_shapes` reads the same shapes from a real run, and should be preferred to inference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from trp_export.graph.skeleton import make_skeleton

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a node: the shapes of its inputs and of its output, None where they are unknown."""

    inputs: tuple[Shape | None, ...]
    output: Shape | None


# By `node_key`: the executions of a node in one inference. A node that is missing has unknown shapes; an empty tuple
# says that the node did not run, as in a branch that was not taken.
Runs = Mapping[str, tuple[Run, ...]]


def node_key(node: ir.Node) -> str:
    """The name of a node's first output, which `prepare` keeps unique in the whole model."""
    return next((output.name for output in node.outputs if output.name), "")


def infer_shapes(model: ir.Model, inputs: Mapping[str, Shape]) -> dict[str, tuple[Run, ...]]:
    """The run of every node of the main graph, as far as shape inference can tell.

    How often the body of an If or a Loop runs is unknown, so its nodes are missing.
    """
    shapes = infer_value_shapes(model, inputs)

    def shape_of(value: ir.Value | None) -> Shape | None:
        return shapes.get(value.name or "") if value is not None else None

    return {node_key(node): (Run(tuple(map(shape_of, node.inputs)), _output(node, shapes)),) for node in model.graph}


def infer_value_shapes(model: ir.Model, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """Value name -> shape; unknown dimensions are None, values of unknown rank are missing."""
    proto = make_skeleton(model).proto
    for value in proto.graph.input:
        if value.name in inputs:
            _set_dims(value.type.tensor_type.shape, inputs[value.name])
    for graph in _graphs(proto.graph):
        for info in (*graph.value_info, *graph.output):
            _forget_symbols(info)
    # Where inference fails, the shapes that the file itself declares are used.
    with suppress(onnx.shape_inference.InferenceError, RuntimeError):
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    shapes: dict[str, Shape] = {}
    for graph in _graphs(proto.graph):
        for info in (*graph.input, *graph.value_info, *graph.output):
            if info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape"):
                shapes[info.name] = tuple(
                    dim.dim_value if dim.dim_value > 0 else None for dim in info.type.tensor_type.shape.dim
                )
    for name, initializer in model.graph.initializers.items():
        if initializer.const_value is not None:
            shapes[name] = tuple(int(dim) for dim in initializer.const_value.shape.numpy())
    return shapes


def _output(node: ir.Node, shapes: Mapping[str, Shape]) -> Shape | None:
    return shapes.get(node_key(node))


def _set_dims(shape: onnx.TensorShapeProto, dims: Shape) -> None:
    del shape.dim[:]
    for size in dims:
        dim = shape.dim.add()
        if size is not None:
            dim.dim_value = size


def _forget_symbols(info: onnx.ValueInfoProto) -> None:
    """An inferred number must be free to take the place of a symbolic name."""
    if info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape"):
        for dim in info.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.ClearField("dim_param")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)
