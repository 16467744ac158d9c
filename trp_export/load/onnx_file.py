"""An ONNX file, checked before anything is built on it. The file is untrusted."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path, PurePosixPath

import onnx
import onnx_ir as ir

from trp_export.errors import LoadError, UnsupportedError, first_line
from trp_export.load.source import Source
from trp_export.options import LoadOptions

LEAST_OPSET = 7


def load_onnx(path: Path, options: LoadOptions) -> Source:
    """Raises LoadError for what is no valid ONNX file, UnsupportedError for a valid one that is too old."""
    proto = _parse(path)
    external = _check_tensors(proto, path)
    _check_opset(proto, path)
    _check_model(path)
    _strip_tensors(proto)
    try:
        model = ir.serde.deserialize_model(proto)
        ir.external_data.set_base_dir(model.graph, path.parent)
    except Exception as error:  # onnx_ir has many ways to say that a file contradicts itself.
        raise LoadError(f"{path} is not a sound ONNX file: {first_line(error)}") from error
    size = sum(file.stat().st_size for file in {path, *external})
    return Source(name=path.stem, model=model, path=path, bytes=size, input_shape=options.input_shape)


def _parse(path: Path) -> onnx.ModelProto:
    try:
        proto = onnx.load_model(path, format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's own errors differ between its implementations.
        raise LoadError(f"{path} is not an ONNX file, or a damaged one ({first_line(error)}).") from error
    if not proto.HasField("graph") or not proto.graph.node:
        raise LoadError(f"{path} holds no graph: not an ONNX file, or a damaged one.")
    return proto


def _check_tensors(proto: onnx.ModelProto, path: Path) -> set[Path]:
    """Every tensor is as large as its shape says; returns the files of external ones, all in the model's folder."""
    files: set[Path] = set()
    for tensor in _tensors(proto.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            files.add(_check_external(tensor, path))
        elif tensor.HasField("raw_data"):
            _check_size(tensor, len(tensor.raw_data), path)
        if any(dim < 0 for dim in tensor.dims):
            raise LoadError(f"{path}: tensor {tensor.name} has a negative dimension.")
    return files


def _strip_tensors(proto: onnx.ModelProto) -> None:
    """What a tensor says besides its values goes here: onnx_ir keeps it as it is."""
    inside = [tensor for function in proto.functions for tensor in _attribute_tensors(function.node)]
    for tensor in (*_tensors(proto.graph), *inside):
        tensor.ClearField("doc_string")
        tensor.ClearField("metadata_props")


def _check_size(tensor: onnx.TensorProto, size_bytes: int, path: Path) -> None:
    try:
        bits = ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError) as error:
        raise LoadError(f"{path}: tensor {tensor.name} is of a type without a size ({tensor.data_type}).") from error
    if -(-prod(tensor.dims) * bits // 8) != size_bytes:
        raise LoadError(f"{path}: tensor {tensor.name} of shape {list(tensor.dims)} holds {size_bytes} bytes.")


def _check_external(tensor: onnx.TensorProto, path: Path) -> Path:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = PurePosixPath(entries.get("location", "").replace("\\", "/"))
    if location.is_absolute() or ".." in location.parts or not location.parts:
        raise LoadError(f"{path}: tensor {tensor.name} points outside the model's folder ({location}).")
    file = path.parent / location
    if not file.is_file() or not file.resolve().is_relative_to(path.parent.resolve()):
        raise LoadError(f"{path}: external data {location} is missing; put it beside the model.")
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", file.stat().st_size - offset))
    except ValueError as error:
        raise LoadError(f"{path}: tensor {tensor.name} has a damaged external reference.") from error
    if offset < 0 or length < 0 or offset + length > file.stat().st_size:
        raise LoadError(f"{path}: external data {location} is shorter than tensor {tensor.name} says.")
    _check_size(tensor, length, path)
    return file


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    return [*graph.initializer, *_attribute_tensors(graph.node)]


def _attribute_tensors(nodes: Iterable[onnx.NodeProto]) -> list[onnx.TensorProto]:
    found: list[onnx.TensorProto] = []
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                found.append(attribute.t)
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                found += _tensors(inner)
    return found


def _check_opset(proto: onnx.ModelProto, path: Path) -> None:
    versions = {opset.domain: opset.version for opset in proto.opset_import}
    version = versions.get("", versions.get("ai.onnx"))
    if version is None:
        raise LoadError(f"{path} does not say which opset it uses.")
    newest = onnx.defs.onnx_opset_version()
    if version > newest:
        raise UnsupportedError(f"{path} uses opset {version}; the installed onnx knows up to {newest}. Upgrade onnx.")
    if version < LEAST_OPSET:
        raise UnsupportedError(
            f"{path} uses opset {version}; {LEAST_OPSET} is the least. Convert it with onnx.version_converter."
        )


def _check_model(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # ValidationError, or what the C++ checker raises.
        raise LoadError(f"{path} fails the ONNX checker: {first_line(error)}") from error
