"""Change the bias of layers, to undo what truncation does to the mean of their outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from trp_export.graph.sites import LocatedSite
from trp_export.graph.weights import add_initializer, find_bias, find_constant
from trp_export.lowrank.factor import Float64

_TAKE_BIAS = ("Conv", "ConvTranspose", "Gemm")


def takes_bias(place: LocatedSite) -> bool:
    """True for a Conv, ConvTranspose or Gemm with a constant bias or without one; a MatMul has no bias."""
    return all(node.op_type in _TAKE_BIAS and find_bias(node) is not None for node in place.nodes)


def add_to_bias(model: ir.Model, located: Sequence[LocatedSite], shifts: Mapping[str, Float64]) -> None:
    """Add `shifts` (n,), by site name, to the layers' biases, in place. Equal biases of one layer are stored once.

    Raises ValueError for a layer for which `takes_bias` is False.
    """
    for place in located:
        if place.site.name in shifts:
            stored: list[tuple[Float64, ir.Value]] = []
            for node in place.nodes:
                bias = _effective_bias(node) + shifts[place.site.name]
                value = next((value for other, value in stored if np.array_equal(other, bias)), None)
                stored.append((bias, _set_bias(model, node, place, bias, value)))


def _effective_bias(node: ir.Node) -> Float64:
    bias = find_bias(node)
    if bias is None:
        raise ValueError(f"the bias of {node.name} is not one number per channel")
    return bias


def _set_bias(model: ir.Model, node: ir.Node, place: LocatedSite, bias: Float64, value: ir.Value | None) -> ir.Value:
    """Give a node another bias, which `value` holds if it is stored already. Returns what holds it."""
    if place.weight is None or node.op_type not in _TAKE_BIAS:
        raise ValueError(f"{node.name} cannot have a bias")
    old = find_constant(node.inputs[2]) if len(node.inputs) > 2 else None
    # Not that of an Identity's output, which stays.
    name = (old.root.name if old is not None else None) or f"{place.site.name}.bias"
    if value is None:
        value = add_initializer(model.graph, name, bias, place.weight.dtype)
    node.resize_inputs(3)
    node.replace_input_with(2, value)
    if node.op_type == "Gemm":
        node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    return value
