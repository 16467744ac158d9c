"""ONNX files with their weights inside, written and read without a second copy of the weights in memory.

A protobuf message is a sequence of fields, each a tag and a value; a value of bytes or of an inner message is preceded
by its length (https://protobuf.dev/programming-guides/encoding). Weights are written one after the other, and a file
is read by noting where in it each weight lies: to onnx_ir it is then external data, which is mapped into memory when
used.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from trp_export.errors import LoadError, first_line

# Smaller weights are read at once.
_LARGE_BYTES = 1 << 16
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


def write_model(model: ir.Model, path: Path) -> None:
    """Write a model with its weights inside. Raises OSError."""
    for graph in model.graphs():
        if graph is not model.graph:
            _load_all(graph)
    with _without_weights(model) as weights:
        proto = ir.serde.serialize_model(model)
    parts = []
    for stub in proto.graph.initializer:
        tensor = weights.get(stub.name)
        if tensor is not None:
            stub.ClearField("external_data")
            stub.ClearField("data_location")
        header = stub.SerializeToString()
        if tensor is not None:
            header += _head(_RAW_DATA, tensor.nbytes)
        parts.append((_head(_INITIALIZER, len(header) + (tensor.nbytes if tensor is not None else 0)) + header, tensor))
    proto.graph.ClearField("initializer")
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    size = len(graph) + sum(len(head) + (tensor.nbytes if tensor is not None else 0) for head, tensor in parts)
    part, start = path.with_name(f"{path.name}.part"), proto.SerializeToString() + _head(_GRAPH, size)
    with part.open("wb") as file:
        file.write(start + graph)
        for head, tensor in parts:
            file.write(head)
            if tensor is not None:
                _write_tensor(tensor, file)
    require_size(part, len(start) + size)
    for tensor in weights.values():
        if isinstance(tensor, ir.ExternalTensor):
            tensor.numpy()  # Maps the file that is replaced now, if it is the one.
    part.replace(path)


def require_size(path: Path, size: int) -> None:
    """Raise OSError where a file is shorter: numpy's `tofile`, which writes weights, does not report a full disk."""
    if path.stat().st_size < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def read_model(path: Path) -> ir.Model:
    """A sound ONNX file of which large weights stay on disk until they are used.

    Raises LoadError where another program has damaged it since it was found to be sound.
    """
    try:
        return _read(path)
    except OSError:
        raise
    except Exception as error:  # protobuf's own errors differ between its implementations.
        raise LoadError(f"{path} changed during the work ({first_line(error)}). Run the command again.") from error


def _read(path: Path) -> ir.Model:
    if path.stat().st_size < _LARGE_BYTES:
        return ir.load(path)
    place = str(path.absolute())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        light = onnx.load_model_from_string(b"".join(_light(content, place)))
    model = ir.serde.deserialize_model(light)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.location != place:
            tensor.base_dir = path.parent
    return model


def _load_all(graph: ir.Graph) -> None:
    for value in graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), dtype=value.const_value.dtype, name=value.name)


@contextmanager
def _without_weights(model: ir.Model) -> Iterator[Mapping[str, ir.TensorProtocol]]:
    """Large weights, and those in other files, by name. Meanwhile the model holds empty references in their place."""
    tensors = ((name, value.const_value) for name, value in model.graph.initializers.items())
    weights = {name: tensor for name, tensor in tensors if tensor is not None and _is_apart(tensor)}
    for name, tensor in weights.items():
        model.graph.initializers[name].const_value = ir.ExternalTensor(
            "-", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
        )
    try:
        yield weights
    finally:
        for name, tensor in weights.items():
            model.graph.initializers[name].const_value = tensor


def _is_apart(tensor: ir.TensorProtocol) -> bool:
    is_large = tensor.nbytes >= _LARGE_BYTES and tensor.dtype != ir.DataType.STRING
    return is_large or isinstance(tensor, ir.ExternalTensor)


def _write_tensor(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    if isinstance(tensor, ir.ExternalTensor | ir.Tensor | ir.LazyTensor):
        file.flush()
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())


def _light(content: mmap.mmap, place: str) -> Iterator[bytes]:
    """The model with references to the file itself in place of large weights."""
    for number, start, first, end in _fields(content, 0, len(content)):
        if number != _GRAPH:
            yield content[start:end]
            continue
        parts = []
        for inner, inner_start, inner_first, inner_end in _fields(content, first, end):
            if inner == _INITIALIZER and inner_end - inner_first >= _LARGE_BYTES:
                tensor = _reference(content, inner_first, inner_end, place)
                parts += [_head(_INITIALIZER, len(tensor)), tensor]
            else:
                parts.append(content[inner_start:inner_end])
        yield _head(_GRAPH, sum(map(len, parts)))
        yield from parts


def _reference(content: mmap.mmap, first: int, end: int, place: str) -> bytes:
    """A tensor whose values stay where they are in the file; the same tensor where they are stored otherwise."""
    kept, values = [], None
    for number, start, inner_first, inner_end in _fields(content, first, end):
        if number == _RAW_DATA:
            values = inner_first, inner_end
        else:
            kept.append((start, inner_end))
    if values is None:
        return content[first:end]
    stub = onnx.TensorProto.FromString(b"".join(content[start:stop] for start, stop in kept))
    stub.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", place), ("offset", values[0]), ("length", values[1] - values[0])):
        stub.external_data.add(key=key, value=str(value))
    return bytes(stub.SerializeToString())


def _fields(content: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """For each field its number, where its tag begins, where its value begins, and where it ends."""
    while position < end:
        start = position
        tag, position = _read_varint(content, position)
        kind = tag & 7
        if kind == _BYTES:
            size, position = _read_varint(content, position)
        elif kind == _VARINT:
            size = _read_varint(content, position)[1] - position
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of wire type {kind}")
        yield tag >> 3, start, position, position + size
        position += size


def _read_varint(content: mmap.mmap, position: int) -> tuple[int, int]:
    """A whole number in groups of seven bits, lowest first, and the position after it."""
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _head(number: int, size: int) -> bytes:
    """The tag and the length in front of a field of bytes."""
    return _varint(number << 3 | _BYTES) + _varint(size)


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
