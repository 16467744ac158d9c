"""The shapes that nodes work on: what an input is taken to be, and what ONNX's shape inference makes of it.

`trp_export.runtime.measured_shapes` reads the same shapes from a real run, and should be preferred to inference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from trp_export.errors import OptionError
from trp_export.graph.skeleton import make_skeleton
from trp_export.graph.weights import find_constant

Shape = tuple[int | None, ...]

BATCH = 1
# Assumed for sizes that a file leaves open: large enough that every tap of every kernel is used.
OPEN_EXTENT = 224


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


def input_shapes(
    model: ir.Model, given: Sequence[int] | Mapping[str, Sequence[int]] | None = None, extent: int = OPEN_EXTENT
) -> dict[str, Shape]:
    """A shape for every input that must be fed: `given` for the first or by name, batch 1 where that is open.

    A symbol has one size in all inputs. Open channels are those of the layer that reads the input; other open sizes
    are `extent`. Raises OptionError where `given` contradicts the model.
    """
    fed = [value for value in model.graph.inputs if value.const_value is None]
    chosen = _by_name(given, fed)
    symbols: dict[str, int] = {}
    shapes: dict[str, Shape] = {}
    for value in fed:
        if value.name and value.name in chosen:
            shapes[value.name] = _agree(value, chosen[value.name], symbols)
    for value in fed:
        if value.name and value.name not in shapes and value.shape is not None:
            shapes[value.name] = _filled(value, value.shape, symbols, extent)
    return {name: shapes[name] for name in (value.name or "" for value in fed) if name in shapes}


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


def _by_name(
    given: Sequence[int] | Mapping[str, Sequence[int]] | None, fed: Sequence[ir.Value]
) -> dict[str | None, tuple[int, ...]]:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {name: tuple(shape) for name, shape in given.items()}
    return {fed[0].name: tuple(given)} if fed else {}


def _filled(value: ir.Value, declared: ir.Shape, symbols: dict[str, int], extent: int) -> Shape:
    sizes: list[int] = []
    for axis, (dim, symbol) in enumerate(zip(_dims(declared), _symbols(declared), strict=True)):
        if dim is None:
            dim = symbols.get(symbol) or (BATCH if axis == 0 else _channels(value, axis) or extent)
        if symbol:
            symbols.setdefault(symbol, dim)
        sizes.append(dim)
    return tuple(sizes)


def _channels(value: ir.Value, axis: int) -> int | None:
    """The channels that the layers behind an input expect on its axis 1, None where they do not say."""
    for node, index in value.uses():
        weight = find_constant(node.inputs[1]) if index == 0 and len(node.inputs) > 1 else None
        if weight is None or axis != 1 or len(weight.shape) < 2:
            continue
        if node.op_type == "Conv":
            return weight.shape[1] * node.attributes.get_int("group", 1)
        if node.op_type == "ConvTranspose" or (node.op_type == "MatMul" and len(weight.shape) == 2):
            return weight.shape[0]
        if node.op_type == "Gemm":
            return weight.shape[1] if node.attributes.get_int("transB", 0) else weight.shape[0]
    return None


def _dims(shape: ir.Shape) -> Shape:
    """Some files write an open dimension as 0 or -1."""
    return tuple(dim if isinstance(dim, int) and dim > 0 else None for dim in shape)


def _symbols(shape: ir.Shape) -> tuple[str, ...]:
    """The name of each open dimension, "" without one. Paddle calls all of them "?", whatever their sizes."""
    return tuple("" if isinstance(dim, int) or dim.value == "?" else dim.value or "" for dim in shape)


def _agree(value: ir.Value, given: tuple[int, ...], symbols: dict[str, int]) -> Shape:
    if value.shape is None:
        return given
    declared, names = _dims(value.shape), _symbols(value.shape)
    fits = len(declared) == len(given) and all(
        size in (None, wanted) and symbols.setdefault(name or f"{value.name} {axis}", wanted) == wanted
        for axis, (size, wanted, name) in enumerate(zip(declared, given, names, strict=False))
    )
    if not fits:
        wanted = ",".join("?" if dim is None else str(dim) for dim in declared)
        raise OptionError(f"--shape {','.join(map(str, given))} does not fit input {value.name}, which is {wanted}.")
    return given


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
