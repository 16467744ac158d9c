"""Values inside the body of an If or a Loop, where it runs at all on the inputs at hand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from trp_export.graph.weights import find_constant
from trp_export.runtime.partial import cut_out, open_part, outer_reads
from trp_export.runtime.sessions import Array, CannotRunError, run_session
from trp_export.verify.parts import Body, Part


def values_before(part: Part) -> tuple[str, ...]:
    """The values of the main graph that must be known to run a part; of a body, what its node reads."""
    if part.body is None:
        return part.input_names
    node = part.body.node
    values = [value for value in (*node.inputs, *outer_reads(node)) if value is not None]
    return tuple(dict.fromkeys(value.name or "" for value in values if find_constant(value) is None))


def body_values(part: Part, model: ir.Model, values: Mapping[str, Array]) -> dict[str, Array] | None:
    """The inputs of a part inside a body, from `values` of the main graph; of a Loop in its first iteration.

    None where the body does not run, or cannot be run by itself.
    """
    if part.body is None:
        return dict(values)
    formal = _formal_inputs(part.body, values)
    if formal is None:
        return None
    known = {**values, **formal}
    inside = [value for value in part.wanted_inputs if value.name not in known]
    if not inside:
        return known
    stop = {*part.body.graph.inputs, *(value for value in outer_reads(part.body.node) if value.name in known)}
    try:
        model = cut_out(model, stop, inside, {name: array.dtype for name, array in known.items()})
        session = open_part(model)
        feeds = {value.name: known[value.name] for value in session.get_inputs()}
        return {**known, **dict(zip((value.name or "" for value in inside), run_session(session, feeds), strict=True))}
    except (CannotRunError, ValueError, KeyError):
        return None


def _formal_inputs(body: Body, values: Mapping[str, Array]) -> dict[str, Array] | None:
    """What a body is given by its node, by name; None where it does not run or is not known to."""
    operands = [_operand(value, values) for value in body.node.inputs]
    if body.node.op_type == "If":
        condition = operands[0]
        runs = condition is not None and bool(condition.item()) == (body.attribute == "then_branch")
        return {} if runs else None
    if body.node.op_type != "Loop":
        return None
    most, condition, *carried = operands
    if (most is not None and most.item() < 1) or (condition is not None and not condition.item()):
        return None
    first = [np.array(0, np.int64), np.array(True), *carried]
    if any(array is None for array in first) or len(first) != len(body.graph.inputs):
        return None
    return {value.name or "": array for value, array in zip(body.graph.inputs, first, strict=True) if array is not None}


def _operand(value: ir.Value | None, values: Mapping[str, Array]) -> Array | None:
    constant = find_constant(value)
    if constant is not None:
        return constant.array()
    return values.get(value.name or "") if value is not None else None
