"""What nodes inside the bodies of If, Loop and Scan read, made values of the main graph: one for each execution.

A Loop or a Scan gives them out as scan outputs, stacked along a new first axis; an If as an output that is empty where
the other branch was taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trp_export.errors import UnsupportedError
from trp_export.graph.shapes import node_key
from trp_export.graph.weights import DEFAULT_DOMAINS, add_initializer
from trp_export.runtime.partial import Array, subgraphs

_LEAST_SCAN_OPSET = 9  # Before, a Scan had an axis of samples.


@dataclass(frozen=True, slots=True)
class Exposed:
    """A value of the main graph that holds all that a node of a body read; `stacked` axes of iterations come first."""

    name: str
    stacked: int

    def executions(self, array: Array) -> list[Array]:
        """The value of each execution; none for a branch that was not taken."""
        if not array.size:
            return []
        return list(array.reshape(-1, *array.shape[self.stacked :])) if self.stacked else [array]


def expose(model: ir.Model, axes: Mapping[str, int]) -> tuple[ir.Model, dict[str, Exposed]]:
    """A copy of the model in which the first inputs of nodes in bodies come out of the main graph, by `node_key`.

    `axes` says how many axes each of these inputs has. Raises UnsupportedError for bodies of other nodes than If, Loop
    and Scan.
    """
    copy = model.clone()
    nodes = list(copy.graph.all_nodes())
    parents = {body: node for node in nodes for attribute in node.attributes.values() for body in subgraphs(attribute)}
    exposed = {}
    for node in nodes:
        key = node_key(node)
        if key not in axes or node.inputs[0] is None:
            continue
        value, graph, stacked = node.inputs[0], node.graph, 0
        while graph is not copy.graph:
            owner = parents[graph]  # type: ignore[index]  # A node is in a graph.
            value = _move_out(copy, owner, value, graph, axes[key] + stacked)
            graph, stacked = owner.graph, stacked + (owner.op_type != "If")
        exposed[key] = Exposed(value.name or "", stacked)
    return copy, exposed


def _move_out(model: ir.Model, node: ir.Node, value: ir.Value, source: object, axes: int) -> ir.Value:
    """A new output of the node that owns the body `source`, which comes to give out a value at each execution."""
    opset = model.opset_imports.get("", _LEAST_SCAN_OPSET)
    known = node.op_type in ("If", "Loop") or (node.op_type == "Scan" and opset >= _LEAST_SCAN_OPSET)
    if not known or node.domain not in DEFAULT_DOMAINS:
        raise UnsupportedError(f"values in the body of {node.op_type} {node.name} cannot be read")
    bodies = [body for attribute in node.attributes.values() for body in subgraphs(attribute)]
    declared = len(bodies[0].outputs) - (node.op_type == "Loop")
    _add_outputs(node, declared - len(node.outputs))
    for body in bodies:
        own = ir.node("Identity", [value if body is source else _nothing(model, value, axes)])
        own.name = own.outputs[0].name = f"{node.name}.{len(node.outputs)}.{body.name}.given"
        own.outputs[0].type = value.type or ir.TensorType(ir.DataType.FLOAT)
        body.append(own)
        body.outputs.append(own.outputs[0])
    for name in ("scan_output_axes", "scan_output_directions"):
        if name in node.attributes:
            node.attributes[name] = ir.AttrInt64s(name, [*node.attributes.get_ints(name, []), 0])
    _add_outputs(node, 1)
    return node.outputs[-1]


def _add_outputs(node: ir.Node, count: int) -> None:
    for _ in range(count):
        node.resize_outputs(len(node.outputs) + 1)
        node.outputs[-1].name = f"{node.name}.{len(node.outputs) - 1}.out"


def _nothing(model: ir.Model, value: ir.Value, axes: int) -> ir.Value:
    dtype = value.dtype or ir.DataType.FLOAT
    return add_initializer(model.graph, f"{value.name}.nothing", np.zeros((0,) * axes, dtype.numpy()), dtype)
