"""What operators make of channels that are the same number everywhere, whatever the input of the network.

Constants are arrays with an entry for each channel, NaN where a channel is not constant, so that what is computed from
it is not known either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import erf
from typing import Any

import numpy as np
import onnx_ir as ir

from trp_export.channels.steps import Each
from trp_export.graph.exact.affine import affine_terms
from trp_export.graph.kernels import is_padded
from trp_export.graph.weights import find_bias, find_constant
from trp_export.lowrank.factor import Float64

Function = Callable[[ir.Node, list[Float64]], Float64]


def constants_of(step: Each, read: Float64, precision: np.dtype[Any]) -> Float64:
    """The value of each output channel of a step, NaN where it is not constant; `read` (n, sources) are its inputs.

    Values are rounded to `precision`, that of the network, so that those that it makes equal are equal.
    """
    unknown = np.full(len(read), np.nan)
    with np.errstate(all="ignore"):
        if step.node.op_type == "BatchNormalization":
            made = _normalised(step.node, read[:, 0])
        elif step.node.op_type in ("Conv", "ConvTranspose"):
            made = _depthwise(step, read[:, 0])
        elif step.node.op_type in _OF_OPERANDS:
            operands = _operands(step, read)
            made = _OF_OPERANDS[step.node.op_type](step.node, operands) if operands is not None else unknown
        elif step.node.op_type in _FUNCTIONS:
            made = _FUNCTIONS[step.node.op_type](step.node, list(read.T))
        else:
            return unknown
        rounded = np.asarray(made, precision).astype(np.float64)
    return np.where(np.isfinite(rounded), rounded, np.nan)


def _operands(step: Each, read: Float64) -> list[Float64] | None:
    """Each input of an operator channel by channel; None where a constant differs along other axes."""
    sources = {source.value: read[:, index] for index, source in enumerate(step.sources)}
    rows = {rows.constant.root: (rows, positions) for rows, positions in step.parameters}
    operands: list[Float64] = []
    for value in step.node.inputs:
        constant = find_constant(value)
        if value in sources:
            operands.append(sources[value])
        elif constant is not None and constant.array().size == 1:
            operands.append(np.full(len(read), float(constant.array().reshape(()))))
        elif (
            constant is not None
            and constant.root in rows
            and constant.array().size == constant.shape[rows[constant.root][0].axis]
        ):
            operands.append(constant.array().astype(np.float64).reshape(-1)[rows[constant.root][1]])
        else:
            operands.append(np.full(len(read), np.nan))
    return operands


def _normalised(node: ir.Node, x: Float64) -> Float64:
    affine = affine_terms(node)
    if affine is None:
        return np.full(len(x), np.nan)
    scale, shift = affine
    return np.where(scale == 0, shift, scale * x + shift)


def _depthwise(step: Each, x: Float64) -> Float64:
    """A channel that reads zeros, or whose filter is zero, is its bias; so is any constant, scaled, without padding."""
    weight, bias = step.parameters[0][0].constant.array(), find_bias(step.node)
    if bias is None:
        return np.full(len(x), np.nan)
    filters = weight.reshape(len(x), -1).astype(np.float64)
    is_exact = step.node.op_type == "Conv" and not is_padded(step.node)
    scaled = x * filters.sum(1) if is_exact else np.full(len(x), np.nan)
    return np.where((x == 0) | ~filters.any(1), 0.0, scaled) + np.broadcast_to(bias, (len(x),))


def _unary(function: Callable[[Float64], Float64]) -> Function:
    return lambda node, operands: function(operands[0])


def _same(node: ir.Node, parts: list[Float64]) -> Float64:
    """What is moved, or reduced to a mean or to an extreme, stays what it is where all parts are equal."""
    return np.where(np.all([part == parts[0] for part in parts], axis=0), parts[0], np.nan)


def _zero(node: ir.Node, parts: list[Float64]) -> Float64:
    """Of operators that make zeros of zeros, whatever they make of other constants."""
    return np.where(np.all([part == 0 for part in parts], axis=0), 0.0, np.nan)


def _average_pool(node: ir.Node, parts: list[Float64]) -> Float64:
    counts_pads = node.attributes.get_int("count_include_pad", 0) or node.attributes.get_int("ceil_mode", 0)
    return (_zero if counts_pads else _same)(node, parts)


def _resize(node: ir.Node, parts: list[Float64]) -> Float64:
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return np.full(len(parts[0]), np.nan)
    return (_zero if node.attributes.get_string("mode", "nearest") == "cubic" else _same)(node, parts)


def _pad(node: ir.Node, parts: list[Float64]) -> Float64:
    if node.attributes.get_string("mode", "constant") != "constant":
        return parts[0]
    value = find_constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and value is None:
        return np.full(len(parts[0]), np.nan)
    filled = float(value.array().reshape(())) if value is not None else node.attributes.get_float("value", 0.0)
    return np.where(parts[0] == filled, parts[0], np.nan)


def _clip(node: ir.Node, parts: list[Float64]) -> Float64:
    bounds = []
    for index, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        value = node.inputs[index] if len(node.inputs) > index else None
        constant = find_constant(value)
        if value is not None and (constant is None or constant.array().size != 1):
            return np.full(len(parts[0]), np.nan)
        bounds.append(
            float(constant.array().reshape(())) if constant is not None else node.attributes.get_float(name, default)
        )
    return np.minimum(np.maximum(parts[0], bounds[0]), bounds[1])


def _leaky(node: ir.Node, parts: list[Float64]) -> Float64:
    return np.where(parts[0] < 0, parts[0] * node.attributes.get_float("alpha", 0.01), parts[0])


def _elu(node: ir.Node, parts: list[Float64]) -> Float64:
    alpha = node.attributes.get_float("alpha", 1.0)
    return np.where(parts[0] < 0, alpha * np.expm1(parts[0]), parts[0])


def _hard_sigmoid(node: ir.Node, parts: list[Float64]) -> Float64:
    slope, shift = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return np.clip(slope * parts[0] + shift, 0, 1)


def _gelu(node: ir.Node, parts: list[Float64]) -> Float64:
    if node.attributes.get_string("approximate", "none") != "none":
        return _zero(node, parts)
    return np.asarray(0.5 * parts[0] * (1 + _erf(parts[0] / np.sqrt(2))))


def _product(node: ir.Node, parts: list[Float64]) -> Float64:
    """Zero times anything is zero."""
    return np.where(np.any([part == 0 for part in parts], axis=0), 0.0, np.prod(parts, axis=0))


def _quotient(node: ir.Node, parts: list[Float64]) -> Float64:
    return np.where(parts[1] == 0, np.nan, parts[0] / parts[1])


def _sigmoid(x: Float64) -> Float64:
    return np.asarray(1 / (1 + np.exp(-x)))


_erf = np.vectorize(erf, otypes=[np.float64])

# Operators of several operands, some of which may be constants of the graph.
_OF_OPERANDS: Mapping[str, Function] = {
    **dict.fromkeys(("Add", "Sum"), lambda node, parts: np.sum(parts, axis=0)),
    "Sub": lambda node, parts: parts[0] - parts[1],
    "Mul": _product,
    "Div": _quotient,
    "Max": lambda node, parts: np.max(parts, axis=0),
    "Min": lambda node, parts: np.min(parts, axis=0),
    "PRelu": lambda node, parts: np.where(parts[0] < 0, _product(node, parts), parts[0]),
}
# Operators of one operand, or of parts that they move. Of one that is not listed nothing is known.
_FUNCTIONS: Mapping[str, Function] = {
    **dict.fromkeys(("MaxPool", "GlobalMaxPool", "GlobalAveragePool", "Flatten", "Reshape", "Transpose"), _same),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "ReduceMean", "ReduceMax", "ReduceMin", "Slice", "Gather"), _same),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _same),
    **dict.fromkeys(("ReduceSum", "Selu", "Softsign", "Sin", "Swish"), _zero),
    "AveragePool": _average_pool,
    "Resize": _resize,
    "Pad": _pad,
    "Clip": _clip,
    "LeakyRelu": _leaky,
    "Elu": _elu,
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "Relu": _unary(lambda x: np.maximum(x, 0)),
    "Abs": _unary(np.abs),
    "Neg": _unary(np.negative),
    "Sqrt": _unary(np.sqrt),
    "Exp": _unary(np.exp),
    "Tanh": _unary(np.tanh),
    "Erf": _unary(_erf),
    "Sigmoid": _unary(_sigmoid),
    "HardSwish": _unary(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "Softplus": _unary(lambda x: np.logaddexp(0, x)),
    "Mish": _unary(lambda x: x * np.tanh(np.logaddexp(0, x))),
}
