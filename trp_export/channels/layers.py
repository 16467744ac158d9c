"""Rules of the layers: what multiplies channels by weights, or scales each of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trp_export.channels.analysis import Analysis, NotUnderstoodError, Rule, whole
from trp_export.channels.labels import Labels
from trp_export.channels.steps import Balance, Columns, Mix, Setting, Source
from trp_export.graph.kernels import group_of
from trp_export.graph.weights import Constant, find_constant


def _conv(analysis: Analysis, node: ir.Node) -> None:
    """Conv and ConvTranspose. A conv with one input channel in each group works on each channel alone."""
    weight = _weight(node)
    group, rank = group_of(node), len(weight.shape)
    labels = analysis.tracked(node.inputs[0])
    if labels is not None and (labels.axis, labels.rank) != (1, rank):
        raise NotUnderstoodError("its channels are on another axis")
    transposed = node.op_type == "ConvTranspose"
    inputs = weight.shape[0] if transposed else weight.shape[1] * group
    outputs = weight.shape[1] * group if transposed else weight.shape[0]
    _require_length(labels, inputs)
    if group < 1 or inputs % group or outputs % group:
        raise NotUnderstoodError("its attributes do not fit its weight")
    if labels is not None and inputs == group > 1 and (not transposed or outputs == group):
        _depthwise(analysis, node, weight, labels, outputs // group)
        return
    if group > 1 and labels is None:
        raise NotUnderstoodError("it is grouped and reads channels that are unknown")
    ids = analysis.ties.fresh(outputs)
    _add_mix(analysis, node, weight, labels, Labels(rank, 1, ids))
    if group > 1 and labels is not None:
        analysis.balances += [Balance(labels.ids.reshape(group, -1)), Balance(ids.reshape(group, -1))]


def _depthwise(analysis: Analysis, node: ir.Node, weight: Constant, labels: Labels, outputs_each: int) -> None:
    source = whole(*analysis.require(node.inputs[0]))
    positions = np.repeat(source.positions, outputs_each)
    made = Labels(labels.rank, 1, labels.ids[positions])
    own = np.arange(len(positions))
    parameters = [(analysis.add_rows(node, weight, 0, made.ids), own)]
    bias = _bias(node, len(own))
    if bias is not None:
        parameters.append((analysis.add_rows(node, bias, 0, made.ids), own))
    analysis.settings.append(Setting(labels.ids, lambda kept: _set_int(node, "group", int(kept.sum()))))
    analysis.pass_on(node, made, (Source(source.value, positions),), tuple(parameters))


def _gemm(analysis: Analysis, node: ir.Node) -> None:
    weight = _weight(node)
    labels = analysis.tracked(node.inputs[0])
    if len(weight.shape) != 2 or (labels is not None and (labels.rank, labels.axis) != (2, 1)):
        raise NotUnderstoodError("its channels are on another axis")
    if node.attributes.get_int("transA", 0):
        raise NotUnderstoodError("it transposes its input")
    outputs, inputs = weight.shape if node.attributes.get_int("transB", 0) else weight.shape[::-1]
    _require_length(labels, inputs)
    _add_mix(analysis, node, weight, labels, Labels(2, 1, analysis.ties.fresh(outputs)))


def _matmul(analysis: Analysis, node: ir.Node) -> None:
    weight = find_constant(node.inputs[1])
    labels = analysis.tracked(node.inputs[0])
    shape = analysis.shape(node.inputs[0])
    rank = labels.rank if labels is not None else len(shape or ())
    if weight is None or len(weight.shape) != 2 or rank < 2:
        raise NotUnderstoodError("it multiplies two computed values")
    if labels is not None and labels.axis != rank - 1:
        raise NotUnderstoodError("its channels are on another axis")
    _require_length(labels, weight.shape[0])
    _add_mix(analysis, node, weight, labels, Labels(rank, rank - 1, analysis.ties.fresh(weight.shape[1])))


def _recurrent(analysis: Analysis, node: ir.Node) -> None:
    """An LSTM, GRU or RNN reads channels by the columns of its input weight; what it makes stays."""
    weight = find_constant(node.inputs[1])
    value, labels = analysis.require(node.inputs[0])
    if any(analysis.tracked(other) is not None for other in node.inputs[1:]) or weight is None:
        raise NotUnderstoodError("it may mix channels")
    if (labels.rank, labels.axis) != (3, 2) or len(weight.shape) != 3:
        raise NotUnderstoodError("its channels are on another axis")
    _require_length(labels, weight.shape[2])
    analysis.columns.append(Columns(node, value, weight, 2, labels.ids))


def _norm(analysis: Analysis, node: ir.Node) -> None:
    """BatchNormalization and InstanceNormalization."""
    if node.attributes.get_int("training_mode", 0) or any(output.uses() for output in node.outputs[1:]):
        raise NotUnderstoodError("it computes statistics of its input")
    value, labels = analysis.require(node.inputs[0])
    constants = [find_constant(other) for other in node.inputs[1:]]
    if labels.axis != 1 or not node.attributes.get_int("spatial", 1):
        raise NotUnderstoodError("its channels are on another axis")
    if any(constant is None or constant.shape != (len(labels.ids),) for constant in constants):
        raise NotUnderstoodError("its parameters are computed")
    own = np.arange(len(labels.ids))
    parameters = tuple(
        (analysis.add_rows(node, constant, 0, labels.ids), own) for constant in constants if constant is not None
    )
    analysis.pass_on(node, labels, (whole(value, labels),), parameters)


def _weight(node: ir.Node) -> Constant:
    weight = find_constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if weight is None or len(weight.shape) < 2:
        raise NotUnderstoodError("its weight is computed")
    return weight


def _require_length(labels: Labels | None, inputs: int) -> None:
    if labels is not None and len(labels.ids) != inputs:
        raise NotUnderstoodError("its weight does not fit its input")


def _add_mix(analysis: Analysis, node: ir.Node, weight: Constant, labels: Labels | None, made: Labels) -> None:
    """A layer with a kernel, and its bias."""
    bias = _bias(node, len(made.ids))
    data = node.inputs[0] if labels is not None else None
    analysis.steps.append(Mix(node, data, weight, labels.ids if labels is not None else None, made.ids))
    if bias is not None:
        analysis.add_rows(node, bias, len(bias.shape) - 1, made.ids)
    analysis.labels[node.outputs[0]] = made


def _bias(node: ir.Node, channels: int) -> Constant | None:
    """The bias with one entry for each channel; None without one, or where one number serves all channels."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return None
    bias = find_constant(value)
    if bias is None:
        raise NotUnderstoodError("its bias is computed")
    if not bias.shape or bias.shape[-1] != channels:
        if any(size != 1 for size in bias.shape[-1:]):
            raise NotUnderstoodError("its bias does not fit its weight")
        return None
    return bias if channels > 1 else None


def _set_int(node: ir.Node, name: str, number: int) -> None:
    node.attributes[name] = ir.AttrInt64(name, number)


LAYERS: dict[str, Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "BatchNormalization": _norm,
    "InstanceNormalization": _norm,
}
