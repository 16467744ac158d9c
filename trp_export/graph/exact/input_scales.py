"""Fold a scale into the layers that read it.

    x -> Mul c -> Conv, Conv   becomes   x -> Conv, Conv    with c in the kernels, input channel by input channel

A scale commutes with padding by zeros; a shift does not, so it stays.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trp_export.graph.exact.affine import per_channel
from trp_export.graph.weights import DEFAULT_DOMAINS, Constant, find_constant, find_readers, set_value
from trp_export.lowrank.factor import Float64


def fold_input_scales(model: ir.Model) -> int:
    """Fold every Mul and Div by constants that only convs read, in place. Returns their number."""
    nodes = [node for node in model.graph.all_nodes() if node.op_type in ("Mul", "Div")]
    return sum(_fold(node) for node in nodes if node.domain in DEFAULT_DOMAINS)


def _fold(node: ir.Node) -> bool:
    constants = [find_constant(value) for value in node.inputs]
    at = [index for index, constant in enumerate(constants) if constant is None]
    if len(at) != 1 or len(constants) != 2 or (node.op_type == "Div" and at[0] != 0):
        return False
    value, constant, scaled = node.inputs[at[0]], constants[1 - at[0]], node.outputs[0]
    readers = list(scaled.uses())
    if value is None or constant is None or not readers or scaled.is_graph_output():
        return False
    if not all(index == 0 and reader.op_type == "Conv" for reader, index in readers):
        return False
    weights = [find_constant(reader.inputs[1]) for reader, _ in readers]
    kernels = [weight for weight in weights if weight is not None and len(find_readers(weight.root)) == 1]
    scale = per_channel(constant, len(kernels[0].shape)) if kernels else None
    if scale is None or len(kernels) < len(readers) or not np.isfinite(scale).all():
        return False
    if node.op_type == "Div":
        if not scale.all():
            return False
        scale = 1 / scale
    groups = [reader.attributes.get_int("group", 1) for reader, _ in readers]
    if any(scale.size not in (1, kernel.shape[1] * group) for kernel, group in zip(kernels, groups, strict=True)):
        return False
    for kernel, group in zip(kernels, groups, strict=True):
        _scale_inputs(kernel, group, scale)
    scaled.replace_all_uses_with(value)
    return True


def _scale_inputs(kernel: Constant, group: int, scale: Float64) -> None:
    """Multiply each input channel of a kernel (n, c/group, *k) by its entry of `scale` (c,) or (1,)."""
    stored = kernel.array().astype(np.float64)
    n, inside = stored.shape[:2]
    by_group = np.broadcast_to(scale, inside * group).reshape(group, 1, inside, *[1] * (stored.ndim - 2))
    made = (stored.reshape(group, n // group, *stored.shape[1:]) * by_group).reshape(stored.shape)
    set_value(kernel.root, made.transpose([kernel.axes.index(axis) for axis in range(made.ndim)]))
