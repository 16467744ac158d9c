"""What valid ONNX files may leave out or write in another way, brought into the usual form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from trp_export.errors import LoadError, UnsupportedError, first_line
from trp_export.graph.model_files import tensors
from trp_export.graph.prepare import LEAST_IR_VERSION

_MOST_DENSE_BYTES = 2**30
_SMALL_BYTES = 1024


def complete_outputs(proto: onnx.ModelProto, path: Path) -> None:
    """Give outputs without a type or shape those that follow from the graph, as onnxruntime does when it opens a file.

    Raises UnsupportedError where the type of an output cannot be inferred.
    """
    incomplete = [value for value in proto.graph.output if not _is_complete(value)]
    if not incomplete:
        return
    try:
        inferred = onnx.shape_inference.infer_shapes(without_weights(proto), data_prop=True).graph
    except Exception as error:  # InferenceError, or what the C++ library raises.
        raise LoadError(f"{path} is not a sound ONNX file: {first_line(error)}") from error
    known = {value.name: value.type for value in (*inferred.output, *inferred.value_info, *inferred.input)}
    symbols = {dim.dim_param for value in proto.graph.input for dim in value.type.tensor_type.shape.dim}
    for value in incomplete:
        if value.name in known and known[value.name].WhichOneof("value") is not None:
            value.type.CopyFrom(known[value.name])
            _forget_invented(value, symbols)
        if value.type.WhichOneof("value") is None:
            raise UnsupportedError(
                f"{path}: output {value.name} has no type, and none can be inferred. Export the model with types."
            )


def use_one_domain(proto: onnx.ModelProto) -> None:
    """Write "ai.onnx", which means the default domain and which onnxruntime takes for it, as ""."""
    for holder in (proto, *proto.functions):
        for opset in holder.opset_import:
            opset.domain = _one_domain(opset.domain)
    for graph in (proto.graph, *proto.functions):
        _name_domains(graph)


def _name_domains(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    for node in graph.node:
        node.domain = _one_domain(node.domain)
        for attribute in node.attribute:
            for inner in inner_graphs(attribute):
                _name_domains(inner)


def _one_domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def sort_nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    """Put each node behind those whose values it reads, as converters to float16 forget. A cycle stays as it is."""
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    needs = {place: {makers[name] for name in _reads(node) & makers.keys()} for place, node in enumerate(graph.node)}
    if any(max(behind, default=-1) >= place for place, behind in needs.items()):
        with suppress(CycleError):
            order = {place: rank for rank, place in enumerate(TopologicalSorter(needs).static_order())}
            ranks = {tuple(node.output): order[place] for place, node in enumerate(graph.node)}
            graph.node.sort(key=lambda node: ranks[tuple(node.output)])
    for node in graph.node:
        for attribute in node.attribute:
            for inner in inner_graphs(attribute):
                sort_nodes(inner)


def _reads(node: onnx.NodeProto) -> set[str]:
    """The names that a node and the graphs inside it read."""
    inner = (graph for attribute in node.attribute for graph in inner_graphs(attribute))
    return {*node.input, *(name for graph in inner for other in graph.node for name in _reads(other))}


def refuse_maps(proto: onnx.ModelProto, path: Path) -> None:
    """Raises UnsupportedError for an output that is a map or a sequence of maps: two maps cannot be compared."""
    for value in proto.graph.output:
        kind = value.type
        while kind.WhichOneof("value") in ("sequence_type", "optional_type"):
            kind = getattr(kind, kind.WhichOneof("value") or "").elem_type
        if kind.WhichOneof("value") == "map_type":
            raise UnsupportedError(f"{path}: output {value.name} is a map. Export the model without ZipMap.")


def make_dense(graph: onnx.GraphProto, path: Path) -> None:
    """Turn sparse initializers into plain ones. Raises LoadError where one contradicts itself or is too large."""
    total = 0
    for sparse in graph.sparse_initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(sparse.values.data_type)
        total += prod(sparse.dims) * dtype.itemsize
        if total > _MOST_DENSE_BYTES or min(sparse.dims, default=1) < 0:
            raise LoadError(f"{path}: sparse weights of shape {list(sparse.dims)} would take more than 1 GiB.")
        name = sparse.values.name
        try:
            graph.initializer.append(numpy_helper.from_array(_dense(sparse, dtype), name))
        except Exception as error:  # numpy raises many kinds for indices out of range and shapes that differ.
            raise LoadError(f"{path}: sparse weight {name} is damaged ({first_line(error)}).") from error
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            for inner in inner_graphs(attribute):
                make_dense(inner, path)


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its large initializers as inputs: small, whatever the model weighs, and without other files."""
    light = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name != "graph":
            _copy(light, field.name, value)
    for field, value in proto.graph.ListFields():
        if field.name != "initializer":
            _copy(light.graph, field.name, value)
    declared = {value.name for value in light.graph.input}
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL and _is_small(tensor):
            light.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    for tensor in tensors(light):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.ClearField("external_data")
            tensor.ClearField("dims")
            tensor.dims.append(0)
    return light


def _is_small(tensor: onnx.TensorProto) -> bool:
    """By its shape first: protobuf copies a message to say how many bytes it takes."""
    return prod(tensor.dims) <= _SMALL_BYTES and bool(tensor.ByteSize() <= _SMALL_BYTES)


def check_model(proto: onnx.ModelProto, path: Path) -> None:
    """Run the ONNX checker. Raises LoadError."""
    light = without_weights(proto)
    # onnxruntime runs graphs without a name, outputs whose rank nothing tells, and old files that list no weights.
    light.graph.name = light.graph.name or "graph"
    light.ir_version = light.ir_version and max(light.ir_version, LEAST_IR_VERSION)
    for value in light.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(light)
    except Exception as error:  # ValidationError, or what the C++ checker raises.
        raise LoadError(f"{path} fails the ONNX checker: {first_line(error)}") from error


def _forget_invented(value: onnx.ValueInfoProto, symbols: set[str]) -> None:
    """Leave sizes open to which inference gave names of its own."""
    for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
        if dim.dim_param not in symbols:
            dim.ClearField("dim_param")


def _is_complete(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.WhichOneof("value")
    if kind == "tensor_type":
        return value.type.tensor_type.elem_type != 0 and value.type.tensor_type.HasField("shape")
    return kind is not None


def _copy(message: Any, name: str, value: Any) -> None:
    """Copy one field of a protobuf message."""
    field = getattr(message, name)
    if hasattr(field, "extend"):
        field.extend(value)
    elif hasattr(field, "CopyFrom"):
        field.CopyFrom(value)
    else:
        setattr(message, name, value)


def _dense(sparse: onnx.SparseTensorProto, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Indices count elements of the flattened tensor, or are coordinates (elements, axes)."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), dtype)
    if indices.ndim == 2:
        dense[tuple(indices.T)] = values
    else:
        dense.reshape(-1)[indices] = values
    return dense


def inner_graphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that an attribute holds: branches and bodies."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs
