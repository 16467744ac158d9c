"""Fold what scales and shifts channels into the convs that read it.

    x -> Mul c -> Conv, Conv   becomes   x -> Conv, Conv    with c in the kernels, input channel by input channel
    x -> Add d -> Conv         becomes   x -> Conv          with what the kernel makes of d in the bias

A scale commutes with padding by zeros. A shift does not, so it stays where a conv pads. Where the constant spreads one
channel over several, or adds an axis, the operator stays, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from trp_export.graph.exact.affine import Affine, Term, by_constants, find_term, set_bias
from trp_export.graph.kernels import group_of, is_padded
from trp_export.graph.shapes import Shape, infer_value_shapes
from trp_export.graph.weights import DEFAULT_DOMAINS, set_value
from trp_export.lowrank.factor import Float64

_OPERATORS = ("Add", "Sub", "Mul", "Div")


def fold_input_affine(model: ir.Model) -> int:
    """Fold every such operator that only convs read, in place. Returns their number."""
    nodes = [node for node in model.graph.all_nodes() if node.op_type in _OPERATORS and node.domain in DEFAULT_DOMAINS]
    found = [(node, *place) for node in nodes if (place := _find(node)) is not None]
    shapes = infer_value_shapes(model, {}) if found else {}
    sound = [(node, affine, terms) for node, affine, terms in found if _keeps_shape(affine, terms, shapes)]
    for node, affine, terms in sound:
        for term in terms:
            _fold_into(term, affine)
        node.outputs[0].replace_all_uses_with(affine.value)
    return len(sound)


def _find(node: ir.Node) -> tuple[Affine, list[Term]] | None:
    """What the operator does and the convs that can do it."""
    terms = _readers(node.outputs[0])
    affine = by_constants(node, len(terms[0].weight.shape)) if terms else None
    if affine is None or not np.isfinite([*affine.scale, *affine.shift]).all():
        return None
    padded = any(is_padded(term.node) for term in terms)
    return None if padded and affine.shift.any() else (affine, terms)


def _keeps_shape(affine: Affine, terms: Sequence[Term], shapes: Mapping[str, Shape]) -> bool:
    """False where the shape is not known."""
    shape = shapes.get(affine.value.name or "", ())
    if len(shape) != len(terms[0].weight.shape):
        return False
    channels = {shape[1], *(term.weight.shape[1] * group_of(term.node) for term in terms)}
    return affine.channels == 1 or channels == {affine.channels}


def _readers(value: ir.Value) -> list[Term]:
    """The convs that read a value, each with a kernel of its own; none where anything else reads it."""
    uses = list(value.uses())
    if value.is_graph_output() or not all(index == 0 and node.op_type == "Conv" for node, index in uses):
        return []
    terms = [find_term(node) for node, _ in uses]
    sound = [term for term in terms if term is not None]
    return sound if len(sound) == len(uses) else []


def _fold_into(term: Term, affine: Affine) -> None:
    """W (scale x + shift) + b, with the kernel W (n, c/group, *k) and scale and shift (c,) or (1,)."""
    kernel = term.weight.array().astype(np.float64)
    if affine.shift.any():
        shifted = kernel * _by_kernel(affine.shift, kernel, group_of(term.node))
        set_bias(term, term.bias + shifted.reshape(len(kernel), -1).sum(axis=1))
    if (affine.scale != 1).any():
        scaled = kernel * _by_kernel(affine.scale, kernel, group_of(term.node))
        set_value(term.weight.root, term.weight.as_stored(scaled))


def _by_kernel(channels: Float64, kernel: Float64, group: int) -> Float64:
    """Numbers of input channels (c,) or (1,), laid out as a kernel (n, c/group, *k) meets them."""
    n, inside = kernel.shape[:2]
    by_group = np.broadcast_to(channels, inside * group).reshape(group, inside)
    return np.repeat(by_group, n // group, axis=0).reshape(n, inside, *[1] * (kernel.ndim - 2))
