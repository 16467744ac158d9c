"""The interface of a model, which an export never changes: inputs and outputs with their names, types and defaults."""

from __future__ import annotations

import onnx_ir as ir

from trp_export.errors import VerifyError

Entry = tuple[str | None, ir.DataType | None, bytes | None]


def require_same_interface(original: ir.Model, result: ir.Model) -> None:
    """Raises VerifyError where inputs or outputs differ in number, order, name, type or default."""
    pairs = ((original.graph.inputs, result.graph.inputs), (original.graph.outputs, result.graph.outputs))
    for before, after in pairs:
        if [_entry(value) for value in before] != [_entry(value) for value in after]:
            names = [", ".join(value.name or "" for value in values) for values in (before, after)]
            raise VerifyError(
                f"the result has other inputs or outputs than the model: {names[1]} instead of {names[0]}."
            )


def _entry(value: ir.Value) -> Entry:
    default = value.const_value if value.is_graph_input() else None
    return value.name, value.dtype, default.tobytes() if default is not None else None
