"""Convert a model to 16-bit floats; its inputs and outputs keep their types."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trp_export.errors import UnsupportedError, first_line
from trp_export.graph.half_weights import is_rounding
from trp_export.system.processes import ending_with_us

# The converter's smallest number.
_SMALLEST = 5.96e-8
# The names that the converter gives its casts. A file that it made has them already.
_CASTS = re.compile(r"^graph_(input|output)_cast_?\d+$|_cast_to_fp(16|32)(_node)?$")
_OPEN = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
_TIMEOUT_S = 300


def to_fp16(model: ir.Model) -> ir.Model:
    """A copy of the model in fp16, made by onnxruntime's converter.

    Inner values that have the names of the converter's casts are renamed in `model`. Raises UnsupportedError where the
    conversion fails, or where a weight is not the float16 number next to what it was.
    """
    _free_names(model)
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        half = convert_float_to_float16(ir.serde.serialize_model(model), keep_io_types=True)
    except Exception as error:  # protobuf and the converter raise many types of errors.
        raise UnsupportedError(f"this model cannot be converted to fp16: {first_line(error)}") from error
    made = ir.serde.deserialize_model(half)
    made.graph.sort()  # The converter puts its casts at the end.
    for output, declared in zip(made.graph.outputs, model.graph.outputs, strict=True):
        output.shape = declared.shape  # The converter closes sizes that the model leaves open.
    _require_values(made)
    _require_rounded(model, made)
    return made


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
