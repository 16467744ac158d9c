"""How far rounding alone can move the output of a few nodes.

A sum of n products a_i b_i that is rounded after each step is off by about u sqrt(n) times the size of its partial
sums, since the single errors, each at most u = 2^-24 of a partial sum in float32, have random signs (Higham & Mary,
"A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41, 2019, theorem 3.1: beyond lambda
times that with a probability of at most 2 exp(-lambda^2 / 2)). The partial sums are about as large as
sqrt(sum a_i^2 b_i^2) where signs are random and as the sum itself where they are alike: both are added in squares, and
carried through the nodes by running them on squared weights and squared inputs. That weights were rounded when they
were stored is of the same order, u for each product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from types import MappingProxyType

import numpy as np
import onnx
import onnx_ir as ir

from trp_export.graph.weights import find_constant, pieces, release, set_later
from trp_export.lowrank.factor import Float64
from trp_export.runtime.partial import open_part
from trp_export.runtime.sessions import Array, open_session, run_session

# What float16 weights were rounded from, by name.
Weights = Mapping[str, ir.TensorProtocol]

# Standard deviations of the random signs that are allowed for: any of 10^9 outputs exceeds them with less than 1e-4.
LAMBDA = 8.0

# Sums and products, through which squares of sizes are carried.
_ARITHMETIC = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Sum", "Mul", "BatchNormalization"}
# Operators that only select, move or average values: they act on squares of sizes as on values.
_MOVES = {
    *("Identity", "Cast", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile", "Concat"),
    *("Slice", "Split", "Gather", "Pad", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"),
}
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_WEIGHTED = {*_LAYERS, "BatchNormalization", "LSTM", "GRU", "RNN"}
_UNITS = {np.dtype(np.float16): 2.0**-11, np.dtype(np.float32): 2.0**-24, np.dtype(np.float64): 2.0**-53}
# Products below the smallest normal number are rounded to zero.
_TINY = 1e-37
# The square of what is smaller lies below the smallest normal number of float32: sizes are not known more exactly.
_LEAST_SIZE = 2.0**-63
_NUDGED = (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)
# For a product of two values whose sizes are not in the file.
_UNKNOWN_TERMS = 1024
_IR_VERSION = 8


@dataclass(frozen=True, slots=True)
class Rounded:
    """What a part of a model computes, and how large rounding errors of that may be, entry by entry.

    `terms` counts the products and sums that lead to one entry.
    """

    output: Array
    allowed: Float64
    terms: int


def run_with_bounds(part: ir.Model, feeds: Mapping[str, Array], exact: Weights = MappingProxyType({})) -> Rounded:
    """The one output of a small model on these inputs. Raises CannotRunError.

    float16 weights are computed with in float32, so that only what they were rounded to is left of their type. So are
    convs in float64, which onnxruntime lacks. What a weight was rounded from takes its place where `exact` holds it.
    """
    model, coarse = _in_float32(part, exact)
    types = {value.name or "": value.dtype for value in model.graph.inputs}
    as_float32 = [name for name, dtype in types.items() if dtype == ir.DataType.FLOAT]
    fed = {name: array.astype(np.float32) if name in as_float32 else array for name, array in feeds.items()}
    name = model.graph.outputs[0].name or ""
    values = _run_all(model, fed)
    output = values[name]
    if output.dtype.kind != "f":
        return Rounded(output, np.zeros(output.shape), 0)
    terms = sum(_terms(node, values) for node in model.graph)
    stored = sum(node.op_type in _ARITHMETIC for node in model.graph)
    unit = np.hypot(_UNITS[output.dtype] * np.sqrt(terms), coarse * np.sqrt(stored))
    sizes = _sizes(model, fed, values, name) + _LEAST_SIZE * np.sqrt(terms)
    return Rounded(output, LAMBDA * unit * sizes + _TINY, terms)


def is_linear(model: ir.Model) -> bool:
    """True where sizes can be carried through all nodes; else rounding is measured by moving inputs and weights."""
    return all(node.op_type in _ARITHMETIC | _MOVES and node.domain == "" for node in model.graph)


def _sizes(model: ir.Model, feeds: Mapping[str, Array], values: Mapping[str, Array], name: str) -> Float64:
    """The size of the terms that were summed up to each entry of an output."""
    output = values[name].astype(np.float64)
    if is_linear(model):
        squares = _squares(model, feeds, values, name)
        if np.isfinite(squares).all():  # Else they are beyond float32.
            return np.sqrt(np.maximum(squares, output**2))
    moved = model.clone()
    nudge_weights(moved)
    other = _run_all(moved, nudge(feeds))[name].astype(np.float64)
    if other.shape != output.shape:
        return np.abs(output)
    spread = np.sqrt(np.nanmean((other - output) ** 2)) if output.size else 0.0
    return np.asarray(np.hypot(output, spread / _UNITS[values[name].dtype]))


def _squares(model: ir.Model, feeds: Mapping[str, Array], values: Mapping[str, Array], name: str) -> Float64:
    """The sum of the squares of a value's terms: each node is run on squares, and what it made is added to that."""
    squares: dict[str, Array] = {name: _square(array) for name, array in feeds.items()}

    def squared(value: ir.Value) -> Array:
        """Those of a weight are made when they are read and not kept."""
        weight = value.const_value if value.is_initializer() else None
        if weight is None:
            return squares[value.name or ""]
        square = _square(weight.numpy())
        release([weight])
        return square

    for node in model.graph:
        operands = [squared(value) if value is not None else None for value in node.inputs]
        outputs = _run_alone(*_on_squares(node, operands), model.graph.opset_imports)
        for value, array in zip(node.outputs, outputs, strict=False):
            own = _square(values[value.name or ""]) if node.op_type in _ARITHMETIC else 0
            squares[value.name or ""] = array + own
    return squares[name].astype(np.float64)


