"""Put nodes that compute the same in the place of one."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


def replace_node(node: ir.Node, made: Sequence[ir.Node]) -> None:
    """The output of the last of `made` takes the name and the readers of that of `node`, which is removed.

    Raises ValueError for a node that is not in a graph.
    """
    graph, old, new = node.graph, node.outputs[0], made[-1].outputs[0]
    if graph is None:
        raise ValueError(f"{node.name} is not in a graph")
    new.name, new.shape, new.type = old.name, old.shape, old.type
    old.name = f"{new.name}.written_out"
    graph.insert_after(node, made)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
