"""Store weights in the narrow type that they came in: folding a Cast must not double the file.

A weight that was float16 or bfloat16 in the file and is still exactly representable in it goes back behind a Cast,
which onnxruntime folds when it loads the model.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trp_export.graph.weights import DEFAULT_DOMAINS

_KEY = "trp_export.narrow"
_LEAST_BYTES = 1024
_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def note_narrow(model: ir.Model) -> None:
    """Note in the model's metadata the narrow type that it casts stored weights from, before these are folded."""
    for node in model.graph.all_nodes():
        source = node.inputs[0] if node.op_type == "Cast" and node.domain in DEFAULT_DOMAINS else None
        tensor = source.const_value if source is not None else None
        if tensor is not None and tensor.dtype in _NARROW and tensor.nbytes > _LEAST_BYTES:
            model.metadata_props[_KEY] = tensor.dtype.name


def take_narrow(model: ir.Model) -> ir.DataType | None:
    """The type that `note_narrow` noted, None where it noted none. The note is removed."""
    name = model.metadata_props.pop(_KEY, None)
    return next((dtype for dtype in _NARROW if dtype.name == name), None)


def store_narrow(model: ir.Model, narrow: ir.DataType) -> None:
    """Store each float32 initializer that `narrow` represents exactly in that type, with a Cast, in place."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes <= _LEAST_BYTES:
            continue
        wide = tensor.numpy()
        small = wide.astype(narrow.numpy())
        if value.is_graph_input() or value.is_graph_output() or not np.array_equal(small.astype(np.float32), wide):
            continue
        del graph.initializers[name]
        value.const_value = None
        stored = ir.Value(name=f"{name}.stored", type=ir.TensorType(narrow), shape=ir.Shape(small.shape))
        stored.const_value = ir.tensor(small, dtype=narrow, name=stored.name)
        graph.register_initializer(stored)
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value}, name=f"{name}.cast")
        cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = name, value.type, value.shape
        graph.insert_before(graph[0], cast)
        value.replace_all_uses_with(cast.outputs[0])