def _on_squares(node: ir.Node, operands: list[Array | None]) -> tuple[ir.Node, list[Array | None]]:
    """The node that does to squares what this one does to values, and its operands."""
    op_type, attributes = node.op_type, dict(node.attributes)
    if op_type == "Sub":
        op_type = "Add"
    elif op_type == "Gemm":
        attributes |= {key: ir.AttrFloat32(key, node.attributes.get_float(key, 1.0) ** 2) for key in ("alpha", "beta")}
    elif op_type == "BatchNormalization":
        data, gamma, beta, mean, variance = (array for array in operands if array is not None)
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        gain = gamma / (np.sqrt(variance) + epsilon)  # The squares of gamma and of the variance.
        ones = np.full_like(gain, 1 - epsilon)
        operands = [data, gain, beta, -mean, ones]
    return ir.Node("", op_type, node.inputs, attributes.values(), num_outputs=len(node.outputs)), operands


def _run_alone(node: ir.Node, operands: Sequence[Array | None], opsets: Mapping[str, int]) -> list[Array]:
    """The outputs of one node, its operands fed from outside."""
    names = ["" if array is None else f"i{index}" for index, array in enumerate(operands)]
    feeds = {name: array for name, array in zip(names, operands, strict=True) if array is not None}
    outputs = [f"o{index}" for index in range(len(node.outputs))]
    proto = onnx.helper.make_node(node.op_type, names, outputs)
    proto.attribute.extend(ir.serde.serialize_attribute(attribute) for attribute in node.attributes.values())
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    graph = onnx.helper.make_graph([proto], "node", inputs, [onnx.ValueInfoProto(name=name) for name in outputs])
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)
    return run_session(open_session(model.SerializeToString()), feeds)


def _run_all(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Every value that the nodes of a small model make. Raises CannotRunError."""
    copy = model.clone()
    made = [value for node in copy.graph for value in node.outputs if value.name]
    outputs = list(dict.fromkeys((*copy.graph.outputs, *made)))
    copy.graph.outputs[:] = outputs
    names = [value.name or "" for value in outputs]
    session = open_part(copy)
    fed = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(zip(names, run_session(session, fed), strict=True))


def _terms(node: ir.Node, values: Mapping[str, Array]) -> int:
    """The products and sums that lead to one entry of what a node makes."""
    if node.op_type not in _LAYERS:
        return 1
    weight = find_constant(node.inputs[1])
    made = values[node.outputs[0].name or ""].shape
    if weight is None:
        return _UNKNOWN_TERMS
    if node.op_type == "Conv":
        return 1 + prod(weight.shape[1:])
    if node.op_type == "ConvTranspose":
        return 1 + prod(weight.shape) // (weight.shape[1] * node.attributes.get_int("group", 1))
    return 1 + prod(weight.shape) // max(1, made[-1] if made else 1)


def _in_float32(part: ir.Model, exact: Weights) -> tuple[ir.Model, float]:
    """The part with weights of `_other_types` in float32, and the unit of rounding of those that are not exact."""
    model, others = part.clone(), _other_types(part)
    units = [0.0]
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype in others:
            if name not in exact:
                units.append(max(_UNITS[value.const_value.dtype.numpy()], _UNITS[np.dtype(np.float32)]))
            array = exact.get(name, value.const_value).numpy().astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in model.graph:
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) in others:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    made = [value for node in model.graph for value in node.outputs]
    for value in (*model.graph.inputs, *made):
        if value.dtype in others:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    return model, max(units)


def _other_types(part: ir.Model) -> tuple[ir.DataType, ...]:
    """float16, since it is coarse, and float64 beside convs, for which onnxruntime has no kernel."""
    tensors = [value.const_value for value in part.graph.initializers.values() if value.const_value is not None]
    convs = any(node.op_type in ("Conv", "ConvTranspose") for node in part.graph)
    others = (ir.DataType.FLOAT16, *((ir.DataType.DOUBLE,) if convs else ()))
    return tuple(other for other in others if any(tensor.dtype == other for tensor in tensors))


def nudge_weights(model: ir.Model) -> None:
    """Move each weight of a layer by one unit in the last place, up or down at random, in place."""
    reads = [value for node in model.graph.all_nodes() if node.op_type in _WEIGHTED for value in node.inputs[1:]]
    for value in {constant.root for constant in map(find_constant, reads) if constant is not None}:
        if value.const_value is not None and value.const_value.dtype in _NUDGED:
            set_later(value, partial(_nudged, value.const_value))


def _nudged(tensor: ir.TensorProtocol) -> Array:
    return nudge({"": tensor.numpy()})[""]


def nudge(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Floating-point arrays with each entry moved by one unit in the last place, up or down at random."""
    generator = np.random.default_rng(1)
    moved = {}
    for name, array in arrays.items():
        if array.dtype in _UNITS:
            moved[name] = np.empty(array.shape, array.dtype)
            for rows in pieces(array):
                up = generator.integers(0, 2, array[rows].shape, dtype=np.int8).astype(bool)
                towards = np.where(up, array.dtype.type(np.inf), array.dtype.type(-np.inf))
                moved[name][rows] = np.where(array[rows] == 0, array[rows], np.nextafter(array[rows], towards))
        else:
            moved[name] = array
    return moved


def _square(array: Array) -> Array:
    """Of floating-point values, in their type; other values, such as shapes, stay as they are."""
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.square(array))
