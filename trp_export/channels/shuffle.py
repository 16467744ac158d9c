"""The channel shuffle: Reshape, Transpose and Reshape that together only reorder channels.

Where all channels stay, so do the three nodes. Otherwise a Gather takes their place: groups of unequal size cannot be
reshaped.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from trp_export.channels.analysis import Analysis
from trp_export.channels.labels import Ids, Labels
from trp_export.channels.steps import Kept, Setting, Source
from trp_export.graph.weights import add_integers

_MOST_ENTRIES = 2**26


def shuffle(analysis: Analysis, first: ir.Node) -> bool:
    """Apply the rule of a shuffle that begins at this Reshape. False where there is none."""
    nodes = _chain(first)
    value, labels = analysis.require(first.inputs[0])
    if nodes is None or value is None:
        return False
    _, transpose, last = nodes
    order = _order(analysis, value, labels, nodes)
    if order is None:
        return False
    output = last.outputs[0]

    def apply(kept: Kept) -> None:
        # The input may be what another shuffle made: its Gather has come since.
        left = np.asarray((np.cumsum(kept) - 1)[order[kept[order]]], np.int64)
        graph = analysis.model.graph
        indices = add_integers(graph, f"{first.name}.order", left)
        gather = ir.node("Gather", [first.inputs[0], indices], {"axis": labels.axis}, name=f"{first.name}.gather")
        gather.outputs[0].type, gather.outputs[0].name = output.type, output.name
        ir.convenience.replace_nodes_and_values(
            graph, last, [last, transpose, first], [gather], [output], [gather.outputs[0]]
        )

    analysis.settings.append(Setting(labels.ids, apply))
    analysis.skipped.update((transpose, last))
    analysis.follows.update(((first, 1), (last, 1)))
    analysis.pass_on(last, Labels(labels.rank, labels.axis, labels.ids[order]), (Source(value, order),), moves=True)
    return True


def _chain(first: ir.Node) -> tuple[ir.Node, ir.Node, ir.Node] | None:
    """Three nodes in a row whose values nothing else reads."""
    nodes = [first]
    for op_type in ("Transpose", "Reshape"):
        value = nodes[-1].outputs[0]
        readers = list(value.uses())
        if len(readers) != 1 or value.is_graph_output() or readers[0][0].op_type != op_type or readers[0][1]:
            return None
        nodes.append(readers[0][0])
    return nodes[0], nodes[1], nodes[2]


def _order(analysis: Analysis, value: ir.Value, labels: Labels, nodes: tuple[ir.Node, ir.Node, ir.Node]) -> Ids | None:
    """The input channel of each output channel; None where the nodes do more than reorder channels."""
    first, transpose, last = nodes
    shapes = [analysis.shape(one) for one in (value, first.outputs[0], last.outputs[0])]
    known = [tuple(size or 0 for size in shape) for shape in shapes if shape is not None and None not in shape]
    if len(known) < 3 or known[0] != known[2] or prod(known[0]) != prod(known[1]) or prod(known[0]) > _MOST_ENTRIES:
        return None
    count = len(labels.ids)
    # Each entry of the tensor by its channel and its place in the plane.
    entries = np.arange(prod(known[0])).reshape(known[0])
    moved = entries.reshape(known[1])
    moved = moved.transpose(transpose.attributes.get_ints("perm", list(range(moved.ndim))[::-1])).reshape(known[2])
    start = np.moveaxis(entries, labels.axis, 0).reshape(count, -1)
    end = np.moveaxis(moved, labels.axis, 0).reshape(count, -1)
    order = np.searchsorted(start[:, 0], end[:, 0])
    if (order >= count).any() or not np.array_equal(start[order], end):
        return None
    return order.astype(np.int64)
