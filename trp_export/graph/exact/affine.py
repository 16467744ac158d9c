"""Fold what scales and shifts channels into the layer before it: batch norm, and Add, Sub, Mul and Div by constants.

    Conv -> BatchNormalization -> Mul c -> Add d   becomes   Conv

    y = scale (W x + b) + shift     for batch norm scale = gamma / sqrt(variance + epsilon), shift = beta - scale mean

The layer may also be a sum of layers, such as a decoupled conv: then each is scaled and the first takes the shift.
A weight that several layers read is scaled once, where the same follows all of them.
Folding comes after factoring where it rescales the rows of a kernel and thereby changes its ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trp_export.graph.weights import (
    DEFAULT_DOMAINS,
    Constant,
    add_initializer,
    find_bias,
    find_constant,
    find_readers,
    is_shown,
    set_value,
)
from trp_export.lowrank.factor import Float64

_FOLDS_INTO = ("Conv", "ConvTranspose", "Gemm")
_AFFINE = ("BatchNormalization", "Add", "Sub", "Mul", "Div")


def fold_affine(model: ir.Model) -> int:
    """Fold every such operator that can be folded, in place. Returns their number."""
    total = 0
    while count := sum(map(_fold, _families(model))):
        total += count
    return total


@dataclass(frozen=True, slots=True)
class Affine:
    """What an operator does to a value: scale and shift, each (channels,), or (1,) where all channels are alike."""

    value: ir.Value
    scale: Float64
    shift: Float64

    @property
    def channels(self) -> int:
        """1 where any number fits."""
        return max(self.scale.size, self.shift.size)

    def does_the_same(self, other: Affine) -> bool:
        """True where both scale and shift alike."""
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.shift, other.shift)


@dataclass(frozen=True, slots=True)
class Term:
    """A layer, alone or a part of a sum, with its weight and its bias."""

    node: ir.Node
    weight: Constant
    bias: Float64

    @property
    def channels(self) -> int:
        """Output channels of the layer."""
        if self.node.op_type == "ConvTranspose":
            return self.weight.shape[1] * self.node.attributes.get_int("group", 1)
        return self.weight.shape[_output_axis(self.node)]


def _families(model: ir.Model) -> list[list[tuple[ir.Node, list[ir.Node]]]]:
    """The operators that follow the same weights, each with the layers before it."""
    families: dict[object, list[tuple[ir.Node, list[ir.Node]]]] = {}
    for node in model.graph.all_nodes():
        if node.op_type in _AFFINE and node.domain in DEFAULT_DOMAINS:
            layers = next(filter(None, (_layers_before(value, node.graph) for value in node.inputs)), [])
            if layers:
                families.setdefault(tuple(map(_reading, layers)), []).append((node, layers))
    return list(families.values())


def _reading(layer: ir.Node) -> object:
    """The weight of a layer and the way in which it is read."""
    weight = find_constant(layer.inputs[1])
    if weight is None:
        return layer
    return weight.root, weight.axes, layer.attributes.get_int("group", 1), _output_axis(layer)


def _fold(family: Sequence[tuple[ir.Node, Sequence[ir.Node]]]) -> int:
    """Fold operators into the layers whose weights they share. Returns their number, 0 where that cannot be."""
    uses = [
        (node, [term for layer in layers if (term := find_term(layer, uses=len(family))) is not None])
        for node, layers in family
    ]
    first = uses[0][1]
    if not first or any(len(terms) < len(layers) for (_, layers), (_, terms) in zip(family, uses, strict=True)):
        return 0
    if len({id(term.weight.root) for term in first}) < len(first):
        return 0
    ranks = {len(term.weight.shape) for term in first}
    # Layers of unlike ranks have their channels on different axes of the sum.
    affines = [_affine(node, *ranks) if len(ranks) == 1 else None for node, _ in family]
    affine = affines[0]
    if affine is None or not all(other is not None and affine.does_the_same(other) for other in affines):
        return 0
    if not all(_fits(term, affine.channels) for _, terms in uses for term in terms):
        return 0
    for index, term in enumerate(first):
        layers = [terms[index] for _, terms in uses]
        shift = affine.shift if index == 0 else 0.0
        biases = [layer.bias * affine.scale + shift for layer in layers]
        _scale_outputs(term, np.broadcast_to(affine.scale, term.channels))
        _set_biases(layers, [np.broadcast_to(bias, term.channels) if bias.any() else bias for bias in biases])
    for node, own in zip((node for node, _ in family), affines, strict=True):
        assert own is not None  # It was compared above.
        _bypass(node, own.value)
    return len(family)


def _affine(node: ir.Node, rank: int) -> Affine | None:
    """None for an operator that does not scale and shift each channel of a value of that rank by constants."""
    if node.op_type == "BatchNormalization":
        terms, value = affine_terms(node), node.inputs[0]
        return None if terms is None or value is None else Affine(value, *terms)
    return by_constants(node, rank)


def by_constants(node: ir.Node, rank: int) -> Affine | None:
    """What an Add, Sub, Mul or Div by a constant does to a value of that rank, whose channels are the second axis.

    None where the constant differs along other axes.
    """
    constants = [find_constant(value) for value in node.inputs]
    at = [index for index, constant in enumerate(constants) if constant is None]
    if len(at) != 1 or len(constants) != 2:
        return None
    value, constant = node.inputs[at[0]], constants[1 - at[0]]
    if value is None or constant is None or not constant.dtype.is_floating_point() or len(constant.shape) > rank:
        return None
    shape = (*[1] * (rank - len(constant.shape)), *constant.shape)
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1):
        return None
    channels = constant.array().astype(np.float64).reshape(-1)
    return _by_constant(node.op_type, value, channels, constant_first=at[0] == 1)


def _by_constant(operator: str, value: ir.Value, constant: Float64, *, constant_first: bool) -> Affine | None:
    """What `value + constant` and so on do, or with the constant first."""
    one, zero = np.ones(1), np.zeros(1)
    match operator:
        case "Add":
            return Affine(value, one, constant)
        case "Sub":
            return Affine(value, -one, constant) if constant_first else Affine(value, one, -constant)
        case "Mul":
            return Affine(value, constant, zero)
        case "Div" if not constant_first and constant.all():
            return Affine(value, 1 / constant, zero)
    return None


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


def find_term(layer: ir.Node, uses: int = 1) -> Term | None:
    """None where weight and bias are not constants, or where not just `uses` layers read the weight."""
    weight = find_constant(layer.inputs[1])
    if weight is None or is_shown(weight.root):
        return None
    readers = find_readers(weight.root)
    if len(readers) != uses or any(node.op_type != layer.op_type or index != 1 for node, index in readers):
        return None
    bias = find_bias(layer)
    return None if bias is None else Term(layer, weight, bias)


def _fits(term: Term, channels: int) -> bool:
    return term.bias.size in (1, term.channels) and channels in (1, term.channels)


def _output_axis(node: ir.Node) -> int:
    return 1 if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0) else 0


def set_bias(term: Term, bias: Float64) -> None:
    """Give a layer another bias."""
    _set_biases([term], [bias])


def _set_biases(terms: Sequence[Term], biases: Sequence[Float64]) -> None:
    """Give layers of one weight another bias each; equal ones are stored once."""
    stored: list[tuple[Float64, ir.Value]] = []
    for term, bias in zip(terms, biases, strict=True):
        value = next((value for other, value in stored if np.array_equal(other, bias)), None)
        value = _set_bias(term, bias, value)
        if value is not None:
            stored.append((bias, value))


def _set_bias(term: Term, bias: Float64, value: ir.Value | None) -> ir.Value | None:
    """Give a layer another bias, which `value` holds if it is stored already. Returns what holds it."""
    graph = term.weight.root.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{term.weight.root.name} is not in a graph")
    name = f"{(term.weight.root.name or term.node.name or '').removesuffix('.weight')}.bias"
    old = term.node.inputs[2] if len(term.node.inputs) > 2 else None
    if old is None and not bias.any():
        return None
    if old is not None and len(old.uses()) == 1 and old.is_initializer():
        name = old.name or name
        del graph.initializers[name]
    value = value if value is not None else add_initializer(graph, name, bias, term.weight.dtype)
    term.node.resize_inputs(3)
    term.node.replace_input_with(2, value)
    if term.node.op_type == "Gemm":
        term.node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    return value


def _bypass(node: ir.Node, before: ir.Value) -> None:
    """Remove the node; the value before it gets the name of its output."""
    after = node.outputs[0]
    if node.graph is None:
        raise ValueError(f"{node.name} is not in a graph")
    before.name, after.name = after.name, f"{after.name}.folded"
    before.shape, before.type = before.shape or after.shape, before.type or after.type
    after.replace_all_uses_with(before, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)


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


def _scale_outputs(term: Term, scale: Float64) -> None:
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
    set_value(term.weight.root, term.weight.as_stored(scaled))
