"""Read an ONNX file, which nobody vouches for: everything in it is checked before anything is built on it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import onnx
import onnx_ir as ir

from trp_export.errors import LoadError, UnsupportedError, first_line
from trp_export.graph.model_files import external_file, read_proto, tensors
from trp_export.load.onnx_form import check_model, complete_outputs, make_dense, refuse_maps, sort_nodes, use_one_domain
from trp_export.load.source import Source
from trp_export.options import LoadOptions

LEAST_OPSET = 7
_MOST_AXES = 32
_LARGE_BYTES = 1 << 16


def load_onnx(path: Path, options: LoadOptions) -> Source:
    """Raises LoadError for what is not a valid ONNX file, UnsupportedError for a valid one that is too old."""
    proto = read_proto(path)
    files = _check_tensors(proto, path)
    _check_opset(proto, path)
    use_one_domain(proto)
    for graph in (proto.graph, *proto.functions):
        sort_nodes(graph)
    complete_outputs(proto, path)
    check_model(proto, path)
    refuse_maps(proto, path)
    make_dense(proto.graph, path)
    _strip_tensors(proto)
    base = _base_folder(proto, path, files)
    try:
        model = ir.serde.deserialize_model(proto)
        for graph in (model.graph, *(function.graph for function in model.functions.values())):
            ir.external_data.set_base_dir(graph, base)
        _take_out_of_proto(model)
    except Exception as error:  # onnx_ir has many ways to say that a file contradicts itself.
        raise LoadError(f"{path} is not a sound ONNX file: {first_line(error)}") from error
    size = sum(file.stat().st_size for file in {path, *files.values()})
    return Source(name=path.stem, model=model, path=path, bytes=size, inputs=options.inputs)


def _check_tensors(proto: onnx.ModelProto, path: Path) -> dict[str, Path]:
    """Check that every tensor is as large as its shape says; return the files of external data by their location."""
    files: dict[str, Path] = {}
    for tensor in tensors(proto):
        if len(tensor.dims) > _MOST_AXES or any(dim < 0 for dim in tensor.dims):
            raise LoadError(f"{path}: tensor {tensor.name} has a negative dimension or more than {_MOST_AXES} axes.")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location, file = _check_external(tensor, path)
            files[location] = file
        elif tensor.HasField("raw_data"):
            _check_size(tensor, len(tensor.raw_data), path)
    return files


def _strip_tensors(proto: onnx.ModelProto) -> None:
    """Remove what a tensor says besides its values: onnx_ir would keep it."""
    for tensor in tensors(proto):
        tensor.ClearField("doc_string")
        tensor.ClearField("metadata_props")


def _take_out_of_proto(model: ir.Model) -> None:
    """Copy every tensor, so that the message can go: it hands out another copy of a weight whenever one is read."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _own(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    node.attributes[name] = ir.AttrTensor(name, _own(attribute.as_tensor()))


def _own(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if not isinstance(tensor, ir.serde.TensorProtoTensor):
        return tensor
    if tensor.nbytes < _LARGE_BYTES or tensor.dtype.bitwidth < 8:
        return ir.serde.deserialize_tensor(ir.serde.serialize_tensor(tensor))
    return ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def _check_size(tensor: onnx.TensorProto, size_bytes: int, path: Path) -> None:
    try:
        bits = ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError) as error:
        raise LoadError(f"{path}: tensor {tensor.name} is of a type without a size ({tensor.data_type}).") from error
    if -(-prod(tensor.dims) * bits // 8) != size_bytes:
        raise LoadError(f"{path}: tensor {tensor.name} of shape {list(tensor.dims)} holds {size_bytes} bytes.")


def _check_external(tensor: onnx.TensorProto, path: Path) -> tuple[str, Path]:
    """The location that the tensor names, and the plain file that it leads to, found as onnxruntime finds it.

    Model hubs keep files as links into a folder of blobs: the data may lie beside the model, or beside the file that
    the model is a link to.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file = external_file(location, path).resolve()
    size = file.stat().st_size
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", size - offset))
    except ValueError as error:
        raise LoadError(f"{path}: tensor {tensor.name} has a damaged external reference.") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise LoadError(f"{path}: external data {location} is shorter than tensor {tensor.name} says.")
    _check_size(tensor, length, path)
    return location, file


def _base_folder(proto: onnx.ModelProto, path: Path, files: Mapping[str, Path]) -> Path:
    """The folder that external data are read from. Locations become those of the files behind links."""
    here, there = path.parent.resolve(), path.resolve().parent
    if all(file.is_relative_to(here) for file in files.values()):
        return path.parent
    if not all(file.is_relative_to(there) for file in files.values()):
        raise LoadError(f"{path}: some external data lie beside the link, others beside its target; put them together.")
    for tensor in tensors(proto):
        for entry in tensor.external_data if tensor.data_location == onnx.TensorProto.EXTERNAL else ():
            if entry.key == "location":
                entry.value = files[entry.value].relative_to(there).as_posix()
    return there


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
            f"{path} uses opset {version}; at least {LEAST_OPSET} is needed. Convert it with onnx.version_converter."
        )
