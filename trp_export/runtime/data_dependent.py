"""Which bodies run as often, or as seldom, as the data say: loops until a condition holds, branches on a value."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from trp_export.graph.cost import is_counted
from trp_export.graph.weights import DEFAULT_DOMAINS
from trp_export.runtime.partial import outer_reads, subgraphs

# What they make depends on sizes alone.
_SIZES = ("Shape", "Size")


def data_dependent(model: ir.Model) -> tuple[str, ...]:
    """The If and Loop nodes around counted operators whose branch or number of iterations values decide, by name."""
    return tuple(
        node.name or f"{node.op_type} of {node.outputs[0].name}"
        for node in model.graph.all_nodes()
        if node.domain in DEFAULT_DOMAINS and node.op_type in ("If", "Loop") and _counts(node) and _is_decided(node)
    )


def _counts(node: ir.Node) -> bool:
    return any(is_counted(inner) for body in _bodies(node) for inner in body.all_nodes())


def _is_decided(node: ir.Node) -> bool:
    """Whether values decide what runs: the condition of an If; the count and the conditions of a Loop."""
    if node.op_type == "If":
        return _reads_values(node.inputs[:1])
    (body,) = _bodies(node)
    # Its own condition of the last iteration, and the number of this one, are no values of the data.
    return _reads_values(node.inputs[:2]) or _reads_values(body.outputs[:1], frozenset(body.inputs[:2]))


def _reads_values(values: Sequence[ir.Value | None], known: frozenset[ir.Value] = frozenset()) -> bool:
    """Whether any of these depends on values of an input, or on what an iteration hands to the next."""
    done: set[ir.Value] = set(known)
    pending = [value for value in values if value is not None]
    while pending:
        value = pending.pop()
        if value in done or (value.is_initializer() and not value.is_graph_input()):
            continue
        done.add(value)
        node = value.producer()
        if node is None:
            return True
        if node.op_type not in _SIZES:
            pending += [read for read in (*node.inputs, *outer_reads(node)) if read is not None]
    return False


def _bodies(node: ir.Node) -> list[ir.Graph]:
    return [body for attribute in node.attributes.values() for body in subgraphs(attribute)]
