"""Convert a model to 16-bit floats; its inputs and outputs keep their types."""

from __future__ import annotations

import onnx_ir as ir

from trp_export.errors import UnsupportedError, first_line


def to_fp16(model: ir.Model) -> ir.Model:
    """A copy of the model in fp16, made by onnxruntime's converter. Raises UnsupportedError where that fails."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        half = convert_float_to_float16(ir.serde.serialize_model(model), keep_io_types=True)
    except Exception as error:  # protobuf and the converter raise many types of errors.
        raise UnsupportedError(f"this model cannot be converted to fp16: {first_line(error)}") from error
    made = ir.serde.deserialize_model(half)
    made.graph.sort()  # The converter puts its casts at the end.
    return made
