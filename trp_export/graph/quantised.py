"""Recognise networks that were quantised, or fused for a runtime, already: no layer of theirs can be factored."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from trp_export.errors import UnsupportedError
from trp_export.graph.cost import is_counted
from trp_export.graph.fold import constant_expression
from trp_export.graph.weights import DEFAULT_DOMAINS

# Operators that compute in 8 bits, or round activations to them. DequantizeLinear alone only unpacks stored weights.
_QUANTISED = (
    *("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
)
_FUSED = ("FusedConv", "NhwcFusedConv", "NhwcConv")
_CONVS = ("Conv", "ConvTranspose")
_QUANTISED_ELSEWHERE = ("QGemm", "QLinear", "MatMulNBits", "QAttention", "DynamicQuantize", "QuantizeLinear")


def require_float(model: ir.Model) -> None:
    """Raises UnsupportedError for a quantised network, QDQ or with quantised operators.

    One that rounds weights alone, or an output that no layer reads, computes in floats.
    """
    found = Counter(node.op_type for node in model.graph.all_nodes() if _is_quantised(node))
    if found:
        ((operator, count),) = found.most_common(1)
        raise quantised_already(f"{count} {operator}")


def quantised_already(shown_by: str) -> UnsupportedError:
    """The error for a network that is no float network, with what shows it."""
    return UnsupportedError(
        f"this network is quantised already ({shown_by}). Start from the float model that it was made from; "
        "--precision int8 quantises the result again."
    )


def require_unfused(model: ir.Model) -> None:
    """Raises UnsupportedError for a file that onnxruntime optimised and saved: its convs are fused or laid out anew."""
    operators = Counter(node.op_type for node in model.graph.all_nodes() if _is_fused(node))
    if operators and not any(node.op_type in _CONVS and node.domain in DEFAULT_DOMAINS for node in model.graph):
        ((operator, count),) = operators.most_common(1)
        raise UnsupportedError(
            f"onnxruntime optimised this file for its own kernels ({count} {operator} of com.microsoft). "
            "Start from the file that it was made from."
        )


def _is_fused(node: ir.Node) -> bool:
    return (node.domain == "com.microsoft.nchwc" and node.op_type == "Conv") or (
        node.domain == "com.microsoft" and node.op_type in _FUSED
    )


def _is_quantised(node: ir.Node) -> bool:
    if node.domain in DEFAULT_DOMAINS:
        harmless = node.op_type == "QuantizeLinear" and not (_varies(node.inputs[0]) and _reaches_layer(node))
        return node.op_type in _QUANTISED and not harmless
    return node.domain == "com.microsoft" and node.op_type.startswith(_QUANTISED_ELSEWHERE)


def _varies(value: ir.Value | None) -> bool:
    """False for a weight and for what is made of weights alone."""
    return value is not None and not value.is_initializer() and not constant_expression(value)


def _reaches_layer(node: ir.Node) -> bool:
    """True where what a node makes is read, sooner or later, by an operator that multiplies, or by a body."""
    pending, seen = [node], {node}
    while pending:
        for reader in {reader for value in pending.pop().outputs for reader in value.consumers()} - seen:
            if is_counted(reader) or reader.graph is not node.graph:
                return True
            seen.add(reader)
            pending.append(reader)
    return False
