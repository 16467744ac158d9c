"""Convert a model to 16-bit floats; its inputs and outputs keep their types."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from trp_export.errors import UnsupportedError, first_line
from trp_export.graph.half_weights import is_rounding
from trp_export.load.onnx_form import inner_graphs
from trp_export.system.processes import ending_with_us

# The converter's smallest number.
_SMALLEST = 5.96e-8
# The names that the converter gives its casts. A file that it made has them already.
_CASTS = re.compile(r"^graph_(input|output)_cast_?\d+$|_cast_to_fp(16|32)(_node)?$")
_OPEN = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
_TIMEOUT_S = 300
# Their scales stay float32 whatever they scale, as the converter knows.
_MIXED = ("Resize", "Upsample")


def to_fp16(model: ir.Model) -> ir.Model:
    """A copy of the model in fp16, made by onnxruntime's converter.

    Inner values that have the names of the converter's casts are renamed in `model`. Raises UnsupportedError where the
    conversion fails, where a weight is not the float16 number next to what it was, and where no weight is a float16
    number.
    """
    _free_names(model)
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        proto = ir.serde.serialize_model(model)
        outputs = list(proto.graph.output)
        computed = {name for node in proto.graph.node for name in node.output}
        # The converter loses outputs that are inputs or weights, and those that are listed twice.
        _set_outputs(proto.graph, {output.name: output for output in outputs if output.name in computed}.values())
        half = convert_float_to_float16(proto, keep_io_types=True, node_block_list=_without_halves(model))
        _set_outputs(half.graph, outputs)
    except Exception as error:  # protobuf and the converter raise many types of errors.
        raise UnsupportedError(f"this model cannot be converted to fp16: {first_line(error)}") from error
    _put_casts_into_bodies(half.graph)
    made = ir.serde.deserialize_model(half)
    made.graph.sort()  # The converter puts its casts at the end.
    for output, declared in zip(made.graph.outputs, model.graph.outputs, strict=True):
        output.shape = declared.shape  # The converter closes sizes that the model leaves open.
    _require_values(made)
    _require_rounded(model, made)
    _require_halves(made)
    return made


def _set_outputs(graph: onnx.GraphProto, outputs: Iterable[onnx.ValueInfoProto]) -> None:
    del graph.output[:]
    graph.output.extend(outputs)


def _without_halves(model: ir.Model) -> list[str]:
    """The names of nodes that read or make a float32 and may not read or make a float16, in this opset."""
    return [
        node.name
        for node in model.graph.all_nodes()
        if node.name
        and node.op_type not in _MIXED
        and any(map(_is_float32_alone, _formal_types(node, model.opset_imports)))
    ]


def _is_float32_alone(types: Collection[str]) -> bool:
    return "tensor(float)" in types and "tensor(float16)" not in types


def _formal_types(node: ir.Node, opsets: Mapping[str, int]) -> Iterator[Collection[str]]:
    """The types that each value which a node reads or makes may have; none of an operator that onnx does not know."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return
    for values, formal in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values if formal else ()):
            if value is not None and value.name:
                yield formal[min(index, len(formal) - 1)].types


def _put_casts_into_bodies(graph: onnx.GraphProto) -> None:
    """The converter puts every cast into the main graph, also those of values that a body makes."""
    homes = {name: body for body in _bodies(graph) for name in _made_in(body)}
    while inside := [node for node in graph.node if _CASTS.search(node.name) and node.input[0] in homes]:
        for node in inside:  # What it makes may be cast again.
            homes[node.output[0]] = body = homes[node.input[0]]
            body.node.append(node)
            graph.node.remove(node)


def _bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            for body in inner_graphs(attribute):
                yield body
                yield from _bodies(body)


def _made_in(body: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in body.input)
    yield from (name for node in body.node for name in node.output)


def require_opens(file: Path) -> None:
    """Open a model as others will, in a process of its own: onnxruntime's optimisations of fp16 crash on some graphs.

    Raises UnsupportedError where that process dies.
    """
    argv = ending_with_us([sys.executable, "-P", "-c", _OPEN, str(file)])
    try:
        done = subprocess.run(argv, capture_output=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise UnsupportedError(f"onnxruntime does not open this model within {_TIMEOUT_S} s") from error
    if done.returncode < 0:
        raise UnsupportedError(f"onnxruntime crashes when it opens this model (signal {-done.returncode})")


def _free_names(model: ir.Model) -> None:
    taken = {value.name for node in model.graph.all_nodes() for value in node.outputs}
    for node in model.graph.all_nodes():
        if _CASTS.search(node.name or ""):
            node.name = f"{node.name}.before"
        for value in node.outputs:
            if _CASTS.search(value.name or "") and not value.is_graph_output():
                while value.name in taken:
                    value.name = f"{value.name}.before"
                taken.add(value.name)


def _require_values(made: ir.Model) -> None:
    """The converter loses values that it renames where the graphs inside a node read them."""
    for node in made.graph.all_nodes():
        for value in node.inputs:
            if value is not None and not (value.producer() or value.is_initializer() or value.is_graph_input()):
                raise UnsupportedError(f"onnxruntime's converter to fp16 loses the value {value.name}")


def _require_halves(made: ir.Model) -> None:
    """The converter passes by float64."""
    tensors = (value.const_value for value in made.graph.initializers.values())
    types = {tensor.dtype for tensor in tensors if tensor is not None and tensor.dtype.is_floating_point()}
    if types and ir.DataType.FLOAT16 not in types:
        names = " and ".join(sorted(dtype.name.lower() for dtype in types))
        raise UnsupportedError(f"no weight can be had in fp16: they are {names}")


def _require_rounded(model: ir.Model, made: ir.Model) -> None:
    for name, value in made.graph.initializers.items():
        before = model.graph.initializers.get(name)
        if before is None or before.const_value is None or value.const_value is None:
            continue
        array, was = value.const_value.numpy(), before.const_value.numpy()
        if array.dtype == np.float16 and was.dtype == np.float32:
            # The converter keeps what is too small or too large for float16 at the ends of its range.
            ends = np.clip(np.abs(was), _SMALLEST, np.finfo(np.float16).max)
            was = np.where(np.isfinite(was) & (was != 0), np.copysign(ends, was), was).astype(np.float32)
            same = is_rounding(array, was)
        else:
            same = array.dtype == was.dtype and array.tobytes() == was.tobytes()
        if not same:
            raise UnsupportedError(f"onnxruntime's converter to fp16 changed the weight {name}")
