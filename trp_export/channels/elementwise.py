"""Rules of the operators that work on each channel alone: element by element, by windows, or over whole planes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trp_export.channels.analysis import Analysis, NotUnderstoodError, Rule, whole
from trp_export.channels.labels import Ids, Labels
from trp_export.channels.steps import Rows, Source
from trp_export.graph.weights import find_constant

_UNARY = (
    *("Abs", "Cast", "Ceil", "Celu", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"),
    *("IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid"),
    *("Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu"),
)
_BROADCAST = (
    *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod"),
    *("Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor"),
)
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
_REDUCE = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare"),
)


def _identity(analysis: Analysis, node: ir.Node) -> None:
    value = node.inputs[0]
    if value is not None and find_constant(value) is not None:
        return
    labels = analysis.tracked(value)
    if labels is None or value is None:
        return
    if node.op_type == "Dropout" and any(output.uses() for output in node.outputs[1:]):
        raise NotUnderstoodError("its mask is read")
    training = find_constant(node.inputs[2]) if len(node.inputs) > 2 else None
    moves = node.op_type == "Identity" or len(node.inputs) < 3 or (training is not None and not training.array().any())
    if not moves:
        raise NotUnderstoodError("it drops entries at random")
    analysis.pass_on(node, labels, (whole(value, labels),), moves=True)


def _unary(analysis: Analysis, node: ir.Node) -> None:
    if any(analysis.tracked(other) is not None for other in node.inputs[1:]):
        raise NotUnderstoodError("it may mix channels")
    if analysis.tracked(node.inputs[0]) is not None:
        analysis.follow(node)


def _pool(analysis: Analysis, node: ir.Node) -> None:
    labels = analysis.tracked(node.inputs[0])
    if labels is None:
        return
    if labels.axis != 1:
        raise NotUnderstoodError("its channels are on another axis")
    if any(output.uses() for output in node.outputs[1:]):
        raise NotUnderstoodError("the indices of its maxima are read")
    analysis.follow(node)


def _broadcast(analysis: Analysis, node: ir.Node) -> None:
    """Operands are aligned at their last axes. All with channels tie these; a single channel serves all of another."""
    tracked = [
        (value, analysis.labels[value]) for value in node.inputs if value is not None and value in analysis.labels
    ]
    if not tracked:
        return
    rank = max(_rank(analysis, value) for value in node.inputs if value is not None)
    longest = max((labels for _, labels in tracked), key=lambda labels: len(labels.ids))
    behind = longest.rank - longest.axis
    count = len(longest.ids)
    sources = []
    for value, labels in tracked:
        if labels.rank - labels.axis != behind or len(labels.ids) not in (1, count):
            raise NotUnderstoodError("its operands have their channels on different axes")
        is_single = len(labels.ids) < count
        sources.append(Source(value, np.zeros(count, np.int64) if is_single else np.arange(count)))
    parameters = _parameters(analysis, node, longest, behind)
    for _, labels in tracked:
        if len(labels.ids) == count:
            analysis.ties.tie(longest.ids, labels.ids)
        else:
            analysis.ties.block(labels.ids, "one channel that is combined with several")
    analysis.rows += [rows for rows, _ in parameters]
    analysis.pass_on(node, Labels(rank, rank - behind, longest.ids), tuple(sources), tuple(parameters))


def _parameters(analysis: Analysis, node: ir.Node, labels: Labels, behind: int) -> list[tuple[Rows, Ids]]:
    """The constant operands with an entry for each channel; all others must be the same for all channels."""
    count, parameters = len(labels.ids), []
    for value in node.inputs:
        if value is None or value in analysis.labels:
            continue
        constant = find_constant(value)
        shape = constant.shape if constant is not None else analysis.shape(value)
        if shape is None:
            raise NotUnderstoodError("the shape of its other operand is unknown")
        size = shape[-behind] if len(shape) >= behind else 1
        if size == 1:
            continue
        if constant is None or size != count:
            raise NotUnderstoodError("its other operand has channels that are unknown")
        parameters.append((Rows(node, constant, len(shape) - behind, labels.ids), np.arange(count)))
    return parameters


def _rank(analysis: Analysis, value: ir.Value) -> int:
    if value in analysis.labels:
        return analysis.labels[value].rank
    constant = find_constant(value)
    shape = constant.shape if constant is not None else analysis.shape(value)
    if shape is None:
        raise NotUnderstoodError("the shape of its other operand is unknown")
    return len(shape)


def _reduce(analysis: Analysis, node: ir.Node) -> None:
    labels = analysis.tracked(node.inputs[0])
    if labels is None:
        return
    axes = reduced_axes(node, labels.rank)
    if axes is None or labels.axis in axes:
        raise NotUnderstoodError("it reduces over channels")
    if node.attributes.get_int("keepdims", 1):
        analysis.follow(node)
        return
    left = [axis for axis in range(labels.rank) if axis not in axes]
    analysis.follow(node, axis=left.index(labels.axis), rank=len(left))


def reduced_axes(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    """The axes of a reduction, a Squeeze or an Unsqueeze, counted from 0; None where all or unknown ones are meant."""
    axes = node.attributes.get_ints("axes", ())
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        constant = find_constant(node.inputs[1])
        if constant is None:
            return None
        axes = [int(axis) for axis in constant.array().reshape(-1)]
    return tuple(axis % rank for axis in axes) if axes else None


def _softmax(analysis: Analysis, node: ir.Node) -> None:
    """Softmax over an axis other than that of the channels. Before opset 13 it flattens all axes from `axis` on."""
    labels = analysis.tracked(node.inputs[0])
    if labels is None:
        return
    version = analysis.model.opset_imports.get("", 1)
    axis = node.attributes.get_int("axis", -1 if version >= 13 else 1) % labels.rank
    if axis == labels.axis or (version < 13 and axis <= labels.axis):
        raise NotUnderstoodError("it normalises over channels")
    analysis.follow(node)


def _sampled(analysis: Analysis, node: ir.Node) -> None:
    """RoiAlign and GridSample read planes at positions that channels have no part in."""
    if any(analysis.tracked(other) is not None for other in node.inputs[1:]):
        raise NotUnderstoodError("channels say where it samples")
    _pool(analysis, node)


ELEMENTWISE: dict[str, Rule] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_REDUCE, _reduce),
    **dict.fromkeys(("Identity", "Dropout"), _identity),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("RoiAlign", "GridSample"), _sampled),
}
