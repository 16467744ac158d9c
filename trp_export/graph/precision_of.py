"""The precision of a model file, told by what it holds."""

from __future__ import annotations

from typing import Literal

import onnx

from trp_export.graph.model_files import nodes, tensors

_HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
# QLinearConv, QGemm, QAttention and others of onnxruntime; ConvInteger, MatMulInteger; DynamicQuantizeLinear.
_INT8_BEGINNINGS = ("QLinear", "QGemm", "QAttention")


def precision_of(proto: onnx.ModelProto) -> Literal["fp32", "fp16", "int8"]:
    """The coarsest arithmetic in a model: int8 before fp16 before fp32."""
    if any(_is_int8(node.op_type) for node in nodes(proto)):
        return "int8"
    types = {tensor.data_type for tensor in tensors(proto)}
    types |= {value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)}
    return "fp16" if types & set(_HALF) else "fp32"


def _is_int8(operator: str) -> bool:
    return "Quantize" in operator or operator.endswith("Integer") or operator.startswith(_INT8_BEGINNINGS)
