"""The shape of every value for given input shapes, by ONNX's own shape inference on a skeleton of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import onnx
import onnx_ir as ir

from trp_export.errors import OptionError
from trp_export.graph.skeleton import make_skeleton

Shape = tuple[int | None, ...]
Shapes = Mapping[str, Shape]

BATCH = 1
# For images whose height or width a file leaves open: large enough that every tap of every kernel is used.
OPEN_EXTENT = 224


def input_shapes(model: ir.Model, given: Sequence[int] | None = None) -> dict[str, Shape]:
    """A concrete shape for every input: `given` for the first, batch 1 where that is open.

    Open extents of images are taken as 224, other open dimensions stay None. Raises OptionError where `given`
    contradicts the model.
    """
    shapes: dict[str, Shape] = {}
    for index, value in enumerate(model.graph.inputs):
        declared = _dims(value.shape) if value.shape is not None else None
        if index == 0 and given is not None:
            shapes[value.name or ""] = _agree(value.name or "", declared, tuple(given))
        elif declared is not None:
            shapes[value.name or ""] = _filled(declared)
    return shapes


def infer_shapes(model: ir.Model, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """Value name -> shape, as far as it can be told; unknown dimensions are None, unknown values absent."""
    proto, _ = make_skeleton(model)
    for value in proto.graph.input:
        if value.name in inputs:
            _set_dims(value.type.tensor_type.shape, inputs[value.name])
    for graph in _graphs(proto.graph):
        for info in (*graph.value_info, *graph.output):
            _forget_symbols(info)
    # Where inference fails, what the file itself declares is left to work with.
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


def open_extents(model: ir.Model, given: Sequence[int] | None) -> tuple[str, ...]:
    """The inputs for which a size had to be assumed."""
    names = []
    for index, value in enumerate(model.graph.inputs):
        declared = _dims(value.shape) if value.shape is not None else ()
        if not (index == 0 and given) and len(declared) == 4 and None in declared[2:]:
            names.append(value.name or "")
    return tuple(names)


def _filled(declared: Shape) -> Shape:
    if len(declared) == 4:
        batch, channels, *extents = declared
        return batch or BATCH, channels, *(extent or OPEN_EXTENT for extent in extents)
    return (declared[0] or BATCH, *declared[1:]) if declared else ()


def _dims(shape: ir.Shape) -> Shape:
    """Some files write an open dimension as 0 or -1."""
    return tuple(dim if isinstance(dim, int) and dim > 0 else None for dim in shape)


def _agree(name: str, declared: Shape | None, given: tuple[int, ...]) -> Shape:
    fits = declared is None or (
        len(declared) == len(given) and all(a in (None, b) for a, b in zip(declared, given, strict=True))
    )
    if not fits:
        wanted = ",".join("?" if dim is None else str(dim) for dim in declared or ())
        raise OptionError(f"--shape {','.join(map(str, given))} does not fit input {name}, which is {wanted}.")
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
