"""Model files: what they hold, which other files they need, and how they are written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
import onnx_ir as ir

from trp_export.errors import LoadError, OutputError, first_line
from trp_export.graph.large_files import require_size, write_model
from trp_export.system.files import read_bounded, require_fetched

# The most that protobuf can hold in one message.
_MOST_BYTES = (1 << 31) - 1

# A protobuf file holds at most 2 GiB; above this, weights go to a file of their own.
_INLINE_BYTES = 1_900_000_000
# Larger weights get a file of their own where one is asked for; up to this size they stay in the model.
_MOST_INSIDE_BYTES = 256


def save_model(model: ir.Model, path: Path, apart: bool = False) -> None:
    """Write a model. Weights go to `<name>.data` beside it where the file cannot hold them, or with `apart`.

    They are written one by one, so that memory never holds a second copy.
    Raises OutputError.
    """
    tensors = (value.const_value for value in model.graph.initializers.values())
    numbers = (tensor for tensor in tensors if tensor is not None and tensor.dtype != ir.DataType.STRING)
    sizes = {id(tensor): tensor.nbytes for tensor in numbers}.values()
    try:
        if apart or sum(sizes) > _INLINE_BYTES:
            data = f"{path.name}.data"
            _keep_texts_inside(model)
            ir.save(model, path, external_data=data, size_threshold_bytes=_MOST_INSIDE_BYTES)
            least = sum(size for size in sizes if size > _MOST_INSIDE_BYTES)
            if least:
                require_size(path.with_name(data), least)
        else:
            write_model(model, path)
    except OSError as error:
        raise OutputError(f"{path.name} cannot be written: {error.strerror or error}.") from error


class _Texts(ir.StringTensor):
    """Counts as empty, since onnx_ir would try to write texts to the file of weights."""

    @property
    def nbytes(self) -> int:
        return 0


def _keep_texts_inside(model: ir.Model) -> None:
    for value in (value for graph in model.graphs() for value in graph.initializers.values()):
        tensor = value.const_value
        if isinstance(tensor, ir.StringTensor) and not isinstance(tensor, _Texts):
            value.const_value = _Texts(tensor.string_data(), shape=tensor.shape, name=tensor.name)


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
    if not _are_texts_sound(proto):
        raise LoadError(f"{path} is a damaged ONNX model: a name or text in it is not UTF-8.")
    return proto


def _are_texts_sound(message: Any) -> bool:
    """False where a text of the message is not UTF-8: protobuf hands it out as bytes."""
    texts, parts = _text_fields(message.DESCRIPTOR)
    for name in texts:
        value = getattr(message, name)
        if any(isinstance(text, bytes) for text in ((value,) if isinstance(value, (str, bytes)) else value)):
            return False
    for name in parts:
        part = getattr(message, name)
        is_single = hasattr(part, "HasField")
        if not all(map(_are_texts_sound, part if not is_single else [part] if message.HasField(name) else [])):
            return False
    return True


@cache
def _text_fields(kind: Any) -> tuple[list[str], list[str]]:
    """The names of the fields of a message that hold texts, and of those that hold messages."""
    texts = [field.name for field in kind.fields if field.type == field.TYPE_STRING]
    return texts, [field.name for field in kind.fields if field.type == field.TYPE_MESSAGE]


def model_files(path: Path) -> tuple[Path, ...]:
    """An ONNX file, then the files beside it that hold its weights. Raises LoadError."""
    return (path, *external_files(read_proto(path), path))


def external_files(proto: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """The files that hold a model's weights, sorted by name.

    They lie in the folder of `path`, or are links into the folder of the file that `path` is a link to, as model hubs
    keep them. Raises LoadError for those that are missing or lie elsewhere.
    """
    return tuple(external_file(location, path) for location in sorted(external_locations(proto)))


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


def external_file(location: str, path: Path) -> Path:
    """The plain file that a location in a model leads to. Raises LoadError."""
    place = PurePosixPath(location.replace("\\", "/"))
    if place.is_absolute() or ".." in place.parts or not place.parts:
        raise LoadError(f"{path}: external data {location[:100]!r} points outside the model's folder.")
    file = path.parent / place
    try:
        target, is_plain = file.resolve(), file.is_file()
        folders = (path.parent.resolve(), path.resolve().parent)
        names = target.stat().st_nlink if is_plain else 1
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links.
        raise LoadError(f"{path}: external data {location[:100]} cannot be read: {first_line(error)}.") from error
    if not is_plain:
        raise LoadError(f"{path}: external data {location[:100]} is missing; put it beside the model.")
    if not any(target.is_relative_to(folder) for folder in folders):
        raise LoadError(
            f"{path}: external data {location[:100]} is a link that leads out of the model's folder ({target})."
        )
    if names > 1:  # onnx and onnx_ir refuse it too.
        raise LoadError(f"{path}: external data {location[:100]} has a second name (a hard link); give it a copy.")
    require_fetched(file)
    return file


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from _present(attribute, "t", attribute.tensors)
        for sparse in _present(attribute, "sparse_tensor", attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in _present(attribute, "g", attribute.graphs):
            yield from _graph_tensors(graph)


def _present(attribute: onnx.AttributeProto, field: str, others: Iterable[Any]) -> Iterator[Any]:
    """A field of an attribute if it is set, then `others`. A field that is not set must not be changed."""
    if attribute.HasField(field):
        yield getattr(attribute, field)
    yield from others


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in _present(attribute, "g", attribute.graphs):
                yield from _nodes(graph.node)
