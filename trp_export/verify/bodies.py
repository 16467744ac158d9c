"""Values inside the body of an If, a Loop or a Scan, and in bodies inside these, where they run on the inputs at hand.

Of a Loop or a Scan they are those of the first iteration in which what lies inside runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from trp_export.graph.weights import find_constant
from trp_export.runtime.partial import cut_out, open_part, outer_reads
from trp_export.runtime.sessions import Array, CannotRunError, run_session
from trp_export.verify.parts import Body, Part

_LEAST_SCAN_OPSET = 9  # Before, a Scan had an axis of samples.
_MOST_ITERATIONS = 4


def values_before(part: Part) -> tuple[str, ...]:
    """The values of the main graph that must be known to run a part; of a body, what the outermost node reads."""
    if part.body is None:
        return part.input_names
    return tuple(dict.fromkeys(value.name or "" for value in _reads(_from_outside(part.body)[0].node)))


def body_values(part: Part, model: ir.Model, values: Mapping[str, Array]) -> dict[str, Array] | None:
    """The inputs of a part inside a body, from `values` of the main graph.

    None where the body does not run in one of the first iterations, or cannot be run by itself.
    """
    bodies = _from_outside(part.body) if part.body is not None else []
    wanted = [*(_reads(inner.node) for inner in bodies[1:]), part.wanted_inputs]
    try:
        return _enter(bodies, wanted, values, model) if bodies else dict(values)
    except (CannotRunError, ValueError, KeyError, IndexError):
        return None


def _enter(
    bodies: Sequence[Body], wanted: Sequence[Sequence[ir.Value]], known: Mapping[str, Array], model: ir.Model
) -> dict[str, Array] | None:
    """All that is known in the innermost of some bodies, in the first iterations in which all of them run."""
    if not bodies:
        return dict(known)
    for formal in _iterations(bodies[0], known, model):
        inside = {**known, **formal}
        inside |= _computed(bodies[0], wanted[0], inside, model)
        found = _enter(bodies[1:], wanted[1:], inside, model)
        if found is not None:
            return found
    return None


def _from_outside(body: Body) -> list[Body]:
    """A body and those that it lies in, the outermost first."""
    return [*(_from_outside(body.outer) if body.outer is not None else []), body]


def _reads(node: ir.Node) -> list[ir.Value]:
    """What a node and its bodies read, without constants."""
    values = [value for value in (*node.inputs, *outer_reads(node)) if value is not None]
    return [value for value in dict.fromkeys(values) if find_constant(value) is None]


def _computed(body: Body, wanted: Sequence[ir.Value], known: Mapping[str, Array], model: ir.Model) -> dict[str, Array]:
    """Values of a body from those known. Raises CannotRunError, ValueError, KeyError."""
    inside = [value for value in wanted if value.name not in known and find_constant(value) is None]
    if not inside:
        return {}
    stop = {*body.graph.inputs, *(value for value in outer_reads(body.node) if value.name in known)}
    session = open_part(cut_out(model, stop, inside, {name: array.dtype for name, array in known.items()}))
    feeds = {value.name: known[value.name] for value in session.get_inputs()}
    return dict(zip((value.name or "" for value in inside), run_session(session, feeds), strict=True))


def _iterations(body: Body, known: Mapping[str, Array], model: ir.Model) -> Iterator[dict[str, Array]]:
    """What a body is given by its node in each of the first iterations, by name; nothing where it does not run."""
    operands = [_operand(value, known) for value in body.node.inputs]
    if body.node.op_type == "If":
        condition = operands[0]
        if condition is not None and bool(condition.item()) == (body.attribute == "then_branch"):
            yield {}
        return
    opset = model.opset_imports.get("", _LEAST_SCAN_OPSET)
    if body.node.op_type not in ("Loop", "Scan") or (body.node.op_type == "Scan" and opset < _LEAST_SCAN_OPSET):
        return
    state: Sequence[Array | None] = _first_state(body.node, operands)
    for index in range(_MOST_ITERATIONS):
        given = _given(body.node, operands, state, index)
        if given is None or any(array is None for array in given) or len(given) != len(body.graph.inputs):
            return
        pairs = zip(body.graph.inputs, given, strict=True)
        formal = {value.name or "": array for value, array in pairs if array is not None}
        yield formal
        state = _next_state(body, len(state), {**known, **formal}, model)


def _first_state(node: ir.Node, operands: Sequence[Array | None]) -> Sequence[Array | None]:
    """The condition and the carried values of a Loop, the states of a Scan."""
    if node.op_type == "Scan":
        return operands[: len(operands) - node.attributes.get_int("num_scan_inputs", 0)]
    _, condition, *carried = operands
    return [np.array(True) if condition is None else condition, *carried]


def _next_state(body: Body, count: int, known: Mapping[str, Array], model: ir.Model) -> Sequence[Array | None]:
    outputs = body.graph.outputs[:count]
    values = {**known, **_computed(body, outputs, known, model)}
    return [_operand(value, values) for value in outputs]


def _given(
    node: ir.Node, operands: Sequence[Array | None], state: Sequence[Array | None], index: int
) -> list[Array | None] | None:
    """The inputs of a body in an iteration; None after the last one."""
    if node.op_type == "Loop":
        most, go = operands[0], state[0]
        ended = (most is not None and index >= most.item()) or go is None or not go.item()
        return None if ended else [np.array(index, np.int64), np.array(True), *state[1:]]
    count = node.attributes.get_int("num_scan_inputs", 0)
    axes = node.attributes.get_ints("scan_input_axes", [0] * count)
    backwards = node.attributes.get_ints("scan_input_directions", [0] * count)
    scanned = operands[len(operands) - count :]
    if any(array is None or index >= array.shape[axis] for array, axis in zip(scanned, axes, strict=True)):
        return None
    places = [-1 - index if last else index for last in backwards]
    slices = [
        np.take(array, place, axis=axis)
        for array, axis, place in zip(scanned, axes, places, strict=True)
        if array is not None
    ]
    return [*state, *slices]


def _operand(value: ir.Value | None, values: Mapping[str, Array]) -> Array | None:
    constant = find_constant(value)
    if constant is not None:
        return constant.array()
    return values.get(value.name or "") if value is not None else None
