"""What a layer's time depends on, as text: layers of one signature share their measurements, in any network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import onnx_ir as ir

from trp_export.graph.cost import is_layer
from trp_export.graph.sites import LocatedSite
from trp_export.lowrank.site import Use
from trp_export.planning.plan import Plan
from trp_export.runtime.partial import subgraphs

# What onnxruntime may compute in the same kernel as the layer before it.
_FUSED = ("Add", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Mul")
_MOST_FUSED = 2
# A layer that is used in very many places is told apart by a digest.
_LONGEST = 400
# Constants of at most so many elements, but those of layers, count by their values.
_MOST_VALUES = 64


def signature(place: LocatedSite, alone: bool = False) -> str:
    """Of a layer in the graph that runs, batch norm folded, so that its bias is there; or of the layer `alone`."""
    site = place.site
    kernel = "x".join(map(str, site.kernel_shape)) + (f"/{site.group}" if site.group > 1 else "")
    kernel = f"{place.constant.dtype.name.lower()} {kernel}"
    uses = "; ".join(
        _use(use) if alone else f"{_use(use)}{_company(node)}" for use, node in zip(site.uses, place.nodes, strict=True)
    )
    text = f"{site.op} {kernel} {uses}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} {hashlib.sha256(text.encode()).hexdigest()}"


def _use(use: Use) -> str:
    extents = {"in": use.in_extents, "out": use.out_extents}
    named = {**extents, "s": use.strides, "p": use.pads, "d": use.dilations}
    parts = [f"{key}={'x'.join(map(str, values))}" for key, values in named.items() if values]
    return " ".join((f"n={use.repeats}", *parts))


def _company(node: ir.Node) -> str:
    """Its bias, and the operators that alone read one another, from the layer's output on."""
    found = ["bias"] if len(node.inputs) > 2 and node.inputs[2] is not None else []
    for _ in range(_MOST_FUSED):
        readers = {reader for reader, _ in node.outputs[0].uses()}
        if len(readers) != 1 or (node := next(iter(readers))).op_type not in _FUSED:
            break
        found.append(node.op_type)
    return "".join(f" {word}" for word in found)


def network_digest(model: ir.Model, inputs: str) -> str:
    """Of a network's structure: operators, what they read, attributes, types and shapes, not the values of weights."""
    numbers: dict[ir.Value | None, int] = {}

    def number(value: ir.Value | None) -> int:
        return numbers.setdefault(value, len(numbers))

    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    lines = [inputs]
    for graph in graphs:
        for node in graph.all_nodes():
            attributes = sorted(_attribute(attribute, number) for attribute in node.attributes.values())
            read = [f"{number(value)} {_given(value, node)}" for value in node.inputs]
            made = [number(value) for value in node.outputs]
            lines.append(f"{node.domain}.{node.op_type} {attributes} {read} {made}")
        lines.append(f"{[number(value) for value in graph.outputs]}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def plan_digest(network: str, plan: Plan) -> str:
    """Of a plan on a network of that digest."""
    choices = [
        f"{change.site.name}={'+'.join(f'{branch.scheme.name}@{branch.rank}' for branch in change.branches)}"
        for change in plan.changed
    ]
    return hashlib.sha256("\n".join([network, *choices]).encode()).hexdigest()[:32]


def _given(value: ir.Value | None, reader: ir.Node) -> str:
    """Of a constant or an input of the network; empty for what a node computes."""
    if value is None or value.const_value is None:
        return str(value.dtype) if value is not None and value.is_graph_input() else ""
    return _tensor(value.const_value, values=not is_layer(reader))


def _tensor(tensor: ir.TensorProtocol, *, values: bool = True) -> str:
    """Few values may be sizes, as those of a Reshape or the factors of a Resize."""
    shown = tensor.numpy().tolist() if values and tensor.size <= _MOST_VALUES else ""
    return f"{tensor.dtype} {tensor.shape} {shown}"


def _attribute(attribute: ir.Attr, number: Callable[[ir.Value], int]) -> str:
    """The nodes of a body have lines of their own."""
    value: object = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        value = _tensor(attribute.as_tensor())
    elif attribute.type == ir.AttributeType.TENSORS:
        value = [_tensor(tensor) for tensor in attribute.as_tensors()]
    elif attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        value = [(len(body), [number(each) for each in (*body.inputs, *body.outputs)]) for body in subgraphs(attribute)]
    return f"{attribute.name}={value}"
