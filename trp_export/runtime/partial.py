"""Run a model in onnxruntime and read values inside it, batch by batch.

Only the part of the graph that the values need is run: operators that come later may be unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from trp_export.errors import LoadError, UnsupportedError
from trp_export.inputs.images import ImageSet

Array = NDArray[Any]

_NO_LOGGING = 4
_LARGEST_BATCH = 64
# Eight images of 3x224x224: every layer's input is in memory at once.
_BATCH_ELEMENTS = 8 * 3 * 224 * 224


class Tap:
    """A session whose outputs are values inside a model: (name -> array) in, (name -> array) out."""

    def __init__(
        self,
        model: ir.Model,
        inputs: Sequence[str],
        outputs: Sequence[str],
        threads: int = 0,
        types: Mapping[str, np.dtype[Any]] | None = None,
    ) -> None:
        """`inputs` may be inner values too: what lies before them is then not run, and `types` gives their types.

        Raises UnsupportedError where onnxruntime cannot run the part.
        """
        self.outputs = tuple(dict.fromkeys(outputs))
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _NO_LOGGING
        # numpy works between two runs: threads that spin would take its cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            proto = extract(model, inputs, self.outputs, types or {})
            self._session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many kinds.
            raise UnsupportedError(f"onnxruntime cannot run this model: {str(error).splitlines()[0][:200]}") from error
        self._dtypes = {value.name: _numpy_type(value.type) for value in self._session.get_inputs()}

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self._dtypes)

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Raises LoadError where the feeds do not fit the model."""
        given = {name: np.asarray(feeds[name], dtype=dtype) for name, dtype in self._dtypes.items()}
        try:
            return dict(zip(self.outputs, self._session.run(list(self.outputs), given), strict=True))
        except Exception as error:  # onnxruntime raises many kinds.
            shapes = ", ".join(f"{name} {array.shape}" for name, array in given.items())
            raise LoadError(f"the model failed on the images ({shapes}): {str(error).splitlines()[0][:200]}") from error


def extract(
    model: ir.Model, inputs: Sequence[str], outputs: Sequence[str], types: Mapping[str, np.dtype[Any]]
) -> onnx.ModelProto:
    """The part of a model between `inputs` and `outputs` as a model of its own; the model stays as it is.

    Every value keeps its name.
    """
    cut = {name for name in inputs if name not in model.graph.initializers}  # Inputs with a default keep it.
    values = {value.name: value for node in model.graph for value in node.outputs}
    values |= {value.name: value for value in model.graph.inputs}
    kept: set[ir.Node] = set()
    weights: set[ir.Value] = set()
    pending = [values[name] for name in outputs]
    while pending:
        value = pending.pop()
        if value.is_initializer():
            weights.add(value)
        node = value.producer()
        if value.name in cut or node is None or node in kept:
            continue
        kept.add(node)
        pending += [source for source in node.inputs if source is not None]
        pending += [source for source in outer_reads(node) if source.graph is model.graph]
    proto = onnx.ModelProto(ir_version=model.ir_version)
    proto.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in model.graph.opset_imports.items())
    graph = proto.graph
    graph.name = model.graph.name or "part"
    graph.node.extend(ir.serde.serialize_node(node) for node in model.graph if node in kept)
    for name, value in model.graph.initializers.items():
        if value in weights and value.const_value is not None and name not in cut:
            graph.initializer.append(ir.serde.serialize_tensor(value.const_value))
            graph.initializer[-1].name = name
    read = {name for node in graph.node for name in node.input} | set(outputs)
    read |= {source.name or "" for node in kept for source in outer_reads(node)}
    graph.input.extend(_input(values[name], types) for name in inputs if name in cut & read & values.keys())
    for name in outputs:
        info = onnx.ValueInfoProto(name=name)
        dtype = values[name].dtype
        if dtype is not None:
            info.type.tensor_type.elem_type = int(dtype)
        graph.output.append(info)
    return proto


def feed(model: ir.Model, images: ImageSet, at_a_time: int | None = None) -> Iterator[Array]:
    """The images in batches that the model takes and memory holds; those that do not fill a fixed batch are left out.

    `at_a_time` is the largest batch for a model that takes any.

    Raises UnsupportedError where the model has several inputs, LoadError where a fixed batch is never filled.
    """
    if len(model.graph.inputs) != 1:
        names = ", ".join(value.name or "" for value in model.graph.inputs)
        raise UnsupportedError(f"images can feed a model of one input; this one has {names}.")
    fixed = fixed_batch(model)
    if fixed is not None and fixed > len(images):
        raise LoadError(f"the model takes {fixed} images at a time; {images.name} has {len(images)}.")
    largest = min(at_a_time or _LARGEST_BATCH, _LARGEST_BATCH)
    size = fixed or int(np.clip(_BATCH_ELEMENTS // images.batch(0, 1).size, 1, largest))
    for start in range(0, len(images), size):
        if fixed is None or start + size <= len(images):
            yield images.batch(start, min(start + size, len(images)))


def fixed_batch(model: ir.Model) -> int | None:
    """The number of images that a model takes at a time, or None where it takes any."""
    shape = model.graph.inputs[0].shape
    first = shape[0] if shape is not None and len(shape) else None
    return first if isinstance(first, int) else None


def _input(value: ir.Value, types: Mapping[str, np.dtype[Any]]) -> onnx.ValueInfoProto:
    """An inner value without a shape: what the graph notes may hold for another batch size."""
    known = types.get(value.name or "")
    if known is None or value.is_graph_input():
        return ir.serde.serialize_value(value)
    info = onnx.ValueInfoProto(name=value.name)
    info.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(known)
    return info


def outer_reads(node: ir.Node) -> Iterator[ir.Value]:
    """Values that the subgraphs of a node (If, Loop) read from outside."""
    for attribute in node.attributes.values():
        graphs = (
            [attribute.value]
            if attribute.type == ir.AttributeType.GRAPH
            else list(attribute.value)
            if attribute.type == ir.AttributeType.GRAPHS
            else []
        )
        for graph in graphs:
            for inner in graph.all_nodes():
                yield from (value for value in inner.inputs if value is not None)
            yield from graph.outputs


def _numpy_type(name: str) -> np.dtype[Any]:
    """onnxruntime's "tensor(float16)" as a numpy type."""
    inner = name.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(inner, inner))
