"""Inline the functions of a model, within bounds: a few kB of nested functions can stand for millions of nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from trp_export.errors import UnsupportedError

_MOST_NODES = 50_000
# onnx_ir tries names one after the other, so that n copies of a node cost n^2 / 2 trials.
_MOST_TRIALS = 2_000_000


def inline_functions(model: ir.Model) -> None:
    """Replace every call of a function by its nodes, in place. Raises UnsupportedError beyond the bounds."""
    if not model.functions:
        return
    copies = _count_copies(model)
    nodes = sum(count * len(_nodes(model.functions[name])) for name, count in copies.items())
    trials = sum(count**2 * len(_nodes(model.functions[name])) for name, count in copies.items()) // 2
    if nodes > _MOST_NODES or trials > _MOST_TRIALS:
        raise UnsupportedError(
            f"the functions of this model stand for {nodes:,} nodes, more than this program inlines. Inline them when "
            "you export the model."
        )
    common.InlinePass()(model)


def _count_copies(model: ir.Model) -> dict[ir.OperatorIdentifier, int]:
    """How often each function is inlined, calls from other functions included."""
    calls = {name: Counter(_calls(_nodes(function), model)) for name, function in model.functions.items()}
    copies: Counter[ir.OperatorIdentifier] = Counter(_calls(list(model.graph.all_nodes()), model))
    for name in _callers_first(calls):
        for called, count in calls[name].items():
            copies[called] += copies[name] * count
    return dict(copies)


def _callers_first(calls: dict[ir.OperatorIdentifier, Counter[ir.OperatorIdentifier]]) -> list[ir.OperatorIdentifier]:
    """The functions, each before those it calls. Raises UnsupportedError where they call one another in a circle."""
    callers = Counter(called for counts in calls.values() for called in counts)
    ready = [name for name in calls if not callers[name]]
    order: list[ir.OperatorIdentifier] = []
    while ready:
        order.append(ready.pop())
        for called in calls[order[-1]]:
            callers[called] -= 1
            if not callers[called]:
                ready.append(called)
    if len(order) < len(calls):
        raise UnsupportedError("the functions of this model call one another in a circle.")
    return order


def _calls(nodes: Sequence[ir.Node], model: ir.Model) -> list[ir.OperatorIdentifier]:
    return [node.op_identifier() for node in nodes if node.op_identifier() in model.functions]


def _nodes(function: ir.Function) -> list[ir.Node]:
    return list(function.all_nodes())
