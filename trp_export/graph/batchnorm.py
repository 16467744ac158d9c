"""Fold batch norm into the layer before it; after rewriting that is the second conv of a pair.

    y = scale (W x + b - mean) + beta   with scale = gamma / sqrt(variance + epsilon)

It comes after the factors are made: folding rescales the rows of a kernel, and with them the ranks.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trp_export.graph.weights import Constant, add_initializer, find_constant, set_value
from trp_export.lowrank.factor import Float64

_FOLDS_INTO = ("Conv", "ConvTranspose", "Gemm")


def fold_batch_norm(model: ir.Model) -> int:
    """Fold every BatchNormalization that can be, in place. Returns how many were folded."""
    return sum(
        _fold(node)
        for node in list(model.graph.all_nodes())
        if node.op_type == "BatchNormalization" and not node.domain
    )


def _fold(norm: ir.Node) -> bool:
    layer = _layer_before(norm)
    terms = _affine_terms(norm)
    if layer is None or terms is None or norm.graph is None:
        return False
    weight = find_constant(layer.inputs[1])
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    old_bias = find_constant(bias)
    if weight is None or len(weight.root.uses()) != 1 or weight.root.is_graph_output() or (bias and old_bias is None):
        return False
    scale, shift = terms
    if old_bias is not None:
        offset = old_bias.array().astype(np.float64)
        if offset.size not in (1, scale.size):
            return False
        beta = layer.attributes.get_float("beta", 1.0) if layer.op_type == "Gemm" else 1.0
        shift = shift + beta * offset.reshape(-1) * scale
    if not _scale_outputs(layer, weight, scale):
        return False
    graph = weight.root.graph
    if not isinstance(graph, ir.Graph):
        return False
    name = f"{(weight.root.name or layer.name or '').removesuffix('.weight')}.bias"
    new_bias = add_initializer(graph, name, shift, weight.dtype)
    layer.resize_inputs(3)
    layer.replace_input_with(2, new_bias)
    if layer.op_type == "Gemm":
        layer.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    output, result = layer.outputs[0], norm.outputs[0]
    output.name, result.name = result.name, f"{result.name}.folded"
    output.shape = output.shape or result.shape
    result.replace_all_uses_with(output, replace_graph_outputs=True)
    norm.graph.remove(norm, safe=True)
    return True


def _layer_before(norm: ir.Node) -> ir.Node | None:
    """The layer whose only reader is this batch norm."""
    value = norm.inputs[0]
    layer = value.producer() if value is not None else None
    if value is None or layer is None or layer.domain or layer.op_type not in _FOLDS_INTO:
        return None
    return layer if len(value.uses()) == 1 and not value.is_graph_output() and layer.graph is norm.graph else None


def _affine_terms(norm: ir.Node) -> tuple[Float64, Float64] | None:
    """(scale, shift) per channel, or None in training mode or where a parameter is not constant."""
    trains = norm.attributes.get_int("training_mode", 0) or any(output.uses() for output in norm.outputs[1:])
    constants = [find_constant(value) for value in norm.inputs[1:5]]
    if trains or not norm.attributes.get_int("spatial", 1) or len(constants) < 4:
        return None
    arrays = [constant.array().astype(np.float64) for constant in constants if constant is not None]
    if len(arrays) < 4:
        return None
    gamma, beta, mean, variance = arrays
    scale = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    return scale, beta - mean * scale


def _scale_outputs(layer: ir.Node, weight: Constant, scale: Float64) -> bool:
    """Multiply each output channel of the layer's weight; False where the shapes do not allow it."""
    stored = weight.array().astype(np.float64)
    if layer.op_type == "ConvTranspose":
        group = layer.attributes.get_int("group", 1)
        per_group = scale.reshape(group, -1)
        if stored.shape[0] % group or per_group.shape[1] != stored.shape[1]:
            return False
        grouped = stored.reshape(group, stored.shape[0] // group, *stored.shape[1:])
        scaled = (grouped * per_group[:, None, :, *[None] * (stored.ndim - 2)]).reshape(stored.shape)
    else:
        axis = 1 if layer.op_type == "Gemm" and not layer.attributes.get_int("transB", 0) else 0
        if stored.shape[axis] != scale.size:
            return False
        scaled = stored * np.expand_dims(scale, [other for other in range(stored.ndim) if other != axis])
    set_value(weight.root, scaled.transpose([weight.axes.index(axis) for axis in range(scaled.ndim)]))
    return True
