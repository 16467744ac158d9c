"""Model files: what they hold, which other files they need, and how they are written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import onnx
import onnx_ir as ir

from trp_export.errors import LoadError, OutputError, first_line
from trp_export.system.files import read_bounded, require_fetched

# The most that protobuf can hold in one message.
_MOST_BYTES = (1 << 31) - 1

# A protobuf file holds at most 2 GiB; above this, weights go to a file of their own.
_INLINE_BYTES = 1_900_000_000


def save_model(model: ir.Model, path: Path, apart: bool = False) -> None:
    """Write a model. Weights go to `<name>.data` beside it where the file cannot hold them, or with `apart`.

    With `apart` they are written one by one and read back only when used, so that memory never holds a second copy.
    Raises OutputError.
    """
    tensors = (value.const_value for value in model.graph.initializers.values())
    apart = apart or sum(tensor.nbytes for tensor in tensors if tensor is not None) > _INLINE_BYTES
    try:
        if not apart:
            ir.external_data.load_to_model(model)
        ir.save(model, path, external_data=f"{path.name}.data" if apart else None)
    except OSError as error:
        raise OutputError(f"{path.name} cannot be written: {error.strerror or error}.") from error


def size_bytes(path: Path) -> int:
    """Size of a model that `save_model` wrote, with the weights beside it."""
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def read_proto(path: Path) -> onnx.ModelProto:
    """An ONNX file without its external data. Raises LoadError for anything else."""
    content = read_bounded(path, _MOST_BYTES)
    try:
        proto = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own errors differ between its implementations.
        raise LoadError(f"{path} is not an ONNX model, or a damaged one ({first_line(error)}).") from error
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise LoadError(f"{path} is not an ONNX model: it holds no graph.")
    return proto


def model_files(path: Path) -> tuple[Path, ...]:
    """An ONNX file, then the files beside it that hold its weights. Raises LoadError."""
    return (path, *external_files(read_proto(path), path))


def external_files(proto: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """The files that hold a model's weights, sorted by name.

    They lie in the folder of `path`, or are links into the folder of the file that `path` is a link to, as model hubs
    keep them. Raises LoadError for those that are missing or lie elsewhere.
    """
    return tuple(_external_file(location, path) for location in sorted(external_locations(proto)))


def external_locations(proto: onnx.ModelProto) -> set[str]:
    """The names of files that tensors refer to, as they are written in the model."""
    return {
        entry.value
        for tensor in tensors(proto)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers and those in attributes, in subgraphs and functions too."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model, in subgraphs and functions too."""
    yield from _nodes(proto.graph.node)
    for function in proto.functions:
        yield from _nodes(function.node)


def _external_file(location: str, path: Path) -> Path:
    place = PurePosixPath(location.replace("\\", "/"))
    if place.is_absolute() or ".." in place.parts or not place.parts:
        raise LoadError(f"{path} names a data file outside its own folder: {location!r}.")
    file = path.parent / place
    try:
        folders = (path.parent.resolve(), path.resolve().parent)
        found = file.is_file() and any(file.resolve().is_relative_to(folder) for folder in folders)
    except (OSError, ValueError):
        found = False
    if not found:
        raise LoadError(f"{path} needs its data file {location!r} beside it, which is missing.")
    require_fetched(file)
    return file


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(graph)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)
