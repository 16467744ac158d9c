"""Write a hard sigmoid, alone or in a hard swish, in one operator where an exporter wrote it in three.

    x -> Add b -> Clip 0..h -> Div h             becomes   x -> HardSigmoid(1/h, b/h)
    x -> Add b -> Clip 0..h -> Mul x -> Div h    becomes   x -> HardSigmoid(1/h, b/h) -> Mul x

Both are clip((x + b) / h, 0, 1), times x in a hard swish. In place of Div h there may be Mul 1/h.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from trp_export.graph.exact.replacement import replace_node
from trp_export.graph.weights import DEFAULT_DOMAINS, find_constant, find_scalar

# By how much two constants that an exporter rounded may differ, as a share.
_ROUNDED = 1e-6


@dataclass(frozen=True, slots=True)
class _Written:
    """A hard sigmoid times `height`: what it reads, what is added first, and the nodes after it as far as Div."""

    x: ir.Value
    shift: float
    height: float
    clip: ir.Node
    multiply: ir.Node | None
    divide: ir.Node


def write_hard_sigmoids(model: ir.Model) -> int:
    """Rewrite each of them, in place. Returns their number.

    One is rewritten before the next is looked for, which may read what it makes.
    """
    clips = [node for node in model.graph.all_nodes() if node.op_type == "Clip" and node.domain in DEFAULT_DOMAINS]
    count = 0
    for clip in clips:
        found = _find(clip)
        if found is not None:
            _rewrite(found)
            count += 1
    return count


def _find(clip: ir.Node) -> _Written | None:
    bounds = _bounds(clip)
    added = clip.inputs[0].producer() if clip.inputs[0] is not None else None
    if bounds is None or added is None or bounds[0] != 0 or bounds[1] <= 0:
        return None
    x, shift = _with_scalar(added, "Add")
    after = _only_reader(clip)
    if x is None or shift is None or after is None:
        return None
    multiply = after if after.op_type == "Mul" and any(value is x for value in after.inputs) else None
    divide = after if multiply is None else _only_reader(multiply)
    if divide is None or not _divides_by(divide, bounds[1]):
        return None
    return _Written(x, shift, bounds[1], clip, multiply, divide)


def _bounds(clip: ir.Node) -> tuple[float, float] | None:
    """Both bounds of a Clip: attributes in old models, inputs in new ones."""
    if len(clip.inputs) == 1:
        low, high = clip.attributes.get("min"), clip.attributes.get("max")
        return None if low is None or high is None else (low.as_float(), high.as_float())
    values = [_scalar(value) for value in clip.inputs[1:]]
    return (values[0], values[1]) if len(values) == 2 and values[0] is not None and values[1] is not None else None


def _scalar(value: ir.Value | None) -> float | None:
    """A constant number in float32, the type for which runtimes have the operator."""
    constant = find_constant(value)
    return find_scalar(value) if constant is not None and constant.dtype is ir.DataType.FLOAT else None


def _with_scalar(node: ir.Node, operator: str) -> tuple[ir.Value | None, float | None]:
    """The value and the constant number that a node of that operator takes; None where it takes something else."""
    if node.op_type != operator or node.domain not in DEFAULT_DOMAINS or len(node.inputs) != 2:
        return None, None
    for value, number in (node.inputs, node.inputs[::-1]):
        # A constant of more axes than the value would give the result its axes.
        if (known := _scalar(number)) is not None and len(find_constant(number).shape) <= 1:  # type: ignore[union-attr]
            return value, known
    return None, None


def _only_reader(node: ir.Node) -> ir.Node | None:
    (value,) = node.outputs
    readers = {reader for reader, _ in value.uses()}
    return next(iter(readers)) if len(readers) == 1 and not value.is_graph_output() else None


def _divides_by(node: ir.Node, height: float) -> bool:
    if node.op_type == "Div":
        _, number = _with_scalar(node, "Div")
        return number is not None and _scalar(node.inputs[1]) is not None and abs(number / height - 1) < _ROUNDED
    _, number = _with_scalar(node, "Mul")
    return number is not None and abs(number * height - 1) < _ROUNDED


def _rewrite(one: _Written) -> None:
    attributes = {"alpha": 1 / one.height, "beta": one.shift / one.height}
    sigmoid = ir.node("HardSigmoid", [one.x], attributes, name=f"{one.clip.name}.hard_sigmoid")
    nodes = [sigmoid]
    if one.multiply is not None:
        sigmoid.outputs[0].name = f"{one.divide.outputs[0].name}.hard_sigmoid"
        sigmoid.outputs[0].shape, sigmoid.outputs[0].type = one.x.shape, one.x.type
        nodes.append(ir.node("Mul", [one.x, sigmoid.outputs[0]], name=f"{one.clip.name}.hard_swish"))
    replace_node(one.divide, nodes)
