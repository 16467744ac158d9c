"""Fold batch norm into the layer before it; after rewriting that is the second conv of a pair.

    y = scale (W x + b - mean) + beta   with scale = gamma / sqrt(variance + epsilon)

The layer may also be a sum of layers, such as a decoupled conv: then each is scaled and the first takes the shift.
Folding comes after factoring, since it rescales the rows of a kernel and thereby changes its ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trp_export.graph.weights import Constant, add_initializer, find_bias, find_constant, find_readers, set_value
from trp_export.lowrank.factor import Float64

_FOLDS_INTO = ("Conv", "ConvTranspose", "Gemm")


def fold_batch_norm(model: ir.Model) -> int:
    """Fold every BatchNormalization that can be folded, in place. Returns their number."""
    norms = [node for node in model.graph.all_nodes() if node.op_type == "BatchNormalization" and not node.domain]
    return sum(_fold(norm) for norm in norms)


@dataclass(frozen=True, slots=True)
class _Term:
    """A layer whose output the batch norm reads, alone or in a sum, with its weight and bias."""

    node: ir.Node
    weight: Constant
    bias: Float64


def _fold(norm: ir.Node) -> bool:
    affine = affine_terms(norm)
    layers = _layers_before(norm.inputs[0], norm.graph)
    terms = [_term(layer) for layer in layers]
    if affine is None or not terms or norm.graph is None:
        return False
    scale, shift = affine
    sound = [term for term in terms if term is not None and _fits(term, scale.size)]
    if len(sound) < len(terms) or len({id(term.weight.root) for term in sound}) < len(sound):
        return False
    for index, term in enumerate(sound):
        _scale_outputs(term, scale)
        _set_bias(term, term.bias * scale + (shift if index == 0 else 0.0))
    _bypass(norm)
    return True


def _layers_before(value: ir.Value | None, graph: object) -> list[ir.Node]:
    """The layers whose output or sum is this value; none where other nodes take part or read a value between."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.domain or node.graph is not graph:
        return []
    if len(value.uses()) != 1 or value.is_graph_output():
        return []
    if node.op_type in _FOLDS_INTO:
        return [node]
    if node.op_type != "Add":
        return []
    parts = [_layers_before(part, graph) for part in node.inputs]
    return [*parts[0], *parts[1]] if all(parts) else []


def _term(layer: ir.Node) -> _Term | None:
    """None where the weight or bias is not a constant that only this layer reads."""
    weight = find_constant(layer.inputs[1])
    if weight is None or len(find_readers(weight.root)) != 1 or weight.root.is_graph_output():
        return None
    bias = find_bias(layer)
    return None if bias is None else _Term(layer, weight, bias)


def _fits(term: _Term, channels: int) -> bool:
    if term.bias.size not in (1, channels):
        return False
    if term.node.op_type == "ConvTranspose":
        return term.weight.shape[1] * term.node.attributes.get_int("group", 1) == channels
    return term.weight.shape[_output_axis(term.node)] == channels


def _output_axis(node: ir.Node) -> int:
    return 1 if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0) else 0


def _set_bias(term: _Term, bias: Float64) -> None:
    graph = term.weight.root.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{term.weight.root.name} is not in a graph")
    name = f"{(term.weight.root.name or term.node.name or '').removesuffix('.weight')}.bias"
    old = term.node.inputs[2] if len(term.node.inputs) > 2 else None
    if old is None and not bias.any():
        return
    if old is not None and len(old.uses()) == 1 and old.is_initializer():
        name = old.name or name
        del graph.initializers[name]
    term.node.resize_inputs(3)
    term.node.replace_input_with(2, add_initializer(graph, name, bias, term.weight.dtype))
    if term.node.op_type == "Gemm":
        term.node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)


def _bypass(norm: ir.Node) -> None:
    """Remove the batch norm; the value before it gets the name of its output."""
    before, after = norm.inputs[0], norm.outputs[0]
    if before is None or norm.graph is None:
        raise ValueError(f"{norm.name} is not in a graph")
    before.name, after.name = after.name, f"{after.name}.folded"
    before.shape, before.type = before.shape or after.shape, before.type or after.type
    after.replace_all_uses_with(before, replace_graph_outputs=True)
    norm.graph.remove(norm, safe=True)


def affine_terms(norm: ir.Node) -> tuple[Float64, Float64] | None:
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


def _scale_outputs(term: _Term, scale: Float64) -> None:
    """Multiply each output channel of the layer's weight."""
    stored = term.weight.array().astype(np.float64)
    if term.node.op_type == "ConvTranspose":
        group = term.node.attributes.get_int("group", 1)
        grouped = stored.reshape(group, stored.shape[0] // group, *stored.shape[1:])
        per_group = scale.reshape(group, 1, -1, *[1] * (stored.ndim - 2))
        scaled = (grouped * per_group).reshape(stored.shape)
    else:
        axis = _output_axis(term.node)
        scaled = stored * np.expand_dims(scale, [other for other in range(stored.ndim) if other != axis])
    set_value(term.weight.root, scaled.transpose([term.weight.axes.index(axis) for axis in range(scaled.ndim)]))
