"""Convert a model to 16-bit floats; its inputs and outputs keep their types."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trp_export.errors import UnsupportedError, first_line
from trp_export.graph.half_weights import is_rounding

# The converter's smallest number.
_SMALLEST = 5.96e-8


def to_fp16(model: ir.Model) -> ir.Model:
    """A copy of the model in fp16, made by onnxruntime's converter.

    Raises UnsupportedError where that fails, or where a weight is not the float16 number next to what it was.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        half = convert_float_to_float16(ir.serde.serialize_model(model), keep_io_types=True)
    except Exception as error:  # protobuf and the converter raise many types of errors.
        raise UnsupportedError(f"this model cannot be converted to fp16: {first_line(error)}") from error
    made = ir.serde.deserialize_model(half)
    made.graph.sort()  # The converter puts its casts at the end.
    _require_rounded(model, made)
    return made


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
